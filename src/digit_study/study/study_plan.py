"""From a command line to a checked study, before TensorFlow is imported and before anything is written."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from digit_study.config import compose
from digit_study.config.engine_config import Node, common_precision, with_defaults
from digit_study.config.run_config import Config, resolve_config
from digit_study.config.space import Dimension, Params, apply, parse_space
from digit_study.config.study_config import StudyConfig, objectives_of, pruner_of
from digit_study.support.console import warn
from digit_study.support.messages import StudyError, listed, without_password
from digit_study.support.rules import check, choice, with_values
from digit_study.tracking import database as stores
from digit_study.tracking.database import check_store, tracking_uri
from digit_study.trial.health import Health
from digit_study.trial.protocol import ENGINES, OFFERS, EngineContext

ROOT = "study"
#: More points than this are not listed; no study runs so many.
LARGEST_GRID = 100_000
#: Samplers that need a library of their own, and how to get it.
NEEDS = {"gp": ("torch", "pip install -e '.[gp]'"), "cmaes": ("cmaes", "pip install cmaes")}


@dataclass(frozen=True)
class StudyPlan:
    """A study as its command line asks for it."""

    study: StudyConfig
    overrides: list[str]  # as typed
    run: Config  # the resolved baseline
    dataset: str  # name of its data
    dimensions: list[Dimension]  # what is searched, conditions first
    workers: int  # trials at a time; workers × threads = cores
    uri: str  # the tracking store
    nodes: Sequence[Node] = ()  # that trials may run on

    @property
    def context(self) -> EngineContext:
        """What the engine may use."""
        search = self.study.search
        slots = self.workers if search.engine == "local" else search.workers
        return EngineContext(
            slots,
            search.trial_timeout,
            search.trial_memory,
            search.engine_options,
            self.run.data,
            self.uri,
        )

    def health(self) -> Health:
        """What its trials need, and how long that is waited for."""
        search = self.study.search
        return Health(self.uri, search.outage_timeout, "search.outage_timeout", search.storage)

    @property
    def objectives(self) -> dict[str, str]:
        """Metric to direction; the first one ranks."""
        return objectives_of(self.study.search)

    @property
    def keys(self) -> list[str]:
        """What is searched, in the order of the dimensions."""
        return [one.key for one in self.dimensions]

    def trial_config(
        self, params: Params, seed: int, parent_run_id: str
    ) -> tuple[Config, str | None]:
        """What a trial runs; where no rule of a single key could exclude a bad combination, the baseline and why."""
        problem, config = None, self.run
        try:
            config = apply(params, self.overrides, config)
        except StudyError as error:
            problem = str(error)
        keeps = config.tracking.save_model and self.study.search.keep_models > 0
        seed = config.training.seed if "training.seed" in params else seed
        return self.beneath(parent_run_id, config, seed, keeps), problem

    def beneath(self, parent_run_id: str, config: Config, seed: int, save_model: bool) -> Config:
        """A config with a seed of its own, for a run beneath a parent of this study."""
        experiment = stores.experiment_name(self.run, self.dataset)
        place = replace(
            config.tracking,
            parent_run_id=parent_run_id,
            experiment=experiment,
            save_model=save_model,
        )
        return replace(config, training=replace(config.training, seed=seed), tracking=place)


def plan_study(arguments: Sequence[str]) -> StudyPlan:
    """Compose and check a study; raises StudyError for anything that can be known to be wrong now."""
    overrides = list(compose.parse_arguments(arguments).overrides)
    compose.register(ROOT, StudyConfig)
    study: StudyConfig = compose.compose_config(overrides, ROOT)
    study.validate()
    check(study, {"search.engine": choice(ENGINES)}, [])
    library, remedy = NEEDS.get(study.search.sampler, ("optuna", ""))
    if find_spec(library) is None:
        raise StudyError(
            f"`search.sampler`={study.search.sampler} needs the package {library}, which is not installed: {remedy}"
        )
    dimensions = parse_space(study.search.space, study.run)
    endless, points = [one.key for one in dimensions if one.grid() is None], grid_size(dimensions)
    if study.search.sampler == "grid" and points is None:
        raise StudyError(
            f"`search.sampler`=grid needs a finite space, but {', '.join(endless)} is continuous: "
            "give it a step or choices, or take another sampler"
        )
    if study.search.sampler == "grid" and points is not None and points > LARGEST_GRID:
        raise StudyError(
            f"`search.sampler`=grid needs a space of at most {LARGEST_GRID:,} points, got {points:,}: "
            "give larger steps, or take another sampler"
        )
    uri = tracking_uri(study.tracking.uri)
    check_store(uri)
    if study.search.storage is not None:
        check_store(study.search.storage, "search.storage")
    place = with_defaults(study.search.engine_options, study.training.threads)
    study = replace(study, search=replace(study.search, resources=place.resources))
    nodes = OFFERS[place.engine](place, uri)
    workers = place.workers or min(sum(node.capacity for node in nodes), study.search.trials)
    for one in dimensions:
        if (
            one.key == "training.batch_size"
        ):  # more than all digits is refused now, not by the trial that draws it
            largest = max(one.choices or (one.high,))
            resolve_config(
                with_values(study.run, {one.key: largest}), workers, common_precision(nodes)
            )
    run, source = resolve_config(study.run, workers, common_precision(nodes))
    if source.warning:
        warn(source.warning)
    # every trial sees what was resolved here once
    study = replace(study, data=run.data)
    return StudyPlan(study, overrides, run, source.name, dimensions, workers, uri, nodes)


def grid_size(dimensions: Sequence[Dimension]) -> int | None:
    """How many combinations there are, conditions not counted; None where a range is continuous."""
    sizes = [len(values) if (values := one.grid()) is not None else None for one in dimensions]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def studies_folder() -> Path:
    """Where the studies of this machine are kept."""
    return stores.ARTIFACTS / "studies"


def journal_path(study: str) -> Path:
    """The journal file of a study that is kept on this machine."""
    return studies_folder() / f"{study}.journal"


def describe_storage(study: StudyConfig) -> str:
    """Where the trials are kept, without any password."""
    return (
        without_password(study.search.storage)
        if study.search.storage
        else str(journal_path(study.study))
    )


def address(study: str, places: Mapping[str, str | None]) -> str:
    """The overrides by which another command finds a study, as a shell takes them, without any password.

    ``places`` are URIs of where it is kept, by key; None where that is the usual place.
    """
    given = [f"{key}='{without_password(uri)}'" for key, uri in places.items() if uri is not None]
    return " ".join(
        [
            f"study={study}",
            *(shlex.quote(one) if set(one) & set('"$`\\!') else f'"{one}"' for one in given),
        ]
    )


def plan_table(plan: StudyPlan) -> Table:
    """What would be searched, how long, and where it is kept."""
    search, points = plan.study.search, grid_size(plan.dimensions)
    title = f"Plan of study '{plan.study.study}' (nothing is started)"
    table = Table(title=title, show_header=False, title_justify="left")
    for one in plan.dimensions:
        if one.kind == "categorical":
            values = ", ".join(map(str, one.choices))
        else:
            values = f"{one.low:g} to {one.high:g}" + (" (log)" if one.log else "")
            values += f", step {one.step:g}" if one.step else ""
        when = "; ".join(
            f"{key} is {' or '.join(map(str, allowed))}" for key, allowed in one.when.items()
        )
        table.add_row(one.key, f"{values}, when {when}" if when else values)
    table.add_section()
    table.add_row(
        "grid points", "infinite (a range is continuous)" if points is None else f"{points:,}"
    )
    table.add_row("budget", f"{search.trials} trials in all, at most {plan.run.epochs} epochs each")
    table.add_row(
        "workers",
        f"{plan.workers} × {plan.run.training.threads} threads, {plan.run.training.precision}",
    )
    if search.engine != "local":
        cores, gpus = (
            sum(getattr(node, name) for node in plan.nodes) for name in ("cores", "gpus")
        )
        room = sum(node.capacity for node in plan.nodes)
        told = f"{search.engine} at {search.address or 'auto'}: {len(plan.nodes)} nodes, {cores:g} cores, {gpus:g} GPUs, "
        table.add_row(
            "cluster", f"{told}room for {room} trials of {listed(search.resources)} at a time"
        )
        for node in plan.nodes:
            has = (
                f"{node.cores:g} cores, {node.gpus:g} GPUs, {node.memory:.1f} GiB, {node.processor}"
            )
            table.add_row("", f"{node.host}: {has}: room for {node.capacity}")
    table.add_row("sampler, pruner", f"{search.sampler}, {pruner_of(search)}")
    table.add_row("objectives", ", ".join(f"{d} {m}" for m, d in plan.objectives.items()))
    table.add_row("constraints", ", ".join(search.constraints) or "none")
    table.add_row("data", f"{plan.dataset}, sha256 {str(plan.run.data.sha256)[:12]}…")
    table.add_row("trials kept in", describe_storage(plan.study))
    table.add_row("runs kept in", without_password(plan.uri))
    return table
