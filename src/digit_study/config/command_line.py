"""Command lines as Hydra parses them, and its answers to questions such as ``--help``."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, errors

from digit_study.config import _hydra
from digit_study.config.compose import (
    CONF,
    MULTIRUN_ROOT,
    SEARCH_PATH,
    VERSION,
    as_study_error,
    compose_config,
    config_groups,
    folder_at,
    folders_of,
    has_space,
    may_be_added,
    parse_overrides,
    register,
    typed_value,
    without_space,
)
from digit_study.config.multirun_grid import expand, is_multirun
from digit_study.config.renamed_keys import current_overrides, key_of
from digit_study.config.space_overrides import SPACE, SPACE_GROUP
from digit_study.support.errors import StudyError

#: Name under which Hydra is shown the space of a command line.
TYPED_SPACE = "command_line"
#: Options that ask a question, of which a command answers one at a time.
QUESTIONS = ("--help", "--hydra-help", "--cfg", "--info", "--shell-completion")


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


def _with_folder(overrides: Sequence[str], folder: str) -> list[str]:
    """Add a folder to what the overrides give as ``hydra.searchpath``."""
    added = folder_at(str(Path(folder).expanduser()))
    typed = parse_overrides(overrides)
    folders = [*folders_of(typed), added]
    listed = typed_value([f"file://{path}" for path in folders])
    others = [text for text in overrides if key_of(text) != SEARCH_PATH]
    return [*others, f"{SEARCH_PATH}={listed}"]


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
