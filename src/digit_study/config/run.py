"""The config of one run: everything that decides its outcome, the rules it obeys, and what ``auto`` becomes.

A new setting is a field and a rule where its group is declared (``data/sources.py``, ``training/networks.py``,
``training/recipe.py``, or here), a line in its ``conf/`` group, and the stage that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from digit_study.config import engine
from digit_study.config.engine import EngineConfig
from digit_study.data import digits, sources
from digit_study.model import networks, recipe
from digit_study.support import machine
from digit_study.support.messages import Rule, StudyError, check


@dataclass(frozen=True)
class TrackingConfig:
    """Where results go. ``experiment`` null is named after the data, ``uri`` null is the default store."""

    uri: str | None = None
    experiment: str | None = None
    run_name: str | None = None
    parent_run_id: str | None = None
    save_model: bool = True
    system_metrics: bool = False


@dataclass(frozen=True)
class Config(EngineConfig):
    """One run: everything that decides its outcome, where that outcome is kept, and where it is trained."""

    data: sources.DataConfig = field(default_factory=sources.DataConfig)
    model: networks.ModelConfig = field(default_factory=networks.ModelConfig)
    training: recipe.TrainingConfig = field(default_factory=recipe.TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    reproduce: str | None = None

    @property
    def epochs(self) -> int:
        """Epochs at most, those of all members counted."""
        return self.training.epochs * self.model.members

    def validate(self) -> None:
        """Check every rule; raises StudyError with all that are broken. What passes can be built and trained."""
        others = [
            *networks.relation_violations(self.model),
            *sources.relation_violations(self.data),
        ]
        check(self, RULES, [*others, *engine.relation_violations(self)])


#: Rules of single values by their key; rules between values stand beside their groups.
RULES: dict[str, Rule] = {**sources.RULES, **networks.RULES, **recipe.RULES, **engine.rules()}


def resolve_config(
    config: Config, parallel: int = 1, precision: str | None = None
) -> tuple[Config, sources.Source]:
    """Decide what a validated config leaves open: data, precision, and threads where ``parallel`` runs share the cores.

    Threads are the cores that its resources name, where they do; ``precision`` is what ``auto`` means where it is
    trained, by default here. Twice changes nothing. Raises StudyError if the data are gone or others, or if one batch
    is more than all of them.
    """
    source = sources.resolve(config.data)
    train, _ = digits.split_sizes(source.images, source.config)
    training = config.training
    if training.batch_size > train:
        rule = f"`training.batch_size` is at most the {train} digits there are to train on"
        raise StudyError(f"{rule}, got {training.batch_size}: lower it, or raise data.limit")
    if precision is None or training.precision != "auto":
        precision = machine.resolve_precision(training.precision)
    threads = (
        training.threads
        or int(config.resources.get("cpu", 0))
        or max(1, machine.cores() // parallel)
    )
    return replace(
        config, data=source.config, training=replace(training, precision=precision, threads=threads)
    ), source


#: What Python takes for a value of a field, by its annotation; True and False are of no type but bool.
_TYPES = {"bool": bool, "int": int, "float": int | float, "str": str}


def with_values(config: Any, values: Mapping[str, Any]) -> Any:
    """Copy a config dataclass with dotted leaves replaced; raises StudyError if one is not of the type of its key."""
    for key, value in values.items():
        names = key.split(".")
        nodes = list(accumulate(names[:-1], getattr, initial=config))
        annotation = type(nodes[-1]).__annotations__[names[-1]]
        kind, _, optional = getattr(annotation, "__name__", str(annotation)).partition(" | ")
        if value is not None or not optional:
            if not isinstance(value, _TYPES[kind]) or isinstance(value, bool) != (kind == "bool"):
                raise StudyError(
                    f"`{key}` must be of type {kind}, got {value!r} of type {type(value).__name__}"
                )
            value = float(value) if kind == "float" else value
        # they are frozen: each is replaced in the one above it
        for node, name in zip(reversed(nodes), reversed(names), strict=True):
            value = replace(node, **{name: value})
        config = value
    return config
