"""The runs of ``-m``: whether a command line asks for several, and the grid that they make."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from functools import cache
from itertools import islice, product
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from digit_study.config.compose import (
    CONF,
    LONGEST_MESSAGE,
    MULTIRUN_ROOT,
    VERSION,
    check_choice,
    compose_files,
    config_groups,
    folders_of,
    parse_overrides,
)
from digit_study.config.renamed_keys import current_overrides, key_of
from digit_study.config.space_overrides import has_nested_sweep, shown_override
from digit_study.support.console import warn
from digit_study.support.errors import StudyError, first_line

#: Key of the grid that -m runs, if a file or the command line gives it in this way.
GRID = "hydra.sweeper.params"
#: Networks that -m trains, at most.
MOST_JOBS = 10_000


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """List the jobs of -m in Hydra's order.

    A grid may also be given as ``hydra.sweeper.params``, in a config file or on the command line.

    Args:
        overrides: Overrides of ``run.py``, as typed.

    Returns:
        The overrides of each job: ``a=1,2 b=3`` gives ``[[a=1, b=3], [a=2, b=3]]``. Of two
        overrides of a key the later holds.

    Raises:
        StudyError: If an override cannot be parsed, a sweep does not list its values, or there are
            too many jobs.
    """
    parser = _parser()
    texts = _with_typed_grid(current_overrides(overrides))
    typed = parse_overrides(texts, parser)
    texts_of_files = _grid_of_files(typed)
    grid = parse_overrides(texts_of_files, parser)
    choices: dict[str, list[str]] = {}
    for override in [*grid, *typed]:
        key = override.get_key_element()
        choices[key] = _values_of(override)
    count = math.prod(len(values) for values in choices.values())
    if count > MOST_JOBS:
        swept = ", ".join(key for key, values in choices.items() if len(values) > 1)
        rule = f"-m may train at most {MOST_JOBS:,} networks"
        remedy = "list fewer values, or search them with python sweeps/optuna_search.py"
        raise StudyError(f"{rule}, got more from the sweeps of {swept}: {remedy}")
    jobs = product(*choices.values())
    return [list(job) for job in jobs]


def is_multirun(parsed: Namespace) -> bool:
    """Return whether a command line asks for several runs: by -m, or by ``hydra.mode=MULTIRUN``.

    The mode may also stand in an experiment file. A single run that leaves out the grid of its
    file says so.

    Args:
        parsed: A command line of ``run.py``, by :func:`parse_arguments`.

    Raises:
        StudyError: If a grid is typed without -m, or the files cannot be composed.
    """
    if parsed.multirun:
        return True
    own = [text for text in parsed.overrides if key_of(text).startswith(("experiment", "hydra."))]
    if not own:
        # no shipped file asks for several runs, and composing Hydra's own keys takes its time
        return False
    grids = [text for text in own if key_of(text).startswith(GRID)]
    others = [text for text in parsed.overrides if text not in grids]
    asked = _keys_of_hydra(parse_overrides(others))
    if asked.mode == RunMode.MULTIRUN:
        return True
    if grids:
        raise StudyError(f"`{GRID}` lists runs to train, got {grids[0]!r}: add -m to run them all")
    if asked.sweeper.params is not None:
        warn(f"the file's `{GRID}` is not used by a single run: add -m to run them all")
    return False


def _parser() -> OverridesParser:
    """Make a parser of overrides that looks up the options of ``glob(…)``."""
    with hydra.initialize_config_dir(str(CONF), version_base=VERSION):
        loader = GlobalHydra.instance().config_loader()
        return OverridesParser.create(loader)


def _values_of(override: Override) -> list[str]:
    """List what an override sets, as an override for each value."""
    key = override.get_key_element()
    if override.is_interval_sweep():
        rule = "a sweep must list its values"
        raise StudyError(f"{rule}, got {shown_override(override)!r}: write {key}=a,b,c")
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    sweep = override.value()
    if isinstance(sweep, ChoiceSweep) and has_nested_sweep(sweep):
        rule = "a sweep must list its values in one place"
        raise StudyError(f"{rule}, got {shown_override(override)!r}: write {key}=a,b,c")
    try:
        listed = islice(override.sweep_string_iterator(), MOST_JOBS + 1)
        values = [f"{key}={value}" for value in listed]
    except HydraException as error:
        raise StudyError(first_line(error, LONGEST_MESSAGE)) from error
    if not values:
        rule = "a sweep must list a value or more"
        raise StudyError(f"{rule}, got {shown_override(override)!r}: write {key}=a,b,c")
    return values


def _with_typed_grid(overrides: Sequence[str]) -> list[str]:
    """Replace overrides of ``hydra.sweeper.params`` by the overrides that stand in them."""
    found: list[str] = []
    for text in overrides:
        key = key_of(text)
        _, _, value = text.partition("=")
        if key.startswith(f"{GRID}."):
            swept_key = key.removeprefix(f"{GRID}.")
            found.append(f"{swept_key}={value}")
        elif key == GRID:
            override = parse_overrides([f"{GRID}={value}"])[0]
            found += _overrides_of_grid(override.value(), text)
        else:
            found.append(text)
    return found


def _overrides_of_grid(grid: Any, text: str) -> list[str]:
    if grid is None:
        return []
    if not isinstance(grid, dict):
        rule = f"`{GRID}` must map keys to values, {{model.filters: '8,16'}}"
        remedy = "give the overrides themselves, model.filters=8,16"
        raise StudyError(f"{rule}, got {text!r}: {remedy}")
    return [f"{key}={_as_sweep(value)}" for key, value in grid.items()]


def _as_sweep(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return str(value)


def _grid_of_files(typed: Sequence[Override]) -> list[str]:
    """Return the overrides that config files give as ``hydra.sweeper.params``."""
    params = _keys_of_hydra(typed).sweeper.params
    if params is None:
        return []
    return _overrides_of_grid(OmegaConf.to_container(params), f"conf/{MULTIRUN_ROOT}.yaml")


def _keys_of_hydra(typed: Sequence[Override]) -> Any:
    """Return Hydra's own keys, as config files and the command line give them."""
    groups = config_groups(folders_of(typed))
    chosen: list[str] = []
    for override in typed:
        if override.is_sweep_override():
            continue
        is_of_hydra = override.is_hydra_override()
        is_choice = not is_of_hydra and override.key_or_group in groups
        if is_choice:
            check_choice(override, MULTIRUN_ROOT, groups)
        if is_of_hydra or is_choice:
            chosen.append(str(override.input_line))
    return _composed_with_hydra(tuple(chosen)).hydra


@cache
def _composed_with_hydra(choices: tuple[str, ...]) -> DictConfig:
    """Compose the config of a run together with Hydra's own keys."""
    return compose_files(choices, MULTIRUN_ROOT, with_hydra=True)
