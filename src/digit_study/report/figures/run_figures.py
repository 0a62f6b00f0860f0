"""The figures and tables of one run, written into a folder from which tracking uploads them."""

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

#: Metrics of a run after each epoch.
Epochs = list[dict[str, float]]
#: Mistakes that a figure shows.
MOST_MISTAKES = 36
#: Images of each digit that a figure shows.
SAMPLES = 12


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
    """Draw curves, confusion matrix and mistakes.

    Args:
        evaluation: Predictions for the validation images.
        epochs: Metrics after each epoch.
        digits: Images and labels.
        model: Name of the network.
        folder: Where ``figures/`` is made.
    """
    title = f"{model}: {len(evaluation.labels):,} validation images of {digits.name}"
    charts.save(curves(epochs, model), folder / "figures" / "curves.png")
    charts.save(confusion_matrix(evaluation, title), folder / "figures" / "confusion_matrix.png")
    charts.save(mistakes(digits.validation_images, evaluation), folder / "figures" / "mistakes.png")


def class_counts(train_labels: Numbers, validation_labels: Numbers, dataset: str) -> Figure:
    """Draw how many images of each digit there are to train and to validate on.

    Args:
        train_labels: Shape (n,).
        validation_labels: Shape (m,).
        dataset: Name of the data.
    """
    figure = charts.new_figure(10, 4.8, f"Images of each digit in {dataset}")
    axes = figure.subplots()
    _draw_counts(axes, "train", train_labels, BLUE, -0.21)
    _draw_counts(axes, "validation", validation_labels, ORANGE, 0.21)
    axes.set_xticks(range(CLASSES))
    axes.margins(y=0.08)
    charts.style_axes(axes, "digit", "images")
    charts.legend_below(figure, axes)
    return figure


def _draw_counts(axes: Axes, name: str, labels: Numbers, colour: str, shift: float) -> None:
    counts = np.bincount(labels, minlength=CLASSES)
    label = f"{name} ({len(labels):,} images)"
    bars = axes.bar(np.arange(CLASSES) + shift, counts, 0.4, color=colour, label=label)
    axes.bar_label(bars, fontsize=TICK - 0.5, padding=1)


def sample_grid(images: Numbers, labels: Numbers, dataset: str, columns: int = SAMPLES) -> Figure:
    """Draw the first images of each digit, one row per digit.

    Args:
        images: Shape (n, 28, 28, 1), uint8.
        labels: Shape (n,).
        dataset: Name of the data.
        columns: Images of each digit.
    """
    picked = np.zeros((CLASSES, columns, IMAGE_SIDE, IMAGE_SIDE, 1), dtype=np.uint8)
    for digit in range(CLASSES):
        first = images[np.flatnonzero(labels == digit)[:columns]]
        picked[digit, : len(first)] = first
    note = f"first {columns} images of each digit"
    figure = charts.image_grid(np.concatenate(picked), f"Images of {dataset}", note, columns)
    figure.set_figheight(7.8)  # the labels make the picture a little smaller
    axes = figure.axes[0]
    row = axes.get_ylim()[0] / CLASSES  # pixels
    names = [str(digit) for digit in range(CLASSES)]
    axes.set_yticks(row * np.arange(CLASSES) + IMAGE_SIDE / 2, names)
    axes.set_ylabel("digit", fontsize=LABEL)
    return figure


def curves(epochs: Epochs, title: str) -> Figure:
    """Draw loss and accuracy of each epoch, and ring the epoch with the best validation accuracy.

    Args:
        epochs: Metrics after each epoch; a metric that was not recorded is not drawn.
        title: Title of the figure.
    """
    if not epochs:
        return charts.message_figure(title, "No epoch was finished.")
    wanted = ["train_loss", "val_loss", "train_accuracy", "val_accuracy"]
    table = pd.DataFrame(epochs, index=range(1, len(epochs) + 1))
    table = table.reindex(columns=wanted).astype(float)
    table[wanted[2:]] *= 100
    figure = charts.new_figure(10, 4.8, title)
    loss, accuracy = figure.subplots(1, 2)
    _draw_metric(loss, table, "loss", "nats per image")
    _draw_metric(accuracy, table, "accuracy", "%")
    charts.legend_below(figure, accuracy)
    return figure


def _draw_metric(axes: Axes, table: pd.DataFrame, metric: str, unit: str) -> None:
    size = 5.0
    if len(table) > 40:  # dots, not a band
        size = 2.5
    axes.plot(table[f"train_{metric}"], marker="o", ms=size, color=BLUE, label="train")
    axes.plot(table[f"val_{metric}"], marker="s", ms=size, color=ORANGE, label="validation")
    axes.set_xlim(0.5, len(table) + 0.5)
    charts.integer_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    beyond = _fit_axis(axes, table[[f"train_{metric}", f"val_{metric}"]].to_numpy())
    _ring_best(axes, table, metric)
    charts.style_axes(axes, f"epoch{beyond}", f"{metric} ({unit})")


def _fit_axis(axes: Axes, values: Numbers) -> str:
    """Show where most values lie, as first epochs are far from the last; note what is beyond."""
    low, high = charts.axis_limits(values)
    axes.set_ylim(low, high)
    lowest = np.nanmin(values, initial=np.inf)
    highest = np.nanmax(values, initial=-np.inf)
    beyond = []
    if lowest < low:
        beyond.append(f"lowest {lowest:.4g}")
    if highest > high:
        beyond.append(f"highest {highest:.4g}")
    if not beyond:
        return ""
    return f" (off the axis: {', '.join(beyond)})"


def _ring_best(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    """Mark the epoch with the best validation accuracy, if there is one."""
    if not table["val_accuracy"].notna().any():
        return
    best = int(np.nanargmax(table["val_accuracy"])) + 1
    axes.axvline(best, color=GREEN, ls="--", lw=1)
    value = table[f"val_{metric}"][best]
    low, high = axes.get_ylim()
    ring: charts.Style = {
        "marker": "o",
        "ms": 14,
        "mfc": "none",
        "mec": GREEN,
        "mew": 2.5,
        "ls": "--",
        # a ring on the last of many epochs is whole
        "clip_on": not low <= value <= high,
    }
    label = f"best validation: {table['val_accuracy'][best]:.2f} % at epoch {best}"
    axes.plot(best, value, color=GREEN, lw=1, label=label, **ring)


def confusion_matrix(evaluation: Evaluation, title: str) -> Figure:
    """Draw which digit is taken for which, in images and in per cent of each true digit.

    Only mistakes are coloured.

    Args:
        evaluation: Predictions for labelled images.
        title: Title of the figure.
    """
    counts = evaluation.confusion
    images = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, images, out=np.zeros(counts.shape), where=images > 0)
    figure = charts.new_figure(13.5, 6.3, title)
    left, right = figure.subplots(1, 2)
    total = f"images, {counts.sum():,} in all"
    charts.confusion_heatmap(left, counts, ".0f", "mistakes (images)", total)
    label = "mistakes (% of the true digit)"
    charts.confusion_heatmap(right, percent, ".1f", label, "% of the true digit")
    return figure


def mistakes(images: Numbers, evaluation: Evaluation, limit: int = MOST_MISTAKES) -> Figure:
    """Draw the most confident mistakes.

    Args:
        images: Shape (n, 28, 28, 1), in the order of the evaluation.
        evaluation: Predictions for these images.
        limit: How many mistakes are shown.
    """
    labels = evaluation.labels
    wrong = np.flatnonzero(evaluation.predicted != labels)
    if wrong.size == 0:
        text = f"None: all {len(labels):,} images are predicted correctly."
        return charts.message_figure("Most confident mistakes", text)
    confidence = np.nan_to_num(evaluation.probabilities.max(axis=1))
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    captions = []
    for image in shown:
        change = f"{labels[image]} → {evaluation.predicted[image]}"
        captions.append((f"{change}, {100 * confidence[image]:.0f} %", "black"))
    title = f"Most confident mistakes: {len(shown)} of {wrong.size:,} in {len(labels):,} images"
    return charts.image_grid(images[shown], title, "true → predicted, confidence", 6, captions)
