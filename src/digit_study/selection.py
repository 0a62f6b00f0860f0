"""Which run is best, and which cannot be told from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.evaluation import accuracy_interval, paired_test

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
        "parameters": one.mean("parameters"),
        "training_seconds": one.mean("training_seconds"),
        "n": n,
        "seeds": len(one.runs),
        "p_value": p_value,
        "tied": p_value > SIGNIFICANCE,
    }


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
