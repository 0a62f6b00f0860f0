"""How MLflow serves a model: it is saved beside each, and runs without this project.

MLflow refuses what is not exactly its schema. So a model has no schema of its input, and this
converts it.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np


class DigitModel:
    """A Keras model that takes pixels of any type of number, with or without a channel axis."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Return the probabilities of the ten digits.

        Args:
            data: Pixels, (n, 28, 28, 1), (n, 28, 28) or (n, 784), 0 (paper) to 255 (ink).
            params: Ignored.

        Returns:
            Probabilities, (n, 10), float32.
        """
        pixels = np.asarray(data, np.float32)
        images = pixels.reshape(-1, 28, 28, 1)
        return self._network.predict(images, verbose=0)


def _load_pyfunc(path: str) -> DigitModel:
    """Load the model that lies in a folder; MLflow calls it by this name."""
    file = Path(path) / "data" / "model.keras"
    network = keras.saving.load_model(file)
    return DigitModel(network)
