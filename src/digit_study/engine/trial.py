"""One trial, here or in a process of its own, with a ticker that follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from digit_study.config.run import Config
from digit_study.engine import process as workers
from digit_study.engine.results import Listener, TrialResult
from digit_study.terminal.quiet import native_stderr
from digit_study.terminal.signals import not_swallowed


class Follower(Protocol):
    """Who wants to see a training go on."""

    def steps(self, epoch: int, step: int, steps: int) -> None:
        """Hear of ``step`` of ``steps`` in ``epoch``."""

    def epoch(self, number: int, record: dict[str, float]) -> None:
        """Hear of a finished epoch."""


def train_here(config: Config, run_id: str, follower: Follower) -> TrialResult:
    """Run a trial in this process, which then holds TensorFlow."""
    with native_stderr(), not_swallowed():
        from digit_study.engine.pipeline import run_trial

    return run_trial(config, run_id, listener=Listener(follower.steps, follower.epoch))


def run_in_worker(config: Config, run_id: str, follower: Follower) -> TrialResult:
    """Run a trial in a fresh process and follow it.

    Raises:
        StudyError: it failed, or its process died.
    """

    def follow(message: workers.Message) -> None:
        hear = follower.steps if message.kind == "steps" else follower.epoch
        hear(*message.content)

    return workers.run_to_end(workers.TrialProcess(train, config, run_id), follow)  # type: ignore[no-any-return]


def train(config: Config, run_id: str, send: Callable[[str, Any], None], ask: Callable[[Any], None]) -> TrialResult:
    """Run a trial inside a worker: progress goes out by ``send``, every epoch by ``ask``, which may end it."""
    with native_stderr(), not_swallowed():
        from digit_study.engine.pipeline import run_trial

    listener = Listener(
        on_steps=lambda *where: send("steps", where), on_epoch=lambda number, record: ask((number, record))
    )
    return run_trial(config, run_id, listener=listener, pictures_of_data=False)
