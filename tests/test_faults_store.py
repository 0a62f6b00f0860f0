"""A real MLflow server that is killed and started again, that stays away, that is slow: no result is lost or late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import Project
from lab import Lab, lab
from stub_worker import Stubs, plan
from world import Server, SlowWay, assert_survives

from digit_study.config.run_config import Config
from digit_study.report.figures import charts
from digit_study.report.figures import optuna_figures as study_pictures
from digit_study.report.figures import run_figures as figures
from digit_study.study import results as report
from digit_study.study.search import run_study
from digit_study.study.storage import StoredStudy, counted, find_study
from digit_study.support.errors import StudyError
from digit_study.tracking import database as stores
from digit_study.tracking import uploader
from digit_study.trial import health

__all__ = ["lab"]
pytestmark = pytest.mark.slow
WORDS = ("search.trials=4", "search.pruner=none", "search.sampler=random")


@pytest.fixture(autouse=True)
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_pictures, "write", lambda *drawn: None)
    monkeypatch.setattr(charts, "comparison", lambda board, title: charts.message_figure("", ""))
    monkeypatch.setattr(figures, "write_data_figures", lambda digits, folder: None)
    monkeypatch.setattr(health, "PAUSE_S", 0.2)
    monkeypatch.setattr(uploader, "QUIET_S", 0.5)
    monkeypatch.setattr(uploader, "LONGEST_PAUSE_S", 1.0)
    for name in ("FACTOR", "JITTER"):  # MLflow asks again as often as ever, but waits no 5 s before
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_BACKOFF_{name}", "0")
    monkeypatch.setattr(stores, "ARTIFACTS", tmp_path / "mlruns")
    monkeypatch.setattr(stores, "OUTBOX", tmp_path / "mlruns" / ".outbox")


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
    server: Server, *words: str, uri: str = "", begins: Callable[[int], None] = lambda n: None
) -> StoredStudy:
    """A study of stubs; ``begins`` is called with the count of trials when one starts."""

    def behave(config: Config, number: int) -> str:
        begins(number)
        return "done"

    uri = uri or server.uri
    return run_study(plan(*WORDS, f"tracking.uri={uri}", *words), Stubs(uri, behave).engine)


def runs(server: Server, study: StoredStudy) -> dict[str, mlflow.entities.Run]:
    client = mlflow.MlflowClient(server.behind)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    ids = {trial.user_attrs.get("run_id") for trial in study.trials()}
    return {run.info.run_id: run for run in found if run.info.run_id in ids}


def assert_whole(server: Server, study: StoredStudy) -> None:
    """Every trial is complete, and its run has all, each thing once."""
    trials, found, client = (
        counted(study.trials()),
        runs(server, study),
        mlflow.MlflowClient(server.behind),
    )
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    assert "RUNNING" not in {run.info.status for run in found.values()}
    for trial in trials:
        run = found[trial.user_attrs["run_id"]]
        assert (run.info.status, run.data.tags["trial.state"]) == ("FINISHED", "COMPLETE")
        assert run.data.metrics["val_accuracy"] == pytest.approx(trial.value)
        steps = [one.step for one in client.get_metric_history(run.info.run_id, "train_loss")]
        assert steps == [1, 2, 3]
    assert not [path for path in stores.OUTBOX.iterdir() if path.is_dir()]


def test_a_server_that_comes_and_goes_costs_no_trial(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is killed while a trial starts, so before the next one's run is created, and again while the last one runs."""

    def begins(number: int) -> None:
        if number in (2, 4):
            server.kill()
            threading.Timer(1.0, server.start).start()

    study = search(server, "study=comes-and-goes", begins=begins)
    assert_whole(server, study)
    said = capsys.readouterr()
    assert (
        "no trial is to blame, all wait" in said.err
        and "the tracking store takes results again" in said.err
    )
    assert "waiting for the tracking store" in said.err
    assert (
        len(report.leaderboard(plan(f"tracking.uri={server.uri}", "study=comes-and-goes"), study))
        == 4
    )
    assert "UserWarning" not in said.err


def test_what_a_server_that_stays_away_misses_is_uploaded_by_the_next_command(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    words, asked = (
        ("study=stays-away", "search.outage_timeout=0.02"),
        plan(f"tracking.uri={server.uri}", "study=stays-away"),
    )
    with pytest.raises(
        StudyError, match=r"has not taken \d runs .* are kept in .*uploaded by the next command"
    ):
        search(server, *words, begins=lambda number: server.kill() if number == 4 else None)
    study = find_study(asked.study)
    board = report.leaderboard(asked, study)
    assert len(board) == 4 and "Leaderboard of study 'stays-away'" in capsys.readouterr().out
    best = max(study.trials(), key=lambda trial: trial.value)
    assert board.iloc[0]["run_id"] == best.user_attrs["run_id"]
    server.ensure()
    stores.prepare_store(server.uri)  # as every command does
    assert_whole(server, study)


def test_a_server_that_is_away_for_good_ends_a_study_that_goes_on_later(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("study=away", "search.outage_timeout=0.02")
    with pytest.raises(
        StudyError, match=r"for 0.02 min \(search.outage_timeout\).*the same command goes on"
    ):
        search(server, *words, begins=lambda number: server.kill() if number == 2 else None)
    server.ensure()
    assert_whole(server, search(server, "study=away"))


def test_no_trial_waits_for_a_slow_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is waited for between two trials; that for a run delays its own trial alone."""
    way = SlowWay(server.port, 0.1)
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

    study = search(server, "study=slow", uri=way.uri, begins=begins)
    monkeypatch.undo()
    assert waited[at[0] : at[-1]] == []
    assert len(way.asked) > 30  # the uploader's
    assert len(runs(server, study)) == 4


def test_a_real_study_survives_its_server(lab: Lab, server: Server) -> None:
    lab.uri = server.uri
    command = lab.start(
        "training.epochs=3", "search.trials=3", "search.workers=3", "training.threads=1"
    )
    assert_survives(lab, server, command)
