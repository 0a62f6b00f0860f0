"""The detector of pictures that show no digit.

Two small networks have learned digits against pictures of everything else. Their weights are
shipped beside this file, trained on MNIST's training digits by ``make detector``. So every network
has a detector, however small the data that it was trained on itself.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from digit_study.data.sources import CLASSES, IMAGE_SIDE, Pixels

#: Weights of the networks, in the order in which Keras takes them, and the threshold of their
#: score. ``tools/train_detector.py`` writes it.
WEIGHTS = Path(__file__).with_suffix(".npz")
#: Channels of the three blocks of two convolutions each.
WIDTHS = (24, 48, 96)
#: Networks whose scores are averaged.
NETWORKS = 2
#: Keeps the logarithm of a probability that is 0 in float32 finite.
TINY = 1e-9

Weights = list[np.ndarray[Any, Any]]
Scores = npt.NDArray[np.float32]
Scorer = Callable[[Pixels], Scores]


def build(precision: str = "float32", layers: Any = None) -> Any:
    """Build the untrained network.

    Args:
        precision: Keras's dtype policy of all layers but the last.
        layers: what holds the classes of the layers, as for
            :func:`digit_study.model.networks.build_model`; None takes Keras's own.

    Returns:
        A Keras model: pixels (n, 28, 28, 1), 0 to 255, to probabilities (n, 11), the last of which
        is that of "no digit".
    """
    import keras

    if layers is None:
        layers = keras.layers
    pixels = keras.Input((IMAGE_SIDE, IMAGE_SIDE, 1), name="pixels")
    rescaling = layers.Rescaling(1 / 255, dtype=precision, name="normalise")
    x = rescaling(pixels)
    for width in WIDTHS:
        x = _convolution(layers, x, width, precision, shrinks=False)
        x = _convolution(layers, x, width, precision, shrinks=True)
    x = layers.Flatten(dtype=precision)(x)
    x = layers.Dropout(0.3, dtype=precision)(x)
    output = layers.Dense(CLASSES + 1, "softmax", dtype="float32")
    probabilities = output(x)
    return keras.Model(pixels, probabilities, name="detector")


def _convolution(layers: Any, x: Any, width: int, precision: str, *, shrinks: bool) -> Any:
    """Add a convolution, pooling where it shrinks, batch norm and the activation."""
    convolution = layers.Conv2D(
        width,
        3,
        padding="same",
        use_bias=False,
        dtype=precision,
    )
    x = convolution(x)
    if shrinks:
        x = layers.MaxPooling2D(dtype=precision)(x)
    x = layers.BatchNormalization(momentum=0.9, dtype=precision)(x)
    return layers.Activation("relu", dtype=precision)(x)


def scorer(models: Sequence[Any]) -> Scorer:
    """Make a function that scores how much images look like digits.

    Args:
        models: Keras models made by :func:`build`.

    Returns:
        A function: images (n, 28, 28, 1), uint8, to the mean of the models' log-odds that each
        shows a digit, (n,), float32.
    """
    from digit_study.model.fit import Predictor

    predictors = [Predictor(model) for model in models]

    def score(images: Pixels) -> Scores:
        probabilities = [predict(images) for predict in predictors]
        no_digit = np.stack([rows[:, CLASSES] for rows in probabilities])
        log_digit = np.log(1 - no_digit + TINY)
        log_no_digit = np.log(no_digit + TINY)
        mean_log_odds = np.mean(log_digit - log_no_digit, axis=0)
        return np.asarray(mean_log_odds, np.float32)

    return score


def weights() -> list[Weights]:
    """Load the shipped weights.

    Returns:
        The weights of each network, float32, in Keras's order.
    """
    networks = []
    with np.load(WEIGHTS) as saved:
        for number in range(NETWORKS):
            names = [name for name in saved.files if name.startswith(f"{number}.")]
            networks.append([saved[name].astype(np.float32) for name in names])
    return networks


def models() -> list[Any]:
    """Build the networks with the shipped weights.

    Returns:
        Keras models, as :func:`scorer` takes them.
    """
    networks = []
    for network in weights():
        model = build()
        model.set_weights(network)
        networks.append(model)
    return networks


def threshold() -> float:
    """Return the shipped score below which a picture is refused."""
    with np.load(WEIGHTS) as saved:
        return float(saved["threshold"])


class Accepts(Protocol):
    """A function that says which images show a digit."""

    def __call__(self, images: Pixels, *, margin: float = 0.0) -> npt.NDArray[np.bool_]:
        """Return which images pass for digits.

        Args:
            images: shape (n, 28, 28, 1), uint8.
            margin: log-odds by which the threshold is raised, for those that surely do.

        Returns:
            Whether each passes for a digit, (n,).
        """
        ...


@cache
def load() -> Accepts:
    """Load the shipped detector.

    Returns:
        A function that says which images pass for digits.
    """
    least = threshold()
    score = scorer(models())
    blank = np.zeros((1, IMAGE_SIDE, IMAGE_SIDE, 1), np.uint8)
    # compiles it, before anybody waits for an answer
    score(blank)

    def accepts(images: Pixels, *, margin: float = 0.0) -> npt.NDArray[np.bool_]:
        return score(images) >= least + margin

    return accepts


def are_digits(images: Pixels, *, margin: float = 0.0) -> npt.NDArray[np.bool_]:
    """Return whether images pass for digits, as :class:`Accepts` says.

    The first call loads the shipped detector, which takes a second of TensorFlow.

    Args:
        images: shape (n, 28, 28, 1), uint8.
        margin: log-odds by which the threshold is raised.

    Returns:
        Whether each passes for a digit, (n,).
    """
    return load()(images, margin=margin)
