"""Words for messages: lists of what is allowed, and the nearest right name to a wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def one_of(allowed: Iterable[str]) -> str:
    """``one of a, b, c``."""
    return "one of " + ", ".join(allowed)


def nearest(wrong: str, right: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the name in ``right`` nearest to ``wrong``, or nothing where none is near.

    A dotted key is compared whole and by its last part, so that ``filterz`` finds ``model.filters``.
    """
    names = list(right)
    close = get_close_matches(wrong, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    last_parts = {name.rsplit(".", 1)[-1]: name for name in names}
    close = get_close_matches(wrong.rsplit(".", 1)[-1], last_parts, n=1, cutoff=0.6)
    return f"; did you mean '{last_parts[close[0]]}'?" if close else ""


def told_apart(names: Sequence[str]) -> tuple[list[str], str]:
    """Names like ``3: filters=16 pooling=max`` without the ``key=value`` words that all of them share, and those words.

    Names that would not differ, or not be there, without them are left as they are.
    """
    words = [name.split(" ") for name in names]
    shared = [word for word in words[0] if "=" in word and all(word in other for other in words)] if words else []
    short = [" ".join(word for word in one if word not in shared) for one in words]
    if len(names) < 2 or "" in short or len(set(short)) < len(set(names)):
        return list(names), ""
    return short, " ".join(shared)
