"""The processes that run trials: a server that has TensorFlow loaded, and the workers that are forked from it."""

import atexit
import json
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import psutil

from digit_study.config.run import Config
from digit_study.data.digits import PRELOADED
from digit_study.data.sources import DataConfig
from digit_study.support.machine import process_name
from digit_study.support.messages import StudyError
from digit_study.tracking.database import use_scratch
from digit_study.trial.local import child

#: Trials that one process runs at most: some MB of each stay with TensorFlow.
MOST_TRIALS = 50
#: What multiprocessing takes for the exit code of a process whose server died.
SERVER_DIED = 255
#: What a worker reports: the kind and the content as :class:`Event` has them; or idle, when it could take a trial.
Message = tuple[str, Any]


class TrialDied(StudyError):
    """The process of a trial ended without a result; the message says by which signal or code.

    ``kind`` is that of its :class:`Event`: world where the machine is to blame, else died.
    """

    def __init__(self, message: str, kind: str = "died") -> None:
        super().__init__(message)
        self.kind = kind


def killed_for_memory() -> int:
    """How many processes the kernel has killed since it started because no memory was left; 0 where it does not tell.

    A kill -9 by a person looks the same to a parent, but is not counted there.
    """
    for listing in (
        Path("/sys/fs/cgroup/memory.events"),
        Path("/proc/vmstat"),
    ):  # of this container, else of all
        with suppress(OSError):
            lines = [line.split() for line in listing.read_text().splitlines()]
            return sum(int(words[1]) for words in lines if words[0] == "oom_kill")
    return 0


def start_server(data: DataConfig | None = None) -> Any:
    """Start the server that imports TensorFlow, in the background; the first trial waits for it.

    Trials on ``data`` have them from there; they need not be the only ones.
    """
    use_scratch()
    if data is not None:
        os.environ[PRELOADED] = json.dumps(asdict(data))
    context = multiprocessing.get_context("forkserver")
    # Python 3.11 starts the server without this process's sys.path: in a bare clone it would preload nothing
    source, paths = (
        str(Path(__file__).parents[3]),
        os.environ.get("PYTHONPATH", "").split(os.pathsep),
    )
    if source not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, paths)])
    context.set_forkserver_preload(["digit_study.trial.local.preload"])
    # a Ctrl-C in the middle of its imports would end the server with a traceback: it is born with SIGINT blocked, which
    # its preload undoes; here one that comes meanwhile is delayed. The tracker's start unblocks it, so comes first
    # a closed terminal's SIGHUP ends neither: the tracker keeps it blocked, the preload ignores it
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return context


@atexit.register
def _stop_server() -> None:
    """Else one that is still importing outlives this process by seconds."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any("multiprocessing.forkserver" in word for word in process.cmdline()):
                process.kill()


class Worker:
    """A process that runs one trial after another, this one first; raises TrialDied if it cannot be started.

    ``target(config, run_id, send, ask)`` is called there, and what it returns is the content of ``done``:
    ``send(kind, content)`` reports, ``ask(number, record)`` reports an epoch and raises Pruned if that is the answer.
    What TensorFlow finds out in its first trial, half a second long, it knows in the next.
    """

    def __init__(self, target: Callable[..., Any], config: Config, run_id: str) -> None:
        number, path = tempfile.mkstemp(prefix="result-")
        os.close(number)
        self.outcome = Path(path)
        for _ in range(3):  # a server that was killed meanwhile is started again
            context = start_server()
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=child.serve, args=(theirs, target, self.outcome))
            try:
                self.process.start()
                break
            except (EOFError, OSError):
                self.connection.close()
                time.sleep(0.1)  # while it dies, multiprocessing takes it for alive
            finally:
                theirs.close()
        else:
            self.outcome.unlink()
            raise TrialDied(
                "the trial's process could not be started: the server it is forked from was killed",
                "world",
            )
        self.threads, self.trials = config.training.threads, 0
        self.handle: psutil.Process | None = None
        self.name: str | None = None
        with suppress(psutil.NoSuchProcess):  # dead already, as the next message says
            self.handle = psutil.Process(self.process.pid)
            self.name = process_name(self.process.pid)
        self.take(config, run_id)

    def take(self, config: Config, run_id: str) -> bool:
        """Begin a trial; False if it cannot be here: this has died, or is too old, or TensorFlow has other threads."""
        self.run_id, self.started, self.killed_before = (
            run_id,
            time.monotonic(),
            killed_for_memory(),
        )
        self.trials += 1
        if config.training.threads != self.threads or self.trials > MOST_TRIALS:
            return False
        try:
            self.connection.send((config, run_id))
        except OSError:
            return False
        return True

    def waitables(self) -> list[Any]:
        """What :func:`multiprocessing.connection.wait` wakes up on when there is news."""
        # the sentinel of a server that died says so for ever; its trials live on, and their own end is the pipe's
        server_died = self.process.exitcode == SERVER_DIED
        return [self.connection] if server_died else [self.connection, self.process.sentinel]

    def receive(self) -> Message | None:
        """The next message, None if there is none yet; raises TrialDied if the process left nothing more to read."""
        try:
            if self.connection.poll():
                kind, content = self.connection.recv()
                return kind, pickle.loads(self.outcome.read_bytes()) if kind == "done" else content
        except (EOFError, OSError):
            has_ended = True  # a pipe at its end has something to read for ever
            self._wait(child.GRACE_S)
        else:
            has_ended = False
        if self._is_alive():
            return None
        code, kind = self.process.exitcode, "died"
        with suppress(EOFError, OSError):
            if not has_ended and self.connection.poll() and code in (0, SERVER_DIED):
                return None  # its last words have come since
        if code == SERVER_DIED:
            how, kind = (
                "ended without a result, after the server that it was forked from was killed",
                "world",
            )
        elif code == -signal.SIGKILL and killed_for_memory() > self.killed_before:
            how, kind = "was killed by the kernel, for no memory was left", "world"
        elif code is not None and code < 0:
            hint = " (out of memory, or somebody's kill -9)" if -code == signal.SIGKILL else ""
            how = f"was killed by {signal.Signals(-code).name}{hint}"
        else:
            how = f"ended with exit code {code} and no result"
        raise TrialDied(f"the trial's process {how}", kind)

    def answer(self, go_on: bool) -> None:
        """Reply to an epoch: go on, or stop there."""
        with suppress(OSError):  # it died meanwhile; receive() will say so
            self.connection.send(go_on)

    def send_signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the process, if it lives: by default one that asks its trial to end itself as KILLED."""
        if self._is_alive() and self.handle is not None:
            with suppress(psutil.NoSuchProcess):
                self.handle.send_signal(number)

    def stop(self, grace: float = child.GRACE_S) -> None:
        """Ask the process to end, kill it if it does not within ``grace`` seconds, and wait for it."""
        for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, child.GRACE_S)):
            self.send_signal(number)
            self._wait(seconds)
        self.connection.close()
        self.outcome.unlink(missing_ok=True)

    def _is_alive(self) -> bool:
        if self.process.exitcode != SERVER_DIED:
            return bool(self.process.is_alive())
        with suppress(
            psutil.NoSuchProcess
        ):  # multiprocessing knows no more of it than that its server is gone
            handle = self.handle
            return (
                handle is not None
                and handle.is_running()
                and handle.status() != psutil.STATUS_ZOMBIE
            )
        return False

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.process.join(seconds)
        while self._is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
