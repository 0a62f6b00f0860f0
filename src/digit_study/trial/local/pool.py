"""The engine of one machine: workers that run trial after trial."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait

import psutil

from digit_study.config.engine_config import EngineConfig, Node, capacity
from digit_study.config.run_config import Config
from digit_study.support import hardware
from digit_study.support.console import warn
from digit_study.support.errors import StudyError
from digit_study.support.formatting import listed
from digit_study.tracking.spool import SpooledRun
from digit_study.trial.events import (
    Decision,
    Event,
    Failed,
    FailureCause,
    Finished,
    Outcome,
    Stopped,
)
from digit_study.trial.local.child import GRACE_S, Idle, train
from digit_study.trial.local.process import TrialDied
from digit_study.trial.local.server import start_server
from digit_study.trial.local.worker import Worker
from digit_study.trial.protocol import EngineContext, TrialRequest

#: Seconds that a trial has to draw its figures when all else has ended.
DRAWING_S = 60.0
#: Seconds that a trial has to end itself that has exceeded a limit.
LIMIT_GRACE_S = 1.0


def available_nodes(options: EngineConfig) -> list[Node]:
    """Return this machine as the only node, with the first of its GPUs.

    Raises:
        StudyError: If a trial asks for more than it has.
    """
    cores = hardware.cores()
    gpus = len(hardware.gpus()[:1])
    memory = psutil.virtual_memory().total / 2**30
    has = {"CPU": cores, "GPU": gpus, "memory": memory * 2**30}
    trials = capacity(has, {"cpu": 1, "gpu": gpus, "memory": 0, **options.resources})
    if trials == 0:
        raise StudyError(
            f"a trial asks for {listed(options.resources)}, but this machine has {cores} cores, "
            f"{gpus} GPUs and {memory:.1f} GiB: ask for less with resources="
        )
    precision = hardware.resolve_precision("auto")
    name = platform.node()
    return [Node(name, cores, gpus, memory, hardware.processor(), precision, trials)]


class LocalEngine:
    """An :class:`~digit_study.trial.protocol.Engine` of processes on this machine.

    A worker is in one of four places: it runs a trial, it holds a paused trial, it finishes a trial
    whose outcome is known (it draws the figures), or it is idle.
    """

    def __init__(
        self,
        context: EngineContext,
        launch: Callable[[TrialRequest], Worker] | None = None,
        *,
        figures_in_background: bool = True,
        drawing_time: float = DRAWING_S,
    ) -> None:
        """Open the engine.

        Args:
            context: Its limits, and what trials need.
            launch: Starts a worker with its first trial. By default it is forked from a server that
                is started here.
            figures_in_background: Whether figures are drawn while the slot has its next trial.
            drawing_time: Seconds that :meth:`stop` leaves for figures.
        """
        self._context = context
        self._slots = context.slots or 1
        self._drawing_time = drawing_time
        self._figures_in_background = figures_in_background
        if launch is None:
            # A GPU's memory is a worker's for as long as it lives: the next trial needs the same.
            self._figures_in_background = figures_in_background and not hardware.gpus()
            launch = forking_launch(context, figures_in_background=self._figures_in_background)
        self._launch = launch
        self.trials: dict[int, Worker] = {}
        self.paused: dict[int, Worker] = {}
        self.finishing: list[Worker] = []
        self.idle: list[Worker] = []
        self._failed_starts: list[Failed] = []

    @property
    def free(self) -> int:
        """Number of trials that could start now."""
        delayed = max(0, len(self.finishing) - self._slots)
        return self._slots - len(self.trials) - delayed

    def submit(self, key: int, config: Config, run_id: str) -> str | None:
        """Start a trial, see :meth:`digit_study.trial.protocol.Engine.submit`."""
        request = TrialRequest(key, config, run_id)
        try:
            worker = self._reuse_worker(request) or self._launch(request)
        except TrialDied as death:
            self._failed_starts.append(Failed(key, death.cause, str(death)))
            return None
        self.trials[key] = worker
        return worker.name

    def answer(self, key: int, decision: Decision) -> None:
        """Answer an epoch, see :meth:`digit_study.trial.protocol.Engine.answer`."""
        if decision is Decision.PAUSE:
            if key in self.trials:
                self.paused[key] = self.trials.pop(key)
                self.paused[key].pause()
            return
        if key in self.paused and decision is Decision.CONTINUE:
            self.trials[key] = self.paused.pop(key)
        # a paused trial that is to stop needs no slot for that
        worker = self.trials.get(key) or self.paused.get(key)
        if worker is not None:
            worker.answer(decision)

    def can_resume(self, key: int) -> bool:
        """Return whether a slot is free for a paused trial."""
        return key in self.paused and self.free > 0

    def events(self, timeout: float = 0.5) -> Iterator[Event]:
        """Yield what has happened, see :meth:`digit_study.trial.protocol.Engine.events`."""
        while self._failed_starts:
            yield self._failed_starts.pop()
        listening = [*self.trials.values(), *self.paused.values(), *self.finishing]
        _wait_for_message(listening, timeout)
        self._release_finished()
        for key in list(self.trials):
            yield from self._events_of(key, self.trials)
        for key in list(self.paused):
            # it says nothing unless it dies, or ends as it was asked to
            yield from self._events_of(key, self.paused)

    def stop(self) -> None:
        """End all trials, see :meth:`digit_study.trial.protocol.Engine.stop`."""
        ending = [*self.trials.values(), *self.paused.values(), *self.idle]
        for worker in ending:
            worker.send_signal()
        _stop_together(ending, GRACE_S)
        _stop_together(self.finishing, self._drawing_time)
        for worker in self.finishing:
            self._close_abandoned(worker.run_id)
        self.trials.clear()
        self.paused.clear()
        self.idle.clear()
        self.finishing.clear()

    def _reuse_worker(self, request: TrialRequest) -> Worker | None:
        """Start a trial in an idle worker; end those that cannot run it."""
        # a worker that has drawn its figures already is about to say that it is idle
        while self.finishing and not self._figures_in_background:
            if not _wait_for_message(self.finishing, GRACE_S):
                break
            self._release_finished()
        while self.idle:
            worker = self.idle.pop()
            if worker.take(request):
                return worker
            worker.stop()
        return None

    def _events_of(self, key: int, trials: dict[int, Worker]) -> Iterator[Event]:
        """Yield what a trial has reported, and give its slot free with its outcome.

        Args:
            key: Of the trial.
            trials: Where it is: among those that run, or those that are paused.
        """
        while key in trials:
            event = self._next_event(key, trials[key])
            if event is None:
                return
            if isinstance(event, Outcome):
                self._end(trials.pop(key), event)
            yield event

    def _next_event(self, key: int, worker: Worker) -> Event | None:
        """Return what a trial has reported, or that it died or exceeded a limit."""
        try:
            message = worker.receive()
        except TrialDied as death:
            return Failed(key, death.cause, str(death))
        if message is None:
            return self._exceeded_limit(key, worker)
        assert not isinstance(message, Idle), "a worker is idle after the outcome of its trial only"
        return message

    def _end(self, worker: Worker, outcome: Outcome) -> None:
        """Let a worker finish its trial, or end it after a failure."""
        match outcome:
            case Finished() | Stopped():
                self.finishing.append(worker)
            case Failed(cause=FailureCause.LIMIT):
                worker.stop(LIMIT_GRACE_S)
            case Failed():
                worker.stop(GRACE_S)

    def _release_finished(self) -> None:
        """Return workers that finished drawing to the idle pool and drop those that died."""
        for worker in list(self.finishing):
            try:
                message = worker.receive()
            except TrialDied:
                self.finishing.remove(worker)
                worker.stop()
                self._close_abandoned(worker.run_id)
                continue
            match message:
                case Idle():
                    self.finishing.remove(worker)
                    self._keep_or_stop(worker)
                case Failed():
                    warn(
                        f"run {worker.run_id} has its result, but not all figures: {message.reason}"
                    )

    def _keep_or_stop(self, worker: Worker) -> None:
        """Keep an idle worker, unless memory that its trial left would count as the next one's."""
        if self._context.trial_memory is None:
            self.idle.append(worker)
        else:
            worker.stop()

    def _exceeded_limit(self, key: int, worker: Worker) -> Failed | None:
        """Return the failure of a trial that has taken too long or too much memory."""
        timeout = self._context.trial_timeout
        if timeout is not None and worker.seconds > timeout:
            reason = f"it took longer than search.trial_timeout={timeout:g} s"
            return Failed(key, FailureCause.LIMIT, reason)
        memory = self._context.trial_memory
        if memory is not None and worker.memory > memory:
            reason = f"it used {worker.memory:.2f} GiB, more than search.trial_memory={memory:g}"
            return Failed(key, FailureCause.LIMIT, reason)
        return None

    def _close_abandoned(self, run_id: str) -> None:
        """End a run in the name of a process that died before it did."""
        with suppress(OSError):  # the disk is full: the next command does it
            SpooledRun(run_id, self._context.workspace).close_abandoned()


def forking_launch(
    context: EngineContext, *, figures_in_background: bool
) -> Callable[[TrialRequest], Worker]:
    """Start the server, and return what starts workers that it forks."""
    start = partial(start_server, context.workspace, context.data, context.digits_folder)
    start()
    target = partial(
        train,
        workspace=context.workspace,
        digits_folder=context.digits_folder,
        figures_in_background=figures_in_background,
    )
    return lambda request: Worker(target, request, start_server=start)


def _wait_for_message(workers: list[Worker], seconds: float) -> bool:
    """Wait until a worker has something to receive; return whether it has."""
    return bool(wait([ready for worker in workers for ready in worker.waitables()], seconds))


def _stop_together(workers: list[Worker], seconds: float) -> None:
    """Stop workers that have so many seconds together before they are killed."""
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.stop(max(0.1, deadline - time.monotonic()))
