"""The CNN families; a new one is a builder and an entry in :data:`FAMILIES`, a new variant a file in ``conf/model``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from digit_study.data.sources import CLASSES, IMAGE_SIDE
from digit_study.support.rules import at_least, between, choice, rules_of

POOLINGS = ("max", "average", "stride", "none")
ACTIVATIONS = ("relu", "gelu", "silu", "elu", "tanh", "leaky_relu")
WIDEST = 4096
#: Keras's 0.99 needs 500 steps to forget its start; a run on the sample has 23 an epoch.
BN_MOMENTUM = 0.9
Tensor = Any
Model = Any  # of Keras, which is imported when one is built: names and rules are known without it


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
    blocks: Annotated[int, at_least(1)] = 2
    convs_per_block: Annotated[int, between(1, 8)] = 1
    kernel_size: Annotated[int, between(1, IMAGE_SIDE)] = 3
    pooling: Annotated[str, choice(POOLINGS)] = "max"
    batch_norm: bool = True
    dense_units: Annotated[int, between(0, WIDEST)] = 128
    dropout: Annotated[float, between(0, 1, "[)")] = 0.3
    activation: Annotated[str, choice(ACTIVATIONS)] = "relu"
    members: Annotated[int, between(1, 100)] = 1


def build_model(config: ModelConfig, precision: str = "float32", layers: Any = None) -> Model:
    """Build an untrained network: (n, 28, 28, 1) pixels, 0 to 255, uint8 or float, to (n, 10) float32 probabilities.

    Of ``layers``, which are ``keras.layers`` unless others of the same names are given.
    """
    import keras

    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        pixels = keras.Input((IMAGE_SIDE, IMAGE_SIDE, 1), name="pixels")
        # a layer, so that serving cannot forget it
        scaled = keras.layers.Rescaling(1 / 255, name="normalise")(pixels)
        features = FAMILIES[config.family](layers or keras.layers, scaled, config)
        probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(features)
        return keras.Model(pixels, probabilities, name=config.name)
    finally:
        keras.config.set_dtype_policy(previous)


def mean_of(members: list[Model]) -> Model:
    """One network that gives the mean of the members' probabilities (Lakshminarayanan et al. 2017, arXiv 1612.01474).

    A single member is its own mean.
    """
    import keras

    if len(members) == 1:
        return members[0]
    pixels = keras.Input((IMAGE_SIDE, IMAGE_SIDE, 1), name="pixels")
    for number, member in enumerate(members, start=1):
        member.name = f"member_{number}"  # layers of one model have names of their own
    probabilities = keras.layers.Average(name="probabilities")(
        [member(pixels) for member in members]
    )
    return keras.Model(pixels, probabilities, name="ensemble")


def _convolution(
    layers: Any, x: Tensor, width: int, config: ModelConfig, padding: str, shrink: bool = False
) -> Tensor:
    """Convolution, pooling where it shrinks, batch norm, activation."""
    strides = 2 if shrink and config.pooling == "stride" else 1
    x = layers.Conv2D(width, config.kernel_size, strides, padding, use_bias=not config.batch_norm)(
        x
    )
    # pooling stands before batch norm and activation: both then run on a quarter of the pixels, twice as fast in all
    pools = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}
    if shrink and config.pooling in pools:
        x = pools[config.pooling](pool_size=2)(x)
    if config.batch_norm:
        x = layers.BatchNormalization(momentum=BN_MOMENTUM)(x)
    return layers.Activation(config.activation)(x)


def _hidden(layers: Any, x: Tensor, units: int, config: ModelConfig) -> Tensor:
    """A dense layer unless it has no ``units``, and dropout."""
    if units:
        x = layers.Activation(config.activation)(layers.Dense(units)(x))
    return layers.Dropout(config.dropout)(x) if config.dropout else x


def _cnn(layers: Any, x: Tensor, config: ModelConfig) -> Tensor:
    """Blocks of padded convolutions, the last of each shrinking, then one hidden layer."""
    for block in range(config.blocks):
        for number in range(config.convs_per_block):
            is_last = number == config.convs_per_block - 1
            x = _convolution(layers, x, config.filters * 2**block, config, "same", is_last)
    return layers.Dense(CLASSES)(_hidden(layers, layers.Flatten()(x), config.dense_units, config))


def _lenet(layers: Any, x: Tensor, config: ModelConfig) -> Tensor:
    """LeNet-5 (LeCun et al. 1998, fig. 2): widths 6 and 16, dense 120 and 84, kept in proportion when scaled."""
    x = _convolution(layers, x, config.filters, config, "same", shrink=True)
    x = _convolution(layers, x, max(config.filters * 8 // 3, 1), config, "valid", shrink=True)
    x = _hidden(layers, layers.Flatten()(x), config.dense_units, config)
    return layers.Dense(CLASSES)(_hidden(layers, x, config.dense_units * 7 // 10, config))


def _simple(layers: Any, x: Tensor, config: ModelConfig) -> Tensor:
    """M3, M5, M7 of An et al. 2020 (arXiv 2008.10400): unpadded conv–BN–ReLU, then one dense layer with BN."""
    for block in range(config.blocks):
        for _ in range(config.convs_per_block):
            x = _convolution(
                layers, x, config.filters + block * config.filters_step, config, "valid"
            )
    x = _hidden(layers, layers.Flatten()(x), config.dense_units, config)
    x = layers.Dense(CLASSES, use_bias=not config.batch_norm)(x)
    return layers.BatchNormalization(momentum=BN_MOMENTUM)(x) if config.batch_norm else x


#: By name: (keras.layers, scaled pixels, config) to what goes into the softmax.
FAMILIES: dict[str, Callable[[Any, Tensor, ModelConfig], Tensor]] = {
    "cnn": _cnn,
    "lenet": _lenet,
    "simple": _simple,
}


def relation_violations(model: ModelConfig) -> Iterator[str]:
    """Yield a sentence for each group of values that do not go together."""
    rules = rules_of(ModelConfig)
    if not rules["blocks"].holds(model.blocks) or not rules["filters"].holds(model.filters):
        return
    if final_side(model) < 1:
        shape = f"`model.kernel_size`={model.kernel_size} and `model.pooling`={model.pooling}"
        nothing = f"leaves nothing of a {IMAGE_SIDE}x{IMAGE_SIDE} image"
        remedy = "take fewer blocks, a smaller kernel or `model.pooling=none`"
        yield f"`model.blocks`={model.blocks} with {shape} {nothing}: {remedy}"
    widest = channels_of_last_block(model)
    if widest > WIDEST:
        grown = f"{widest} channels in block {model.blocks}, at most {WIDEST} are allowed"
        yield f"`model.filters`={model.filters} grows to {grown}: take fewer filters or blocks"
    if model.family == "lenet" and model.blocks != 2:
        rule = "`model.blocks` must be 2 in the lenet family"
        yield f"{rule}, got {model.blocks}: use model=cnn for other depths"
    if model.family == "simple" and model.pooling != "none":
        rule = "`model.pooling` must be none in the simple family"
        yield f"{rule}, got '{model.pooling}': use model=cnn to pool"


def channels_of_last_block(model: ModelConfig) -> int:
    """Return the channels of the last block, which is the widest."""
    if model.family == "simple":
        return model.filters + model.filters_step * (model.blocks - 1)
    # shifting by 10**9 would never return
    doublings = min(model.blocks - 1, 64)
    return model.filters << doublings


def final_side(model: ModelConfig) -> int:
    """Side of the last feature map in pixels; below 1 where the image vanishes. Only cnn pads every convolution."""
    if model.family == "simple":
        return IMAGE_SIDE - model.blocks * model.convs_per_block * (model.kernel_size - 1)
    side, is_lenet = IMAGE_SIDE, model.family == "lenet"
    for block in range(2 if is_lenet else min(model.blocks, 64)):
        side -= (model.kernel_size - 1) * (is_lenet and block == 1)
        if model.pooling == "stride":
            side = -(-side // 2)  # a convolution of stride 2 rounds up where pooling rounds down
        elif model.pooling != "none":
            side //= 2
    return side
