"""Config keys that had another name once, and options that are gone: a line here is all it takes.

Command lines, experiment files, recorded params and stored overrides may still name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from digit_study.support.console import print_error
from digit_study.support.errors import StudyError
from digit_study.support.redaction import without_password

#: Keys by their old name.
RENAMED = {
    "patience": "outage_timeout",
    "search.patience": "search.outage_timeout",
}
#: Keys and groups that are gone, each with what to do instead. A key also stands for those in it.
REMOVED = {
    "search.watch": "the live page is gone; use optuna-dashboard or mlflow ui",
    "hydra/launcher": "-m trains on an engine; give workers=<runs at a time>",
    "hydra.launcher": "-m trains on an engine; give workers=<runs at a time>",
    "hydra/sweeper": "-m lists values; to search them, use sweeps/optuna_search.py",
    "hydra.run": "a run is kept in MLflow, not in a folder; give tracking.uri=<store>",
    "hydra.sweep": "runs are kept in MLflow, not in a folder each; give tracking.uri=<store>",
}
#: What may stand before a key in an override.
PREFIXES = "+~"


def key_of(override: str) -> str:
    """Return the key that an override sets."""
    return override.lstrip(PREFIXES).partition("=")[0].partition("@")[0]


def current_overrides(overrides: Sequence[str], *, recorded: bool = False) -> list[str]:
    """Replace old names in overrides.

    Args:
        overrides: Overrides as typed or as recorded.
        recorded: Whether a store recorded them. Then old names are read without a notice, and
            options that are gone are left out.

    Returns:
        Overrides with the names of now.

    Raises:
        StudyError: If an option that is gone was typed.
    """
    current: list[str] = []
    for override in overrides:
        key = key_of(override)
        remedy = remedy_for(key)
        if remedy is not None:
            if recorded:
                continue
            raise removed(key, override, remedy)
        if key in RENAMED:
            if not recorded:
                tell_new_name(key)
            override = override.replace(key, RENAMED[key], 1)
        current.append(override)
    return current


def remedy_for(key: str) -> str | None:
    """Return what to do instead of giving a key that is gone; None for any other key."""
    for gone, remedy in REMOVED.items():
        if key == gone or key.startswith(f"{gone}."):
            return remedy
    return None


def removed(key: str, got: str, remedy: str) -> StudyError:
    """Make the error for a key that is gone."""
    return StudyError(f"`{key}` is not an option any more, got {without_password(got)!r}: {remedy}")


@cache
def tell_new_name(key: str) -> None:
    """Print a notice that a key has another name now, once in a process."""
    print_error(f"`{key}` is now `{RENAMED[key]}`", "yellow")
