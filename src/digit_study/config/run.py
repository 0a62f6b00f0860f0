"""The schema of a run's configuration and the rules its values obey. No TensorFlow here, nor anything slow.

A new knob is a field here, a line in :data:`RULES`, a line in its ``conf/`` group, and the stage that reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from digit_study.terminal.errors import StudyError
from digit_study.terminal.naming import nearest, one_of

IMAGE_SIDE = 28
SOURCES = ("auto", "mnist", "mnist_sample")
FAMILIES = ("cnn", "lenet", "simple")
POOLINGS = ("max", "average", "stride", "none")
ACTIVATIONS = ("relu", "gelu", "silu", "elu", "tanh", "leaky_relu")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "onecycle")
AUGMENTATIONS = ("none", "shift_rotate")
PRECISIONS = ("auto", "float32", "mixed_bfloat16")
WIDEST = 4096


@dataclass(frozen=True)
class DataConfig:
    """Where digits come from. ``sha256`` is the content the source must have; a study writes it once for all runs."""

    source: str = "auto"
    path: str | None = None
    sha256: str | None = None
    validation: int | None = None
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """One network. ``filters`` is the width of the first block, doubled per block."""

    name: str = "cnn"
    family: str = "cnn"
    filters: int = 32
    filters_step: int = 0
    blocks: int = 2
    convs_per_block: int = 1
    kernel_size: int = 3
    pooling: str = "max"
    batch_norm: bool = True
    dense_units: int = 128
    dropout: float = 0.3
    activation: str = "relu"


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Epochs without a better ``val_loss`` before training ends with the best weights; null trains to the end."""

    patience: int | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is fitted. ``threads`` null means every core this process may use."""

    epochs: int = 5
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 0.001
    weight_decay: float = 0.0
    schedule: str = "cosine"
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    augmentation: str = "none"
    shift: float = 2.0
    rotation: float = 10.0
    ema: bool = False
    ema_momentum: float = 0.99
    label_smoothing: float = 0.0
    precision: str = "auto"
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class TrackingConfig:
    """Where results go. ``experiment`` null is named after the data, ``uri`` null is the default store."""

    uri: str | None = None
    experiment: str | None = None
    run_name: str | None = None
    parent_run_id: str | None = None
    save_model: bool = True


@dataclass(frozen=True)
class Config:
    """One run: everything that decides its outcome, and where that outcome is kept."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    reproduce: str | None = None


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test."""

    text: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def choice(*allowed: str) -> Rule:
    """Build the rule that a value is one of ``allowed``."""
    return Rule(one_of(allowed), lambda value: value in allowed, allowed)


def at_least(low: int) -> Rule:
    """Build the rule that a number is ``low`` or more."""
    return Rule(f"at least {low}", lambda value: low <= value < math.inf)


def between(low: float, high: float) -> Rule:
    """Build the rule that a number lies in [low, high]."""
    return Rule(f"in [{low:.10g}, {high:.10g}]", lambda value: low <= value <= high)


def below(low: float, high: float) -> Rule:
    """Build the rule that a number lies in [low, high)."""
    return Rule(f"in [{low:g}, {high:g})", lambda value: low <= value < high)


def above(low: float, high: float) -> Rule:
    """Build the rule that a number lies in (low, high]."""
    return Rule(f"greater than {low:g} and at most {high:g}", lambda value: low < value <= high)


#: Rules of single values; None passes where the schema allows it. Rules between values are in :func:`_relations`.
RULES: dict[str, Rule] = {
    "data.source": choice(*SOURCES),
    "data.validation": at_least(10),
    "data.limit": at_least(10),
    "data.seed": between(0, 2**32 - 1),
    "model.family": choice(*FAMILIES),
    "model.filters": between(1, 1024),
    "model.filters_step": between(0, 1024),
    "model.blocks": at_least(1),
    "model.convs_per_block": between(1, 8),
    "model.kernel_size": between(1, IMAGE_SIDE),
    "model.pooling": choice(*POOLINGS),
    "model.dense_units": between(0, WIDEST),
    "model.dropout": below(0, 1),
    "model.activation": choice(*ACTIVATIONS),
    "training.epochs": at_least(1),
    "training.batch_size": at_least(1),
    "training.optimizer": choice(*OPTIMIZERS),
    "training.learning_rate": above(0, 10),
    "training.weight_decay": below(0, 1),
    "training.schedule": choice(*SCHEDULES),
    "training.early_stopping.patience": at_least(1),
    "training.augmentation": choice(*AUGMENTATIONS),
    "training.shift": between(0, IMAGE_SIDE / 2),
    "training.rotation": between(0, 180),
    "training.ema_momentum": below(0, 1),
    "training.label_smoothing": below(0, 1),
    "training.precision": choice(*PRECISIONS),
    "training.threads": between(1, 1024),
    "training.seed": between(0, 2**32 - 1),
}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every leaf of a config dataclass by its dotted key, in order of declaration."""
    flat: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        key = f"{prefix}{entry.name}"
        flat.update(flatten(value, f"{key}.") if is_dataclass(value) else {key: value})
    return flat


def validate(config: Config) -> None:
    """Check every rule; a config that passes can be built and trained.

    Raises:
        StudyError: lists every rule that is broken, the value that breaks it and what is near.
    """
    complaint("\n".join([*broken_rules(flatten(config), RULES), *_relations(config)]))


def complaint(message: str) -> None:
    """Raise ``message`` unless it is empty."""
    if message:
        raise StudyError(message)


def broken_rules(values: dict[str, Any], rules: dict[str, Rule]) -> Iterator[str]:
    """Yield one sentence for every value of ``values`` that breaks its rule in ``rules``."""
    for key, rule in rules.items():
        value = values.get(key)
        if value is not None and not rule.holds(value):
            yield f"`{key}` must be {rule.text}, got {value!r}{nearest(str(value), rule.choices)}"


def _relations(config: Config) -> Iterator[str]:
    model = config.model
    if not (RULES["model.blocks"].holds(model.blocks) and RULES["model.filters"].holds(model.filters)):
        return
    side = final_side(model)
    if side < 1:
        yield (
            f"`model.blocks`={model.blocks} with `model.kernel_size`={model.kernel_size} and "
            f"`model.pooling`={model.pooling} leaves nothing of a {IMAGE_SIDE}x{IMAGE_SIDE} image: "
            "take fewer blocks, a smaller kernel or `model.pooling=none`"
        )
    if widest(model) > WIDEST:
        yield (
            f"`model.filters`={model.filters} grows to {widest(model)} channels in block {model.blocks}, "
            f"at most {WIDEST} are allowed: take fewer filters or blocks"
        )
    if model.family == "lenet" and model.blocks != 2:
        yield f"`model.blocks` must be 2 in the lenet family, got {model.blocks}: use model=cnn for other depths"
    if model.family == "simple" and model.pooling != "none":
        yield f"`model.pooling` must be none in the simple family, got '{model.pooling}': use model=cnn to pool"
    if config.data.source == "mnist_sample" and config.data.path is not None:
        yield (
            f"`data.path` names a file, got {config.data.path!r} together with data=mnist_sample, which ships with "
            "a package: drop one of the two"
        )


def widest(model: ModelConfig) -> int:
    """Channels of the last block."""
    if model.family == "simple":
        return model.filters + model.filters_step * (model.blocks - 1)
    # min: shifting by 10**9 would never return
    return int(model.filters << min(model.blocks - 1, 64))


def final_side(model: ModelConfig) -> int:
    """Side of the last feature map in pixels; below 1 where the image vanishes.

    The cnn family pads its convolutions, so only pooling shrinks; simple and lenet do not pad (lenet: the second).
    """
    if model.family == "simple":
        return IMAGE_SIDE - model.blocks * model.convs_per_block * (model.kernel_size - 1)
    shrinking = model.pooling != "none"
    if model.family == "lenet":
        half = IMAGE_SIDE // 2 if shrinking else IMAGE_SIDE
        left = half - model.kernel_size + 1
        # a convolution of stride 2 rounds up where pooling rounds down
        return -(-left // 2) if model.pooling == "stride" else left // (2 if shrinking else 1)
    if model.pooling == "stride":
        return -(-IMAGE_SIDE // (1 << min(model.blocks, 64)))
    return IMAGE_SIDE >> min(model.blocks, 64) if shrinking else IMAGE_SIDE
