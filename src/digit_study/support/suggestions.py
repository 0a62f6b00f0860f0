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
    by_last_part = {name.rsplit(".", 1)[-1]: name for name in names}
    by_last_part |= {name: name for name in names}
    close = get_close_matches(wrong.rsplit(".", 1)[-1], by_last_part, n=1)
    if close:
        return f"; did you mean '{by_last_part[close[0]]}'?"
    return ""


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Split names into what distinguishes them and what all of them share.

    Args:
        names: Names of words, separated by spaces, some of which are ``key=value``.

    Returns:
        The names without the ``key=value`` words that all share, and those words. The names are
        returned as they are, with nothing shared, if two would become equal or a name empty.
    """
    unchanged = list(names), ""
    if len(names) < 2:
        return unchanged
    words = [name.split(" ") for name in names]
    shared = []
    for word in words[0]:
        if "=" in word and all(word in other for other in words):
            shared.append(word)
    short = []
    for own in words:
        short.append(" ".join(word for word in own if word not in shared))
    if "" in short or len(set(short)) < len(set(names)):
        return unchanged
    return short, " ".join(shared)
