"""Conversion of a photo or scan of a digit to a 28x28 image made as MNIST's own were.

MNIST's page (Y. LeCun, C. Cortes, C. Burges) says how. The black-and-white NIST digits were
size-normalised into a 20x20 box with their aspect ratio kept. The anti-aliased result was placed in
28x28 with its centre of mass in the centre. :func:`to_mnist` does the same to any grey picture.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from digit_study.pictures.image_files import LEAST_SIDE, Grey, ImageError, read_grey, ring
from digit_study.pictures.ink import (
    DEEPEST,
    EIGHT,
    Mask,
    Numbered,
    box_of,
    find_ink,
    reduced,
    sheet_alone,
)

#: Side of MNIST's images.
SIDE = 28
#: Side of the box in them that holds the digit.
BOX = 20
#: Longer side, in pixels, of a view in which a digit is looked for.
WORK_SIDE = 140
#: Views of a picture, at most, each closer to the mark than the last.
MOST_VIEWS = 4
#: Part of a view's side that the mark fills, at least, for no closer view to be needed.
FILLED_VIEW = 0.4
#: Part of the largest mark's extent under which another mark is dust.
DUST = 0.15
#: Part of the largest mark's extent from which on another mark is of like size.
LIKE_SIZE = 0.5
#: Part of the largest mark's extent within which the parts of a digit lie.
NEAR = 0.35
#: How far an end of a stroke reaches, as a part of the largest mark's extent: two ends whose
#: reaches meet are joined.
REACH_OF_ENDS = 0.05
#: A mark that is flatter than this, height by width, is no upright digit.
LEAST_UPRIGHT = 0.75
#: Gap between the two halves of a digit, as a part of the longer side of both, at most.
WIDEST_GAP = 0.15
#: Part of the least rectangle around it that a straight-edged sheet fills, at least.
STRAIGHT = 0.93
#: The same of a box that a pen has drawn, whose sides bend.
STRAIGHT_BY_HAND = 0.88
#: Part of a sheet that what is written on it leaves out, at most.
MOST_LEFT_OUT = 0.35
#: Part of a drawn box that its lines fill, at most.
MOST_LINED = 0.35
#: Extent of what is written in a drawn box, as a part of the box's, at least.
LEAST_WITHIN = 0.25
#: Part of a digit's box that a hole covers, at least; smaller ones are grit.
LEAST_HOLE = 0.004
#: A mark whose width is so many times its height is no digit.
WIDEST_DIGIT = 1.5
#: A bar whose length is more than so many times its width may be a 1.
WIDEST_BAR = 2.5
#: A line below the digit is at least so many times as wide as it is high.
FLATTEST = 5
#: A line below the digit is at least so many times as wide as the digit.
WIDER = 1.3
#: Marks between dust and digit in size, at most: text and noise have more.
MOST_DOTS = 8
#: An 8 has two holes; a gritty scan of a thick pen a few more.
MOST_HOLES = 6
#: Stroke width of MNIST's thinnest pens, in 20ths of the digit.
THINNEST = 1.9
#: Stroke width of MNIST's usual pens, in 20ths of the digit.
THICKENED = 2.4
#: Pixels a 20th of the digit, at least, for strokes to be measured and thickened.
FINE = 3
#: Ink from which on a pixel counts as drawn, 0 to 1.
FAINT_INK = 0.1

#: An image, or several, as MNIST would hold them: (28, 28) or (n, 28, 28).
Digit = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]


class SeveralMarks(ImageError):
    """A picture that holds several marks where a single digit was looked for."""


@dataclass(frozen=True)
class _Boxes:
    """Where the marks of a view lie."""

    #: First row and column of each, (n, 2).
    start: Integers
    #: Row and column beyond the last of each, (n, 2).
    stop: Integers

    @classmethod
    def of_marks(cls, marks: Numbered) -> "_Boxes":
        """Measure numbered marks."""
        starts = []
        stops = []
        for rows, columns in ndimage.find_objects(marks):
            starts.append([rows.start, columns.start])
            stops.append([rows.stop, columns.stop])
        return cls(np.array(starts), np.array(stops))

    @property
    def bottoms(self) -> Integers:
        """Return the row below each, (n,)."""
        return self.stop[:, 0]

    @property
    def heights(self) -> Integers:
        """Return the height of each, (n,)."""
        return np.asarray(self.bottoms - self.start[:, 0])

    @property
    def widths(self) -> Integers:
        """Return the width of each, (n,)."""
        left = self.start[:, 1]
        right = self.stop[:, 1]
        return np.asarray(right - left)

    @property
    def extents(self) -> Integers:
        """Return the longer side of each, (n,)."""
        return np.maximum(self.heights, self.widths)

    def union(self, chosen: Flags) -> tuple[int, int]:
        """Return height and width of the box around those chosen."""
        first = self.start[chosen].min(axis=0)
        last = self.stop[chosen].max(axis=0)
        height, width = last - first
        return height, width

    def gaps_to(self, index: int) -> Integers:
        """Return how far each is from a chosen box, (n,); negative where they overlap."""
        last_start = np.maximum(self.start, self.start[index])
        first_stop = np.minimum(self.stop, self.stop[index])
        gaps = last_start - first_stop
        return np.asarray(gaps.max(axis=1))


def to_mnist(grey: Grey) -> Digit:
    """Convert a picture of a digit to what MNIST would hold.

    Args:
        grey: a plane, dark on light or light on dark, (h, w), 0 to 255, at least 5x5.

    Returns:
        The digit, light on black, (28, 28); bit for bit the input where :func:`is_mnist_form`.

    Raises:
        ImageError: if it is blank, without plain background, several digits or a solid shape.
    """
    if is_mnist_form(grey):
        return grey.astype(np.uint8)
    try:
        return _found(grey)
    except ImageError as fault:
        sheet = sheet_alone(grey)
        if sheet is None:
            raise
        try:
            return _found(sheet)
        except ImageError:
            # the reason is that of the picture as it is
            raise fault from None


def _found(grey: Grey) -> Digit:
    """Find the digit of a picture, as MNIST would hold it."""
    ink, mark = _find(grey)
    return normalised_mark(ink, mark)


def read_digit(source: Path | bytes) -> Digit:
    """Convert an image file to what MNIST would hold.

    Args:
        source: an image file, or its bytes.

    Returns:
        The digit, light on black, (28, 28), uint8.

    Raises:
        ImageError: if it cannot be read, or shows no single digit.
    """
    return to_mnist(read_grey(source))


def is_mnist_form(grey: Grey) -> bool:
    """Return whether a picture has MNIST's form already, and must pass through untouched.

    All of MNIST's 70,000 images do. It is 28x28, has whole grey levels, light ink, and a border of
    which at most a tenth is not black. The longer side of its ink is 18 to 20, and the centre of
    mass is within a pixel of the centre.

    Args:
        grey: a plane (h, w), 0 to 255.
    """
    if grey.shape != (SIDE, SIDE) or grey.max() < 100:
        return False
    is_inky_border = ring(grey) > 0
    if is_inky_border.mean() > 0.1:
        return False
    has_fractions = (grey != grey.round()).any()
    if has_fractions:
        return False
    centre = np.array(ndimage.center_of_mass(grey))
    off_centre = np.abs(centre - SIDE / 2)
    box = box_of(grey > 0)
    longer = max(grey[box].shape)
    fills_box = BOX - 2 <= longer <= BOX
    return bool(fills_box and off_centre.max() < 1)


def normalised_mark(ink: Grey, mark: Mask) -> Digit:
    """Return a mark as MNIST would hold it.

    Args:
        ink: how inky each pixel is, (h, w), 0 to 1.
        mark: where the mark's own strokes are, (h, w).

    Returns:
        Shape (28, 28), uint8.

    Raises:
        ImageError: if it is a speck, a solid shape or a pattern.
    """
    _check_strokes(mark)
    longer = max(mark[box_of(mark)].shape)
    unit = max(1.0, longer / BOX)
    # the edges of the strokes are the digit's too
    reach = max(1.5, 1.2 * unit)
    away = ndimage.distance_transform_edt(~mark)
    drawn = np.where(away <= reach, ink, 0)
    thickened = _thickened(np.asarray(drawn, np.float32), mark)
    return size_normalised(thickened)


def size_normalised(ink: Grey) -> Digit:
    """Size-normalise into 20x20 and place the centre of mass in the centre of 28x28.

    Args:
        ink: how inky each pixel is, (h, w), from 0; the aspect ratio is kept.

    Returns:
        Shape (28, 28), uint8; the inkiest pixel is 255.

    Raises:
        ImageError: if there is hardly any ink.
    """
    inky = ink > FAINT_INK
    if not inky.any():
        raise ImageError(
            "is all but blank: no stroke stands out from the background; write or scan it darker"
        )
    ink = ink[box_of(inky)]
    longer = max(ink.shape)
    scale = BOX / longer
    if longer == BOX - 1:
        # resampling by 5 % blurs more than it mends
        scale = 1.0
    small = _scaled(ink, scale)
    margin = np.subtract(SIDE, small.shape)
    centre = np.array(ndimage.center_of_mass(small))
    to_middle = np.round(SIDE / 2 - centre)
    corner = np.clip(to_middle, 0, margin)
    top, left = corner.astype(int)
    bottom = margin[0] - top
    right = margin[1] - left
    digit = np.pad(small, ((top, bottom), (left, right)))
    gain = 255 / digit.max()
    return np.asarray(np.round(digit * gain), np.uint8)


def _scaled(ink: Grey, scale: float) -> Grey:
    """Return ink in another size, without what resampling takes below 0."""
    height, width = ink.shape
    new_height = max(1, round(height * scale))
    new_width = max(1, round(width * scale))
    method = Image.Resampling.BICUBIC
    if scale <= 1:
        method = Image.Resampling.BOX
    resized = Image.fromarray(ink).resize((new_width, new_height), method)
    small = np.clip(np.asarray(resized), 0, None)
    return np.asarray(small)


def _find(grey: Grey) -> tuple[Grey, Mask]:
    """Return ink and digit of the closest view.

    The whole sheet is looked at coarsely, then what is around the mark, until it fills the view.
    """
    is_light = None
    for _ in range(MOST_VIEWS):
        factor = max(1, max(grey.shape) // WORK_SIDE)
        view = reduced(grey, factor)
        ink = find_ink(view, is_light=is_light)
        is_light = ink.is_light
        mark = _single_mark(ink.strokes)
        rows, columns = box_of(mark)
        height = rows.stop - rows.start
        width = columns.stop - columns.start
        extent = max(height, width)
        is_card = _is_card(mark[rows, columns])
        fills_view = factor == 1 or extent > FILLED_VIEW * WORK_SIDE
        if fills_view and not is_card:
            break
        margin = extent // 2 + 2
        if is_card:
            # what is written on it may be of the other polarity
            is_light = None
            # within its edges
            margin = -1 - extent // 30
            # a card that lies askew does not fill its box
            alone = sheet_alone(grey)
            if alone is not None:
                grey = alone
        closer_rows = _widened(rows, margin, factor)
        closer_columns = _widened(columns, margin, factor)
        grey = grey[closer_rows, closer_columns]
    return ink.darkness, mark


def _is_card(mark: Mask) -> bool:
    """Return whether a mark is a sheet with something on it: a filled rectangle without strokes."""
    filled = ndimage.binary_fill_holes(mark)
    area = filled.sum()
    left_out = 1 - mark.sum() / area
    longer = max(filled.shape)
    shorter = min(filled.shape)
    # a filled bar may be a 1; what is hardly left out of a wider shape are faint strokes
    least_left_out = 0.0
    if longer > WIDEST_BAR * shorter:
        least_left_out = 0.01
    is_written_on = least_left_out < left_out < MOST_LEFT_OUT
    if shorter < 12 or not is_written_on:
        return False
    return bool(area > STRAIGHT * _least_rectangle(filled))


def _least_rectangle(mask: Mask) -> float:
    """Return the area of the smallest rectangle around a mask, which may lie askew."""
    outline = mask & ~ndimage.binary_erosion(mask)
    rows, columns = np.nonzero(outline)
    degrees = np.arange(-20, 21, 2)
    areas = []
    for angle in np.radians(degrees):
        cos = np.cos(angle)
        sin = np.sin(angle)
        across = columns * cos + rows * sin
        down = rows * cos - columns * sin
        width = np.ptp(across) + 1
        height = np.ptp(down) + 1
        areas.append(width * height)
    return float(min(areas))


def _widened(side: slice, margin: int, factor: int) -> slice:
    """Return rows or columns of a view, with a margin, in the picture that it was reduced from."""
    start = (side.start - margin) * factor
    stop = (side.stop + margin) * factor
    return slice(max(0, start), max(0, stop))


def _single_mark(strokes: Mask) -> Mask:
    """Return the strokes of the digit without specks of dust.

    Raises:
        SeveralMarks: if there are several of comparable size.
    """
    unboxed = _without_box(strokes)
    bare = _without_underline(unboxed)
    marks = _bridged_marks(bare)
    boxes = _Boxes.of_marks(marks)
    heights = boxes.heights
    widths = boxes.widths
    extents = boxes.extents
    whole = extents.max()
    # the loose bar of a 5 or 7 is no digit by itself
    is_flat = heights < 0.5 * widths
    is_low = heights < 0.4 * whole
    is_bar = is_flat & is_low
    is_large = extents >= LIKE_SIZE * whole
    peers = is_large & ~is_bar
    count = peers.sum()
    if count > 1 and not _are_parts_of_a_digit(boxes, peers):
        raise SeveralMarks(f"holds {count} marks of like size; one digit per image: cut it up")
    is_larger_than_dust = extents > DUST * whole
    dots = is_larger_than_dust & ~is_large
    dot_count = dots.sum()
    if dot_count > MOST_DOTS:
        raise SeveralMarks(
            f"holds {dot_count + count} marks, as text or noise do; one digit per image"
        )
    largest = int(extents.argmax())
    is_near = boxes.gaps_to(largest) < NEAR * whole
    is_no_dust = extents >= DUST * whole
    chosen = is_no_dust & is_near
    height, width = boxes.union(chosen)
    if width >= WIDEST_DIGIT * height and height >= LEAST_SIDE:
        raise SeveralMarks("holds a mark that is wider than any digit; one digit per image")
    # marks are numbered from 1
    numbers = 1 + np.flatnonzero(chosen)
    return np.isin(marks, numbers)


def _without_box(strokes: Mask) -> Mask:
    """Take away the box that is drawn around a digit, as forms have it."""
    pieces, count = ndimage.label(strokes, EIGHT)
    if count < 2:
        return strokes
    boxes = _Boxes.of_marks(pieces)
    outer = int(boxes.extents.argmax())
    starts_within = boxes.start > boxes.start[outer]
    stops_within = boxes.stop < boxes.stop[outer]
    lies_within = (starts_within & stops_within).all(axis=1)
    is_large = boxes.extents >= LEAST_WITHIN * boxes.extents[outer]
    holds_digit = (lies_within & is_large).any()
    if not holds_digit:
        return strokes
    mark = pieces == outer + 1
    filled = ndimage.binary_fill_holes(mark[box_of(mark)])
    area = filled.sum()
    is_hollow = mark.sum() < MOST_LINED * area
    if is_hollow and area > STRAIGHT_BY_HAND * _least_rectangle(filled):
        return np.asarray(strokes & ~mark)
    return strokes


def _without_underline(strokes: Mask) -> Mask:
    """Take away the line that is drawn or printed below a digit."""
    pieces, _ = ndimage.label(strokes, EIGHT)
    boxes = _Boxes.of_marks(pieces)
    widest = int(boxes.widths.argmax())
    width = boxes.widths[widest]
    height = boxes.heights[widest]
    others = boxes.extents >= 0.3 * width
    others[widest] = False
    is_line = width >= FLATTEST * height
    if not is_line or not others.any():
        return strokes
    lowest_other = boxes.bottoms[others].max()
    is_below = lowest_other <= boxes.bottoms[widest]
    _, width_of_others = boxes.union(others)
    if is_below and width >= WIDER * width_of_others:
        is_underline = pieces == widest + 1
        return np.asarray(strokes & ~is_underline)
    return strokes


def _bridged_marks(strokes: Mask) -> Numbered:
    """Return connected strokes by number; the gaps of a broken stroke are bridged."""
    pieces, _ = ndimage.label(strokes, EIGHT)
    extents = [max(strokes[box].shape) for box in ndimage.find_objects(pieces)]
    reach = REACH_OF_ENDS * max(extents)
    near = strokes
    if reach >= 1:
        near = ndimage.distance_transform_edt(~strokes) <= reach
    joined, _ = ndimage.label(near, EIGHT)
    return np.where(strokes, joined, 0).astype(np.int32)


def _are_parts_of_a_digit(boxes: _Boxes, peers: Flags) -> bool:
    """Return whether marks of like size are two close halves that have the form of a digit."""
    if peers.sum() > 2:
        return False
    height, width = boxes.union(peers)
    widest_gap = WIDEST_GAP * max(height, width)
    first, second = np.flatnonzero(peers).tolist()
    if boxes.gaps_to(first)[second] >= widest_gap:
        return False
    if width >= 1.2 * height:
        return False
    heights = boxes.heights[peers]
    widths = boxes.widths[peers]
    # the halves of a broken digit are flat, digits are not
    are_upright = (heights >= LEAST_UPRIGHT * widths).all()
    are_alike = heights.min() > 0.5 * heights.max()
    are_stacked = are_upright and are_alike and height > heights.sum()
    return not are_stacked


def _check_strokes(mark: Mask) -> None:
    """Raise ImageError for what a pen's strokes never look like."""
    tight = np.pad(mark[box_of(mark)], 1)
    longer = max(tight.shape)
    if longer < LEAST_SIDE + 2:
        raise ImageError("is blank but for a speck; write the digit larger, or scan it finer")
    depth = ndimage.distance_transform_edt(tight)
    is_deep = depth.max() > DEEPEST * longer
    if is_deep and min(tight.shape) > 10:
        raise ImageError("shows a solid shape, not the strokes of a digit")
    paper, _ = ndimage.label(~tight)
    areas = np.bincount(paper.ravel())
    # the first is the mark, the second the paper around it
    holes = areas[2:]
    is_no_grit = holes > LEAST_HOLE * tight.size
    if is_no_grit.sum() > MOST_HOLES:
        raise ImageError("shows a pattern or noise, not the strokes of a digit")


def _thickened(ink: Grey, mark: Mask) -> Grey:
    """Thicken strokes that are thinner than a pen's; what is small is enlarged for that."""
    longer = max(mark[box_of(mark)].shape)
    factor = max(1, math.ceil(FINE * BOX / longer))
    unit = factor * longer / BOX
    # pixels of a drawing are squares: their corners are rounded where it is enlarged
    square = np.ones((factor, factor))
    fine = np.kron(np.pad(mark, 1), square) > 0
    depth = ndimage.distance_transform_edt(fine)
    # the mean depth of a stroke is a quarter of its width
    mean_depth = float(depth[fine].mean())
    width = (4 * mean_depth - 1) / unit
    if width >= THINNEST:
        return ink
    # the steps of enlarged pixels are smoothed away
    blurred = ndimage.gaussian_filter(fine.astype(np.float32), 0.5 * factor)
    is_smooth_stroke = blurred > 0.35
    away = ndimage.distance_transform_edt(~is_smooth_stroke)
    # on either side of the stroke
    growth = (THICKENED - width) / 2 * unit
    grown = np.clip(growth + 0.5 - away, 0, 1)
    enlarged = np.kron(np.pad(ink, 1), square)
    return np.asarray(np.maximum(enlarged, grown), np.float32)
