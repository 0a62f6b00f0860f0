"""Calibrated probabilities, and sets of digits that hold the true one as often as is asked for.

Both are learned from the validation images of a run, each from a half of its own: the images at
even positions of ``tables/predictions.csv`` give the temperature. Those at odd positions give the
sets, and show what the temperature does.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from digit_study.data.arrays import Labels
from digit_study.stats.metrics import Probabilities, calibration_error
from digit_study.support.errors import StudyError

#: Lowest temperature that is considered: below it there are too few images to say.
COLDEST = 0.2
#: Highest temperature that is considered: above it a network has learned nothing.
HOTTEST = 5.0


def temperature(labels: Labels, probabilities: Probabilities) -> float:
    """Return the temperature under which the true digits are most probable.

    Args:
        labels: True digits, (n,), int64.
        probabilities: Softmax output, (n, 10).

    Returns:
        The temperature, from :data:`COLDEST` to :data:`HOTTEST`; above 1 a network was too sure of
        itself. What it predicts does not change.

    See docs/statistics.md#temperature
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        t = float(np.exp(log_t))
        true = tempered(probabilities, t)[rows, labels]
        above_zero = np.clip(true, 1e-12, 1)
        return float(-np.log(above_zero).mean())

    # in logarithms, halving and doubling are steps of the same size
    bounds = (np.log(COLDEST), np.log(HOTTEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(np.exp(found.x))


def tempered(probabilities: Probabilities, t: float) -> Probabilities:
    """Return probabilities at a temperature.

    Args:
        probabilities: Softmax output, (n, 10).
        t: The temperature, above 0.

    Returns:
        The probabilities to the power of 1 / t, made to sum to 1, (n, 10), float32.

    See docs/statistics.md#temperature
    """
    from scipy.special import log_softmax

    precise = probabilities.astype(np.float64)
    # the logarithm of 0 is not finite
    above_zero = np.clip(precise, 1e-30, 1)
    logits = np.log(above_zero) / t
    log_probabilities = log_softmax(logits, axis=1)
    return np.asarray(np.exp(log_probabilities), np.float32)


def calibrated(labels: Labels, probabilities: Probabilities) -> tuple[float, dict[str, float]]:
    """Return the temperature of a run, by the even half of its images, and what it does.

    Args:
        labels: True digits, (n,), int64.
        probabilities: Softmax output, (n, 10).

    Returns:
        The temperature, and metrics by name: the calibration error of the odd half, in [0, 1],
        before and after.

    See docs/statistics.md#temperature
    """
    t = temperature(labels[::2], probabilities[::2])
    other_labels = labels[1::2]
    other_probabilities = probabilities[1::2]
    other_tempered = tempered(other_probabilities, t)
    error_before = calibration_error(other_labels, other_probabilities)
    error_after = calibration_error(other_labels, other_tempered)
    metrics = {
        "temperature": t,
        "calibration_error_before": error_before,
        "calibration_error_after": error_after,
    }
    return t, metrics


def with_temperature(model: Any, t: float) -> Any:
    """Return a Keras model whose probabilities are those of another model at a temperature.

    Args:
        model: The other model. Its layers and weights are shared, not copied.
        t: The temperature, above 0.

    See docs/statistics.md#temperature
    """
    import keras

    rescaling = keras.layers.Rescaling(1 / t, name="temperature")
    log_probabilities = keras.ops.log(model.output)
    logits = rescaling(log_probabilities)
    softmax = keras.layers.Softmax(name="calibrated")
    probabilities = softmax(logits)
    return keras.Model(model.input, probabilities, name=model.name)


def least_probability(labels: Labels, probabilities: Probabilities, coverage: float) -> float:
    """Return how probable a digit must be to be in a prediction set.

    It is a quantile of numpy's: MAPIE would want an estimator of scikit-learn's around the network.

    Args:
        labels: True digits of all validation images, (n,), int64. The odd half counts.
        probabilities: Softmax output, (n, 10).
        coverage: Chance, in (0, 1), at least, that a set holds the true digit.

    Raises:
        StudyError: If there are too few images for that coverage.

    See docs/statistics.md#prediction-sets
    """
    labels = labels[1::2]
    probabilities = probabilities[1::2]
    images = len(labels)
    true = probabilities[np.arange(images), labels]
    nonconformity = 1 - true.astype(np.float64)
    # the image to be predicted counts too: one more than there are
    level = np.ceil((images + 1) * coverage) / images
    if level > 1:
        most = images / (images + 1)
        raise StudyError(
            f"`--coverage` must be at most {most:.4f} for a network that was calibrated on "
            f"{images:,} images, got {coverage:g}: ask for less, or train with a larger "
            "data.validation"
        )
    largest = np.quantile(nonconformity, level, method="higher")
    return float(1 - largest)


def prediction_sets(probabilities: Probabilities, least: float) -> npt.NDArray[np.bool_]:
    """Return which digits are in the prediction set of each image.

    Args:
        probabilities: Softmax output, (n, 10).
        least: What :func:`least_probability` returned.

    Returns:
        (n, 10): the digits that are at least as probable as ``least``, and in any case the most
        probable digit, by which a set can only hold the true digit more often.

    See docs/statistics.md#prediction-sets
    """
    most_probable = probabilities.argmax(axis=1)
    digits = np.arange(probabilities.shape[1])
    is_most_probable = digits == most_probable[:, None]
    is_probable = probabilities >= least
    return np.asarray(is_probable | is_most_probable)
