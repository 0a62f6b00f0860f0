"""The schema of a study and its rules: what is searched, how, for how long, and what is confirmed afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from digit_study.config.run import (
    Config,
    DataConfig,
    ModelConfig,
    Rule,
    TrackingConfig,
    TrainingConfig,
    above,
    at_least,
    between,
    broken_rules,
    choice,
    complaint,
    flatten,
    validate,
)
from digit_study.terminal.naming import nearest, one_of

SAMPLERS = ("tpe", "random", "qmc", "cmaes", "grid", "nsga2", "gp")
PRUNERS = ("hyperband", "successive_halving", "median", "percentile", "patient", "none")
#: What can be optimised, and whether a trial reports it after every epoch, so that it can be pruned on.
OBJECTIVES = {
    "val_accuracy": True,
    "val_loss": True,
    "parameters": False,
    "epoch_seconds": False,
    "inference_milliseconds": False,
}
DIRECTIONS = ("maximize", "minimize")


@dataclass(frozen=True)
class SearchConfig:
    """How configurations are searched. ``trials`` is the total a study has at its end, however often it is resumed."""

    trials: int = 20
    workers: int | None = None
    sampler: str = "tpe"
    pruner: str | None = None
    objectives: list[Any] = field(default_factory=lambda: [{"val_accuracy": "maximize"}])
    constraints: list[str] = field(default_factory=list)
    seed: int = 0
    trial_timeout: float | None = None
    trial_memory: float | None = None
    max_failures: int | None = None
    fail_fast: bool = False
    fresh: bool = False
    keep_models: int = 5
    storage: str | None = None
    confirm: bool = False
    plan: bool = False
    space: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfirmConfig:
    """How the best configurations are confirmed: ``top`` of them, each on the same ``seeds`` fresh seeds."""

    top: int = 5
    seeds: int = 5
    prefer: str = "smallest"


@dataclass(frozen=True)
class StudyConfig:
    """A study: the baseline run that is varied, and how."""

    study: str = "default"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)

    @property
    def run(self) -> Config:
        """The run that every trial varies."""
        return Config(self.data, self.model, self.training, self.tracking)


@dataclass(frozen=True)
class Constraint:
    """``metric <= bound`` or ``metric >= bound``."""

    metric: str
    sign: int
    bound: float

    def violation(self, metrics: dict[str, float]) -> float:
        """By how much ``metrics`` break it; 0 or less where they keep it, as Optuna wants it."""
        return self.sign * (metrics[self.metric] - self.bound)


RULES: dict[str, Rule] = {
    "study": Rule(
        "a name of letters, digits, '-', '_' and '.', not starting with '.'",
        lambda value: bool(re.fullmatch(r"[\w-][\w.-]{0,99}", value)),
    ),
    "search.trials": at_least(1),
    "search.workers": between(1, 256),
    "search.sampler": choice(*SAMPLERS),
    "search.pruner": choice(*PRUNERS),
    "search.seed": between(0, 2**31 - 1),
    "search.trial_timeout": above(0, 1e7),
    "search.trial_memory": above(0, 1e5),
    "search.max_failures": at_least(1),
    "search.keep_models": at_least(0),
    "confirm.top": between(1, 100),
    "confirm.seeds": between(2, 100),
    "confirm.prefer": choice("smallest", "accuracy"),
}


def objectives_of(search: SearchConfig) -> dict[str, str]:
    """Objectives by metric, each with its direction, in order of rank."""
    return {metric: direction for entry in search.objectives for metric, direction in entry.items()}


def constraints_of(search: SearchConfig) -> list[Constraint]:
    """The parsed constraints."""
    return [found for text in search.constraints if (found := _constraint(text)) is not None]


def pruner_of(search: SearchConfig) -> str:
    """The pruner by name: as configured, else hyperband where there is something to prune on."""
    if search.pruner is not None:
        return search.pruner
    objectives = objectives_of(search)
    return "hyperband" if len(objectives) == 1 and OBJECTIVES[next(iter(objectives))] else "none"


def validate_study(study: StudyConfig) -> None:
    """Check every rule of a study but those of its space, and of the baseline run that it varies.

    Raises:
        StudyError: lists every rule that is broken.
    """
    validate(study.run)
    broken = list(broken_rules(flatten(study), RULES))
    broken += list(_objective_flaws(study.search))
    broken += [
        f"`search.constraints` must read 'metric <= number' or '>=' with {one_of(OBJECTIVES)}, got {text!r}"
        for text in study.search.constraints
        if _constraint(text) is None
    ]
    complaint("\n".join(broken))


def _objective_flaws(search: SearchConfig) -> Iterator[str]:
    rule = f"`search.objectives` must be a list of `metric: maximize | minimize` with {one_of(OBJECTIVES)}"
    entries = search.objectives
    if not entries or not all(isinstance(entry, dict) and entry for entry in entries):
        yield f"{rule}, got {entries!r}"
        return
    for metric, direction in objectives_of(search).items():
        if metric not in OBJECTIVES:
            yield f"{rule}, got {metric!r}{nearest(str(metric), OBJECTIVES)}"
        if direction not in DIRECTIONS:
            yield f"{rule}, got {direction!r} for {metric}{nearest(str(direction), DIRECTIONS)}"
    yield from _pruner_flaws(search)


def _pruner_flaws(search: SearchConfig) -> Iterator[str]:
    if search.pruner in (None, "none"):
        return
    objectives = objectives_of(search)
    if len(objectives) > 1:
        yield (
            f"`search.pruner` must be none with several objectives, got '{search.pruner}' with "
            f"{', '.join(objectives)}: Optuna prunes on one value only"
        )
    elif not OBJECTIVES.get(next(iter(objectives)), True):
        yield (
            f"`search.pruner` must be none for the objective {next(iter(objectives))}, which is known only at the "
            f"end of a trial, got '{search.pruner}'"
        )


def _constraint(text: str) -> Constraint | None:
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*([-+.\deE]+)\s*", str(text))
    if found is None or found[1] not in OBJECTIVES:
        return None
    try:
        return Constraint(found[1], 1 if found[2] == "<=" else -1, float(found[3]))
    except ValueError:
        return None
