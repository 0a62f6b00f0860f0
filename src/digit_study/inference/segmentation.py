"""A picture of numbers to its digits: lines from the top, the digits of each from the left.

Marks are connected strokes. The parts of a digit are put together, what is no digit by its size is
left out (dots, a minus, a speck, a sheet's edge), and what is wider than a digit can be is cut up
in several ways, of which the network's probabilities choose.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.graph import route_through_array

from digit_study.inference.image_files import Grey, ImageError
from digit_study.inference.images import Digit, normalised_mark
from digit_study.inference.ink import EIGHT, Mask, Numbered, find_ink

#: Longer side, in pixels, of a page in which digits are looked for.
PAGE_SIDE = 1000
#: The widest stroke on a page of numbers is this part of its longer side: 1 in so many.
WIDEST_STROKE = 12
#: The feet of a row of zeros are no ruled line, nor is the stem of a four as high as the picture.
LEAST_RULE = (0.75, 0.9)
#: Digits of a picture, at most.
MOST_DIGITS = 500
#: Digits in a mark that is cut up, at most.
MOST_TOUCHING = 5


@dataclass(frozen=True)
class Box:
    """Where a digit lies, in pixels of the upright picture."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """The first column beyond it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.top + self.height

    def scaled(self, factor: float) -> "Box":
        """Return the box in a picture that is larger by a factor."""
        sides = (self.left, self.top, self.width, self.height)
        return Box(*(round(factor * side) for side in sides))


@dataclass(frozen=True)
class Piece:
    """A digit that is still to be read."""

    box: Box
    pixels: Digit  # (28, 28), uint8, as MNIST would hold it


#: A mark, cut up in one or several ways.
Ways = list[list[Piece]]


def _union(boxes: Sequence[Box]) -> Box:
    left = min(box.left for box in boxes)
    top = min(box.top for box in boxes)
    right = max(box.right for box in boxes)
    bottom = max(box.bottom for box in boxes)
    return Box(left, top, right - left, bottom - top)


@dataclass(frozen=True)
class _Mark:
    """Connected strokes that belong together, by their numbers in the picture."""

    numbers: tuple[int, ...]
    box: Box

    def and_with(self, other: "_Mark") -> "_Mark":
        """Return both as one mark."""
        return _Mark(self.numbers + other.numbers, _union([self.box, other.box]))


def segment(grey: Grey) -> list[list[Ways]]:
    """Find the digits of a picture of numbers.

    Args:
        grey: brightness (h, w), 0 to 255.

    Returns:
        Lines from the top; of each the marks from the left; of each the ways to cut it up.

    Raises:
        ImageError: if it shows no strokes, or more than numbers have.
    """
    factor = -(-max(grey.shape) // PAGE_SIDE)
    view = np.asarray(Image.fromarray(grey).reduce(factor), np.float32)
    ink, strokes = find_ink(view, WIDEST_STROKE, LEAST_RULE)
    numbered, _ = ndimage.label(strokes, EIGHT)
    boxes = [
        Box(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for rows, columns in ndimage.find_objects(numbered)
    ]
    marks = [_Mark((number,), box) for number, box in enumerate(boxes, start=1)]
    height = _digit_height(boxes)
    whole = _together(marks, height)
    digits = [mark for mark in whole if _is_digit_sized(mark.box, height)]
    if len(digits) > MOST_DIGITS:
        raise ImageError(f"holds {len(digits)} digits; at most {MOST_DIGITS} are read: cut it up")
    lines = _lines(digits)
    return [[_ways(mark, ink, numbered, height, factor) for mark in line] for line in lines]


def _digit_height(boxes: Sequence[Box]) -> float:
    """Return how high digits are: the usual height of marks that are not small beside others."""
    heights = np.array([box.height for box in boxes], np.float64)
    large = np.percentile(heights, 98)
    # the digits of a page are alike, dust and dots are many
    return float(np.median(heights[heights >= 0.45 * large]))


def _together(marks: Sequence[_Mark], height: float) -> list[_Mark]:
    """Put marks together that are parts of a digit: one above the other, and near."""
    found: list[_Mark] = []
    for mark in sorted(marks, key=lambda mark: -mark.box.height):
        if max(mark.box.width, mark.box.height) < 0.12 * height:
            continue
        own = next((k for k, other in enumerate(found) if _is_part(mark, other, height)), None)
        if own is None:
            found.append(mark)
        else:
            found[own] = found[own].and_with(mark)
    return found


def _is_part(small: _Mark, large: _Mark, height: float) -> bool:
    """Return whether a mark is a loose part of a larger one, such as the bar of a 5."""
    a = small.box
    b = large.box
    overlap = min(a.right, b.right) - max(a.left, b.left)
    gap = max(a.top, b.top) - min(a.bottom, b.bottom)
    together = max(a.bottom, b.bottom) - min(a.top, b.top)
    if overlap >= 0.5 * min(a.width, b.width) and gap <= 0.25 * height:
        return together <= 1.35 * max(height, b.height)
    beside = max(a.left, b.left) - min(a.right, b.right)
    # the end of a broken bar
    is_bit = a.height <= 0.35 * height and a.top < b.top + 0.3 * b.height
    return is_bit and gap < 0 and beside <= 0.1 * height and a.width >= a.height


def _is_digit_sized(box: Box, height: float) -> bool:
    """Return whether a mark may be a digit, or several: no dot, no minus, no speck, no edge."""
    return 0.36 * height <= box.height <= 2.2 * height and box.width <= 8 * height


def _lines(marks: Sequence[_Mark]) -> list[list[_Mark]]:
    """Sort marks into lines from the top, each from the left; lines may slope."""
    lines: list[list[_Mark]] = []
    for mark in sorted(marks, key=lambda mark: mark.box.left):
        box = mark.box
        shared = []
        for line in lines:
            last = line[-1].box
            overlap = min(box.bottom, last.bottom) - max(box.top, last.top)
            shared.append(overlap / min(box.height, last.height))
        best = int(np.argmax(shared)) if shared else -1
        if shared and shared[best] >= 0.4:
            lines[best].append(mark)
        else:
            lines.append([mark])
    return sorted(lines, key=lambda line: float(np.mean([mark.box.top for mark in line])))


def _ways(mark: _Mark, ink: Grey, numbered: Numbered, height: float, factor: int) -> Ways:
    """Return the ways in which a mark may be cut up: as a single digit first."""
    box = mark.box
    rows = slice(box.top, box.bottom)
    columns = slice(box.left, box.right)
    own = np.isin(numbered[rows, columns], mark.numbers)
    tone = ink[rows, columns]
    aspect = box.width / box.height
    ways = []
    if aspect <= 1.9:
        ways.append([own])
    for parts in range(2, MOST_TOUCHING + 1):
        if 0.35 <= aspect / parts <= 1.15 and aspect >= 0.75:
            ways.append(_cut_up(own, tone, parts))
    found = []
    for way in ways:
        pieces = [_piece(mask, tone, box, factor) for mask in way]
        if all(piece is not None for piece in pieces):
            found.append([piece for piece in pieces if piece is not None])
    return found


def _cut_up(own: Mask, tone: Grey, parts: int) -> list[Mask]:
    """Cut a mark by the paths from top to bottom that cross the least ink, near equal parts."""
    height, width = own.shape
    share = width / parts
    columns = np.arange(width)
    labels = np.zeros(own.shape, np.int32)
    for number in range(1, parts):
        middle = number * share
        # away from the middle a path costs more: cuts of equal parts are wanted
        aside = (np.abs(columns - middle) / (0.45 * share)) ** 2
        cost = 0.05 + np.where(own, 1 + 4 * tone, 0) + 0.15 * aside
        cost = np.where(aside > 1, 50.0, cost)
        start = int(np.argmin(cost[0]))
        stop = int(np.argmin(cost[-1]))
        path, _ = route_through_array(cost, (0, start), (height - 1, stop))
        border = np.zeros(height, np.int64)
        for row, column in path:
            border[row] = max(border[row], column)
        labels += columns[None, :] > border[:, None]
    return [own & (labels == number) for number in range(parts)]


def _piece(mask: Mask, tone: Grey, box: Box, factor: int) -> Piece | None:
    """Return a part of a mark as a digit, or nothing if too little of it is left."""
    numbered, count = ndimage.label(mask, EIGHT)
    if count == 0:
        return None
    if count > 1:
        # a cut leaves slivers of the neighbours
        sizes = np.bincount(numbered.ravel())
        sizes[0] = 0
        mask = sizes[numbered] >= 0.08 * sizes.max()
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    top = int(rows[0])
    left = int(columns[0])
    high = int(rows[-1]) + 1 - top
    wide = int(columns[-1]) + 1 - left
    if high < 0.4 * box.height or high < 5:
        return None
    try:
        pixels = normalised_mark(np.pad(tone * mask, 2), np.pad(mask, 2))
    except ImageError:
        return None
    return Piece(Box(box.left + left, box.top + top, wide, high).scaled(factor), pixels)
