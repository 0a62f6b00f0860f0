"""Hydra's command line to typed configs, within a second and before TensorFlow is imported."""

from __future__ import annotations

import copy
import math
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, errors

from digit_study.config import _hydra
from digit_study.config.renamed_keys import (
    REMOVED,
    RENAMED,
    current_overrides,
    key_of,
    removed,
    tell_new_name,
)
from digit_study.config.run_config import Config
from digit_study.config.space_overrides import (
    SPACE,
    SPACE_GROUP,
    has_nested_sweep,
    is_of_space,
    origin_of,
    shown_override,
    typed_space,
)
from digit_study.support.console import warn
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
#: Key of the grid that -m runs, if a file or the command line gives it in this way.
GRID = "hydra.sweeper.params"
#: Name under which Hydra is shown the space of a command line.
TYPED_SPACE = "command_line"
#: Networks that -m trains, at most.
MOST_JOBS = 10_000
#: A text that is typed without quotes, unless it is one of :data:`WORDS_OF_HYDRA`.
BARE_TEXT = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
#: Words, in small letters, that Hydra takes for a value of another type.
WORDS_OF_HYDRA = ("true", "false", "null", "nan", "inf")
#: Options that ask a question, of which a command answers one at a time.
QUESTIONS = ("--help", "--hydra-help", "--cfg", "--info", "--shell-completion")
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


# ------------------------------------------------------------------------------- command lines


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse a command line as Hydra does.

    Args:
        arguments: Words after the name of the command.

    Returns:
        ``overrides`` with the key names of now, ``multirun``, and Hydra's own options.
        ``--config-dir`` has become an override of ``hydra.searchpath``.

    Raises:
        StudyError: If the words ask for an option that is gone or for another config.
    """
    words = [_as_typed(word) for word in arguments]
    parsed = _hydra.parse_arguments(words)
    fixed = {
        "--config-name": parsed.config_name,
        "--config-path": parsed.config_path,
    }
    for option, value in fixed.items():
        if value is not None:
            rule = f"`{option}` is fixed: every command reads its own file in conf/"
            remedy = "drop it; give --config-dir=<folder> experiment=<name> for a file of your own"
            raise StudyError(f"{rule}, got {value!r}: {remedy}")
    _check_options(parsed)
    overrides = current_overrides(parsed.overrides)
    parsed.overrides = _without_plus(overrides)
    if parsed.config_dir is not None:
        parsed.overrides = _with_folder(parsed.overrides, parsed.config_dir)
    return parsed


def _as_typed(word: str) -> str:
    """Return a word of a command line with the letters that the locale does not know.

    Python keeps the bytes of such letters as surrogates, which no database takes. The bytes are
    decoded as UTF-8.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        return os.fsencode(word).decode(errors="replace")
    return word


def _without_plus(overrides: Sequence[str]) -> list[str]:
    """Read ``+experiment=<name>`` as ``experiment=<name>``.

    Hydra wants the plus for groups that its defaults list does not name; here it names them all.
    """
    groups = config_groups()
    found: list[str] = []
    for text in overrides:
        if text.startswith("+") and key_of(text) in groups:
            text = text.lstrip("+")
        found.append(text)
    return found


def _check_options(parsed: Namespace) -> None:
    """Raise StudyError for options of Hydra's that do not go together, or mean nothing here."""
    asked = _questions(parsed)
    if len(asked) > 1:
        named = " and ".join(asked)
        rule = "a command answers one question at a time"
        raise StudyError(f"{rule}, got {named}: give one of them")
    shows_config = asked == ["--cfg"]
    shows_help = asked == ["--help"]
    if parsed.resolve and not shows_config and not shows_help:
        raise _needs_cfg("--resolve")
    if parsed.package and not shows_config:
        raise _needs_cfg("--package")
    if parsed.experimental_rerun is not None:
        rule = "`--experimental-rerun` reads a folder of Hydra's, and none is written here"
        remedy = "train a run again with python src/run.py reproduce=<run_id>"
        raise StudyError(f"{rule}, got {parsed.experimental_rerun!r}: {remedy}")


def _needs_cfg(option: str) -> StudyError:
    """Return the error of an option that is given without ``--cfg``."""
    rule = f"`{option}` says how --cfg shows a config"
    return StudyError(f"{rule}, got it without: give --cfg job {option}, or drop it")


def _questions(parsed: Namespace) -> list[str]:
    """Return the options of a command line that ask a question."""
    given = vars(parsed)
    asked: list[str] = []
    for option in QUESTIONS:
        name = option.strip("-").replace("-", "_")
        if given[name]:
            asked.append(option)
    return asked


def answer(arguments: Sequence[str], root: str, schema: type) -> Namespace:
    """Give Hydra's answer and exit, if that is all that a command line asks for.

    Args:
        arguments: Words after the name of the command.
        root: Name of the config in ``conf/``.
        schema: Its dataclass, which becomes known to Hydra.

    Returns:
        What :func:`parse_arguments` returns, for a command line that asks for more.

    Raises:
        SystemExit: After an answer.
        StudyError: If the answer cannot be given.
    """
    register(root, schema)
    parsed = parse_arguments(arguments)
    if not _questions(parsed):
        return parsed
    overrides = list(parsed.overrides)
    if root == MULTIRUN_ROOT and is_multirun(parsed):
        # Hydra shows a single config: that of the first job
        overrides = expand(overrides)[0]
    if parsed.cfg or parsed.info:
        compose_config(overrides, root)
    overrides = _with_added_keys(overrides, root)
    overrides = _with_space_as_option(overrides, root)
    words = _words_for_hydra(parsed, overrides)
    typed = list(sys.argv)
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    # otherwise Hydra prints errors itself, in its own words and with a part of the traceback
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        sys.argv = [typed[0], *words]
        wrap = hydra.main(version_base=VERSION, config_path=str(CONF), config_name=root)
        wrap(_do_nothing)()
    except (HydraException, errors.OmegaConfBaseException, yaml.YAMLError) as error:
        raise as_study_error(error, f"conf/{root}.yaml") from error
    except ValueError as error:
        if not parsed.shell_completion:
            raise
        shown = " ".join(overrides)
        rule = "`--shell-completion` is followed by install=<shell> or uninstall=<shell>"
        remedy = "give --shell-completion install=bash"
        raise StudyError(f"{rule}, got {shown!r}: {remedy}") from error
    finally:
        sys.argv = typed
        del os.environ["HYDRA_FULL_ERROR"]
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    raise SystemExit


def _with_added_keys(overrides: Sequence[str], root: str) -> list[str]:
    """Mark the overrides that add a key to a mapping, as Hydra wants it."""
    if not overrides:
        # nobody who asks for help waits for the files to be composed
        return []
    marked: list[str] = []
    for text in overrides:
        is_deletion = text.startswith("~")
        if not is_deletion and may_be_added(key_of(text), root):
            bare = text.lstrip("+")
            text = f"++{bare}"
        marked.append(text)
    return marked


def _with_space_as_option(overrides: Sequence[str], root: str) -> list[str]:
    """Make a typed space an option of its group: no override of Hydra's sets keys with dots."""
    remaining = without_space(overrides)
    others = [text for text in remaining if key_of(text) != SPACE]
    has_typed_space = len(others) < len(overrides)
    if not has_typed_space or not has_space(root):
        return list(overrides)
    study = compose_config(overrides, root)
    node = OmegaConf.create(study.search.space)
    store = ConfigStore.instance()
    store.store(group=SPACE_GROUP, name=TYPED_SPACE, node=node)
    return [*others, f"{SPACE_GROUP}={TYPED_SPACE}"]


def _do_nothing(config: DictConfig) -> None:
    """Stand for a command of which only information is asked."""


def _words_for_hydra(parsed: Namespace, overrides: Sequence[str]) -> list[str]:
    """Return a question to Hydra, with the overrides as they are read here."""
    words: list[str] = []
    for name in ("help", "hydra_help", "resolve", "shell_completion"):
        if getattr(parsed, name):
            option = name.replace("_", "-")
            words.append(f"--{option}")
    for option in ("cfg", "package", "info"):
        value = getattr(parsed, option)
        if value is not None:
            words.append(f"--{option}={value}")
    return [*words, *overrides]


def checked(arguments: Sequence[str], root: str, schema: type) -> Any:
    """Answer a command line, or compose and check the config that it asks for.

    Args:
        arguments: Words after the name of the command.
        root: Name of the config in ``conf/``.
        schema: Its dataclass.

    Returns:
        The config, an instance of ``schema``.

    Raises:
        StudyError: If it breaks a rule.
    """
    parsed = answer(arguments, root, schema)
    config = compose_config(parsed.overrides, root)
    config.validate()
    return config


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


# ------------------------------------------------------------------------------------- configs


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


def _with_folder(overrides: Sequence[str], folder: str) -> list[str]:
    """Add a folder to what the overrides give as ``hydra.searchpath``."""
    added = folder_at(str(Path(folder).expanduser()))
    typed = parse_overrides(overrides)
    folders = [*folders_of(typed), added]
    listed = typed_value([f"file://{path}" for path in folders])
    others = [text for text in overrides if key_of(text) != SEARCH_PATH]
    return [*others, f"{SEARCH_PATH}={listed}"]


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
