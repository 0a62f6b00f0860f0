"""Faults of the world: a full disk, no memory, a store that is gone. No trial is to blame for them."""

import errno
from collections.abc import Iterator

#: Errors for which the place that is written to is to blame, not the program; and the machine.
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
EXHAUSTED = (errno.ENOMEM, errno.EIO, errno.EMFILE, errno.ENFILE)
#: What libraries say that keep the number to themselves: h5py, TensorFlow, sqlite, SQLAlchemy around it, PostgreSQL.
TEXTS = (
    "no space left on device", "disk is full", "disk quota exceeded", "disk i/o error", "readonly database",
    "read-only file system", "unable to open database file", "database is locked", "cannot allocate memory",
    "server closed the connection", "connection refused", "terminating connection", "could not connect",
)  # fmt: skip


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the error first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def of_world(error: BaseException) -> bool:
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
