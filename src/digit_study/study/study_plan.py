"""From a command line to a checked study, before TensorFlow is imported or anything is written."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import psutil
from rich.table import Table

from digit_study.config import command_line, compose
from digit_study.config.engine_config import Node, common_precision, with_defaults
from digit_study.config.run_config import Config, resolve_config
from digit_study.config.space import (
    Dimension,
    Params,
    apply,
    fingerprint,
    grid,
    parse_space,
    parse_start,
    short_name,
)
from digit_study.config.space_overrides import SPACE
from digit_study.config.study_config import ASHA, StudyConfig, objectives_of, pruner_of
from digit_study.study.begun_study import kept_overrides
from digit_study.study.halving import Halving
from digit_study.study.journal import journal_path, stored_attributes
from digit_study.support.console import print_error, warn
from digit_study.support.errors import StudyError
from digit_study.support.formatting import listed
from digit_study.support.redaction import without_password
from digit_study.support.rules import check, choice, flatten, with_values
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import check_store
from digit_study.tracking.location import experiment_name, store_uri
from digit_study.trial.health import FIRST_PAUSE_S, Health
from digit_study.trial.protocol import AVAILABLE_NODES, ENGINES, EngineContext

#: Name of the root config of a study.
ROOT_CONFIG = "study"
#: Points that a grid has at most; no study runs more.
LARGEST_GRID = 100_000
#: Share of the free memory that paused trials may take.
PAUSED_SHARE = 0.5
#: GiB that the process of a paused trial takes.
PAUSED_GIB = 0.5
#: Samplers that need a package of their own, with the name of the package and how to install it.
SAMPLER_PACKAGES = {
    "gp": ("torch", "pip install -e '.[gp]'"),
    "cmaes": ("cmaes", "pip install cmaes"),
}


@dataclass(frozen=True)
class PlannedTrial:
    """What a trial trains."""

    config: Config
    #: Why this combination of parameters cannot be trained; None if it can.
    problem: str | None


@dataclass(frozen=True)
class StudyPlan:
    """A study as its command line asks for it, checked."""

    study: StudyConfig
    #: The command line.
    overrides: list[str]
    #: The resolved baseline.
    run: Config
    #: Name of the data.
    dataset: str
    #: What is searched, conditions first.
    dimensions: list[Dimension]
    #: Trials at a time; workers × threads = cores.
    workers: int
    #: URI of the tracking store.
    uri: str
    workspace: Workspace
    #: Machines that trials may run on.
    nodes: Sequence[Node] = ()
    #: Configurations that a person wants to be tried first.
    start: Sequence[Params] = ()
    #: Overrides among these that were added: what a begun study keeps of the files of ``conf/``.
    kept: Sequence[str] = ()

    @property
    def context(self) -> EngineContext:
        """Return what the engine may use."""
        search = self.study.search
        slots = search.workers
        if search.engine == "local":
            slots = self.workers
        return EngineContext(
            workspace=self.workspace,
            slots=slots,
            trial_timeout=search.trial_timeout,
            trial_memory=search.trial_memory,
            options=search.engine_options,
            data=self.run.data,
            tracking_uri=self.uri,
        )

    def health(self, first_pause: float = FIRST_PAUSE_S) -> Health:
        """Return a watch over what trials need: disk, memory, stores.

        Args:
            first_pause: Seconds until the first probe after a fault.
        """
        search = self.study.search
        return Health(
            self.uri,
            self.workspace,
            search.outage_timeout,
            "search.outage_timeout",
            search.storage,
            first_pause=first_pause,
        )

    @property
    def objectives(self) -> dict[str, str]:
        """Metric to direction; the first ranks."""
        return objectives_of(self.study.search)

    @cached_property
    def total(self) -> int:
        """Return how many trials the study has at its end; a grid has no more than its points.

        Every trial asks for it, and to list 100,000 points takes a third of a second.
        """
        search = self.study.search
        if search.sampler != "grid":
            return search.trials
        points = grid(self.dimensions)
        if not points:
            return search.trials
        return min(search.trials, len(points))

    @cached_property
    def longest_epochs(self) -> int:
        """Return how many epochs a trial has at most, those of all members counted."""
        return self.largest("training.epochs") * self.largest("model.members")

    def largest(self, key: str) -> int:
        """Return the largest value that a key has in any trial.

        Args:
            key: A key of a run whose values are whole numbers, such as ``training.epochs``. It may
                be searched, and so may the group that holds it.
        """
        group, _, _ = key.partition(".")
        searched = {dimension.key: dimension for dimension in self.dimensions}
        values = [flatten(self.run)[key]]
        for name in (group, key):
            if name not in searched:
                continue
            dimension = searched[name]
            found = self._values_of(key, dimension)
            if dimension.when:
                # a trial for which it does not matter has what it had without
                found += values
            values = found or values
        return int(max(values))

    def _values_of(self, key: str, dimension: Dimension) -> list[Any]:
        """Return the ends of a searched key, or what each option of its group gives it."""
        if dimension.key == key:
            return list(dimension.ends())
        values = []
        for option in dimension.choices:
            try:
                config = apply({dimension.key: option}, self.overrides, self.run)
            except StudyError:
                # what cannot be trained fails when it is drawn
                continue
            values.append(flatten(config)[key])
        return values

    @property
    def keys(self) -> list[str]:
        """Return what is searched, in the order of the dimensions."""
        return [dimension.key for dimension in self.dimensions]

    def trial_config(self, params: Params, seed: int, parent_run_id: str) -> PlannedTrial:
        """Return what a trial trains.

        Args:
            params: What Optuna chose, by key.
            seed: Seed of the training, unless that is searched.
            parent_run_id: Id of the study's run.

        Returns:
            The config of the trial. Where no rule of a single key could exclude a bad combination,
            the baseline and the problem.
        """
        problem = None
        config = self.run
        try:
            config = apply(params, self.overrides, config)
        except StudyError as error:
            problem = str(error)
        if "training.seed" in params:
            seed = config.training.seed
        saves_model = config.tracking.save_model and self.study.search.keep_models > 0
        child = self.child_config(parent_run_id, config, seed, save_model=saves_model)
        return PlannedTrial(child, problem)

    def child_config(
        self, parent_run_id: str, config: Config, seed: int, *, save_model: bool
    ) -> Config:
        """Return a config for a child of a parent run of this study, with its own seed."""
        tracking = replace(
            config.tracking,
            parent_run_id=parent_run_id,
            experiment=experiment_name(self.run, self.dataset),
            save_model=save_model,
        )
        training = replace(config.training, seed=seed)
        return replace(config, training=training, tracking=tracking)


def plan_study(arguments: Sequence[str], workspace: Workspace) -> StudyPlan:
    """Compose and check a study.

    Args:
        arguments: The command line, without the name of the command.
        workspace: Where the study is kept.

    Raises:
        StudyError: For anything that can be known to be wrong now.
    """
    overrides = list(command_line.parse_arguments(arguments).overrides)
    compose.register(ROOT_CONFIG, StudyConfig)
    study: StudyConfig = compose.compose_config(overrides, ROOT_CONFIG)
    kept = _kept_by_begun_study(study, overrides, workspace)
    if kept:
        overrides = [*overrides, *kept]
        study = compose.compose_config(overrides, ROOT_CONFIG)
    study.validate()
    check(study, {"search.engine": choice(ENGINES)}, [])
    _check_sampler_package(study.search.sampler)
    dimensions = parse_space(study.search.space, study.run)
    start = parse_start(study.search.start, dimensions, overrides, study.run)
    if study.search.sampler == "grid":
        _check_grid(dimensions, start)
    uri = store_uri(study.tracking.uri, workspace)
    check_store(uri)
    if study.search.storage is not None:
        check_store(study.search.storage, "search.storage")
    options = with_defaults(study.search.engine_options, study.training.threads)
    study = replace(study, search=replace(study.search, resources=options.resources))
    nodes = AVAILABLE_NODES[options.engine](options, uri, workspace)
    capacity = sum(node.capacity for node in nodes)
    workers = options.workers or min(capacity, study.search.trials)
    precision = common_precision(nodes)
    run, source = resolve_config(study.run, workers, precision)
    if source.warning:
        warn(source.warning)
    # every trial sees the data that were resolved here
    study = replace(study, data=run.data)
    plan = StudyPlan(
        study=study,
        overrides=overrides,
        run=run,
        dataset=source.name,
        dimensions=dimensions,
        workers=workers,
        uri=uri,
        workspace=workspace,
        nodes=nodes,
        start=start,
        kept=kept,
    )
    _check_batch_sizes(plan)
    _check_optuna_arguments(plan)
    return plan


def _kept_by_begun_study(
    study: StudyConfig, overrides: Sequence[str], workspace: Workspace
) -> list[str]:
    """Return what a study that has begun on this machine keeps of the files it began with."""
    if study.search.storage is not None:
        return []
    # read in any case, so that a plan finds a damaged journal with search.fresh=true too
    attributes = stored_attributes(journal_path(workspace, study.study))
    if study.search.fresh:
        return []
    kept = kept_overrides(attributes, overrides)
    if kept:
        named = [word for word in kept if not word.startswith(SPACE)]
        if len(named) < len(kept):
            named.append("its search space")
        print_error(
            f"study '{study.study}' goes on with what the files of conf/ said when it began: "
            f"{', '.join(named)}",
            "yellow",
        )
    return kept


def halving_of(plan: StudyPlan) -> Halving | None:
    """Return the rule by which trials are paused, None if the pruner of the study pauses none."""
    if pruner_of(plan.study.search) != ASHA:
        return None
    direction = next(iter(plan.objectives.values()))
    return Halving(plan.longest_epochs, maximizes=direction == "maximize")


def paused_limit(plan: StudyPlan) -> int:
    """Return how many trials are paused at a time at most.

    A paused trial keeps its process. On a GPU none is paused: it would keep the GPU's memory too.
    """
    search = plan.study.search
    if search.paused is not None:
        return search.paused
    if search.engine == "local":
        # a trial uses the GPU of this machine unasked
        uses_gpu = any(node.gpus > 0 for node in plan.nodes)
        free = psutil.virtual_memory().available / 2**30
    else:
        uses_gpu = search.resources.get("gpu", 0) > 0
        free = sum(node.memory for node in plan.nodes)
    if uses_gpu:
        return 0
    return int(PAUSED_SHARE * free / PAUSED_GIB)


def grid_size(dimensions: Sequence[Dimension]) -> int | None:
    """Return how many combinations there are without conditions; None if uncountable."""
    sizes = []
    for dimension in dimensions:
        values = dimension.grid()
        if values is None:
            return None
        sizes.append(len(values))
    return math.prod(sizes)


def describe_storage(plan: StudyPlan) -> str:
    """Return where the trials of a study are kept, without any password."""
    storage = plan.study.search.storage
    if storage:
        return without_password(storage)
    return str(journal_path(plan.workspace, plan.study.study))


def study_arguments(study: str, stores: Mapping[str, str | None]) -> str:
    """Return a study and some of its stores as overrides, as a shell takes them.

    Args:
        study: Its name.
        stores: URIs of stores by their key, None for the default; passwords are hidden.
    """
    words = [f"study={study}"]
    for key, uri in stores.items():
        if uri is None:
            continue
        word = f"{key}='{without_password(uri)}'"
        if set(word) & set('"$`\\!'):
            words.append(shlex.quote(word))
        else:
            words.append(f'"{word}"')
    return " ".join(words)


def address_of(study: StudyConfig) -> str:
    """Return the overrides by which another command finds a study, as a shell takes them."""
    stores = {"search.storage": study.search.storage, "tracking.uri": study.tracking.uri}
    return study_arguments(study.study, stores)


def plan_table(plan: StudyPlan) -> Table:
    """Return what would be searched, how long, and where it is kept, as a table."""
    search = plan.study.search
    title = f"Plan of study '{plan.study.study}' (nothing is started)"
    table = Table(title=title, show_header=False, title_justify="left")
    for dimension in plan.dimensions:
        values = dimension.values
        if dimension.condition:
            values += f", when {dimension.condition}"
        table.add_row(dimension.key, values)
    table.add_section()
    origin = compose.origin_of_space(plan.overrides)
    if any(word.startswith(SPACE) for word in plan.kept):
        origin = "the study, as it began"
    table.add_row("space from", origin)
    points = grid_size(plan.dimensions)
    if points is None:
        table.add_row("grid points", "infinite (a range is continuous)")
    else:
        table.add_row("grid points", f"{points:,}")
    budget = f"{search.trials} trials in all, at most {plan.longest_epochs} epochs each"
    if search.timeout is not None:
        budget += f"; none starts after {search.timeout:g} minutes"
    table.add_row("budget", budget)
    if plan.start:
        first = [short_name(point) for point in plan.start]
        table.add_row("tried first", "\n".join(first))
    training = plan.run.training
    table.add_row("workers", f"{plan.workers} × {training.threads} threads, {training.precision}")
    if search.engine != "local":
        _add_cluster_rows(table, plan)
    sampler = _with_arguments(search.sampler, search.sampler_args)
    pruner = _with_arguments(pruner_of(search), search.pruner_args)
    table.add_row("sampler, pruner", f"{sampler}, {pruner}")
    objectives = [f"{direction} {metric}" for metric, direction in plan.objectives.items()]
    table.add_row("objectives", ", ".join(objectives))
    table.add_row("constraints", ", ".join(search.constraints) or "none")
    table.add_row("data", f"{plan.dataset}, sha256 {str(plan.run.data.sha256)[:12]}…")
    table.add_row("trials kept in", describe_storage(plan))
    table.add_row("runs kept in", without_password(plan.uri))
    return table


def _with_arguments(name: str, arguments: Mapping[str, object]) -> str:
    """Return the name of a sampler or a pruner with the arguments that a person gave it."""
    if not arguments:
        return name
    given = ", ".join(f"{argument}={value}" for argument, value in arguments.items())
    return f"{name} ({given})"


def _check_optuna_arguments(plan: StudyPlan) -> None:
    """Raise StudyError if Optuna's samplers and pruners do not take what a person gave them."""
    search = plan.study.search
    if not search.sampler_args and not search.pruner_args:
        return
    # no other plan waits for Optuna
    from digit_study.study.optuna_arguments import check_arguments

    check_arguments(search, plan.longest_epochs)


def _check_sampler_package(sampler: str) -> None:
    """Raise StudyError if a sampler needs a package that is not installed."""
    if sampler not in SAMPLER_PACKAGES:
        return
    package, remedy = SAMPLER_PACKAGES[sampler]
    if find_spec(package) is None:
        raise StudyError(
            f"`search.sampler`={sampler} needs the package {package}, which is not installed: "
            f"{remedy}"
        )


def _check_grid(dimensions: Sequence[Dimension], start: Sequence[Params]) -> None:
    """Raise StudyError if the points of a space cannot all be enqueued."""
    points = grid_size(dimensions)
    if points is None:
        endless = [dimension.key for dimension in dimensions if dimension.grid() is None]
        raise StudyError(
            f"`search.sampler`=grid needs a finite space, but {', '.join(endless)} is continuous: "
            "give it a step or choices, or take another sampler"
        )
    if points > LARGEST_GRID:
        raise StudyError(
            f"`search.sampler`=grid needs a space of at most {LARGEST_GRID:,} points, got "
            f"{points:,}: give larger steps, or take another sampler"
        )
    known = {fingerprint(point) for point in grid(dimensions) or []}
    for point in start:
        if fingerprint(point) not in known:
            raise StudyError(
                "`search.start` with `search.sampler`=grid must give every key, got "
                f"{short_name(point)}: give the others too, or take another sampler"
            )


def _check_batch_sizes(plan: StudyPlan) -> None:
    """Raise StudyError if a batch that may be drawn is larger than all digits."""
    key = "training.batch_size"
    largest = plan.largest(key)
    if largest > plan.run.training.batch_size:
        resolve_config(with_values(plan.run, {key: largest}))


def _add_cluster_rows(table: Table, plan: StudyPlan) -> None:
    """Add a row for the cluster, and a row for each of its nodes."""
    search = plan.study.search
    cores = sum(node.cores for node in plan.nodes)
    gpus = sum(node.gpus for node in plan.nodes)
    capacity = sum(node.capacity for node in plan.nodes)
    table.add_row(
        "cluster",
        f"{search.engine} at {search.address or 'auto'}: {len(plan.nodes)} nodes, {cores:g} cores, "
        f"{gpus:g} GPUs, capacity {capacity} trials of {listed(search.resources)} at a time",
    )
    for node in plan.nodes:
        table.add_row(
            "",
            f"{node.host}: {node.cores:g} cores, {node.gpus:g} GPUs, {node.memory:.1f} GiB, "
            f"{node.processor}: capacity {node.capacity}",
        )
