"""Trials that cost nothing: they log as a real one does, and say what a test wants, without a process or TensorFlow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from digit_study.config.run import Config
from digit_study.report.figures import charts
from digit_study.stats.metrics import Evaluation, accuracy_interval
from digit_study.study.results import RunResults
from digit_study.study.study_plan import StudyPlan, plan_study
from digit_study.support.workspace import Workspace
from digit_study.tracking import database as stores
from digit_study.tracking import runs as tracking
from digit_study.tracking.session import Tracker
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.local.worker import Message, TrialDied
from digit_study.trial.protocol import EngineContext, TrialResult

IMAGES = 200
SPACE = (
    "search.space={model.filters: {low: 8, high: 64, step: 8}, model.dropout: {type: float, low: 0.0, high: 0.5}, "
    "training.optimizer: {choices: [adam, sgd]}}"
)


def plan(*words: str, space: str = SPACE) -> StudyPlan:
    """A study on the sample with one worker; later words win."""
    return plan_study(
        [
            "study=s",
            "data=mnist_sample",
            "model=tiny",
            "training.epochs=3",
            "search.workers=1",
            space,
            *words,
        ]
    )


def results_of(uri: str) -> RunResults:
    """Results of the runs of a store of this test, whose artifacts lie beside it."""
    return RunResults(Tracker(uri, Workspace(stores.ARTIFACTS.parent)))


def accuracy(config: Config) -> float:
    """Best with 40 filters and little dropout; every seed a little different."""
    noise = (config.training.seed * 7919 % 11) / IMAGES
    return round(0.9 - abs(config.model.filters - 40) / 200 - config.model.dropout / 5 - noise, 4)


def result_of(config: Config, run_id: str) -> TrialResult:
    right = round(accuracy(config) * IMAGES)
    labels = np.arange(IMAGES) % 10
    predicted = np.where(np.arange(IMAGES) < right, labels, (labels + 1) % 10)
    probabilities = np.eye(10)[predicted]
    metrics = dict(
        zip(
            ("val_accuracy_low", "val_accuracy_high"), accuracy_interval(right, IMAGES), strict=True
        )
    )
    metrics |= {
        "val_accuracy": right / IMAGES,
        "val_loss": 1 - right / IMAGES,
        "training_seconds": 1.0,
    }
    metrics |= {
        "parameters": 100.0 * config.model.filters,
        "inference_milliseconds": 0.1,
        "validation_images": IMAGES,
    }
    evaluation = Evaluation(
        labels, probabilities, np.arange(IMAGES), metrics, np.zeros((10, 10), dtype=np.int64)
    )
    epochs = [epoch(config, number + 1) for number in range(config.training.epochs)]
    return TrialResult(run_id, metrics, epochs, evaluation, "0" * 64)


def epoch(config: Config, number: int) -> dict[str, float]:
    value = accuracy(config) * number / config.training.epochs
    names = (
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "learning_rate",
        "images_per_second",
    )
    return {**dict.fromkeys(names, value), "val_loss": 1 - value, "epoch_seconds": 0.1}


Behaviour = Callable[[Config, int], str]


def finishes(config: Config, number: int) -> str:
    """Every trial ends well."""
    return "done"


@dataclass
class Stubs:
    """Launches stubs; ``behaviour`` says of the config and the count of starts how that one ends.

    done, failed, died, hangs, or "signal" which calls ``on_signal``.
    """

    uri: str
    behaviour: Behaviour = finishes
    on_signal: Callable[[], None] = lambda: None
    started: list[Config] = field(default_factory=list)
    stopped: int = 0

    def engine(self, limits: EngineContext) -> LocalEngine:
        """The local engine, with stubs instead of processes."""
        return LocalEngine(limits, self)  # type: ignore[arg-type]  # of the same methods

    def __call__(self, config: Config, run_id: str) -> Stub:
        self.started.append(config)
        return Stub(self, config, run_id, self.behaviour(config, len(self.started)))


class Stub:
    """Does what Worker does, as far as an engine asks for it."""

    name = handle = None

    def __init__(self, owner: Stubs, config: Config, run_id: str, end: str) -> None:
        self.owner, self.config, self.run_id, self.end = owner, config, run_id, end
        self.ready, write = os.pipe()
        os.write(write, b"x")
        os.close(write)
        self.log = tracking.RunLog(owner.uri, run_id)
        self.log.config(config)
        self.answers: list[bool] = []
        self.started = time.monotonic()
        self.talk = self._talk()

    def _talk(self) -> Iterator[Message | None]:
        if self.end == "signal":
            self.owner.on_signal()
        if self.end == "died":
            raise TrialDied("the trial's process was killed by SIGKILL")
        while self.end == "hangs":
            yield None
        if self.end == "failed":
            self.log.end("FAILED", {})
            yield "failed", "training diverged"
        for number in range(1, self.config.training.epochs + 1):
            self.log.epoch(number, epoch(self.config, number))
            yield "epoch", (number, epoch(self.config, number))
            while not self.answers:
                yield None
            if not self.answers.pop():
                self.log.end("KILLED", {})
                yield "pruned", "others promise more"
                raise TrialDied("the trial's process ended")
        yield "done", self._finish()
        raise TrialDied("the trial's process ended")

    def _finish(self) -> TrialResult:
        result = result_of(self.config, self.run_id)
        outcome = result.evaluation
        rows = {"index": outcome.index, "correct": outcome.predicted == outcome.labels}
        charts.write_table(pd.DataFrame(rows), self.log.folder, "predictions")
        self.log.metrics(result.metrics, 3)
        self.log.end("FINISHED", {})
        return result

    def waitables(self) -> list[Any]:
        return [] if self.end == "hangs" else [self.ready]

    def receive(self) -> Message | None:
        return next(self.talk)

    def answer(self, go_on: bool) -> None:
        self.answers.append(go_on)

    def send_signal(self, number: int = 0) -> None:
        self.owner.stopped += 1

    def stop(self, grace: float = 0.0) -> None:
        os.close(self.ready)
