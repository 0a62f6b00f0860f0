"""Promotion, comparison and reproduction as a person types them, in real processes on real networks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from conftest import LIGHT, Project
from typed_study import PLAIN

from digit_study.config.promote_config import PromoteConfig, StoreConfig
from digit_study.registry import promotion
from digit_study.support.workspace import Workspace

PROMOTE, COMPARE = "sweeps/promote.py", "sweeps/compare.py"
NAME = "digit-recognizer"
TINY = (
    "training=smoke",
    "model=tiny",
    "data.validation=100",
    "training.batch_size=20",
    "training.precision=float32",
    *PLAIN,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sealed_npz(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small digits, with garbage where the test images and labels should be."""
    path = tmp_path_factory.mktemp("sealed") / "small.npz"
    with zipfile.ZipFile(small_npz) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name) if "train" in name else b"nobody may read this")
    return path


class Study:
    """Two networks of different size, trained by the real command on digits whose test images are garbage."""

    def __init__(
        self, project: Project, folder: Path, database: Path, sealed: Path, good: Path
    ) -> None:
        self.project, self.folder, self.digits = project, folder, folder / "digits.npz"
        self.sealed, self.good = sealed, good
        shutil.copy(sealed, self.digits)
        self.uri = f"sqlite:///{shutil.copy(database, folder / 'mlflow.db')}"
        words = (*TINY, f"data.path={self.digits}", "model.filters=3,4")
        done = project.run("-m", *words, MLFLOW_TRACKING_URI=self.uri)
        assert done.code == 0, done.err
        trained = [run for run in self.search() if "weights.sha256" in run.data.tags]
        self.runs = [
            run.info.run_id
            for run in sorted(trained, key=lambda run: run.data.params["model.filters"])
        ]

    def search(self, query: str = "", **more: Any) -> list[Any]:
        client = mlflow.MlflowClient(self.uri, self.uri)
        return list(
            client.search_runs(
                [one.experiment_id for one in client.search_experiments()], query, **more
            )
        )

    def run(self, *words: str, script: str, uri: str | None = None) -> Any:
        return self.project.run(*words, script=script, MLFLOW_TRACKING_URI=uri or self.uri)

    @contextmanager
    def unsealed(self) -> Iterator[None]:
        """The digits with their test images, as long as the block lasts."""
        shutil.copy(self.good, self.digits)
        yield
        shutil.copy(self.sealed, self.digits)


def copied(uri: str, folder: Path) -> str:
    """URI of a copy of a store, so that a test has a registry and a ledger of its own."""
    source = Path(uri.removeprefix("sqlite:///"))
    if (source.parent / "mlruns").exists():
        shutil.copytree(source.parent / "mlruns", folder / "mlruns")
    return f"sqlite:///{shutil.copy(source, folder / source.name)}"


@pytest.fixture(scope="module")
def study(
    project: Project,
    migrated: Path,
    sealed_npz: Path,
    small_npz: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Study:
    return Study(project, tmp_path_factory.mktemp("study"), migrated, sealed_npz, small_npz)


@pytest.fixture(scope="module")
def promoted(study: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a store in which the first network is champion."""
    uri = copied(study.uri, tmp_path_factory.mktemp("promoted"))
    with study.unsealed():
        done = study.run(f"run_id={study.runs[0]}", "promote.floor=0", script=PROMOTE, uri=uri)
    assert done.code == 0, done.err
    return uri


def ledger(uri: str) -> list[dict[str, Any]]:
    path = Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / f"ledger.mlflow.{NAME}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def champion(uri: str) -> Any:
    client = mlflow.MlflowClient(uri, uri)
    try:
        return client.get_model_version_by_alias(NAME, "champion")
    except mlflow.MlflowException:
        return None


def test_run_compare_and_reproduce_never_read_the_sealed_images(study: Study) -> None:
    a, b = study.runs  # trained on digits whose test part is garbage
    done = study.run(f"a={a}", f"b={b}", script=COMPARE)
    assert done.code == 0, done.err
    assert "McNemar p" in done.out
    done = study.run(f"reproduce={a}", script="src/run.py")
    assert done.code == 0, done.err
    assert (
        f"bit-identical: run {study.search('', max_results=1)[0].info.run_id} against run {a}"
        in done.out
    )
    (again,) = study.search("tags.kind = 'reproduction'")
    assert again.data.tags["reproduction.verdict"] == "bit-identical"


def test_only_promotion_reads_them_and_records_it_first(study: Study, tmp_path: Path) -> None:
    uri = copied(study.uri, tmp_path)
    done = study.run(f"run_id={study.runs[0]}", "--dry-run", script=PROMOTE, uri=uri)
    assert (done.code, ledger(uri)) == (0, []), done.err
    done = study.run(f"run_id={study.runs[0]}", "promote.floor=0", script=PROMOTE, uri=uri)
    assert done.code == 1
    assert "data.path" in done.err and "Traceback" not in done.err
    assert [event["event"] for event in ledger(uri)] == ["begun", "ended"]
    assert champion(uri) is None


def test_the_registered_model_gives_the_accuracy_in_its_evidence(
    promoted: str, small_npz: Path
) -> None:
    import keras

    version = champion(promoted)
    mlflow.set_tracking_uri(promoted)
    with np.load(small_npz) as archive:
        images, labels = archive["x_test"][..., None], archive["y_test"]
    served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(images.astype(np.float32))
    (file,) = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion")).rglob("*.keras")
    plain = keras.models.load_model(file, safe_mode=True).predict(images, verbose=0)
    for probabilities in (served, plain):
        assert float(version.tags["test_accuracy"]) == np.mean(
            probabilities.argmax(axis=1) == labels
        )
    assert version.tags["test_images"] == "100"
    # its 100 validation images cannot tell of sets at 99 %
    assert 0 <= float(version.tags["test_refused"]) <= 0.05 and "test_coverage" not in version.tags


@pytest.mark.reliability
def test_two_promotions_at_once_are_both_in_the_ledger(study: Study, tmp_path: Path) -> None:
    uri = copied(study.uri, tmp_path)
    words = [[f"run_id={run}", "promote.floor=0"] for run in study.runs]
    with study.unsealed():
        both = [
            study.project.fork(*each, script=PROMOTE, MLFLOW_TRACKING_URI=uri) for each in words
        ]
        assert [one.finish().code for one in both] == [0, 0]
    assert {event["run_id"] for event in ledger(uri) if event["event"] == "begun"} == set(
        study.runs
    )
    assert champion(uri) is not None
    done = study.run("history=true", script=PROMOTE, uri=uri)
    assert "opened 2 times" in done.out


def test_a_damaged_journal_hinders_only_who_needs_it(study: Study) -> None:
    journal = study.project.root / "mlruns" / "studies" / "damaged.journal"
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("garbage\n\n")
    try:
        history = study.run("study=damaged", "history=true", script=PROMOTE)
        winner = study.run("study=damaged", script=PROMOTE)
    finally:
        journal.unlink()
    assert history.code == 0
    assert winner.code == 1 and "damaged.journal, line 1," in winner.err


@pytest.mark.parametrize("after", [0.0, 0.1])
def test_kill_9_leaves_a_champion_and_the_next_call_recovers(
    study: Study, promoted: str, tmp_path: Path, after: float
) -> None:
    uri = copied(promoted, tmp_path)
    words = f"run_id={study.runs[1]}", "promote.margin=0.9"
    with study.unsealed():
        going = study.project.fork(*words, script=PROMOTE, MLFLOW_TRACKING_URI=uri)
        while len(ledger(uri)) < 3 and going.process.poll() is None:
            time.sleep(0.002)
        time.sleep(after)
        if going.process.poll() is None:
            os.kill(going.process.pid, signal.SIGKILL)
        going.finish()
    left = champion(uri)
    assert left is not None and left.version in (1, 2, "1", "2")
    workspace = Workspace(Path(uri.removeprefix("sqlite:///")).parent)
    promotion.run(PromoteConfig(history=True, tracking=StoreConfig(uri)), workspace)
    assert champion(uri).version == left.version
    events = ledger(uri)
    assert {e["id"] for e in events if e["event"] == "begun"} == {
        e["id"] for e in events if e["event"] == "ended"
    }
    assert len(events) >= 4


@pytest.mark.parametrize(
    ("script", "words", "word"),
    [
        (PROMOTE, ["promote.margin=2"], "`promote.margin` must be in [0, 1)"),
        (PROMOTE, ["promote.flor=1"], "did you mean 'promote.floor'"),
        (PROMOTE, ["study=nothing"], "`study` must have a confirmed winner"),
        (PROMOTE, ["run_id=nothing"], "`run_id` must be"),
        (PROMOTE, ["--rollback"], "alias 'previous'"),
        (PROMOTE, ["tracking.uri=http://127.0.0.1:9"], "no answer"),
        (COMPARE, ["a=x"], "`b` must be"),
        (COMPARE, ["a=x", "b=y"], "`a` must be the id of a run"),
        ("src/run.py", ["reproduce=x"], "`reproduce` must be the id of a run"),
    ],
)
def test_mistakes_are_answered_in_one_message(
    project: Project, typed_store: str, script: str, words: list[str], word: str
) -> None:
    folder = Path(typed_store.removeprefix("sqlite:///")).parent
    before = project.files(), set(folder.rglob("*"))
    done = project.run(*words, script=script, MLFLOW_TRACKING_URI=typed_store)
    assert done.code == 1
    assert word in done.err
    assert "Traceback" not in done.err and len(done.err.strip().splitlines()) == 1
    assert set(folder.rglob("*")) == before[1]
    assert project.files() - before[0] <= {"mlruns/.store.lock", "mlruns/.scratch/.lock"}


@pytest.mark.parametrize("script", [PROMOTE, COMPARE])
@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"]])
def test_information_needs_no_store(project: Project, script: str, words: list[str]) -> None:
    done = project.run(*words, script=script, preloaded=LIGHT, MLFLOW_TRACKING_URI="nonsense://")
    assert done.code == 0
    assert "tracking:" in done.out
