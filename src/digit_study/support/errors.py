"""The error that a person is meant to read, and which errors come from the infrastructure."""

import errno
from collections.abc import Iterator

#: How a line begins that SQLAlchemy puts before the description of what happened.
AUTOFLUSH_NOTE = "(raised as a result of Query-invoked autoflush"
#: Numbers of errors that come from the folder or the disk that is written to.
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
#: Numbers of errors that come from the machine: memory, a failing disk, too many open files.
EXHAUSTED = (errno.ENOMEM, errno.EIO, errno.EMFILE, errno.ENFILE)
#: Texts of libraries that do not pass the number on: h5py, TensorFlow, sqlite, SQLAlchemy and
#: PostgreSQL.
INFRASTRUCTURE_TEXTS = (
    "no space left on device",
    "disk is full",
    "disk quota exceeded",
    "disk i/o error",
    "readonly database",
    "read-only file system",
    "unable to open database file",
    "database is locked",
    "cannot allocate memory",
    "server closed the connection",
    "connection refused",
    "terminating connection",
    "could not connect",
)


class StudyError(Exception):
    """A mistake or a fault that a person can fix.

    Entry points print the message alone, without a traceback, and exit with 1. It states the
    rule, the value that broke it and the remedy, in that order.
    """


def first_line(error: BaseException, limit: int = 300) -> str:
    """Return the first line of an exception's text.

    Args:
        error: The exception.
        limit: Longest answer, in characters.
    """
    lines = str(error).strip().split("\n")
    for line in lines:
        if not line.startswith(AUTOFLUSH_NOTE):
            return line[:limit]
    return ""


def is_infrastructure_error(error: BaseException) -> bool:
    """Return whether an error comes from the infrastructure, not from the program or the trial.

    The infrastructure is the disk, the memory, the database and the tracking server. The errors
    that ``error`` was raised from count too.
    """
    return any(_is_infrastructure_error(link) for link in _chain(error))


def find_unwritable(error: BaseException) -> OSError | None:
    """Return the error of a path that cannot be written, from the chain of an error.

    Args:
        error: The error, which may have been raised from others.

    Returns:
        The first OSError whose number is in :data:`UNWRITABLE`, or None.
    """
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in UNWRITABLE:
            return link
    return None


def _is_infrastructure_error(error: BaseException) -> bool:
    if not isinstance(error, Exception):
        return False
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno in (*UNWRITABLE, *EXHAUSTED):
        return True
    text = str(error).lower()
    return any(known in text for known in INFRASTRUCTURE_TEXTS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that it was raised from, the error first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
