# ruff: noqa: D102  the calls of an engine are described in protocol.Engine
"""The engine of one machine: workers that run trial after trial, and their context."""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait

import psutil

from digit_study.config.engine_config import EngineConfig, Node, capacity
from digit_study.config.run_config import Config
from digit_study.support import machine, messages
from digit_study.support.console import warn
from digit_study.support.messages import StudyError
from digit_study.tracking.spool import SpooledRun
from digit_study.trial.local import child
from digit_study.trial.local.worker import Message, TrialDied, Worker, start_server
from digit_study.trial.protocol import EngineContext, Event


def offer(place: EngineConfig, uri: str) -> list[Node]:
    """What this machine has, the first of its GPUs only; raises StudyError if a trial asks for more."""
    cores, gpus, asked = machine.cores(), machine.gpus()[:1], place.resources
    memory = psutil.virtual_memory().total / 2**30
    has = {"CPU": cores, "GPU": len(gpus), "memory": memory * 2**30}
    room = capacity(has, {"cpu": 1, "gpu": len(gpus), "memory": 0, **asked})
    if room == 0:
        wrong = f"a trial asks for {messages.listed(asked)}, but this machine has {cores} cores, {len(gpus)} GPUs and "
        raise StudyError(f"{wrong}{memory:.1f} GiB: ask for less with resources=")
    precision = machine.resolve_precision("auto")
    return [Node(platform.node(), cores, len(gpus), memory, machine.processor(), precision, room)]


def _wait_for(workers: list[Worker], seconds: float) -> bool:
    """Whether one of the workers has news, or gets some within so many seconds."""
    return bool(wait([thing for worker in workers for thing in worker.waitables()], seconds))


class LocalEngine:
    """An :class:`Engine` that ``launch`` starts the workers of, by default forked from a server that starts now.

    What these still do when the result of a trial is known is done ``aside`` from its slot.
    """

    def __init__(
        self,
        context: EngineContext,
        launch: Callable[[Config, str], Worker] | None = None,
        aside: bool = True,
    ) -> None:
        self.context, self.slots = context, context.slots or 1
        self.trials: dict[int, Worker] = {}
        self.finishing: list[Worker] = []  # whose trials have ended: they draw figures and tidy up
        self.idle: list[Worker] = []
        self.failed_starts: list[Event] = []
        if launch is None:
            start_server(context.data if context.data.sha256 else None)
        # a GPU's memory is a worker's for as long as it lives: the next trial needs the same one
        self.aside = aside and not (launch is None and machine.gpus())
        train = partial(child.train, aside=self.aside)
        self.launch = launch or (lambda config, run_id: Worker(train, config, run_id))

    @property
    def free(self) -> int:
        return self.slots - len(self.trials) - max(0, len(self.finishing) - self.slots)

    def submit(self, key: int, config: Config, run_id: str) -> str | None:
        try:
            self.trials[key] = self._take(config, run_id) or self.launch(config, run_id)
        except TrialDied as death:
            self.failed_starts.append(Event(key, death.kind, str(death)))
            return None
        return self.trials[key].name

    def answer(self, key: int, go_on: bool) -> None:
        if key in self.trials:
            self.trials[key].answer(go_on)

    def events(self, timeout: float = 0.5) -> Iterator[Event]:
        while self.failed_starts:
            yield self.failed_starts.pop()
        _wait_for([*self.trials.values(), *self.finishing], timeout)
        self._see_off()
        for key in list(self.trials):
            while key in self.trials:
                try:
                    message = self.trials[key].receive() or self._broken_limit(self.trials[key])
                except TrialDied as death:
                    message = death.kind, str(death)
                if message is None:
                    break
                if message[0] in ("done", "pruned"):
                    self.finishing.append(self.trials.pop(key))
                elif message[0] in child.END_GRACE_S:
                    self.trials.pop(key).stop(child.END_GRACE_S[message[0]])
                yield Event(key, *message)

    def stop(self) -> None:
        ending = [*self.trials.values(), *self.idle]
        for worker in ending:
            worker.send_signal()
        for workers, seconds in (ending, child.GRACE_S), (self.finishing, child.DRAWS_S):
            deadline = time.monotonic() + seconds
            for worker in workers:
                worker.stop(max(0.1, deadline - time.monotonic()))
        for worker in self.finishing:
            SpooledRun(worker.run_id).close_abandoned()
        for held in self.trials, self.idle, self.finishing:
            held.clear()

    def _take(self, config: Config, run_id: str) -> Worker | None:
        """The idle worker that has begun a trial, None if there is none that can; the others go."""
        while self.finishing and not self.aside:  # it is about to say that it is idle
            if not _wait_for(self.finishing, child.GRACE_S):
                break
            self._see_off()
        while self.idle:
            worker = self.idle.pop()
            if worker.take(config, run_id):
                return worker
            worker.stop()
        return None

    def _see_off(self) -> None:
        """Let workers be idle that have drawn all, and those go that died over it."""
        for worker in list(self.finishing):
            try:
                message = worker.receive()
            except TrialDied:
                self.finishing.remove(worker)
                worker.stop()
                with suppress(OSError):  # a full disk: the next command does it
                    SpooledRun(worker.run_id).close_abandoned()
                continue
            if message is not None and message[0] == "idle":
                self.finishing.remove(worker)
                if self.context.memory is None:
                    self.idle.append(worker)
                else:  # what is left of this trial would count as the next one's
                    worker.stop()
            elif message is not None:
                warn(f"run {worker.run_id} has its result, but not all figures: {message[1]}")

    def _broken_limit(self, worker: Worker) -> Message | None:
        timeout, memory = self.context.timeout, self.context.memory
        if timeout is not None and time.monotonic() - worker.started > timeout:
            return "expired", f"it took longer than search.trial_timeout={timeout:g} s"
        if memory is not None and worker.handle is not None:
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if (used := worker.handle.memory_info().rss / 2**30) > memory:
                    return (
                        "expired",
                        f"it used {used:.2f} GiB, more than search.trial_memory={memory:g}",
                    )
        return None
