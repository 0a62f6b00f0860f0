"""Runs in MLflow: created, told, ended truthfully, and kept on disk when the store is gone."""

from __future__ import annotations

import json
import os
import signal
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy
from mlflow.exceptions import MlflowException

from digit_study.config.run import Config, TrackingConfig
from digit_study.data.sources import DataConfig
from digit_study.model.recipe import TrainingConfig
from digit_study.support.messages import StudyError, flatten
from digit_study.support.signals import Interrupted, interruptible
from digit_study.tracking import database as stores
from digit_study.tracking import runs as tracking

CONFIG = Config(
    data=DataConfig(sha256="ab" * 32), training=TrainingConfig(precision="float32", threads=1)
)
RECORD = {"train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.5, "of no interest": 3.0}


def created(store: str, **tracked: Any) -> str:
    config = Config(CONFIG.data, CONFIG.model, CONFIG.training, TrackingConfig(**tracked))
    return tracking.create_run(config, store, "mnist_sample", "filters=8")


def look_at(store: str, run_id: str) -> Any:
    return mlflow.MlflowClient(store).get_run(run_id)


class Gone:
    """A store that has gone away."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*_: Any, **__: Any) -> Any:
            raise MlflowException("connection refused\nand a long story")

        return refuse


# ---------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("statement", ["INSERT INTO params", "SELECT"])
def test_a_signal_inside_a_transaction_leaves_the_store_usable(statement: str, store: str) -> None:
    log = tracking.RunLog(store, created(store))
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
    run = look_at(store, log.run_id)
    assert run.info.status == "KILLED" and run.data.params["training.threads"] == "1"


def test_digits_that_two_runs_log_at_the_same_moment_are_logged_by_both(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow looks whether a dataset is there and inserts it if not; between the two another process may be faster."""
    log, logged, calls = tracking.RunLog(store, created(store)), mlflow.MlflowClient.log_inputs, []

    def late(client: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 1:
            raise MlflowException(
                "(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.experiment_id, ..."
            )
        return logged(client, *arguments, **named)

    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", late)
    log.dataset("mnist_sample", "ab" * 32, {"train_images": 3})
    assert log.end("FINISHED", {}) is None
    [used] = look_at(store, log.run_id).inputs.dataset_inputs
    assert used.dataset.name == "mnist_sample"


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
    assert (
        stores.experiment_name(Config(tracking=TrackingConfig(experiment=experiment)), dataset)
        == name
    )


def test_a_new_run_says_where_it_comes_from(store: str) -> None:
    run = look_at(store, created(store))
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
    experiment = mlflow.MlflowClient(store).get_experiment(run.info.experiment_id)
    assert experiment.name == "digit-recognizer-mnist_sample"
    assert experiment.artifact_location == (stores.ARTIFACTS / experiment.name).as_uri()


def test_a_name_and_a_parent_of_ones_own(store: str) -> None:
    parent = created(store)
    child = look_at(store, created(store, run_name="mine", parent_run_id=parent))
    assert child.info.run_name == "mine" and child.data.tags["mlflow.parentRunId"] == parent


def test_an_experiment_is_found_again_and_a_deleted_one_refused(store: str) -> None:
    client = mlflow.MlflowClient(store)
    first = tracking.experiment_id(store, "a name with spaces/and more")
    assert tracking.experiment_id(store, "a name with spaces/and more") == first
    client.delete_experiment(first)
    tracking.experiment_id.cache_clear()  # which another process has not filled
    with pytest.raises(StudyError, match="which is deleted: choose another name"):
        tracking.experiment_id(store, "a name with spaces/and more")


# ---------------------------------------------------------------------------------- told


def test_what_is_told_arrives(store: str) -> None:
    log = tracking.RunLog(store, created(store))
    log.config(CONFIG)
    log.epoch(1, RECORD)
    log.epoch(2, RECORD | {"val_loss": 1.0})
    log.tags({"a": "b"})
    log.metrics({"parameters": 9.0}, step=2)
    run = look_at(store, log.run_id)
    assert run.data.params == {key: str(value) for key, value in flatten(CONFIG).items()}
    assert run.data.tags["a"] == "b" and run.data.metrics == {
        "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "parameters": 9.0
    }  # fmt: skip
    history = mlflow.MlflowClient(store).get_metric_history(log.run_id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert run.info.status == "RUNNING"


def test_a_password_of_the_store_is_not_told(store: str) -> None:
    log = tracking.RunLog(store, created(store))
    log.config(replace(CONFIG, tracking=TrackingConfig(uri="postgresql://me:hush@h/d")))
    assert look_at(store, log.run_id).data.params["tracking.uri"] == "postgresql://me:***@h/d"
    assert "hush" not in (log.folder / "config.yaml").read_text()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_end_sends_what_lies_there_and_clears_the_outbox(status: str, store: str) -> None:
    log = tracking.RunLog(store, created(store))
    (log.folder / "figures").mkdir()
    (log.folder / "figures" / "a.png").write_bytes(b"picture")
    assert log.end(status, {"reason": "r"}) is None
    run = look_at(store, log.run_id)
    assert run.info.status == status and run.info.end_time and not log.folder.exists()
    assert [one.path for one in mlflow.MlflowClient(store).list_artifacts(log.run_id)] == [
        "figures"
    ]


def test_of_two_values_in_one_millisecond_the_one_told_last_counts(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.7e9)
    log = tracking.RunLog(store, created(store))
    log.metrics({"val_accuracy": 0.7117}, 3)
    log.metrics({"val_accuracy": 0.71}, 3)
    log.end("FINISHED", {})
    assert look_at(store, log.run_id).data.metrics["val_accuracy"] == 0.71


# ---------------------------------------------------------------------------------- the store is gone


def test_a_store_that_goes_away_stops_nothing_and_loses_nothing(store: str) -> None:
    log = tracking.RunLog(store, created(store))
    log.config(CONFIG)
    log.epoch(1, RECORD)
    log.client = Gone()  # type: ignore[assignment]
    log.epoch(2, RECORD)
    log.tags({"weights.sha256": "w"})
    kept = log.end("FINISHED", {"metrics": {"val_accuracy": 0.5}, "weights_sha256": "w"})
    assert kept == log.folder == stores.OUTBOX / log.run_id and log.fault == "connection refused"
    outcome = {"status": "FINISHED", "metrics": {"val_accuracy": 0.5}, "weights_sha256": "w"}
    assert outcome.items() <= json.loads((kept / "outcome.json").read_text()).items()
    assert [(step, value) for step, _, value in log.spooled.metrics()["val_accuracy"]] == [
        (1, 0.5),
        (2, 0.5),
    ]
    assert (kept / "config.yaml").is_file()


def test_quick_epochs_share_a_batch_and_slow_ones_are_sent_at_once(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps() -> list[int]:
        return [
            p.step
            for p in mlflow.MlflowClient(store).get_metric_history(log.run_id, "val_accuracy")
        ]

    log = tracking.RunLog(store, created(store))
    log.epoch(1, RECORD)
    log.epoch(2, RECORD)
    assert steps() == [] and len(log.spooled.metrics()["val_accuracy"]) == 2
    monkeypatch.setattr(tracking, "SECONDS_A_BATCH", 0.0)
    log.epoch(3, RECORD)
    assert steps() == [1, 2, 3]


def test_a_store_that_comes_back_gets_all_that_it_missed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SECONDS_A_BATCH", 0.0)
    log = tracking.RunLog(store, created(store))
    client, log.client = log.client, Gone()  # type: ignore[assignment]
    log.epoch(1, RECORD)
    log.epoch(2, RECORD)
    log.client = client
    assert log.end("FINISHED", {}) is None and not log.folder.exists()
    history = mlflow.MlflowClient(store).get_metric_history(log.run_id, "val_accuracy")
    assert [point.step for point in history] == [1, 2]
    assert look_at(store, log.run_id).info.status == "FINISHED"


# ---------------------------------------------------------------------------------- ended from outside


@pytest.mark.parametrize(
    ("before", "after"), [("RUNNING", "KILLED"), ("FINISHED", "FINISHED"), ("FAILED", "FAILED")]
)
def test_only_a_run_that_could_not_end_itself_is_ended(before: str, after: str, store: str) -> None:
    run_id = created(store)
    if before != "RUNNING":
        mlflow.MlflowClient(store).set_terminated(run_id, before)
    tracking.close_run(store, run_id, "KILLED", "somebody's kill -9" * 100)
    run = look_at(store, run_id)
    assert run.info.status == after and ("failure" in run.data.tags) == (before == "RUNNING")


def test_children_are_ended_with_their_parent(store: str) -> None:
    parent, stranger = created(store), created(store)
    children = [created(store, parent_run_id=parent) for _ in range(3)]
    mlflow.MlflowClient(store).set_terminated(children[0], "FINISHED")
    tracking.close_children(store, parent, "KILLED")
    states = [look_at(store, run_id).info.status for run_id in [*children, stranger]]
    assert states == ["FINISHED", "KILLED", "KILLED", "RUNNING"]


def test_a_dropped_model_leaves_nothing_and_the_others_stay(store: str) -> None:
    client, places = mlflow.MlflowClient(store), {}
    for run_id in (created(store), created(store)):
        model = client.create_logged_model(
            look_at(store, run_id).info.experiment_id, "model", run_id
        )
        place = Path(urllib.parse.unquote(urllib.parse.urlsplit(model.artifact_location).path))
        place.mkdir(parents=True)
        (place / "model.keras").write_text("weights")
        places[run_id] = place
    dropped, kept = places
    tracking.drop_models(store, dropped)
    experiment = look_at(store, kept).info.experiment_id
    assert [model.source_run_id for model in client.search_logged_models([experiment])] == [kept]
    assert not places[dropped].parent.exists() and (places[kept] / "model.keras").exists()


def test_what_a_store_that_is_gone_was_to_be_told_is_told_by_the_next_command(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = created(store)
    with monkeypatch.context() as gone:
        gone.setattr(tracking, "client_of", lambda uri: Gone())
        tracking.close_run(store, run_id, "KILLED", "r")
        tracking.tag_run(store, run_id, {"trial.state": "FAIL"})
        tracking.close_children(store, run_id, "KILLED")
    said = capsys.readouterr().err
    assert f"run {run_id} could not be told all" in said and "connection refused\n" in said
    assert look_at(store, run_id).info.status == "RUNNING"
    stores.prepare_store(store)
    run = look_at(store, run_id)
    assert (run.info.status, run.data.tags["failure"], run.data.tags["trial.state"]) == (
        "KILLED",
        "r",
        "FAIL",
    )
    assert [path for path in stores.OUTBOX.iterdir() if path.is_dir()] == []


def test_preparing_a_store_twice_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated: Path
) -> None:
    monkeypatch.setattr(stores, "ARTIFACTS", tmp_path / "mlruns")
    path = tmp_path / "mlflow.db"
    path.write_bytes(migrated.read_bytes())
    for _ in range(2):
        stores.prepare_store(f"sqlite:///{path}")
    assert path.stat().st_size == migrated.stat().st_size
