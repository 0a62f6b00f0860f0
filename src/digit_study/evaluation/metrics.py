"""Predictions to numbers: metrics, intervals, confusion matrix, paired tests.

Every function here is pure. The statistics are statsmodels', scipy's and scikit-learn's; what is ours is the choice.
A new metric is one line in :func:`metrics_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

CLASSES = 10
#: Images in one forward pass: a fifth faster than Keras's 32 on one core, and no slower than any more.
BATCH = 128

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """What one model said of n labelled images.

    Attributes:
        labels: true digits, shape (n,), int64, 0 to 9.
        probabilities: softmax output, shape (n, 10), float32, rows sum to 1.
        index: position of every image in the unsplit source, shape (n,), int64; pairs two runs image by image.
        metrics: scalars by name, as :func:`metrics_of` gives them.
        confusion: counts, shape (10, 10), int64; row = true digit, column = predicted digit.
    """

    labels: Labels
    probabilities: Probabilities
    index: Labels
    metrics: dict[str, float]
    confusion: Labels

    @property
    def predicted(self) -> Labels:
        """Most probable digit of every image, shape (n,), int64."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same n images.

    Attributes:
        only_first: images that only the first model reads right.
        only_second: images that only the second model reads right.
        images: n.
        difference: accuracy of the second minus accuracy of the first, in [-1, 1].
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: exact two-sided McNemar test of "both are equally good".
    """

    only_first: int
    only_second: int
    images: int
    difference: float
    low: float
    high: float
    p_value: float


def evaluate(model: Any, images: npt.NDArray[np.uint8], labels: npt.NDArray[Any], index: Labels) -> Evaluation:
    """Let a Keras model read ``images`` (n, 28, 28, 1), raw pixels 0 to 255, and score it against ``labels`` (n,)."""
    probabilities = np.asarray(model.predict(images, batch_size=BATCH, verbose=0), dtype=np.float32)
    return score(labels.astype(np.int64), probabilities, index)


def score(labels: Labels, probabilities: Probabilities, index: Labels | None = None) -> Evaluation:
    """Score ``probabilities`` (n, 10) against ``labels`` (n,)."""
    from sklearn.metrics import confusion_matrix

    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(CLASSES)).astype(np.int64)
    return Evaluation(
        labels=labels,
        probabilities=probabilities,
        index=np.arange(len(labels)) if index is None else index,
        metrics=metrics_of(labels, probabilities),
        confusion=confusion,
    )


def metrics_of(labels: Labels, probabilities: Probabilities) -> dict[str, float]:
    """All scalar metrics of a validation. To add one, add a line: it reaches MLflow and the tables by its name."""
    predicted = probabilities.argmax(axis=1)
    accuracy = float(np.mean(predicted == labels))
    low, high = accuracy_interval(int(np.sum(predicted == labels)), len(labels))
    return {
        "val_accuracy": accuracy,
        "val_accuracy_low": low,
        "val_accuracy_high": high,
        "val_loss": cross_entropy(labels, probabilities),
        "val_calibration_error": expected_calibration_error(labels, probabilities),
        "val_macro_f1": float(per_class_report(labels, predicted)["f1"].mean()),
    }


def accuracy_interval(correct: int, images: int) -> tuple[float, float]:
    """95 % Wilson interval of an accuracy of ``correct`` out of ``images``, each end in [0, 1].

    Source: E. B. Wilson 1927, as statsmodels implements it.
    """
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(correct, images, alpha=0.05, method="wilson")
    # rounding puts the ends of 0 and n of n on the wrong side by 1e-17, and matplotlib draws no negative error bar
    return min(float(low), correct / images), max(float(high), correct / images)


def cross_entropy(labels: Labels, probabilities: Probabilities) -> float:
    """Mean negative log probability of the true digit, in nats; probabilities are clipped at 1e-7, as Keras does."""
    true = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.clip(true, 1e-7, 1.0)).mean())


def expected_calibration_error(labels: Labels, probabilities: Probabilities, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by images; 0 is perfect, range [0, 1].

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equation 3.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def per_class_report(labels: Labels, predicted: npt.NDArray[Any]) -> pd.DataFrame:
    """Precision, recall and F1 of every digit: columns digit, precision, recall, f1, images; ten rows.

    A digit that is never predicted, or that has no images, scores 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=list(range(CLASSES)), zero_division=0.0
    )
    return pd.DataFrame(
        {"digit": range(CLASSES), "precision": precision, "recall": recall, "f1": f1, "images": support}
    )


def predictions_table(evaluation: Evaluation) -> pd.DataFrame:
    """One row an image: index, label, predicted, correct, confidence and the ten probabilities p0 to p9."""
    probabilities = evaluation.probabilities
    table = pd.DataFrame(
        {
            "index": evaluation.index,
            "label": evaluation.labels,
            "predicted": evaluation.predicted,
            "correct": evaluation.predicted == evaluation.labels,
            "confidence": probabilities.max(axis=1),
        }
    )
    return table.assign(**{f"p{digit}": probabilities[:, digit] for digit in range(CLASSES)})


def paired_test(first_correct: npt.NDArray[np.bool_], second_correct: npt.NDArray[np.bool_]) -> PairedTest:
    """Compare two models on the same images, given which ones each reads right, both shape (n,).

    The test is McNemar's exact one (binomial on the discordant pairs, statsmodels). The interval is that of a paired
    t-test on the differences, image by image (scipy); where every image has the same difference it has no width.

    Raises:
        ValueError: the two are not of one length.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    if first_correct.shape != second_correct.shape:
        raise ValueError(f"a paired test needs the same images, got {first_correct.shape} and {second_correct.shape}")
    n = len(first_correct)
    b = int(np.sum(first_correct & ~second_correct))
    c = int(np.sum(~first_correct & second_correct))
    both = int(np.sum(first_correct & second_correct))
    low, high = _paired_interval(first_correct, second_correct)
    # exact binomial p-values can come out a rounding above 1
    p_value = min(float(mcnemar([[both, b], [c, n - both - b - c]], exact=True).pvalue), 1.0)
    return PairedTest(b, c, n, (c - b) / n, low, high, p_value)


def _paired_interval(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> tuple[float, float]:
    from scipy.stats import ttest_rel

    differences = second.astype(np.float64) - first
    if differences.min() == differences.max():  # without variance the t-test has no answer
        return float(differences[0]), float(differences[0])
    interval = ttest_rel(second.astype(np.float64), first.astype(np.float64)).confidence_interval(0.95)
    return float(interval.low), float(interval.high)
