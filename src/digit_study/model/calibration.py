"""Probabilities that mean what they say, and sets of digits that hold the true one as often as is asked for.

Both are learned from the validation images of a run, each from a half of its own: the images at even places of
``tables/predictions.csv`` give the temperature, those at odd places the sets, and say how well the temperature does.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from digit_study.data.sources import Labels
from digit_study.stats.metrics import Probabilities, calibration_error
from digit_study.support.messages import StudyError

#: Temperatures that are looked at; outside them a network has learned nothing, or there are too few images to tell.
COLDEST, HOTTEST = 0.2, 5.0


def temperature(labels: Labels, probabilities: Probabilities) -> float:
    """The T that makes ``probabilities`` (n, 10) to the power of 1/T, made to sum to 1, most probable for ``labels``.

    Temperature scaling (C. Guo et al. 2017, arXiv 1706.04599, section 4.2): above 1 a network was too sure of itself.
    What a network reads does not change.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        true = tempered(probabilities, float(np.exp(log_t)))[np.arange(len(labels)), labels]
        return float(-np.log(np.clip(true, 1e-12, 1)).mean())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def tempered(probabilities: Probabilities, t: float) -> Probabilities:
    """Probabilities (n, 10) at a temperature."""
    from scipy.special import log_softmax

    logits = np.log(np.clip(probabilities.astype(np.float64), 1e-30, 1)) / t
    return np.asarray(np.exp(log_softmax(logits, axis=1)), np.float32)


def calibrated(labels: Labels, probabilities: Probabilities) -> tuple[float, dict[str, float]]:
    """The temperature of a run by the even half of its images, and metrics: what it does for the odd half."""
    t = temperature(labels[::2], probabilities[::2])
    rest = labels[1::2], probabilities[1::2]
    return t, {
        "temperature": t,
        "calibration_error_before": calibration_error(*rest),
        "calibration_error_after": calibration_error(rest[0], tempered(rest[1], t)),
    }


def with_temperature(model: Any, t: float) -> Any:
    """The Keras model ``model``, weights shared, whose probabilities are those at a temperature; of plain layers."""
    import keras

    logits = keras.layers.Rescaling(1 / t, name="temperature")(keras.ops.log(model.output))
    return keras.Model(
        model.input, keras.layers.Softmax(name="calibrated")(logits), name=model.name
    )


def least_probability(labels: Labels, probabilities: Probabilities, coverage: float) -> float:
    """How probable a digit must be to be in a set that holds the true one with a chance of ``coverage`` or more.

    Split conformal prediction (V. Vovk, A. Gammerman, G. Shafer 2005; the score is that of M. Sadinle, J. Lei, L.
    Wasserman 2019, arXiv 1609.00451): of the odd half, n images, the probability of the true digit that all but
    (n + 1) (1 - coverage) of them reach. It holds for every network, of images that are drawn as these were. It is one
    quantile of numpy's: MAPIE would want an estimator of scikit-learn's around the network. StudyError if n is too few.
    """
    labels, probabilities = labels[1::2], probabilities[1::2]
    scores = 1 - probabilities[np.arange(len(labels)), labels].astype(np.float64)
    level = np.ceil((len(scores) + 1) * coverage) / len(scores)
    if level > 1:
        most = len(scores) / (len(scores) + 1)
        raise StudyError(
            f"`--coverage` must be at most {most:.4f} for a network that was calibrated on {len(scores):,} images, got "
            f"{coverage:g}: ask for less, or train with a larger data.validation"
        )
    return float(1 - np.quantile(scores, level, method="higher"))


def prediction_sets(probabilities: Probabilities, least: float) -> npt.NDArray[np.bool_]:
    """Which digits are in the set of each image, (n, 10): those as probable as ``least``, and in any case the first.

    The most probable one is added where there would be none: a set can only cover more by it.
    """
    is_first = np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None]
    return np.asarray((probabilities >= least) | is_first)
