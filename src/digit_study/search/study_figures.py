"""Numbers to pictures: a study, its confirmation over seeds, and two runs side by side.

A ``trials`` table has one row a trial: number, state ("COMPLETE", "PRUNED", "FAIL"), value (the objective, or
NaN), started, finished (may be NaT), and a column for each search dimension by its config key (NaN where
a condition left it out). An objective with "accuracy" in its name lies in [0, 1] and is drawn in per cent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from digit_study.evaluation import charts as fig

STATES = {
    "COMPLETE": ("complete", fig.BLUE, "o"),
    "PRUNED": ("pruned", fig.ORANGE, "v"),
    "FAIL": ("failed", fig.RED, "X"),
}
OTHER = ("unfinished", fig.GREY, "s")
PANELS = 12
FEW = 6  # numbers of which so few occur, again and again, such as filters 16, 32, 64, are drawn as categories


def readable(objective: str) -> tuple[str, float]:
    """What to call a metric on an axis, with its unit, and what to multiply its values by."""
    name = objective.replace("val_", "validation ").replace("_", " ")
    return (f"{name} (%)", 100.0) if "accuracy" in name else (name, 1.0)


def of_state(trials: pd.DataFrame) -> list[tuple[pd.DataFrame, str, str, str]]:
    """The trials of each state that occurs, with its name and how many, its colour and its marker."""
    groups = [(trials[trials["state"] == state], *look) for state, look in STATES.items()]
    groups.append((trials[~trials["state"].isin(STATES)], *OTHER))
    return [(rows, f"{name} ({len(rows)})", colour, mark) for rows, name, colour, mark in groups if len(rows)]


def optimisation_history(trials: pd.DataFrame, objective: str, maximise: bool) -> Figure:
    """The value of every trial in order, and the best so far of those that completed."""
    if trials.empty:
        return fig.message("Optimisation history", "The study has no trial yet.")
    label, factor = readable(objective)
    trials = trials.sort_values("number").assign(value=trials["value"].astype(float) * factor)
    best = trials[trials["state"] == "COMPLETE"].dropna(subset=["value"]).set_index("number")["value"]
    best = best.cummax() if maximise else best.cummin()
    low, high = fig.zoom(trials["value"])
    low, high = (min(low, best.min()), max(high, best.max())) if len(best) else (low, high)
    figure = fig.blank(9.5, 5, f"Optimisation history: {label}")
    axes = figure.subplots()
    edge, off = (low if maximise else high), ~trials["value"].between(low, high)
    for rows, name, colour, marker in of_state(trials):
        # A trial without a value, or with one far off, still happened: it is drawn on the edge.
        shown = rows["value"].fillna(edge).clip(low, high)
        axes.scatter(rows["number"], shown, c=colour, marker=marker, s=46, label=name, clip_on=False, zorder=3)
    steps = [*best.index, trials["number"].max()], [*best, *best.tail(1)]
    if len(best):
        axes.step(*steps, where="post", color=fig.GREEN, lw=2, label="best so far")
    axes.set_ylim(low, high)
    fig.whole_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    note = f"{off.sum()} on the edge: no value, or one off the axis" if off.any() else ""
    fig.dress(axes, "trial", label, note)
    fig.legend_below(figure, axes)
    return figure


def intermediate_values(intermediate: dict[int, dict[int, float]], states: dict[int, str], objective: str) -> Figure:
    """The learning curve of every trial: ``intermediate`` is trial number → epoch → value."""
    curves = {number: points for number, points in intermediate.items() if points}
    if not curves:
        return fig.message("Learning curves of the trials", "No trial has reported a value yet.")
    label, factor = readable(objective)
    figure = fig.blank(9.5, 5, f"Learning curves of {len(curves)} trials: {label}")
    axes = figure.subplots()
    named: set[str] = set()
    for number, points in sorted(curves.items()):
        name, colour, marker = STATES.get(states.get(number, ""), OTHER)
        epochs = sorted(points)
        values = [factor * points[epoch] for epoch in epochs]
        look: dict[str, Any] = {"color": colour, "marker": marker, "ms": 6, "markevery": [-1]}
        line = "-" if name == "complete" else "--"
        axes.plot(epochs, values, ls=line, lw=1.3, alpha=0.7, label=None if name in named else name, **look)
        named.add(name)
    axes.set_ylim(*fig.zoom([factor * value for points in curves.values() for value in points.values()]))
    fig.whole_ticks(axes.xaxis)
    axes.grid(alpha=0.3)
    fig.dress(axes, "epoch (the marker is where a trial ended)", label)
    fig.legend_below(figure, axes)
    return figure


def importances(importance: dict[str, float], objective: str) -> Figure:
    """How much of the variation of the objective each dimension explains; shares in [0, 1]."""
    shares = pd.Series(importance, dtype=float).dropna().sort_values()
    if shares.empty:
        return fig.message("Importance of the dimensions", "Too few completed trials to tell.")
    label, _ = readable(objective)
    figure = fig.blank(9, 1.6 + 0.38 * len(shares), f"What moves {label.removesuffix(' (%)')}")
    axes = figure.subplots()
    bars = axes.barh(range(len(shares)), 100 * shares, 0.7, color=fig.BLUE)
    axes.bar_label(bars, fmt="%.0f %%", fontsize=fig.TICK, padding=3)
    axes.set_yticks(range(len(shares)), [fig.shorten(str(name)) for name in shares.index])
    axes.margins(x=0.1)
    fig.dress(axes, "share of the variation explained (%)", "dimension")
    return figure


def levels(column: pd.Series[Any]) -> list[Any] | None:
    """The distinct values of a dimension of categories, in order; None where it is continuous."""
    known = column.dropna().infer_objects()
    numeric = pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_bool_dtype(known)
    distinct = list(known.unique())
    if numeric and (len(distinct) > FEW or len(distinct) == len(known)):
        return None
    return sorted(distinct, key=float if numeric else str)


def round_numbers(low: float, high: float, log: bool) -> list[float]:
    """Two to five numbers between ``low`` and ``high`` to label an axis with."""
    if not log:
        inside = [float(x) for x in MaxNLocator(4).tick_values(low, high) if low <= x <= high]
    else:
        exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        fine = [m * 10.0**e for e in exponents for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        powers = [10.0**e for e in exponents if low <= 10.0**e <= high]
        inside = powers if len(powers) > 2 else fine
        inside = inside[:: 1 + (len(inside) - 1) // 4]
    return inside if len(inside) > 1 else [low, high]


def unit(column: pd.Series[Any], log: bool) -> tuple[pd.Series[float], list[float], list[str]]:
    """Where each value of a dimension lies in [0, 1] (NaN where inactive), and the ticks and their labels."""
    found = levels(column)
    if found is not None:
        at = {value: (k + 0.5) / len(found) for k, value in enumerate(found)}
        return column.map(at).astype(float), list(at.values()), [fig.shorten(str(v), 14) for v in found]
    numbers = column.astype(float)
    log = log and numbers.min() > 0
    scaled = np.log10(numbers) if log else numbers
    low, high = scaled.min(), scaled.max()
    ticks = round_numbers(numbers.min(), numbers.max(), log) if high > low else [numbers.min()]
    width = high - low or 1.0
    places = [float((np.log10(tick) if log else tick) - low) / width for tick in ticks]
    return pd.Series((scaled - low) / width, dtype=float), places, [f"{tick:.3g}" for tick in ticks]


def completed(trials: pd.DataFrame, objective: str) -> tuple[pd.DataFrame, str, tuple[float, float]]:
    """Completed trials with their value in the unit of the axis, clipped to it; its label; its limits."""
    label, factor = readable(objective)
    done = trials[(trials["state"] == "COMPLETE") & trials["value"].notna()].sort_values("number")
    done = done.assign(value=done["value"].astype(float) * factor)
    low, high = fig.zoom(done["value"])
    off = int((~done["value"].between(low, high)).sum())
    return (
        done.assign(value=done["value"].clip(low, high)),
        label + f", {off} on the edge" * (off > 0),
        (low, high),
    )


def panel(axes: Axes, done: pd.DataFrame, name: str, log: bool) -> PathCollection:
    """The value of each trial against one dimension, coloured by trial number."""
    places, ticks, texts = unit(done[name], log)
    if levels(done[name]):
        # Spread equal values by the golden ratio: neighbours part, and the picture is the same every time.
        places += ((done["number"] * 0.618) % 1 - 0.5) * (0.4 / len(ticks))
    look: dict[str, Any] = {"cmap": "viridis", "s": 36, "ec": "black", "lw": 0.4, "clip_on": False}
    marks = axes.scatter(places, done["value"], c=done["number"], **look)
    crowded = sum(map(len, texts)) > 26
    axes.set_xticks(ticks, texts, rotation=30 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xlim(-0.06, 1.06)
    fig.dress(axes, fig.shorten(name, 28) + " (log)" * log, "")
    return marks


def slices(trials: pd.DataFrame, dimensions: list[str], log: set[str], objective: str) -> Figure:
    """The value of the completed trials against each dimension, at most twelve; later trials are lighter."""
    done, label, limits = completed(trials, objective)
    used = [name for name in dimensions if done[name].notna().any()][:PANELS]
    if not used:
        return fig.message("Value against each dimension", "No completed trial to draw.")
    columns = min(3, len(used))
    rows = -(-len(used) // columns)
    title = f"{readable(objective)[0]} against each dimension".capitalize()
    figure = fig.blank(max(3.6 * columns, 6), 0.9 + 2.9 * rows, title)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    marks = [panel(axes, done, name, name in log) for axes, name in zip(panels, used, strict=False)]
    panels[0].set_ylim(*limits)
    for axes in panels[len(used) :]:
        axes.set_axis_off()
    figure.supylabel(label, fontsize=fig.LABEL)
    scale = figure.colorbar(marks[0], ax=list(panels), aspect=30)
    fig.whole_ticks(scale.ax.yaxis)
    scale.set_label("trial", fontsize=fig.LABEL)
    scale.ax.tick_params(labelsize=fig.TICK)
    return figure


def vertical(axes: Axes, x: float, ticks: list[float], texts: list[str]) -> None:
    """Label one upright axis of a parallel plot so that its numbers can be read over the lines."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for tick, text in zip(ticks, texts, strict=True):
        axes.text(x + 0.04, tick, text, fontsize=fig.TICK, va="center", bbox=box, zorder=4)


def upright(name: str, log: bool) -> str:
    """The name of a dimension on up to three short lines."""
    section, _, rest = name.rpartition(".")
    return "\n".join([fig.shorten(part, 16) for part in (section, rest) if part] + ["(log)"] * log)


def value_axis(axes: Axes, x: int, limits: tuple[float, float]) -> None:
    """The last axis of a parallel plot: the value, with its colours."""
    low, high = limits
    strip = np.linspace(0, 1, 256)[:, None]
    axes.imshow(strip, extent=(x, x + 0.1, 0, 1), origin="lower", aspect="auto", cmap="viridis", zorder=2)
    ticks = [tick for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high]
    vertical(axes, x + 0.08, [(tick - low) / (high - low) for tick in ticks], [f"{tick:.4g}" for tick in ticks])


def parallel_coordinates(trials: pd.DataFrame, dimensions: list[str], log: set[str], objective: str) -> Figure:
    """Every completed trial as a line through its parameters to its value, which is also its colour.

    A line dips to "not used" where a condition left the dimension out.
    """
    done, label, (low, high) = completed(trials, objective)
    used = [name for name in dimensions if done[name].notna().any()][:PANELS]
    if not used:
        return fig.message("Parallel coordinates", "No completed trial to draw.")
    last = len(used)
    figure = fig.blank(max(9, 1.7 * (last + 1)), 5.5, f"Parameters of {len(done)} trials and {label}")
    axes = figure.subplots()
    paths = np.full((len(done), last + 1), -0.15)
    for x, name in enumerate(used):
        places, ticks, texts = unit(done[name], name in log)
        paths[:, x] = places.fillna(-0.15)
        vertical(axes, x, ticks, texts)
    paths[:, last] = (done["value"] - low) / (high - low)
    if (paths < 0).any():
        axes.axhline(-0.15, color=fig.MUTED, zorder=0)
        axes.text(-0.05, -0.15, "not used", fontsize=fig.TICK, ha="right", va="center")
    for path, colour in zip(paths, colormaps["viridis"](paths[:, last]), strict=True):
        axes.plot(path, color=colour, lw=1.4, alpha=0.75)
    axes.vlines(range(last + 1), 0, 1, color="black", lw=1.2, zorder=3)
    value_axis(axes, last, (low, high))
    fig.dress(axes, "dimension", "")
    names = [upright(name, name in log) for name in used]
    axes.set_xticks(range(last + 1), [*names, readable(objective)[0].replace(" ", "\n")])
    axes.set_yticks([])
    axes.set_xlim(-0.05, last + 0.5)
    axes.set_ylim(min(paths.min(), 0) - 0.04, 1.04)
    axes.spines[:].set_visible(False)
    return figure


def timeline(trials: pd.DataFrame, workers: int) -> Figure:
    """When each trial ran, from the start of the study, and how busy the ``workers`` were."""
    ran = trials.dropna(subset=["started"])
    if ran.empty:
        return fig.message("Timeline", "No trial has started yet.")
    end = ran[["started", "finished"]].max().max()
    first = ran["started"].min()
    start = (ran["started"] - first).dt.total_seconds()
    stop = (ran["finished"].fillna(end) - first).dt.total_seconds()
    span = max(float(stop.max()), 1e-9)
    unit_name, seconds = ("seconds", 1) if span < 180 else ("minutes", 60) if span < 10800 else ("hours", 3600)
    busy = float((stop - start).sum()) / (workers * span)
    figure = fig.blank(9.5, min(2.4 + 0.2 * len(ran), 11), f"{len(ran)} trials on {workers} workers, {busy:.0%} busy")
    axes = figure.subplots()
    for rows, name, colour, _ in of_state(ran):
        left, right = start[rows.index] / seconds, stop[rows.index] / seconds
        axes.barh(rows["number"], right - left, 0.8, left=left, color=colour, label=name)
    axes.set_ylim(ran["number"].max() + 0.8, ran["number"].min() - 0.8)
    fig.whole_ticks(axes.yaxis)
    axes.grid(axis="x", alpha=0.3)
    fig.dress(axes, f"{unit_name} since the start", "trial")
    fig.legend_below(figure, axes)
    return figure
