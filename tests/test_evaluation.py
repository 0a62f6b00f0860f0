"""Predictions to numbers, against cases that can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from digit_study.stats import metrics
from digit_study.stats.metrics import accuracy_interval, evaluate

Array = np.ndarray[Any, Any]


def certain(digits: Any, confidence: float = 1.0) -> Array:
    """Probabilities that give ``confidence`` to each of ``digits`` and share the rest."""
    rest = (1 - confidence) / 9
    return np.where(np.eye(10, dtype=bool)[np.asarray(digits)], confidence, rest).astype(np.float32)


@st.composite
def readings(draw: st.DrawFn) -> tuple[Array, Array]:
    """Any labels with any probabilities."""
    count = draw(st.integers(1, 60))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sharpness = draw(st.sampled_from([0.01, 0.3, 1.0, 30.0]))
    return numbers.integers(0, 10, count), numbers.dirichlet([sharpness] * 10, count).astype(
        np.float32
    )


def test_a_perfect_reading() -> None:
    labels = np.arange(10).repeat(3)
    result = evaluate(labels, certain(labels))
    assert result.metrics["val_accuracy"] == result.metrics["val_macro_f1"] == 1.0
    assert result.metrics["val_loss"] == result.metrics["val_calibration_error"] == 0.0
    assert np.array_equal(result.confusion, 3 * np.eye(10))


def test_rows_are_true_digits_and_columns_predicted_ones() -> None:
    result = evaluate(np.array([7, 7, 1]), certain([1, 1, 1]))
    assert (
        result.confusion[7, 1] == 2 and result.confusion[1, 1] == 1 and result.confusion.sum() == 3
    )


def test_the_loss_is_in_nats_and_clipped_as_keras_does() -> None:
    assert evaluate(np.array([3, 3]), certain([3, 3], 0.25)).metrics["val_loss"] == pytest.approx(
        np.log(4)
    )
    assert evaluate(np.array([3]), certain([4])).metrics["val_loss"] == pytest.approx(-np.log(1e-7))


def test_the_loss_is_keras() -> None:
    import keras

    labels, probabilities = (
        np.arange(10),
        np.random.default_rng(0).dirichlet([1] * 10, 10).astype(np.float32),
    )
    theirs = float(np.mean(keras.losses.sparse_categorical_crossentropy(labels, probabilities)))
    assert evaluate(labels, probabilities).metrics["val_loss"] == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    ("confidence", "right", "of", "error"),
    [(0.8, 8, 10, 0.0), (0.9, 5, 10, 0.4), (0.6, 10, 10, 0.4), (1.0, 0, 4, 1.0)],
)
def test_calibration_error_of_one_bin(confidence: float, right: int, of: int, error: float) -> None:
    labels = np.array([0] * right + [1] * (of - right))
    assert evaluate(labels, certain([0] * of, confidence)).metrics[
        "val_calibration_error"
    ] == pytest.approx(error, abs=1e-6)


def test_calibration_error_weighs_bins_by_images() -> None:
    labels = np.array([0, 0, 0, 1])
    probabilities = np.concatenate([certain([0, 0, 0], 0.5), certain([0], 0.9)])
    assert evaluate(labels, probabilities).metrics["val_calibration_error"] == pytest.approx(
        (3 * 0.5 + 0.9) / 4, abs=1e-6
    )


@given(readings())
def test_every_metric_keeps_its_bounds(reading: tuple[Array, Array]) -> None:
    labels, probabilities = reading
    result = evaluate(labels, probabilities)
    metrics = result.metrics
    assert 0 <= metrics["val_calibration_error"] <= 1 and 0 <= metrics["val_macro_f1"] <= 1
    assert 0 <= metrics["val_loss"] <= -np.log(1e-7) + 1e-9
    assert (
        metrics["val_accuracy"]
        == np.trace(result.confusion) / len(labels)
        == np.mean(result.predicted == labels)
    )
    assert (
        0
        <= metrics["val_accuracy_low"]
        <= metrics["val_accuracy"]
        <= metrics["val_accuracy_high"]
        <= 1
    )
    assert result.confusion.sum() == len(labels)


@pytest.mark.slow
@given(readings(), st.randoms(use_true_random=False))
def test_the_order_of_images_changes_no_metric(reading: tuple[Array, Array], random: Any) -> None:
    labels, probabilities = reading
    order = random.sample(range(len(labels)), len(labels))
    again = evaluate(labels[order], probabilities[order])
    assert again.metrics == pytest.approx(evaluate(labels, probabilities).metrics)


# --------------------------------------------------------------------------- Wilson's interval


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (5964, 6000, 0.9917, 0.9957),
    ],
)  # 81 of 263: Newcombe 1998, table I
def test_wilsons_interval(correct: int, images: int, low: float, high: float) -> None:
    assert accuracy_interval(correct, images) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000), st.data())
def test_the_interval_rises_with_what_is_right_and_narrows_with_images(
    images: int, data: st.DataObject
) -> None:
    correct = data.draw(st.integers(0, images - 1))
    low, high = accuracy_interval(correct, images)
    assert 0 <= low <= correct / images <= high <= 1
    better = accuracy_interval(correct + 1, images)
    assert better[0] > low and better[1] > high or high == better[1] == 1.0
    wider = accuracy_interval(10 * correct, 10 * images)
    assert wider[1] - wider[0] < high - low


# ---------------------------------------------------------------------------------- tables


def test_the_report_of_every_digit() -> None:
    labels, predicted = np.array([0, 0, 0, 1, 5]), np.array([0, 0, 1, 1, 0])
    counts = confusion_matrix(labels, predicted, labels=range(10))
    table = metrics.per_class_report(counts).set_index("digit")
    assert list(table.index) == list(range(10)) and list(table["images"]) == [
        3,
        1,
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
    ]
    assert table.loc[0, "precision"] == table.loc[0, "recall"] == pytest.approx(2 / 3)
    assert table.loc[1, "precision"] == 0.5 and table.loc[1, "recall"] == 1.0
    assert table.loc[5, "f1"] == table.loc[9, "f1"] == 0.0


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=60))
def test_the_report_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    table = metrics.per_class_report(confusion_matrix(labels, predicted, labels=range(10)))
    theirs = precision_recall_fscore_support(labels, predicted, labels=range(10), zero_division=0.0)
    assert (
        pytest.approx(np.array(theirs))
        == table[["precision", "recall", "f1", "images"]].to_numpy().T
    )


def test_the_table_of_predictions_tells_every_image() -> None:
    index = np.array([40, 2, 17])
    table = metrics.predictions_table(
        evaluate(np.array([1, 2, 3]), certain([1, 2, 4], 0.91), index)
    )
    assert list(table["index"]) == [40, 2, 17] and list(table["correct"]) == [True, True, False]
    assert list(table["predicted"]) == [1, 2, 4] and table["confidence"].tolist() == pytest.approx(
        [0.91] * 3
    )
    assert list(table.columns[-10:]) == [f"p{digit}" for digit in range(10)]
    assert table[[f"p{digit}" for digit in range(10)]].sum(axis=1).tolist() == pytest.approx(
        [1] * 3
    )


def test_labels_of_the_source_are_scored() -> None:
    result = metrics.evaluate(np.array([3, 1, 4, 2], np.uint8), certain([3, 1, 4, 1]), np.arange(4))
    assert list(result.predicted) == [3, 1, 4, 1] and result.metrics["val_accuracy"] == 0.75
    assert result.labels.dtype == np.int64
