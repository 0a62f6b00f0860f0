"""Numbers from predictions, in pure functions. A new metric is a line in :func:`metrics_of`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.data.arrays import CLASSES, Labels

#: Bins of equal width that the calibration error is summed over.
CALIBRATION_BINS = 15
#: Probabilities below this count as this in the loss, as Keras has it.
LEAST_PROBABILITY = 1e-7
#: Columns of tables with the probabilities of the ten digits.
PROBABILITY_COLUMNS = [f"p{digit}" for digit in range(CLASSES)]

#: Softmax output, (n, 10); rows sum to 1.
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a model for n labelled images.

    Attributes:
        labels: True digits, (n,), int64, 0 to 9.
        probabilities: Softmax output, (n, 10), float32, rows sum to 1.
        index: Position of every image in the source before it was split, (n,), int64. Two runs are
            paired by it, image by image.
        metrics: Values by name, from :func:`metrics_of`.
        confusion: Counts, (10, 10), int64; a row is a true digit, a column a predicted digit.
    """

    labels: Labels
    probabilities: Probabilities
    index: Labels
    metrics: dict[str, float]
    confusion: Labels

    @property
    def predicted(self) -> Labels:
        """Return the most probable digit of every image, (n,), int64."""
        most_probable = self.probabilities.argmax(axis=1)
        return np.asarray(most_probable, dtype=np.int64)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Return whether the prediction of every image is correct, (n,)."""
        return np.asarray(self.predicted == self.labels)

    def in_order(self) -> Self:
        """Return the same evaluation with its images in the order of their index."""
        order = self.index.argsort()
        return replace(
            self,
            labels=self.labels[order],
            probabilities=self.probabilities[order],
            index=self.index[order],
        )


def evaluate(
    labels: Labels, probabilities: Probabilities, index: Labels | None = None
) -> Evaluation:
    """Evaluate predictions against the true digits.

    Args:
        labels: True digits, (n,), of any integer type, 0 to 9.
        probabilities: Softmax output, (n, 10), float32.
        index: Position of every image in the source before it was split, (n,), int64; 0 to n - 1
            by default.

    Returns:
        The predictions with their metrics and confusion matrix.

    See docs/statistics.md#metrics
    """
    from sklearn.metrics import confusion_matrix

    labels = labels.astype(np.int64)
    if index is None:
        index = np.arange(len(labels))
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(labels, predicted, labels=range(CLASSES)).astype(np.int64)
    metrics = metrics_of(labels, probabilities, confusion)
    return Evaluation(labels, probabilities, index, metrics, confusion)


def metrics_of(labels: Labels, probabilities: Probabilities, confusion: Labels) -> dict[str, float]:
    """Compute all scalar metrics of a validation.

    A line that is added reaches MLflow and the tables by its name.

    Args:
        labels: True digits, (n,), int64.
        probabilities: Softmax output, (n, 10), float32.
        confusion: Counts, (10, 10), true digits in rows.

    Returns:
        Values by name. ``val_loss`` is in nats, all others are in [0, 1].

    See docs/statistics.md#metrics
    """
    correct = int(np.trace(confusion))
    images = len(labels)
    low, high = accuracy_interval(correct, images)
    # mean negative log probability of the true digit, clipped as Keras does
    true = probabilities[np.arange(images), labels].astype(np.float64)
    clipped = np.clip(true, LEAST_PROBABILITY, 1.0)
    loss = -np.log(clipped).mean()
    by_class = per_class_report(confusion)
    return {
        "val_accuracy": correct / images,
        "val_accuracy_low": low,
        "val_accuracy_high": high,
        "val_loss": float(loss),
        "val_calibration_error": calibration_error(labels, probabilities),
        "val_macro_f1": float(by_class["f1"].mean()),
    }


def calibration_error(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean gap between confidence and accuracy, over bins of equal width.

    Args:
        labels: True digits, (n,), int64.
        probabilities: Softmax output, (n, 10), float32.

    Returns:
        The expected calibration error, in [0, 1].

    See docs/statistics.md#calibration-error
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    predicted = probabilities.argmax(axis=1)
    correct = predicted == labels
    # a bin holds its upper end, the first also its lower end
    bin_of = np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1
    bin_of = np.clip(bin_of, 0, CALIBRATION_BINS - 1)
    # by image, (n,), then summed by bin, (bins,)
    gaps = correct - confidence
    gaps_of_bins = np.bincount(bin_of, weights=gaps, minlength=CALIBRATION_BINS)
    total = np.abs(gaps_of_bins).sum()
    return float(total / len(labels))


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of an accuracy.

    Args:
        correct: Images that were predicted correctly.
        images: All images, at least 1.

    Returns:
        Its lower and its upper end, in [0, 1].

    See docs/statistics.md#accuracy-interval
    """
    from scipy.stats import binomtest

    low, high = binomtest(correct, images).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def per_class_report(confusion: Labels) -> pd.DataFrame:
    """Return precision, recall and F1 of every digit.

    They come from the counts, since scikit-learn, which takes the labels, needs as long as the
    prediction of 700 images.

    Args:
        confusion: Counts, (10, 10), true digits in rows.

    Returns:
        Ten rows of digit, precision, recall, f1, images. A digit that was never predicted, or has
        no images, has 0.

    See docs/statistics.md#metrics
    """
    correct = np.diag(confusion)
    images = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    # at least half an image: 0 of 0 is 0
    return pd.DataFrame(
        {
            "digit": np.arange(CLASSES),
            "precision": correct / np.maximum(predicted, 0.5),
            "recall": correct / np.maximum(images, 0.5),
            "f1": correct / np.maximum((images + predicted) / 2, 0.5),
            "images": images,
        }
    )


def predictions_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return a row for every image, to be written as ``tables/predictions.csv``.

    Args:
        evaluation: Predictions of n images.

    Returns:
        n rows of index, label, predicted, correct, confidence and the probabilities p0 to p9.

    See docs/statistics.md#metrics
    """
    facts = pd.DataFrame(
        {
            "index": evaluation.index,
            "label": evaluation.labels,
            "predicted": evaluation.predicted,
            "correct": evaluation.correct,
            "confidence": evaluation.probabilities.max(axis=1),
        }
    )
    probabilities = pd.DataFrame(evaluation.probabilities, columns=PROBABILITY_COLUMNS)
    return pd.concat([facts, probabilities], axis=1)


def evaluation_from_table(table: pd.DataFrame) -> Evaluation:
    """Return the evaluation that :func:`predictions_table` was written from.

    Args:
        table: The rows, as they were read from a CSV file.

    Returns:
        The evaluation, with probabilities as they were rounded in the file. Its predictions are
        the recorded ones.

    See docs/statistics.md#metrics
    """
    labels = table["label"].to_numpy(np.int64)
    index = table["index"].to_numpy(np.int64)
    predicted = table["predicted"].to_numpy(np.int64)
    probabilities = table[PROBABILITY_COLUMNS].to_numpy(np.float32, copy=True)
    # rounded for the table, the two highest probabilities can be equal: the recorded prediction
    # counts
    most_probable = probabilities.argmax(axis=1)
    rows = np.flatnonzero(most_probable != predicted)
    highest = probabilities[rows].max(axis=1)
    just_above = np.nextafter(highest, np.float32(2))
    probabilities[rows, predicted[rows]] = just_above
    return evaluate(labels, probabilities, index)


def misclassified_by_all(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """Return the images that no network predicts as their label.

    Args:
        evaluations: Predictions of several networks for the same images, in the same order.

    Returns:
        A row for each such image, those first on which most networks agree, of these the ones of
        which they are surest. Columns: ``index``; ``label``; ``says``, what most networks predict;
        ``agree``, the share of networks that do, in [0, 1]; ``confidence``, its mean probability;
        ``label_looks_wrong``, whether all networks predict the same other digit.

    See docs/statistics.md#labels-that-look-wrong
    """
    first = evaluations[0]
    # (networks, n)
    predicted = np.stack([evaluation.predicted for evaluation in evaluations])
    all_wrong = (predicted != first.labels).all(axis=0)
    rows = np.flatnonzero(all_wrong)
    # share of networks that predict each digit, (rows, 10)
    shares = [(predicted[:, rows] == digit).mean(axis=0) for digit in range(CLASSES)]
    votes = np.stack(shares, axis=-1)
    says = votes.argmax(axis=1)
    probabilities = [evaluation.probabilities[rows] for evaluation in evaluations]
    mean = np.mean(probabilities, axis=0)
    each = np.arange(len(rows))
    found = pd.DataFrame(
        {
            "index": first.index[rows],
            "label": first.labels[rows],
            "says": says,
            "agree": votes[each, says],
            "confidence": mean[each, says],
        }
    )
    found["label_looks_wrong"] = found["agree"] == 1
    return found.sort_values(["agree", "confidence"], ascending=False, ignore_index=True)
