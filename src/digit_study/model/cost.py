"""How much work a network is, known without building it: which job of several takes longest."""

from __future__ import annotations

import math
from typing import Any

from digit_study.data.sources import IMAGE_SIDE
from digit_study.model.networks import FAMILIES, ModelConfig

#: Taken for the multiplications of what cannot be counted: more than any shipped network has.
UNKNOWN = 1_000_000_000


class _Shape:
    """Height, width and channels of a tensor, or units of a flat one, per image."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes


class CountingLayers:
    """Stands for ``keras.layers``: a layer here takes a shape, returns one, and counts its work.

    A family of networks is a function of such a module, so that the work of a new family is known
    without a formula of its own, as long as it is made of these layers.
    """

    def __init__(self) -> None:
        #: Multiplications of one image's way through the network.
        self.multiplications = 0

    def Conv2D(  # noqa: N802
        self, filters: int, kernel_size: int, strides: int, padding: str, **_: Any
    ) -> Any:
        """Count a convolution."""

        def apply(x: _Shape) -> _Shape:
            height, width, channels = x.sizes
            if padding == "valid":
                height -= kernel_size - 1
                width -= kernel_size - 1
            height = math.ceil(height / strides)
            width = math.ceil(width / strides)
            self.multiplications += height * width * filters * channels * kernel_size**2
            return _Shape(height, width, filters)

        return apply

    def MaxPooling2D(self, pool_size: int) -> Any:  # noqa: N802
        """Shrink an image."""

        def apply(x: _Shape) -> _Shape:
            height, width, channels = x.sizes
            return _Shape(height // pool_size, width // pool_size, channels)

        return apply

    AveragePooling2D = MaxPooling2D

    def Flatten(self) -> Any:  # noqa: N802
        """Flatten an image."""
        return lambda x: _Shape(math.prod(x.sizes))

    def Dense(self, units: int, **_: Any) -> Any:  # noqa: N802
        """Count a dense layer."""

        def apply(x: _Shape) -> _Shape:
            self.multiplications += units * x.sizes[0]
            return _Shape(units)

        return apply

    def BatchNormalization(self, **_: Any) -> Any:  # noqa: N802
        """Change no shape."""
        return lambda x: x

    def Activation(self, _: str) -> Any:  # noqa: N802
        """Change no shape."""
        return lambda x: x

    def Dropout(self, _: float) -> Any:  # noqa: N802
        """Change no shape."""
        return lambda x: x


def multiplications(config: ModelConfig) -> int:
    """Return how many multiplications one image takes through a network, all members counted.

    Args:
        config: The network.

    Returns:
        :data:`UNKNOWN` for a family with layers, or arguments of layers, that are not counted. Such
        a network starts first.
    """
    layers = CountingLayers()
    try:
        FAMILIES[config.family](layers, _Shape(IMAGE_SIDE, IMAGE_SIDE, 1), config)
    except (AttributeError, TypeError, ValueError):
        return UNKNOWN
    return config.members * layers.multiplications
