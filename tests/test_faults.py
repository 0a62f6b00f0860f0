"""What is the infrastructure's fault and what a trial's, and what the spool holds through kills, full disks and repetitions."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState, create_trial
from tracked import CONFIG, again, created, is_spool_empty, tracker, workspace

from digit_study.study.trial_attributes import deaths, failure_cause
from digit_study.support import processes
from digit_study.support.errors import StudyError, is_infrastructure_error
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker
from digit_study.tracking.spool import SpooledRun
from digit_study.tracking.upload import RunUpload, upload_run
from digit_study.tracking.writer import RunWriter
from digit_study.trial.events import Failed, FailureCause
from digit_study.trial.runner import MAX_RETRIES, may_run_again

__all__ = ["tracker", "workspace"]


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_infrastructure"),
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
def test_what_is_the_fault_of_the_infrastructure(error: Exception, is_infrastructure: bool) -> None:
    assert is_infrastructure_error(error) == is_infrastructure


@pytest.mark.parametrize(
    ("cause", "retries"),
    [
        (FailureCause.TRIAL, 0),
        (FailureCause.LIMIT, 0),
        (FailureCause.PROCESS, MAX_RETRIES),
        (FailureCause.INFRASTRUCTURE, 100),
        (FailureCause.NODE, 100),
        (FailureCause.SLOT, 100),
        (FailureCause.SUPERVISOR, 100),
        (FailureCause.INTERRUPTED, 100),
    ],
)
def test_a_trial_runs_again_unless_it_is_to_blame(cause: FailureCause, retries: int) -> None:
    failure = Failed(7, cause, "whatever it says")
    assert [may_run_again(failure, died) for died in range(100)] == [
        died < retries for died in range(100)
    ]


def test_every_cause_is_in_the_table() -> None:
    """Also of a cause that is added later it must be decided whether it uses up a retry."""
    blamed = {cause for cause in FailureCause if cause.is_trials_fault}
    assert blamed == {FailureCause.TRIAL, FailureCause.LIMIT, FailureCause.PROCESS}
    assert len(FailureCause) == 8


@pytest.mark.parametrize(
    ("attributes", "cause"),
    [
        ({"reason": "its supervisor ended before it"}, FailureCause.SUPERVISOR),
        ({"reason": "interrupted"}, FailureCause.INTERRUPTED),
        ({"reason": "its node went away"}, FailureCause.NODE),
        ({"reason": "its slot was killed"}, FailureCause.SLOT),
        (
            {"reason": "no fault of the trial: [Errno 28] No space left on device"},
            FailureCause.INFRASTRUCTURE,
        ),
        ({"reason": "no fault of the trial: "}, FailureCause.INFRASTRUCTURE),
        (
            {
                "reason": "the trial's process was killed by SIGKILL "
                "(out of memory, or somebody's kill -9)"
            },
            FailureCause.PROCESS,
        ),
        (
            {"reason": "the trial's process ended with exit code 3 and no result"},
            FailureCause.PROCESS,
        ),
        # a sentence that only contains another is none of these
        ({"reason": "so it was interrupted"}, FailureCause.PROCESS),
        ({"reason": "it is no fault of the trial: no"}, FailureCause.PROCESS),
        ({"reason": ""}, FailureCause.PROCESS),
        ({}, FailureCause.PROCESS),
        # what is kept today counts, whatever the sentence is
        ({"reason": "interrupted", "failure_cause": "limit"}, FailureCause.LIMIT),
        ({"reason": "training diverged", "failure_cause": "trial"}, FailureCause.TRIAL),
    ],
)
def test_the_cause_of_a_failure_is_understood_also_of_an_old_record(
    attributes: dict[str, str], cause: FailureCause
) -> None:
    trial = create_trial(state=TrialState.FAIL, user_attrs=attributes)
    assert failure_cause(trial) is cause


def test_only_deaths_of_its_own_process_are_counted_along_the_retries_of_a_trial() -> None:
    reasons = ["interrupted", "the trial's process was killed by SIGKILL", "its node went away"]
    trials = []
    for number, reason in enumerate([*reasons, ""]):
        attributes: dict[str, Any] = {"reason": reason}
        if number > 0:
            attributes["retry_of"] = number - 1
        trial = create_trial(state=TrialState.FAIL, user_attrs=attributes)
        trial.number = number
        trials.append(trial)
    assert [deaths(trial, trials) for trial in trials] == [0, 0, 1, 1]


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


@pytest.mark.slow
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
        {"time": 4, "note": {"keys": ["model.filters"], "answer": "none yet", "tags": []}},
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
    monkeypatch.setattr(processes, "is_alive", lambda name: False)
    tracker.upload_left()
    run = mlflow.MlflowClient(tracker.uri).get_run(log.run_id)
    assert (run.info.status, run.data.tags["failure"]) == ("KILLED", "its process ended before it")
    assert run.data.tags["a"] == "1" and not log.folder.exists()


@pytest.mark.slow
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
