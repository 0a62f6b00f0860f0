"""The detector of what is no digit: a small network that has learned digits against pictures of everything else.

It is shipped beside this file, trained on MNIST's training digits by ``make detector``, which says how; so every
network has one, however small the data that it was trained on itself.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digit_study.data.sources import CLASSES, IMAGE_SIDE, Pixels

WEIGHTS = Path(__file__).with_suffix(".npz")
WIDTHS = (24, 48, 96)
Scores = npt.NDArray[np.float32]


def build(precision: str = "float32") -> Any:
    """The untrained network: pixels (n, 28, 28, 1), 0 to 255, to probabilities (n, 11), the last one of "no digit"."""
    import keras
    from keras import layers

    pixels = keras.Input((IMAGE_SIDE, IMAGE_SIDE, 1), name="pixels")
    x = layers.Rescaling(1 / 255, dtype=precision, name="normalise")(pixels)
    for width in WIDTHS:
        for shrinks in (False, True):
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, dtype=precision)(x)
            x = layers.MaxPooling2D(dtype=precision)(x) if shrinks else x
            x = layers.BatchNormalization(momentum=0.9, dtype=precision)(x)
            x = layers.Activation("relu", dtype=precision)(x)
    x = layers.Dropout(0.3, dtype=precision)(layers.Flatten(dtype=precision)(x))
    return keras.Model(pixels, layers.Dense(CLASSES + 1, "softmax", dtype="float32")(x), name="detector")


def scorer(model: Any) -> Callable[[Pixels], Scores]:
    """A function: images (n, 28, 28, 1), uint8, to how probable it is that each shows a digit, (n,), in [0, 1]."""
    from digit_study.training.fit import reader

    read = reader(model)
    return lambda images: np.asarray(1 - read(images)[:, CLASSES], np.float32)


def save(weights: list[np.ndarray[Any, Any]], threshold: float, path: Path = WEIGHTS) -> None:
    """Keep weights, in half precision, and the score below which a picture is refused."""
    kept: dict[str, Any] = {f"w{at}": one.astype(np.float16) for at, one in enumerate(weights)}
    np.savez_compressed(path, threshold=threshold, **kept)


@cache
def load(path: Path = WEIGHTS) -> Callable[[Pixels], npt.NDArray[np.bool_]]:
    """The shipped detector, as a function: images (n, 28, 28, 1), uint8, to whether each passes for a digit, (n,)."""
    model = build()
    with np.load(path) as kept:
        threshold = float(kept["threshold"])
        model.set_weights([kept[f"w{at}"].astype(np.float32) for at in range(len(kept.files) - 1)])
    scores = scorer(model)
    scores(np.zeros((1, IMAGE_SIDE, IMAGE_SIDE, 1), np.uint8))  # compiles it, before anybody waits for an answer
    return lambda images: scores(images) >= threshold
