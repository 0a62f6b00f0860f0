"""Predictions to numbers, in pure functions; a new metric is one line in :func:`metrics_of`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.data.sources import CLASSES, Labels

CALIBRATION_BINS = 15
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one model for n labelled images."""

    labels: Labels  # true digits, (n,), int64, 0 to 9
    probabilities: Probabilities  # softmax output, (n, 10), float32, rows sum to 1
    index: Labels  # (n,), int64: where every image stands in the unsplit source; pairs two runs image by image
    metrics: dict[str, float]  # by name, from :func:`metrics_of`
    confusion: Labels  # counts, (10, 10), int64: row = true digit, column = predicted digit

    @property
    def predicted(self) -> Labels:
        """Most probable digit of every image, shape (n,), int64."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    def in_order(self) -> Self:
        """The same with its images in the order of their index."""
        order = self.index.argsort()
        images = {name: getattr(self, name)[order] for name in ("labels", "probabilities", "index")}
        return replace(self, **images)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each image is read right, shape (n,)."""
        return np.asarray(self.predicted == self.labels)


def score(labels: Labels, probabilities: Probabilities, index: Labels | None = None) -> Evaluation:
    """Score ``probabilities`` (n, 10) against ``labels`` (n,), at ``index`` of the unsplit source."""
    from sklearn.metrics import confusion_matrix

    labels = labels.astype(np.int64)
    confusion = confusion_matrix(
        labels, probabilities.argmax(axis=1), labels=range(CLASSES)
    ).astype(np.int64)
    index = np.arange(len(labels)) if index is None else index
    return Evaluation(
        labels, probabilities, index, metrics_of(labels, probabilities, confusion), confusion
    )


def metrics_of(labels: Labels, probabilities: Probabilities, confusion: Labels) -> dict[str, float]:
    """Compute all scalar metrics of a validation. An added line reaches MLflow and the tables by its name."""
    correct, images = int(np.trace(confusion)), len(labels)
    low, high = accuracy_interval(correct, images)
    # mean negative log probability of the true digit, clipped as Keras does
    true = probabilities[np.arange(images), labels].astype(np.float64)
    loss = -np.log(np.clip(true, 1e-7, 1.0)).mean()
    return {
        "val_accuracy": correct / images,
        "val_accuracy_low": low,
        "val_accuracy_high": high,
        "val_loss": float(loss),  # in nats
        "val_calibration_error": calibration_error(labels, probabilities),
        "val_macro_f1": float(per_class_report(confusion)["f1"].mean()),
    }


def calibration_error(labels: Labels, probabilities: Probabilities) -> float:
    """Mean gap of confidence and accuracy over equal bins, in [0, 1] (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    bin_of = np.clip(
        np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1
    )
    correct = probabilities.argmax(axis=1) == labels
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(labels))


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """95 % interval, in [0, 1], of an accuracy of ``correct`` out of ``images`` (E. B. Wilson 1927, by statsmodels)."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(correct, images, alpha=0.05, method="wilson")
    # rounding puts the ends of 0 and n of n on the wrong side by 1e-17, and matplotlib draws no negative error bar
    return min(float(low), correct / images), max(float(high), correct / images)


def per_class_report(confusion: Labels) -> pd.DataFrame:
    """Ten rows of digit, precision, recall, f1, images; a digit never predicted, or without images, scores 0.

    From the counts (10, 10) of a confusion matrix: scikit-learn, from the labels, takes as long as reading 700 images.
    """
    right, images, predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    parts = {"precision": predicted, "recall": images, "f1": (images + predicted) / 2}
    scores = {name: right / np.maximum(whole, 0.5) for name, whole in parts.items()}  # 0 of 0 is 0
    return pd.DataFrame({"digit": np.arange(CLASSES), **scores, "images": images})


def predictions_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row per image: index, label, predicted, correct, confidence and the ten probabilities p0 to p9."""
    chances = pd.DataFrame(
        evaluation.probabilities, columns=[f"p{digit}" for digit in range(CLASSES)]
    )
    facts = pd.DataFrame(
        {"index": evaluation.index, "label": evaluation.labels, "predicted": evaluation.predicted}
    )
    facts = facts.assign(
        correct=evaluation.correct, confidence=evaluation.probabilities.max(axis=1)
    )
    return pd.concat([facts, chances], axis=1)


def evaluation_of(table: pd.DataFrame) -> Evaluation:
    """The evaluation whose :func:`predictions_table` was written as ``table``."""
    probabilities = table[[f"p{digit}" for digit in range(CLASSES)]].to_numpy(np.float32)
    predicted = table["predicted"].to_numpy(np.int64)
    # rounded for the table, the two highest probabilities can be equal: the recorded prediction counts
    rows = np.flatnonzero(probabilities.argmax(axis=1) != predicted)
    probabilities[rows, predicted[rows]] = np.nextafter(
        probabilities[rows].max(axis=1), np.float32(2)
    )
    return score(
        table["label"].to_numpy(np.int64), probabilities, table["index"].to_numpy(np.int64)
    )


def misclassified_by_all(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """List the images that every network misclassifies, the surest first; all have the same images, in order.

    Columns are index, label, says (what most networks read), agree (the share of them that do, in [0, 1]), confidence
    (the mean probability of it), and label_looks_wrong: all networks read the same other digit.
    """
    first = evaluations[0]
    predicted = np.stack([one.predicted for one in evaluations])
    at = np.flatnonzero((predicted != first.labels).all(axis=0))
    votes = np.stack(
        [(predicted[:, at] == digit).mean(axis=0) for digit in range(CLASSES)], axis=-1
    )
    says = votes.argmax(axis=1)
    mean = np.mean([one.probabilities[at] for one in evaluations], axis=0)
    found = pd.DataFrame({
        "index": first.index[at], "label": first.labels[at], "says": says,
        "agree": votes[np.arange(len(at)), says], "confidence": mean[np.arange(len(at)), says],
    })  # fmt: skip
    found["label_looks_wrong"] = found["agree"] == 1
    return found.sort_values(["agree", "confidence"], ascending=False, ignore_index=True)
