"""Output to a terminal: the console, messages, warnings, and streams that outlast it."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console

#: Width of output that is piped: a table of so many characters is not wrapped.
PIPED_WIDTH = 160
#: Descriptors of standard input, output and error.
STANDARD_DESCRIPTORS = (0, 1, 2)
#: Error numbers of a disk that is full, or of which somebody has used all they may.
FULL = (errno.ENOSPC, errno.EDQUOT)


class _LastingFile(io.FileIO):
    """A file descriptor that drops what nobody can read any more, instead of raising."""

    def write(self, data: Any, /) -> int:
        """Write bytes; once that fails, this and all that follows goes nowhere.

        Args:
            data: The bytes.

        Returns:
            How many bytes were written, or dropped.
        """
        try:
            return super().write(data)
        except OSError as fault:  # a closed pipe, a terminal that is gone, a full disk
            redirect_to_nowhere(self.fileno())
            # standard error cannot tell of itself
            is_output = self.fileno() == STANDARD_DESCRIPTORS[1]
            if is_output and fault.errno in FULL:
                warn(f"the output cannot be written ({fault.strerror}): the rest of it is lost")
            return memoryview(data).nbytes


class _LastingBuffer(io.BufferedWriter):
    """The buffer of a stream that is protected, by which it is recognised."""


def console() -> Console:
    """Return the console of standard output; plain and never wrapped where it is piped."""
    is_terminal = sys.stdout.isatty()
    width = None if is_terminal else PIPED_WIDTH
    return Console(width=width, highlight=False, markup=False, soft_wrap=not is_terminal)


def print_error(message: str, style: str = "red") -> None:
    """Print a message to standard error, in one piece.

    Args:
        message: The message; rich's markup has no meaning in it.
        style: Colour on a terminal, as rich names it.
    """
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(message, style=style)


def warn(message: str) -> None:
    """Print a prominent warning to standard error."""
    print_error(f"WARNING: {message}", "bold yellow")


def protect_standard_streams() -> None:
    """Let no output stop the work: drop what cannot be written, replace what cannot be shown.

    A pipe whose reader has ended, a terminal that was closed, a stream that was closed by ``>&-``
    or lies on a full disk ends the output and nothing else. Characters that the encoding of a
    stream does not have are shown as ``?``.

    Call it before other files are opened: a descriptor that is closed would be given to the next
    file, a database perhaps, and native code would write its messages there.
    """
    for descriptor in STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            redirect_to_nowhere(descriptor)
    sys.stdout = _protected(sys.stdout, STANDARD_DESCRIPTORS[1])
    sys.stderr = _protected(sys.stderr, STANDARD_DESCRIPTORS[2])


def redirect_to_nowhere(descriptor: int) -> None:
    """Let a file descriptor, open or not, write to ``/dev/null``."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == descriptor:  # it was the lowest that was free
        os.set_inheritable(nowhere, True)
        return
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _protected(stream: Any, descriptor: int) -> Any:
    """Return a stream that writes to the same descriptor as a standard stream and never fails.

    A stream that is not the process's own (a test's) is returned as it is.
    """
    if stream is None:  # Python found the descriptor closed when it started
        return _lasting_stream(descriptor, "utf-8", is_line_buffered=True, writes_through=False)
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, _LastingBuffer):
        return stream
    try:
        is_own = stream.fileno() == descriptor
    except OSError:  # it writes to memory
        is_own = False
    if not is_own:
        return stream
    with suppress(OSError):
        stream.flush()
    return _lasting_stream(
        descriptor,
        stream.encoding,
        is_line_buffered=stream.line_buffering,
        writes_through=stream.write_through,
    )


def _lasting_stream(
    descriptor: int, encoding: str, *, is_line_buffered: bool, writes_through: bool
) -> io.TextIOWrapper:
    buffer = _LastingBuffer(_LastingFile(descriptor, "w", closefd=False))
    return io.TextIOWrapper(
        buffer,
        encoding=encoding,
        errors="replace",
        line_buffering=is_line_buffered,
        write_through=writes_through,
    )
