"""Which configuration is best, and which are not significantly different from it.

Paired tests, intervals and rankings, on plain arrays::

    from digit_study.stats.ranking import Candidate, leaderboard

    board = leaderboard([Candidate("a", "id of a", metrics, correct), ...])
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.stats.metrics import accuracy_interval

#: Probability of a wrong statement that all comparisons of a ranking share.
SIGNIFICANCE = 0.05
#: Columns of a leaderboard.
COLUMNS = (
    "rank",
    "name",
    "run_id",
    "val_accuracy",
    "val_accuracy_low",
    "val_accuracy_high",
    "val_loss",
    "robust_accuracy",
    "parameters",
    "training_seconds",
    "n",
    "seeds",
    "p_value",
    "p_adjusted",
    "tied",
)
#: Numbers nearer to each other than this differ by rounding only.
ROUNDING = 1e-12

#: Whether each image is predicted correctly, (n,).
Correct = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TTest:
    """A t-test of "the mean is 0".

    Attributes:
        p_value: Two-sided, in [0, 1].
        low: Lower end of the 95 % interval of the mean.
        high: Its upper end.
    """

    p_value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """The comparison of two models on the same images.

    Attributes:
        only_first: Images that only the first model predicts correctly.
        only_second: Images that only the second model predicts correctly.
        images: All images.
        difference: Accuracy of the second minus accuracy of the first, in [-1, 1].
        low: Lower end of its 95 % interval, of a paired t-test on the differences by image.
        high: Its upper end.
        p_value: Exact two-sided McNemar test of "both are equally good".
    """

    only_first: int
    only_second: int
    images: int
    difference: float
    low: float
    high: float
    p_value: float

    def z_statistic(self, difference: float) -> float:
        """Return Tango's score statistic of a supposed true difference.

        Args:
            difference: The supposed difference, in (-1, 0).

        Returns:
            Standard normal if the true difference is ``difference``; large if it is larger.

        See docs/statistics.md#not-worse-by-a-margin
        """
        b = self.only_first
        c = self.only_second
        n = self.images
        spread = difference * (1 - difference)
        linear = (2 * n - c + b) * difference - b - c
        # the probability that only the first predicts an image correctly: root of a quadratic
        root = math.sqrt(linear**2 + 8 * n * b * spread)
        chance = (root - linear) / (4 * n)
        excess = c - b - n * difference
        variance = n * (2 * chance + spread)
        return excess / math.sqrt(variance)

    def lower_end(self, level: float) -> float:
        """Return the lower end of a one-sided interval of the true difference.

        Args:
            level: Probability, at most, that the true difference lies below the end.

        Returns:
            The end, in [-1, 0]; 0 where it would lie above that.

        See docs/statistics.md#not-worse-by-a-margin
        """
        from scipy.optimize import brentq
        from scipy.stats import norm

        wanted = float(norm.isf(level))
        highest = min(self.difference, 0.0) - 1e-12
        if self.z_statistic(highest) > wanted:
            return 0.0
        lowest = -1 + 1e-9

        def excess(end: float) -> float:
            return self.z_statistic(end) - wanted

        return float(brentq(excess, lowest, highest))


@dataclass(frozen=True)
class Candidate:
    """A finished run that can be ranked.

    Attributes:
        name: A short name, for tables.
        run_id: Its id.
        metrics: Its final metrics by name. A ranking needs ``val_accuracy``, ``val_loss``,
            ``parameters`` and ``training_seconds``.
        correct: Which validation images it predicts correctly, (n,), in the order of their index.
        digest: Which data and validation images it has; only runs with equal digests are ranked
            together.
    """

    name: str
    run_id: str
    metrics: dict[str, float]
    correct: Correct
    digest: str = ""


@dataclass(frozen=True)
class Group:
    """A configuration with its run, or with its runs on several seeds."""

    name: str
    runs: Sequence[Candidate]

    @property
    def best(self) -> Candidate:
        """Return the run with the highest accuracy; among equals, the run with the lowest loss."""

        def quality(run: Candidate) -> tuple[float, float]:
            return run.metrics["val_accuracy"], -run.metrics["val_loss"]

        return max(self.runs, key=quality)

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over the runs."""
        values = [run.metrics[metric] for run in self.runs]
        return float(np.mean(values))

    @property
    def robust_accuracy(self) -> float:
        """Return the mean accuracy on corrupted images; NaN where an earlier version trained."""
        values = [run.metrics.get("robust_accuracy", math.nan) for run in self.runs]
        return float(np.mean(values))


def paired_test(first: Correct, second: Correct) -> PairedTest:
    """Compare two models on the same images.

    Args:
        first: Which images the first model predicts correctly, (n,).
        second: Which of the same images the second model predicts correctly, (n,).

    Returns:
        McNemar's exact test and the interval of the difference.

    Raises:
        ValueError: If the two differ in length.

    See docs/statistics.md#paired-test
    """
    from scipy.stats import binom

    if first.shape != second.shape:
        raise ValueError(
            f"a paired test needs the same images, got {first.shape} and {second.shape}"
        )
    images = len(first)
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(second & ~first))
    fewer = min(only_first, only_second)
    one_sided = float(binom.cdf(fewer, only_first + only_second, 0.5))
    # with equal counts the term in the middle is in both halves, and the sum above 1
    p_value = min(1.0, 2 * one_sided)
    by_image = t_test(second.astype(np.float64) - first)
    return PairedTest(
        only_first=only_first,
        only_second=only_second,
        images=images,
        difference=(only_second - only_first) / images,
        low=by_image.low,
        high=by_image.high,
        p_value=p_value,
    )


def t_test(numbers: Numbers) -> TTest:
    """Test whether the mean of numbers is 0.

    Args:
        numbers: The numbers, (n,).

    Returns:
        The two-sided test and the interval of the mean. Equal numbers have a point as their
        interval, and a p-value of 1 if they are 0, of 0 if they are not.

    See docs/statistics.md#paired-test
    """
    from scipy.stats import ttest_1samp

    mean = float(numbers.mean())
    range_of_numbers = np.ptp(numbers)
    if range_of_numbers < ROUNDING:
        is_zero = abs(mean) < ROUNDING
        return TTest(p_value=float(is_zero), low=mean, high=mean)
    result = ttest_1samp(numbers, 0.0)
    p_value = float(result.pvalue)
    low, high = result.confidence_interval(0.95)
    return TTest(p_value=p_value, low=float(low), high=float(high))


def difference_p_value(first: Group, second: Group) -> float:
    """Return the two-sided p-value of "both configurations are equally good".

    A run against a run is compared by McNemar's exact test. Several seeds are pooled: the paired
    t-test on each image's share of correct predictions is McNemar's test extended to shares.

    Args:
        first: A configuration.
        second: Another configuration, whose runs were validated on the same images.

    See docs/statistics.md#paired-test
    """
    if len(first.runs) == len(second.runs) == 1:
        test = paired_test(first.runs[0].correct, second.runs[0].correct)
        return test.p_value
    by_image = _shares(second) - _shares(first)
    return t_test(by_image).p_value


def adjusted_p_values(p_values: Sequence[float]) -> Numbers:
    """Adjust the p-values of comparisons with the observed best for all comparisons together.

    Args:
        p_values: P-values of k - 1 tests of "as good as the best of k", in any order.

    Returns:
        Adjusted p-values in the same order, (k - 1,). With a probability of 95 % or more, every
        truly best configuration is the observed best or has a value above 0.05.

    See docs/statistics.md#all-comparisons-together
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = given.argsort(kind="stable")
    ascending = given[order]
    # configurations that are not excluded yet at each of Holm's steps
    left = len(given) + 1 - np.arange(len(given))
    # any two of them may be the best and be compared
    multiplied = ascending * left * (left - 1) / 2
    stepwise = np.minimum(multiplied, 1.0)
    adjusted = np.empty_like(given)
    adjusted[order] = np.maximum.accumulate(stepwise)
    return adjusted


def leaderboard(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Rank single runs.

    Args:
        candidates: Runs on the same data, validated on the same images.

    Returns:
        What :func:`pooled_leaderboard` returns, each run as a configuration of its own.

    Raises:
        ValueError: If runs were made on different data.

    See docs/statistics.md#ranking
    """
    groups = [Group(candidate.name, [candidate]) for candidate in candidates]
    return pooled_leaderboard(groups)


def unpaired_board(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """List runs that were each validated on other images, which no paired test can compare.

    Args:
        candidates: Runs on any data.

    Returns:
        A row for each run, the most accurate first, with the columns :data:`COLUMNS`. P-values are
        NaN and ``tied`` is None.

    See docs/statistics.md#several-splits
    """
    boards = [leaderboard([candidate]) for candidate in candidates]
    board = pd.concat(boards)
    board = board.sort_values("val_accuracy", ascending=False, kind="stable")
    board["rank"] = range(1, len(board) + 1)
    board[["p_value", "p_adjusted"]] = math.nan
    board["tied"] = None
    return board.reset_index(drop=True)


def mean_over_splits(groups: Sequence[Group]) -> pd.DataFrame:
    """Summarise configurations that were trained on several splits of the data.

    Args:
        groups: Configurations, each with its runs on two or more splits.

    Returns:
        A row for each, the best mean first. Columns name, splits, mean_val_accuracy,
        sd_val_accuracy (the standard deviation over the splits), min_val_accuracy,
        max_val_accuracy, and parameters.

    See docs/statistics.md#several-splits
    """
    rows = []
    for group in groups:
        accuracies = np.array([run.metrics["val_accuracy"] for run in group.runs])
        row = {
            "name": group.name,
            "splits": len(accuracies),
            "mean_val_accuracy": accuracies.mean(),
            "sd_val_accuracy": accuracies.std(ddof=1),
            "min_val_accuracy": accuracies.min(),
            "max_val_accuracy": accuracies.max(),
            "parameters": round(group.mean("parameters")),
        }
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.sort_values("mean_val_accuracy", ascending=False, kind="stable")


def pooled_leaderboard(groups: Sequence[Group]) -> pd.DataFrame:
    """Rank configurations by mean validation accuracy, the smaller network first among equals.

    Args:
        groups: Configurations, whose runs were made on the same data and validated on the same
            images.

    Returns:
        A row for each configuration, with the columns :data:`COLUMNS`. ``val_accuracy_low`` and
        ``val_accuracy_high`` are the ends of Wilson's interval on the ``n`` validation images,
        which more seeds do not make narrower. ``run_id`` is that of the best run. ``p_value`` is of
        the single comparison with the observed best, ``p_adjusted`` of all comparisons together.
        ``tied`` configurations are not significantly different from the best. ``robust_accuracy``
        is NaN for runs that do not have it.

    Raises:
        ValueError: If runs were made on different data.

    See docs/statistics.md#ranking
    """
    digests = {run.digest for group in groups for run in group.runs}
    if len(digests) > 1:
        raise ValueError("runs on different data are never ranked together")
    ordered = sorted(groups, key=_ranking_key)
    p_values = [difference_p_value(ordered[0], group) for group in ordered]
    adjusted = [1.0, *adjusted_p_values(p_values[1:])]
    rows = []
    for position, group in enumerate(ordered):
        accuracy = group.mean("val_accuracy")
        images = len(group.runs[0].correct)
        correct = round(accuracy * images)
        low, high = accuracy_interval(correct, images)
        row = {
            "rank": position + 1,
            "name": group.name,
            "run_id": group.best.run_id,
            "val_accuracy": accuracy,
            "val_accuracy_low": low,
            "val_accuracy_high": high,
            "val_loss": group.mean("val_loss"),
            "robust_accuracy": group.robust_accuracy,
            "parameters": round(group.mean("parameters")),
            "training_seconds": group.mean("training_seconds"),
            "n": images,
            "seeds": len(group.runs),
            "p_value": p_values[position],
            "p_adjusted": adjusted[position],
            "tied": adjusted[position] > SIGNIFICANCE,
        }
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _ranking_key(group: Group) -> tuple[float, float]:
    """Return what configurations are sorted by: the best mean first, then the smallest network."""
    return -group.mean("val_accuracy"), group.mean("parameters")


def tukey(accuracies: Numbers) -> Numbers:
    """Test whether candidates are as good as the best of them, with the seeds as blocks.

    Args:
        accuracies: Accuracies, (k, seeds), in [0, 1], the best mean in the first row. NaN stands
            for a later seed that a candidate was not trained with.

    Returns:
        P-values of "as good as the first", (k,), for all comparisons together; the first is 1. A
        candidate with NaN counts among the k and for the noise, and gets NaN.

    See docs/statistics.md#seeds
    """
    from scipy.stats import studentized_range

    k, seeds = accuracies.shape
    # candidate and seed of each of the n accuracies that are there
    is_there = ~np.isnan(accuracies)
    rows, columns = np.nonzero(is_there)
    values = accuracies[is_there]
    # indicators (n, k) of the candidate and (n, seeds) of the seed
    candidate_indicators = np.eye(k)[rows]
    seed_indicators = np.eye(seeds)[columns]
    design = np.hstack([candidate_indicators, seed_indicators])
    effects = np.linalg.lstsq(design, values)[0]
    # noise is what neither the candidate nor the seed explains
    residuals = values - design @ effects
    freedom = max(1, len(values) - k - seeds + 1)
    squares = (residuals**2).sum()
    error = np.sqrt(squares / freedom / seeds)
    other_means = accuracies[1:].mean(axis=1)
    below = accuracies[0].mean() - other_means
    if error < ROUNDING:
        are_equal = np.where(np.isnan(below), np.nan, below < ROUNDING)
        return np.array([1.0, *are_equal])
    p_values = [1.0]
    for gap in below:
        p_value = studentized_range.sf(gap / error, k, freedom)
        p_values.append(float(p_value))
    return np.array(p_values)


def _shares(group: Group) -> Numbers:
    """Return the share of a configuration's runs that predict each image correctly, (n,)."""
    correct = [run.correct for run in group.runs]
    return np.asarray(np.mean(correct, axis=0))
