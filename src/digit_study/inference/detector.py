"""The detector of what is no digit: two small networks that have learned digits against pictures of everything else.

It is shipped beside this file, trained on MNIST's training digits by ``make detector``, which says how; so every
network has one, however small the data that it was trained on itself.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digit_study.data.sources import CLASSES, IMAGE_SIDE, Pixels

WEIGHTS = Path(__file__).with_suffix(".npz")
#: Channels of the three blocks of two convolutions each.
WIDTHS = (24, 48, 96)
NETWORKS = 2
#: Keeps the logarithm of a probability that is 0 in float32 finite.
TINY = 1e-9
Scores = npt.NDArray[np.float32]
Scorer = Callable[[Pixels], Scores]


def build(precision: str = "float32", layers: Any = None) -> Any:
    """The untrained network: pixels (n, 28, 28, 1), 0 to 255, to probabilities (n, 11), the last one of "no digit".

    Of ``layers``, as :func:`digit_study.model.networks.build_model`.
    """
    import keras

    layers = layers or keras.layers
    pixels = keras.Input((IMAGE_SIDE, IMAGE_SIDE, 1), name="pixels")
    x = layers.Rescaling(1 / 255, dtype=precision, name="normalise")(pixels)
    for width in WIDTHS:
        for shrinks in (False, True):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, dtype=precision)(x)
            x = layers.MaxPooling2D(dtype=precision)(x) if shrinks else x
            x = layers.BatchNormalization(momentum=0.9, dtype=precision)(x)
            x = layers.Activation("relu", dtype=precision)(x)
    x = layers.Dropout(0.3, dtype=precision)(layers.Flatten(dtype=precision)(x))
    return keras.Model(
        pixels, layers.Dense(CLASSES + 1, "softmax", dtype="float32")(x), name="detector"
    )


def scorer(models: Sequence[Any]) -> Scorer:
    """A function: images (n, 28, 28, 1), uint8, to the mean of the models' log-odds that each shows a digit, (n,)."""
    from digit_study.model.fit import Predictor

    readers = [Predictor(model) for model in models]

    def score(images: Pixels) -> Scores:
        no_digit = np.stack([read(images)[:, CLASSES] for read in readers])
        return np.asarray(
            np.mean(np.log(1 - no_digit + TINY) - np.log(no_digit + TINY), axis=0), np.float32
        )

    return score


def save(
    weights: Sequence[Sequence[np.ndarray[Any, Any]]], threshold: float, path: Path = WEIGHTS
) -> None:
    """Keep the weights of each network, in half precision, and the score below which a picture is refused."""
    each = {
        f"{number}.{at}": one for number, own in enumerate(weights) for at, one in enumerate(own)
    }
    np.savez_compressed(
        path,
        threshold=threshold,
        **{name: one.astype(np.float16) for name, one in each.items()},  # type: ignore[arg-type]
    )


def weights(path: Path = WEIGHTS) -> list[list[np.ndarray[Any, Any]]]:
    """Return the kept weights of each network, float32, in Keras's order."""
    with np.load(path) as kept:
        counts = [
            sum(name.startswith(f"{number}.") for name in kept.files) for number in range(NETWORKS)
        ]
        return [
            [kept[f"{number}.{at}"].astype(np.float32) for at in range(count)]
            for number, count in enumerate(counts)
        ]


@cache
def load(path: Path = WEIGHTS) -> Callable[[Pixels], npt.NDArray[np.bool_]]:
    """Load the shipped detector.

    Args:
        path: its weights and its threshold.

    Returns:
        A function: images (n, 28, 28, 1), uint8, to whether each passes for a digit, (n,).
    """
    models = []
    for own in weights(path):
        model = build()
        model.set_weights(own)
        models.append(model)
    with np.load(path) as kept:
        threshold = float(kept["threshold"])
    score = scorer(models)
    # compiles it, before anybody waits for an answer
    score(np.zeros((1, IMAGE_SIDE, IMAGE_SIDE, 1), np.uint8))
    return lambda images: score(images) >= threshold


def are_digits(images: Pixels) -> npt.NDArray[np.bool_]:
    """Whether each of the images (n, 28, 28, 1), uint8, passes for a digit, (n,).

    The shipped detector says so, which the first call loads: a second of TensorFlow.
    """
    return load()(images)
