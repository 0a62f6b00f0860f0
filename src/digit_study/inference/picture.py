"""Drawing of what was read in image files: the digits, or numbers with a box for each digit."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from digit_study.inference.files import printable
from digit_study.inference.prediction import Number, Reading
from digit_study.pictures.image_files import read_grey, upright_size
from digit_study.pictures.images import SIDE
from digit_study.report.figures import charts

#: Readings that are drawn, at most.
MOST_SHOWN = 100
#: Title of the picture of readings.
TITLE = "What the network saw"
#: Digits that stand side by side.
DIGITS_A_ROW = 6
#: Pictures of numbers that stand side by side.
BOXES_A_ROW = 3
#: Characters of a file's name that are shown.
NAME_LENGTH = 14


def readings_figure(readings: Sequence[Reading]) -> Figure:
    """Draw what was read in each image.

    Args:
        readings: of at least one file; the first :data:`MOST_SHOWN` are drawn.

    Returns:
        What the network saw of each digit; of numbers the picture, with a box for each digit.
    """
    shown = readings[:MOST_SHOWN]
    which = "every image"
    if len(readings) > len(shown):
        which = f"the first {len(shown)} of {len(readings)} images"
    note = f"{which}: digit, probability, file"
    if any(reading.number is not None for reading in shown):
        return _boxes_figure(shown, note)
    blank = np.zeros((SIDE, SIDE), np.uint8)
    pixels = [blank if reading.pixels is None else reading.pixels for reading in shown]
    captions = [_caption(reading) for reading in shown]
    return charts.image_grid(np.stack(pixels), TITLE, note, DIGITS_A_ROW, captions)


def _caption(reading: Reading) -> tuple[str, str]:
    """Return what was read in a file, and the colour in which it is written."""
    name = charts.shorten(printable(Path(reading.file).name), NAME_LENGTH)
    if reading.number is not None:
        text = reading.number.text.replace("\n", " / ")
        return f"{text}, {reading.number.probability:.1%}\n{name}", "black"
    if reading.probabilities is None:
        return f"no digit\n{name}", charts.VERMILION
    return f"{reading.digit}, {max(reading.probabilities):.1%}\n{name}", "black"


def _boxes_figure(readings: Sequence[Reading], note: str) -> Figure:
    """Draw pictures of numbers with a box for each digit, and the digits of the others."""
    columns = min(BOXES_A_ROW, len(readings))
    rows = math.ceil(len(readings) / columns)
    figure = charts.new_figure(3.0 * columns, 2.6 * rows + 0.6, f"{TITLE}: {note}")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, reading in zip(grid, readings, strict=False):
        text, colour = _caption(reading)
        axes.set_title(text, fontsize=8, color=colour, **charts.PLAIN)
        if reading.number is not None:
            _draw_number(axes, Path(reading.file), reading.number)
        elif reading.pixels is not None:
            axes.imshow(reading.pixels, cmap="gray_r", vmin=0, vmax=255)
    return figure


def _draw_number(axes: Axes, file: Path, number: Number) -> None:
    """Draw a picture with a box for each digit of a number."""
    width, height = upright_size(file)
    axes.imshow(read_grey(file), cmap="gray", extent=(0, width, height, 0))
    for digit in number.digits:
        box = digit.box
        frame = Rectangle(
            (box.left, box.top),
            box.width,
            box.height,
            fill=False,
            edgecolor=charts.VERMILION,
        )
        axes.add_patch(frame)
        axes.text(
            box.left,
            box.top,
            str(digit.digit),
            color=charts.VERMILION,
            fontsize=8,
            va="bottom",
        )
