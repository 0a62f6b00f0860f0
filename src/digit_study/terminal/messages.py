"""The error a person is meant to read, and the wording of messages: suggestions, short names, hidden passwords."""

import re
import urllib.parse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

#: What precedes a password in a URI, and the password. SQLAlchemy's ``URL`` hides it only in URIs that it can parse;
#: a password with ``@``, ``#``, ``/`` or ``[`` in it makes one that it cannot, and must not be shown either.
PASSWORD = re.compile(r"([\w+]+://[^:/@]*:)(.*)@")


class StudyError(Exception):
    """A mistake or a fault that a person can fix; entry points print it alone, without a traceback, and exit with 1.

    The message states the rule, the value that broke it and the remedy, in that order.
    """


def nearest(wrong: str, right: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for what of ``right`` is most like ``wrong``, whole or by its last part; or nothing."""
    names = list(right)
    keys = {name.rsplit(".", 1)[-1]: name for name in names} | {name: name for name in names}
    close = get_close_matches(wrong, names, n=1) or get_close_matches(wrong.rsplit(".", 1)[-1], keys, n=1)
    return f"; did you mean '{keys[close[0]]}'?" if close else ""


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Names without the ``key=value`` words that all share, and those words; as they are if some would become equal."""
    words = [name.split(" ") for name in names]
    shared = [word for word in words[0] if "=" in word and all(word in other for other in words)] if words else []
    short = [" ".join(word for word in one if word not in shared) for one in words]
    if len(names) < 2 or "" in short or len(set(short)) < len(set(names)):
        return list(names), ""
    return short, " ".join(shared)


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an exception's text, at most ``limit`` characters."""
    return str(error).strip().split("\n")[0][:limit]


def without_password(uri: str) -> str:
    """A URI, or a line that contains one, as it may be shown and logged."""
    hidden = PASSWORD.sub(r"\1***@", uri)
    return re.sub(r"(?i)([?&](?:password|passwd|pwd|token|secret)=)[^&]*", r"\1***", hidden)


def without_secrets(message: str, uri: str) -> str:
    """The first line of a message, with ``uri`` and the password in it hidden."""
    text = message.replace(uri, without_password(uri)).strip().split("\n")[0]
    found = PASSWORD.match(uri)
    for secret in {found[2], urllib.parse.unquote(found[2])} - {""} if found else set():
        text = text.replace(secret, "***")
    return text
