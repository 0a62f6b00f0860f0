"""What all figures share; no pyplot, which keeps every one alive and is not thread-safe, and no ``rcParams``."""

import os
import textwrap
from collections.abc import Iterable, Sequence
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
from digit_study.data.sources import Labels, Pixels
from digit_study.support.messages import short_names

DPI = 110
TITLE, LABEL, TICK = 14, 12, 11  # points; still legible when the figure is shown at half its size
# seaborn's "colorblind" palette by name; importing seaborn for it would cost a second.
BLUE, ORANGE, GREEN, RED, GREY, MUTED = (
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#949494",
    "#e4e4e4",
)
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601

Numbers = npt.NDArray[Any]
Look = dict[str, Any]  # keywords of a plotting method


def new_figure(width: float, height: float, title: str) -> Figure:
    """Make an empty figure of ``width`` × ``height`` inches; further lines of ``title`` add height."""
    lines = textwrap.wrap(title, int(width * 8), max_lines=3, placeholder=" …")
    layout = ConstrainedLayoutEngine(
        w_pad=0.09, h_pad=0.07
    )  # inches; with less, texts touch the edge
    figure = Figure(figsize=(width, height + 0.25 * (len(lines) - 1)), dpi=DPI, layout=layout)
    figure.suptitle("\n".join(lines), fontsize=TITLE)
    return figure


def style_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Label the axes of a plot, in the same sizes everywhere, and drop the lines that carry no data.

    Further lines of ``title`` add height to the figure, as those of its own do.
    """
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(y, fontsize=LABEL)
    axes.set_title(title, fontsize=LABEL)
    if isinstance(axes.figure, Figure):
        axes.figure.set_figheight(axes.figure.get_figheight() + 0.2 * title.count("\n"))
    axes.tick_params(labelsize=TICK)
    axes.spines[["top", "right"]].set_visible(False)


def message_figure(title: str, text: str) -> Figure:
    """Make a small figure that says ``text`` where there is nothing to draw."""
    figure = new_figure(8, 2.5, title)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, 65), ha="center", va="center", fontsize=LABEL)
    return figure


def shorten(text: str, limit: int = 40) -> str:
    """Cut ``text`` to ``limit`` characters in the middle, since names differ at their ends."""
    tail = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - tail]}…{text[-tail:]}"


def axis_limits(values: Any) -> tuple[float, float]:
    """Axis limits that show where most ``values`` lie (any shape, NaN ignored); far outliers fall outside."""
    numbers = np.ma.masked_invalid(np.asarray(values, dtype=float)).compressed()
    if numbers.size == 0:
        return 0.0, 1.0
    lower, upper = np.quantile(numbers, [0.25, 0.75])
    reach = 2.5 * (upper - lower) or np.inf  # equal quartiles: show everything
    low, high = max(numbers.min(), lower - reach), min(numbers.max(), upper + reach)
    margin = 0.06 * (high - low) or max(abs(high) * 0.005, 1e-6)
    return float(low - margin), float(high + margin)


def legend_below(figure: Figure, axes: Axes, columns: int = 5) -> None:
    """Put the legend of ``axes`` below the whole figure, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    if unique := dict(zip(labels, handles, strict=True)):
        look: Look = {"ncols": columns, "fontsize": TICK, "columnspacing": 1.4, "frameon": False}
        figure.legend(unique.values(), unique.keys(), loc="outside lower center", **look)


def integer_ticks(axis: Any) -> None:
    """Put ticks at whole numbers only: there is no epoch, and no trial, 1.5."""
    axis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))


def image_grid(
    images: Numbers, title: str, note: str, columns: int, captions: Sequence[Sequence[str]] = ()
) -> Figure:
    """Draw n ≥ 1 images (n, 28, 28[, 1]) row by row, each above its caption if any: up to two lines, and a colour."""
    lines = max((text.count("\n") + 1 for text, _ in captions), default=0)
    inches, columns = 8.7 / columns, min(columns, len(images))
    height, width, rows = (
        SIDE + max(4, 2 + 7 * lines),
        SIDE + (8 if lines else 4),
        -(-len(images) // columns),
    )
    # one array for all takes milliseconds, where laying out a hundred axes takes seconds
    cells = np.zeros((rows * columns, height, width), dtype=np.uint8)
    cells[: len(images), :SIDE, :SIDE] = images.reshape(-1, SIDE, SIDE)
    tiles = (
        cells.reshape(rows, columns, height, width)
        .swapaxes(1, 2)
        .reshape(rows * height, columns * width)
    )
    page = max(6.0, inches * columns + 0.3)
    note = textwrap.fill(note, int(page * 9))
    figure = new_figure(page, 1.0 + 0.25 * note.count("\n") + inches * rows * height / width, title)
    axes = figure.subplots()
    axes.imshow(tiles, cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    for position, (text, colour) in enumerate(captions):
        x, y = position % columns * width + SIDE / 2, position // columns * height + SIDE + 0.5
        axes.text(x, y, text, ha="center", va="top", fontsize=TICK, color=colour, parse_math=False)
    _leave_to_axes(axes)
    style_axes(axes, note, "")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set(xticks=[], yticks=[])
    return figure


def confusion_heatmap(axes: Axes, values: Numbers, form: str, label: str, title: str = "") -> None:
    """Draw ``values`` (10, 10), true × predicted digit; ``label`` names the colours, two if ``form`` has a sign."""
    import seaborn

    # the diagonal is grey: it is a hundred times larger, and would leave no colour for the mistakes
    diagonal = np.eye(len(values), dtype=bool)
    diverging, top = form.startswith("+"), float(np.abs(values[~diagonal]).max()) or 1.0
    ticks = MaxNLocator(nbins=6, integer=values.dtype.kind == "i", min_n_ticks=1)
    seaborn.heatmap(
        values, mask=diagonal, ax=axes, square=True, linewidths=0.5, cmap="vlag" if diverging else "Blues",
        vmin=-top if diverging else 0, vmax=top, cbar_kws={"shrink": 0.8, "ticks": ticks}, xticklabels=False,
        yticklabels=False,
    )  # fmt: skip
    places, names = np.arange(len(values)) + 0.5, [str(digit) for digit in range(len(values))]
    axes.set(xticks=places, xticklabels=names, yticks=places, yticklabels=names)
    axes.set_facecolor(MUTED)
    # seaborn's own annotations are white on colours that are too bright for it, and take a text for every zero
    dark = (axes.collections[0].to_rgba(values)[..., :3] @ LUMINANCE < 0.5) & ~diagonal
    for row, column in np.argwhere(values):
        text, colour = format(values[row, column], form), "white" if dark[row, column] else "black"
        axes.text(
            column + 0.5,
            row + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=TICK - 0.5,
            color=colour,
        )
    _leave_to_axes(axes)
    style_axes(axes, "predicted digit", "true digit", title)
    axes.tick_params(rotation=0, length=0)
    style_axes(axes.figure.axes[-1], "", label)  # the colour bar, which seaborn has just added


def _leave_to_axes(axes: Axes) -> None:
    """Let no text inside the axes be measured for the layout, which takes longer than to draw it."""
    for text in axes.texts:
        text.set_in_layout(False)


def interval_figure(
    title: str,
    names: Iterable[str],
    ends: Numbers,
    looks: Iterable[Look],
    texts: Iterable[str],
    row: float = 0.3,
) -> tuple[Figure, Axes, str]:
    """Draw a row per name, downwards, ``row`` inches high or more; ``ends`` (3, n) are value, low and high.

    Also returns the words that all names share, as a note for the title of the axes: no row repeats them.
    """
    distinct, shared = short_names(list(names))
    labels = [textwrap.fill(shorten(name, 190), 52, max_lines=4) for name in distinct]
    row = max(row, 0.1 + 0.2 * max(label.count("\n") + 1 for label in labels))
    figure = new_figure(11, 2 + row * len(labels), title)
    axes = figure.subplots()
    errors = np.abs(ends[1:] - ends[0])
    for place, (look, text) in enumerate(zip(looks, texts, strict=True)):
        axes.errorbar(
            ends[0, place],
            place,
            xerr=errors[:, [place]],
            ls="",
            lw=1.8,
            capsize=4,
            zorder=3,
            **look,
        )
        axes.text(
            1.01, place, text, fontsize=TICK, va="center", transform=axes.get_yaxis_transform()
        )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    return figure, axes, textwrap.fill(shorten(f"all: {shared}", 130), 70) if shared else ""


def comparison(runs: pd.DataFrame, title: str, limit: int = 40) -> Figure:
    """Draw the best ``limit`` runs of a leaderboard, best on top; those without accuracy are left out, and counted."""
    ranked = runs.dropna(subset=["val_accuracy"]).sort_values(
        "val_accuracy", ascending=False, kind="stable"
    )
    if ranked.empty:
        return message_figure(title, "No run has a validation accuracy.")
    shown = ranked.head(limit)
    best: Look = {"color": BLUE, "marker": "o", "ms": 8, "label": "cannot be told from the best"}
    worse: Look = {
        "color": RED,
        "marker": "D",
        "ms": 8,
        "mfc": "white",
        "label": "worse than the best",
    }
    looks = [best if tied else worse for tied in shown["tied"]]
    ends = (
        100
        * shown[["val_accuracy", "val_accuracy_low", "val_accuracy_high"]].to_numpy(dtype=float).T
    )
    figure, axes, shared = interval_figure(
        title, shown["name"], ends, looks, [f"{value:.2f}" for value in ends[0]]
    )
    notes = [f"best {limit} of {len(ranked)} runs"] * (len(ranked) > limit)
    notes += [f"{len(runs) - len(ranked)} without accuracy left out"] * (len(runs) > len(ranked))
    low, high = axis_limits(ends)  # or one run that failed to learn leaves no room for the others
    axes.set_xlim(low, high)
    beyond = np.flatnonzero(ends[0] < low)
    if beyond.size:
        axes.plot(
            np.full(beyond.size, low),
            beyond,
            "<",
            color=RED,
            ms=9,
            clip_on=False,
            label="off the axis",
        )
    n = " to ".join(f"{count:,.0f}" for count in sorted({shown["n"].min(), shown["n"].max()}))
    label = f"validation accuracy (%), 95 % interval, n = {n} images"
    style_axes(axes, label, "run", "\n".join([*notes, shared]).strip())
    legend_below(figure, axes)
    return figure


def unread_figure(
    table: pd.DataFrame, images: Pixels, index: Labels, networks: int, limit: int = 36
) -> Figure:
    """Draw the first rows of ``metrics.unread``; ``images`` (n, 28, 28, 1) stand at ``index`` (n,) of the source."""
    title = (
        f"{len(table)} of {len(images):,} validation images are read by none of {networks} networks"
    )
    if table.empty:
        return message_figure(
            "Images that no network reads", f"None: each of {len(images):,} is read by one."
        )
    shown, place = table.head(limit), {int(one): at for at, one in enumerate(index)}
    captions = []
    for row in shown.to_dict("records"):
        look = RED if row["label_looks_wrong"] else "black"
        agree = "all" if row["label_looks_wrong"] else f"{100 * row['agree']:.0f} %"
        captions.append((f"label {row['label']}\n{agree} say {row['says']}", look))
    wrong = int(table["label_looks_wrong"].sum())
    note = f"orange: all networks read the same other digit, the label looks wrong ({wrong})"
    pixels = images[[place[int(one)] for one in shown["index"]]]
    return image_grid(pixels, title, note, 6, captions)


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # who is killed here leaves no half of a picture, and supervisors of one study may draw the same one at once
    new = path.with_name(f".{os.getpid()}-{path.name}")
    FigureCanvasAgg(figure).print_png(new)  # type: ignore[no-untyped-call]  # savefig draws twice
    new.replace(path)


def write_table(table: pd.DataFrame, folder: Path, name: str) -> None:
    """Write ``tables/<name>.csv`` with seven significant digits, as many as float32 has."""
    path, form = folder / "tables" / f"{name}.csv", "%.7g"
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = [dtype.kind for dtype in table.dtypes]
    if set(kinds) <= set("biuf") and not table.isna().any(
        axis=None
    ):  # the same bytes in a third of the time
        forms = [form if kind == "f" else "%s" for kind in kinds]
        np.savetxt(
            path,
            table.to_numpy(object),
            forms,
            ",",
            header=",".join(map(str, table.columns)),
            comments="",
        )
    else:
        table.to_csv(path, index=False, float_format=form)
