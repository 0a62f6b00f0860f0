"""SIGINT and SIGTERM as one exception, so that whatever is open is ended truthfully on the way out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked this process to end. Not an Exception, so that no handler of faults swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class Pruned(Exception):
    """A trial was asked to end after an epoch, because others promise more."""


#: Signals that came inside :func:`interruptible`.
_heard: list[int] = []


def insist() -> None:
    """Raise :class:`Interrupted` again where the first one was lost, as in a finaliser that lets nothing out."""
    if _heard:
        raise Interrupted(_heard[0])


@contextmanager
def not_swallowed() -> Iterator[None]:
    """Raise :class:`Interrupted` if a signal came in the block: imports make an ImportError of one, or nothing."""
    try:
        yield
    except Exception:
        insist()
        raise
    insist()


def _raise(number: int, _frame: FrameType | None) -> None:
    _heard.append(number)
    # a second signal while the first one's clean-up runs would cut it short; SIG_IGN would make Python complain of one
    # that is already on its way
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda number, frame: None)
    raise Interrupted(number)


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM wait until the block ends, for what must be done whole or not at all.

    Yields:
        Tells whether one is waiting, so that the block can undo what nobody will go on with.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    waiting: list[int] = []
    previous = {one: signal.signal(one, lambda n, _: waiting.append(n)) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(waiting)
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
        if waiting:
            signal.raise_signal(waiting[0])


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread on the first SIGINT or SIGTERM inside the block."""
    previous = {one: signal.signal(one, _raise) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception:  # that a signal is behind
        insist()
        raise
    finally:
        _heard.clear()
        for one, handler in previous.items():
            signal.signal(one, handler)
