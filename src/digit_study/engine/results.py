"""What passes between a trial and those who started it; light enough to unpickle without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from digit_study.evaluation.metrics import Evaluation

Epoch = dict[str, float]


@dataclass(frozen=True)
class TrialResult:
    """What one finished trial leaves.

    Attributes:
        run_id: of its MLflow run.
        metrics: final metrics by name; ``val_*`` of the weights that were kept.
        epochs: one record an epoch.
        evaluation: its reading of the validation images.
        weights_sha256: of the trained weights.
        kept: where the outcome lies on disk if the tracking store did not take all of it.
        fault: what the store said then.
    """

    run_id: str
    metrics: dict[str, float]
    epochs: list[Epoch]
    evaluation: Evaluation
    weights_sha256: str
    kept: Path | None = None
    fault: str | None = None


@dataclass
class Listener:
    """Who is told of a trial's progress; every default ignores it. What ``on_epoch`` raises ends the trial."""

    on_steps: Callable[[int, int, int], None] | None = None
    on_epoch: Callable[[int, Epoch], None] = field(default=lambda number, record: None)
