"""Studies as a person types them, in real processes: together, printed, confirmed, refused."""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from conftest import LIGHT, Project
from typed_study import CONFIRM, TypedStudy, of_study, typed_study, wait_until

from digit_study.study.trial_attributes import counted

__all__ = ["typed_study"]
pytestmark = pytest.mark.slow


# --------------------------------------------------------------------------- together


@pytest.mark.reliability
def test_two_processes_join_one_study_in_a_database(
    typed_study: TypedStudy, tmp_path: Path
) -> None:
    storage = f"search.storage=sqlite:///{tmp_path}/optuna.db"
    both = [
        typed_study.start(storage, "search.workers=1", "search.trials=3", "training.epochs=1")
        for _ in range(2)
    ]
    for done in [command.finish() for command in both]:
        assert done.code == 0, done.err
    trials = optuna.load_study(
        study_name=typed_study.name, storage=f"sqlite:///{tmp_path}/optuna.db"
    ).trials
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 3}
    assert len({trial.user_attrs["supervisor"] for trial in trials}) == 2
    assert typed_study.statuses("study") == ["FINISHED"]
    with sqlite3.connect(tmp_path / "optuna.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.reliability
def test_two_starts_at_once_make_one_study(typed_study: TypedStudy) -> None:
    words = "search.fresh=true", "search.workers=1", "search.trials=3", "training.epochs=1"
    both = [typed_study.start(*words) for _ in range(2)]
    for done in [command.finish() for command in both]:
        assert done.code == 0, done.err
    assert Counter(trial.state.name for trial in counted(typed_study.trials())) == {"COMPLETE": 3}
    assert typed_study.statuses("study") == ["FINISHED"]


# --------------------------------------------------------------------------- what is printed, and confirmation


@pytest.fixture(scope="module")
def studied(
    project: Project, migrated: Path, small_npz: Path, tmp_path_factory: pytest.TempPathFactory
) -> TypedStudy:
    """A finished study on digits whose test images nobody can read."""
    folder = tmp_path_factory.mktemp("studied")
    whole = dict(np.load(small_npz))
    path = folder / "sealed.npz"
    np.savez_compressed(path, **whole)
    spoil(path, "x_test.npy")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    Path(folder / "mlflow.db").write_bytes(migrated.read_bytes())
    typed_study = TypedStudy(project, uri, "studied", path)
    # one worker trains enough short trials for TensorFlow to warn of retracing, if it is to
    done = typed_study.run("search.workers=1", "search.trials=6")
    assert done.code == 0, done.err
    assert "tensorflow" not in done.err.lower(), done.err
    typed_study.out = done.out  # type: ignore[attr-defined]
    return typed_study


def spoil(path: Path, member: str) -> None:
    """Overwrite the data of one member of an archive, so that whoever reads it is told."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(member)
    content = bytearray(path.read_bytes())
    start = entry.header_offset + 200
    content[start : start + 500] = os.urandom(500)
    path.write_bytes(content)
    with pytest.raises((zipfile.BadZipFile, Exception), match=r".+"):
        np.load(path)["x_test"]


def test_the_printed_line_runs_and_gives_the_same_accuracy(studied: TypedStudy) -> None:
    line = re.search(r"python (src/run\.py .*)", studied.out)  # type: ignore[attr-defined]
    assert line is not None
    import shlex

    script, *words = shlex.split(line[1])
    done = studied.project.run(*words, script=script, MLFLOW_TRACKING_URI=studied.uri)
    assert done.code == 0, done.err
    best = max(trial.values[0] for trial in studied.trials())
    assert f"{100 * best:.2f} %" in done.out


@pytest.mark.reliability
@pytest.mark.parametrize(("word", "total"), [("confirm.seeds=2", 4), ("confirm.max_seeds=3", 6)])
def test_confirmation_after_a_kill_runs_only_what_is_missing(
    word: str, total: int, studied: TypedStudy
) -> None:
    words = ("confirm.top=2", word)
    before = (
        Counter(studied.statuses("confirmation")),
        studied.statuses("confirmation-run").count("FINISHED"),
    )
    command = studied.start(*words, script=CONFIRM)
    command.wait_for(f"1/{total}")
    command.process.kill()
    command.finish()
    wait_until(lambda: not of_study(studied), 10, "its trials have ended")
    command = studied.start(*words, script=CONFIRM)
    command.wait_for(f"/{total}")
    command.process.terminate()
    assert command.finish().code == 143
    assert "RUNNING" not in {run.info.status for run in studied.runs()}
    assert Counter(studied.statuses("confirmation")) == before[0] + Counter(["KILLED"])
    done = studied.run(*words, script=CONFIRM)
    assert done.code == 0, done.err
    assert Counter(studied.statuses("confirmation")) == before[0] + Counter(["FINISHED"])
    assert studied.statuses("confirmation-run").count("FINISHED") == before[1] + total
    assert (
        f"1/{total}" not in done.out
    )  # what had been printed was kept, whether the store had it by then or not
    parents = [run for run in studied.runs() if run.data.tags.get("kind") == "confirmation"]
    newest = max(parents, key=lambda run: run.info.start_time)
    assert newest.data.tags["study"] == "studied" and newest.data.tags["winner.run_id"] in done.out


def test_a_changed_study_is_refused_and_an_unknown_one_has_a_remedy(studied: TypedStudy) -> None:
    changed = studied.run("model.batch_norm=true")
    assert changed.code == 1 and "`model.batch_norm` was False, is now True" in changed.err
    unknown = studied.run("study=studied2", script=CONFIRM)
    assert unknown.code == 1 and "did you mean 'studied'" in unknown.err


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("search.sampler=tpee", "did you mean 'tpe'"),
        ("search.space={model.filterz: {low: 1, high: 2}}", "did you mean 'model.filters'"),
        ("model.filters=choice(8,choice(16,32))", "must list its choices in one place"),
        ("search.storage=postgresql://u:hush%23x@127.0.0.1:1/d", "search.storage"),
        ("search.storage='postgresql://u:hush@[/d'", "search.storage"),
        ("search.storage=postgresql://u:hush@h:abc/d", "search.storage"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(
    word: str, told: str, typed_study: TypedStudy
) -> None:
    before = typed_study.project.files()
    done = typed_study.run(word, preloaded=(*LIGHT, "optuna"))
    assert (
        done.code == 1
        and told in done.err
        and "Traceback" not in done.err
        and "hush" not in done.err
    )
    assert typed_study.project.files() == before


def test_a_plan_writes_nothing(typed_study: TypedStudy) -> None:
    before = typed_study.project.files()
    done = typed_study.run("--plan", "search.sampler=random", preloaded=(*LIGHT, "optuna"))
    assert done.code == 0 and "model.filters" in done.out and "3 trials in all" in done.out
    assert typed_study.project.files() == before
