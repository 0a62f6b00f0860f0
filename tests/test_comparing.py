"""Two runs compared, from their tables of predictions; no TensorFlow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recorded_store as rs

from digit_study.config.compare_config import CompareConfig
from digit_study.config.run_config import StoreConfig
from digit_study.data import digits as data
from digit_study.data import sources
from digit_study.data.sources import DataConfig
from digit_study.stats.metrics import evaluation_from_table
from digit_study.study import comparison
from digit_study.support.errors import StudyError


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> rs.Store:
    return rs.make_store(migrated, tmp_path)


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load_digits(DataConfig(source="mnist_sample", sha256=sources.SAMPLE_SHA256))


def table(digits: data.Digits, wrong: range) -> pd.DataFrame:
    """Predictions that are one digit too high on the images ``wrong``, right on all others."""
    labels = digits.validation_labels
    predicted = np.where(np.isin(np.arange(len(labels)), wrong), (labels + 1) % 10, labels)
    return rs.predictions(predicted, labels, digits.validation_index)


def compare(store: rs.Store, a: str, b: str) -> None:
    noted = StoreConfig(store.uri, {"owner": "me"}, "a note")
    comparison.compare(CompareConfig(a, b, noted), store.workspace)


@pytest.mark.slow
def test_a_comparison_is_shown_and_kept(
    store: rs.Store, digits: data.Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    a = rs.add_run(store, table=table(digits, range(20)), model=False)
    b = rs.add_run(store, table=table(digits, range(15, 25)), model=False)
    compare(store, a, b)
    shown = capsys.readouterr().out
    assert "+1.00 points" in shown
    assert "Images that only one of the two predicts correctly (20)" in shown
    (run,) = store.client.search_runs([store.experiment], "tags.kind = 'comparison'")
    assert (run.info.status, run.data.tags["compared.a"], run.data.tags["compared.b"]) == (
        "FINISHED",
        a,
        b,
    )
    assert run.data.tags["owner"] == "me" and run.data.tags["mlflow.note.content"] == "a note"
    numbers = run.data.metrics
    assert (numbers["difference"], numbers["only_a_right"], numbers["only_b_right"]) == (
        0.01,
        5,
        15,
    )
    assert numbers["difference_low"] < 0.01 < numbers["difference_high"]
    assert numbers["mcnemar_p"] == pytest.approx(0.04138946533203125)
    listed = {
        file.path
        for part in ("figures", "tables")
        for file in store.client.list_artifacts(run.info.run_id, part)
    }
    assert listed == {
        "figures/confusion_difference.png",
        "figures/flipped.png",
        "tables/confusion_difference.csv",
        "tables/flipped.csv",
    }


@pytest.mark.slow
def test_equal_runs_differ_in_nothing(
    store: rs.Store, digits: data.Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (rs.add_run(store, table=table(digits, range(5)), model=False) for _ in range(2))
    compare(store, a, b)
    assert "Images that only one of the two predicts correctly (0)" in capsys.readouterr().out


@pytest.mark.slow
def test_other_digits_are_refused(store: rs.Store, digits: data.Digits) -> None:
    a = rs.add_run(store, table=table(digits, range(5)))
    b = rs.add_run(store, table=table(digits, range(5)), tags={"dataset.sha256": "other"})
    with pytest.raises(StudyError, match="dataset.sha256"):
        compare(store, a, b)


@pytest.mark.slow
def test_other_validation_images_are_refused(store: rs.Store, digits: data.Digits) -> None:
    whole = table(digits, range(5))
    a, b = (rs.add_run(store, table=part) for part in (whole, whole.iloc[10:]))
    with pytest.raises(StudyError, match="990 in common"):
        compare(store, a, b)
    moved = whole.assign(index=whole["index"] + 1)
    c, d = (rs.add_run(store, table=moved) for _ in range(2))
    with pytest.raises(StudyError, match="predictions are of others"):
        compare(store, c, d)


@pytest.mark.slow
def test_runs_that_cannot_be_compared(store: rs.Store, digits: data.Digits) -> None:
    good = rs.add_run(store, table=table(digits, range(5)))
    for bad, word in (
        ("0" * 32, "`b` must be the id of a run"),
        (rs.add_run(store, status="FAILED"), "which is FAILED"),
        (rs.add_run(store), "tables/predictions.csv"),
    ):
        with pytest.raises(StudyError, match=word):
            compare(store, good, bad)
    assert store.client.search_runs([store.experiment], "tags.kind = 'comparison'") == []


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [(None, "x", "`a`"), ("x", None, "`b`"), ("x", "x", "two runs"), (" ", "x", "`a`")],
)
def test_values_are_checked(a: str | None, b: str | None, word: str) -> None:
    with pytest.raises(StudyError, match=word):
        CompareConfig(a, b).validate()


def test_the_recorded_prediction_counts_where_probabilities_tie() -> None:
    tied = rs.predictions([3], [3], [0]).assign(p2=0.91)
    assert evaluation_from_table(tied).predicted.tolist() == [3]


@pytest.mark.slow
def test_no_tensorflow_is_imported() -> None:
    modules = "digit_study.study.comparison, digit_study.registry.promotion"
    code = f"import sys, {modules}; sys.exit('tensorflow' in sys.modules)"
    source = str(Path(comparison.__file__).parents[2])
    assert (
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": source}, check=False
        ).returncode
        == 0
    )
