"""A study as a person types it, in real processes: what slow tests share to start, watch, kill and look at it."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import mlflow
import optuna
import psutil
import pytest
from conftest import Command, Done, Project
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from digit_study.study.trial_attributes import counted

T = TypeVar("T")
SEARCH, CONFIRM = "sweeps/optuna_search.py", "sweeps/confirm.py"
RATE = "training.learning_rate: {type: float, low: 0.001, high: 0.01}"
SPACE = f"search.space={{model.filters: {{low: 4, high: 12, step: 4}}, {RATE}}}"
TRIALS = 3
#: Less to trace, which takes longer than to train on a hundred digits.
PLAIN = ("model.blocks=1", "model.batch_norm=false", "model.dense_units=0")


def trials_of(project: Path, study: str) -> list[FrozenTrial]:
    """All trials of a study, from the journal of the project in that folder; none where it has not begun."""
    path = project / "mlruns/studies" / f"{study}.journal"
    if not path.exists():  # Optuna would make it
        return []
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.load_study(study_name=study, storage=storage).get_trials()
    except (KeyError, ValueError, FileNotFoundError):
        return []


class TypedStudy:
    """A project, a store and a study of its own."""

    def __init__(self, project: Project, uri: str, name: str, small: Path) -> None:
        self.project, self.uri, self.name, self.small = project, uri, name, small

    def line(self, *words: str, script: str = SEARCH) -> list[str]:
        """A command line of this study; what is given comes last, and so counts."""
        usual = [
            f"study={self.name}",
            f"data.path={self.small}",
            "data.validation=100",
            "model=tiny",
            *PLAIN,
        ]
        usual += [
            "training.epochs=3",
            "search.pruner=none",
            "search.workers=2",
            f"search.trials={TRIALS}",
            SPACE,
        ]
        return [*usual, *words] if script == SEARCH else [f"study={self.name}", *words]

    def start(
        self, *words: str, script: str = SEARCH, from_nothing: bool = False, **environment: str
    ) -> Command:
        """Start a command, to be watched and killed; ``from_nothing`` if that may happen while it imports."""
        self.known = {trial.number for trial in self.trials()}
        line = self.line(*words, script=script)
        start = self.project.start if from_nothing else self.project.fork
        return start(*line, script=script, MLFLOW_TRACKING_URI=self.uri, **environment)

    def run(self, *words: str, script: str = SEARCH, **options: Any) -> Done:
        """Run a command to its end."""
        line = self.line(*words, script=script)
        return self.project.run(*line, script=script, MLFLOW_TRACKING_URI=self.uri, **options)

    def trials(self) -> list[FrozenTrial]:
        return trials_of(self.project.root, self.name)

    def new_trials(self) -> list[FrozenTrial]:
        """Those that did not exist when the last command was started."""
        return [trial for trial in self.trials() if trial.number not in self.known]

    def runs(self) -> list[mlflow.entities.Run]:
        client = mlflow.MlflowClient(self.uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        return list(client.search_runs(experiments, f"tags.study = '{self.name}'"))

    def statuses(self, kind: str = "trial") -> list[str]:
        return [run.info.status for run in self.runs() if run.data.tags.get("kind") == kind]


@pytest.fixture
def typed_study(
    project: Project, typed_store: str, small_npz: Path, request: pytest.FixtureRequest
) -> Iterator[TypedStudy]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    typed_study = TypedStudy(
        project, typed_store, re.sub(r"\W+", "-", request.node.name)[-60:], small_npz
    )
    yield typed_study
    try:
        assert_no_process_is_left(typed_study)
    finally:
        # what a failed test leaves behind must not disturb the next
        for process in of_study(typed_study):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def of_study(typed_study: TypedStudy) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
            session = os.getsid(process.pid)
        except (psutil.AccessDenied, psutil.NoSuchProcess, ProcessLookupError):
            continue
        if environment and (
            environment.get("MLFLOW_TRACKING_URI") == typed_study.uri
            or session in typed_study.project.sessions
        ):
            found.append(process)
    return found


def workers_of(command: Command) -> list[psutil.Process]:
    """The processes of trials: children of the server that is a child of the command."""
    try:
        servers = psutil.Process(command.process.pid).children()
        return [child for server in servers for child in server.children()]
    except psutil.NoSuchProcess:
        return []


def assert_no_process_is_left(typed_study: TypedStudy, within: float = 10) -> None:
    wait_until(lambda: not of_study(typed_study), within, "no process of the study is left")


def wait_until(holds: Callable[[], T | None], seconds: float, what: str) -> T:
    """What ``holds`` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return found


# --------------------------------------------------------------------------- moments


def has_run(typed_study: TypedStudy, command: Command) -> bool:
    return any("run_id" in trial.user_attrs for trial in typed_study.new_trials())


def in_an_epoch(typed_study: TypedStudy, command: Command) -> bool:
    return any(trial.intermediate_values for trial in typed_study.new_trials())


def one_ended(typed_study: TypedStudy, command: Command) -> bool:
    return command.printed("COMPLETE")


def at_once(typed_study: TypedStudy, command: Command) -> bool:
    return True


def is_starting(typed_study: TypedStudy, command: Command) -> bool:
    return bool(psutil.Process(command.process.pid).children())


def assert_whole(typed_study: TypedStudy, total: int = TRIALS) -> None:
    """No RUNNING in either store, the total met, and both stores of one opinion."""
    trials = typed_study.trials()
    assert Counter(trial.state.name for trial in counted(trials)) == {"COMPLETE": total}
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}
    runs = [run for run in typed_study.runs() if run.data.tags.get("kind") == "trial"]
    told = {run.info.run_id: (run.info.status, run.data.tags.get("trial.state")) for run in runs}
    of_runs = {run.info.run_id: run for run in runs}
    for trial in trials:
        if "run_id" in trial.user_attrs and trial.state.name == "COMPLETE":
            run = of_runs[trial.user_attrs["run_id"]]
            whole = ("FINISHED", "COMPLETE")
            assert told[run.info.run_id] == whole, (trial, run.info, run.data.tags)
    left = [
        (run.info.run_id, run.info.status, run.data.tags)
        for run in runs
        if told[run.info.run_id][1] not in ("COMPLETE", "FAIL")
        or run.info.status not in ("FINISHED", "FAILED", "KILLED")
    ]
    assert not left, left
    assert typed_study.statuses("study") == ["FINISHED"]
