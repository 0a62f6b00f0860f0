"""`python src/run.py` as a person types it: what is refused, what is kept, and what a fault leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from conftest import LIGHT, Command, Done, Project
from failing_services import Server
from mlflow.entities import Run
from typed_study import PLAIN, wait_until, workers_of

pytestmark = pytest.mark.slow

SMALL = [
    "model=tiny",
    "data=mnist_sample",
    "data.limit=500",
    "training.epochs=2",
    "training.threads=1",
]
#: Long enough to be interrupted at any moment.
LONG = [*SMALL[:3], *PLAIN, "training.epochs=500", "training.threads=1"]


def runs_of(uri: str) -> list[Run]:
    client = mlflow.MlflowClient(uri)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def named(runs: list[Run]) -> dict[str, Run]:
    return {str(run.info.run_name): run for run in runs}


def artifacts_of(uri: str, run: Run, folder: str) -> set[str]:
    found = mlflow.MlflowClient(uri).list_artifacts(run.info.run_id, folder)
    return {Path(one.path).name for one in found}


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    clocks = (
        "second",
        "millisecond",
        "system/",
    )  # of a slow run also what its machine was busy with
    return {
        name: value for name, value in metrics.items() if not any(clock in name for clock in clocks)
    }


# ---------------------------------------------------------------------------------- refused


@pytest.fixture(scope="module")
def tripwire(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages that stand in for the slow ones and leave a mark when they are imported."""
    folder = tmp_path_factory.mktemp("tripwire")
    for package in ("tensorflow", "keras", "mlflow"):
        (folder / f"{package}.py").write_text(
            f"open({str(folder / 'imported')!r}, 'a').write('{package}')\n"
        )
    return folder


REFUSED = [
    (["modle=tiny"], "did you mean 'model'"),
    (["model=tinny"], "did you mean 'tiny'"),
    (["model.filterz=8"], "did you mean 'model.filters'"),
    (["model.filters=abc"], "must be a whole number, got 'abc'"),
    (["model.filters=0"], "must be in [1, 1024], got 0"),
    (["model.filters=-1"], "got -1"),
    (["model.pooling=maxx"], "did you mean 'max'"),
    (["model.dropout=1.5"], "must be in [0, 1), got 1.5"),
    (["model.dropout=nan"], "got nan"),
    (["model.blocks=6"], "leaves nothing of a 28x28 image"),
    (["model=simple_m7", "model.kernel_size=20"], "leaves nothing of a 28x28 image"),
    (["training.epochs=0"], "at least 1, got 0"),
    (["training.batch_size=3001", "data=mnist_sample"], "at most the 3000 digits"),
    (["training.learning_rate=0"], "greater than 0"),
    (["training.learning_rate=-1"], "got -1.0"),
    (["data.path=none.npz"], "there is none at"),
    (["data.path={small}.cut"], "broken or cut off"),
    (["data.path=conf/config.yaml"], "no npz"),
    (["data.path={small}.pickled"], "pickled objects"),
    (["data=mnist", "data.path={small}"], "data=mnist takes MNIST only"),
    (["data=mnist"], "neither in"),
    (["tracking.uri=sqlite:///none/x.db"], "does not exist"),
    (["tracking.uri=sqlite:///conf"], "that is a directory"),
    (["tracking.uri=sqlite:///conf/config.yaml"], "not a database"),
    (["tracking.uri=http://127.0.0.1:9"], "no answer"),
    (["-m", "model.filters=8,0"], "got 0"),
    (["-m", "model.filters=8,16", "model=tiny,tinny"], "did you mean 'tiny'"),
    (["-m", "training.batch_size=8,3001", "data=mnist_sample"], "at most the 3000 digits"),
    (["-m", "tracking.uri=sqlite:///new.db,http://127.0.0.1:9"], "no answer"),
]


@pytest.mark.parametrize(
    ("words", "answer"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED]
)
def test_a_mistake_costs_a_second_and_leaves_nothing(
    words: list[str], answer: str, project: Project, tripwire: Path, small_npz: Path
) -> None:
    Path(f"{small_npz}.cut").write_bytes(small_npz.read_bytes()[:-500])
    np.savez(f"{small_npz}.pickled.npz", x_train=np.array([{}]), y_train=np.arange(1))
    os.replace(f"{small_npz}.pickled.npz", f"{small_npz}.pickled")
    before = project.files()
    done = project.run(
        *[word.format(small=small_npz) for word in words], preloaded=LIGHT, PYTHONPATH=str(tripwire)
    )
    assert done.code == 1 and done.out == ""
    complaint = [
        line for line in done.err.splitlines() if not line.startswith("WARNING: Full MNIST")
    ]
    assert len(complaint) == 1 and answer in complaint[0], done.err
    assert "Traceback" not in done.err
    assert not (tripwire / "imported").exists() and project.files() == before


def test_the_tripwire_trips(project: Project, tripwire: Path) -> None:
    """What the table above rests on."""
    done = project.run(*SMALL, preloaded=LIGHT, PYTHONPATH=str(tripwire))
    imported = tripwire / "imported"
    assert done.code != 0 and "mlflow" in imported.read_text()
    imported.unlink()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--help"], "run.py -m model.filters=16,32,64"),
        (["--cfg", "job", "model=tiny"], "filters: 8"),
        (["--info", "defaults"], "model"),
    ],
)
def test_questions_are_answered(
    words: list[str], answer: str, project: Project, tripwire: Path
) -> None:
    before = project.files()
    done = project.run(*words, preloaded=LIGHT, PYTHONPATH=str(tripwire))
    assert done.code == 0 and answer in done.out and done.err == ""
    assert not (tripwire / "imported").exists() and project.files() == before


# ---------------------------------------------------------------------------------- kept


RECIPE = [*SMALL, "training.augmentation=shift_rotate", "training.early_stopping.patience=2"]


@pytest.fixture(scope="module")
def single(
    project: Project, migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Done]:
    """One run, with the data left to find and a store of its own."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('single')}/new.db"
    words = [word for word in RECIPE if word != "data=mnist_sample"]
    return uri, project.run(*words, MLFLOW_TRACKING_URI=uri)


def test_a_run_is_kept_whole(single: tuple[str, Done], project: Project) -> None:
    uri, done = single
    assert done.code == 0, done.err
    (run,) = runs_of(uri)
    assert run.info.status == "FINISHED" and run.info.run_id in done.out and uri in done.out
    assert "WARNING: Full MNIST is neither cached nor reachable: using the SAMPLE" in done.err
    assert len(done.err.splitlines()) == 1, done.err
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=project.root, capture_output=True, text=True
    ).stdout
    assert run.data.tags["technical.git.commit"] == commit.strip()
    assert run.data.tags["technical.git.dirty"] == "false"
    assert (
        run.data.tags["dataset.name"] == "mnist_sample"
        and len(run.data.tags["weights.sha256"]) == 64
    )
    assert (
        run.data.params["training.threads"] == "1"
        and run.data.params["training.precision"] != "auto"
    )
    assert not (project.root / "mlruns" / ".outbox" / run.info.run_id).exists()
    names = ("curves", "confusion_matrix", "mistakes", "class_counts", "samples")
    assert artifacts_of(uri, run, "figures") == {f"{name}.png" for name in names}


def test_the_same_command_gives_the_same_bits(
    single: tuple[str, Done], project: Project, typed_store: str
) -> None:
    assert project.run(*RECIPE, MLFLOW_TRACKING_URI=typed_store).code == 0
    (first,), (second,) = runs_of(single[0]), runs_of(typed_store)
    assert first.data.tags["weights.sha256"] == second.data.tags["weights.sha256"]
    assert without_times(first.data.metrics) == without_times(second.data.metrics)
    for metric in ("train_loss", "val_loss", "val_accuracy", "learning_rate"):
        one, two = (
            [
                point.value
                for point in mlflow.MlflowClient(uri).get_metric_history(run.info.run_id, metric)
            ]
            for uri, run in ((single[0], first), (typed_store, second))
        )
        assert one == two and len(one) >= 2


@pytest.fixture(scope="module")
def several(project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Done]:
    """A multirun whose first job is what ``single`` ran."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('several')}/new.db"
    return uri, project.run("-m", *RECIPE, "training.seed=0,1", MLFLOW_TRACKING_URI=uri)


def test_a_multirun_is_a_parent_with_ranked_children(
    several: tuple[str, Done], project: Project
) -> None:
    uri, done = several
    assert done.code == 0 and done.err == "", done.err
    runs = named(runs_of(uri))
    children = [runs["training.seed=0"], runs["training.seed=1"]]
    (parent,) = [run for run in runs.values() if run not in children]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len({run.info.experiment_id for run in runs.values()}) == 1
    assert artifacts_of(uri, parent, "figures") == {
        "comparison.png",
        "class_counts.png",
        "samples.png",
    }
    assert artifacts_of(uri, parent, "tables") == {"comparison.csv"}
    best = max(run.data.metrics["val_accuracy"] for run in children)
    assert parent.data.metrics["best_val_accuracy"] == best
    assert [
        word in done.out
        for word in ("Comparison", "training.seed=0", "training.seed=1", parent.info.run_id)
    ]
    assert not [path for path in (project.root / "mlruns" / ".scratch").iterdir() if path.is_dir()]


def test_a_child_gives_the_bits_of_a_single_run(
    several: tuple[str, Done], single: tuple[str, Done]
) -> None:
    (alone,), child = runs_of(single[0]), named(runs_of(several[0]))["training.seed=0"]
    assert alone.data.tags["weights.sha256"] == child.data.tags["weights.sha256"]
    assert without_times(alone.data.metrics) == without_times(child.data.metrics)


@pytest.mark.reliability
def test_three_at_the_same_moment_on_a_new_store(project: Project, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new.db"
    words = [
        *SMALL[:3],
        *PLAIN,
        "training.epochs=1",
        "training.threads=1",
        "tracking.save_model=false",
    ]
    commands = [
        project.fork(*words, f"training.seed={seed}", MLFLOW_TRACKING_URI=uri) for seed in range(3)
    ]
    ends = [command.finish() for command in commands]
    assert [end.code for end in ends] == [0] * 3, [end.err for end in ends]
    assert [run.info.status for run in runs_of(uri)] == ["FINISHED"] * 3


# ---------------------------------------------------------------------------------- faults


@pytest.mark.reliability
def test_children_that_fail_leave_the_others_running(project: Project, typed_store: str) -> None:
    # a decay of 0.9 times a rate of 10 makes every weight eight times as large in every step
    wild = [
        "training.optimizer=sgd",
        "training.schedule=constant",
        "model.batch_norm=false",
        "training.weight_decay=0.9",
    ]
    rates = "training.learning_rate=10,1e-2,0.001"
    words = [*SMALL[:3], "training.threads=1", "training.epochs=30", "tracking.save_model=false"]
    command = project.fork("-m", "workers=1", *words, *wild, rates, MLFLOW_TRACKING_URI=typed_store)
    name = "training.learning_rate=0.01"

    def epochs_begun() -> int:
        return sum(f"{name}  epoch 1/" in line for line in command.lines)

    for times in (1, 2):  # a run whose process is killed runs once more
        wait_until(lambda: epochs_begun() == times, 120, "an epoch")  # noqa: B023
        wait_until(
            lambda: named(runs_of(typed_store))[name].data.metrics, 20, "an epoch is in the store"
        )
        workers_of(command)[0].kill()
    done = command.finish()
    found = runs_of(typed_store)
    runs = named(found)
    assert [run.info.status for run in found if run.info.run_name == name] == ["FAILED"] * 2
    ends = {
        name.removeprefix("training.learning_rate="): run.info.status for name, run in runs.items()
    }
    parent = next(name for name in ends if "3 runs" in name)
    assert ends == {"10": "FAILED", "0.01": "FAILED", "0.001": "FINISHED", parent: "FAILED"}
    assert done.code == 1 and "Traceback" not in done.err
    *_, summary, diverged, killed = done.err.splitlines()
    assert summary == "2 of 3 runs FAILED:"
    assert (
        "learning_rate=10: training diverged: `train_loss` is nan in epoch" in diverged
        and "in steps" in diverged
    )
    assert "learning_rate=0.01: the trial's process was killed by SIGKILL" in killed
    wild_run = runs["training.learning_rate=10"]
    assert "`train_loss` is nan in epoch" in wild_run.data.tags["failure"]
    assert "SIGKILL" in runs["training.learning_rate=0.01"].data.tags["failure"]
    assert runs["training.learning_rate=0.01"].data.metrics["train_loss"] > 0
    assert runs[parent].data.tags["best.name"] == "training.learning_rate=0.001"


def test_a_single_run_that_diverges_says_so_in_a_line(project: Project, typed_store: str) -> None:
    wild = ["training.optimizer=sgd", "training.learning_rate=10", "training.weight_decay=0.9"]
    words = [
        *SMALL[:3],
        "training.epochs=30",
        *wild,
        "model.batch_norm=false",
        "training.schedule=constant",
    ]
    done = project.run(*words, MLFLOW_TRACKING_URI=typed_store)
    assert (
        done.code == 1
        and "training diverged: `train_loss` is" in done.err
        and len(done.err.splitlines()) == 1
    )
    (run,) = runs_of(typed_store)
    assert run.info.status == "FAILED" and "training diverged" in run.data.tags["failure"]


def wait_for_run(uri: str) -> Callable[[Command], None]:
    def wait(command: Command) -> None:
        for _ in range(600):
            if runs_of(uri):
                return
            time.sleep(0.05)
        raise AssertionError("no run was created")

    return wait


def stop(command: Command, number: int, everyone: bool) -> Done:
    if everyone:  # as a terminal's Ctrl-C does
        os.killpg(command.process.pid, number)
    else:
        command.process.send_signal(number)
    return command.finish(60)


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "created"),
        (signal.SIGTERM, "created"),
        (signal.SIGTERM, "epoch 3/"),
        (signal.SIGHUP, "epoch 3/"),
    ],
)
def test_a_signal_ends_a_run_as_killed(
    number: int, moment: str, project: Project, typed_store: str
) -> None:
    command = project.fork(*LONG, MLFLOW_TRACKING_URI=typed_store)
    (wait_for_run(typed_store) if moment == "created" else lambda c: c.wait_for(moment))(command)
    done = stop(command, number, everyone=False)
    assert done.code == 128 + number and "Traceback" not in done.err
    assert f"stopped by {signal.Signals(number).name}" in done.err
    (run,) = runs_of(typed_store)
    assert run.info.status == "KILLED" and run.info.end_time
    measured = [line for line in done.out.splitlines() if "epoch" in line]
    history = mlflow.MlflowClient(typed_store).get_metric_history(run.info.run_id, "val_accuracy")
    assert len(history) >= len(measured) >= (0 if moment == "created" else int(moment[6]))


@pytest.mark.reliability
def test_a_single_run_whose_process_is_killed_runs_once_more(
    project: Project, typed_store: str
) -> None:
    words = [*SMALL[:3], *PLAIN, "training.threads=1", "training.epochs=30"]
    command = project.fork(*words, MLFLOW_TRACKING_URI=typed_store)
    command.wait_for("epoch 2/30")
    workers_of(command)[0].kill()
    done = command.finish()
    assert (done.code, done.err) == (0, "")
    killed, again = runs_of(typed_store)
    assert (killed.info.status, again.info.status) == ("FAILED", "FINISHED")
    assert "SIGKILL" in killed.data.tags["failure"] and killed.data.metrics["val_accuracy"] > 0
    assert again.info.run_id in done.out


@pytest.mark.reliability
@pytest.mark.parametrize("moment", ["created", "epoch 2/"])
def test_a_single_run_whose_supervisor_is_killed_is_ended_by_the_next_command(
    moment: str, project: Project, typed_store: str
) -> None:
    command = project.fork(*LONG, MLFLOW_TRACKING_URI=typed_store)
    if moment == "created":
        wait_for_run(typed_store)(command)
    else:
        command.wait_for(moment)
    family = psutil.Process(command.process.pid).children(recursive=True)
    command.process.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    done = project.run(*LONG[:-2], "training.epochs=1", MLFLOW_TRACKING_URI=typed_store)
    assert (done.code, done.err) == (0, "")
    killed, after = runs_of(typed_store)
    assert (killed.info.status, after.info.status) == ("KILLED", "FINISHED")
    if moment != "created":
        assert killed.data.metrics["val_accuracy"] > 0


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("number", "everyone", "moment"),
    [
        (signal.SIGINT, True, "epoch 1/"),
        (signal.SIGTERM, False, "created"),
    ],
)
def test_a_signal_ends_a_multirun_as_killed(
    number: int, everyone: bool, moment: str, project: Project, typed_store: str
) -> None:
    command = project.fork(
        "-m", "workers=1", *LONG, "training.seed=0,1", MLFLOW_TRACKING_URI=typed_store
    )
    (wait_for_run(typed_store) if moment == "created" else lambda c: c.wait_for(moment))(command)
    family = [
        psutil.Process(command.process.pid),
        *psutil.Process(command.process.pid).children(recursive=True),
    ]
    done = stop(command, number, everyone)
    assert done.code == 128 + number and "Traceback" not in done.err, done.err
    runs = runs_of(typed_store)
    assert {run.info.status for run in runs} == {"KILLED"} and len(runs) <= 2
    if moment != "created":
        (child,) = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert child.data.metrics["val_accuracy"] > 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


@pytest.mark.reliability
def test_a_multirun_that_was_killed_trains_only_what_is_missing(
    project: Project, typed_store: str
) -> None:
    words = ["-m", "workers=1", *SMALL[:3], *PLAIN, "training.threads=1", "training.epochs=2"]
    seeds = "training.seed=0,1,2"
    command = project.fork(*words, seeds, MLFLOW_TRACKING_URI=typed_store)
    command.wait_for("1/3  training.seed=0")
    family = psutil.Process(command.process.pid).children(recursive=True)
    command.process.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    done = project.run(*words, seeds, MLFLOW_TRACKING_URI=typed_store)
    assert (done.code, done.err) == (0, "")
    assert "of 3 runs finished before" in done.out and "3/3  " in done.out
    assert "1/3  " not in done.out
    runs = runs_of(typed_store)
    assert "RUNNING" not in {run.info.status for run in runs}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    finished = [run for run in runs if run != parent and run.info.status == "FINISHED"]
    assert parent.info.status == "FINISHED"
    assert sorted(str(run.info.run_name) for run in finished) == [
        "training.seed=0",
        "training.seed=1",
        "training.seed=2",
    ]
    assert all(run.info.run_id in done.out for run in finished)  # the table has all of them


@pytest.fixture(scope="module")
def server(
    project: Project, migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    server = Server(project, migrated, tmp_path_factory.mktemp("server"))
    server.ensure()
    yield server
    server.kill()


def test_a_run_on_a_server_is_kept_there(server: Server, project: Project) -> None:
    done = project.run(*SMALL, f"tracking.uri={server.uri}")
    assert done.code == 0 and server.uri in done.out, done.err
    (run,) = runs_of(server.uri)
    assert run.info.status == "FINISHED"
    assert artifacts_of(server.uri, run, "figures") >= {
        "curves.png",
        "confusion_matrix.png",
        "mistakes.png",
    }


@pytest.mark.reliability
def test_a_server_that_goes_away_loses_no_result(server: Server, project: Project) -> None:
    """The last test of the file: it takes the server away."""
    words = [
        *SMALL[:3],
        *PLAIN,
        "training.threads=1",
        "training.epochs=6",
        f"tracking.uri={server.uri}",
        "outage_timeout=0.05",
    ]
    at_once = {
        f"MLFLOW_HTTP_REQUEST_BACKOFF_{name}": "0" for name in ("FACTOR", "JITTER")
    }  # else 5 s before each
    command = project.fork(*words, "data.limit=3000", **at_once)
    command.wait_for("epoch 1/6")
    server.kill()
    done = command.finish()
    assert command.printed("epoch 6/6") and done.code == 1 and "Traceback" not in done.err
    *_, run = runs_of(server.behind)
    folder = project.root / "mlruns" / ".outbox" / run.info.run_id
    assert str(folder) in done.err and "the tracking store must take every result" in done.err
    kept = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = {
        "outcome.json",
        "log.jsonl",
        "config.yaml",
        "model/data/model.keras",
        "figures/curves.png",
    }
    assert wanted | {"tables/predictions.csv"} <= kept
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records if "train_loss" in one.get("metrics", {})] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]
    assert '"status": "FINISHED"' in (folder / "outcome.json").read_text()
