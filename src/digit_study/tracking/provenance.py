"""The provenance of a run, as tags that begin with ``technical.``: code, machine, arithmetic."""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version

from digit_study.config.compose import ROOT
from digit_study.config.run_config import Config
from digit_study.model.keras_settings import KERAS_SETTINGS
from digit_study.support import hardware

#: Prefix of these tags: tags that a person looks for have none.
TECHNICAL = "technical."
#: Value of a tag that cannot be found out.
UNKNOWN = "unknown"
#: Packages that a saved model needs.
MODEL_REQUIREMENTS = ("tensorflow", "keras", "numpy")
#: Commands of git whose output is recorded, by tag.
GIT_COMMANDS = {"git.commit": "rev-parse HEAD", "git.dirty": "status --porcelain"}
#: What of a machine decides bits or seconds of a run, beside the versions of packages.
DECIDING = ("processor", "cores")
#: How the tags of versions begin.
VERSION = "version."
#: Packages whose version is recorded.
RECORDED_VERSIONS = (*MODEL_REQUIREMENTS, "mlflow", "optuna")


def technical(config: Config) -> dict[str, str]:
    """Return all provenance tags of a run that this process makes."""
    run = {
        "engine": config.engine,
        "precision": config.training.precision,
        "threads": str(config.training.threads),
    }
    return prefixed({**run, **code_tags(), **machine_tags()})


def prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags as a run has them, from their plain names."""
    return {f"{TECHNICAL}{name}": value for name, value in tags.items()}


def plain(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags of a run by their plain names, which runs of earlier code have."""
    return {key.removeprefix(TECHNICAL): value for key, value in tags.items()}


@cache
def code_tags() -> dict[str, str]:
    """Return the git commit of the project, and whether files differ from it.

    Both are ``unknown`` without a repository of its own: that of a folder around the project says
    nothing about it.
    """
    if _git("rev-parse --show-toplevel") != str(ROOT):
        return dict.fromkeys(GIT_COMMANDS, UNKNOWN)
    found = {tag: _git(words) for tag, words in GIT_COMMANDS.items()}
    changes = found["git.dirty"]
    if changes != UNKNOWN:
        is_dirty = bool(changes)
        found["git.dirty"] = str(is_dirty).lower()
    return found


def _git(words: str) -> str:
    """Return what git prints; ``unknown`` without git or without a repository."""
    command = ["git", "-C", str(ROOT), *words.split()]
    # a hook of another repository sets GIT_DIR and more; settings of git itself stay
    environment = {}
    for name, value in os.environ.items():
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG"):
            environment[name] = value
    try:
        text = subprocess.check_output(
            command, stderr=subprocess.DEVNULL, text=True, env=environment
        )
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return text.strip()


def machine_tags() -> dict[str, str]:
    """Return what of this process and its machine decides bits and seconds of a run."""
    settings = [f"{key}={value}" for key, value in KERAS_SETTINGS.items()]
    return {
        "pid": str(os.getpid()),
        "keras": ", ".join(settings),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "host": platform.node(),
        "os": platform.platform(),
        "processor": hardware.processor(),
        "cores": str(hardware.cores()),
        **_versions(),
    }


@cache
def _versions() -> dict[str, str]:
    return {f"{VERSION}{name}": version(name) for name in RECORDED_VERSIONS}


def mixture(runs: Sequence[Mapping[str, str]]) -> str:
    """Return a sentence on what differs between the machines of runs.

    Args:
        runs: The plain tags of each run.

    Returns:
        The sentence; empty if nothing differs.
    """
    keys: set[str] = set()
    keys.update(*runs)
    differences = []
    for key in sorted(keys):
        if key not in DECIDING and not key.startswith(VERSION):
            continue
        counts = Counter(tags.get(key, UNKNOWN) for tags in runs)
        if len(counts) > 1:
            values = [f"{value} ({count})" for value, count in counts.most_common()]
            name = key.removeprefix(VERSION)
            differences.append(f"{name} {' and '.join(values)}")
    if not differences:
        return ""
    found = "; ".join(differences)
    return f"compared across machines that differ, which changes numbers too: {found}"
