"""Figures of rankings: a leaderboard, a confirmation over seeds, the frontier."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from digit_study.report.figures import charts
from digit_study.report.figures.charts import BLUE, GREEN, GREY, ORANGE, TICK, VERMILION, Style
from digit_study.report.sentences import counted, range_of

#: Runs that a leaderboard shows.
MOST_RUNS = 40
TIED = "not significantly different from the best"
WORSE = "significantly worse than the best"
UNPAIRED = "on validation images of its own"
#: What An et al. 2020 (arXiv 2008.10400) publish of their ensembles on MNIST; their number of
#: epochs was chosen on the test set.
PUBLISHED = {
    "An et al. 2020, vote of three": 0.9987,
    "An et al. 2020, two layers of votes": 0.9991,
}


def leaderboard_figure(board: pd.DataFrame, title: str) -> Figure:
    """Draw the first runs of a leaderboard, best on top.

    Args:
        board: A row a run, the best first, at least one. Columns name, val_accuracy and its ends,
            tied and n, the number of images.
        title: Title of the figure.
    """
    shown = board.head(MOST_RUNS)
    rows = [_leaderboard_row(row) for row in shown.to_dict("records")]
    made = charts.interval_figure(title, rows)
    note = ""
    if len(board) > len(shown):
        note = f"best {len(shown)} of {len(board)} runs"
    _fit_accuracies(made.axes, rows)
    fewest = shown["n"].min()
    most = shown["n"].max()
    images = sorted({fewest, most})
    count = " to ".join(f"{number:,.0f}" for number in images)
    label = f"validation accuracy (%), 95 % interval, n = {count} images"
    heading = f"{note}\n{made.shared}".strip()
    charts.style_axes(made.axes, label, "run", heading)
    charts.legend_below(made.figure, made.axes)
    return made.figure


def _leaderboard_row(row: Mapping[Any, Any]) -> charts.IntervalRow:
    style: Style = {"color": VERMILION, "marker": "D", "ms": 8, "mfc": "white", "label": WORSE}
    if row["tied"] is None:
        style = {"color": GREY, "marker": "o", "ms": 8, "label": UNPAIRED}
    elif row["tied"]:
        style = {"color": BLUE, "marker": "o", "ms": 8, "label": TIED}
    value = 100 * row["val_accuracy"]
    low = 100 * row["val_accuracy_low"]
    high = 100 * row["val_accuracy_high"]
    return charts.IntervalRow(
        name=str(row["name"]),
        ends=(value, low, high),
        style=style,
        text=f"{value:.2f}",
    )


def _fit_accuracies(axes: Axes, rows: Sequence[charts.IntervalRow]) -> None:
    """Leave room for most runs, where a single one that did not learn would take it from them."""
    low, high = charts.axis_limits([row.ends for row in rows])
    axes.set_xlim(low, high)
    beyond = []
    for position, row in enumerate(rows):
        value, *_ = row.ends
        if value < low:
            beyond.append(position)
    if beyond:
        at_the_edge = [low] * len(beyond)
        arrow: Style = {"color": VERMILION, "ms": 9, "clip_on": False, "label": "off the axis"}
        axes.plot(at_the_edge, beyond, "<", **arrow)


def confirmation_figure(
    seeds: pd.DataFrame, ranking: pd.DataFrame, lessons: Sequence[str] = ()
) -> Figure:
    """Draw every candidate of a confirmation over its seeds, in the order of the ranking.

    Args:
        seeds: Columns candidate, seed and val_accuracy; every candidate has two seeds or more.
        ranking: Columns candidate, mean, low and high (its 95 % interval), winner, tied,
            parameters, sweep_val_accuracy, and the standard deviations sd_seeds, sd_images and
            sd_both. All accuracies lie in [0, 1].
        lessons: Sentences that stand above the plot.
    """
    ranked = ranking.set_index("candidate", drop=False)
    rows = [_confirmation_row(row) for row in ranked.to_dict("records")]
    title = _confirmation_title(seeds)
    made = charts.interval_figure(title, rows, height=0.75)
    # a row a candidate, a column a seed
    accuracies = seeds.pivot_table(index="candidate", columns="seed", values="val_accuracy")
    accuracies = accuracies.reindex(ranked.index)
    on_fresh_seeds = 100 * accuracies.to_numpy()
    positions = np.arange(len(rows))
    ring: Style = {
        "color": GREY,
        "lw": 0.5,
        "ms": 6,
        "mfc": "white",
        "mec": GREY,
        "zorder": 1,
        "label": "one fresh seed (lines join the same)",
    }
    made.axes.plot(on_fresh_seeds, positions, "o-", **ring)
    cross: Style = {"marker": "X", "color": ORANGE, "ms": 9, "ls": "", "zorder": 4}
    in_the_search = 100 * ranked["sweep_val_accuracy"]
    made.axes.plot(in_the_search, positions, label="in the search", **cross)
    heading = []
    for lesson in lessons:
        sentence = lesson[0].upper() + lesson[1:]
        heading.append(textwrap.fill(sentence, 95))
    if made.shared:
        heading.append(made.shared)
    label = "validation accuracy (%), 95 % interval of the mean"
    charts.style_axes(made.axes, label, "candidate", "\n".join(heading))
    charts.legend_below(made.figure, made.axes, columns=3)
    return made.figure


def _confirmation_title(seeds: pd.DataFrame) -> str:
    counts = seeds.groupby("candidate").size()
    count = range_of(counts)
    candidates = counted(len(counts), "candidate")
    text = f"{candidates} on {count} fresh seeds"
    if len(counts) > 1:
        text += " each"
    networks = counted(len(seeds), "network")
    return f"{text}, {networks}"


def _confirmation_row(row: Mapping[Any, Any]) -> charts.IntervalRow:
    deviations = []
    for source in ("seeds", "images", "both"):
        points = 100 * row[f"sd_{source}"]
        deviations.append(f"{points:.2f} {source}")
    noise = ", ".join(deviations)
    mean = 100 * row["mean"]
    low = 100 * row["low"]
    high = 100 * row["high"]
    style: Style = {"color": VERMILION, "marker": "D", "ms": 8, "mfc": "white", "label": WORSE}
    if row["winner"]:
        style = {"color": GREEN, "marker": "*", "ms": 16, "label": "winner"}
    elif row["tied"]:
        style = {"color": BLUE, "marker": "D", "ms": 8, "label": TIED}
    return charts.IntervalRow(
        name=str(row["candidate"]),
        ends=(mean, low, high),
        style=style,
        text=f"{row['parameters']:,} parameters\n± {noise}",
    )


def frontier_figure(table: pd.DataFrame, dataset: str, *, is_mnist: bool) -> Figure:
    """Draw accuracy against parameters, with intervals and the Pareto front.

    Args:
        table: A row a network, see :func:`digit_study.study.frontier.table_of`.
        dataset: Name of the data.
        is_mnist: Whether these are MNIST's digits, of which accuracies are published.
    """
    title = f"Accuracy of networks of each size on {dataset}"
    figure = charts.new_figure(11, 6.5, title)
    axes = figure.subplots()
    for is_front, rows in table.groupby("front"):
        _draw_networks(axes, rows, is_front=bool(is_front))
    front = table[table["front"]]
    means = 100 * front["mean"]
    steps: Style = {"drawstyle": "steps-post", "color": BLUE, "lw": 1, "alpha": 0.6}
    axes.plot(front["parameters"], means, **steps)
    tested = table.dropna(subset=["test_accuracy"])
    if len(tested):
        accuracies = 100 * tested["test_accuracy"]
        label = "first seed on the sealed test images"
        cross: Style = {"marker": "X", "ms": 9, "ls": "", "color": ORANGE, "zorder": 4}
        axes.plot(tested["parameters"], accuracies, label=label, **cross)
    axes.set_xscale("log")
    _name_networks(axes, table)
    if is_mnist:
        _draw_published(axes)
    axes.grid(alpha=0.3)
    charts.style_axes(axes, "parameters", "accuracy (%)")
    charts.legend_below(figure, axes, columns=1)
    return figure


def _draw_networks(axes: Axes, rows: pd.DataFrame, *, is_front: bool) -> None:
    shares = rows[["mean", "low", "high"]].to_numpy(float)
    values = 100 * shares.T  # shape (3, n)
    mean = values[0]
    errors = np.abs(values[1:] - mean)
    colour = GREY
    meaning = "a smaller network is as good"
    if is_front:
        colour = BLUE
        meaning = "no smaller network is as good"
    seeds = range_of(rows["seeds"])
    label = f"validation images, mean of {seeds} seeds, 95 % interval: {meaning}"
    dot: Style = {"marker": "o", "ms": 8, "ls": "", "capsize": 4, "color": colour}
    axes.errorbar(rows["parameters"], mean, yerr=errors, label=label, **dot)


def _name_networks(axes: Axes, table: pd.DataFrame) -> None:
    """Write names beside the axes, by accuracy: beside their points they would cover each other."""
    ordered = table.sort_values("mean").to_dict("records")
    heights = np.linspace(0.04, 0.8, len(ordered))  # shares of the height of the axes
    line: Style = {"arrowstyle": "-", "color": GREY, "lw": 0.7, "relpos": (0, 0.5)}
    for row, height in zip(ordered, heights, strict=True):
        accuracy = 100 * row["mean"]
        axes.annotate(
            f"{row['name']}  {accuracy:.2f} %",
            xy=(row["parameters"], accuracy),
            xytext=(1.02, height),
            xycoords="data",
            textcoords="axes fraction",
            arrowprops=line,
            fontsize=TICK,
            va="center",
            **charts.PLAIN,
        )


def _draw_published(axes: Axes) -> None:
    # x as a share of the width of the axes, y in per cent
    at_the_left = axes.get_yaxis_transform()
    style: Style = {"color": GREEN, "fontsize": TICK, "va": "bottom", "transform": at_the_left}
    for name, accuracy in PUBLISHED.items():
        percent = 100 * accuracy
        axes.axhline(percent, color=GREEN, lw=1, ls="--")
        axes.text(0.01, percent, f"{name}: {percent:.2f} %, chosen on the test set", **style)
