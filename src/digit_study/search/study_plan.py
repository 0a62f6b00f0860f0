"""From a command line to a study that was found sound, before TensorFlow is imported and before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hydra._internal.utils import get_args_parser
from rich.table import Table

from digit_study.config import compose as composition
from digit_study.config import machine as hardware
from digit_study.config.resolve import resolve_config
from digit_study.config.run import Config
from digit_study.config.study import StudyConfig, objectives_of, pruner_of, validate_study
from digit_study.search.samplers import check_sampler
from digit_study.search.space import LARGEST_GRID, Dimension, grid_size
from digit_study.search.space_rules import parse_space
from digit_study.search.storage import check_storage, describe_storage
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.terminal.redaction import without_password
from digit_study.tracking.stores import check_store, tracking_uri

ROOT = "study"


@dataclass(frozen=True)
class StudyPlan:
    """A study as its command line asks for it.

    Attributes:
        study: the composed study.
        overrides: as typed.
        run: the resolved baseline run.
        dataset: name of its data.
        dimensions: what is searched, conditions first.
        workers: trials at a time; workers × threads = cores.
        uri: the tracking store.
    """

    study: StudyConfig
    overrides: list[str]
    run: Config
    dataset: str
    dimensions: list[Dimension]
    workers: int
    uri: str


def plan_study(arguments: Sequence[str]) -> StudyPlan:
    """Compose and check a study.

    Raises:
        StudyError: anything that can be known to be wrong now.
    """
    overrides = list(get_args_parser().parse_args(list(arguments)).overrides)
    composition.register(ROOT, StudyConfig)
    study: StudyConfig = composition.compose_config(overrides, ROOT)
    validate_study(study)
    check_sampler(study.search.sampler)
    dimensions = parse_space(study.search.space, study.run)
    if study.search.sampler == "grid":
        _check_grid(dimensions)
    uri = tracking_uri(study.tracking.uri)
    check_store(uri)
    check_storage(study)
    workers = study.search.workers or min(hardware.cores(), study.search.trials)
    run, source = resolve_config(study.run, workers)
    if source.warning:
        console.warn(source.warning)
    # every trial sees what was resolved here once
    study = replace(study, data=run.data)
    return StudyPlan(study, overrides, run, source.name, dimensions, workers, uri)


def _check_grid(dimensions: Sequence[Dimension]) -> None:
    endless, points = [one.key for one in dimensions if one.grid() is None], grid_size(dimensions)
    if points is None:
        raise StudyError(
            f"`search.sampler`=grid needs a finite space, but {', '.join(endless)} is continuous: "
            "give it a step or choices, or take another sampler"
        )
    if points > LARGEST_GRID:
        raise StudyError(
            f"`search.sampler`=grid needs a space of at most {LARGEST_GRID:,} points, got {points:,}: "
            "give larger steps, or take another sampler"
        )


def plan_table(plan: StudyPlan) -> Table:
    """What would be searched, how long, and where it is kept."""
    search, points = plan.study.search, grid_size(plan.dimensions)
    table = Table(
        title=f"Plan of study '{plan.study.study}' (nothing is started)", show_header=False, title_justify="left"
    )
    for one in plan.dimensions:
        table.add_row(one.key, _range(one))
    table.add_section()
    table.add_row("grid points", "infinite (a range is continuous)" if points is None else f"{points:,}")
    table.add_row("budget", f"{search.trials} trials in all, at most {plan.run.training.epochs} epochs each")
    table.add_row("workers", f"{plan.workers} × {plan.run.training.threads} threads, {plan.run.training.precision}")
    table.add_row("sampler, pruner", f"{search.sampler}, {pruner_of(search)}")
    table.add_row("objectives", ", ".join(f"{d} {m}" for m, d in objectives_of(search).items()))
    table.add_row("constraints", ", ".join(search.constraints) or "none")
    table.add_row("data", f"{plan.dataset}, sha256 {str(plan.run.data.sha256)[:12]}…")
    table.add_row("trials kept in", describe_storage(plan.study))
    table.add_row("runs kept in", without_password(plan.uri))
    return table


def _range(one: Dimension) -> str:
    if one.kind == "categorical":
        text = ", ".join(map(str, one.choices))
    else:
        text = f"{one.low:g} to {one.high:g}" + (" (log)" if one.log else "")
        text += f", step {one.step:g}" if one.step else ""
    when = "; ".join(f"{key} is {' or '.join(map(str, allowed))}" for key, allowed in one.when.items())
    return f"{text}, when {when}" if when else text
