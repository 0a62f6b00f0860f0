"""The families of convolutional networks.

A new family is a builder and an entry in :data:`FAMILIES`; a new variant is a file in
``conf/model``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from digit_study.data.arrays import CLASSES, IMAGE_SIDE
from digit_study.model.counting import CountingLayers, Shape
from digit_study.model.keras_settings import use_keras_settings
from digit_study.support.rules import between, choice, rules_of

#: How the last convolution of a block shrinks the image.
POOLINGS = ("max", "average", "stride", "none")
#: Activations, as Keras names them.
ACTIVATIONS = ("relu", "gelu", "silu", "elu", "tanh", "leaky_relu")
#: Channels of a convolution, at most.
WIDEST = 4096
#: Keras's 0.99 needs 500 steps to forget its start; a run on the sample has 23 an epoch.
BN_MOMENTUM = 0.9
#: Taken for the multiplications of what cannot be counted: more than any shipped network has.
UNKNOWN = 1_000_000_000
#: A tensor of Keras, which is imported when a network is built: names and rules are known without.
Tensor = Any
#: A model of Keras.
Model = Any


@dataclass(frozen=True)
class ModelConfig:
    """Describe a network.

    Attributes:
        name: Name of the Keras model.
        family: A name in :data:`FAMILIES`.
        filters: Channels of the first block, doubled per block.
        filters_step: Channels added per block instead, in the simple family.
        blocks: Blocks of convolutions.
        convs_per_block: Convolutions in each block.
        kernel_size: Side of a convolution's kernel, in pixels.
        pooling: How a block ends.
        batch_norm: Whether a batch normalisation follows each convolution.
        dense_units: Units of the hidden dense layer; 0: none.
        dropout: Share of the hidden units that a training step leaves out.
        activation: Activation after each convolution and hidden layer.
        members: Networks whose mean is taken, trained on seeds that follow each other.
    """

    name: str = "cnn"
    family: Annotated[str, choice(FAMILIES)] = "cnn"
    filters: Annotated[int, between(1, 1024)] = 32
    filters_step: Annotated[int, between(0, 1024)] = 0
    blocks: Annotated[int, between(1, 64)] = 2
    convs_per_block: Annotated[int, between(1, 8)] = 1
    kernel_size: Annotated[int, between(1, IMAGE_SIDE)] = 3
    pooling: Annotated[str, choice(POOLINGS)] = "max"
    batch_norm: bool = True
    dense_units: Annotated[int, between(0, WIDEST)] = 128
    dropout: Annotated[float, between(0, 1, "[)")] = 0.3
    activation: Annotated[str, choice(ACTIVATIONS)] = "relu"
    members: Annotated[int, between(1, 100)] = 1


def build_model(config: ModelConfig, precision: str = "float32", layers: Any = None) -> Model:
    """Build an untrained network.

    Args:
        config: The network.
        precision: Dtype policy of Keras that its layers compute in.
        layers: Layer classes by name; ``keras.layers`` by default.

    Returns:
        A Keras model from pixels (n, 28, 28, 1), 0 to 255, uint8 or float, to probabilities
        (n, 10), float32.
    """
    import keras

    use_keras_settings()
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        pixels = keras.Input((IMAGE_SIDE, IMAGE_SIDE, 1), name="pixels")
        # a layer, so that serving cannot forget it
        rescaling = keras.layers.Rescaling(1 / 255, name="normalise")
        scaled = rescaling(pixels)
        build_family = FAMILIES[config.family]
        features = build_family(layers or keras.layers, scaled, config)
        softmax = keras.layers.Softmax(dtype="float32", name="probabilities")
        probabilities = softmax(features)
        # TensorFlow allows no other characters in the name of a model
        name = re.sub(r"^[^A-Za-z0-9.]|[^A-Za-z0-9_.-]", ".", config.name)
        return keras.Model(pixels, probabilities, name=name)
    finally:
        keras.config.set_dtype_policy(previous)


def mean_of(members: list[Model]) -> Model:
    """Build the network whose probabilities are the mean of those of its members.

    A deep ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474).

    Args:
        members: Networks of :func:`build_model`, which are renamed.
    """
    import keras

    pixels = keras.Input((IMAGE_SIDE, IMAGE_SIDE, 1), name="pixels")
    for number, member in enumerate(members, start=1):
        # layers of a model have names of their own
        member.name = f"member_{number}"
    outputs = [member(pixels) for member in members]
    average = keras.layers.Average(name="probabilities")
    probabilities = average(outputs)
    return keras.Model(pixels, probabilities, name="ensemble")


def _convolution(
    layers: Any,
    x: Tensor,
    width: int,
    config: ModelConfig,
    padding: str,
    *,
    shrink: bool = False,
) -> Tensor:
    """Add a convolution, pooling where it shrinks, batch norm and the activation."""
    strides = 1
    if shrink and config.pooling == "stride":
        strides = 2
    convolution = layers.Conv2D(
        filters=width,
        kernel_size=config.kernel_size,
        strides=strides,
        padding=padding,
        use_bias=not config.batch_norm,
    )
    x = convolution(x)
    # pooling stands before batch norm and activation: both then run on a quarter of the pixels,
    # twice as fast in all
    pools = {
        "max": layers.MaxPooling2D,
        "average": layers.AveragePooling2D,
    }
    if shrink and config.pooling in pools:
        pool = pools[config.pooling](pool_size=2)
        x = pool(x)
    if config.batch_norm:
        x = layers.BatchNormalization(momentum=BN_MOMENTUM)(x)
    return layers.Activation(config.activation)(x)


def _hidden(layers: Any, x: Tensor, units: int, config: ModelConfig) -> Tensor:
    """Add a dense layer, unless it has no ``units``, and dropout, unless its rate is 0."""
    if units:
        x = layers.Dense(units)(x)
        x = layers.Activation(config.activation)(x)
    if config.dropout:
        x = layers.Dropout(config.dropout)(x)
    return x


def _cnn(layers: Any, x: Tensor, config: ModelConfig) -> Tensor:
    """Build blocks of padded convolutions, the last of each shrinking, then a hidden layer."""
    for block in range(config.blocks):
        width = config.filters * 2**block
        for number in range(config.convs_per_block):
            is_last = number == config.convs_per_block - 1
            x = _convolution(layers, x, width, config, "same", shrink=is_last)
    # layers draw their seeds when they are made: this one first
    output = layers.Dense(CLASSES)
    x = layers.Flatten()(x)
    x = _hidden(layers, x, config.dense_units, config)
    return output(x)


def _lenet(layers: Any, x: Tensor, config: ModelConfig) -> Tensor:
    """Build LeNet-5 (LeCun et al. 1998, fig. 2).

    Its widths are 6 and 16, its dense layers 120 and 84; they stay in proportion when scaled.
    """
    second_width = max(config.filters * 8 // 3, 1)
    second_units = config.dense_units * 7 // 10
    x = _convolution(layers, x, config.filters, config, "same", shrink=True)
    x = _convolution(layers, x, second_width, config, "valid", shrink=True)
    x = layers.Flatten()(x)
    x = _hidden(layers, x, config.dense_units, config)
    # layers draw their seeds when they are made: this one before the second hidden layer
    output = layers.Dense(CLASSES)
    x = _hidden(layers, x, second_units, config)
    return output(x)


def _simple(layers: Any, x: Tensor, config: ModelConfig) -> Tensor:
    """Build M3, M5 or M7 of An et al. 2020 (arXiv 2008.10400).

    Unpadded convolutions with batch norm and ReLU, then a dense layer with batch norm.
    """
    for block in range(config.blocks):
        width = config.filters + block * config.filters_step
        for _ in range(config.convs_per_block):
            x = _convolution(layers, x, width, config, "valid")
    x = layers.Flatten()(x)
    x = _hidden(layers, x, config.dense_units, config)
    x = layers.Dense(CLASSES, use_bias=not config.batch_norm)(x)
    if config.batch_norm:
        x = layers.BatchNormalization(momentum=BN_MOMENTUM)(x)
    return x


#: Builders by name: from layer classes, scaled pixels and the config to what the softmax takes.
FAMILIES: dict[str, Callable[[Any, Tensor, ModelConfig], Tensor]] = {
    "cnn": _cnn,
    "lenet": _lenet,
    "simple": _simple,
}


def measured(config: ModelConfig) -> CountingLayers | None:
    """Measure a network without building it.

    Args:
        config: The network; each of its values is valid by itself.

    Returns:
        What its layers have counted. None for a family with layers, or arguments of layers, that
        are not counted.
    """
    layers = CountingLayers()
    try:
        FAMILIES[config.family](layers, Shape(IMAGE_SIDE, IMAGE_SIDE, 1), config)
    except (AttributeError, TypeError, ValueError):
        return None
    return layers


def multiplications(config: ModelConfig) -> int:
    """Return how many multiplications one image takes through a network, all members counted.

    Args:
        config: The network.

    Returns:
        :data:`UNKNOWN` for a network that cannot be measured. It starts first.
    """
    layers = measured(config)
    if layers is None:
        return UNKNOWN
    return config.members * layers.multiplications


def relation_violations(model: ModelConfig) -> Iterator[str]:
    """Yield a sentence for each group of values that do not go together."""
    rules = rules_of(ModelConfig)
    if not all(rule.holds(getattr(model, key)) for key, rule in rules.items()):
        # these are reported by themselves
        return
    layers = measured(model)
    if layers is not None and layers.smallest_side < 1:
        shape = f"`model.kernel_size`={model.kernel_size} and `model.pooling`={model.pooling}"
        rule = f"`model.blocks`={model.blocks} with {shape}"
        nothing = f"leaves nothing of a {IMAGE_SIDE}x{IMAGE_SIDE} image"
        remedy = "take fewer blocks, a smaller kernel or `model.pooling=none`"
        yield f"{rule} {nothing}: {remedy}"
    if layers is not None and layers.widest > WIDEST:
        rule = f"`model.filters`={model.filters} grows to {layers.widest} channels"
        where = f"in {model.blocks} blocks, at most {WIDEST} are allowed"
        yield f"{rule} {where}: take fewer filters or blocks"
    if model.family == "lenet" and model.blocks != 2:
        rule = "`model.blocks` must be 2 in the lenet family"
        yield f"{rule}, got {model.blocks}: use model=cnn for other depths"
    if model.family == "simple" and model.pooling != "none":
        rule = "`model.pooling` must be none in the simple family"
        yield f"{rule}, got '{model.pooling}': use model=cnn to pool"
