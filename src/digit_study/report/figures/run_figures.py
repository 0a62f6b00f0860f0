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
    figures = folder / "figures"
    counts = class_counts(digits.train_labels, digits.validation_labels, digits.name)
    charts.save(counts, figures / "class_counts.png")
    samples = sample_grid(digits.train_images, digits.train_labels, digits.name)
    charts.save(samples, figures / "samples.png")


def write_run_tables(evaluation: Evaluation, folder: Path) -> None:
    """Write the per-class report and the per-image predictions."""
    per_class = per_class_report(evaluation.confusion)
    charts.write_table(per_class, folder, "per_class")
    predictions = predictions_table(evaluation)
    charts.write_table(predictions, folder, "predictions")


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
    figures = folder / "figures"
    learning_curves = curves(epochs, model)
    charts.save(learning_curves, figures / "curves.png")
    images = len(evaluation.labels)
    title = f"{model}: {images:,} validation images of {digits.name}"
    confusion = confusion_matrix(evaluation, title)
    charts.save(confusion, figures / "confusion_matrix.png")
    most_confident_mistakes = mistakes(digits.validation_images, evaluation)
    charts.save(most_confident_mistakes, figures / "mistakes.png")


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
    positions = np.arange(CLASSES) + shift
    bars = axes.bar(positions, counts, 0.4, color=colour, label=label)
    axes.bar_label(bars, fontsize=TICK - 0.5, padding=1)


def sample_grid(images: Numbers, labels: Numbers, dataset: str) -> Figure:
    """Draw the first images of each digit, one row per digit.

    Args:
        images: Shape (n, 28, 28, 1), uint8.
        labels: Shape (n,).
        dataset: Name of the data.
    """
    # a digit with too few images has blank cells
    shape = (CLASSES, SAMPLES, IMAGE_SIDE, IMAGE_SIDE, 1)
    picked = np.zeros(shape, dtype=np.uint8)
    for digit in range(CLASSES):
        positions = np.flatnonzero(labels == digit)
        first = images[positions[:SAMPLES]]
        picked[digit, : len(first)] = first
    title = f"Images of {dataset}"
    note = f"first {SAMPLES} images of each digit"
    cells = np.concatenate(picked)  # row after row
    figure = charts.image_grid(cells, title, note, SAMPLES)
    figure.set_figheight(7.8)  # the labels make the picture a little smaller
    axes = figure.axes[0]
    bottom, _ = axes.get_ylim()
    row_height = bottom / CLASSES  # pixels
    middles = row_height * np.arange(CLASSES) + IMAGE_SIDE / 2
    names = [str(digit) for digit in range(CLASSES)]
    axes.set_yticks(middles, names)
    axes.set_ylabel("digit", fontsize=LABEL)
    return figure


def curves(epochs: Epochs, title: str) -> Figure:
    """Draw loss and accuracy of each epoch, and ring the epoch with the best validation accuracy.

    Args:
        epochs: Metrics after each epoch, at least one.
        title: Title of the figure.
    """
    accuracies = ["train_accuracy", "val_accuracy"]
    numbers = range(1, len(epochs) + 1)
    table = pd.DataFrame(epochs, index=numbers)
    table[accuracies] *= 100
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
    train = table[f"train_{metric}"]
    validation = table[f"val_{metric}"]
    axes.plot(train, marker="o", ms=size, color=BLUE, label="train")
    axes.plot(validation, marker="s", ms=size, color=ORANGE, label="validation")
    axes.set_xlim(0.5, len(table) + 0.5)
    charts.integer_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    shown = table[[f"train_{metric}", f"val_{metric}"]]
    beyond = _fit_values(axes, shown.to_numpy())
    _ring_best(axes, table, metric)
    charts.style_axes(axes, f"epoch{beyond}", f"{metric} ({unit})")


def _fit_values(axes: Axes, values: Numbers) -> str:
    """Show where most values lie, as first epochs are far from the last; note what is beyond."""
    low, high = charts.axis_limits(values)
    axes.set_ylim(low, high)
    lowest = values.min()
    highest = values.max()
    beyond = []
    if lowest < low:
        beyond.append(f"lowest {lowest:.4g}")
    if highest > high:
        beyond.append(f"highest {highest:.4g}")
    if not beyond:
        return ""
    extremes = ", ".join(beyond)
    return f" (off the axis: {extremes})"


def _ring_best(axes: Axes, table: pd.DataFrame, metric: str) -> None:
    """Mark the epoch with the best validation accuracy."""
    accuracies = table["val_accuracy"]
    best = int(np.argmax(accuracies)) + 1  # epochs count from 1
    axes.axvline(best, color=GREEN, ls="--", lw=1)
    value = table[f"val_{metric}"][best]
    low, high = axes.get_ylim()
    is_on_axis = low <= value <= high
    ring: charts.Style = {
        "marker": "o",
        "ms": 14,
        "mfc": "none",
        "mec": GREEN,
        "mew": 2.5,
        "ls": "--",
        # a ring on the last of many epochs is whole
        "clip_on": not is_on_axis,
    }
    label = f"best validation: {accuracies[best]:.2f} % at epoch {best}"
    axes.plot(best, value, color=GREEN, lw=1, label=label, **ring)


def confusion_matrix(evaluation: Evaluation, title: str) -> Figure:
    """Draw which digit is taken for which, in images and in per cent of each true digit.

    Only mistakes are coloured.

    Args:
        evaluation: Predictions for labelled images.
        title: Title of the figure.
    """
    counts = evaluation.confusion
    images = counts.sum(axis=1, keepdims=True)  # of each true digit
    percent = np.zeros(counts.shape)  # a digit without images stays at zero
    np.divide(100 * counts, images, out=percent, where=images > 0)
    figure = charts.new_figure(13.5, 6.3, title)
    left, right = figure.subplots(1, 2)
    total = f"images, {counts.sum():,} in all"
    charts.confusion_heatmap(left, counts, ".0f", "mistakes (images)", total)
    label = "mistakes (% of the true digit)"
    charts.confusion_heatmap(right, percent, ".1f", label, "% of the true digit")
    return figure


def mistakes(images: Numbers, evaluation: Evaluation) -> Figure:
    """Draw the most confident mistakes.

    Args:
        images: Shape (n, 28, 28, 1), in the order of the evaluation.
        evaluation: Predictions for these images.
    """
    labels = evaluation.labels
    predicted = evaluation.predicted
    wrong = np.flatnonzero(predicted != labels)
    if wrong.size == 0:
        text = f"None: all {len(labels):,} images are predicted correctly."
        return charts.message_figure("Most confident mistakes", text)
    confidence = evaluation.probabilities.max(axis=1)
    order = np.argsort(-confidence[wrong], kind="stable")
    shown = wrong[order][:MOST_MISTAKES]
    captions = []
    for image in shown:
        change = f"{labels[image]} → {predicted[image]}"
        percent = 100 * confidence[image]
        captions.append((f"{change}, {percent:.0f} %", "black"))
    title = f"Most confident mistakes: {len(shown)} of {wrong.size:,} in {len(labels):,} images"
    note = "true → predicted, confidence"
    return charts.image_grid(images[shown], title, note, 6, captions)
