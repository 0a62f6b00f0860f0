"""Names as a person reads them: the one that was probably meant, and short forms for tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class SplitNames:
    """Names of trials, as ``3: filters=16 pooling=max``, with their settings apart."""

    #: What stands before the colon.
    trials: Sequence[str]
    #: The settings that any of them has, in the order of the first that has it.
    keys: Sequence[str]
    #: The settings of each.
    settings: Sequence[Mapping[str, str]]


def split_names(names: Sequence[str]) -> SplitNames | None:
    """Split the names of trials; None if a name has any other form."""
    trials = []
    keys: dict[str, None] = {}
    settings = []
    for name in names:
        trial, colon, rest = name.partition(":")
        words = rest.split()
        if not colon or any("=" not in word for word in words):
            return None
        own = dict(word.split("=", 1) for word in words)
        trials.append(trial)
        settings.append(own)
        keys |= dict.fromkeys(own)
    return SplitNames(trials, list(keys), settings)


def nearest(wrong: str, right: Iterable[str]) -> str:
    """Return the end of a message that suggests the name that was probably meant.

    Args:
        wrong: The name that was given.
        right: The names that exist. They are compared whole and by what follows their last dot.

    Returns:
        ``; did you mean 'x'?``, or nothing where no name is similar.
    """
    names = list(right)
    close = get_close_matches(wrong, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    full_names: dict[str, str] = {}
    for name in names:
        full_names[_last_part(name)] = name
    # a whole name goes before the last part of another
    for name in names:
        full_names[name] = name
    close = get_close_matches(_last_part(wrong), full_names, n=1)
    if close:
        name = full_names[close[0]]
        return f"; did you mean '{name}'?"
    return ""


def _last_part(name: str) -> str:
    """Return what follows the last dot of a name; without a dot the name."""
    _, _, last = name.rpartition(".")
    return last


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Split names into what distinguishes them and what all of them share.

    Args:
        names: Names of words, separated by spaces, some of which are ``key=value``.

    Returns:
        The names without the ``key=value`` words that all share, and those words. The names are
        returned as they are, with nothing shared, if two would become equal or a name empty.
    """
    if len(names) < 2:
        return list(names), ""
    words_of_names = [name.split(" ") for name in names]
    shared = []
    for word in words_of_names[0]:
        is_everywhere = all(word in words for words in words_of_names)
        if "=" in word and is_everywhere:
            shared.append(word)
    short = []
    for words in words_of_names:
        own = [word for word in words if word not in shared]
        short.append(" ".join(own))
    has_equal = len(set(short)) < len(set(names))
    if "" in short or has_equal:
        return list(names), ""
    return short, " ".join(shared)
