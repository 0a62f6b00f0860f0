"""Several trials at a time, each in a process of its own, with limits on their time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol

import psutil

from digit_study.config.run import Config
from digit_study.engine.child import GRACE_S
from digit_study.engine.process import Message, TrialDied, TrialProcess
from digit_study.engine.trial import train

GIB = 2**30


class Worker(Protocol):
    """What a pool needs of a trial that runs; :class:`TrialProcess` is one."""

    def waitables(self) -> list[Any]:
        """See TrialProcess."""

    def receive(self) -> Message | None:
        """See TrialProcess."""

    def answer(self, go_on: bool) -> None:
        """See TrialProcess."""

    def ask_to_stop(self) -> None:
        """See TrialProcess."""

    def stop(self, grace: float = GRACE_S) -> None:
        """See TrialProcess."""

    def pid(self) -> int | None:
        """See TrialProcess."""


@dataclass(frozen=True)
class Event:
    """News of the trial that was submitted under ``key``.

    ``kind`` is steps, epoch (wants an answer), done, failed (its own fault), died (killed from outside) or
    expired (over a limit); after the last four the trial is gone.
    """

    key: int
    kind: str
    content: Any


@dataclass
class _Slot:
    worker: Worker
    started: float
    finished: bool = False


def in_process(config: Config, run_id: str) -> Worker:
    """Launch a trial as everything else does, in a fresh process."""
    return TrialProcess(train, config, run_id)


class Pool:
    """Runs at most ``size`` trials at a time.

    Args:
        size: trials at a time.
        timeout: seconds a trial may take; None has no limit.
        memory: GiB of resident memory a trial may use; None has no limit.
        launch: starts a trial.
    """

    def __init__(
        self,
        size: int,
        timeout: float | None = None,
        memory: float | None = None,
        launch: Callable[[Config, str], Worker] = in_process,
    ) -> None:
        self.size, self.timeout, self.memory, self.launch = size, timeout, memory, launch
        self.slots: dict[int, _Slot] = {}
        self.stillborn: list[Event] = []

    @property
    def free(self) -> int:
        """How many more trials could start now."""
        return self.size - len(self.slots)

    def submit(self, key: int, config: Config, run_id: str) -> int | None:
        """Start a trial; returns its process id. One that cannot be started has died."""
        try:
            worker = self.launch(config, run_id)
        except TrialDied as death:
            self.stillborn.append(Event(key, "died", str(death)))
            return None
        self.slots[key] = _Slot(worker, time.monotonic())
        return worker.pid()

    def answer(self, key: int, go_on: bool) -> None:
        """Reply to an ``epoch`` event."""
        if key in self.slots:
            self.slots[key].worker.answer(go_on)

    def events(self, patience: float = 0.5) -> Iterator[Event]:
        """Yield what is new, after waiting at most ``patience`` seconds for it."""
        while self.stillborn:
            yield self.stillborn.pop()
        wait([thing for slot in self.slots.values() for thing in slot.worker.waitables()], patience)
        for key in list(self.slots):
            yield from self._news(key)
        for key in list(self.slots):
            yield from self._over_limit(key)

    def stop(self) -> None:
        """End all trials together, as KILLED, and wait for them."""
        for slot in self.slots.values():
            slot.worker.ask_to_stop()
        deadline = time.monotonic() + GRACE_S
        for slot in self.slots.values():
            slot.worker.stop(max(0.1, deadline - time.monotonic()))
        self.slots.clear()

    def _news(self, key: int) -> Iterator[Event]:
        while key in self.slots:
            try:
                message = self.slots[key].worker.receive()
            except TrialDied as death:
                yield self._ended(key, "died", str(death))
                return
            if message is None:
                return
            if message.kind in ("done", "failed"):
                yield self._ended(key, message.kind, message.content)
            else:
                yield Event(key, message.kind, message.content)

    def _over_limit(self, key: int) -> Iterator[Event]:
        slot = self.slots[key]
        spent = time.monotonic() - slot.started
        if self.timeout is not None and spent > self.timeout:
            yield self._ended(key, "expired", f"it took longer than search.trial_timeout={self.timeout:g} s", 1.0)
            return
        used = self._gib(slot.worker) if self.memory is not None else 0.0
        if self.memory is not None and used > self.memory:
            yield self._ended(
                key, "expired", f"it used {used:.2f} GiB, more than search.trial_memory={self.memory:g}", 1.0
            )

    @staticmethod
    def _gib(worker: Worker) -> float:
        try:
            return psutil.Process(worker.pid()).memory_info().rss / GIB
        except (psutil.NoSuchProcess, ValueError):
            return 0.0

    def _ended(self, key: int, kind: str, content: Any, grace: float = GRACE_S) -> Event:
        self.slots.pop(key).worker.stop(grace)
        return Event(key, kind, content)
