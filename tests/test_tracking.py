"""Runs in MLflow: created, recorded, ended truthfully, and kept on disk when the store is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.utils import requirements_utils
from tracked import CONFIG, Gone, again, created, is_spool_empty, stored_run, tracker, workspace

from digit_study.config.run_config import Config, TrackingConfig
from digit_study.support.errors import StudyError
from digit_study.support.rules import flatten
from digit_study.support.signals import Interrupted, interruptible
from digit_study.support.workspace import Workspace
from digit_study.tracking import pages
from digit_study.tracking._mlflow import skip_module_map
from digit_study.tracking.database import create_store
from digit_study.tracking.location import experiment_name
from digit_study.tracking.runs import Runs
from digit_study.tracking.session import Tracker, open_store, session
from digit_study.tracking.spool import SpooledRun
from digit_study.tracking.upload import upload_run
from digit_study.tracking.uploader import BackgroundUploader
from digit_study.tracking.writer import RunWriter

__all__ = ["tracker", "workspace"]
RECORD = {"train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.5, "of no interest": 3.0}


# ---------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("statement", ["INSERT INTO params", "SELECT"])
def test_a_signal_inside_a_transaction_leaves_the_store_usable(
    statement: str, tracker: Tracker
) -> None:
    log = tracker.writer(created(tracker))
    hit: list[str] = []

    def send_signal(*arguments: Any) -> None:
        if not hit and statement in arguments[2]:
            hit.append(arguments[2])
            os.kill(os.getpid(), signal.SIGTERM)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", send_signal)
    try:
        with pytest.raises(Interrupted), interruptible():
            log.config(CONFIG)
            raise AssertionError("the signal was lost")
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", send_signal)
    assert hit and log.end("KILLED", {}) is None
    run = stored_run(tracker, log.run_id)
    assert run.info.status == "KILLED" and run.data.params["training.threads"] == "1"


def collide_once(monkeypatch: pytest.MonkeyPatch, method: str, rows: str) -> list[Any]:
    """Let the first call of MLflow's client fail as where another process has just inserted; return the calls.

    MLflow looks whether a row is there and inserts it if not; between the two another process may be faster.
    """
    real, calls = getattr(mlflow.MlflowClient, method), []

    def late(client: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise MlflowException(f"(sqlite3.IntegrityError) UNIQUE constraint failed: {rows}")
        return real(client, *arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, method, late)
    return calls


def test_digits_that_two_runs_log_at_the_same_moment_are_logged_by_both(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tracker.writer(created(tracker))
    collide_once(monkeypatch, "log_inputs", "datasets.experiment_id, ...")
    log.dataset("mnist_sample", "ab" * 32, {"train_images": 3})
    assert log.end("FINISHED", {}) is None
    [used] = stored_run(tracker, log.run_id).inputs.dataset_inputs
    assert used.dataset.name == "mnist_sample"


def test_a_tag_that_two_processes_set_at_the_same_moment_is_no_outage(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled = tracker.spooled(created(tracker))
    calls = collide_once(monkeypatch, "log_batch", "tags.key, tags.run_uuid")
    spooled.put(tracker.uri, tags={"weights.sha256": "ab"})
    assert upload_run(spooled, tracker) is None and len(calls) == 2
    assert stored_run(tracker, spooled.run_id).data.tags["weights.sha256"] == "ab"


def test_a_run_that_two_processes_end_at_the_same_moment_is_no_outage(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spooled = tracker.spooled(created(tracker))
    calls = collide_once(monkeypatch, "set_tag", "tags.key, tags.run_uuid")
    spooled.close(tracker.uri, "KILLED", "its machine is gone")
    assert upload_run(spooled, tracker) is None and len(calls) == 2
    run = stored_run(tracker, spooled.run_id)
    assert run.info.status == "KILLED" and run.data.tags["failure"] == "its machine is gone"


def test_a_view_that_two_processes_share_at_the_same_moment_is_no_outage(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = created(tracker)
    calls = collide_once(monkeypatch, "set_experiment_tag", "experiment_tags.key")
    pages.share_view(tracker, run_id, ["model.filters"])
    assert len(calls) == 2
    experiment = tracker.client.get_experiment(tracker.experiment_of(run_id))
    assert run_id in experiment.tags[f"{pages.SHARED_VIEW}{run_id}"]


# ---------------------------------------------------------------------------------- created


@pytest.mark.parametrize(
    ("experiment", "dataset", "name"),
    [
        (None, "mnist", "digit-recognizer"),
        (None, "mnist_sample", "digit-recognizer-mnist_sample"),
        (None, "small", "digit-recognizer-small"),
        ("mine", "mnist_sample", "mine"),
    ],
)
def test_other_data_go_to_an_experiment_of_their_own(
    experiment: str | None, dataset: str, name: str
) -> None:
    assert experiment_name(Config(tracking=TrackingConfig(experiment=experiment)), dataset) == name


def test_a_new_run_says_where_it_comes_from(tracker: Tracker) -> None:
    run = stored_run(tracker, created(tracker))
    assert run.info.status == "RUNNING" and run.info.run_name == "filters=8"
    assert (
        run.data.tags["dataset.sha256"] == "ab" * 32
        and run.data.tags["technical.precision"] == "float32"
    )
    assert all(
        run.data.tags[f"technical.{name}"] for name in ("host", "os", "processor", "version.keras")
    )
    assert (
        len(run.data.tags["technical.git.commit"]) == 40
        or run.data.tags["technical.git.commit"] == "unknown"
    )
    own = {name for name in run.data.tags if not name.startswith(("technical.", "mlflow."))}
    assert own == {"dataset.name", "dataset.sha256"}
    experiment = mlflow.MlflowClient(tracker.uri).get_experiment(run.info.experiment_id)
    assert experiment.name == "digit-recognizer-mnist_sample"
    assert experiment.artifact_location == (tracker.workspace.artifacts / experiment.name).as_uri()


def test_a_name_and_a_parent_of_ones_own(tracker: Tracker) -> None:
    parent = created(tracker)
    child = stored_run(tracker, created(tracker, run_name="mine", parent_run_id=parent))
    assert child.info.run_name == "mine" and child.data.tags["mlflow.parentRunId"] == parent


def test_an_experiment_is_found_again_and_a_deleted_one_refused(tracker: Tracker) -> None:
    client = mlflow.MlflowClient(tracker.uri)
    first = tracker.experiment_id("a name with spaces/and more")
    assert tracker.experiment_id("a name with spaces/and more") == first
    client.delete_experiment(first)
    with pytest.raises(StudyError, match="which is deleted: choose another name"):
        again(tracker).experiment_id("a name with spaces/and more")


# ---------------------------------------------------------------------------------- recorded


def test_what_is_recorded_arrives(tracker: Tracker) -> None:
    log = tracker.writer(created(tracker))
    log.config(CONFIG)
    log.epoch(1, RECORD)
    log.epoch(2, RECORD | {"val_loss": 1.0})
    log.tags({"a": "b"})
    log.metrics({"parameters": 9.0}, step=2)
    run = stored_run(tracker, log.run_id)
    assert run.data.params == {key: str(value) for key, value in flatten(CONFIG).items()}
    assert run.data.tags["a"] == "b" and run.data.metrics == {
        "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "parameters": 9.0
    }  # fmt: skip
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(log.run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert run.info.status == "RUNNING"


def test_a_password_of_the_store_is_not_recorded(tracker: Tracker) -> None:
    log = tracker.writer(created(tracker))
    log.config(replace(CONFIG, tracking=TrackingConfig(uri="postgresql://me:hush@h/d")))
    assert stored_run(tracker, log.run_id).data.params["tracking.uri"] == "postgresql://me:***@h/d"
    assert "hush" not in (log.folder / "config.yaml").read_text()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_uploads_what_lies_there_and_clears_the_spool(
    status: str, tracker: Tracker
) -> None:
    log = tracker.writer(created(tracker))
    (log.folder / "figures").mkdir()
    (log.folder / "figures" / "a.png").write_bytes(b"picture")
    assert log.end(status, {}) is None
    run = stored_run(tracker, log.run_id)
    assert run.info.status == status and run.info.end_time and not log.folder.exists()
    assert [one.path for one in mlflow.MlflowClient(tracker.uri).list_artifacts(log.run_id)] == [
        "figures"
    ]


def test_of_two_values_in_one_millisecond_the_last_counts(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.7e9)
    log = tracker.writer(created(tracker))
    log.metrics({"val_accuracy": 0.7117}, 3)
    log.metrics({"val_accuracy": 0.71}, 3)
    log.end("FINISHED", {})
    assert stored_run(tracker, log.run_id).data.metrics["val_accuracy"] == 0.71


# ---------------------------------------------------------------------------------- the store is gone


def test_a_store_that_goes_away_stops_nothing_and_loses_nothing(tracker: Tracker) -> None:
    log = tracker.writer(created(tracker))
    log.config(CONFIG)
    log.epoch(1, RECORD)
    tracker.client = Gone()  # type: ignore[assignment]
    log.epoch(2, RECORD)
    log.tags({"weights.sha256": "w"})
    kept = log.end("FINISHED", {})
    assert (
        kept == log.folder == tracker.workspace.spool / log.run_id
        and log.fault == "connection refused"
    )
    assert json.loads((kept / "outcome.json").read_text())["status"] == "FINISHED"
    assert [(step, value) for step, _, value in log.spooled.metrics()["val_accuracy"]] == [
        (1, 0.5),
        (2, 0.5),
    ]
    assert (kept / "config.yaml").is_file()


def uploaded_steps(tracker: Tracker, run_id: str) -> list[int]:
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(run_id, "val_accuracy")
    return [point.step for point in history]


def test_quick_epochs_share_a_batch_and_slow_epochs_are_uploaded_at_once(tracker: Tracker) -> None:
    run_id = created(tracker)
    quick = RunWriter(tracker, run_id, seconds_a_batch=60)
    quick.epoch(1, RECORD)
    quick.epoch(2, RECORD)
    assert uploaded_steps(tracker, run_id) == []
    assert len(quick.spooled.metrics()["val_accuracy"]) == 2
    RunWriter(tracker, run_id, seconds_a_batch=0).epoch(3, RECORD)
    assert uploaded_steps(tracker, run_id) == [1, 2, 3]


def test_a_store_that_comes_back_gets_all_that_it_missed(tracker: Tracker) -> None:
    log = RunWriter(tracker, created(tracker), seconds_a_batch=0)
    client = tracker.client
    tracker.client = Gone()  # type: ignore[assignment]
    log.epoch(1, RECORD)
    log.epoch(2, RECORD)
    tracker.client = client
    assert log.end("FINISHED", {}) is None and not log.folder.exists()
    assert uploaded_steps(tracker, log.run_id) == [1, 2]
    assert stored_run(tracker, log.run_id).info.status == "FINISHED"


# ---------------------------------------------------------------------------------- ended from outside


@pytest.mark.parametrize(
    ("before", "after"), [("RUNNING", "KILLED"), ("FINISHED", "FINISHED"), ("FAILED", "FAILED")]
)
def test_only_a_run_that_could_not_end_itself_is_ended(
    before: str, after: str, tracker: Tracker
) -> None:
    run_id = created(tracker)
    if before != "RUNNING":
        mlflow.MlflowClient(tracker.uri).set_terminated(run_id, before)
    tracker.close_run(run_id, "KILLED", "somebody's kill -9" * 100)
    run = stored_run(tracker, run_id)
    assert run.info.status == after and ("failure" in run.data.tags) == (before == "RUNNING")


@pytest.mark.parametrize("is_uploaded", [True, False])
def test_a_run_that_was_killed_while_it_was_paused_can_count_as_stopped_on_purpose(
    is_uploaded: bool, tracker: Tracker
) -> None:
    log = tracker.writer(created(tracker))
    client = tracker.client
    if not is_uploaded:
        tracker.client = Gone()  # type: ignore[assignment]
    log.tags({"failure": "Interrupted: SIGINT"})
    log.end("KILLED", {})
    tracker.client = client
    tracker.close_run(log.run_id, "FINISHED", "others promise more")
    run = stored_run(tracker, log.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["stopped"] == "others promise more"
    assert "failure" not in run.data.tags and not log.folder.exists()


@pytest.mark.parametrize("ended_by", ["itself", "another process"])
def test_a_run_that_was_stopped_on_purpose_is_finished_without_a_result(
    ended_by: str, tracker: Tracker
) -> None:
    run_id = created(tracker)
    log = tracker.writer(run_id)
    log.metrics({"val_accuracy": 0.5}, 1)
    if ended_by == "itself":
        log.stop("others promise more")
    tracker.close_run(run_id, "FINISHED", "others promise more")
    tracker.tag_run(run_id, {"trial.state": "PRUNED"})
    run = stored_run(tracker, run_id)
    assert (run.info.status, run.data.tags["stopped"]) == ("FINISHED", "others promise more")
    assert "failure" not in run.data.tags
    assert tracker.was_stopped(run_id) and tracker.finished_metrics(run_id) is None


def test_a_run_that_ends_while_its_folder_is_about_to_go_keeps_it_until_that_is_uploaded(
    tracker: Tracker, tmp_path: Path
) -> None:
    run_id = created(tracker)
    log = tracker.writer(run_id)
    log.metrics({"val_accuracy": 0.5}, 1)

    class EndsNow(SpooledRun):
        """A run whose process ends it between the last look of an uploader and the removal."""

        def remove(self, is_uploaded: Callable[[], bool]) -> bool:
            (log.folder / "figure.txt").write_text("drawn")
            log.finish()
            return super().remove(is_uploaded)

    upload_run(EndsNow(run_id, tracker.workspace), tracker)
    assert log.folder.is_dir()
    upload_run(tracker.spooled(run_id), tracker)
    assert stored_run(tracker, run_id).info.status == "FINISHED" and not log.folder.exists()
    assert [file.path for file in tracker.client.list_artifacts(run_id)] == ["figure.txt"]


def test_a_store_that_fails_when_a_run_is_opened_again_is_not_taken_to_have_lost_it(
    tracker: Tracker,
) -> None:
    """Else a command that goes on would begin a second parent run."""
    run_id = created(tracker)
    client = tracker.client
    client.set_terminated(run_id, "KILLED")
    tracker.client = Gone()  # type: ignore[assignment]
    with pytest.raises(MlflowException, match="connection refused"):
        tracker.reopen_run(run_id)
    tracker.client = client
    tracker.reopen_run(run_id)
    assert stored_run(tracker, run_id).info.status == "RUNNING"


def test_children_are_ended_with_their_parent(tracker: Tracker) -> None:
    parent, stranger = created(tracker), created(tracker)
    children = [created(tracker, parent_run_id=parent) for _ in range(3)]
    mlflow.MlflowClient(tracker.uri).set_terminated(children[0], "FINISHED")
    tracker.close_children(parent, "KILLED")
    states = [stored_run(tracker, run_id).info.status for run_id in [*children, stranger]]
    assert states == ["FINISHED", "KILLED", "KILLED", "RUNNING"]


@pytest.mark.slow
def test_a_dropped_model_leaves_nothing_and_the_others_stay(tracker: Tracker) -> None:
    client, places = mlflow.MlflowClient(tracker.uri), {}
    for run_id in (created(tracker), created(tracker)):
        model = client.create_logged_model(
            stored_run(tracker, run_id).info.experiment_id, "model", run_id
        )
        place = Path(urllib.parse.unquote(urllib.parse.urlsplit(model.artifact_location).path))
        place.mkdir(parents=True)
        (place / "model.keras").write_text("weights")
        places[run_id] = place
    dropped, kept = places
    tracker.drop_models(dropped)
    experiment = stored_run(tracker, kept).info.experiment_id
    assert [model.source_run_id for model in client.search_logged_models([experiment])] == [kept]
    assert not places[dropped].parent.exists() and (places[kept] / "model.keras").exists()


def test_what_a_store_that_is_gone_misses_is_uploaded_by_the_next_command(
    tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = created(tracker)
    gone = again(tracker)
    gone.client = Gone()  # type: ignore[assignment]
    gone.close_run(run_id, "KILLED", "r")
    gone.tag_run(run_id, {"trial.state": "FAIL"})
    gone.close_children(run_id, "KILLED")
    said = capsys.readouterr().err
    assert f"run {run_id} could not be uploaded whole" in said and "connection refused\n" in said
    assert stored_run(tracker, run_id).info.status == "RUNNING" and gone.is_spooled(run_id)
    opened = open_store(tracker.uri, tracker.workspace)
    run = opened.client.get_run(run_id)
    tags = run.data.tags
    assert run.info.status == "KILLED"
    assert (tags["failure"], tags["trial.state"]) == ("r", "FAIL")
    assert is_spool_empty(tracker.workspace) and not opened.is_spooled(run_id)


def test_preparing_a_store_twice_makes_one(workspace: Workspace, migrated: Path) -> None:
    path = workspace.root / "mlflow.db"
    path.write_bytes(migrated.read_bytes())
    for _ in range(2):
        create_store(workspace.default_store, workspace)
    assert path.stat().st_size == migrated.stat().st_size


# ---------------------------------------------------------------------------------- a session


@pytest.mark.slow
def test_a_session_creates_its_store_and_has_uploaded_all_when_it_ends(
    workspace: Workspace,
) -> None:
    uri = workspace.default_store
    with session(uri, workspace, outage_timeout=1) as tracker:
        run_id = tracker.request_run(CONFIG, "mnist_sample", "filters=8").result()
        writer = tracker.writer(run_id)
        writer.epoch(1, RECORD)
        assert tracker.is_spooled(run_id) and tracker.fault is None
        assert writer.end("FINISHED", {}) is None
        assert tracker.wait() == 0
    assert is_spool_empty(workspace)
    run = Tracker(uri, workspace).client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["val_accuracy"] == 0.5


def test_a_signal_while_the_last_uploads_are_waited_for_leaves_nothing_unsaid(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a server that accepts what is sent and never answers."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    class GetsASignal(BackgroundUploader):
        """Gets a signal when it says what is waited for."""

        def _what_is_waited_for(self, left: int) -> str:
            signal.raise_signal(signal.SIGINT)
            return super()._what_is_waited_for(left)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        spooled = SpooledRun("a" * 32, workspace)
        spooled.put(uri, tags={"a": "1"})
        uploader = GetsASignal(Runs(uri, workspace), 1.0, "outage_timeout", quiet_time=0.3)
        with pytest.raises(Interrupted), interruptible(), uploader:
            pass
    printed = capsys.readouterr().err
    assert f"has not taken 1 runs (there was no time): they are kept in {spooled.folder}" in printed


def test_runs_of_two_workspaces_do_not_meet(tracker: Tracker, tmp_path: Path) -> None:
    other = Tracker(tracker.uri, Workspace(tmp_path / "other"))
    run_id = created(tracker)
    writer = other.writer(run_id)
    assert other.is_spooled(run_id) and not tracker.is_spooled(run_id)
    tracker.tag_run(run_id, {"a": "1"})
    assert other.is_spooled(run_id) and writer.end("FINISHED", {}) is None
    assert stored_run(tracker, run_id).data.tags["a"] == "1"
    assert is_spool_empty(other.workspace)


# ---------------------------------------------------------------------------------- the machine


def test_mlflows_monitor_records_the_machine_through_the_spool(tracker: Tracker) -> None:
    """Even while the store is gone."""
    log = tracker.writer(created(tracker))
    client = tracker.client
    tracker.client = Gone()  # type: ignore[assignment]
    log.tags({"a": "1"})
    log.start_system_metrics(interval_s=0.02)
    name = "system/cpu_utilization_percentage"
    deadline = time.monotonic() + 30
    while len(log.spooled.metrics().get(name, [])) < 2:
        assert time.monotonic() < deadline, "nothing was recorded"
        time.sleep(0.01)
    tracker.client = client
    assert log.end("FINISHED", {}) is None and is_spool_empty(tracker.workspace)
    history = client.get_metric_history(log.run_id, name)
    assert [point.step for point in history] == list(range(len(history))) and len(history) >= 2
    recorded = stored_run(tracker, log.run_id).data.metrics
    assert all(key.startswith("system/") for key in recorded)
    assert 0 <= recorded["system/system_memory_usage_percentage"] <= 100
    assert "system/network_receive_megabytes" in recorded


def test_requirements_are_checked_without_a_look_at_every_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look() -> None:
        raise AssertionError("it read the metadata of all packages")

    monkeypatch.setattr(requirements_utils.importlib_metadata, "packages_distributions", look)
    skip_module_map()
    found = requirements_utils._check_requirement_satisfied("numpy==0.1")
    assert found is not None and found.installed_version == np.__version__
