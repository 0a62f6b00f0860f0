"""Figures of several networks on the same images: what two disagree on, what all get wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from digit_study.data.sources import Labels, Pixels
from digit_study.report.figures import charts
from digit_study.stats.metrics import Evaluation

#: Images that a figure shows.
MOST_IMAGES = 36


def confusion_difference(first: Evaluation, second: Evaluation, names: tuple[str, str]) -> Figure:
    """Draw which confusions the second network makes more often (red) or less often (blue).

    Args:
        first: Predictions of the first network.
        second: Predictions of the second network for the same images.
        names: Names of the two.
    """
    before, after = [charts.shorten(name) for name in names]
    title = f"Predictions of {after} minus those of {before}"
    figure = charts.new_figure(9, 7.6, title)
    axes = figure.subplots()
    difference = second.confusion - first.confusion
    label = "more mistakes (red) or fewer (blue), images"
    charts.confusion_heatmap(axes, difference, "+d", label)
    return figure


def flipped(
    images: charts.Numbers, first: Evaluation, second: Evaluation, names: tuple[str, str]
) -> Figure:
    """Draw images that exactly one of two networks predicts correctly.

    Of these, the ones with the largest difference in the probability of the true digit.

    Args:
        images: Shape (n, 28, 28, 1), in the order of both evaluations.
        first: Predictions of the first network.
        second: Predictions of the second network.
        names: Names of the two.
    """
    before, after = [charts.shorten(name) for name in names]
    title = f"Images that flip between {before} and {after}"
    is_correct = second.correct
    changed = np.flatnonzero(first.correct != is_correct)
    if changed.size == 0:
        text = f"None: both are correct on the same images of {len(is_correct):,}."
        return charts.message_figure(title, text)
    labels = first.labels
    gaps = second.probabilities - first.probabilities
    # of the true digit of each image that changed, shape (changed,)
    gap = gaps[changed, labels[changed]]
    order = np.argsort(-np.abs(gap), kind="stable")
    shown = changed[order][:MOST_IMAGES]
    captions = []
    for image in shown:
        colour = charts.VERMILION
        if is_correct[image]:
            colour = charts.BLUE
        change = f"{first.predicted[image]} → {second.predicted[image]}"
        captions.append((f"true {labels[image]}\n{change}", colour))
    better = int(is_correct[changed].sum())
    worse = changed.size - better
    note = (
        f"{before} → {after}: blue, only the second is correct ({better}); "
        f"orange, only the first ({worse})"
    )
    return charts.image_grid(images[shown], title, note, 6, captions)


def misclassified_by_all(
    table: pd.DataFrame, images: Pixels, index: Labels, networks: int
) -> Figure:
    """Draw validation images that no network predicts correctly, the surest first.

    Args:
        table: See :func:`digit_study.stats.metrics.misclassified_by_all`.
        images: All validation images, shape (n, 28, 28, 1).
        index: Where each of them stands in the source, shape (n,).
        networks: How many networks there are.
    """
    if table.empty:
        text = f"None: each of {len(images):,} is predicted correctly by at least one network."
        return charts.message_figure("Images that every network misclassifies", text)
    title = (
        f"{len(table)} of {len(images):,} validation images are misclassified by all of "
        f"{networks} networks"
    )
    shown = table.head(MOST_IMAGES)
    captions = []
    for row in shown.to_dict("records"):
        votes = f"{100 * row['agree']:.0f} % say {row['says']}"
        colour = "black"
        if row["label_looks_wrong"]:
            votes = f"all say {row['says']}"
            colour = charts.VERMILION
        captions.append((f"label {row['label']}\n{votes}", colour))
    wrong = int(table["label_looks_wrong"].sum())
    note = f"orange: all networks predict the same other digit, the label looks wrong ({wrong})"
    position_of = {int(source): position for position, source in enumerate(index)}
    positions = [position_of[int(source)] for source in shown["index"]]
    return charts.image_grid(images[positions], title, note, 6, captions)
