"""What a study keeps of the files of ``conf/`` that it began with, where they have changed since.

A study compares trials of one recipe and one space. A newer version of this project may bring
other values in its files; a study that was begun before goes on with those that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from digit_study.config import compose
from digit_study.config.renamed_keys import key_of
from digit_study.config.run_config import Config
from digit_study.config.space_overrides import SPACE
from digit_study.config.study_config import StudyConfig
from digit_study.support.rules import flatten

#: Attribute of a study: it tells studies of the same name apart, which several clones of the
#: project may have.
UID = "uid"
#: Attribute of a study: what makes its trials comparable, values by key. It is set last: a
#: study that has it is complete.
DEFINITION = "definition"
#: Attribute of a study: the overrides of the command that began it.
OVERRIDES = "overrides"
#: What the keys begin with whose values the files of ``conf/`` give.
OF_FILES = ("model.", "training.")
#: Keys of these that are not kept: they depend on the machine, or may change between two commands.
NOT_KEPT = ("training.precision", "training.threads", "training.seed")
#: A config group whose options may set any key.
ANY_KEY = "experiment"


def words_of_begin(attributes: Mapping[str, Any]) -> list[str]:
    """Return the overrides by which a study would begin as it did, whatever the files say now.

    Args:
        attributes: Attributes of the study.
    """
    first_words = list(attributes.get(OVERRIDES, []))
    return [*first_words, *kept_overrides(attributes, first_words)]


def kept_overrides(attributes: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Return what has to be added to a command line, so that a study goes on as it began.

    A key that only one of the two command lines sets, this one or that which began the study, is
    left as typed.

    Args:
        attributes: Attributes of the study.
        overrides: The command line that goes on with the study.

    Returns:
        Overrides; none where the files give the same values as then, and none of a study whose
        creator was killed before it said what it is.
    """
    if DEFINITION not in attributes:
        return []
    began_with: Mapping[str, Any] = attributes[DEFINITION]
    first_words = attributes.get(OVERRIDES, [])
    # a symmetric difference: what was typed then and is not now is a change of the user's, too
    changed_words = sorted(set(first_words) ^ set(overrides))
    typed_keys = {key_of(word).replace("/", ".") for word in changed_words}
    if ANY_KEY in typed_keys:
        return []
    study: StudyConfig = compose.compose_config(list(overrides), "study", recorded=True)
    kept = _kept_values(began_with, study)
    changes_space = compose.without_space(changed_words) != changed_words
    if _space_of(began_with) != study.search.space and not changes_space:
        kept[SPACE] = _space_of(began_with)
    return [
        f"{key}={compose.typed_value(value)}"
        for key, value in kept.items()
        if not _is_typed(key, typed_keys)
    ]


def _kept_values(began_with: Mapping[str, Any], study: StudyConfig) -> dict[str, Any]:
    """Return the values of a run's recipe and network that differ from those of the beginning."""
    # a key that did not exist then had what is its default now
    defaults = flatten(Config())
    kept: dict[str, Any] = {}
    for key, value in flatten(study.run).items():
        if not key.startswith(OF_FILES) or key in NOT_KEPT:
            continue
        first_value = began_with.get(key, defaults[key])
        if first_value != value:
            kept[key] = first_value
    return kept


def _space_of(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the search space of a study's definition, entries by key."""
    prefix = f"{SPACE}."
    return {
        key.removeprefix(prefix): entry
        for key, entry in definition.items()
        if key.startswith(prefix)
    }


def _is_typed(key: str, typed_keys: set[str]) -> bool:
    """Return whether a command line sets a key: itself, a group that holds it, or a part of it."""
    return any(
        key == typed or key.startswith(f"{typed}.") or typed.startswith(f"{key}.")
        for typed in typed_keys
    )
