"""Studies on a disk that is full for a while, or for good: no trial is to blame, and none is used up."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import Project, open_store
from failing_services import Disk, mounted, small_disk
from stub_worker import Stub, Stubs, plan, workspace
from tracked import is_spool_empty

from digit_study.report.figures import optuna_figures, run_figures
from digit_study.study.results import RunResults, leaderboard
from digit_study.study.search import run_study
from digit_study.study.storage import StoredStudy, find_study
from digit_study.study.trial_attributes import counted
from digit_study.support import processes
from digit_study.support.errors import StudyError, is_infrastructure_error
from digit_study.tracking.session import Tracker
from digit_study.trial.events import EpochDone, Event, Failed, FailureCause, Finished
from digit_study.trial.local.child import Message
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.protocol import TrialRequest

pytestmark = pytest.mark.reliability
WORDS = ("search.trials=4", "search.pruner=none", "search.sampler=random")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_figures, "write", lambda *drawn: None)
    monkeypatch.setattr(run_figures, "write_data_figures", lambda digits, folder: None)


@pytest.fixture
def disk(
    tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Disk, str]]:
    """A small disk that holds ``mlruns``, the tracking store and all else, and the store's URI."""
    with small_disk(tmp_path / "disk") as found:
        yield found, open_store(migrated, found.place, monkeypatch)


class Crowded:
    """Stubs of which the second trial meets a full disk at a moment.

    The disk has room again ``seconds`` later.
    """

    def __init__(self, uri: str, disk: Disk, moment: str, seconds: float | None) -> None:
        self.stubs = Stubs(uri)
        self.disk = disk
        self.moment = moment
        self.seconds = seconds
        self.hits = 0

    def __call__(self, request: TrialRequest) -> Any:
        is_second = len(self.stubs.started) == 1
        if is_second and self.moment == "start":
            self.fill()
        return CrowdedStub(self, self.stubs(request), is_second)

    def fill(self) -> None:
        self.hits += 1
        self.disk.fill()
        if self.seconds is not None:
            threading.Timer(self.seconds, self.disk.free).start()


#: Moments by the message with which they come.
MOMENTS: dict[type[Event], str] = {EpochDone: "epoch", Finished: "done"}


class CrowdedStub:
    """A stub that reports what a full disk did to it as a trial's process does."""

    def __init__(self, owner: Crowded, stub: Stub, is_second: bool) -> None:
        self.owner = owner
        self.stub = stub
        self.is_second = is_second

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stub, name)

    def receive(self) -> Message | None:
        try:
            message = self.stub.receive()
        except OSError as error:
            assert is_infrastructure_error(error)
            return Failed(self.stub.key, FailureCause.INFRASTRUCTURE, str(error))
        is_moment = MOMENTS.get(type(message)) == self.owner.moment  # type: ignore[arg-type]
        if self.is_second and not self.owner.hits and is_moment:
            self.owner.fill()
        return message


def search(uri: str, crowded: Crowded, *words: str) -> StoredStudy:
    planned = plan(*WORDS, *words)
    health = planned.health(first_pause=0.2)
    return run_study(planned, lambda context: LocalEngine(context, crowded), health=health)


def runs(uri: str) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids))


@pytest.mark.parametrize("kept", ["journal", "database"])
@pytest.mark.parametrize("moment", ["start", "epoch", "done"])
def test_a_disk_that_is_full_for_a_while_costs_no_trial(
    moment: str, kept: str, disk: tuple[Disk, str], capsys: pytest.CaptureFixture[str]
) -> None:
    place, uri = disk
    crowded = Crowded(uri, place, moment, 1.0)
    words = []
    if kept == "database":
        words.append(f"search.storage=sqlite:///{place.place}/optuna.db")
    found = search(uri, crowded, *words)
    assert crowded.hits == 1
    trials = counted(found.trials())
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    for again in (trial for trial in trials if "retry_of" in trial.user_attrs):
        first = found.trials()[again.user_attrs["retry_of"]]
        if "training.seed" in first.user_attrs:  # it had begun
            assert again.user_attrs["training.seed"] == first.user_attrs["training.seed"]
            assert again.params == first.params
    by_id = {run.info.run_id: run for run in runs(uri)}
    assert {by_id[trial.user_attrs["run_id"]].info.status for trial in trials} == {"FINISHED"}
    assert "RUNNING" not in {run.info.status for run in by_id.values()}
    for trial in trials:
        assert by_id[trial.user_attrs["run_id"]].data.metrics["val_accuracy"] == pytest.approx(
            trial.value
        )
    said = capsys.readouterr().err
    pauses = said.count("no trial is to blame")
    assert pauses == said.count("the machine is well again") <= 1
    # a shared database is told of a result only when MLflow has it, mostly when there is room again
    assert pauses == 1 or (moment, kept) == ("done", "database")
    assert is_spool_empty(workspace())


def test_a_disk_that_stays_full_ends_the_command_and_the_same_command_goes_on(
    disk: tuple[Disk, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, uri = disk
    with pytest.raises((StudyError, OSError)) as caught:
        search(uri, Crowded(uri, place, "done", None), "search.outage_timeout=0.02")
    assert isinstance(caught.value, StudyError) or is_infrastructure_error(caught.value)
    place.free()
    monkeypatch.setattr(
        processes, "find_process", lambda name: None
    )  # that command's process is gone
    found = search(uri, Crowded(uri, place, "never", None))
    assert [trial.state.name for trial in counted(found.trials())] == ["COMPLETE"] * 4
    assert "RUNNING" not in {run.info.status for run in runs(uri)}
    assert [run.info.status for run in runs(uri) if run.data.tags["kind"] == "study"] == [
        "FINISHED"
    ]


def test_artifacts_that_find_no_place_are_sent_when_they_do(disk: tuple[Disk, str]) -> None:
    place, uri = disk
    folder = workspace().artifacts / "digit-recognizer-mnist_sample"
    folder.mkdir(parents=True)
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        with pytest.raises(StudyError, match="has not taken 5 runs .*Read-only file system"):
            search(uri, Crowded(uri, place, "never", None), "search.outage_timeout=0.02")
        found = find_study(plan().study, workspace())
        best = leaderboard(plan(), found, RunResults(Tracker(uri, workspace())))
        assert len(best) == 4 and {run.info.status for run in runs(uri)} == {"FINISHED"}
    Tracker(uri, workspace()).upload_left()
    assert is_spool_empty(workspace())
    for run in runs(uri):
        assert mlflow.MlflowClient(uri).list_artifacts(run.info.run_id, "tables")


@pytest.mark.parametrize("words", [(), ("-m", "training.seed=0,1")])
def test_a_run_on_a_full_disk_says_so_in_one_message(
    words: tuple[str, ...], project: Project, small_npz: Path, typed_store: str
) -> None:
    small = [
        f"data.path={small_npz}",
        "data.validation=100",
        "model=tiny",
        "training.epochs=1",
        "training.threads=1",
    ]
    with small_disk(project.root / "mlruns", 8) as full:
        full.fill()
        done = project.run(*words, *small, "outage_timeout=0.02", MLFLOW_TRACKING_URI=typed_store)
    assert done.code == 1 and "Traceback" not in done.err
    assert "No space left on device" in done.err, done.err
