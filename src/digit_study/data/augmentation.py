"""Augmentations of whole batches by name; a new one is a function and an entry in :data:`AUGMENTATIONS`."""

import math
from collections.abc import Callable
from typing import Any

Batches = Any  # tf.data.Dataset of (images (n, h, w, 1) uint8, targets)


def shift_rotate(batches: Batches, shift: float, rotation: float, seed: int) -> Batches:
    """Move every image by its own random amount, up to ``shift`` pixels along each axis and ``rotation`` degrees."""
    import tensorflow as tf

    angle = math.radians(rotation)

    def move(step: Any, batch: Any) -> Any:
        images, targets = batch
        count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
        drawn = tf.random.stateless_uniform((3, count), seed=tf.stack([seed, step]), minval=-1.0, maxval=1.0)
        cos, sin = tf.cos(drawn[0] * angle), tf.sin(drawn[0] * angle)
        x, y, none = (width - 1) / 2, (height - 1) / 2, tf.zeros_like(cos)
        # output to input coordinates, about the centre: [a0 a1 a2; b0 b1 b2] and no perspective
        rows = [cos, -sin, x - cos * x + sin * y + drawn[1] * shift]
        rows += [sin, cos, y - sin * x - cos * y + drawn[2] * shift]
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(images, tf.float32),  # as which they leave
            transforms=tf.stack([*rows, none, none], axis=1),
            output_shape=[height, width],
            fill_value=0.0,  # paper
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        )
        return moved, targets

    # the counter would restart every epoch inside enumerate(); a random source of the dataset's own goes on
    numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(numbers, batches).map(move)


#: By name: (batches, recipe) to batches, where ``recipe`` is the training config with its ``shift``, ...
AUGMENTATIONS: dict[str, Callable[[Batches, Any], Batches]] = {
    "none": lambda batches, recipe: batches,
    "shift_rotate": lambda batches, recipe: shift_rotate(batches, recipe.shift, recipe.rotation, recipe.seed),
}
