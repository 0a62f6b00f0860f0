"""A real MLflow server that is killed and started again, that stays away, that is slow: no result is lost or late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import Project
from failing_services import Server, SlowConnection, assert_survives
from stub_worker import Stubs, plan
from tracked import is_spool_empty
from typed_study import TypedStudy, typed_study

from digit_study.config.run_config import Config
from digit_study.report.figures import optuna_figures, run_figures
from digit_study.study.results import RunResults, leaderboard
from digit_study.study.search import run_study
from digit_study.study.storage import StoredStudy, find_study
from digit_study.study.trial_attributes import counted
from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker, session

__all__ = ["typed_study"]
pytestmark = pytest.mark.reliability
WORDS = ("search.trials=4", "search.pruner=none", "search.sampler=random")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_figures, "write", lambda *drawn: None)
    monkeypatch.setattr(run_figures, "write_data_figures", lambda digits, folder: None)
    for name in ("FACTOR", "JITTER"):  # MLflow asks again as often as ever, but waits no 5 s before
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_BACKOFF_{name}", "0")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Where this machine spools runs and keeps studies."""
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def one_server(
    project: Project, migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server = Server(project, migrated, tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(one_server: Server) -> Server:
    """A server that answers."""
    one_server.ensure()
    return one_server


def search(
    server: Server,
    workspace: Workspace,
    *words: str,
    uri: str = "",
    begins: Callable[[int], None] = lambda number: None,
    results: RunResults | None = None,
) -> StoredStudy:
    """Search with stubs; ``begins`` is called with the count of trials when a trial starts."""

    def behave(config: Config, number: int) -> str:
        begins(number)
        return "done"

    uri = uri or server.uri
    planned = plan(*WORDS, f"tracking.uri={uri}", *words, within=workspace)
    return run_study(
        planned,
        Stubs(uri, behave, workspace=workspace).engine,
        health=planned.health(first_pause=0.2),
        open_session=partial(session, longest_pause=1.0, quiet_time=0.5),
        results=results,
    )


def runs(server: Server, study: StoredStudy) -> dict[str, mlflow.entities.Run]:
    client = mlflow.MlflowClient(server.behind)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments)
    ids = {trial.user_attrs.get("run_id") for trial in study.trials()}
    return {run.info.run_id: run for run in found if run.info.run_id in ids}


def assert_whole(server: Server, workspace: Workspace, study: StoredStudy) -> None:
    """Check that every trial is complete, and that its run has all, each thing once."""
    trials = counted(study.trials())
    found = runs(server, study)
    client = mlflow.MlflowClient(server.behind)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    assert "RUNNING" not in {run.info.status for run in found.values()}
    for trial in trials:
        run = found[trial.user_attrs["run_id"]]
        assert (run.info.status, run.data.tags["trial.state"]) == ("FINISHED", "COMPLETE")
        assert run.data.metrics["val_accuracy"] == pytest.approx(trial.value)
        history = client.get_metric_history(run.info.run_id, "train_loss")
        assert [point.step for point in history] == [1, 2, 3]
    assert is_spool_empty(workspace)


def test_a_server_that_comes_and_goes_costs_no_trial(
    server: Server, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is killed while a trial starts, so before the next one's run is created, and again while the last one runs."""

    def begins(number: int) -> None:
        if number in (2, 4):
            server.kill()
            threading.Timer(1.0, server.start).start()

    study = search(server, workspace, "study=comes-and-goes", begins=begins)
    assert_whole(server, workspace, study)
    printed = capsys.readouterr().err
    assert "no trial is to blame, all wait" in printed
    assert "the tracking store takes results again" in printed
    assert "waiting for the tracking store" in printed
    planned = plan(f"tracking.uri={server.uri}", "study=comes-and-goes", within=workspace)
    assert len(leaderboard(planned, study, RunResults(Tracker(server.uri, workspace)))) == 4
    assert "UserWarning" not in printed


def test_what_a_server_that_stays_away_misses_is_uploaded_by_the_next_command(
    server: Server, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("study=stays-away", "search.outage_timeout=0.02")
    asked = plan(f"tracking.uri={server.uri}", "study=stays-away", within=workspace)
    # what this process saw end is ranked without the store
    results = RunResults(Tracker(server.uri, workspace))

    def begins(number: int) -> None:
        if number == 4:
            server.kill()

    with pytest.raises(
        StudyError, match=r"has not taken \d runs .* are kept in .*uploaded by the next command"
    ):
        search(server, workspace, *words, begins=begins, results=results)
    study = find_study(asked.study, workspace)
    board = leaderboard(asked, study, results)
    assert len(board) == 4 and "Leaderboard of study 'stays-away'" in capsys.readouterr().out
    best = max(study.trials(), key=lambda trial: trial.value)
    assert board.iloc[0]["run_id"] == best.user_attrs["run_id"]
    server.ensure()
    Tracker(server.uri, workspace).upload_left()  # as every command does
    assert_whole(server, workspace, study)


def test_a_server_that_is_away_for_good_ends_a_study_that_goes_on_later(
    server: Server, workspace: Workspace
) -> None:
    words = ("study=away", "search.outage_timeout=0.02")

    def begins(number: int) -> None:
        if number == 2:
            server.kill()

    with pytest.raises(
        StudyError, match=r"for 0.02 min \(search.outage_timeout\).*the same command goes on"
    ):
        search(server, workspace, *words, begins=begins)
    server.ensure()
    assert_whole(server, workspace, search(server, workspace, "study=away"))


def test_no_trial_waits_for_a_slow_server(
    server: Server, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is waited for between two trials; that for a run delays its own trial alone."""
    way = SlowConnection(server.port, 0.1)
    waited: list[str] = []
    asked = mlflow.MlflowClient.__getattribute__

    def watched(client: Any, name: str) -> Any:
        found = asked(client, name)
        if (
            callable(found)
            and not name.startswith("_")
            and threading.current_thread() is threading.main_thread()
        ):
            waited.append(name)
        return found

    at: list[int] = []

    def begins(number: int) -> None:
        monkeypatch.setattr(mlflow.MlflowClient, "__getattribute__", watched)
        at.append(len(waited))

    study = search(server, workspace, "study=slow", uri=way.uri, begins=begins)
    monkeypatch.undo()
    assert waited[at[0] : at[-1]] == []
    assert len(way.asked) > 30  # the uploader's
    assert len(runs(server, study)) == 4


def test_a_real_study_survives_its_server(typed_study: TypedStudy, server: Server) -> None:
    typed_study.uri = server.uri
    command = typed_study.start(
        "training.epochs=3", "search.trials=3", "search.workers=3", "training.threads=1"
    )
    assert_survives(typed_study, server, command)
