"""From a command line to checked runs, before TensorFlow is imported or anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from digit_study.config import command_line, compose, multirun_grid
from digit_study.config.engine_config import (
    ENGINE_KEYS,
    EngineConfig,
    Node,
    common_precision,
    with_defaults,
)
from digit_study.config.renamed_keys import key_of
from digit_study.config.run_config import Config, resolve_config
from digit_study.data.digits import split_sizes
from digit_study.model.networks import multiplications
from digit_study.support import hardware
from digit_study.support.console import warn
from digit_study.support.errors import StudyError
from digit_study.support.rules import check, choice
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import check_store, require_run
from digit_study.tracking.location import store_uri
from digit_study.trial.protocol import AVAILABLE_NODES, ENGINES, EngineContext

#: Keys that may stand beside ``reproduce``: where the result goes, and where the digits lie now.
BESIDE_REPRODUCE = ("tracking.uri", "tracking.experiment", "tracking.run_name", "data.path")
#: Keys of reproductions, promotions and comparisons that hold the id of a run.
RUN_ID_KEYS = ("reproduce", "run_id", "a", "b")
#: A run on n cores is at most n to this power faster than on a single core: 1.6 times on two, as a
#: large network; a small one is 1.15 to 1.35 times. Side by side must pay even for large networks.
THREAD_EXPONENT = 0.7
#: Work of an image beside its multiplications (reading, augmenting), in multiplications.
FIXED_COST = 1_500_000


@dataclass(frozen=True)
class PlannedRun:
    """One run of a command line."""

    #: What a person typed for it.
    overrides: list[str]
    #: What that means.
    config: Config
    #: Name of its data.
    dataset: str
    #: Estimated work, in multiplications.
    cost: float
    #: Which images it is validated on: equal for two runs with the same ones, which alone are
    #: compared image by image.
    validation: str = ""


@dataclass(frozen=True)
class RunPlan:
    """Everything a command line asks for, checked."""

    #: The command line.
    typed: list[str]
    #: Runs in Hydra's order.
    runs: list[PlannedRun]
    #: Whether -m was given, or what means the same.
    is_multirun: bool
    #: URI of the tracking store.
    uri: str
    #: What the engine may use.
    context: EngineContext

    @property
    def workspace(self) -> Workspace:
        """Return where runs are kept."""
        return self.context.workspace

    @property
    def validation_sets(self) -> int:
        """Return how many different sets of images the runs are validated on."""
        return len({run.validation for run in self.runs})

    @property
    def longest_first(self) -> list[int]:
        """Numbers of the runs in the order in which they start: no long run is left to the end."""
        numbers = range(len(self.runs))
        return sorted(numbers, key=lambda number: -self.runs[number].cost)


def plan_runs(arguments: Sequence[str], workspace: Workspace) -> RunPlan:
    """Compose and check every run of a command line.

    Args:
        arguments: The command line, without the name of the command.
        workspace: Where runs are kept.

    Raises:
        StudyError: For everything that is known to be wrong without TensorFlow.
    """
    parsed = command_line.parse_arguments(arguments)
    compose.register()
    texts = [list(parsed.overrides)]
    is_multirun = multirun_grid.is_multirun(parsed)
    if is_multirun:
        texts = multirun_grid.expand(parsed.overrides)
    configs = [compose.compose_config(text) for text in texts]
    for config in configs:
        config.validate()
    uri = _common_store(configs, workspace)
    options = _engine_options(configs)
    configs = [replace(config, resources=options.resources) for config in configs]
    nodes = AVAILABLE_NODES[options.engine](options, uri, workspace)
    workers = _workers(options, configs, nodes)
    runs = _resolve(texts, configs, workers, common_precision(nodes))
    if options.engine != "local":
        _check_same_digits(runs)
    slots: int | None = workers
    if options.engine != "local":
        slots = options.workers
    context = EngineContext(
        workspace=workspace,
        slots=slots,
        options=options,
        data=runs[0].config.data,
        tracking_uri=uri,
    )
    return RunPlan(
        typed=list(parsed.overrides),
        runs=runs,
        is_multirun=is_multirun,
        uri=uri,
        context=context,
    )


def asks_to_reproduce(arguments: Sequence[str]) -> bool:
    """Return whether a command line names a run to train again."""
    return any(key_of(word) == "reproduce" and not word.endswith("=null") for word in arguments)


def plan_reproduction(arguments: Sequence[str], workspace: Workspace) -> Config:
    """Compose a command line with ``reproduce=<run_id>``.

    Raises:
        StudyError: If it asks for more, or there is no such run.
    """
    typed = command_line.parse_arguments(arguments).overrides
    allowed = ("reproduce", *BESIDE_REPRODUCE)
    extra = [text for text in typed if key_of(text) not in allowed]
    if extra:
        raise StudyError(
            f"`reproduce` trains a run as it was, got {' '.join(extra)!r} beside it: drop that, "
            f"only {', '.join(BESIDE_REPRODUCE)} may be given"
        )
    config: Config = plan_task(arguments, "config", Config, workspace)
    return config


def plan_task(arguments: Sequence[str], root: str, schema: type, workspace: Workspace) -> Any:
    """Compose and check ``conf/<root>.yaml`` and its store, without MLflow; ``--help`` ends here.

    Args:
        arguments: The command line, without the name of the command.
        root: Name of the root config.
        schema: Its dataclass.
        workspace: Where runs are kept.

    Returns:
        An instance of ``schema``.

    Raises:
        StudyError: If something is wrong.
    """
    parsed = command_line.answer(arguments, root, schema)
    if parsed.multirun:
        raise StudyError(
            "-m launches several runs, but this takes one run or does one thing at a time: drop it"
        )
    config = compose.compose_config(parsed.overrides, root)
    config.validate()
    uri = store_uri(config.tracking.uri, workspace)
    check_store(uri)
    for key in RUN_ID_KEYS:
        run_id = getattr(config, key, None)
        if run_id is not None:
            require_run(uri, run_id, key, workspace)
    return config


def makespan(costs: Sequence[float], workers: int) -> float:
    """Return when the last job ends if workers take the longest job that is left.

    Args:
        costs: How long each job takes.
        workers: How many jobs run at a time.

    Returns:
        The time in the unit of ``costs`` (the rule is Graham's LPT, 1969).
    """
    ends = [0.0] * workers
    for cost in sorted(costs, reverse=True):
        earliest = ends.index(min(ends))
        ends[earliest] += cost
    return max(ends)


def choose_workers(costs: Sequence[float], cores: int) -> int:
    """Return how many runs at a time end soonest: a single run on all cores, or a run a core.

    Args:
        costs: Estimated work of each run.
        cores: Cores of this machine.
    """
    workers = min(cores, len(costs))
    threads = cores // workers
    one_at_a_time = sum(costs) / cores**THREAD_EXPONENT
    side_by_side = makespan(costs, workers) / threads**THREAD_EXPONENT
    if side_by_side < one_at_a_time:
        return workers
    return 1


def _common_store(configs: Sequence[Config], workspace: Workspace) -> str:
    """Return the URI of the store of all runs; StudyError unless it is one that can be used."""
    uris = {store_uri(config.tracking.uri, workspace) for config in configs}
    for uri in uris:
        check_store(uri)
    if len(uris) > 1:
        raise StudyError("`tracking.uri` is the same for all runs of -m, got several: give one")
    return uris.pop()


def _engine_options(configs: Sequence[Config]) -> EngineConfig:
    """Return where all runs are trained; StudyError if that differs or is no engine."""
    first = configs[0]
    check(first, {"engine": choice(ENGINES)}, [])
    if len({str(config.engine_options) for config in configs}) > 1:
        keys = ", ".join(ENGINE_KEYS)
        raise StudyError(f"{keys} are of the whole command, got a sweep over them: give one value")
    threads = max(config.training.threads or 1 for config in configs)
    return with_defaults(first.engine_options, threads)


def _workers(options: EngineConfig, configs: Sequence[Config], nodes: Sequence[Node]) -> int:
    """Return how many runs are trained at a time."""
    if options.workers is not None:
        return min(options.workers, len(configs))
    if options.engine != "local":
        return min(sum(node.capacity for node in nodes), len(configs))
    threads = [config.training.threads for config in configs if config.training.threads]
    if threads:
        return max(1, min(hardware.cores() // max(threads), len(configs)))
    return choose_workers([_model_cost(config) for config in configs], hardware.cores())


def _model_cost(config: Config) -> float:
    """Return the work of a run for each image that it has to train on."""
    return config.training.epochs * (FIXED_COST + multiplications(config.model))


def _resolve(
    texts: Sequence[list[str]], configs: Sequence[Config], workers: int, precision: str
) -> list[PlannedRun]:
    """Resolve data, precision and threads of every run."""
    runs = []
    warnings = set()
    for text, config in zip(texts, configs, strict=True):
        resolved, source = resolve_config(config, workers, precision)
        if source.warning:
            warnings.add(source.warning)
        train, held_out = split_sizes(source.images, resolved.data)
        cost = train * _model_cost(resolved)
        validation = f"{resolved.data.sha256} {resolved.data.seed} {held_out}"
        runs.append(PlannedRun(text, resolved, source.name, cost, validation))
    for warning in sorted(warnings):
        warn(warning)
    return runs


def _check_same_digits(runs: Sequence[PlannedRun]) -> None:
    """Raise StudyError if runs on a cluster, which is handed the digits, read different digits."""
    if len({run.config.data.sha256 for run in runs}) > 1:
        raise StudyError(
            "all runs of -m on a cluster read the same digits, got several: give a command for each"
        )
