"""What all figures share.

There is no pyplot, which keeps every figure alive and is not thread-safe, and no ``rcParams``.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from digit_study.data.sources import IMAGE_SIDE as SIDE
from digit_study.support.files import replacing
from digit_study.support.suggestions import short_names

#: Resolution of a PNG, in dots an inch.
DPI = 110
#: Size of a title, in points; as the others, legible when the figure is shown at half its size.
TITLE = 14
#: Size of the names of axes, in points.
LABEL = 12
#: Size of what stands at ticks, in points.
TICK = 11
# seaborn's "colorblind" palette by name; importing seaborn for it would cost a second
BLUE = "#0173b2"
ORANGE = "#de8f05"
GREEN = "#029e73"
#: A reddish orange. Captions call it orange, too.
VERMILION = "#d55e00"
GREY = "#949494"
#: Colour of what is there and is not looked at.
MUTED = "#e4e4e4"
#: Share of red, green and blue in the luminance of a colour, ITU-R BT.601.
LUMINANCE = np.array([0.299, 0.587, 0.114])

Numbers = npt.NDArray[Any]
#: Keywords of a plotting method of matplotlib.
Style = dict[str, Any]
#: Of a text that holds what a person named: a ``$`` in it begins no formula.
PLAIN: Style = {"parse_math": False}


@dataclass(frozen=True)
class IntervalRow:
    """A row of :func:`interval_figure`."""

    #: Stands at the axis.
    name: str
    #: Value, low and high end.
    ends: tuple[float, float, float]
    style: Style
    #: Stands on the right.
    text: str


@dataclass(frozen=True)
class IntervalFigure:
    """A figure of rows with intervals, for more to be drawn into it."""

    figure: Figure
    axes: Axes
    #: Words that all names share, a note for the title of the axes: no row repeats them.
    shared: str


def new_figure(width: float, height: float, title: str) -> Figure:
    """Make an empty figure.

    Args:
        width: In inches.
        height: In inches; further lines of the title are added to it.
        title: What the figure shows.
    """
    lines = textwrap.wrap(title, int(width * 8), max_lines=3, placeholder=" …")
    further_lines = len(lines) - 1
    size = (width, height + 0.25 * further_lines)
    # inches; with less, texts touch the edge
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.07)
    figure = Figure(figsize=size, dpi=DPI, layout=layout)
    figure.suptitle("\n".join(lines), fontsize=TITLE, **PLAIN)
    return figure


def style_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Label the axes of a plot in the usual sizes, and drop the lines that carry no data.

    Args:
        axes: The plot.
        x: Name of the horizontal axis, with its unit.
        y: Name of the vertical axis, with its unit.
        title: Stands above the plot; further lines of it add height to the figure.
    """
    axes.set_xlabel(x, fontsize=LABEL, **PLAIN)
    axes.set_ylabel(y, fontsize=LABEL, **PLAIN)
    axes.set_title(title, fontsize=LABEL, **PLAIN)
    figure = axes.figure
    if isinstance(figure, Figure):
        further_lines = title.count("\n")
        figure.set_figheight(figure.get_figheight() + 0.2 * further_lines)
    axes.tick_params(labelsize=TICK)
    axes.spines[["top", "right"]].set_visible(False)


def message_figure(title: str, text: str) -> Figure:
    """Make a small figure of a text, where there is nothing to draw."""
    figure = new_figure(8, 2.5, title)
    axes = figure.subplots()
    axes.set_axis_off()
    wrapped = textwrap.fill(text, 65)
    axes.text(0.5, 0.5, wrapped, ha="center", va="center", fontsize=LABEL, **PLAIN)
    return figure


def shorten(text: str, limit: int = 40) -> str:
    """Cut ``text`` to ``limit`` characters in the middle, since names differ at their ends."""
    if len(text) <= limit:
        return text
    kept = limit - 1  # the dots take a character
    tail = kept // 2
    head = kept - tail
    return f"{text[:head]}…{text[-tail:]}"


def axis_limits(values: Any) -> tuple[float, float]:
    """Return axis limits that show where most values lie; far outliers fall outside.

    Args:
        values: Numbers of any shape, at least one.
    """
    numbers = np.asarray(values, dtype=float)
    lower, upper = np.quantile(numbers, [0.25, 0.75])
    reach = 2.5 * (upper - lower) or np.inf  # equal quartiles: show everything
    low = max(numbers.min(), lower - reach)
    high = min(numbers.max(), upper + reach)
    least_margin = max(abs(high) * 0.005, 1e-6)
    margin = 0.06 * (high - low) or least_margin  # equal numbers: some space around them
    return float(low - margin), float(high + margin)


def legend_below(figure: Figure, axes: Axes, columns: int = 5) -> None:
    """Put the legend of ``axes`` below the whole figure, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    if unique := dict(zip(labels, handles, strict=True)):
        figure.legend(
            unique.values(),
            unique.keys(),
            loc="outside lower center",
            ncols=columns,
            fontsize=TICK,
            columnspacing=1.4,
            frameon=False,
        )


def integer_ticks(axis: Any) -> None:
    """Put ticks at whole numbers only: there is no epoch, and no trial, 1.5."""
    axis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))


def image_grid(
    images: Numbers,
    title: str,
    note: str,
    columns: int,
    captions: Sequence[tuple[str, str]] = (),
) -> Figure:
    """Draw images row by row.

    Args:
        images: Shape (n, 28, 28) or (n, 28, 28, 1) with n at least 1, uint8.
        title: Title of the figure.
        note: Stands below the images.
        columns: Images a row.
        captions: Text of up to two lines below each image, and its colour.
    """
    inches = 8.7 / columns  # of a cell
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    caption_lines = [text.count("\n") + 1 for text, _ in captions]
    lines = max(caption_lines, default=0)
    # height and width of a cell, in pixels
    height = SIDE + max(4, 2 + 7 * lines)
    width = SIDE + 4
    if lines:
        width = SIDE + 8
    cells = np.zeros((rows * columns, height, width), dtype=np.uint8)
    cells[: len(images), :SIDE, :SIDE] = images.reshape(-1, SIDE, SIDE)
    grid = cells.reshape(rows, columns, height, width)
    # one array for all takes milliseconds, where laying out a hundred axes takes seconds
    picture = grid.swapaxes(1, 2).reshape(rows * height, columns * width)
    page_width = max(6.0, inches * columns + 0.3)
    note = textwrap.fill(note, int(page_width * 9))
    note_height = 0.25 * note.count("\n")
    page_height = 1.0 + note_height + inches * rows * height / width
    figure = new_figure(page_width, page_height, title)
    axes = figure.subplots()
    axes.imshow(picture, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    below: Style = {"ha": "center", "va": "top", "fontsize": TICK, **PLAIN}
    for position, (text, colour) in enumerate(captions):
        row, column = divmod(position, columns)
        x = column * width + SIDE / 2
        y = row * height + SIDE + 0.5
        axes.text(x, y, text, color=colour, **below)
    _exclude_texts_from_layout(axes)
    style_axes(axes, note, "")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xticks=[], yticks=[])
    return figure


def confusion_heatmap(axes: Axes, values: Numbers, form: str, label: str, title: str = "") -> None:
    """Draw counts or shares of a confusion matrix.

    Args:
        axes: Where it is drawn.
        values: Shape (10, 10), true × predicted digit.
        form: Format of a value; with a sign, there are two colours.
        label: Name of the colours.
        title: Stands above it.
    """
    import seaborn

    # the diagonal is grey: it is a hundred times larger, and would leave no colour for the mistakes
    diagonal = np.eye(len(values), dtype=bool)
    mistakes = np.abs(values[~diagonal])
    top = float(mistakes.max()) or 1.0
    bottom = 0.0
    palette = "Blues"
    if form.startswith("+"):
        bottom = -top
        palette = "vlag"
    are_counts = values.dtype.kind == "i"
    ticks = MaxNLocator(nbins=6, integer=are_counts, min_n_ticks=1)
    seaborn.heatmap(
        values,
        mask=diagonal,
        ax=axes,
        square=True,
        linewidths=0.5,
        cmap=palette,
        vmin=bottom,
        vmax=top,
        cbar_kws={"shrink": 0.8, "ticks": ticks},
        xticklabels=False,
        yticklabels=False,
    )
    positions = np.arange(len(values)) + 0.5
    names = [str(digit) for digit in range(len(values))]
    axes.set(xticks=positions, xticklabels=names, yticks=positions, yticklabels=names)
    axes.set_facecolor(MUTED)
    _write_counts(axes, values, form, diagonal)
    style_axes(axes, "predicted digit", "true digit", title)
    axes.tick_params(rotation=0, length=0)
    colour_bar = axes.figure.axes[-1]  # seaborn has just added it
    style_axes(colour_bar, "", label)


def _write_counts(axes: Axes, values: Numbers, form: str, diagonal: npt.NDArray[np.bool_]) -> None:
    """Write what is not zero into its cell.

    seaborn's own annotations are white on colours that are too bright for it, and take a text for
    every zero.
    """
    cells = axes.collections[0]
    colours = cells.to_rgba(values)[..., :3]  # shape (10, 10, 3)
    is_dark = colours @ LUMINANCE < 0.5
    is_white = is_dark & ~diagonal
    style: Style = {"ha": "center", "va": "center", "fontsize": TICK - 0.5}
    for row, column in np.argwhere(values):
        colour = "black"
        if is_white[row, column]:
            colour = "white"
        text = format(values[row, column], form)
        axes.text(column + 0.5, row + 0.5, text, color=colour, **style)
    _exclude_texts_from_layout(axes)


def _exclude_texts_from_layout(axes: Axes) -> None:
    """Let no text inside the axes be measured, which takes longer than to draw it."""
    for text in axes.texts:
        text.set_in_layout(False)


def interval_figure(title: str, rows: Sequence[IntervalRow], height: float = 0.3) -> IntervalFigure:
    """Draw values with their intervals, a row each, downwards.

    Args:
        title: Title of the figure.
        rows: What is drawn, the first on top; at least one.
        height: Least height of a row, in inches.
    """
    distinct, shared = short_names([row.name for row in rows])
    labels = []
    for name in distinct:
        short = shorten(name, 190)
        labels.append(textwrap.fill(short, 52, max_lines=4))
    most_lines = max(label.count("\n") + 1 for label in labels)
    height = max(height, 0.1 + 0.2 * most_lines)
    figure = new_figure(11, 2 + height * len(labels), title)
    axes = figure.subplots()
    at_the_side: Style = {"va": "center", "transform": axes.get_yaxis_transform()}
    for position, row in enumerate(rows):
        value, *ends = row.ends
        distances = np.abs(np.array(ends) - value)
        bar: Style = {"ls": "", "lw": 1.8, "capsize": 4, "zorder": 3, **row.style}
        axes.errorbar(value, position, xerr=distances.reshape(2, 1), **bar)
        axes.text(1.01, position, row.text, fontsize=TICK, **at_the_side)
    axes.set_yticks(range(len(labels)), labels, **PLAIN)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    note = ""
    if shared:
        short = shorten(f"all: {shared}", 130)
        note = textwrap.fill(short, 70)
    return IntervalFigure(figure, axes, note)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # a process that is killed here leaves no half of a picture, and supervisors of one study may
    # draw the same picture at once
    with replacing(path) as new:
        # savefig would draw twice
        FigureCanvasAgg(figure).print_png(new)  # type: ignore[no-untyped-call]


def write_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write ``tables/<name>.csv``.

    Numbers have seven significant digits, as many as float32 has.
    """
    path = folder / "tables" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "%.7g"
    kinds = [dtype.kind for dtype in table.dtypes]
    has_numbers_alone = set(kinds) <= set("biuf")
    if not has_numbers_alone or table.isna().any(axis=None):
        table.to_csv(path, index=False, float_format=form)
        return
    # the same bytes in a third of the time
    forms = ["%s"] * len(kinds)
    for column, kind in enumerate(kinds):
        if kind == "f":
            forms[column] = form
    header = ",".join(map(str, table.columns))
    cells = table.to_numpy(object)
    np.savetxt(path, cells, forms, ",", header=header, comments="")
