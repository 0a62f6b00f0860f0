"""Which run is best, and which cannot be told from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.evaluation import paired_test

SIGNIFICANCE = 0.05


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


def leaderboard(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Rank by validation accuracy, the smaller network first among equals.

    Returns:
        Columns rank, name, run_id, val_accuracy, val_accuracy_low, val_accuracy_high, val_loss, parameters,
        training_seconds, n, p_value, tied. ``p_value`` is McNemar's against the best on the same images; ``tied``
        marks all that cannot be told from the best at the 5 % level, the best itself included.

    Raises:
        ValueError: the candidates stem from different data.
    """
    if len({candidate.digest for candidate in candidates}) > 1:
        raise ValueError("runs on different data are never ranked together")
    ranked = sorted(candidates, key=lambda one: (-one.metrics["val_accuracy"], one.metrics["parameters"]))
    rows = [_row(rank, one, ranked[0]) for rank, one in enumerate(ranked, start=1)]
    return pd.DataFrame(rows)


def _row(rank: int, one: Candidate, best: Candidate) -> dict[str, object]:
    p_value = paired_test(best.correct, one.correct).p_value
    shown = (
        "val_accuracy",
        "val_accuracy_low",
        "val_accuracy_high",
        "val_loss",
        "parameters",
        "training_seconds",
    )
    return {
        "rank": rank,
        "name": one.name,
        "run_id": one.run_id,
        **{key: one.metrics[key] for key in shown},
        "n": len(one.correct),
        "p_value": p_value,
        "tied": p_value > SIGNIFICANCE,
    }
