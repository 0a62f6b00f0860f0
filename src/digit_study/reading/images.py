"""A photo or scan of a digit to 28x28 as MNIST made its own.

MNIST's page (Y. LeCun, C. Cortes, C. Burges) says how its images came to be: the black-and-white NIST
digits were size-normalised into a 20x20 box, aspect ratio kept, and the anti-aliased result was laid into
28x28 with its centre of mass in the centre. :func:`to_mnist` does the same to any grey picture.

What is paper and what is ink is read from the picture's border, never from its mean: a thick 8 may cover
more than half of a tight crop, but the border of a digit's picture is paper.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from digit_study.reading.image_files import LEAST_SIDE, Grey, ImageError, read_grey, ring

SIDE, BOX = 28, 20
WORK_SIDE = 140
FAINTEST = 12.0  # grey levels of 255 between paper and ink: below it even a person guesses
MOST_HOLES = 6  # an 8 has two; a gritty scan of a thick pen a few more
THINNEST, THICKENED = 1.5, 2.2  # stroke width in 20ths of the digit; MNIST's thinnest pens and its usual ones

Mask = npt.NDArray[np.bool_]
Digit = npt.NDArray[np.uint8]
Bounds = tuple[slice, ...]  # rows, columns


def _spread(values: Grey) -> float:
    """Standard deviation as the median sees it: strokes that cross the border hardly move it."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _paper(grey: Grey) -> Grey:
    """The light on the empty sheet: one level, or a quadratic surface where the border is uneven."""
    level, spread = np.float32(np.median(ring(grey))), _spread(ring(grey))
    if spread < 3:
        return np.full_like(grey, level)
    y, x = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in grey.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)
    edge = np.stack([ring(terms[..., k]) for k in range(6)], axis=-1)
    kept = np.abs(ring(grey) - level) <= 3 * spread
    for _ in range(3):  # fit, drop what stands out, fit again
        surface = terms @ np.linalg.lstsq(edge[kept], ring(grey)[kept], rcond=None)[0]
        rest = np.abs(ring(grey - surface))
        kept = rest <= 3 * float(np.median(rest)) + 1
    return np.asarray(surface, np.float32)


def _otsu(values: Grey) -> float:
    """The level that best parts the values in two (N. Otsu, 1979)."""
    counts, edges = np.histogram(values, bins=128)
    below = np.cumsum(counts)
    mass = np.cumsum(counts * edges[1:])
    between = (mass[-1] * below / below[-1] - mass) ** 2 / np.maximum(below * (below[-1] - below), 1)
    return float(edges[1 + int(np.argmax(between[:-1]))])


def _ink(grey: Grey) -> tuple[Grey, Mask]:
    """How inky each pixel is, 0 to 1, either polarity, and where strokes are; refuses what shows none."""
    paper = _paper(grey)
    apart = grey - paper
    noise = _spread(ring(apart))
    ink = np.maximum(apart * np.sign((apart.astype(np.float64) ** 3).sum()), 0).astype(np.float32)
    seen = ndimage.gaussian_filter(ink, max(grey.shape) / 300) if max(grey.shape) > 60 else ink
    cut = _otsu(seen)
    inky = seen > cut
    full = float(np.percentile(ink[inky], 70)) if inky.any() else 0.0
    if full < FAINTEST:
        raise ImageError("is blank: no stroke stands out from the background; write or scan it darker")
    touching = 0.4 if np.ptp(paper) == 0 else 0.12  # a tight crop on even paper, or a shadow's edge
    if full < 3 * noise or ring(inky).mean() > touching:
        raise ImageError("shows no digit on a plain background; leave an even margin around the digit")
    floor = 2.5 * noise
    marks, _ = ndimage.label(seen > max(cut / 2, min(floor, cut)), np.ones((3, 3)))
    strokes = np.isin(marks, np.unique(marks[inky]))
    return np.clip((ink - floor) / (full - floor), 0, 1), strokes


def _joined(strokes: Mask) -> tuple[npt.NDArray[np.int32], list[Bounds]]:
    """Label marks, pieces of a broken stroke together: gaps up to a tenth of the largest mark are bridged."""
    eight = np.ones((3, 3))
    pieces = ndimage.find_objects(ndimage.label(strokes, eight)[0])
    reach = 0.05 * max(_extent(box) for box in pieces)
    near = ndimage.distance_transform_edt(~strokes) <= reach if reach >= 1 else strokes
    marks = np.where(strokes, ndimage.label(near, eight)[0], 0).astype(np.int32)
    return marks, ndimage.find_objects(marks)


def _extent(box: Bounds) -> int:
    return int(max(side.stop - side.start for side in box))


def _apart(one: Bounds, other: Bounds) -> int:
    """Gap between two boxes, along the axis where they are furthest apart; negative where they overlap."""
    return int(max(max(a.start, b.start) - min(a.stop, b.stop) for a, b in zip(one, other, strict=True)))


def _one_mark(strokes: Mask) -> Mask:
    """The strokes of the one digit, specks of dust dropped; refuses several marks of comparable size."""
    marks, boxes = _joined(strokes)
    largest = max(boxes, key=_extent)
    whole = _extent(largest)
    peers = [box for box in boxes if _extent(box) >= 0.5 * whole and not _dash(box, whole)]
    if len(peers) > 1 and not _one_broken_digit(peers):
        raise ImageError(f"holds {len(peers)} marks of like size; one digit per image: cut it up")
    dots = sum(0.15 * whole < _extent(box) < 0.5 * whole for box in boxes)
    if dots > 8:
        raise ImageError(f"holds {dots + len(peers)} marks, as text or noise do; one digit per image")
    near = [k for k, box in enumerate(boxes, 1) if _extent(box) >= 0.15 * whole and _apart(box, largest) < 0.35 * whole]
    return np.isin(marks, near)


def _dash(box: Bounds, whole: int) -> bool:
    """Flat and wide: the loose bar of a 5 or 7, and no digit by itself."""
    height, width = (side.stop - side.start for side in box)
    return bool(height < 0.5 * width and height < 0.4 * whole)


def _one_broken_digit(peers: list[Bounds]) -> bool:
    """Two halves of one digit overlap or lie close, and together are no wider or taller than a digit."""
    if len(peers) > 2:
        return False
    gap = _apart(*peers)
    both = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(*peers, strict=True))
    height, width = (side.stop - side.start for side in both)
    heights = sorted(rows.stop - rows.start for rows, _ in peers)
    stacked = height > sum(heights) and heights[0] > 0.5 * heights[1]
    return gap < 0.15 * max(height, width) and width < 1.2 * height and not stacked


def _crop(grey: Grey, box: Bounds, margin: int) -> Grey:
    top, left = (max(0, side.start - margin) for side in box)
    return grey[top : max(0, box[0].stop + margin), left : max(0, box[1].stop + margin)]


def _box(mask: Mask) -> Bounds:
    return ndimage.find_objects(mask.astype(np.int8))[0]


def _card(mark: Mask) -> bool:
    """Whether the mark is a sheet of paper with something on it: a filled rectangle with strokes left out."""
    box = _box(mark)
    filled = ndimage.binary_fill_holes(mark[box])
    left_out = 1 - mark[box].sum() / filled.sum()
    return bool(min(filled.shape) >= 12 and filled.mean() > 0.93 and 0.01 < left_out < 0.35)


def _shrunk(grey: Grey) -> tuple[Grey, int]:
    factor = max(1, max(grey.shape) // WORK_SIDE)
    return np.asarray(Image.fromarray(grey).reduce(factor), np.float32), factor


def _find(grey: Grey) -> tuple[Grey, Mask]:
    """Look at the whole sheet coarsely, then closer where the mark is, until the mark fills the view."""
    for _ in range(4):
        view, factor = _shrunk(grey)
        ink, strokes = _ink(view)
        mark = _one_mark(strokes)
        box, card = _box(mark), _card(mark)
        if not card and (factor == 1 or _extent(box) > 0.4 * WORK_SIDE):
            break
        margin = -1 - _extent(box) // 30 if card else _extent(box) // 2 + 2
        scaled = tuple(slice(side.start * factor, side.stop * factor) for side in box)
        grey = _crop(grey, scaled, margin * factor)
    return ink, mark


def _width(mark: Mask) -> float:
    """Mean stroke width in 20ths of the mark's longer side; refuses what strokes of a pen never look like."""
    if _extent(_box(mark)) < LEAST_SIDE:
        raise ImageError("is blank but for a speck; write the digit larger, or scan it finer")
    mark = np.pad(mark[_box(mark)], 1)
    depth = ndimage.distance_transform_edt(mark)
    if depth.max() > 0.36 * max(mark.shape) and min(mark.shape) > 10:
        raise ImageError("shows a solid shape, not the strokes of a digit")
    holes = np.bincount(ndimage.label(~mark)[0].ravel())[2:]  # 0 is the mark, 1 the paper around it
    if (holes > 0.004 * mark.size).sum() > MOST_HOLES:
        raise ImageError("shows a pattern or noise, not the strokes of a digit")
    within = float(depth[depth > 0].mean())  # a quarter of the width, in a strip
    return (4 * within - 1) * BOX / float(max(mark.shape))


def _drawn(ink: Grey, mark: Mask) -> Grey:
    """Only the digit's own ink, edges included, and a hairline thickened to a pen's stroke."""
    unit = _extent(_box(mark)) / BOX
    away = ndimage.distance_transform_edt(~mark)
    own = np.where(away <= max(1.5, 1.2 * unit), ink, 0).astype(np.float32)
    width = _width(mark)
    if unit < 1.5 or width >= THINNEST:
        return own
    return np.maximum(own, np.clip((THICKENED - width) / 2 * unit + 0.5 - away, 0, 1)).astype(np.float32)


def _fit(ink: Grey) -> Digit:
    """Size-normalise into 20x20, aspect ratio kept, and lay the centre of mass into the centre of 28x28."""
    if not (ink > 0.1).any():
        raise ImageError("is all but blank: no stroke stands out from the background; write or scan it darker")
    box = _box(ink > 0.1)
    height, width = (side.stop - side.start for side in box)
    longer = max(height, width)
    scale = 1.0 if longer in (BOX - 1, BOX) else BOX / longer  # resampling by 5 % blurs more than it mends
    size = max(1, round(width * scale)), max(1, round(height * scale))
    way = Image.Resampling.BOX if scale <= 1 else Image.Resampling.BICUBIC
    small = np.clip(np.asarray(Image.fromarray(ink[box]).resize(size, way)), 0, None)
    centre = ndimage.center_of_mass(small)
    corner = [
        min(max(0, round(SIDE / 2 - float(middle))), SIDE - side)
        for middle, side in zip(centre, small.shape, strict=True)
    ]
    digit = np.zeros((SIDE, SIDE), np.float32)
    digit[corner[0] : corner[0] + small.shape[0], corner[1] : corner[1] + small.shape[1]] = small
    return np.asarray(np.round(digit * (255 / digit.max())), np.uint8)


def is_mnist_form(grey: Grey) -> bool:
    """Whether a picture already is as MNIST makes its own, so that it must pass through untouched.

    That is: 28x28, whole grey levels, ink light, border black but for a tenth, longer side of the ink 18
    to 20, its centre of mass within a pixel of the centre. All 70,000 MNIST images are.
    """
    if grey.shape != (SIDE, SIDE) or (ring(grey) > 0).mean() > 0.1 or not np.array_equal(grey, grey.round()):
        return False
    if grey.max() < 100:
        return False
    off = np.abs(np.array(ndimage.center_of_mass(grey)) - SIDE / 2)
    return bool(BOX - 2 <= _extent(_box(grey > 0)) <= BOX and off.max() < 1)


def to_mnist(grey: Grey) -> Digit:
    """One plane of grey, dark on light or light on dark, to the digit as MNIST would hold it.

    Args:
        grey: shape (h, w), float32, 0 to 255, at least 5x5.

    Returns:
        Shape (28, 28), uint8, ink light on black; bit for bit the input where :func:`is_mnist_form`.

    Raises:
        ImageError: blank, no plain background, several digits, or a solid shape.
    """
    if is_mnist_form(grey):
        return grey.astype(np.uint8)
    return _fit(_drawn(*_find(grey)))


def read_digit(path: Path) -> Digit:
    """An image file to one MNIST-like digit, shape (28, 28), uint8; raises :class:`ImageError`."""
    return to_mnist(read_grey(path))
