"""Segmentation of a picture of numbers: lines from the top, the digits of each from the left.

Marks are connected strokes. The parts of a digit are put together, what is no digit by its size is
left out (dots, a minus, a speck, a sheet's edge), and what is wider than a digit can be is cut up
in several ways, of which the network's probabilities choose.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.graph import route_through_array

from digit_study.pictures.image_files import LEAST_SIDE, Grey, ImageError
from digit_study.pictures.images import Digit, normalised_mark
from digit_study.pictures.ink import EIGHT, Mask, Numbered, box_of, find_ink, reduced

#: Longer side, in pixels, of a page in which digits are looked for.
PAGE_SIDE = 1000
#: The widest stroke on a page of numbers is this part of its longer side: 1 in so many.
WIDEST_ON_PAGE = 12
#: The feet of a row of zeros are no ruled line, nor is the stem of a four as high as the picture.
LEAST_RULE_ON_PAGE = (0.75, 0.9)
#: Digits of a picture, at most.
MOST_DIGITS = 500
#: Digits in a mark that is cut up, at most.
MOST_TOUCHING = 5


@dataclass(frozen=True)
class Box:
    """Where a digit lies, in pixels of the upright picture."""

    #: First column.
    left: int
    #: First row.
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """Return the first column beyond it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """Return the first row below it."""
        return self.top + self.height

    def scaled(self, factor: float) -> "Box":
        """Return the box in a picture that is larger by a factor.

        Args:
            factor: side of that picture, over the side of this one.
        """
        return Box(
            left=round(factor * self.left),
            top=round(factor * self.top),
            width=round(factor * self.width),
            height=round(factor * self.height),
        )


@dataclass(frozen=True)
class Piece:
    """A part of a mark that is still to be predicted."""

    box: Box
    #: As MNIST would hold it, (28, 28), uint8.
    pixels: Digit


#: A mark, cut up in one or several ways.
Ways = list[list[Piece]]


def _union(boxes: Sequence[Box]) -> Box:
    """Return the smallest box around boxes."""
    left = min(box.left for box in boxes)
    top = min(box.top for box in boxes)
    right = max(box.right for box in boxes)
    bottom = max(box.bottom for box in boxes)
    return Box(left, top, right - left, bottom - top)


@dataclass(frozen=True)
class _Mark:
    """Connected strokes that belong together."""

    #: Of the connected strokes, as they are numbered in the picture, from 1.
    numbers: tuple[int, ...]
    box: Box

    def and_with(self, other: "_Mark") -> "_Mark":
        """Return both as a single mark."""
        numbers = self.numbers + other.numbers
        box = _union([self.box, other.box])
        return _Mark(numbers, box)


@dataclass(frozen=True)
class _Page:
    """The view of a picture in which digits are looked for."""

    #: How inky each pixel is, (h, w), 0 to 1.
    ink: Grey
    #: The number of each pixel's connected strokes, from 1, or 0 for paper, (h, w).
    numbered: Numbered
    #: Side of a pixel of the view, in pixels of the plane.
    factor: int
    #: Side of a pixel of the plane, in pixels of the picture.
    scale: float


def segment(grey: Grey, scale: float = 1.0) -> list[list[Ways]]:
    """Find the digits of a picture of numbers.

    Args:
        grey: brightness (h, w), 0 to 255.
        scale: side of a pixel of this plane, in pixels of the picture in which boxes are given.

    Returns:
        Lines from the top; of each the marks from the left; of each the ways to cut it up.

    Raises:
        ImageError: if it shows no strokes, or more than numbers have.
    """
    factor = math.ceil(max(grey.shape) / PAGE_SIDE)
    view = reduced(grey, factor)
    ink = find_ink(view, WIDEST_ON_PAGE, LEAST_RULE_ON_PAGE)
    numbered, _ = ndimage.label(ink.strokes, EIGHT)
    strokes = _connected_strokes(numbered)
    height = _digit_height(strokes)
    # a digit has at most two parts of this size: nothing is put together in vain
    large = sum(_is_digit_sized(mark.box, height) for mark in strokes)
    if large > 2 * MOST_DIGITS:
        raise ImageError(f"holds over {MOST_DIGITS} digits; at most so many are read: cut it up")
    marks = _together(strokes, height)
    digits = [mark for mark in marks if _is_digit_sized(mark.box, height)]
    count = len(digits)
    if count > MOST_DIGITS:
        raise ImageError(f"holds {count} digits; at most {MOST_DIGITS} are read: cut it up")
    page = _Page(ink.darkness, numbered, factor, scale)
    lines = []
    for line in _lines(digits):
        lines.append([_ways(mark, page) for mark in line])
    return lines


def _connected_strokes(numbered: Numbered) -> list[_Mark]:
    """Return connected strokes, as they are numbered from 1, each as a mark of its own."""
    marks = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbered), start=1):
        width = columns.stop - columns.start
        height = rows.stop - rows.start
        box = Box(columns.start, rows.start, width, height)
        marks.append(_Mark((number,), box))
    return marks


def _digit_height(marks: Sequence[_Mark]) -> float:
    """Return how high digits are: the usual height of marks that are not small beside others."""
    heights = np.array([mark.box.height for mark in marks], np.float64)
    large = np.percentile(heights, 98)
    # the digits of a page are alike, dust and dots are many
    is_large = heights >= 0.45 * large
    return float(np.median(heights[is_large]))


def _together(marks: Sequence[_Mark], height: float) -> list[_Mark]:
    """Put marks together that are parts of a digit: one above the other, and near."""
    found: list[_Mark] = []
    from_the_highest = sorted(marks, key=lambda mark: -mark.box.height)
    for mark in from_the_highest:
        extent = max(mark.box.width, mark.box.height)
        if extent < 0.12 * height:
            continue
        for position, larger in enumerate(found):
            if _is_part(mark.box, larger.box, height):
                found[position] = larger.and_with(mark)
                break
        else:
            found.append(mark)
    return found


def _is_part(small: Box, large: Box, height: float) -> bool:
    """Return whether a mark is a loose part of a larger mark, such as the bar of a 5."""
    # both are negative where the boxes overlap
    gap_across = _gap(small.left, small.right, large.left, large.right)
    gap_down = _gap(small.top, small.bottom, large.top, large.bottom)
    narrower = min(small.width, large.width)
    is_above_or_below = -gap_across >= 0.5 * narrower
    if is_above_or_below and gap_down <= 0.25 * height:
        together = _union([small, large])
        highest = 1.35 * max(height, large.height)
        return together.height <= highest
    # the end of a broken bar
    is_low = small.height <= 0.35 * height
    is_wide = small.width >= small.height
    lies_beside = gap_down < 0 and gap_across <= 0.1 * height
    lies_high = small.top < large.top + 0.3 * large.height
    return is_low and is_wide and lies_beside and lies_high


def _gap(start: int, stop: int, other_start: int, other_stop: int) -> int:
    """Return how far two spans are apart; negative where they overlap."""
    last_start = max(start, other_start)
    first_stop = min(stop, other_stop)
    return last_start - first_stop


def _is_digit_sized(box: Box, height: float) -> bool:
    """Return whether a mark may be a digit, or several: no dot, no minus, no speck, no edge."""
    has_height = 0.36 * height <= box.height <= 2.2 * height
    has_width = box.width <= 8 * height
    return has_height and has_width


def _lines(marks: Sequence[_Mark]) -> list[list[_Mark]]:
    """Sort marks into lines from the top, each from the left; lines may slope."""
    lines: list[list[_Mark]] = []
    from_the_left = sorted(marks, key=lambda mark: mark.box.left)
    for mark in from_the_left:
        shared = [_shared_height(mark.box, line[-1].box) for line in lines]
        if max(shared, default=0.0) >= 0.4:
            best = int(np.argmax(shared))
            lines[best].append(mark)
        else:
            lines.append([mark])
    return sorted(lines, key=_mean_top)


def _shared_height(a: Box, b: Box) -> float:
    """Return how much of the lower box's height two boxes share; negative if none."""
    overlap = -_gap(a.top, a.bottom, b.top, b.bottom)
    lower_height = min(a.height, b.height)
    return overlap / lower_height


def _mean_top(line: Sequence[_Mark]) -> float:
    """Return how far down a line begins."""
    tops = [mark.box.top for mark in line]
    return float(np.mean(tops))


def _ways(mark: _Mark, page: _Page) -> Ways:
    """Return the ways in which a mark may be cut up: as a single digit first."""
    box = mark.box
    rows = slice(box.top, box.bottom)
    columns = slice(box.left, box.right)
    strokes = np.isin(page.numbered[rows, columns], mark.numbers)
    ink = page.ink[rows, columns]
    aspect = box.width / box.height
    ways = []
    if aspect <= 1.9:
        ways.append([strokes])
    if aspect >= 0.75:
        for count in range(2, MOST_TOUCHING + 1):
            aspect_of_part = aspect / count
            if 0.35 <= aspect_of_part <= 1.15:
                ways.append(_cut_up(strokes, ink, count))
    found = []
    for way in ways:
        pieces = [_piece(part, ink, box, page) for part in way]
        complete = [piece for piece in pieces if piece is not None]
        if len(complete) == len(pieces):
            found.append(complete)
    return found


def _cut_up(strokes: Mask, ink: Grey, count: int) -> list[Mask]:
    """Cut a mark into parts by the paths from top to bottom that cross the least ink."""
    height, width = strokes.shape
    share = width / count
    columns = np.arange(width)
    labels = np.zeros(strokes.shape, np.int32)
    for number in range(1, count):
        middle = number * share
        # away from the middle a path costs more: cuts of equal parts are wanted
        away = np.abs(columns - middle)
        deviation = (away / (0.45 * share)) ** 2
        crossing = np.where(strokes, 1 + 4 * ink, 0)
        cost = 0.05 + crossing + 0.15 * deviation
        cost = np.where(deviation > 1, 50.0, cost)
        border = _cheapest_path(cost)
        is_beyond = columns[None, :] > border[:, None]
        labels += is_beyond
    return [strokes & (labels == number) for number in range(count)]


def _cheapest_path(cost: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the last column, in each row, of the cheapest path from top to bottom."""
    height = len(cost)
    start = (0, int(np.argmin(cost[0])))
    stop = (height - 1, int(np.argmin(cost[-1])))
    path, _ = route_through_array(cost, start, stop)
    border = np.zeros(height, np.int64)
    for row, column in path:
        border[row] = max(border[row], column)
    return border


def _piece(part: Mask, ink: Grey, box: Box, page: _Page) -> Piece | None:
    """Return a part of a mark as a digit, or nothing if too little of it is left."""
    numbered, count = ndimage.label(part, EIGHT)
    if count == 0:
        return None
    if count > 1:
        # a cut leaves slivers of the neighbours
        areas = np.bincount(numbered.ravel())
        areas[0] = 0
        part = areas[numbered] >= 0.08 * areas.max()
    rows, columns = box_of(part)
    height = rows.stop - rows.start
    is_low = height < 0.4 * box.height
    if is_low or height < LEAST_SIDE:
        return None
    ink_of_part = np.pad(ink * part, 2)
    try:
        pixels = normalised_mark(ink_of_part, np.pad(part, 2))
    except ImageError:
        return None
    in_view = Box(
        left=box.left + columns.start,
        top=box.top + rows.start,
        width=columns.stop - columns.start,
        height=height,
    )
    in_plane = in_view.scaled(page.factor)
    return Piece(in_plane.scaled(page.scale), pixels)
