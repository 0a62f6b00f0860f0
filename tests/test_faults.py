"""What is the world's fault and what a trial's, and what the spool holds through kills, full disks and repetitions."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
from digit_study.study.outcomes import ABANDONED, INTERRUPTED, OF_WORLD, is_blameless
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from stub_worker import plan
from tracked import CONFIG, again, created, is_spool_empty, tracker, workspace

from digit_study.config.run_config import Config
from digit_study.support import machine, signals
from digit_study.support.messages import StudyError, is_infrastructure_fault
from digit_study.support.workspace import Workspace
from digit_study.tracking import database as stores
from digit_study.tracking.session import Tracker
from digit_study.tracking.spool import SpooledRun
from digit_study.tracking.upload import RunUpload, upload_run
from digit_study.tracking.writer import RunWriter
from digit_study.trial import health
from digit_study.trial.health import Health
from digit_study.trial.local import child, worker
from digit_study.trial.local.pool import LocalEngine
from digit_study.trial.local.worker import Worker
from digit_study.trial.protocol import EngineContext, Event

__all__ = ["tracker", "workspace"]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_of_world"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EROFS, "Read-only file system", "/a"), True),
        (MemoryError(), True),
        (
            OSError(
                "Can't write data (file write failed: errno = 28, error message = 'No space left on device')"
            ),
            True,
        ),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), True),
        (
            caused(RuntimeError("could not save"), OSError(errno.EDQUOT, "Disk quota exceeded")),
            True,
        ),
        (caused(StudyError("a"), caused(ValueError("b"), MemoryError())), True),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), False),
        (ValueError("training diverged"), False),
        (caused(RuntimeError("a"), KeyError("b")), False),
    ],
)
def test_what_is_the_worlds_fault(error: Exception, is_of_world: bool) -> None:
    assert is_infrastructure_fault(error) == is_of_world


@given(st.text())
def test_only_what_ended_by_no_fault_of_its_own_is_blameless(reason: str) -> None:
    assert is_blameless(OF_WORLD + reason)
    assert is_blameless(reason) == (
        reason in (ABANDONED, INTERRUPTED) or reason.startswith(OF_WORLD)
    )


# ---------------------------------------------------------------------------------- the machine


@pytest.fixture
def a_world(store: str, monkeypatch: pytest.MonkeyPatch) -> Health:
    """The world of a study, on a clock of its own that the test sets."""
    stores.ARTIFACTS.mkdir(exist_ok=True)
    found = plan("search.outage_timeout=1").health()
    clock = [1000.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: clock[0])
    found.clock = clock  # type: ignore[attr-defined]
    return found


def test_trials_wait_with_growing_pauses_and_go_on(
    a_world: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    clock: list[float] = a_world.clock  # type: ignore[attr-defined]
    monkeypatch.setattr(
        a_world,
        "_problem",
        lambda: looks.append(clock[0] - 1000) or ("full" if clock[0] < 1020 else None),
    )
    assert a_world.is_well()
    a_world.hit("full")
    while not a_world.is_well():
        clock[0] += 0.5
    assert looks == [1.0, 3.0, 7.0, 15.0, 31.0]


def test_patience_ends_a_study_that_the_world_does_not_let_go_on(
    a_world: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock: list[float] = a_world.clock  # type: ignore[attr-defined]
    monkeypatch.setattr(
        a_world, "_problem", lambda: None
    )  # it looks well, and every trial fails all the same
    with pytest.raises(
        StudyError,
        match=r"for 1 min \(search.outage_timeout\) there was none: full.*same command goes on",
    ):
        for _ in range(1000):
            if a_world.is_well():
                a_world.hit("full")
            clock[0] += 0.5
    assert 60 < clock[0] - 1000 < 130


def test_the_world_is_looked_at_by_using_it(
    a_world: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert a_world._problem() is None
    monkeypatch.setattr(health, "MEMORY", 2**60)
    assert "of memory are left" in str(a_world._problem())
    monkeypatch.undo()
    monkeypatch.setattr(stores, "ARTIFACTS", Path("/proc"))
    assert "there is no room for 8 MB in /proc" in str(a_world._problem())


def wait_in_a_trial(config: Config, run_id: str, send: Any, ask: Any) -> None:
    send("steps", (1, 1, 1))
    time.sleep(60)


def fill(config: Config, run_id: str, send: Any, ask: Any) -> None:
    raise RuntimeError("save") from OSError(errno.ENOSPC, "No space left on device")


def heard(engine: LocalEngine, has_begun: bool = False) -> Event:
    for _ in range(400):
        for event in engine.events():
            if event.kind != "steps" or has_begun:
                return event
    raise AssertionError("nothing has been heard")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "kind", "words"),
    [
        ("trial", "died", "SIGKILL"),
        ("trial for memory", "world", "killed by the kernel, for no memory was left"),
        ("server and trial", "world", "the server that it was forked from was killed"),
        ("disk", "world", "RuntimeError: save"),
    ],
)
def test_an_engine_tells_the_machines_faults_from_the_trials(
    killed: str, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(worker, "start_server", lambda: context)
    engine = LocalEngine(
        EngineContext(),
        lambda config, run_id: Worker(
            fill if killed == "disk" else wait_in_a_trial, config, run_id
        ),
    )
    engine.submit(1, Config(), "run")
    if killed != "disk":
        assert heard(engine, True).kind == "steps"
        trial = psutil.Process(engine.trials[1].process.pid)
        if killed == "trial for memory":
            before = worker.killed_for_memory()
            monkeypatch.setattr(worker, "killed_for_memory", lambda: before + 1)
        if killed == "server and trial":
            trial.parent().kill()
        os.kill(trial.pid, signal.SIGKILL)
    event = heard(engine)
    assert (event.key, event.kind) == (1, kind) and words in event.content
    engine.stop()


def draw_for_long(config: Config, run_id: str, send: Any, ask: Any) -> None:
    uri = str(config.tracking.uri)
    root = Path(uri.removeprefix("sqlite:///")).parent
    log = Tracker(uri, Workspace(root)).writer(run_id)
    (log.folder / "model").mkdir()
    mlflow.models.Model().save(str(log.folder / "model" / "MLmodel"))
    log.result({"val_accuracy": 0.5}, step=1)
    with signals.deferred_signals():
        send("done", config.tracking.run_name)
        time.sleep(0.5 if config.tracking.run_name == "soon" else 60)
        log.end("FINISHED", {})


@pytest.mark.slow
def test_who_only_draws_holds_no_slot_and_loses_no_result(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(store, Workspace(tmp_path))
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(worker, "start_server", lambda: context)
    monkeypatch.setattr(child, "DRAWS_S", 2.0)
    engine = LocalEngine(
        EngineContext(), lambda config, run_id: Worker(draw_for_long, config, run_id)
    )
    runs = {name: created(tracker) for name in ("soon", "killed", "at the end")}
    for number, (name, run_id) in enumerate(runs.items()):
        assert engine.free == 1
        engine.submit(
            number,
            replace(CONFIG, tracking=replace(CONFIG.tracking, uri=store, run_name=name)),
            run_id,
        )
        assert engine.free == 0
        event = heard(engine)
        assert (event.key, event.kind, event.content) == (number, "done", name)
        if name == "soon":
            while engine.finishing:
                assert not list(engine.events())
        if name == "killed":
            os.kill(engine.finishing[0].process.pid, signal.SIGKILL)
    assert tracker.finished_metrics(runs["at the end"]) == {"val_accuracy": 0.5}
    engine.stop()
    tracker.upload_left()
    ended = {
        name: mlflow.MlflowClient(tracker.uri).get_run(run_id) for name, run_id in runs.items()
    }
    assert {run.info.status for run in ended.values()} == {"FINISHED"}
    assert {run.data.metrics["val_accuracy"] for run in ended.values()} == {0.5}
    assert [len(run.outputs.model_outputs) for run in ended.values()] == [1, 1, 1]
    reasons = {name: run.data.tags.get("failure", "") for name, run in ended.items()}
    killed = "it has its result, but not all figures: its process ended before it"
    assert reasons == {"soon": "", "killed": killed, "at the end": killed}


# ---------------------------------------------------------------------------------- the spool


def test_a_line_that_a_full_disk_tore_hides_no_other(workspace: Workspace) -> None:
    spooled = SpooledRun("a" * 32, workspace)
    spooled.put("sqlite:///x", tags={"a": "1"})
    with (spooled.folder / "log.jsonl").open("a") as log:
        log.write('{"tags": {"b"')
    assert [record["tags"] for record in spooled.records().found] == [{"a": "1"}]
    spooled.put("sqlite:///x", tags={"c": "3"})
    assert [record["tags"] for record in spooled.records().found] == [{"a": "1"}, {"c": "3"}]


def left_run(tracker: Tracker) -> RunWriter:
    """Leave a whole run on disk, of which the store knows only that it exists."""
    log = tracker.writer(created(tracker))
    log.fault = "gone"
    log.config(CONFIG)
    log.dataset("mnist_sample", "ab" * 32, {"train_images": 3})
    for step in (1, 2):
        log.metrics({"val_accuracy": 0.5 + step / 10, "val_loss": float("nan")}, step)
    (log.folder / "tables").mkdir()
    (log.folder / "tables" / "predictions.csv").write_text("index,correct\n0,True\n")
    (log.folder / "model" / "data").mkdir(parents=True)
    (log.folder / "model" / "data" / "model.keras").write_bytes(b"weights")
    mlflow.models.Model().save(str(log.folder / "model" / "MLmodel"))
    log.finish()
    return log


def assert_uploaded_once(tracker: Tracker, run_id: str) -> None:
    """Check that the store has all of a run that `left_run` left, each thing once."""
    client = mlflow.MlflowClient(tracker.uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["training.threads"] == "1"
    history = client.get_metric_history(run_id, "val_accuracy")
    assert [point.step for point in history] == [1, 2]
    assert len(run.inputs.dataset_inputs) == 1 and len(run.outputs.model_outputs) == 1
    of_run = f"source_run_id = '{run_id}'"
    [model] = client.search_logged_models([run.info.experiment_id], filter_string=of_run)
    assert str(model.status) == "READY"
    assert tracker.model_file(f"models:/{model.model_id}").read_bytes() == b"weights"
    assert tracker.artifact_table(run_id, "predictions")["correct"].tolist() == [True]
    assert is_spool_empty(tracker.workspace)


@pytest.mark.parametrize("calls", range(1, 10))
def test_an_upload_that_ends_anywhere_uploads_each_thing_once(
    calls: int, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = left_run(tracker)
    assert tracker.finished_metrics(log.run_id) == pytest.approx(
        {"val_accuracy": 0.7, "val_loss": float("nan")}, nan_ok=True
    )
    left = [calls]
    asked = mlflow.MlflowClient.__getattribute__
    uploads = RunUpload._upload

    def dying(found: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            answer = found(*given, **named) if left[0] >= 0 else None
            if left[0] <= 0:  # the store has it, but its answer never came; afterwards it is away
                raise MlflowException("connection reset")
            return answer

        return call

    def attribute(client: Any, name: str) -> Any:
        found = asked(client, name)
        return dying(found) if callable(found) and not name.startswith("_") else found

    with monkeypatch.context() as gone:
        gone.setattr(mlflow.MlflowClient, "__getattribute__", attribute)
        gone.setattr(RunUpload, "_upload", dying(uploads))
        assert upload_run(log.spooled, again(tracker)) is not None
    again(tracker).upload_left()
    assert_uploaded_once(tracker, log.run_id)


def test_what_an_earlier_version_left_is_uploaded(tracker: Tracker) -> None:
    """Folders as they were written at 29db070, half uploaded: their names and keys are read."""
    run_id = created(tracker)
    folder = tracker.workspace.spool / run_id
    (folder / "model" / "data").mkdir(parents=True)
    (folder / "tables").mkdir()
    (folder / "about.json").write_text(json.dumps({"uri": tracker.uri, "owner": "gone:1:0.00"}))
    first = {"time": 1, "params": {"training.threads": "1"}, "metrics": {"val_accuracy": 0.6}}
    digits = {"name": "mnist_sample", "digest": "ab" * 18, "profile": "{}"}
    rest = [
        {"time": 2, "metrics": {"val_accuracy": 0.7}, "step": 2},
        {"time": 3, "dataset": digits},
        {"time": 4, "tags": {"weights.sha256": "w"}},
    ]
    lines = [json.dumps(record) + "\n" for record in [{**first, "step": 1}, *rest]]
    (folder / "log.jsonl").write_text("".join(lines))
    (folder / "outcome.json").write_text(json.dumps({"status": "FINISHED", "time": 5}))
    (folder / "sent.json").write_text(json.dumps({"bytes": len(lines[0]), "files": {}}))
    (folder / "tables" / "predictions.csv").write_text("index,correct\n0,True\n")
    (folder / "model" / "data" / "model.keras").write_bytes(b"weights")
    mlflow.models.Model().save(str(folder / "model" / "MLmodel"))
    client = mlflow.MlflowClient(tracker.uri)
    client.log_param(run_id, "training.threads", "1")
    client.log_metric(run_id, "val_accuracy", 0.6, 1, 1)
    again(tracker).upload_left()
    assert_uploaded_once(tracker, run_id)
    assert client.get_run(run_id).info.end_time == 5


def test_a_run_that_a_living_process_writes_is_left_alone_and_that_of_a_dead_process_ended(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tracker.writer(created(tracker))
    log.fault = "gone"
    log.tags({"a": "1"})
    tracker.upload_left()
    run = mlflow.MlflowClient(tracker.uri).get_run(log.run_id)
    assert run.info.status == "RUNNING" and "a" not in run.data.tags and log.folder.is_dir()
    monkeypatch.setattr(machine, "is_alive", lambda name: False)
    tracker.upload_left()
    run = mlflow.MlflowClient(tracker.uri).get_run(log.run_id)
    assert (run.info.status, run.data.tags["failure"]) == ("KILLED", "its process ended before it")
    assert run.data.tags["a"] == "1" and not log.folder.exists()


def test_what_the_store_will_never_take_holds_up_nothing_else(
    tracker: Tracker, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = left_run(tracker)
    log = left_run(tracker)
    mlflow.MlflowClient(tracker.uri).delete_run(gone.run_id)
    tracker.upload_left()
    assert mlflow.MlflowClient(tracker.uri).get_run(log.run_id).info.status == "FINISHED"
    assert f"the store does not take run {gone.run_id}, it is kept in" in capsys.readouterr().err
    outcome = tracker.workspace.spool / ".refused" / gone.run_id / "outcome.json"
    assert json.loads(outcome.read_text())["status"] == "FINISHED"
    tracker.upload_left()
    assert capsys.readouterr().err == ""


def test_params_of_a_run_that_is_opened_again_stay_as_they_were(tracker: Tracker) -> None:
    run_id = created(tracker)
    for threads in (1, 2):
        training = replace(CONFIG.training, threads=threads)
        log = tracker.writer(run_id)
        log.config(replace(CONFIG, training=training))
    log.tags({"a": "b"})
    run = mlflow.MlflowClient(tracker.uri).get_run(run_id)
    assert log.fault is None
    assert (run.data.params["training.threads"], run.data.tags["a"]) == ("1", "b")
