"""The CNN families: raw pixels in, probabilities out.

A new family is a builder and a line in :data:`BUILDERS`; a new variant of one is a file in ``conf/model``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from digit_study.config.run import IMAGE_SIDE, ModelConfig

CLASSES = 10
#: TensorFlow's fused batch norm is twice as fast as Keras's on multiples of as many channels, and slower on others.
FUSED_CHANNELS = 16
#: Keras's 0.99 needs 500 steps to forget its start; a run on the sample has 23 an epoch.
BN_MOMENTUM = 0.9
Tensor = Any


def build_model(config: ModelConfig, precision: str = "float32") -> keras.Model:
    """Build an untrained network.

    Args:
        config: a validated variant.
        precision: ``float32`` or ``mixed_bfloat16``; weights are float32 in both.

    Returns:
        A model from (n, 28, 28, 1) pixels, 0 to 255, uint8 or float, to (n, 10) float32 probabilities. Dividing by
        255 is its first layer, so that serving cannot forget it.
    """
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        pixels = keras.Input((IMAGE_SIDE, IMAGE_SIDE, 1), name="pixels")
        features = BUILDERS[config.family](layers.Rescaling(1 / 255, name="normalise")(pixels), config)
        probabilities = layers.Softmax(dtype="float32", name="probabilities")(features)
        return keras.Model(pixels, probabilities, name=config.name)
    finally:
        keras.config.set_dtype_policy(previous)


class FusedBatchNormalization(layers.BatchNormalization):  # type: ignore[misc]
    """Keras's layer over (n, h, w, c), computed by TensorFlow's one kernel instead of a dozen operations where it pays.

    The moving variance takes in the unbiased variance of a batch, as in TensorFlow 1; else only rounding differs.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor = None) -> Tensor:
        """Normalise each channel, by the batch in training, by the moving moments else."""
        if len(inputs.shape) != 4 or inputs.shape[-1] % FUSED_CHANNELS:
            return super().call(inputs, training=training, mask=mask)
        scale, offset, mean, variance = (
            tf.convert_to_tensor(one) for one in (self.gamma, self.beta, self.moving_mean, self.moving_variance)
        )
        pixels = tf.cast(inputs, self.compute_dtype)
        kernel = tf.compat.v1.nn.fused_batch_norm  # takes bfloat16 pixels with float32 moments
        if not (training and self.trainable):
            return kernel(pixels, scale, offset, mean, variance, epsilon=self.epsilon, is_training=False)[0]
        normalised, *moments = kernel(pixels, scale, offset, epsilon=self.epsilon, is_training=True)
        for kept, old, new in zip((self.moving_mean, self.moving_variance), (mean, variance), moments, strict=True):
            kept.assign(old * self.momentum + new * (1.0 - self.momentum))
        return normalised


def fused(model: keras.Model) -> keras.Model:
    """The same network, untrained, with fused batch norm: on a CPU it trains up to 1.6 times as fast.

    Its weights are those of ``model`` in order and shape. It lives and dies with a process: what is judged and saved
    has Keras's own layers, which plain Keras loads.
    """
    if not any(type(layer) is layers.BatchNormalization for layer in model.layers):
        return model

    def copied(layer: layers.Layer) -> layers.Layer:
        kind = FusedBatchNormalization if type(layer) is layers.BatchNormalization else type(layer)
        return kind.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=copied)


def _convolution(x: Tensor, width: int, config: ModelConfig, padding: str = "same", strides: int = 1) -> Tensor:
    return layers.Conv2D(width, config.kernel_size, strides=strides, padding=padding, use_bias=not config.batch_norm)(x)


def _normalise_and_activate(x: Tensor, config: ModelConfig) -> Tensor:
    if config.batch_norm:
        x = layers.BatchNormalization(momentum=BN_MOMENTUM)(x)
    return layers.Activation(config.activation)(x)


def _pool(x: Tensor, config: ModelConfig) -> Tensor:
    pools = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}
    return pools[config.pooling](pool_size=2)(x) if config.pooling in pools else x


def _shrinking_convolution(x: Tensor, width: int, config: ModelConfig, padding: str = "same") -> Tensor:
    # pooling stands before batch norm and activation: both then run on a quarter of the pixels, twice as fast in all
    strides = 2 if config.pooling == "stride" else 1
    x = _pool(_convolution(x, width, config, padding, strides), config)
    return _normalise_and_activate(x, config)


def _hidden(x: Tensor, units: int, config: ModelConfig) -> Tensor:
    if units:
        x = layers.Activation(config.activation)(layers.Dense(units)(x))
    return layers.Dropout(config.dropout)(x) if config.dropout else x


def _cnn(x: Tensor, config: ModelConfig) -> Tensor:
    for block in range(config.blocks):
        width = config.filters * 2**block
        for _ in range(config.convs_per_block - 1):
            x = _normalise_and_activate(_convolution(x, width, config), config)
        x = _shrinking_convolution(x, width, config)
    x = _hidden(layers.Flatten()(x), config.dense_units, config)
    return layers.Dense(CLASSES)(x)


def _lenet(x: Tensor, config: ModelConfig) -> Tensor:
    """LeNet-5 (LeCun et al. 1998, fig. 2): widths 6 and 16, dense 120 and 84, kept in proportion when scaled."""
    x = _shrinking_convolution(x, config.filters, config)
    x = _shrinking_convolution(x, max(config.filters * 8 // 3, 1), config, padding="valid")
    x = _hidden(layers.Flatten()(x), config.dense_units, config)
    x = _hidden(x, config.dense_units * 7 // 10, config)
    return layers.Dense(CLASSES)(x)


def _simple(x: Tensor, config: ModelConfig) -> Tensor:
    """M3, M5, M7 of An et al. 2020 (arXiv 2008.10400): unpadded conv–BN–ReLU, then one dense layer with BN."""
    for block in range(config.blocks):
        width = config.filters + block * config.filters_step
        for _ in range(config.convs_per_block):
            x = _normalise_and_activate(_convolution(x, width, config, padding="valid"), config)
    x = _hidden(layers.Flatten()(x), config.dense_units, config)
    x = layers.Dense(CLASSES, use_bias=not config.batch_norm)(x)
    return layers.BatchNormalization(momentum=BN_MOMENTUM)(x) if config.batch_norm else x


BUILDERS: dict[str, Callable[[Tensor, ModelConfig], Tensor]] = {
    "cnn": _cnn,
    "lenet": _lenet,
    "simple": _simple,
}
