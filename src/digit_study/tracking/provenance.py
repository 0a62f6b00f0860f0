"""What code, what machine and what arithmetic a run comes from, as its technical tags."""

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version

from digit_study.config.compose import ROOT
from digit_study.config.run_config import Config
from digit_study.support import machine

#: Prefix of these tags: what a person looks for has none.
TECHNICAL = "technical."
MODEL_REQUIREMENTS = ("tensorflow", "keras", "numpy")
RECORDED_VERSIONS = (*MODEL_REQUIREMENTS, "mlflow", "optuna")


def technical(config: Config) -> dict[str, str]:
    """All technical tags of a run that this process makes."""
    recipe = config.training
    settled = {
        "engine": config.engine,
        "precision": recipe.precision,
        "threads": str(recipe.threads),
    }
    return prefixed({**settled, **code_tags(), **machine_tags()})


def prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as a run has them, from their plain names."""
    return {f"{TECHNICAL}{name}": value for name, value in tags.items()}


def plain(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run by their plain names, which runs of earlier code have."""
    return {key.removeprefix(TECHNICAL): value for key, value in tags.items()}


@cache
def code_tags() -> dict[str, str]:
    """Git commit and dirtiness of the project."""
    told = {"git.commit": "rev-parse HEAD", "git.dirty": "status --porcelain"}
    for tag, words in told.items():
        command = ["git", "-C", str(ROOT), *words.split()]
        try:
            told[tag] = subprocess.check_output(
                command, stderr=subprocess.DEVNULL, text=True
            ).strip()
        except (
            FileNotFoundError,
            subprocess.CalledProcessError,
        ):  # no git on this machine, or no repository
            told[tag] = "unknown"
    told["git.dirty"] = str(bool(told["git.dirty"])).lower()
    return told


def machine_tags() -> dict[str, str]:
    """What of this process and its machine decides bits and seconds of a run."""
    return {
        "pid": str(os.getpid()),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "host": platform.node(),
        "os": platform.platform(),
        "processor": machine.processor(),
        "cores": str(machine.cores()),
        **_versions(),
    }


@cache
def _versions() -> dict[str, str]:
    return {f"version.{name}": version(name) for name in RECORDED_VERSIONS}


def mixture(runs: Sequence[Mapping[str, str]]) -> str:
    """A sentence on what differs between the machines of runs, by their plain tags; empty if nothing does.

    Processor, cores and versions decide bits or seconds of a run.
    """
    keys = sorted(
        {
            key
            for tags in runs
            for key in tags
            if key in ("processor", "cores") or key.startswith("version.")
        }
    )
    counts = {key: Counter(tags.get(key, "unknown") for tags in runs) for key in keys}
    told = [
        f"{key.removeprefix('version.')} {' and '.join(f'{value} ({count})' for value, count in found.most_common())}"
        for key, found in counts.items()
        if len(found) > 1
    ]
    return (
        f"compared across machines that differ, which changes numbers too: {'; '.join(told)}"
        if told
        else ""
    )
