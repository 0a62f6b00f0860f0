"""Writes the figures and tables of a run into a folder, for tracking to send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from digit_study.data.digits import Digits
from digit_study.evaluation import charts as figures
from digit_study.evaluation import metrics as evaluation
from digit_study.evaluation.metrics import Evaluation


def write_data_pictures(digits: Digits, folder: Path) -> None:
    """Draw the two pictures a person looks at first: how many of each digit there are, and what they look like."""
    counts = figures.class_counts(digits.train_labels, digits.validation_labels, digits.name)
    figures.save(counts, folder / "figures" / "class_counts.png")
    samples = figures.sample_grid(digits.train_images, digits.train_labels, digits.name)
    figures.save(samples, folder / "figures" / "samples.png")


def write_run(outcome: Evaluation, epochs: list[dict[str, float]], digits: Digits, name: str, folder: Path) -> None:
    """Draw curves, confusion matrix and mistakes; write the per-class report and the per-image predictions."""
    title = f"{name}: {len(outcome.labels):,} validation images of {digits.name}"
    pictures = {
        "curves": figures.curves(epochs, name),
        "confusion_matrix": figures.confusion_matrix(outcome, title),
        "mistakes": figures.mistakes(digits.validation_images, outcome),
    }
    for picture, figure in pictures.items():
        figures.save(figure, folder / "figures" / f"{picture}.png")
    write_table(evaluation.per_class_report(outcome.labels, outcome.predicted), folder, "per_class")
    write_table(evaluation.predictions_table(outcome), folder, "predictions")


def write_comparison(boards: Sequence[pd.DataFrame], folder: Path) -> None:
    """Write one leaderboard, and draw it, for every set of digits that was ranked."""
    for number, board in enumerate(boards, start=1):
        name = "comparison" if number == 1 else f"comparison_{number}"
        write_table(board, folder, name)
        figures.save(figures.comparison(board, "Validation accuracy"), folder / "figures" / f"{name}.png")


def write_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write ``tables/<name>.csv`` with seven significant digits, as many as float32 has."""
    path = folder / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.7g")
