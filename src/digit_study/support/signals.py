"""SIGINT and SIGTERM as one exception, so that whatever is open is closed properly, and how a command ends."""

import gc
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import FrameType
from typing import Any

from digit_study.support.console import print_error
from digit_study.support.messages import StudyError, first_line, is_infrastructure_fault, unwritable

STOPPING = (signal.SIGINT, signal.SIGTERM)
#: Signals that arrived inside :func:`interruptible`.
_received: list[int] = []
#: Those that wait for the end of a block of :func:`deferred_signals`, by block.
_deferred: list[list[int]] = []


class Interrupted(BaseException):
    """A signal asked this process to end. Not an Exception, so that no handler of errors swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def raise_if_interrupted() -> None:
    """Raise :class:`Interrupted` where a deferred signal may do so, or the first one was lost, as in a finaliser."""
    for number in chain(_received, *_deferred):
        raise Interrupted(number)


def is_stopping() -> bool:
    """Whether a signal has come, deferred or not: what waits for something should then wait no longer."""
    return bool(_received) or any(_deferred)


@contextmanager
def signals_surface() -> Iterator[None]:
    """Raise :class:`Interrupted` if a signal came in the block: imports turn it into an ImportError, or nothing."""
    try:
        yield
    finally:
        raise_if_interrupted()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread on the first SIGINT or SIGTERM in the block, at its end at last."""

    def interrupt(number: int, _: FrameType | None) -> None:
        _received.append(number)
        # a second one would cut the clean-up short; with SIG_IGN Python would complain of one that is on its way
        for one in STOPPING:
            signal.signal(one, lambda number, frame: None)
        raise Interrupted(number)

    told = sys.unraisablehook

    def tell(lost: Any) -> None:
        # out of a finaliser no exception comes, nor out of some native code, which makes a SystemError of it: Python
        # would print it, and what is received is raised later
        cause = getattr(lost.exc_value, "__cause__", None)
        if not (issubclass(lost.exc_type, Interrupted) or isinstance(cause, Interrupted)):
            told(lost)

    sys.unraisablehook = tell
    previous = {one: signal.signal(one, interrupt) for one in STOPPING}
    try:
        yield
        raise_if_interrupted()
    except Exception:  # it may be the consequence of a signal
        raise_if_interrupted()
        raise
    finally:
        _received.clear()
        for one, handler in previous.items():
            signal.signal(one, handler)
        sys.unraisablehook = told


@contextmanager
def deferred_signals() -> Iterator[Callable[[], bool]]:
    """Defer SIGINT and SIGTERM to the end of what must be whole; what it yields tells whether one is pending."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pending: list[int] = []
    _deferred.append(pending)
    previous = {
        one: signal.signal(one, lambda number, _: pending.append(number)) for one in STOPPING
    }
    try:
        yield lambda: bool(pending)
    finally:
        _deferred.pop()
        for one, handler in previous.items():
            signal.signal(one, handler)
        if pending:
            signal.raise_signal(pending[0])


def collect_rarely() -> None:
    """Look for garbage rarely: to go through what imports make, again and again, takes a third of a command's start."""
    gc.set_threshold(100_000, 20, 20)


@contextmanager
def native_stderr() -> Iterator[None]:
    """Withhold what native code (TensorFlow, on import) writes to standard error; show it if the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except Exception:
            buffer.seek(0)
            os.write(kept, buffer.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print what a person can fix as one message and exit with 1; exit with 128 + n after signal n."""
    collect_rarely()
    try:
        with interruptible():
            yield
        return
    except StudyError as error:
        code, message = 1, str(error)
    except Interrupted as interrupted:
        code = interrupted.exit_code
        message = f"stopped by {interrupted}: what was running is ended as KILLED, what was measured is kept"
    except Exception as error:
        mlflow = sys.modules.get(
            "mlflow.exceptions"
        )  # it takes a second to import, and may not be there yet
        if (fault := unwritable(error)) is not None:
            place = (
                f"got '{fault.filename}': {fault.strerror}"
                if fault.filename
                else f"but {first_line(fault)}"
            )
            message = f"results must be written to a place that takes them, {place}"
        elif mlflow is not None and isinstance(error, mlflow.MlflowException):
            message = f"the tracking store must answer, but it said: {first_line(error)}; make it answer, then run the "
            message += (
                "same command again. What was measured and not sent is kept in mlruns/.outbox"
            )
        elif is_infrastructure_fault(error):
            message = f"disk, memory and stores must work, but {first_line(error)}; mend that, then run the same "
            message += "command again. What was measured is kept"
        else:
            raise
        code = 1
    finally:
        gc.freeze()  # else the interpreter goes through all objects once more when it ends
    print_error(message)
    raise SystemExit(code)
