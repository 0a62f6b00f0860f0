"""Signals that end a command, as one exception: what is open is closed properly, then it exits.

SIGHUP (a terminal was closed, an ssh connection lost) ends a command as SIGTERM and Ctrl-C do.
"""

import gc
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from types import FrameType
from typing import Any

from digit_study.support.console import print_error, protect_standard_streams
from digit_study.support.errors import (
    StudyError,
    find_unwritable,
    first_line,
    is_infrastructure_error,
)

#: Signals that ask a process to end.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: What a signal leaves behind of a command that trains.
ENDED_RUN = "a run that had begun is ended as KILLED and keeps what was measured"
#: Signals that arrived inside :func:`interruptible`. A process has one set of signal handlers, so
#: that this state belongs to the module.
_received: list[int] = []
#: Signals that wait for the end of a block of :func:`deferred_signals`, by block.
_deferred: list[list[int]] = []

Handler = Callable[[int, FrameType | None], None]


class Interrupted(BaseException):
    """A signal asked this process to end.

    It is no Exception, so that no handler of errors stops it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def raise_if_interrupted() -> None:
    """Raise :class:`Interrupted` if a signal has arrived that did not surface yet.

    Either it was deferred, or its exception was lost, as it is in a finaliser.
    """
    for number in chain(_received, *_deferred):
        raise Interrupted(number)


def is_stopping() -> bool:
    """Return whether a signal has arrived, deferred or not: nothing is waited for any longer."""
    return bool(_received) or any(_deferred)


@contextmanager
def signals_surface() -> Iterator[None]:
    """Raise :class:`Interrupted` if a signal came in the block.

    Imports turn its exception into an ImportError, or swallow it.
    """
    try:
        yield
    finally:
        raise_if_interrupted()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` on the first signal of :data:`STOPPING` that comes in the block.

    A signal that this process ignores stays ignored: ``nohup`` starts it with SIGHUP ignored.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        _received.append(number)
        # A second signal would cut the clean-up short. With SIG_IGN instead of a function, Python
        # would complain of a signal that is on its way.
        for stopping in handled:
            signal.signal(stopping, lambda number, frame: None)
        raise Interrupted(number)

    handled = _handled_signals()
    previous_hook = sys.unraisablehook
    sys.unraisablehook = _without_interruptions(previous_hook)
    previous = _set_handlers(handled, interrupt)
    try:
        yield
        raise_if_interrupted()
    except Exception:  # it may be the consequence of a signal
        raise_if_interrupted()
        raise
    finally:
        _received.clear()
        _restore_handlers(previous)
        sys.unraisablehook = previous_hook


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer signals to the end of a block that must not be left half done.

    Yields:
        A function that returns whether a signal is pending.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pending: list[int] = []
    _deferred.append(pending)
    previous = _set_handlers(_handled_signals(), lambda number, frame: pending.append(number))
    try:
        yield lambda: bool(pending)
    finally:
        _deferred.pop()
        _restore_handlers(previous)
        if pending:
            signal.raise_signal(pending[0])


def _handled_signals() -> list[signal.Signals]:
    """Return the signals to handle: SIGHUP only where it is not ignored."""
    handled = []
    for number in STOPPING:
        is_ignored = signal.getsignal(number) == signal.SIG_IGN
        if number != signal.SIGHUP or not is_ignored:
            handled.append(number)
    return handled


def _set_handlers(numbers: list[signal.Signals], handler: Handler) -> dict[signal.Signals, Any]:
    """Set the handler of several signals, and return those that they had."""
    return {number: signal.signal(number, handler) for number in numbers}


def _restore_handlers(previous: dict[signal.Signals, Any]) -> None:
    for number, handler in previous.items():
        signal.signal(number, handler)


def _without_interruptions(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Return a hook for exceptions that cannot be raised, which leaves out :class:`Interrupted`.

    No exception comes out of a finaliser, nor out of some native code, which makes a SystemError of
    it. Python would print it; what was received is raised later.
    """

    def report(lost: Any) -> None:
        cause = getattr(lost.exc_value, "__cause__", None)
        if issubclass(lost.exc_type, Interrupted) or isinstance(cause, Interrupted):
            return
        hook(lost)

    return report


def collect_rarely() -> None:
    """Collect garbage rarely: to go through all imports takes a third of a command's start."""
    gc.set_threshold(100_000, 20, 20)


@contextmanager
def native_stderr() -> Iterator[None]:
    """Withhold what native code writes to standard error, and show it only if the block fails.

    TensorFlow writes several lines when it is imported.
    """
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except Exception:
            buffer.seek(0)
            with suppress(OSError):  # nobody reads it
                os.write(original, buffer.read())
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)


@contextmanager
def readable_errors(at_signal: str = ENDED_RUN) -> Iterator[None]:
    """Print what a person can fix as one message, and end the command with its exit code.

    It also protects the standard streams, see
    :func:`~digit_study.support.console.protect_standard_streams`.

    Args:
        at_signal: What a signal leaves behind, for the message.

    Raises:
        SystemExit: With 1 after an error that a person can fix, with 128 + n after signal n.
    """
    protect_standard_streams()
    collect_rarely()
    code = 1
    try:
        with interruptible():
            yield
        return
    except Interrupted as interrupted:
        code = interrupted.exit_code
        message = f"stopped by {interrupted}: {at_signal}"
    except Exception as error:
        explanation = _explain(error)
        if explanation is None:
            raise
        message = explanation
    finally:
        gc.freeze()  # else the interpreter goes through all objects once more when it ends
    print_error(message)
    raise SystemExit(code)


def _explain(error: Exception) -> str | None:
    """Return what a person is to read of an error; None for an error of the program."""
    if isinstance(error, StudyError):
        return str(error)
    unwritable = find_unwritable(error)
    if unwritable is not None:
        found = f"but {first_line(unwritable)}"
        if unwritable.filename:
            found = f"got '{unwritable.filename}': {unwritable.strerror}"
        return f"results must be written to a place that takes them, {found}"
    if _is_of_mlflow(error):
        return (
            f"the tracking store must answer, but it said: {first_line(error)}; make it answer, "
            "then run the same command again. What was measured and not sent is kept in "
            "mlruns/.outbox"
        )
    if is_infrastructure_error(error):
        return (
            f"disk, memory and stores must work, but {first_line(error)}; mend that, then run the "
            "same command again. What was measured is kept"
        )
    return None


def _is_of_mlflow(error: Exception) -> bool:
    """Return whether MLflow raised an error; it takes a second to import, and may not be there."""
    exceptions = sys.modules.get("mlflow.exceptions")
    return exceptions is not None and isinstance(error, exceptions.MlflowException)
