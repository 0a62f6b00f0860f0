"""A photo or scan of a digit to a 28x28 image made as MNIST's own were.

MNIST's page (Y. LeCun, C. Cortes, C. Burges) says how: the black-and-white NIST digits were size-normalised into a
20x20 box with their aspect ratio kept, and the anti-aliased result was placed in 28x28 with its centre of mass in the
centre. :func:`to_mnist` does the same to any grey picture.
"""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from digit_study.inference.image_files import LEAST_SIDE, Grey, ImageError, read_grey, ring
from digit_study.inference.ink import EIGHT, Mask, box_of, find_ink

#: Side of MNIST's images, and of the box in them that holds the digit.
SIDE = 28
BOX = 20
#: Longer side, in pixels, of a view in which a digit is looked for.
WORK_SIDE = 140
#: A mark whose width is so many times its height is no digit.
WIDEST_DIGIT = 1.5
#: An 8 has two holes; a gritty scan of a thick pen a few more.
MOST_HOLES = 6
#: Stroke width in 20ths of the digit: of MNIST's thinnest pens, and of its usual ones.
THINNEST = 1.9
THICKENED = 2.4
#: Pixels a 20th of the digit, at least, for strokes to be measured and thickened.
FINE = 3

Digit = npt.NDArray[np.uint8]


class SeveralMarks(ImageError):
    """A picture that holds several marks where a single digit was looked for."""


def _one_mark(strokes: Mask) -> Mask:
    """The strokes of the one digit without specks of dust; refuses several marks of comparable size."""
    pieces = ndimage.find_objects(ndimage.label(strokes, EIGHT)[0])
    reach = 0.05 * max(
        max(strokes[box].shape) for box in pieces
    )  # a broken stroke's gaps are bridged up to twice that
    near = ndimage.distance_transform_edt(~strokes) <= reach if reach >= 1 else strokes
    marks = np.where(strokes, ndimage.label(near, EIGHT)[0], 0).astype(np.int32)
    boxes = ndimage.find_objects(marks)
    start, stop = (
        np.array([[getattr(side, end) for side in box] for box in boxes])
        for end in ("start", "stop")
    )
    heights, widths = (stop - start).T
    extents = np.maximum(heights, widths)
    largest, whole = extents.argmax(), extents.max()
    is_bar = (heights < 0.5 * widths) & (
        heights < 0.4 * whole
    )  # the loose bar of a 5 or 7 is no digit by itself
    peers = (extents >= 0.5 * whole) & ~is_bar
    if peers.sum() > 1:  # two close halves may have the form of one digit together
        gap = (
            start[peers].max(axis=0) - stop[peers].min(axis=0)
        ).max()  # negative where the boxes overlap
        height, width = stop[peers].max(axis=0) - start[peers].min(axis=0)
        high = heights[peers]
        # the halves of a broken digit are flat, digits are not
        is_upright = (high >= 0.75 * widths[peers]).all()
        is_stacked = is_upright and height > high.sum() and high.min() > 0.5 * high.max()
        if (
            peers.sum() > 2
            or gap >= 0.15 * max(height, width)
            or width >= 1.2 * height
            or is_stacked
        ):
            raise SeveralMarks(
                f"holds {peers.sum()} marks of like size; one digit per image: cut it up"
            )
    dots = (extents > 0.15 * whole) & (extents < 0.5 * whole)
    if dots.sum() > 8:
        raise SeveralMarks(
            f"holds {dots.sum() + peers.sum()} marks, as text or noise do; one digit per image"
        )
    gaps = (np.maximum(start, start[largest]) - np.minimum(stop, stop[largest])).max(axis=1)
    kept = (extents >= 0.15 * whole) & (gaps < 0.35 * whole)
    height, width = stop[kept].max(axis=0) - start[kept].min(axis=0)
    if width >= WIDEST_DIGIT * height and height >= LEAST_SIDE:
        raise SeveralMarks("holds a mark that is wider than any digit; one digit per image")
    return np.isin(marks, 1 + np.flatnonzero(kept))


def _find(grey: Grey) -> tuple[Grey, Mask]:
    """Look at the whole sheet coarsely, then closer where the mark is, until the mark fills the view."""
    for _ in range(4):
        factor = max(1, max(grey.shape) // WORK_SIDE)
        ink, strokes = find_ink(np.asarray(Image.fromarray(grey).reduce(factor), np.float32))
        mark = _one_mark(strokes)
        box = box_of(mark)
        filled = ndimage.binary_fill_holes(mark[box])
        extent, left_out = max(filled.shape), 1 - mark[box].sum() / filled.sum()
        # a sheet of paper with something on it: a filled rectangle with strokes left out
        is_card = min(filled.shape) >= 12 and filled.mean() > 0.93 and 0.01 < left_out < 0.35
        if not is_card and (factor == 1 or extent > 0.4 * WORK_SIDE):
            break
        margin = -1 - extent // 30 if is_card else extent // 2 + 2
        ends = [
            (max(0, (side.start - margin) * factor), max(0, (side.stop + margin) * factor))
            for side in box
        ]
        grey = grey[tuple(slice(*end) for end in ends)]
    return ink, mark


def _drawn(ink: Grey, mark: Mask) -> Grey:
    """Only the digit's own ink, edges included; refuses what a pen's strokes never look like."""
    tight = np.pad(mark[box_of(mark)], 1)
    if max(tight.shape) < LEAST_SIDE + 2:
        raise ImageError("is blank but for a speck; write the digit larger, or scan it finer")
    depth = ndimage.distance_transform_edt(tight)
    if depth.max() > 0.36 * max(tight.shape) and min(tight.shape) > 10:
        raise ImageError("shows a solid shape, not the strokes of a digit")
    # the first is the mark, the second the paper around it
    holes = np.bincount(ndimage.label(~tight)[0].ravel())[2:]
    if (holes > 0.004 * tight.size).sum() > MOST_HOLES:
        raise ImageError("shows a pattern or noise, not the strokes of a digit")
    unit = max(1.0, max(mark[box_of(mark)].shape) / BOX)
    own = np.where(ndimage.distance_transform_edt(~mark) <= max(1.5, 1.2 * unit), ink, 0)
    return _thickened(np.asarray(own, np.float32), mark)


def _thickened(ink: Grey, mark: Mask) -> Grey:
    """The same ink, enlarged where it is small, if its strokes are thinner than a pen's."""
    box = box_of(mark)
    enlarged = max(1, math.ceil(FINE * BOX / max(mark[box].shape)))
    unit = enlarged * max(mark[box].shape) / BOX
    # pixels of a drawing are squares: their corners are rounded where it is enlarged
    fine = np.kron(np.pad(mark, 1), np.ones((enlarged, enlarged))) > 0
    depth = ndimage.distance_transform_edt(fine)
    # the mean depth of a stroke is a quarter of its width
    width = (4 * float(depth[fine].mean()) - 1) / unit
    if width >= THINNEST:
        return ink
    soft = ndimage.gaussian_filter(fine.astype(np.float32), 0.5 * enlarged) > 0.35
    away = ndimage.distance_transform_edt(~soft)
    grown = np.clip((THICKENED - width) / 2 * unit + 0.5 - away, 0, 1)
    own = np.kron(np.pad(ink, 1), np.ones((enlarged, enlarged)))
    return np.asarray(np.maximum(own, grown), np.float32)


def size_normalised(ink: Grey) -> Digit:
    """Size-normalise into 20x20, aspect ratio kept, and place the centre of mass in the centre of 28x28."""
    if not (ink > 0.1).any():
        raise ImageError(
            "is all but blank: no stroke stands out from the background; write or scan it darker"
        )
    ink = ink[box_of(ink > 0.1)]
    longer = max(ink.shape)
    scale = (
        1.0 if longer in (BOX - 1, BOX) else BOX / longer
    )  # resampling by 5 % blurs more than it mends
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    method = Image.Resampling.BOX if scale <= 1 else Image.Resampling.BICUBIC
    small = np.clip(np.asarray(Image.fromarray(ink).resize((width, height), method)), 0, None)
    room = np.subtract(SIDE, small.shape)
    top, left = np.clip(
        np.round(SIDE / 2 - np.array(ndimage.center_of_mass(small))), 0, room
    ).astype(int)
    digit = np.pad(small, ((top, room[0] - top), (left, room[1] - left)))
    return np.asarray(np.round(digit * (255 / digit.max())), np.uint8)


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
    return size_normalised(_drawn(ink, mark))


def is_mnist_form(grey: Grey) -> bool:
    """Whether a picture has MNIST's form already, as all its 70,000 images do, and must pass through untouched.

    That is: 28x28, whole grey levels, light ink, at most a tenth of the border not black, longer side of the ink 18 to
    20, its centre of mass within a pixel of the centre.
    """
    if (
        grey.shape != (SIDE, SIDE)
        or grey.max() < 100
        or (ring(grey) > 0).mean() > 0.1
        or (grey != grey.round()).any()
    ):
        return False
    off = np.abs(np.array(ndimage.center_of_mass(grey)) - SIDE / 2)
    return bool(BOX - 2 <= max(grey[box_of(grey > 0)].shape) <= BOX and off.max() < 1)


def to_mnist(grey: Grey) -> Digit:
    """One plane of grey, dark on light or light on dark, to the digit as MNIST would hold it, light on black.

    From shape (h, w), float32, 0 to 255, at least 5x5, to (28, 28), uint8; bit for bit the input where
    :func:`is_mnist_form`. Raises ImageError if it is blank, without plain background, several digits or a solid shape.
    """
    return grey.astype(np.uint8) if is_mnist_form(grey) else normalised_mark(*_find(grey))


def read_digit(source: Path | bytes) -> Digit:
    """An image file, or its bytes, to one MNIST-like digit, shape (28, 28), uint8; raises :class:`ImageError`."""
    return to_mnist(read_grey(source))
