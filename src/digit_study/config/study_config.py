"""The config of a study and its rules: what is searched, how, for how long, and what is confirmed afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from digit_study.config import engine_config as engine
from digit_study.config.engine_config import EngineConfig
from digit_study.config.run_config import Config, TrackingConfig
from digit_study.data import sources
from digit_study.model import networks, recipe
from digit_study.support.messages import Rule, at_least, between, check, choice, nearest

SAMPLERS = ("tpe", "random", "qmc", "cmaes", "grid", "nsga2", "gp")
PRUNERS = ("hyperband", "successive_halving", "median", "percentile", "patient", "none")
#: Metrics that a trial reports every epoch, so that it can be pruned on them, and all that can be optimised.
EVERY_EPOCH = ("val_accuracy", "val_loss")
OBJECTIVES = (*EVERY_EPOCH, "parameters", "epoch_seconds", "inference_milliseconds")
DIRECTIONS = ("maximize", "minimize")
CONSTRAINT = re.compile(
    rf"\s*({'|'.join(OBJECTIVES)})\s*(<=|>=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
)


@dataclass(frozen=True)
class SearchConfig(EngineConfig):
    """How configurations are searched. ``trials`` is the total a study has at its end, however often it is resumed."""

    trials: int = 20
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
    watch: bool = False
    space: dict[str, Any] = field(default_factory=dict)

    @property
    def is_shared(self) -> bool:
        """Whether other machines, with which no lock is shared, may work on the same study."""
        return self.storage is not None and not self.storage.startswith("sqlite:")


@dataclass(frozen=True)
class ConfirmConfig:
    """How the best configurations are confirmed: ``top`` of them, on the same fresh seeds.

    As many as the number ``seeds``, or as a race needs, ``max_seeds`` at most.
    """

    top: int = 5
    seeds: str = "auto"  # a number arrives as text too
    max_seeds: int = 8
    prefer: str = "smallest"

    @property
    def fixed(self) -> int | None:
        """The number of seeds of every candidate; None in a race."""
        return None if self.seeds == "auto" else int(self.seeds)


@dataclass(frozen=True)
class FrontierConfig:
    """The networks of sweeps/frontier.py: by name, overrides of a run; all on the same ``seeds`` seeds."""

    seeds: int = 5
    sealed: bool = True  # open the sealed test set once for each that no smaller one beats
    networks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyConfig:
    """A study: the baseline run that is varied, and how."""

    study: str = "default"
    data: sources.DataConfig = field(default_factory=sources.DataConfig)
    model: networks.ModelConfig = field(default_factory=networks.ModelConfig)
    training: recipe.TrainingConfig = field(default_factory=recipe.TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    frontier: FrontierConfig = field(default_factory=FrontierConfig)

    @property
    def run(self) -> Config:
        """The run that every trial varies."""
        return Config(
            self.data, self.model, self.training, self.tracking, **vars(self.search.place)
        )

    def validate(self) -> None:
        """Check every rule of the study and its baseline, not of its space; raises StudyError with all broken ones."""
        Config(self.data, self.model, self.training, self.tracking).validate()
        rule = f"`search.constraints` must read 'metric <= number' or '>=' with one of {', '.join(OBJECTIVES)}"
        broken = [text for text in self.search.constraints if not CONSTRAINT.fullmatch(str(text))]
        others = [
            *_objective_violations(self.search),
            *engine.relation_violations(self.search, "search."),
        ]
        check(self, RULES, [*others, *(f"{rule}, got {text!r}" for text in broken)])


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
    **engine.rules("search."),
    "search.sampler": choice(SAMPLERS),
    "search.pruner": choice(PRUNERS),
    "search.seed": between(0, 2**31 - 1),
    "search.trial_timeout": between(0, 1e7, "(]"),
    "search.trial_memory": between(0, 1e5, "(]"),
    "search.max_failures": at_least(1),
    "search.keep_models": at_least(0),
    "confirm.top": between(1, 100),
    "confirm.seeds": Rule(
        "auto or a whole number in [2, 100]",
        lambda value: value == "auto" or (value.isdecimal() and 2 <= int(value) <= 100),
        ("auto",),
    ),
    "confirm.max_seeds": between(3, 100),
    "confirm.prefer": choice(("smallest", "accuracy")),
    "frontier.seeds": between(2, 100),
}


def objectives_of(search: SearchConfig) -> dict[str, str]:
    """Objectives by metric, each with its direction, in order of rank."""
    return {metric: direction for entry in search.objectives for metric, direction in entry.items()}


def constraints_of(search: SearchConfig) -> list[Constraint]:
    """The parsed constraints."""
    found = [CONSTRAINT.fullmatch(str(text)) for text in search.constraints]
    return [Constraint(one[1], 1 if one[2] == "<=" else -1, float(one[3])) for one in found if one]


def pruner_of(search: SearchConfig) -> str:
    """The pruner by name: as configured, else hyperband where there is something to prune on."""
    objectives = list(objectives_of(search))
    return search.pruner or (
        "hyperband" if len(objectives) == 1 and objectives[0] in EVERY_EPOCH else "none"
    )


def _objective_violations(search: SearchConfig) -> Iterator[str]:
    rule = f"`search.objectives` must be a list of `metric: maximize | minimize` with one of {', '.join(OBJECTIVES)}"
    if not search.objectives or not all(
        isinstance(entry, dict) and entry for entry in search.objectives
    ):
        yield f"{rule}, got {search.objectives!r}"
        return
    objectives = objectives_of(search)
    if len(objectives) < sum(map(len, search.objectives)):
        yield f"`search.objectives` must name every metric once, got {search.objectives!r}: drop the repetition"
    for metric, direction in objectives.items():
        if metric not in OBJECTIVES:
            yield f"{rule}, got {metric!r}{nearest(str(metric), OBJECTIVES)}"
        if direction not in DIRECTIONS:
            yield f"{rule}, got {direction!r} for {metric}{nearest(str(direction), DIRECTIONS)}"
    if search.pruner in (None, "none"):
        return
    must, named = "`search.pruner` must be none", ", ".join(map(str, objectives))
    if len(objectives) > 1:
        yield f"{must} with several objectives, got '{search.pruner}' with {named}: Optuna prunes on one value only"
    elif named in OBJECTIVES and named not in EVERY_EPOCH:
        yield f"{must} for the objective {named}, which is known only at the end of a trial, got '{search.pruner}'"
