"""Hydra's command line to typed configs, in a second and before TensorFlow is imported."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, errors

from digit_study.config._hydra import parse_arguments as parse_arguments
from digit_study.config.run_config import Config
from digit_study.support.messages import StudyError, first_line, nearest, without_password

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
VERSION = "1.3"  # of Hydra's behaviour


def asks_for_information(arguments: Sequence[str]) -> bool:
    """Whether Hydra only has to answer (--help, --cfg job, --info, ...) and nothing is to run."""
    args = parse_arguments(arguments)
    return bool(args.help or args.hydra_help or args.cfg or args.info or args.shell_completion)


def answer(arguments: Sequence[str], root: str, schema: type) -> None:
    """Register a root config; if Hydra's answer is all that this process's ``arguments`` ask for, give it and exit."""
    register(root, schema)
    if asks_for_information(arguments):
        hydra.main(version_base=VERSION, config_path=str(CONF), config_name=root)(
            lambda config: None
        )()
        raise SystemExit


def checked(arguments: Sequence[str], root: str, schema: type) -> Any:
    """:func:`answer` the arguments, or compose and check what they ask for; raises StudyError if it breaks a rule."""
    answer(arguments, root, schema)
    config = compose_config(arguments, root)
    config.validate()
    return config


def run_hydra(task: Callable[[], None], extra: Sequence[str]) -> None:
    """Let Hydra compose and launch ``task`` from the command line, with ``extra`` overrides behind what was typed.

    Jobs, in whatever process, read from the environment which overrides nobody typed, and leave them out of names.
    """
    typed = list(sys.argv)
    os.environ["DIGIT_STUDY_SETTLED"] = "\n".join(extra)
    # else Hydra prints a traceback of its own and exits, and the message for a person is lost in it
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv = [*typed, *extra]
        task()
    finally:
        sys.argv = typed


@cache
def register(root: str = "config", schema: type = Config) -> None:
    """Make ``schema`` known to Hydra as the types of ``conf/<root>.yaml``."""
    nodes: list[DictConfig] = [OmegaConf.structured(schema)]
    for node in (
        nodes
    ):  # a frozen dataclass makes a read-only node, which overrides could not be merged into
        OmegaConf.set_readonly(node, None)
        nodes += [child for child in node.values() if isinstance(child, DictConfig)]
    ConfigStore.instance().store(name=f"{root}_schema", node=nodes[0])


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """All jobs of a multirun in Hydra's order: ``a=1,2 b=3`` gives ``[[a=1, b=3], [a=2, b=3]]``."""
    choices: list[list[str]] = []
    try:
        with hydra.initialize_config_dir(
            str(CONF), version_base=VERSION
        ):  # glob(*) looks the options up
            parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for override in _parse(overrides, parser):
            key, is_sweep = override.get_key_element(), override.is_sweep_override()
            if override.is_interval_sweep():
                raise StudyError(
                    f"a sweep must list its values, got {override.input_line!r}: write {key}=a,b,c"
                )
            values = (
                override.sweep_string_iterator()
                if is_sweep
                else [override.get_value_element_as_str()]
            )
            choices.append([f"{key}={value}" for value in values])
            if not choices[-1]:
                raise StudyError(
                    f"a sweep must list a value or more, got {override.input_line!r}: write {key}=a,b,c"
                )
    except HydraException as error:
        raise StudyError(first_line(error, 1000)) from error
    return [list(job) for job in product(*choices)]


def compose_config(overrides: Sequence[str], root: str = "config") -> Any:
    """Compose ``conf/<root>.yaml`` with ``overrides`` into its frozen dataclass. Types are checked here, rules are not.

    Raises StudyError for an unknown key, group or option, with the nearest name, for a wrong type, or for a sweep.
    """
    typed = _parse(overrides)
    for override in typed:
        if not override.is_hydra_override():
            _check_name(override, root)
    chosen = [
        one for one in typed if one.is_hydra_override() or one.key_or_group in config_groups()
    ]
    config = _base(tuple(one.input_line or "" for one in chosen), root).copy()
    for key, value in ((one.key_or_group, one.value()) for one in typed if one not in chosen):
        held = OmegaConf.select(config, key)
        is_free = isinstance(held, DictConfig) and OmegaConf.get_type(held) is dict
        if isinstance(held, DictConfig) and not is_free and not isinstance(value, dict):
            inner = ", ".join(f"{key}.{name!s}" for name in held)
            raise StudyError(f"`{key}` is a group of keys, got {value!r}: set one of {inner}")
        # a mapping of free keys, such as a whole search space, replaces the one that was there
        replaces = is_free and isinstance(value, dict)
        try:
            OmegaConf.update(config, key, value, merge=not replaces, force_add=replaces)
        except errors.OmegaConfBaseException as error:
            raise StudyError(f"`{error.full_key or key}`: {first_line(error, 1000)}") from error
    return OmegaConf.to_object(config)


@cache
def config_groups() -> dict[str, list[str]]:
    """The config groups ``data``, ``model``, ..., ``search/space``, each with the names it can be set to."""
    folders = sorted(CONF.rglob("*/"))
    return {
        str(path.relative_to(CONF)): sorted(option.stem for option in path.glob("*.yaml"))
        for path in folders
    }


def _parse(overrides: Sequence[str], parser: OverridesParser | None = None) -> list[Override]:
    try:
        return (parser or OverridesParser.create()).parse_overrides(list(overrides))
    except HydraException as error:
        rule = "an override reads key=value, key='value' where that has special characters"
        raise StudyError(f"{rule}: {without_password(first_line(error, 1000))}") from error


@cache
def _base(choices: tuple[str, ...], root: str) -> DictConfig:
    try:
        with hydra.initialize_config_dir(str(CONF), version_base=VERSION):
            return hydra.compose(root, overrides=list(choices))
    except yaml.YAMLError as error:  # the file and the line stand in the next lines of what it says
        raise StudyError(
            f"`{', '.join(choices)}` must be valid YAML: {' '.join(str(error).split())}"
        ) from error
    except (HydraException, errors.OmegaConfBaseException) as error:
        where = getattr(error, "full_key", None) or ", ".join(choices) or f"conf/{root}.yaml"
        raise StudyError(f"`{where}`: {first_line(error, 1000)}") from error


@cache
def _known_names(root: str) -> list[str]:
    return list(_names(OmegaConf.to_container(_base((), root))))


def _names(node: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a nested dict, leaves and the dicts above them."""
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")


def _check_name(override: Override, root: str) -> None:
    key = override.key_or_group
    line = without_password(override.input_line or key)
    if override.is_sweep_override():
        raise StudyError(f"`{key}` takes one value, got the sweep {line!r}: add -m to run them all")
    if override.is_delete():
        raise StudyError(
            f"every key of the config is needed, got {line!r}: set it to null where that is allowed"
        )
    if (available := config_groups().get(key)) is not None:
        option = override.value()
        if option not in available and not (option is None and key == "experiment"):
            listed = ", ".join(available) or "none yet"
            raise StudyError(
                f"`{key}` must be one of {listed}, got {option!r}{nearest(str(option), available)}"
            )
        return
    if key not in (known := _known_names(root)):
        near = nearest(key, [*known, *config_groups()])
        raise StudyError(f"unknown key `{key}` in {line!r}{near} (--cfg job lists all)")
