"""Random shifts and rotations of whole batches, a function of seed and step alone."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf


def shift_rotate(batches: tf.data.Dataset, shift: float, rotation: float, seed: int) -> tf.data.Dataset:
    """Move every image of every batch by its own random amount.

    Args:
        batches: yields (images (n, h, w, 1) uint8, targets).
        shift: largest shift in pixels along each axis, each way.
        rotation: largest rotation about the centre in degrees, each way.
        seed: makes the same movements in the same steps.

    Returns:
        The batches with float32 images, bilinearly resampled, paper (0) where nothing was.
    """

    def move(step: Any, batch: Any) -> Any:
        images, targets = batch
        return _warp(tf.cast(images, tf.float32), shift, math.radians(rotation), tf.stack([seed, step])), targets

    # the counter would restart every epoch inside enumerate(); a random source of the dataset's own goes on
    numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(numbers, batches).map(move)


def _warp(images: Any, shift: float, angle: float, seed: Any) -> Any:
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    drawn = tf.random.stateless_uniform((3, count), seed=seed, minval=-1.0, maxval=1.0)
    cos, sin = tf.cos(drawn[0] * angle), tf.sin(drawn[0] * angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    none = tf.zeros_like(cos)
    # output to input coordinates, about the centre: [a0 a1 a2; b0 b1 b2] and no perspective
    rows = [
        cos,
        -sin,
        x - cos * x + sin * y + drawn[1] * shift,
        sin,
        cos,
        y - sin * x - cos * y + drawn[2] * shift,
    ]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([*rows, none, none], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
