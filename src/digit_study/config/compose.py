"""Overrides and the files of ``conf/`` to typed configs, before TensorFlow is imported."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, errors

from digit_study.config.renamed_keys import (
    REMOVED,
    RENAMED,
    current_overrides,
    removed,
    tell_new_name,
)
from digit_study.config.run_config import Config
from digit_study.config.space_overrides import SPACE, is_of_space, origin_of, typed_space
from digit_study.support.errors import StudyError, first_line
from digit_study.support.redaction import without_password
from digit_study.support.suggestions import nearest

ROOT = Path(__file__).resolve().parents[3]
#: The folder of the shipped configs.
CONF = ROOT / "conf"
#: Version of Hydra whose behaviour is asked for.
VERSION = "1.3"
#: Name of the only config of which -m trains several runs.
MULTIRUN_ROOT = "config"
#: Commands whose configs have groups, by the name of the config.
COMMANDS = {MULTIRUN_ROOT: "src/run.py", "study": "sweeps/optuna_search.py"}
#: Key of the folders, besides :data:`CONF`, in which Hydra looks for config files.
SEARCH_PATH = "hydra.searchpath"
#: A text that is typed without quotes, unless it is one of :data:`WORDS_OF_HYDRA`.
BARE_TEXT = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
#: Words, in small letters, that Hydra takes for a value of another type.
WORDS_OF_HYDRA = ("true", "false", "null", "nan", "inf")
#: How OmegaConf says that a value has the wrong type, in its two forms.
WRONG_TYPE = re.compile(
    r"Value '(?P<value>.*)' (of type '\w+' could not be converted to|is not a valid) (?P<type>\w+)"
)
#: What a value must be, by OmegaConf's name of the type.
TYPE_WORDS = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
#: How Hydra's message begins when a value has the wrong type.
MERGE_FAILED = "Error merging override "
#: Characters of a message of Hydra's or OmegaConf's that are shown.
LONGEST_MESSAGE = 1000


@cache
def register(root: str = "config", schema: type = Config) -> None:
    """Make a dataclass known to Hydra as the types of a config.

    Args:
        root: Name of the config in ``conf/``.
        schema: Its dataclass.
    """
    node: DictConfig = OmegaConf.structured(schema)
    _make_writable(node)
    store = ConfigStore.instance()
    store.store(name=f"{root}_schema", node=node)


def _make_writable(node: DictConfig) -> None:
    """Let overrides be merged into a node that was made from a frozen dataclass."""
    OmegaConf.set_readonly(node, None)
    for child in node.values():
        if isinstance(child, DictConfig):
            _make_writable(child)


def compose_config(
    overrides: Sequence[str], root: str = "config", *, recorded: bool = False
) -> Any:
    """Compose a config with overrides. Names and types are checked here, rules are not.

    Args:
        overrides: Overrides of a single job.
        root: Name of the config in ``conf/``.
        recorded: Whether a store recorded the overrides: then old names are read without a notice.

    Returns:
        The config, an instance of the dataclass that :func:`register` got for ``root``.

    Raises:
        StudyError: For an unknown key, group or option, with the nearest name; for a value of a
            wrong type; for a sweep.
    """
    current = current_overrides(overrides, recorded=recorded)
    typed = parse_overrides(current)
    config = _with_overrides(typed, root)
    try:
        return OmegaConf.to_object(config)
    except errors.OmegaConfBaseException as error:
        raise as_study_error(error, f"conf/{root}.yaml") from error


def _with_overrides(typed: Sequence[Override], root: str) -> DictConfig:
    """Compose a config with parsed overrides; raises StudyError."""
    groups = config_groups(folders_of(typed))
    chosen: list[str] = []
    values: list[Override] = []
    has_typed_space = False
    for override in typed:
        if override.is_hydra_override():
            chosen.append(str(override.input_line))
        elif is_of_space(override) and has_space(root):
            has_typed_space = True
        else:
            _check_name(override, root, groups)
            if override.key_or_group in groups:
                chosen.append(str(override.input_line))
            else:
                values.append(override)
    config = _base(tuple(chosen), root).copy()
    for override in values:
        _set_value(config, override.key_or_group, override.value())
    if has_typed_space:
        node = OmegaConf.select(config, SPACE)
        space_of_files: Any = OmegaConf.to_container(node)
        space = typed_space(space_of_files, typed)
        _set_value(config, SPACE, space)
    return config


def has_space(root: str) -> bool:
    """Return whether a config holds a search space, so that its keys can be swept."""
    return SPACE in _known_names(root)


def _set_value(config: DictConfig, key: str, value: Any) -> None:
    """Set a key of a composed config; raises StudyError if the value is not of its type."""
    held = OmegaConf.select(config, key)
    is_group = isinstance(held, DictConfig)
    # such as a whole search space, which replaces the space that was there
    has_free_keys = is_group and OmegaConf.get_type(held) is dict
    is_mapping = isinstance(value, dict)
    if is_group and not has_free_keys and not is_mapping:
        names = ", ".join(f"{key}.{name!s}" for name in held)
        raise StudyError(f"`{key}` is a group of keys, got {value!r}: set one of {names}")
    if has_free_keys and not is_mapping and value is not None:
        rule = f"`{key}` must map keys to values"
        raise StudyError(f"{rule}, got {value!r}: write '{key}={{<key>: <value>}}'")
    replaces = has_free_keys and is_mapping
    is_free = replaces or _is_in_free_mapping(config, key)
    try:
        OmegaConf.update(config, key, value, merge=not replaces, force_add=is_free)
    except errors.OmegaConfBaseException as error:
        raise as_study_error(error, key) from error


@cache
def config_groups(folders: tuple[Path, ...] = ()) -> dict[str, list[str]]:
    """List the config groups ``data``, ``model``, …, ``search/space``.

    Args:
        folders: Folders with config files besides the shipped ones.

    Returns:
        The names of their options by group.
    """
    options: dict[str, set[str]] = {}
    for folder in (CONF, *folders):
        for path in sorted(folder.rglob("*/")):
            group = str(path.relative_to(folder))
            names = {option.stem for option in path.glob("*.yaml")}
            options.setdefault(group, set()).update(names)
    return {group: sorted(names) for group, names in options.items()}


def folders_of(typed: Sequence[Override]) -> tuple[Path, ...]:
    """Return the folders that overrides give as ``hydra.searchpath``."""
    folders: list[Path] = []
    for override in typed:
        if override.key_or_group != SEARCH_PATH:
            continue
        value = override.value()
        if not isinstance(value, list):
            value = [value]
        for entry in value:
            folders.append(folder_at(str(entry)))
    return tuple(folders)


def folder_at(address: str) -> Path:
    """Return the folder of config files that an address or a path names; raises StudyError."""
    path = Path(address.removeprefix("file://"))
    if not path.is_dir():
        rule = f"`--config-dir` and `{SEARCH_PATH}` must name folders of config files"
        remedy = "make it first, or correct the path"
        raise StudyError(f"{rule}, got {address!r}, which is none: {remedy}")
    return path.resolve()


def parse_overrides(
    overrides: Sequence[str], parser: OverridesParser | None = None
) -> list[Override]:
    """Parse overrides; raises StudyError, in which no password is shown."""
    if parser is None:
        parser = OverridesParser.create()
    try:
        return parser.parse_overrides(list(overrides))
    except HydraException as error:
        rule = "an override reads key=value, key='value' where that has special characters"
        message = without_password(first_line(error, LONGEST_MESSAGE))
        # the name that Hydra's parser gives to an error, before the override itself
        message = message.replace("LexerNoViableAltException: ", "got ")
        raise StudyError(f"{rule}: {message}") from error


@cache
def _base(choices: tuple[str, ...], root: str) -> DictConfig:
    """Compose a config from its files, of which ``choices`` pick the options."""
    try:
        return compose_files(choices, root)
    except StudyError:
        old = _composed_with_old_names(choices, root)
        if old is None:
            raise
        return old


def compose_files(choices: tuple[str, ...], root: str, *, with_hydra: bool = False) -> DictConfig:
    """Compose a config from its files, with Hydra's own keys if asked; raises StudyError."""
    where = ", ".join(choices) or f"conf/{root}.yaml"
    try:
        with hydra.initialize_config_dir(str(CONF), version_base=VERSION):
            return hydra.compose(root, list(choices), return_hydra_config=with_hydra)
    except (yaml.YAMLError, HydraException, errors.OmegaConfBaseException) as error:
        problem = as_study_error(error, where)
        origin = _origin_of(error)
        if choices and isinstance(origin, errors.ConfigKeyError):
            unknown = str(origin.full_key)
            suggestion = nearest(unknown, _known_names(root))
            problem = StudyError(f"{problem}{suggestion}")
        raise problem from error


def _composed_with_old_names(choices: tuple[str, ...], root: str) -> DictConfig | None:
    """Compose files that name keys as they were called once; None if that does not help.

    The schema gets the old keys besides the new ones, and what the files set there is moved.
    """
    store = ConfigStore.instance()
    schema: DictConfig = store.load(f"{root}_schema.yaml").node
    extended = copy.deepcopy(schema)
    old_keys = [key for key in (*RENAMED, *REMOVED) if _add_key(extended, key)]
    store.store(name=f"{root}_schema", node=extended)
    try:
        composed = compose_files(choices, root)
    except StudyError:
        return None
    finally:
        store.store(name=f"{root}_schema", node=schema)
    # without the types of the extended schema, from which no key can be deleted
    moved = OmegaConf.create(OmegaConf.to_container(composed))
    for key in old_keys:
        _move_to_new_name(moved, key)
    try:
        merged = OmegaConf.merge(schema, moved)
    except errors.OmegaConfBaseException as error:
        raise as_study_error(error, f"conf/{root}.yaml") from error
    assert isinstance(merged, DictConfig)
    return merged


def _move_to_new_name(config: Any, key: str) -> None:
    """Move what an old key sets to its new name; raises StudyError for a key that is gone."""
    value = OmegaConf.select(config, key)
    holder, name = _holder_of(config, key)
    del holder[name]
    if value is None:
        return
    if key in REMOVED:
        raise removed(key, f"{key}={value}", REMOVED[key])
    tell_new_name(key)
    OmegaConf.update(config, RENAMED[key], value)


def _add_key(schema: DictConfig, key: str) -> bool:
    """Add a key to a schema that has its parent; returns whether that was so."""
    holder, name = _holder_of(schema, key)
    lacks_new_name = key in RENAMED and OmegaConf.select(schema, RENAMED[key]) is None
    if not isinstance(holder, DictConfig) or lacks_new_name or not name.isidentifier():
        return False
    OmegaConf.set_struct(holder, value=False)
    holder[name] = None
    OmegaConf.set_struct(holder, value=None)
    return True


def _holder_of(config: Any, key: str) -> tuple[Any, str]:
    """Return the node above a key, None if there is none, and the last part of the key."""
    parent, _, name = key.rpartition(".")
    if not parent:
        return config, name
    return OmegaConf.select(config, parent), name


def as_study_error(error: Exception, where: str) -> StudyError:
    """Turn an error of Hydra, OmegaConf or PyYAML into a line with the key or the file."""
    if isinstance(error, yaml.YAMLError):
        # the file and the line stand in the next lines of the message
        problem = " ".join(str(error).split())
        return StudyError(f"`{where}` must be valid YAML: {problem}")
    message = first_line(error, LONGEST_MESSAGE)
    origin = _origin_of(error)
    cause = first_line(origin, LONGEST_MESSAGE)
    if message.endswith(":"):
        # Hydra says in which file, OmegaConf what
        place = message.split(":")[0]
        message = f"{place}: {cause}"
    if message.startswith(MERGE_FAILED):
        # Hydra says which override, OmegaConf what
        given = message.removeprefix(MERGE_FAILED)
        message = f"{cause}, got {given!r}: correct it, or drop it"
    key = getattr(origin, "full_key", None) or where
    if isinstance(origin, errors.InterpolationResolutionError):
        # an error of a resolver, such as oc.env, stands at the end
        _, _, reason = message.rpartition("while resolving interpolation: ")
        message = reason.strip('"')
        message = f"{message}: correct what stands in ${{…}}, or give the value itself"
    wrong = WRONG_TYPE.match(message)
    if wrong and wrong["type"] in TYPE_WORDS:
        rule = f"`{key}` must be {TYPE_WORDS[wrong['type']]}"
        given = without_password(wrong["value"])
        return StudyError(f"{rule}, got '{given}': correct it, or drop it for the default")
    return StudyError(f"`{key}`: {without_password(message)}")


def _origin_of(error: Exception) -> BaseException:
    """Return OmegaConf's error from which an error of Hydra's came; the error itself without."""
    origin = error.__cause__ or error.__context__
    if isinstance(error, HydraException) and isinstance(origin, errors.OmegaConfBaseException):
        return origin
    return error


@cache
def _known_names(root: str) -> list[str]:
    config = _base((), root)
    return list(_names(OmegaConf.to_container(config)))


def may_be_added(key: str, root: str) -> bool:
    """Return whether a config has a mapping to which a key can be added."""
    return _is_in_free_mapping(_base((), root), key)


def _is_in_free_mapping(config: DictConfig, key: str) -> bool:
    """Return whether a key is in a mapping whose keys a person chooses, such as tracking.tags."""
    parent, _, _ = key.rpartition(".")
    if not parent:
        return False
    holder = OmegaConf.select(config, parent)
    return isinstance(holder, DictConfig) and OmegaConf.get_type(holder) is dict


def _names(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a nested dict, leaves and the dicts above them."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        yield name
        if isinstance(value, dict):
            yield from _names(value, f"{name}.")


def _check_name(override: Override, root: str, groups: dict[str, list[str]]) -> None:
    """Check that an override is of a key or an option that exists; raises StudyError."""
    key = override.key_or_group
    line = without_password(override.input_line or key)
    if override.is_delete():
        rule = "every key of the config is needed"
        raise StudyError(f"{rule}, got {line!r}: set it to null where that is allowed")
    if override.package is not None:
        rule = f"the keys of `{key}` have one place in the config"
        raise StudyError(f"{rule}, got {line!r}: write {key}=<name>, without @{override.package}")
    if override.is_sweep_override():
        remedy = "give one"
        if root == MULTIRUN_ROOT:
            remedy = "add -m to run them all"
        raise StudyError(f"`{key}` takes one value, got the sweep {line!r}: {remedy}")
    if key in groups:
        check_choice(override, root, groups)
        return
    known = _known_names(root)
    if key not in known and not may_be_added(key, root):
        near = nearest(key, [*known, *_groups_of(root)])
        raise StudyError(f"unknown key `{key}` in {line!r}{near} (--cfg job lists all)")


def check_choice(override: Override, root: str, groups: dict[str, list[str]]) -> None:
    """Check that a command has a group and the group an option; raises StudyError."""
    group = override.key_or_group
    if group not in _groups_of(root):
        for other_root, command in COMMANDS.items():
            if group in _groups_of(other_root):
                rule = f"`{group}` belongs to python {command}"
                got = f"got {override.input_line!r} for another command"
                raise StudyError(f"{rule}, {got}: drop it here")
    _check_option(group, override.value(), groups[group])


@cache
def _groups_of(root: str) -> set[str]:
    """Return the groups that the defaults list of a config names."""
    loaded: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{root}.yaml"))
    groups: set[str] = set()
    for entry in loaded["defaults"]:
        # an entry is a group with its option, or the name of another config
        if isinstance(entry, dict):
            groups.update(entry)
    return groups


def _check_option(group: str, option: Any, available: Sequence[str]) -> None:
    may_be_none = group == "experiment"
    if option in available or (option is None and may_be_none):
        return
    listed = ", ".join(available) or "none yet"
    rule = f"`{group}` must be one of {listed}"
    suggestion = nearest(str(option), available)
    raise StudyError(f"{rule}, got {option!r}{suggestion}")


def typed_value(value: Any) -> str:
    """Return a value as it is typed in an override: a number, a text, a list or a mapping."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        entries = [f"{key}: {typed_value(entry)}" for key, entry in value.items()]
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, (list, tuple)):
        elements = [typed_value(element) for element in value]
        return f"[{', '.join(elements)}]"
    if isinstance(value, str):
        return _quoted_where_needed(value)
    return str(value)


def _quoted_where_needed(text: str) -> str:
    """Return a text as Hydra reads it back: not as a sweep, a number or a mapping."""
    if BARE_TEXT.fullmatch(text) and text.lower() not in WORDS_OF_HYDRA:
        return text
    return QuotedString(text, Quote.single).with_quotes()


def without_space(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that are not about the search space: no sweep, no single key of it."""
    others = [override for override in parse_overrides(overrides) if not is_of_space(override)]
    return [str(override.input_line) for override in others]


def origin_of_space(overrides: Sequence[str]) -> str:
    """Say where the search space of a command line comes from."""
    typed = parse_overrides(overrides)
    return origin_of(typed)
