"""The config of a study: what is searched, how, for how long, and what is confirmed afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from digit_study.config import engine_config
from digit_study.config.engine_config import EngineConfig
from digit_study.config.run_config import Config, TrackingConfig
from digit_study.data import sources
from digit_study.model import networks, recipe
from digit_study.support.rules import Rule, Validated, at_least, between, choice
from digit_study.support.suggestions import nearest

SAMPLERS = ("tpe", "random", "qmc", "cmaes", "grid", "nsga2", "gp")
#: Name of the pruner that pauses trials.
ASHA = "asha"
PRUNERS = (ASHA, "hyperband", "successive_halving", "median", "percentile", "patient", "none")
#: Metrics that a trial reports every epoch, so that it can be pruned on them.
EVERY_EPOCH = ("val_accuracy", "val_loss")
#: The accuracy on corrupted validation images, which a trial reports at its end.
ROBUST = "robust_accuracy"
#: Metrics that can be optimised.
OBJECTIVES = (
    *EVERY_EPOCH,
    ROBUST,
    "parameters",
    "epoch_seconds",
    "inference_milliseconds",
)
DIRECTIONS = ("maximize", "minimize")
#: How a confirmation chooses its winner.
PREFERENCES = ("smallest", "accuracy", "robust")
#: A number as a person types it: 10000, -0.5, .5, 1e4.
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
#: ``metric <= number`` or ``metric >= number``.
CONSTRAINT = re.compile(rf"\s*({'|'.join(OBJECTIVES)})\s*(<=|>=)\s*({NUMBER})\s*")
STUDY_NAME = Rule(
    "a name of letters, digits, '-', '_' and '.', not starting with '.'",
    lambda value: bool(re.fullmatch(r"[\w-][\w.-]{0,99}", value)),
)


def _are_seeds(value: str) -> bool:
    """Return whether a text says how many seeds there are: ``auto``, or a number in [2, 100]."""
    if value == "auto":
        return True
    return value.isdecimal() and 2 <= int(value) <= 100


SEEDS = Rule("auto or a whole number in [2, 100]", _are_seeds, ("auto",))


@dataclass(frozen=True)
class SearchConfig(EngineConfig):
    """Say how configurations are searched.

    Attributes:
        trials: Trials that the study has at its end, however often it is resumed.
        timeout: Minutes after which this command starts no more trials; None: no limit.
        start: Configurations that are tried first: values by searched key.
        sampler: How the next configuration is chosen.
        sampler_args: Arguments of the sampler by Optuna's own names.
        pruner: How bad trials are stopped early; None: see :func:`pruner_of`.
        pruner_args: Arguments of the pruner by Optuna's own names.
        paused: Trials that ``asha`` keeps waiting at most; None: as many as the memory allows.
        objectives: What is optimised, in order of rank: mappings of a metric to its direction.
        constraints: What a configuration has to keep, such as ``parameters <= 10000``.
        seed: Seed of the sampler and of the trials.
        trial_timeout: Seconds that a trial may take.
        trial_memory: GiB that a trial may use.
        max_failures: Failed trials after which the study stops.
        fail_fast: Stop at the first failed trial.
        fresh: Start a new study of this name; the old study is kept under a dated name.
        keep_models: Models to keep, of the best trials.
        storage: URL of Optuna's database; None: a journal file on this machine.
        confirm: Confirm the best configurations at the end.
        plan: Say what would be searched, and start nothing.
        space: What is searched: dimensions by config key.
    """

    trials: Annotated[int, at_least(1)] = 20
    timeout: Annotated[float | None, between(0, 1e6, "(]")] = None
    start: list[Any] = field(default_factory=list)
    sampler: Annotated[str, choice(SAMPLERS)] = "tpe"
    sampler_args: dict[str, Any] = field(default_factory=dict)
    pruner: Annotated[str | None, choice(PRUNERS)] = None
    pruner_args: dict[str, Any] = field(default_factory=dict)
    paused: Annotated[int | None, at_least(0)] = None
    objectives: list[Any] = field(default_factory=lambda: [{"val_accuracy": "maximize"}])
    constraints: list[str] = field(default_factory=list)
    seed: Annotated[int, between(0, 2**31 - 1)] = 0
    trial_timeout: Annotated[float | None, between(0, 1e7, "(]")] = None
    trial_memory: Annotated[float | None, between(0, 1e5, "(]")] = None
    max_failures: Annotated[int | None, at_least(1)] = None
    fail_fast: bool = False
    fresh: bool = False
    keep_models: Annotated[int, at_least(0)] = 5
    storage: str | None = None
    confirm: bool = False
    plan: bool = False
    space: dict[str, Any] = field(default_factory=dict)

    @property
    def is_shared(self) -> bool:
        """Return whether other machines, with which no lock is shared, may work on the study."""
        if self.storage is None:
            return False
        return not self.storage.startswith("sqlite:")


@dataclass(frozen=True)
class ConfirmConfig:
    """Say how the best configurations are confirmed: all on the same fresh seeds.

    Attributes:
        top: Configurations that are trained again.
        seeds: Seeds of each as text, or ``auto``: as many as a race needs.
        max_seeds: Seeds of each, at most, in a race.
        prefer: The winner among those that do not differ significantly from the best; None: see
            :func:`prefer_of`.
    """

    top: Annotated[int, between(1, 100)] = 5
    seeds: Annotated[str, SEEDS] = "auto"
    max_seeds: Annotated[int, between(3, 100)] = 8
    prefer: Annotated[str | None, choice(PREFERENCES)] = None

    @property
    def fixed(self) -> int | None:
        """Return the number of seeds of every candidate; None in a race."""
        if self.seeds == "auto":
            return None
        return int(self.seeds)


@dataclass(frozen=True)
class FrontierConfig:
    """Name the networks that sweeps/frontier.py measures.

    Attributes:
        seeds: Seeds of each network, the same for all.
        sealed: Open the sealed test set once for each network that no smaller network beats.
        networks: Overrides of a run by name.
    """

    seeds: Annotated[int, between(2, 100)] = 5
    sealed: bool = True
    networks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyConfig(Validated):
    """Describe a study: the baseline run that is varied, and how.

    :meth:`validate` checks the study and its baseline, but not its space.

    Attributes:
        study: Its name; the same name continues the same study.
        data: The digits of every trial.
        model: The network that is varied.
        training: The recipe that is varied.
        tracking: Where results go.
        search: How configurations are searched.
        confirm: How the best are confirmed.
        frontier: What sweeps/frontier.py measures.
    """

    study: Annotated[str, STUDY_NAME] = "default"
    data: sources.DataConfig = field(default_factory=sources.DataConfig)
    model: networks.ModelConfig = field(default_factory=networks.ModelConfig)
    training: recipe.TrainingConfig = field(default_factory=recipe.TrainingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    frontier: FrontierConfig = field(default_factory=FrontierConfig)

    @property
    def run(self) -> Config:
        """Return the run that every trial varies."""
        return Config(
            data=self.data,
            model=self.model,
            training=self.training,
            tracking=self.tracking,
            **vars(self.search.engine_options),
        )

    def _relation_violations(self) -> Iterator[str]:
        yield from networks.relation_violations(self.model)
        yield from sources.relation_violations(self.data)
        yield from engine_config.relation_violations(self.search, "search.")
        yield from self.tracking.violations()
        yield from _objective_violations(self.search)
        yield from _constraint_violations(self.search)


@dataclass(frozen=True)
class Constraint:
    """Bound a metric: ``metric <= bound`` or ``metric >= bound``.

    Attributes:
        metric: Name of the metric.
        sign: 1 for ``<=``, -1 for ``>=``.
        bound: The bound, which is included.
    """

    metric: str
    sign: int
    bound: float

    def violation(self, metrics: Mapping[str, float]) -> float:
        """Measure by how much metrics break the constraint.

        Args:
            metrics: Metrics of a trial by name.

        Returns:
            0 or less where they keep it, as Optuna wants it.
        """
        above = metrics[self.metric] - self.bound
        return self.sign * above


def objectives_of(search: SearchConfig) -> dict[str, str]:
    """Return the direction of every objective by its metric, in order of rank."""
    objectives: dict[str, str] = {}
    for entry in search.objectives:
        for metric, direction in entry.items():
            objectives[metric] = direction
    return objectives


def constraints_of(search: SearchConfig) -> list[Constraint]:
    """Parse the constraints of a checked config."""
    constraints: list[Constraint] = []
    for text in search.constraints:
        found = CONSTRAINT.fullmatch(str(text))
        if found is None:
            continue
        metric, operator, bound = found.groups()
        sign = {"<=": 1, ">=": -1}[operator]
        constraints.append(Constraint(metric, sign, float(bound)))
    return constraints


def pruner_of(search: SearchConfig) -> str:
    """Return the name of the pruner: as configured, else what the objectives allow.

    Args:
        search: A checked config.

    Returns:
        ``asha`` for a single objective that is known every epoch, otherwise ``none``, where the
        config names no pruner.
    """
    if search.pruner:
        return search.pruner
    objectives = list(objectives_of(search))
    if len(objectives) == 1 and objectives[0] in EVERY_EPOCH:
        return ASHA
    return "none"


def prefer_of(study: StudyConfig) -> str:
    """Return how a confirmation chooses its winner: as configured, else as the study searched.

    Args:
        study: A checked config.

    Returns:
        ``robust`` where :data:`ROBUST` is the first objective, otherwise ``smallest``, where the
        config names no preference.
    """
    if study.confirm.prefer:
        return study.confirm.prefer
    if ranks_by_robustness(study.search):
        return "robust"
    return "smallest"


def ranks_by_robustness(search: SearchConfig) -> bool:
    """Return whether the first objective is to predict corrupted images correctly."""
    objectives = objectives_of(search)
    first = next(iter(objectives.items()))
    return first == (ROBUST, "maximize")


def _constraint_violations(search: SearchConfig) -> Iterator[str]:
    metrics = ", ".join(OBJECTIVES)
    rule = f"`search.constraints` must read 'metric <= number' or '>=' with one of {metrics}"
    for text in search.constraints:
        if not CONSTRAINT.fullmatch(str(text)):
            yield f"{rule}, got {text!r}"


def _objective_violations(search: SearchConfig) -> Iterator[str]:
    metrics = ", ".join(OBJECTIVES)
    must_be = "`search.objectives` must be a list of `metric: maximize | minimize`"
    rule = f"{must_be} with one of {metrics}"
    are_mappings = all(isinstance(entry, dict) and entry for entry in search.objectives)
    if not search.objectives or not are_mappings:
        yield f"{rule}, got {search.objectives!r}"
        return
    objectives = objectives_of(search)
    given = sum(len(entry) for entry in search.objectives)
    if len(objectives) < given:
        once = "`search.objectives` must name every metric once"
        yield f"{once}, got {search.objectives!r}: drop the repetition"
    for metric, direction in objectives.items():
        if metric not in OBJECTIVES:
            suggestion = nearest(str(metric), OBJECTIVES)
            yield f"{rule}, got {metric!r}{suggestion}"
        if direction not in DIRECTIONS:
            suggestion = nearest(str(direction), DIRECTIONS)
            yield f"{rule}, got {direction!r} for {metric}{suggestion}"
    yield from _pruner_violations(search, list(objectives))


def _pruner_violations(search: SearchConfig, metrics: list[str]) -> Iterator[str]:
    if search.pruner in (None, "none"):
        return
    must_be = "`search.pruner` must be none"
    if len(metrics) > 1:
        named = ", ".join(str(metric) for metric in metrics)
        got = f"got '{search.pruner}' with {named}"
        yield f"{must_be} with several objectives, {got}: Optuna prunes on one value only"
        return
    metric = metrics[0]
    is_known_late = metric in OBJECTIVES and metric not in EVERY_EPOCH
    if is_known_late:
        known = "which is known only at the end of a trial"
        yield f"{must_be} for the objective {metric}, {known}, got '{search.pruner}'"
