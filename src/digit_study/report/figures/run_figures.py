"""The figures and tables of one run, written into a folder from which tracking sends them."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from digit_study.data.digits import Digits
from digit_study.data.sources import CLASSES, IMAGE_SIDE
from digit_study.report.figures import charts
from digit_study.report.figures.charts import BLUE, GREEN, LABEL, ORANGE, TICK, Numbers
from digit_study.stats.metrics import Evaluation, per_class_report, predictions_table

Epochs = list[dict[str, float]]


def write_data_figures(digits: Digits, folder: Path) -> None:
    """Draw how many images of each digit there are, and what they look like."""
    counts = class_counts(digits.train_labels, digits.validation_labels, digits.name)
    charts.save(counts, folder / "figures" / "class_counts.png")
    samples = sample_grid(digits.train_images, digits.train_labels, digits.name)
    charts.save(samples, folder / "figures" / "samples.png")


def write_run_tables(evaluation: Evaluation, folder: Path) -> None:
    """Write the per-class report and the per-image predictions."""
    charts.write_table(per_class_report(evaluation.confusion), folder, "per_class")
    charts.write_table(predictions_table(evaluation), folder, "predictions")


def write_run_figures(
    evaluation: Evaluation, epochs: Epochs, digits: Digits, model: str, folder: Path
) -> None:
    """Draw curves, confusion matrix and mistakes."""
    title = f"{model}: {len(evaluation.labels):,} validation images of {digits.name}"
    charts.save(curves(epochs, model), folder / "figures" / "curves.png")
    charts.save(confusion_matrix(evaluation, title), folder / "figures" / "confusion_matrix.png")
    charts.save(mistakes(digits.validation_images, evaluation), folder / "figures" / "mistakes.png")


def class_counts(train_labels: Numbers, validation_labels: Numbers, dataset: str) -> Figure:
    """Draw how many images of each digit there are to train and to validate on; labels have shape (n,)."""
    figure = charts.new_figure(10, 4.8, f"Images of each digit in {dataset}")
    axes = figure.subplots()
    parts = (("train", train_labels, BLUE, -0.21), ("validation", validation_labels, ORANGE, 0.21))
    for name, labels, colour, shift in parts:
        counts, label = np.bincount(labels, minlength=CLASSES), f"{name} ({len(labels):,} images)"
        bars = axes.bar(np.arange(CLASSES) + shift, counts, 0.4, color=colour, label=label)
        axes.bar_label(bars, fontsize=TICK - 0.5, padding=1)
    axes.set_xticks(range(CLASSES))
    axes.margins(y=0.08)
    charts.style_axes(axes, "digit", "images")
    charts.legend_below(figure, axes)
    return figure


def sample_grid(images: Numbers, labels: Numbers, dataset: str, columns: int = 12) -> Figure:
    """Draw the first images of each digit, one row per digit; ``images`` (n, 28, 28, 1) uint8, ``labels`` (n,)."""
    picked = np.zeros((CLASSES, columns, IMAGE_SIDE, IMAGE_SIDE, 1), dtype=np.uint8)
    for digit in range(CLASSES):
        first = images[np.flatnonzero(labels == digit)[:columns]]
        picked[digit, : len(first)] = first
    note = f"first {columns} images of each digit"
    figure = charts.image_grid(np.concatenate(picked), f"What {dataset} looks like", note, columns)
    figure.set_figheight(7.8)  # the labels make the picture a little smaller
    axes = figure.axes[0]
    row = axes.get_ylim()[0] / CLASSES  # pixels
    axes.set_yticks(
        row * np.arange(CLASSES) + IMAGE_SIDE / 2, [str(digit) for digit in range(CLASSES)]
    )
    axes.set_ylabel("digit", fontsize=LABEL)
    return figure


def curves(epochs: Epochs, title: str) -> Figure:
    """Draw loss and accuracy of each epoch, where recorded, and ring the one with the best validation accuracy."""
    if not epochs:
        return charts.message_figure(title, "No epoch was finished.")
    wanted = ["train_loss", "val_loss", "train_accuracy", "val_accuracy"]
    table = (
        pd.DataFrame(epochs, index=range(1, len(epochs) + 1)).reindex(columns=wanted).astype(float)
    )
    table[wanted[2:]] *= 100
    figure = charts.new_figure(10, 4.8, title)
    loss, accuracy = figure.subplots(1, 2)
    size = 5 if len(table) <= 40 else 2.5  # dots, not a band
    for axes, metric, unit in ((loss, "loss", "nats per image"), (accuracy, "accuracy", "%")):
        axes.plot(table[f"train_{metric}"], marker="o", ms=size, color=BLUE, label="train")
        axes.plot(table[f"val_{metric}"], marker="s", ms=size, color=ORANGE, label="validation")
        axes.set_xlim(0.5, len(table) + 0.5)
        charts.integer_ticks(axes.xaxis)
        axes.grid(alpha=0.3)
        beyond = _fit_axis(axes, table[[f"train_{metric}", f"val_{metric}"]].to_numpy())
        _ring_best(axes, table, metric)
        charts.style_axes(axes, f"epoch{beyond}", f"{metric} ({unit})")
    charts.legend_below(figure, accuracy)
    return figure


def _fit_axis(axes: Axes, values: Numbers) -> str:
    """Show where most ``values`` lie, as first epochs are far from the last; returns a note of what is beyond."""
    low, high = charts.axis_limits(values)
    axes.set_ylim(low, high)
    lowest, highest = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    beyond = [f"lowest {lowest:.4g}"] if lowest < low else []
    beyond += [f"highest {highest:.4g}"] if highest > high else []
    return f" (off the axis: {', '.join(beyond)})" if beyond else ""


def _ring_best(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    """Mark the epoch with the best validation accuracy, if there is one."""
    if table["val_accuracy"].notna().any():
        best = int(np.nanargmax(table["val_accuracy"])) + 1
        axes.axvline(best, color=GREEN, ls="--", lw=1)
        label = f"best validation: {table['val_accuracy'][best]:.2f} % at epoch {best}"
        value, (low, high) = table[f"val_{metric}"][best], axes.get_ylim()
        ring: charts.Look = {
            "marker": "o",
            "ms": 14,
            "mfc": "none",
            "mec": GREEN,
            "mew": 2.5,
            "ls": "--",
        }
        ring["clip_on"] = not low <= value <= high  # a ring on the last of many epochs is whole
        axes.plot(best, value, color=GREEN, lw=1, label=label, **ring)


def confusion_matrix(evaluation: Evaluation, title: str) -> Figure:
    """Draw which digit is taken for which, in images and in per cent of each true digit; only mistakes are coloured."""
    counts = evaluation.confusion
    images = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, images, out=np.zeros(counts.shape), where=images > 0)
    figure = charts.new_figure(13.5, 6.3, title)
    left, right = figure.subplots(1, 2)
    charts.confusion_heatmap(
        left, counts, ".0f", "mistakes (images)", f"images, {counts.sum():,} in all"
    )
    charts.confusion_heatmap(
        right, percent, ".1f", "mistakes (% of the true digit)", "% of the true digit"
    )
    return figure


def mistakes(images: Numbers, evaluation: Evaluation, limit: int = 36) -> Figure:
    """Draw the most confident mistakes; ``images`` (n, 28, 28, 1) are in the order of ``evaluation``."""
    predicted, labels = evaluation.predicted, evaluation.labels
    wrong = np.flatnonzero(predicted != labels)
    if wrong.size == 0:
        return charts.message_figure(
            "Most confident mistakes", f"None: all {len(labels):,} images were read right."
        )
    confidence = np.nan_to_num(evaluation.probabilities.max(axis=1))
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    captions = [
        (f"{labels[i]} → {predicted[i]}, {100 * confidence[i]:.0f} %", "black") for i in shown
    ]
    title = f"Most confident mistakes: {len(shown)} of {wrong.size:,} in {len(labels):,} images"
    return charts.image_grid(images[shown], title, "true → predicted, confidence", 6, captions)
