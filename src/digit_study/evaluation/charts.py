"""Numbers to pictures: one run, and compared runs.

Every function returns a bare ``matplotlib.figure.Figure``. pyplot is never touched: it keeps every figure
alive and is not safe in threads. Sizes are set on each artist, so ``rcParams`` are neither used nor changed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from digit_study.evaluation.metrics import CLASSES, Evaluation
from digit_study.terminal.naming import told_apart

DPI = 110
TITLE, LABEL, TICK = 14, 12, 11  # points; still legible when the picture is shown at half its size
# seaborn's "colorblind" palette by name; importing seaborn for it would cost a second.
BLUE, ORANGE, GREEN, RED, GREY = "#0173b2", "#de8f05", "#029e73", "#d55e00", "#949494"
MUTED = "#e4e4e4"
SIDE = 28  # pixels of an MNIST image
COLUMNS = 6  # images in a row of a captioned grid
MAX_ROWS = 40  # runs in a comparison

Numbers = npt.NDArray[Any]


def blank(width: float, height: float, title: str) -> Figure:
    """An empty figure of ``width`` × ``height`` inches under ``title``; its further lines add height."""
    lines = textwrap.wrap(title, int(width * 8), max_lines=3, placeholder=" …")
    height += 0.25 * (len(lines) - 1)
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=TITLE)
    return figure


def dress(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name the axes of a plot, in the same sizes everywhere, and drop the lines that carry no data."""
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(y, fontsize=LABEL)
    axes.set_title(title, fontsize=LABEL)
    axes.tick_params(labelsize=TICK)
    axes.spines[["top", "right"]].set_visible(False)


def message(title: str, text: str) -> Figure:
    """A small figure that says ``text`` where there is nothing to draw."""
    figure = blank(8, 2.5, title)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, 65), ha="center", va="center", fontsize=LABEL)
    return figure


def shorten(text: str, limit: int = 40) -> str:
    """``text`` in at most ``limit`` characters; the middle goes, since names differ at their ends."""
    tail = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - tail]}…{text[-tail:]}"


def zoom(values: Any) -> tuple[float, float]:
    """Axis limits that show where most ``values`` lie (any shape, NaN ignored); far outliers fall outside."""
    numbers = np.asarray(values, dtype=float)
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size == 0:
        return 0.0, 1.0
    lower, upper = np.quantile(numbers, [0.25, 0.75])
    reach = 2.5 * (upper - lower) or np.inf  # quartiles alike: show everything
    low, high = max(numbers.min(), lower - reach), min(numbers.max(), upper + reach)
    margin = 0.06 * (high - low) or max(abs(high) * 0.005, 1e-6)
    return float(low - margin), float(high + margin)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Put the legend of ``axes`` under the whole figure, where it can cover no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=TICK, frameon=False)


def whole_ticks(axis: Any) -> None:
    """Ticks at whole numbers only: there is no epoch, and no trial, 1.5."""
    axis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))


def class_counts(train_labels: Numbers, validation_labels: Numbers, dataset: str) -> Figure:
    """How many images of each digit there are to train on and to validate with; labels have shape (n,)."""
    parts = {"train": (train_labels, BLUE, -0.21), "validation": (validation_labels, ORANGE, 0.21)}
    figure = blank(10, 4.8, f"Images of each digit in {dataset}")
    axes = figure.subplots()
    for name, (labels, colour, shift) in parts.items():
        counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=CLASSES)
        label = f"{name} ({len(labels):,} images)"
        bars = axes.bar(np.arange(CLASSES) + shift, counts, 0.4, color=colour, label=label)
        axes.bar_label(bars, fontsize=TICK - 0.5, padding=1)
    axes.set_xticks(range(CLASSES))
    axes.margins(y=0.08)
    dress(axes, "digit", "images")
    legend_below(figure, axes)
    return figure


def tile(images: Numbers, columns: int, gap: tuple[int, int]) -> Numbers:
    """One picture of n images (n, 28, 28[, 1]), row by row, with ``gap`` = (below, right) pixels after each.

    A hundred axes take seconds to lay out; one array takes milliseconds.
    """
    rows = -(-len(images) // columns)
    cells = np.zeros((rows * columns, SIDE + gap[0], SIDE + gap[1]), dtype=np.uint8)
    cells[: len(images), :SIDE, :SIDE] = images.reshape(-1, SIDE, SIDE)
    height, width = cells.shape[1:]
    return cells.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)


def show_tiles(axes: Axes, tiles: Numbers) -> None:
    """Draw a tiled picture in ink on paper, without a frame or ticks."""
    axes.imshow(tiles, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])


def sample_grid(images: Numbers, labels: Numbers, dataset: str, columns: int = 12) -> Figure:
    """The first images of each digit, one row a digit; ``images`` (n, 28, 28, 1) uint8, ``labels`` (n,)."""
    picked = np.zeros((CLASSES, columns, SIDE, SIDE), dtype=np.uint8)
    for digit in range(CLASSES):
        first = images[np.flatnonzero(labels == digit)[:columns]].reshape(-1, SIDE, SIDE)
        picked[digit, : len(first)] = first
    figure = blank(9, 7.8, f"What {dataset} looks like")
    axes = figure.subplots()
    show_tiles(axes, tile(picked.reshape(-1, SIDE, SIDE), columns, (4, 4)))
    axes.set_yticks(np.arange(CLASSES) * (SIDE + 4) + SIDE / 2, [str(digit) for digit in range(CLASSES)])
    dress(axes, f"first {columns} images of each digit", "digit")
    return figure


def image_grid(images: Numbers, captions: list[str], title: str, note: str, colours: list[str]) -> Figure:
    """Draw n ≥ 1 images (n, 28, 28[, 1]), each over its caption of one or two lines in its colour."""
    below = 9 + 7 * max(caption.count("\n") for caption in captions)
    tiles = tile(images, COLUMNS, (below, 8))
    note = textwrap.fill(note, 90)
    figure = blank(9, 0.9 + 0.25 * note.count("\n") + 9 * tiles.shape[0] / tiles.shape[1], title)
    axes = figure.subplots()
    show_tiles(axes, tiles)
    for position, (caption, colour) in enumerate(zip(captions, colours, strict=True)):
        row, column = divmod(position, COLUMNS)
        x, y = column * (SIDE + 8) + SIDE / 2, row * (SIDE + below) + SIDE + 0.5
        axes.text(x, y, caption, ha="center", va="top", fontsize=TICK, color=colour)
    dress(axes, note, "")
    return figure


def draw_curves(axes: Axes, table: pd.DataFrame, what: str, factor: float) -> None:
    """Train and validation ``what`` against epoch, times ``factor``, with the best epoch ringed."""
    for part, name, colour, marker in (("train", "train", BLUE, "o"), ("val", "validation", ORANGE, "s")):
        values = factor * table[f"{part}_{what}"].to_numpy()
        axes.plot(table.index, values, marker=marker, ms=5, color=colour, label=name)
    accuracy = table["val_accuracy"].to_numpy()
    if np.isfinite(accuracy).any():
        best = int(np.nanargmax(accuracy))
        ring: dict[str, Any] = {"marker": "o", "ms": 14, "mfc": "none", "mec": GREEN, "mew": 2.5, "ls": "--"}
        label = f"best validation: {100 * accuracy[best]:.2f} % at epoch {best + 1}"
        axes.axvline(best + 1, color=GREEN, ls="--", lw=1)
        axes.plot(best + 1, values[best], color=GREEN, lw=1, label=label, **ring)
    axes.set_xlim(0.5, len(table) + 0.5)
    whole_ticks(axes.xaxis)
    axes.grid(alpha=0.3)


def curves(epochs: list[dict[str, float]], title: str) -> Figure:
    """Loss and accuracy of each epoch, from epoch 1; the best by validation accuracy is marked.

    Each of ``epochs`` may have train_loss, val_loss, train_accuracy, val_accuracy; gaps are left out.
    """
    if not epochs:
        return message(title, "No epoch was finished.")
    wanted = ["train_loss", "val_loss", "train_accuracy", "val_accuracy"]
    table = pd.DataFrame(epochs, index=range(1, len(epochs) + 1)).reindex(columns=wanted).astype(float)
    figure = blank(10, 4.8, title)
    loss, accuracy = figure.subplots(1, 2)
    draw_curves(loss, table, "loss", 1)
    draw_curves(accuracy, table, "accuracy", 100)
    percent = 100 * table[["train_accuracy", "val_accuracy"]].to_numpy()
    low, high = zoom(percent)
    accuracy.set_ylim(low, high)
    lowest = np.nanmin(percent, initial=np.inf)
    dress(loss, "epoch", "loss (nats per image)")
    dress(accuracy, "epoch" if lowest > low else f"epoch (lowest, off the axis: {lowest:.1f} %)", "accuracy (%)")
    legend_below(figure, accuracy)
    return figure


def heatmap(
    axes: Axes, values: Numbers, texts: Numbers, *, colours: str, limits: tuple[float, float], bar: str
) -> None:
    """True against predicted digits: ``texts`` (10, 10) over the colours of ``values`` within ``limits``.

    The diagonal is grey: it is a hundred times larger, and would leave no colour for the mistakes.
    """
    import seaborn

    diagonal = np.eye(CLASSES, dtype=bool)
    look: dict[str, Any] = {"square": True, "linewidths": 0.5, "annot_kws": {"fontsize": TICK - 0.5}}
    look |= {"vmin": limits[0], "vmax": limits[1], "cmap": colours, "cbar_kws": {"label": bar, "shrink": 0.8}}
    seaborn.heatmap(values, mask=diagonal, annot=texts, fmt="", ax=axes, **look)
    axes.set_facecolor(MUTED)
    for digit, text in enumerate(texts[diagonal]):
        axes.text(digit + 0.5, digit + 0.5, text, ha="center", va="center", fontsize=TICK - 0.5)
    dress(axes, "predicted digit", "true digit")
    axes.tick_params(rotation=0, length=0)
    scale = axes.collections[0].colorbar
    assert scale is not None  # seaborn has just drawn it
    scale.locator = MaxNLocator(nbins=6, integer=values.dtype.kind == "i", min_n_ticks=1)
    scale.update_ticks()
    scale.ax.tick_params(labelsize=TICK)
    scale.ax.yaxis.label.set_fontsize(TICK)


def confusion_matrix(evaluation: Evaluation, title: str) -> Figure:
    """Who is taken for whom, in images and in per cent of each true digit; only mistakes are coloured."""
    counts = evaluation.confusion
    images = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, images, out=np.zeros(counts.shape), where=images > 0)
    views = ((counts, ".0f", "images"), (percent, ".1f", "% of the true digit"))
    figure = blank(13.5, 6.6, title)
    for axes, (values, form, unit) in zip(figure.subplots(1, 2), views, strict=True):
        texts = np.array([[format(cell, form) if cell > 0 else "" for cell in row] for row in values])
        top = float(np.max(values[~np.eye(CLASSES, dtype=bool)])) or 1.0
        heatmap(axes, values, texts, colours="Blues", limits=(0, top), bar=f"mistakes ({unit})")
        axes.set_title(f"{unit}, {counts.sum():,} in all" if unit == "images" else unit, fontsize=LABEL)
    return figure


def mistakes(images: Numbers, evaluation: Evaluation, limit: int = 36) -> Figure:
    """The mistakes the model was surest of; ``images`` (n, 28, 28, 1) in the order of ``evaluation``."""
    predicted, labels = evaluation.predicted, evaluation.labels
    wrong = np.flatnonzero(predicted != labels)
    if wrong.size == 0:
        return message("Most confident mistakes", f"None: all {len(labels):,} images were read right.")
    confidence = np.nan_to_num(evaluation.probabilities.max(axis=1))
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:limit]
    captions = [f"{labels[i]} → {predicted[i]}, {100 * confidence[i]:.0f} %" for i in shown]
    title = f"Most confident mistakes: {len(shown)} of {wrong.size:,} in {len(labels):,} images"
    return image_grid(images[shown], captions, title, "true → predicted, confidence", ["black"] * len(shown))


def intervals(axes: Axes, rows: pd.DataFrame, places: Numbers, style: dict[str, Any]) -> None:
    """Draw the accuracy of ``rows`` in per cent, with its interval and in figures, at heights ``places``."""
    mid, low, high = (100 * rows[f"val_accuracy{end}"].to_numpy(dtype=float) for end in ("", "_low", "_high"))
    axes.errorbar(mid, places, xerr=np.abs([mid - low, high - mid]), ls="", ms=8, capsize=3, lw=1.6, **style)
    for value, place in zip(mid, places, strict=True):
        axes.text(1.01, place, f"{value:.2f}", fontsize=TICK, va="center", transform=axes.get_yaxis_transform())


def labels(names: Iterable[str]) -> tuple[list[str], str]:
    """Names of rows as what tells them apart, and a note of what they share; at most four lines each."""
    short, shared = told_apart([str(name) for name in names])
    note = textwrap.fill(shorten(f"all: {shared}", 130), 70) if shared else ""
    return [textwrap.fill(shorten(name, 190), 52, max_lines=4) for name in short], note


def rows_height(names: Sequence[str]) -> float:
    """Inches that rows with these names need, all as tall as the tallest name."""
    return (0.15 + 0.15 * max(name.count("\n") + 1 for name in names)) * len(names)


def comparison(runs: pd.DataFrame, title: str) -> Figure:
    """Runs by validation accuracy with its 95 % interval, best on top; at most the best 40.

    ``runs`` has the columns name, val_accuracy, val_accuracy_low, val_accuracy_high (in [0, 1]), tied (cannot
    be told from the best) and n (validation images). Runs without an accuracy are left out, and counted.
    """
    ranked = runs.dropna(subset=["val_accuracy"]).sort_values("val_accuracy", ascending=False, kind="stable")
    if ranked.empty:
        return message(title, "No run has a validation accuracy.")
    shown = ranked.head(MAX_ROWS)
    notes = [f"best {MAX_ROWS} of {len(ranked)} runs"] * (len(ranked) > MAX_ROWS)
    notes += [f"{len(runs) - len(ranked)} without accuracy left out"] * (len(runs) > len(ranked))
    names, shared = labels(shown["name"])
    notes += [shared] * bool(shared)
    figure = blank(11, 2 + rows_height(names), title)
    axes = figure.subplots()
    tied, places = shown["tied"].to_numpy(dtype=bool), np.arange(len(shown))
    good = {"color": BLUE, "marker": "o", "label": "cannot be told from the best"}
    worse = {"color": RED, "marker": "D", "mfc": "white", "label": "worse than the best"}
    for chosen, style in ((tied, good), (~tied, worse)):
        if chosen.any():
            intervals(axes, shown[chosen], places[chosen], style)
    axes.set_yticks(places, names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    n = " to ".join(f"{count:,.0f}" for count in sorted({shown["n"].min(), shown["n"].max()}))
    dress(axes, f"validation accuracy (%), 95 % interval, n = {n} images", "run", "\n".join(notes))
    legend_below(figure, axes)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write ``figure`` as a PNG at 110 dots an inch, making the folders on the way."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, format="png")
