"""Trials that cost nothing, without a process and without TensorFlow.

They log as a real trial does, and report what a test wants.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from digit_study.config.run_config import Config
from digit_study.report.figures import charts, optuna_figures, ranking_figures
from digit_study.stats.metrics import Evaluation, accuracy_interval
from digit_study.study.results import RunResults
from digit_study.study.storage import StoredStudy
from digit_study.study.study_plan import StudyPlan, plan_study
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker
from digit_study.trial.events import (
    Decision,
    EpochDone,
    Failed,
    FailureCause,
    Finished,
    Stopped,
)
from digit_study.trial.local.child import Message
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.local.process import TrialDied
from digit_study.trial.protocol import EngineContext, TrialRequest, TrialResult

IMAGES = 200
SPACE = (
    "search.space={model.filters: {low: 8, high: 64, step: 8}, "
    "model.dropout: {type: float, low: 0.0, high: 0.5}, "
    "training.optimizer: {choices: [adam, sgd]}}"
)


def workspace() -> Workspace:
    """Return the folder in which the store of a test lies, as MLFLOW_TRACKING_URI names it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("sqlite:///"):
        return Workspace.of_project()
    return Workspace(Path(uri.removeprefix("sqlite:///")).parent)


def plan(*words: str, space: str = SPACE, within: Workspace | None = None) -> StudyPlan:
    """Plan a study on the sample with one worker; later words win."""
    usual = [
        "study=s",
        "data=mnist_sample",
        "model=tiny",
        "training.epochs=3",
        "search.workers=1",
        space,
    ]
    return plan_study([*usual, *words], within or workspace())


def results_of(uri: str) -> RunResults:
    """Return the results of the runs of a store, as a new command finds them."""
    return RunResults(Stubs(uri).tracker)


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


def draw_no_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures of studies: they take a second each."""
    monkeypatch.setattr(optuna_figures, "write", lambda *drawn: None)
    monkeypatch.setattr(
        ranking_figures, "leaderboard_figure", lambda *drawn: charts.message_figure("", "")
    )


def states(view: StoredStudy) -> list[str]:
    """Return the states of the trials of a study, as Optuna names them."""
    return [trial.state.name for trial in view.trials()]


def runs(store: str) -> dict[str, mlflow.entities.Run]:
    """Return the runs of a store by the number of their trial, others by their kind."""
    client = mlflow.MlflowClient(store)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return {run.data.tags.get("trial.number", run.data.tags["kind"]): run for run in found}


#: Says of a config and the number of trials so far how a trial ends.
Behaviour = Callable[[Config, int], str]


def finishes(config: Config, number: int) -> str:
    """Every trial ends well."""
    return "done"


@dataclass
class Stubs:
    """Launches stubs.

    Their behaviour is done, failed, died, hangs, or "signal" which calls ``on_signal``.
    """

    uri: str
    behaviour: Behaviour = finishes
    on_signal: Callable[[], None] = lambda: None
    started: list[Config] = field(default_factory=list)
    stopped: int = 0
    #: Where their runs are spooled; None is the folder of the store's file.
    workspace: Workspace | None = None

    @property
    def tracker(self) -> Tracker:
        """The store of the stubs."""
        beside = Workspace(Path(self.uri.removeprefix("sqlite:///")).parent)
        return Tracker(self.uri, self.workspace or beside)

    def engine(self, context: EngineContext) -> LocalEngine:
        """Return the local engine, with stubs instead of processes."""
        return LocalEngine(context, self)  # type: ignore[arg-type]  # of the same methods

    def __call__(self, request: TrialRequest) -> Stub:
        self.started.append(request.config)
        return Stub(self, request, self.behaviour(request.config, len(self.started)))


class Stub:
    """Does what Worker does, as far as an engine asks for it."""

    name = None
    memory = 0.0

    def __init__(self, owner: Stubs, request: TrialRequest, end: str) -> None:
        self.owner = owner
        self.key = request.key
        self.config = request.config
        self.run_id = request.run_id
        self.end = end
        self.ready, write = os.pipe()
        os.write(write, b"x")
        os.close(write)
        self.log = owner.tracker.writer(self.run_id)
        self.log.config(self.config)
        self.answers: list[Decision] = []
        self._started = time.monotonic()
        self._is_paused = False
        self.messages = self._messages()

    def _messages(self) -> Iterator[Message | None]:
        if self.end == "signal":
            self.owner.on_signal()
        if self.end == "died":
            raise TrialDied("the trial's process was killed by SIGKILL")
        while self.end == "hangs":
            yield None
        if self.end == "failed":
            self.log.end("FAILED", {})
            yield Failed(self.key, FailureCause.TRIAL, "training diverged")
        for number in range(1, self.config.training.epochs + 1):
            self.log.epoch(number, epoch(self.config, number))
            yield EpochDone(self.key, number, epoch(self.config, number))
            while not self.answers:
                yield None
            if self.answers.pop() is Decision.STOP:
                self.log.stop("others promise more")
                yield Stopped(self.key)
                raise TrialDied("the trial's process ended")
        yield Finished(self.key, self._finish())
        raise TrialDied("the trial's process ended")

    def _finish(self) -> TrialResult:
        result = result_of(self.config, self.run_id)
        outcome = result.evaluation
        rows = {"index": outcome.index, "correct": outcome.predicted == outcome.labels}
        charts.write_table(pd.DataFrame(rows), self.log.folder, "predictions")
        self.log.tags({"weights.sha256": result.weights_sha256})
        self.log.metrics(result.metrics, 3)
        self.log.end("FINISHED", {})
        return result

    def waitables(self) -> list[Any]:
        """Return what is always ready, but of a trial that hangs."""
        if self.end == "hangs":
            return []
        return [self.ready]

    def receive(self) -> Message | None:
        """Return the next message."""
        return next(self.messages)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def pause(self) -> None:
        """Wait for the answer to an epoch."""
        self._is_paused = True

    def answer(self, decision: Decision) -> None:
        """Take the decision about an epoch."""
        self.answers.append(decision)

    def send_signal(self, number: int = 0) -> None:
        """Count signals."""
        self.owner.stopped += 1

    def stop(self, grace: float = 0.0) -> None:
        """End."""
        os.close(self.ready)
