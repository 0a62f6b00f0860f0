"""The error a person is meant to read, its wording (suggestions, short names, hidden passwords).

And which errors are faults of the world: a full disk, no memory, a store that is gone. No trial is to blame for them.
"""

import errno
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

#: What precedes a password in a URI, and the password. SQLAlchemy's ``URL`` hides it only in URIs that it can parse;
#: a password with ``@``, ``#``, ``/`` or ``[`` in it makes one that it cannot, and must not be shown either.
PASSWORD = re.compile(r"([\w+]+://[^:/@]*:)(.*)@")
#: How a line begins that SQLAlchemy puts before what happened.
UNTOLD = "(raised as a result of Query-invoked autoflush"
#: Errors for which the place that is written to is to blame, not the program; and the machine.
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
EXHAUSTED = (errno.ENOMEM, errno.EIO, errno.EMFILE, errno.ENFILE)
#: What libraries say that keep the number to themselves: h5py, TensorFlow, sqlite, SQLAlchemy around it, PostgreSQL.
TEXTS = (
    "no space left on device", "disk is full", "disk quota exceeded", "disk i/o error", "readonly database",
    "read-only file system", "unable to open database file", "database is locked", "cannot allocate memory",
    "server closed the connection", "connection refused", "terminating connection", "could not connect",
)  # fmt: skip


class StudyError(Exception):
    """A mistake or a fault that a person can fix; entry points print it alone, without a traceback, and exit with 1.

    The message states the rule, the value that broke it and the remedy, in that order.
    """


def nearest(wrong: str, right: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for what of ``right`` is most like ``wrong``, whole or by its last part; or nothing."""
    names = list(right)
    keys = {name.rsplit(".", 1)[-1]: name for name in names} | {name: name for name in names}
    close = get_close_matches(wrong, names, n=1) or get_close_matches(
        wrong.rsplit(".", 1)[-1], keys, n=1
    )
    return f"; did you mean '{keys[close[0]]}'?" if close else ""


def short_names(names: Sequence[str]) -> tuple[list[str], str]:
    """Names without the ``key=value`` words that all share, and those words; as they are if some would become equal."""
    words = [name.split(" ") for name in names]
    shared = (
        [word for word in words[0] if "=" in word and all(word in other for other in words)]
        if words
        else []
    )
    short = [" ".join(word for word in one if word not in shared) for one in words]
    if len(names) < 2 or "" in short or len(set(short)) < len(set(names)):
        return list(names), ""
    return short, " ".join(shared)


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an exception's text, at most ``limit`` characters."""
    lines = [line for line in str(error).strip().split("\n") if not line.startswith(UNTOLD)]
    return (lines or [""])[0][:limit]


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


def listed(values: Mapping[str, Any]) -> str:
    """``{cpu: 4, gpu: 0.25}``: a flat mapping of numbers as a person types it, without zeros."""
    return "{" + ", ".join(f"{key}: {value:g}" for key, value in values.items() if value) + "}"


def raise_violations(sentences: Iterable[str]) -> None:
    """Raise all sentences as one StudyError, or nothing where there are none."""
    if message := "\n".join(sentences):
        raise StudyError(message)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the error first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def is_infrastructure_fault(error: BaseException) -> bool:
    """Whether the machine, or what it stands on, is to blame for an error, or for what that came from."""
    return any(
        isinstance(one, MemoryError)
        or (isinstance(one, OSError) and one.errno in (*UNWRITABLE, *EXHAUSTED))
        or any(text in str(one).lower() for text in TEXTS)
        for one in _chain(error)
        if isinstance(one, Exception)
    )


def unwritable(error: BaseException) -> OSError | None:
    """The error of a place that cannot be written, among what an error came from."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in UNWRITABLE:
            return one
    return None
