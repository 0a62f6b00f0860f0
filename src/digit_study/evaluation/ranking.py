"""Which run is best, and which cannot be told from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.evaluation.metrics import accuracy_interval, paired_test

SIGNIFICANCE = 0.05
COLUMNS = (
    "rank", "name", "run_id", "val_accuracy", "val_accuracy_low", "val_accuracy_high", "val_loss", "parameters",
    "training_seconds", "n", "seeds", "p_value", "tied",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A finished run that can be ranked.

    Attributes:
        name: short, for tables.
        run_id: in MLflow.
        metrics: its final metrics.
        correct: shape (n,), which validation images it reads right, in the order of their index.
        digest: sha256 of its data; only runs on equal digests are ranked together.
    """

    name: str
    run_id: str
    metrics: dict[str, float]
    correct: npt.NDArray[np.bool_]
    digest: str


@dataclass(frozen=True)
class Group:
    """One configuration: the run, or the runs on several seeds, of it."""

    name: str
    runs: Sequence[Candidate]

    @property
    def best(self) -> Candidate:
        """Its run with the highest accuracy, the lower loss among equals."""
        return max(self.runs, key=lambda run: (run.metrics["val_accuracy"], -run.metrics["val_loss"]))

    def mean(self, metric: str) -> float:
        """Mean of a metric over its runs."""
        return float(np.mean([run.metrics[metric] for run in self.runs]))

    def share_correct(self) -> npt.NDArray[np.float64]:
        """For every validation image the share of runs that read it right, shape (n,)."""
        return np.asarray(np.mean([run.correct for run in self.runs], axis=0), dtype=np.float64)


def leaderboard(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Rank single runs; see :func:`pooled_leaderboard`."""
    return pooled_leaderboard([Group(candidate.name, [candidate]) for candidate in candidates])


def pooled_leaderboard(groups: Sequence[Group]) -> pd.DataFrame:
    """Rank configurations by mean validation accuracy, the smaller network first among equals.

    Returns:
        Columns as in :data:`COLUMNS`. The interval is Wilson's on the n validation images: more seeds of one
        configuration are judged on the same images and do not make it narrower. ``run_id`` is of its best run.
        ``p_value`` is against the best configuration, on the same images; ``tied`` marks all that cannot be told
        from it at the 5 % level, itself included.

    Raises:
        ValueError: the candidates stem from different data.
    """
    if len({run.digest for group in groups for run in group.runs}) > 1:
        raise ValueError("runs on different data are never ranked together")
    ordered = sorted(groups, key=lambda one: (-one.mean("val_accuracy"), one.mean("parameters")))
    rows = [_row(rank, one, ordered[0]) for rank, one in enumerate(ordered, start=1)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(rank: int, one: Group, best: Group) -> dict[str, object]:
    n = len(one.runs[0].correct)
    accuracy = one.mean("val_accuracy")
    low, high = accuracy_interval(round(accuracy * n), n)
    p_value = 1.0 if one is best else difference_p_value(best, one)
    return {
        "rank": rank,
        "name": one.name,
        "run_id": one.best.run_id,
        "val_accuracy": accuracy,
        "val_accuracy_low": low,
        "val_accuracy_high": high,
        "val_loss": one.mean("val_loss"),
        "parameters": round(one.mean("parameters")),
        "training_seconds": one.mean("training_seconds"),
        "n": n,
        "seeds": len(one.runs),
        "p_value": p_value,
        "tied": p_value > SIGNIFICANCE,
    }


def confirmed_ranking(groups: Sequence[Group], prefer: str) -> pd.DataFrame:
    """Rank configurations that were trained on the same fresh seeds, and name the winner.

    Two configurations are told apart only when both noises allow it: that of the seeds (paired t-test on the same
    seeds) and that of the images (:func:`difference_p_value`).

    Args:
        groups: every one with its runs in the same order of seeds, two or more.
        prefer: ``smallest`` takes the fewest parameters among those that cannot be told from the best mean,
            ``accuracy`` the best mean.

    Returns:
        Columns rank, name, run_id, mean, low, high (95 % t-interval over seeds), parameters, seeds, p_seeds,
        p_images, tied, winner; best mean first. ``run_id`` is of the best run.
    """
    ordered = sorted(groups, key=lambda one: (-one.mean("val_accuracy"), one.mean("parameters")))
    table = pd.DataFrame([_confirmed_row(rank, one, ordered[0]) for rank, one in enumerate(ordered, start=1)])
    eligible = table[table["tied"]] if prefer == "smallest" else table.head(1)
    winner = eligible.sort_values(["parameters", "rank"]).index[0]
    return table.assign(winner=table.index == winner)


def _confirmed_row(rank: int, one: Group, best: Group) -> dict[str, object]:
    accuracies = [run.metrics["val_accuracy"] for run in one.runs]
    low, high = mean_interval(accuracies)
    p_seeds = 1.0 if one is best else _paired_p([run.metrics["val_accuracy"] for run in best.runs], accuracies)
    p_images = 1.0 if one is best else difference_p_value(best, one)
    return {
        "rank": rank,
        "name": one.name,
        "run_id": one.best.run_id,
        "mean": float(np.mean(accuracies)),
        "low": low,
        "high": high,
        "parameters": round(one.mean("parameters")),
        "seeds": len(accuracies),
        "p_seeds": p_seeds,
        "p_images": p_images,
        "tied": p_seeds > SIGNIFICANCE or p_images > SIGNIFICANCE,
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % t-interval of the mean of two or more accuracies, cut to [0, 1]; a point where they are all equal."""
    from scipy.stats import sem, t

    mean, error = float(np.mean(values)), float(sem(values))
    if error == 0.0:
        return mean, mean
    low, high = t.interval(0.95, len(values) - 1, loc=mean, scale=error)
    return max(0.0, float(low)), min(1.0, float(high))


def _paired_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided p of the paired t-test; where every difference is the same, 1 for none and 0 for some."""
    from scipy.stats import ttest_rel

    differences = np.subtract(one, other)
    if np.ptp(differences) < 1e-12:
        return 1.0 if abs(differences[0]) < 1e-12 else 0.0
    return float(ttest_rel(one, other).pvalue)


def difference_p_value(first: Group, second: Group) -> float:
    """Two-sided p of "both read equally well" on the same images.

    McNemar's exact test for a run against a run; where seeds are pooled, the paired t-test on each image's share of
    correct readings, which is McNemar's extension to shares.
    """
    if len(first.runs) == len(second.runs) == 1:
        return paired_test(first.runs[0].correct, second.runs[0].correct).p_value
    one, other = first.share_correct(), second.share_correct()
    if np.array_equal(one, other):
        return 1.0
    from scipy.stats import ttest_rel

    return float(ttest_rel(one, other).pvalue)
