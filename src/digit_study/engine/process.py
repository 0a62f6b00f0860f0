"""A fresh process per trial, forked from a server that has TensorFlow loaded. A crash or a kill costs one trial."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import psutil

from digit_study.config.run import Config
from digit_study.engine import child
from digit_study.engine.child import GRACE_S
from digit_study.terminal.errors import StudyError

#: How often a trial's process is tried to be started.
STARTS = 3
#: What multiprocessing takes for the exit code of a process whose server died.
SERVER_DIED = 255


@dataclass(frozen=True)
class Message:
    """What a trial says: ``kind`` is steps, epoch, done or failed."""

    kind: str
    content: Any


class TrialDied(StudyError):
    """The process of a trial ended without a result; the message says by which signal or code."""


def warm_up() -> None:
    """Start the server that imports TensorFlow, in the background; the first trial waits for it."""
    _context()


def _start_server() -> None:
    # a Ctrl-C in the middle of its imports would end the server with a traceback: it is born with SIGINT blocked, which
    # its preload undoes; here one that comes meanwhile is delayed. The tracker's start unblocks it, so comes first
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@atexit.register
def _stop_server() -> None:
    """Else one that is still importing outlives this process by seconds."""
    server: Any = forkserver._forkserver
    if server._forkserver_pid is not None and server._forkserver_alive_fd is not None:
        with suppress(ProcessLookupError):
            os.kill(server._forkserver_pid, signal.SIGKILL)


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    # Python 3.11 starts the server without this process's sys.path: in a bare clone it would preload nothing
    source, paths = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if source not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, paths)])
    context.set_forkserver_preload(["digit_study.engine.preload"])
    _start_server()
    return context


class TrialProcess:
    """One trial in a process of its own.

    Args:
        target: called there as ``target(config, run_id, send, ask)``; what it returns is the content of ``done``.
            ``send(kind, content)`` reports, ``ask(content)`` reports an epoch and raises :class:`Pruned` on the answer.
        config: of the trial.
        run_id: of the MLflow run that was created for it, so that it can be closed whatever happens.
    """

    def __init__(self, target: Callable[..., Any], config: Config, run_id: str) -> None:
        number, name = tempfile.mkstemp(prefix="digit-study-")
        os.close(number)
        self.outcome = Path(name)
        for _ in range(STARTS):  # a server that was killed meanwhile is started again
            context = _context()
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=child.run, args=(theirs, target, config, run_id, self.outcome))
            try:
                self.process.start()
                break
            except (EOFError, OSError):
                self.connection.close()
            finally:
                theirs.close()
        else:
            self.outcome.unlink()
            raise TrialDied("the trial's process could not be started: the server it is forked from was killed")
        self.itself = _process(int(self.process.pid))
        self.started = time.monotonic()

    def pid(self) -> int | None:
        """Process id."""
        return int(self.process.pid)

    def waitables(self) -> list[Any]:
        """What :func:`multiprocessing.connection.wait` wakes up on when there is news."""
        # the sentinel of a server that died says so for ever; its trials live on, and their own end is the pipe's
        return [self.connection] if self._server_died() else [self.connection, self.process.sentinel]

    def receive(self) -> Message | None:
        """The next message; None if there is none yet.

        Raises:
            TrialDied: the process is gone and has left nothing more to read.
        """
        try:
            if self.connection.poll():
                return self._message(*self.connection.recv())
        except (EOFError, OSError):
            self._wait(GRACE_S)
        if not self._is_alive() and not self._has_more():
            raise TrialDied(f"the trial's process {_how(self.process.exitcode)}")
        return None

    def _message(self, kind: str, content: Any) -> Message:
        return Message(kind, pickle.loads(self.outcome.read_bytes()) if kind == "done" else content)

    def _has_more(self) -> bool:
        try:
            return bool(self.connection.poll()) and self.process.exitcode in (0, SERVER_DIED)
        except (EOFError, OSError):
            return False

    def _server_died(self) -> bool:
        return bool(self.process.exitcode == SERVER_DIED)

    def _is_alive(self) -> bool:
        return bool(self.process.is_alive()) or (self._server_died() and _runs(self.itself))

    def _wait(self, seconds: float) -> None:
        self.process.join(seconds)
        deadline = time.monotonic() + seconds
        while self._is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)

    def answer(self, go_on: bool) -> None:
        """Reply to an epoch: go on, or stop there."""
        with suppress(OSError):  # it died meanwhile; receive() will say so
            self.connection.send(go_on)

    def ask_to_stop(self) -> None:
        """Ask the trial to end itself as KILLED."""
        self._signal(signal.SIGTERM)

    def stop(self, grace: float = GRACE_S) -> None:
        """Ask the trial to end, kill it if it does not within ``grace`` seconds, and wait for it."""
        self.ask_to_stop()
        self._wait(grace)
        self._signal(signal.SIGKILL)
        self._wait(GRACE_S)
        self.connection.close()
        self.outcome.unlink(missing_ok=True)

    def _signal(self, number: int) -> None:
        if self._is_alive() and self.itself is not None:
            with suppress(psutil.NoSuchProcess):
                self.itself.send_signal(number)


def run_to_end(trial: TrialProcess, on_message: Callable[[Message], None]) -> Any:
    """Follow one trial to its result.

    Raises:
        TrialDied: its process died.
        StudyError: it failed and said why.
    """
    try:
        while True:
            message = trial.receive()
            if message is None:
                multiprocessing.connection.wait(trial.waitables())
            elif message.kind == "done":
                return message.content
            elif message.kind == "failed":
                raise StudyError(message.content)
            else:
                on_message(message)
                if message.kind == "epoch":
                    trial.answer(True)
    finally:
        trial.stop()


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _runs(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _how(exit_code: int | None) -> str:
    if exit_code == SERVER_DIED:
        return "ended without a result, after the server that it was forked from was killed"
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (out of memory, or somebody's kill -9)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"
    return f"ended with exit code {exit_code} and no result"
