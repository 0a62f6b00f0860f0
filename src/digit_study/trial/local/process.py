"""A process that was forked from the server: whether it lives, and of what it died."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil

from digit_study.support.errors import StudyError
from digit_study.support.processes import process_name
from digit_study.trial.events import FailureCause

#: What multiprocessing takes for the exit code of a process whose server died.
SERVER_DIED = 255
#: Where the kernel counts processes that it killed for lack of memory: of this container, else of
#: the whole machine.
MEMORY_KILL_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


class TrialDied(StudyError):
    """The process of a trial ended without a result; the message says how."""

    def __init__(self, message: str, cause: FailureCause = FailureCause.PROCESS) -> None:
        super().__init__(message)
        self.cause = cause


def count_memory_kills() -> int:
    """Return how many processes the kernel has killed since it started for lack of memory.

    It is 0 where the kernel does not say. To a parent a person's kill -9 looks the same, but that
    is not counted here.
    """
    for counters in MEMORY_KILL_COUNTERS:
        with suppress(OSError):
            lines = [line.split() for line in counters.read_text().splitlines()]
            return sum(int(words[1]) for words in lines if words[0] == "oom_kill")
    return 0


class ForkedProcess:
    """A process that the server forked, which may die before it."""

    def __init__(
        self, context: ForkServerContext, target: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        """Fork a process that calls ``target(*arguments)``.

        Raises:
            EOFError, OSError: If the server was killed.
        """
        self._process = context.Process(target=target, args=arguments)
        self._process.start()
        self._handle: psutil.Process | None = None
        self.name: str | None = None
        with suppress(psutil.NoSuchProcess):  # it is dead already, as its next message says
            self._handle = psutil.Process(self._process.pid)
            self.name = process_name(self._process.pid)

    @property
    def exitcode(self) -> int | None:
        """Exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    @property
    def has_lost_server(self) -> bool:
        """Return whether the server died, so that multiprocessing knows no more of this process."""
        return self._process.exitcode == SERVER_DIED

    @property
    def sentinel(self) -> int:
        """File descriptor that becomes ready when the process, or its server, ends."""
        return self._process.sentinel

    @property
    def memory(self) -> float:
        """Resident memory in GiB; 0 of a process that has ended."""
        if self._handle is None:
            return 0.0
        try:
            return float(self._handle.memory_info().rss) / 2**30
        except psutil.NoSuchProcess:
            return 0.0

    def is_alive(self) -> bool:
        """Return whether the process runs, also if its server does not."""
        if not self.has_lost_server:
            return self._process.is_alive()
        if self._handle is None:
            return False
        try:
            return self._handle.is_running() and self._handle.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it runs."""
        if self._handle is not None and self.is_alive():
            with suppress(psutil.NoSuchProcess):
                self._handle.send_signal(number)

    def wait(self, seconds: float) -> None:
        """Wait until the process has ended, at most so many seconds."""
        deadline = time.monotonic() + seconds
        self._process.join(seconds)
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def death(self, *, was_memory_kill: bool) -> TrialDied:
        """Return what to raise about a process that ended without a result.

        Args:
            was_memory_kill: Whether the kernel has killed a process for lack of memory meanwhile.
        """
        code = self.exitcode
        if self.has_lost_server:
            return TrialDied(
                "the trial's process ended without a result, after the server that it was forked "
                "from was killed",
                FailureCause.INFRASTRUCTURE,
            )
        if code == -signal.SIGKILL and was_memory_kill:
            return TrialDied(
                "the trial's process was killed by the kernel, for no memory was left",
                FailureCause.INFRASTRUCTURE,
            )
        if code == -signal.SIGKILL:
            hint = "out of memory, or somebody's kill -9"
            return TrialDied(f"the trial's process was killed by SIGKILL ({hint})")
        if code is not None and code < 0:
            return TrialDied(f"the trial's process was killed by {signal.Signals(-code).name}")
        return TrialDied(f"the trial's process ended with exit code {code} and no result")
