"""Hydra's command line to checked configs, in a second and before TensorFlow is imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from digit_study.config.run import Config
from digit_study.terminal.errors import StudyError
from digit_study.terminal.naming import nearest
from digit_study.terminal.redaction import without_password

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"


@cache
def register(root: str = "config", schema: type = Config) -> None:
    """Make ``schema`` known to Hydra as the types of ``conf/<root>.yaml``."""
    node = OmegaConf.structured(schema)
    _thaw(node)
    ConfigStore.instance().store(name=f"{root}_schema", node=node)


def _thaw(node: DictConfig) -> None:
    # a frozen dataclass makes a read-only node, which overrides could not be merged into
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _thaw(child)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """All jobs of a multirun: ``a=1,2 b=3`` gives ``[[a=1, b=3], [a=2, b=3]]``."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):  # glob(*) looks the options up
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        batches = BasicSweeper.split_arguments(_parse(overrides, parser), max_batch_size=None)
    except HydraException as error:
        raise StudyError(_first_line(error)) from error
    return [list(job) for batch in batches for job in batch]


def compose_config(overrides: Sequence[str], root: str = "config") -> Any:
    """Compose ``conf/<root>.yaml`` with ``overrides`` into its frozen dataclass. Types are checked here, rules are not.

    Raises:
        StudyError: unknown key, group or option (with the nearest name), wrong type, or a sweep where there is none.
    """
    parsed = _parse(overrides)
    for override in parsed:
        _check_name(override, root)
    groups = tuple(o.input_line or "" for o in parsed if _is_group(o) or _is_hydra(o))
    config = _base(groups, root).copy()
    for override in parsed:
        if not _is_group(override) and not _is_hydra(override):
            _assign(config, override)
    return OmegaConf.to_object(config)


def _parse(overrides: Sequence[str], parser: OverridesParser | None = None) -> list[Override]:
    try:
        return (parser or OverridesParser.create()).parse_overrides(list(overrides))
    except HydraException as error:
        why = without_password(_first_line(error))
        raise StudyError(
            f"an override reads key=value, key='value' where that has special characters: {why}"
        ) from error


@cache
def _base(groups: tuple[str, ...], root: str) -> DictConfig:
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(root, overrides=list(groups))
    except (HydraException, OmegaConfBaseException) as error:
        raise StudyError(_readable(error, ", ".join(groups) or f"conf/{root}.yaml")) from error


def _assign(config: DictConfig, override: Override) -> None:
    key, value = override.key_or_group, override.value()
    held = OmegaConf.select(config, key)
    if isinstance(held, DictConfig) and OmegaConf.get_type(held) is not dict and not isinstance(value, dict):
        inner = ", ".join(f"{key}.{name!s}" for name in held)
        raise StudyError(f"`{key}` is a group of keys, got {value!r}: set one of {inner}")
    try:
        # a mapping of free keys, such as a whole search space, replaces the one that was there
        free = isinstance(value, dict) and OmegaConf.get_type(held) is dict
        OmegaConf.update(config, key, value, merge=not free, force_add=free)
    except OmegaConfBaseException as error:
        raise StudyError(_readable(error, key)) from error


def _check_name(override: Override, root: str) -> None:
    key = override.key_or_group
    line = without_password(override.input_line or key)
    if _is_hydra(override):
        return
    if override.is_sweep_override():
        raise StudyError(f"`{key}` takes one value, got the sweep {line!r}: add -m to run them all")
    if override.is_delete():
        raise StudyError(f"every key of the config is needed, got {line!r}: set it to null where that is allowed")
    if _is_group(override):
        _check_option(key, override.value())
        return
    known = list(keys(root))
    if key not in known and not any(name.startswith(f"{key}.") for name in known):
        raise StudyError(
            f"unknown key `{key}` in {line!r}{nearest(key, [*known, *config_groups()])} (--cfg job lists all)"
        )


def _check_option(group: str, option: Any) -> None:
    available = options(group)
    if option is None and group == "experiment":
        return
    if isinstance(option, str) and option in available:
        return
    listed = ", ".join(available) or "none yet"
    raise StudyError(f"`{group}` must be one of {listed}, got {option!r}{nearest(str(option), available)}")


@cache
def keys(root: str) -> tuple[str, ...]:
    """Every dotted key of ``conf/<root>.yaml``, leaves and the mappings above them."""
    return tuple(_walk(OmegaConf.to_container(_base((), root)), ""))


def _walk(node: Any, prefix: str) -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _walk(value, f"{prefix}{key}.")


@cache
def config_groups() -> tuple[str, ...]:
    """Names of the config groups: ``data``, ``model``, ..., ``search/space``."""
    return tuple(sorted(str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir()))


def options(group: str) -> list[str]:
    """Names that ``group`` can be set to."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _is_group(override: Override) -> bool:
    return override.key_or_group in config_groups()


def _is_hydra(override: Override) -> bool:
    return override.key_or_group.split("/")[0].split(".")[0] == "hydra"


def _readable(error: Exception, key: str) -> str:
    full_key = getattr(error, "full_key", None) or key
    return f"`{full_key}`: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
