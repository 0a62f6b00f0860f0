"""Which configuration is best, and which do not differ from it: paired tests, intervals, rankings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.stats.metrics import accuracy_interval

SIGNIFICANCE = 0.05
COLUMNS = (
    "rank", "name", "run_id", "val_accuracy", "val_accuracy_low", "val_accuracy_high", "val_loss", "parameters",
    "training_seconds", "n", "seeds", "p_value", "p_adjusted", "tied",
)  # fmt: skip


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same images."""

    only_first: int  # images that only the first model reads right
    only_second: int
    images: int
    difference: float  # accuracy of the second minus accuracy of the first, in [-1, 1]
    low: float  # its 95 % interval, of a paired t-test on the differences image by image
    high: float
    p_value: float  # exact two-sided McNemar test of "both are equally good"

    def score(self, difference: float) -> float:
        """Standard normal score of "the true difference is ``difference``", in (-1, 0), against a larger one.

        Tango 1998 (Statistics in Medicine 17, 891-908). A t-interval takes its width from the flips that were seen: it
        is narrow where few were, by luck, and its ends fail up to eight times as often as they say.
        """
        b, c, n, spread = (
            self.only_first,
            self.only_second,
            self.images,
            difference * (1 - difference),
        )
        linear = (2 * n - c + b) * difference - b - c
        chance = (math.sqrt(linear**2 + 8 * n * b * spread) - linear) / (
            4 * n
        )  # that only the first reads an image
        return (c - b - n * difference) / math.sqrt(n * (2 * chance + spread))

    def lower_end(self, level: float) -> float:
        """The end below which the true difference lies with a probability of at most ``level``, by :meth:`score`."""
        from scipy.optimize import brentq
        from scipy.stats import norm

        wanted, highest = float(norm.isf(level)), min(self.difference, 0.0) - 1e-12
        if self.score(highest) > wanted:  # it lies above 0, where there is nothing to ask
            return 0.0
        return float(brentq(lambda difference: self.score(difference) - wanted, -1 + 1e-9, highest))


@dataclass(frozen=True)
class Candidate:
    """A finished run that can be ranked."""

    name: str  # short, for tables
    run_id: str
    metrics: dict[str, float]  # its final ones
    correct: npt.NDArray[
        np.bool_
    ]  # (n,): which validation images it reads right, in the order of their index
    digest: str  # sha256 of its data; only runs on equal digests are ranked together


@dataclass(frozen=True)
class Group:
    """One configuration: its run, or its runs with several seeds."""

    name: str
    runs: Sequence[Candidate]

    @property
    def best(self) -> Candidate:
        """The run with the highest accuracy; among equals, the one with the lowest loss."""
        return max(
            self.runs, key=lambda run: (run.metrics["val_accuracy"], -run.metrics["val_loss"])
        )

    def mean(self, metric: str) -> float:
        """Mean of a metric over the runs."""
        return float(np.mean([run.metrics[metric] for run in self.runs]))


def paired_test(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> PairedTest:
    """Compare two models, given which of the same images each reads right; ValueError if they differ in length."""
    from statsmodels.stats.contingency_tables import mcnemar

    if first.shape != second.shape:
        raise ValueError(
            f"a paired test needs the same images, got {first.shape} and {second.shape}"
        )
    n, both = len(first), int(np.sum(first & second))
    b, c = int(first.sum()) - both, int(second.sum()) - both
    _, low, high = t_test(second.astype(np.float64) - first)
    # exact binomial p-values can come out a rounding above 1
    p_value = min(float(mcnemar([[both, b], [c, n - both - b - c]], exact=True).pvalue), 1.0)
    return PairedTest(b, c, n, (c - b) / n, low, high, p_value)


def t_test(numbers: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Two-sided p of "the mean is 0", and the ends of its 95 % t-interval; 1 or 0, and a point, of equal values."""
    from scipy.stats import ttest_1samp

    mean = float(numbers.mean())
    if np.ptp(numbers) < 1e-12:
        return float(abs(mean) < 1e-12), mean, mean
    result = ttest_1samp(numbers, 0.0)
    low, high = result.confidence_interval(0.95)
    return float(result.pvalue), float(low), float(high)


def difference_p_value(first: Group, second: Group) -> float:
    """Two-sided p of "both read equally well" on the same images; McNemar's exact test for a run against a run."""
    if len(first.runs) == len(second.runs) == 1:
        return paired_test(first.runs[0].correct, second.runs[0].correct).p_value
    # pooled seeds: the paired t-test on each image's share of correct predictions is McNemar's extension to shares
    shares = [np.mean([run.correct for run in group.runs], axis=0) for group in (first, second)]
    return t_test(shares[1] - shares[0])[0]


def adjusted_p_values(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Family-wise p-values of "worse than the observed best", from the p-values of k - 1 tests against it.

    Luck has a say in which of k is the observed best, so all k (k - 1) / 2 pairs count: with k - 1, a study of 40 equal
    configurations would call one worse in one case of three. By Holm's steps (1979) what is excluded counts no more.
    Those above 0.05 hold every truly best one with a probability of 95 % or more, however they are correlated. Exact
    tests stay exact, which a bootstrapped model confidence set (Hansen et al. 2011) is not on a handful of images.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = given.argsort(kind="stable")
    left = (
        len(given) + 1 - np.arange(len(given))
    )  # configurations that are not excluded at each step
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(np.minimum(given[order] * left * (left - 1) / 2, 1.0))
    return adjusted


def leaderboard(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Rank single runs; see :func:`pooled_leaderboard`."""
    return pooled_leaderboard([Group(candidate.name, [candidate]) for candidate in candidates])


def pooled_leaderboard(groups: Sequence[Group]) -> pd.DataFrame:
    """Rank configurations by mean validation accuracy, the smaller network first among equals; see :data:`COLUMNS`.

    The interval is Wilson's on the n validation images, which more seeds do not make narrower. ``run_id`` is of the
    best run. ``p_value`` is of the one comparison with the observed best, ``p_adjusted`` of all together, see
    :func:`adjusted_p_values`: the ``tied`` ones hold every truly best configuration with 95 % confidence. Raises
    ValueError on different data.
    """
    if len({run.digest for group in groups for run in group.runs}) > 1:
        raise ValueError("runs on different data are never ranked together")
    ordered = sorted(groups, key=lambda one: (-one.mean("val_accuracy"), one.mean("parameters")))
    p_values = [difference_p_value(ordered[0], one) for one in ordered]
    adjusted = [1.0, *adjusted_p_values(p_values[1:])]
    rows = []
    for rank, (one, p_value, p_adjusted) in enumerate(
        zip(ordered, p_values, adjusted, strict=False), start=1
    ):
        accuracy, n = one.mean("val_accuracy"), len(one.runs[0].correct)
        rows.append((
            rank, one.name, one.best.run_id, accuracy, *accuracy_interval(round(accuracy * n), n),
            one.mean("val_loss"), round(one.mean("parameters")), one.mean("training_seconds"),
            n, len(one.runs), p_value, p_adjusted, p_adjusted > SIGNIFICANCE,
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def tukey(accuracies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P-values (k,) of "as good as the first" of accuracies (k, seeds), best mean first; for all comparisons together.

    Tukey's range test with the seeds as blocks; noise is what neither candidate nor seed explains. Of two candidates it
    is the paired t-test. Who has NaN for later seeds counts among the k and tells of the noise, and gets NaN.
    """
    from scipy.stats import studentized_range

    (k, seeds), is_there = accuracies.shape, ~np.isnan(accuracies)
    rows, columns = np.nonzero(is_there)
    values, design = accuracies[is_there], np.hstack([np.eye(k)[rows], np.eye(seeds)[columns]])
    residuals = values - design @ np.linalg.lstsq(design, values)[0]
    freedom = max(1, len(values) - k - seeds + 1)
    error = np.sqrt((residuals**2).sum() / freedom / seeds)
    below = accuracies[0].mean() - accuracies[1:].mean(axis=1)
    if error < 1e-12:
        return np.array([1.0, *np.where(np.isnan(below), np.nan, below < 1e-12)])
    return np.array([1.0, *(float(studentized_range.sf(one / error, k, freedom)) for one in below)])
