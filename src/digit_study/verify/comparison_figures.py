"""Numbers to pictures: configurations and runs held against each other (Pareto front, seeds, two runs).

An objective with "accuracy" in its name lies in [0, 1] and is drawn in per cent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from digit_study.evaluation import charts as fig
from digit_study.evaluation.metrics import Evaluation
from digit_study.search.study_figures import readable


def annotate_front(axes: Axes, front: pd.DataFrame, x: str, y: str, outward: tuple[int, int]) -> None:
    """Write the trial number beside each point of the front, unless the one before is too near."""
    points = axes.transData.transform(front[[x, y]].to_numpy(dtype=float))
    last = np.array([-np.inf, -np.inf])
    sides: dict[str, Any] = {
        "ha": "right" if outward[0] < 0 else "left",
        "va": "top" if outward[1] < 0 else "bottom",
    }
    for place, (_, row) in zip(points, front.iterrows(), strict=True):
        if np.abs(place - last).max() < 24:
            continue
        last, at = place, (7 * outward[0], 5 * outward[1])
        axes.annotate(
            f"{row['number']:.0f}",
            (row[x], row[y]),
            at,
            textcoords="offset points",
            fontsize=fig.TICK,
            **sides,
        )


def staircase(front: pd.DataFrame, x: str, y: str, right: bool, up: bool) -> pd.DataFrame:
    """The points of ``front`` that nothing beats in these two objectives, from the best ``x`` to the worst.

    With a third objective the front is no staircase in the first two: the line joins only these.
    """
    path = front.sort_values([x, y], ascending=[not right, not up])
    best = path[y].cummax() if up else path[y].cummin()
    return path[path[y] == best]


def pareto(trials: pd.DataFrame, objectives: dict[str, str]) -> Figure:
    """The first two of ``objectives`` (name → "maximize" or "minimize"), the front as a staircase.

    ``trials`` has the columns number, front (beaten by no trial in every objective) and one an objective.
    """
    x, y = list(objectives)[:2]
    (x_label, x_factor), (y_label, y_factor) = readable(x), readable(y)
    shown = trials.dropna(subset=[x, y])
    if shown.empty:
        return fig.message("Pareto front", "No completed trial to draw.")
    shown = shown.assign(**{x: shown[x] * x_factor, y: shown[y] * y_factor}).sort_values(x)
    right, up = (objectives[name] == "maximize" for name in (x, y))
    figure = fig.blank(9.5, 5.5, f"Pareto front: {y_label} and {x_label}")
    axes = figure.subplots()
    chosen = shown["front"].astype(bool)
    front, rest = shown[chosen], shown[~chosen]
    axes.scatter(rest[x], rest[y], c=fig.GREY, s=40, label=f"beaten ({len(rest)})")
    axes.scatter(front[x], front[y], c=fig.BLUE, marker="D", s=60, zorder=3, label=f"front ({len(front)})")
    stairs = staircase(front, x, y, right, up)
    axes.step(stairs[x], stairs[y], where="post", color=fig.BLUE, lw=1.3)
    for name, rescale in ((x, axes.set_xscale), (y, axes.set_yscale)):
        if 0 < 50 * shown[name].min() < shown[name].max():
            rescale("log")
    axes.margins(0.1)
    annotate_front(axes, front, x, y, (1 if right else -1, 1 if up else -1))
    axes.grid(alpha=0.3)
    fig.dress(axes, f"{x_label}, {objectives[x]}", f"{y_label}, {objectives[y]}", "numbers are trials")
    fig.legend_below(figure, axes)
    return figure


def draw_seeds(axes: Axes, seeds: pd.DataFrame, candidates: pd.Index[Any]) -> None:
    """Every seed of every candidate as a ring, the same seed of different candidates joined."""
    table = seeds.pivot_table(index="candidate", columns="seed", values="val_accuracy").reindex(candidates)
    look: dict[str, Any] = {
        "color": fig.MUTED,
        "lw": 1,
        "ms": 6,
        "mfc": "white",
        "mec": fig.GREY,
        "zorder": 1,
    }
    percent, label = 100 * table.to_numpy(), "one seed (a line joins the same seed)"
    axes.plot(percent, np.arange(len(table)), "o-", label=[label] + [""] * (percent.shape[1] - 1), **look)


def confirmation(seeds: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Every candidate over its seeds, the best mean on top.

    ``seeds`` has the columns candidate, seed, val_accuracy; ``summary`` has candidate, mean, low and
    high (its 95 % interval), winner and parameters. Accuracies lie in [0, 1].
    """
    if summary.empty:
        return fig.message("Confirmation over seeds", "No candidate has been confirmed yet.")
    ranked = summary.sort_values("mean", ascending=False, kind="stable").set_index("candidate")
    places = np.arange(len(ranked))
    title = f"{len(ranked)} candidates, each trained with {seeds['seed'].nunique()} seeds"
    names, shared = fig.labels(ranked.index)
    rows = [f"{name}\n{count:,} parameters" for name, count in zip(names, ranked["parameters"], strict=True)]
    figure = fig.blank(10, 2.2 + max(0.75 * len(rows), fig.rows_height(rows)), title)
    axes = figure.subplots()
    draw_seeds(axes, seeds, ranked.index)
    won = ranked["winner"].to_numpy(dtype=bool)
    mean, low, high = (100 * ranked[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    other: dict[str, Any] = {"color": fig.BLUE, "marker": "D", "ms": 8, "label": "mean, 95 % interval"}
    winner: dict[str, Any] = {"color": fig.GREEN, "marker": "*", "ms": 16, "label": "winner"}
    for chosen, look in ((~won, other), (won, winner)):
        if chosen.any():
            error = np.abs([mean - low, high - mean])[:, chosen]
            axes.errorbar(mean[chosen], places[chosen], xerr=error, ls="", lw=2, capsize=4, zorder=3, **look)
    axes.set_yticks(places, rows)
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    fig.dress(axes, "validation accuracy (%)", "candidate", shared)
    fig.legend_below(figure, axes)
    return figure


def confusion_difference(first: Evaluation, second: Evaluation, names: tuple[str, str]) -> Figure:
    """Which confusions ``second`` makes more often (red) or less often (blue) than ``first``, in images."""
    change = second.confusion - first.confusion
    texts = np.array([[f"{cell:+d}" if cell else "" for cell in row] for row in change])
    top = float(np.abs(change[~np.eye(len(change), dtype=bool)]).max()) or 1.0
    before, after = (fig.shorten(name) for name in names)
    figure = fig.blank(9, 7.6, f"Predictions of {after} minus those of {before}")
    axes = figure.subplots()
    bar = "more mistakes (red) or fewer (blue), images"
    fig.heatmap(axes, change, texts, colours="vlag", limits=(-top, top), bar=bar)
    return figure


def flipped(
    images: fig.Numbers, first: Evaluation, second: Evaluation, names: tuple[str, str], limit: int = 36
) -> Figure:
    """Images that exactly one of two models reads right, those on which they differ most first.

    ``images`` (n, 28, 28, 1) are in the order of both evaluations.

    Raises:
        ValueError: the two evaluations are not of the same images in the same order.
    """
    if not np.array_equal(first.index, second.index):
        raise ValueError("`first` and `second` must be evaluations of the same images in the same order")
    before, after = (fig.shorten(name) for name in names)
    title = f"Images that flip between {before} and {after}"
    right = second.predicted == second.labels
    flips = np.flatnonzero((first.predicted == first.labels) != right)
    if flips.size == 0:
        return fig.message(title, f"None: both are right on the same images of {len(right):,}.")
    everyone = np.arange(len(right))
    gap = second.probabilities[everyone, first.labels] - first.probabilities[everyone, first.labels]
    shown = flips[np.argsort(-np.abs(gap[flips]), kind="stable")][:limit]
    captions = [f"true {first.labels[i]}\n{first.predicted[i]} → {second.predicted[i]}" for i in shown]
    better = int(right[flips].sum())
    note = f"{before} → {after}: blue, only the second is right ({better}); "
    note += f"orange, only the first ({flips.size - better})"
    return fig.image_grid(images[shown], captions, title, note, [fig.BLUE if right[i] else fig.RED for i in shown])
