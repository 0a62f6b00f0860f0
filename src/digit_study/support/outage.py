"""The time for which something outside this program does not work: a store, a database, a disk."""

import threading
import time
from collections.abc import Callable


def _ignore(*_: object) -> None:
    """Say nothing."""


class Outage:
    """Outages of one thing; each is announced when it begins and when it ends.

    Whoever uses the thing reports faults and successes, and asks whether to wait any longer.
    Threads may share it.
    """

    def __init__(
        self,
        timeout: float,
        on_begin: Callable[[str], None] = _ignore,
        on_end: Callable[[], None] = _ignore,
        relapse_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Expect no outage yet.

        Args:
            timeout: Minutes for which an outage may last; at least 0.
            on_begin: Called with the reason when an outage begins.
            on_end: Called when an outage ends.
            relapse_s: Seconds. A fault at most so long after the last one continues the outage
                before it, so that something that fails again and again runs into the time-out.
            clock: Returns seconds that only grow.
        """
        self.timeout = timeout
        self._on_begin = on_begin
        self._on_end = on_end
        self._relapse_s = relapse_s
        self._clock = clock
        self._lock = threading.Lock()
        self._reason: str | None = None
        self._began_at = float("-inf")
        self._last_fault_at = float("-inf")

    @property
    def reason(self) -> str | None:
        """Return what is wrong at this moment; None where nothing is."""
        return self._reason

    @property
    def seconds(self) -> float:
        """Seconds since the outage began; 0.0 where there is none."""
        if self._reason is None:
            return 0.0
        return self._clock() - self._began_at

    @property
    def is_too_long(self) -> bool:
        """Return whether an outage lasts, and has lasted for longer than its time-out."""
        return self._reason is not None and self.seconds >= 60 * self.timeout

    def note_fault(self, reason: str) -> None:
        """Record that it does not work.

        Args:
            reason: What is wrong, in one line; the latest counts.
        """
        with self._lock:
            now = self._clock()
            is_new = self._reason is None
            if is_new and now - self._last_fault_at > self._relapse_s:
                self._began_at = now
            self._reason = reason
            self._last_fault_at = now
        if is_new:
            self._on_begin(reason)

    def note_success(self) -> None:
        """Record that it works: an outage, if there was one, is over."""
        with self._lock:
            was_out = self._reason is not None
            self._reason = None
        if was_out:
            self._on_end()
