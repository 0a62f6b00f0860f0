"""A single run that was interrupted goes on after its last epoch."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import Project

from digit_study.config.run_config import Config, TrackingConfig
from digit_study.data.sources import DataConfig
from digit_study.model.recipe import TrainingConfig
from digit_study.model.training_state import TrainingState
from digit_study.support.processes import process_name
from digit_study.support.workspace import Workspace
from digit_study.trial.checkpoint import KEPT_DAYS, Checkpoint, RunState

CONFIG = Config(data=DataConfig(source="mnist_sample", sha256="0" * 64))
ARRAYS = [np.arange(3, dtype=np.float32), np.int64(7), np.ones((2, 2), np.uint32)]
#: No process has this name.
GONE = process_name().rsplit(":", 1)[0] + ":1.00"


def state(command: str = GONE) -> RunState:
    record = {"val_loss": 0.1 + 0.2}
    training = TrainingState([record] * 2, ARRAYS, ARRAYS[::-1], ARRAYS[:1])
    return RunState("an-id", command, 1.5, [ARRAYS[:1], ARRAYS[:2]], [record], training)


def kept_files(project: Project) -> set[str]:
    """Return the names of the checkpoints in the project's folder."""
    folder = project.root / "mlruns" / ".checkpoints"
    return {path.name for path in folder.glob("*.npz")}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoint:
    checkpoint = Checkpoint(CONFIG, Workspace(tmp_path))
    checkpoint.write(state)
    return checkpoint


def test_a_state_is_read_as_it_was_written(kept: Checkpoint) -> None:
    read = kept.read()
    assert read is not None and len(read.epochs) == 3 and read.epochs == state().epochs
    assert (read.run_id, read.command, read.seconds) == ("an-id", GONE, 1.5)
    for found, wanted in ((read.training.model, ARRAYS), (read.training.optimizer, ARRAYS[::-1])):
        assert [array.tobytes() for array in found] == [array.tobytes() for array in wanted]
        assert [array.dtype for array in found] == [array.dtype for array in wanted]
    assert [len(weights) for weights in read.members] == [1, 2]
    assert kept.path.name.startswith("cnn-mnist_sample-")
    assert [path.name for path in kept.path.parent.iterdir()] == [kept.path.name]
    kept.remove()
    assert kept.read() is None


@pytest.mark.parametrize(
    "other",
    [
        replace(CONFIG, fresh=True),
        replace(CONFIG, training=TrainingConfig(seed=1)),
        replace(CONFIG, data=replace(CONFIG.data, sha256="1" * 64)),
        replace(CONFIG, data=replace(CONFIG.data, seed=1)),
        # a run of a study or of -m
        replace(CONFIG, tracking=TrackingConfig(parent_run_id="a")),
    ],
)
def test_another_run_starts_anew(other: Config, kept: Checkpoint) -> None:
    assert Checkpoint(other, kept.workspace).read() is None
    assert Checkpoint(CONFIG, kept.workspace, "sqlite:///other.db").read() is None


def test_where_a_run_is_tracked_does_not_matter(kept: Checkpoint) -> None:
    tracking = TrackingConfig(note="another", experiment="e")
    assert Checkpoint(replace(CONFIG, tracking=tracking), kept.workspace).read() is not None


def test_other_code_starts_anew(kept: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("digit_study.trial.checkpoint._code_digest", lambda: "changed")
    assert Checkpoint(CONFIG, kept.workspace).read() is None


def test_a_run_that_another_command_trains_was_not_interrupted(tmp_path: Path) -> None:
    checkpoint = Checkpoint(CONFIG, Workspace(tmp_path))
    checkpoint.write(lambda: state(process_name(os.getppid())))
    assert checkpoint.read() is None


@pytest.mark.parametrize("kept_bytes", [0, 100, -100])
def test_a_file_that_was_torn_is_not_used(kept_bytes: int, kept: Checkpoint) -> None:
    kept.path.write_bytes(kept.path.read_bytes()[:kept_bytes])
    assert kept.read() is None


def test_writing_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    times = iter([0.0, 1.0, 5.0, 30.0, 30.0, 31.0])
    checkpoint = Checkpoint(CONFIG, Workspace(tmp_path), clock=lambda: next(times))
    written: list[int] = []

    def count() -> RunState:
        written.append(1)
        return state()

    for _ in range(3):  # takes a second; 4 seconds later; 29 seconds later
        checkpoint.write(count)
    assert len(written) == 2


def test_a_file_that_nobody_went_on_from_is_removed(kept: Checkpoint) -> None:
    os.utime(kept.path, (0, kept.path.stat().st_mtime - (KEPT_DAYS + 1) * 24 * 3600))
    other = Checkpoint(replace(CONFIG, training=TrainingConfig(seed=1)), kept.workspace)
    other.write(state)
    assert [path.name for path in kept.path.parent.iterdir()] == [other.path.name]


def test_a_file_that_another_command_removes_meanwhile_keeps_no_state_from_being_written(
    tmp_path: Path,
) -> None:
    checkpoint = Checkpoint(CONFIG, Workspace(tmp_path))
    checkpoint.path.parent.mkdir(parents=True)
    # like a file that is removed after its name was read, it is listed and not there
    (checkpoint.path.parent / "removed.npz").symlink_to(tmp_path / "nowhere")
    checkpoint.write(state)
    assert checkpoint.read() is not None


@pytest.mark.reliability
def test_an_interrupted_run_goes_on_with_the_same_bits(project: Project, typed_store: str) -> None:
    """The second of two members is killed, with its whole command."""
    words = ["data=mnist_sample", "model=tiny", "training=smoke", "data.limit=300"]
    words += ["model.members=2", "training.epochs=12", "model.dropout=0.3", "training.ema=true"]
    # other tests kill commands in this project as well
    kept_before = kept_files(project)
    whole = project.run(*words, "fresh=true", MLFLOW_TRACKING_URI=typed_store)
    assert whole.code == 0, whole.err
    command = project.fork(*words, MLFLOW_TRACKING_URI=typed_store)
    command.wait_for("epoch 16/24", timeout=300)
    os.killpg(command.process.pid, signal.SIGKILL)
    command.finish()
    again = project.run(*words, MLFLOW_TRACKING_URI=typed_store)
    assert again.code == 0, again.err
    told = re.match(r"goes on after epoch (\d+) of 24, where run (\w+) was", again.out)
    assert told is not None and int(told[1]) > 12, again.out
    client = mlflow.MlflowClient(typed_store)
    (experiment,) = client.search_experiments(filter_string="name LIKE 'digit%'")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED", "FINISHED"]
    first, killed, last = runs
    assert last.data.tags["weights.sha256"] == first.data.tags["weights.sha256"]
    assert last.data.tags["continues"] == killed.info.run_id == told[2]
    for name in ("train_loss", "val_loss"):
        histories = [client.get_metric_history(run.info.run_id, name) for run in (first, last)]
        assert [point.value for point in histories[0]] == [point.value for point in histories[1]]
        assert [point.step for point in histories[0]] == [point.step for point in histories[1]]
    assert kept_files(project) == kept_before
