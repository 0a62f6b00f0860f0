"""A worker as its supervisor sees it: a process that runs trial after trial."""

import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from digit_study.trial.events import Decision, FailureCause, Finished
from digit_study.trial.local import child
from digit_study.trial.local.child import GRACE_S, Message, ResultWritten, Target
from digit_study.trial.local.process import (
    SERVER_DIED,
    ForkedProcess,
    TrialDied,
    count_memory_kills,
)
from digit_study.trial.local.server import StartServer
from digit_study.trial.protocol import TrialRequest

#: Trials that a process runs at most: some MB of each stay with TensorFlow.
MAX_TRIALS = 50
#: How often a start is tried while the server is being killed.
START_ATTEMPTS = 3
#: Seconds between two tries: multiprocessing takes a dying server for alive.
START_PAUSE_S = 0.1


class Worker:
    """A process that runs trials with the same number of threads.

    TensorFlow spends half a second more on the first of them than on any other. The process and
    the trial that it runs at the moment are described together, which takes many attributes.
    """

    def __init__(
        self,
        target: Target,
        request: TrialRequest,
        *,
        start_server: StartServer,
        max_trials: int = MAX_TRIALS,
        memory_kills: Callable[[], int] = count_memory_kills,
    ) -> None:
        """Start the process and its first trial.

        Args:
            target: What the process calls for every trial.
            request: The first trial.
            start_server: Starts the server to fork from, if it does not run.
            max_trials: Trials that the process runs at most.
            memory_kills: Returns how many processes the kernel has killed for lack of memory.

        Raises:
            TrialDied: If the process cannot be started.
        """
        number, path = tempfile.mkstemp(prefix="result-")
        os.close(number)
        self.result_file = Path(path)
        self.connection, self.process = self._fork(target, start_server)
        self._threads = request.config.training.threads
        self._max_trials = max_trials
        self._memory_kills = memory_kills
        self._trials = 0
        #: When the trial was paused, by the monotonic clock; None while it runs.
        self._paused_at: float | None = None
        self.take(request)

    def _fork(self, target: Target, start_server: StartServer) -> tuple[Connection, ForkedProcess]:
        """Fork the process; a server that was killed meanwhile is started again."""
        for _ in range(START_ATTEMPTS):
            context = start_server()
            ours, theirs = context.Pipe()
            arguments = (theirs, target, self.result_file)
            try:
                return ours, ForkedProcess(context, child.run_trials, arguments)
            except (EOFError, OSError):
                ours.close()
                time.sleep(START_PAUSE_S)
            finally:
                theirs.close()
        self.result_file.unlink()
        raise TrialDied(
            "the trial's process could not be started: the server it is forked from was killed",
            FailureCause.INFRASTRUCTURE,
        )

    @property
    def name(self) -> str | None:
        """Name of the process; None if it died at once."""
        return self.process.name

    @property
    def memory(self) -> float:
        """Resident memory of the process in GiB."""
        return self.process.memory

    @property
    def seconds(self) -> float:
        """Seconds for which the trial has run; while it is paused the clock stands still."""
        if self._paused_at is not None:
            return self._paused_at - self._started
        return time.monotonic() - self._started

    def take(self, request: TrialRequest) -> bool:
        """Start a trial.

        Returns:
            Whether it started. It does not if the process has died or has run enough trials, or if
            TensorFlow has another number of threads there.
        """
        self.run_id = request.run_id
        self._started = time.monotonic()
        self._memory_kills_before = self._memory_kills()
        self._trials += 1
        if request.config.training.threads != self._threads or self._trials > self._max_trials:
            return False
        try:
            self.connection.send(request)
        except OSError:
            return False
        return True

    def waitables(self) -> list[Any]:
        """Return what :func:`multiprocessing.connection.wait` shall wait for."""
        if self.process.has_lost_server:
            # The sentinel is ready for ever then. The process lives on; its pipe says when it ends.
            return [self.connection]
        return [self.connection, self.process.sentinel]

    def receive(self) -> Message | None:
        """Return the next message, None if there is none yet.

        Raises:
            TrialDied: If the process has ended and left nothing more to read.
        """
        pipe_has_ended = False
        try:
            if self.connection.poll():
                return self._with_result(self.connection.recv())
        except (EOFError, OSError):
            pipe_has_ended = True
            self.process.wait(GRACE_S)
        if self.process.is_alive():
            return None
        if not pipe_has_ended and self._has_last_words():
            return None
        was_memory_kill = self._memory_kills() > self._memory_kills_before
        raise self.process.death(was_memory_kill=was_memory_kill)

    def pause(self) -> None:
        """Leave the trial waiting for its answer, and stop its clock."""
        self._paused_at = time.monotonic()

    def answer(self, decision: Decision) -> None:
        """Answer an epoch of the trial."""
        if self._paused_at is not None:
            self._started += time.monotonic() - self._paused_at
            self._paused_at = None
        with suppress(OSError):  # it died meanwhile; receive() will say so
            self.connection.send(decision)

    def send_signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the process; SIGTERM asks its trial to end itself as KILLED."""
        self.process.send_signal(number)

    def stop(self, grace: float = GRACE_S) -> None:
        """End the process and wait for it.

        Args:
            grace: Seconds that it has to end itself before it is killed.
        """
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(grace)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(GRACE_S)
        self.connection.close()
        self.result_file.unlink(missing_ok=True)

    def _with_result(self, message: Message | ResultWritten) -> Message:
        """Return a message with the result that came by file."""
        if isinstance(message, ResultWritten):
            return Finished(message.key, pickle.loads(self.result_file.read_bytes()))
        return message

    def _has_last_words(self) -> bool:
        """Return whether a process that ended well has sent something since it was asked."""
        if self.process.exitcode not in (0, SERVER_DIED):
            return False
        try:
            return self.connection.poll()
        except (EOFError, OSError):
            return False
