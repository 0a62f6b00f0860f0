"""Layers that measure a network without building it, and without TensorFlow."""

from __future__ import annotations

import math
from typing import Any

from digit_study.data.arrays import IMAGE_SIDE


class Shape:
    """Height, width and channels of a tensor, or units of a flat one, per image."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes


class CountingLayers:
    """Stands for ``keras.layers``: a layer here takes a shape, returns one, and counts its work.

    A family of networks is a function of such a module, so that the size of a new family is known
    without a formula of its own, as long as it is made of these layers.
    """

    def __init__(self) -> None:
        #: Multiplications of one image's way through the network.
        self.multiplications = 0
        #: Channels of the widest convolution.
        self.widest = 0
        #: Side of the smallest feature map, in pixels; below 1 where nothing is left of the image.
        self.smallest_side = IMAGE_SIDE

    def Conv2D(  # noqa: N802
        self, filters: int, kernel_size: int, strides: int, padding: str, **_: Any
    ) -> Any:
        """Count a convolution."""

        def apply(x: Shape) -> Shape:
            height, width, channels = x.sizes
            if padding == "valid":
                height -= kernel_size - 1
                width -= kernel_size - 1
            height = math.ceil(height / strides)
            width = math.ceil(width / strides)
            self.multiplications += height * width * filters * channels * kernel_size**2
            self.widest = max(self.widest, filters)
            return self._image(height, width, filters)

        return apply

    def MaxPooling2D(self, pool_size: int) -> Any:  # noqa: N802
        """Shrink an image."""

        def apply(x: Shape) -> Shape:
            height, width, channels = x.sizes
            return self._image(height // pool_size, width // pool_size, channels)

        return apply

    AveragePooling2D = MaxPooling2D

    def Flatten(self) -> Any:  # noqa: N802
        """Flatten an image."""
        return lambda x: Shape(math.prod(x.sizes))

    def Dense(self, units: int, **_: Any) -> Any:  # noqa: N802
        """Count a dense layer."""

        def apply(x: Shape) -> Shape:
            self.multiplications += units * x.sizes[0]
            return Shape(units)

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

    def _image(self, height: int, width: int, channels: int) -> Shape:
        """Return the shape of a feature map, whose side counts."""
        self.smallest_side = min(self.smallest_side, height, width)
        return Shape(height, width, channels)
