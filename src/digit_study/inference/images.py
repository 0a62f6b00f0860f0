"""A photo or scan of a digit to a 28x28 image made as MNIST's own were.

MNIST's page (Y. LeCun, C. Cortes, C. Burges) says how: the black-and-white NIST digits were size-normalised into a
20x20 box with their aspect ratio kept, and the anti-aliased result was placed in 28x28 with its centre of mass in the
centre. :func:`to_mnist` does the same to any grey picture.

What is paper and what is ink is read from the picture's border, never from its mean: a thick 8 may cover more than
half of a tight crop, but the border of a digit's picture is paper.
"""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage.filters import rank, threshold_otsu
from skimage.morphology import closing, disk, footprint_rectangle, opening
from skimage.transform import hough_line, hough_line_peaks

from digit_study.inference.image_files import LEAST_SIDE, Grey, ImageError, read_grey, ring

SIDE, BOX = 28, 20
WORK_SIDE = 140
FAINTEST = 12.0  # grey levels of 255 between paper and ink: below it even a person guesses
MOST_HOLES = 6  # an 8 has two; a gritty scan of a thick pen a few more
#: Stroke width in 20ths of the digit: of MNIST's thinnest pens, and of its usual ones.
THINNEST = 1.9
THICKENED = 2.4
#: Pixels a 20th of the digit, at least, for strokes to be measured and thickened.
FINE = 3
#: A mark that covers more than this part of an edge of the view is no digit: 1 in so many.
MOST_ALONG = 6
#: Sides up to which a picture is a small drawing: its strokes may be a fifth of it, or of its border.
SMALL = 64
#: Of the longer side of a view the widest stroke that is looked for in uneven light is this part.
WIDEST_STROKE = 4
EIGHT = np.ones((3, 3))  # pixels that touch at a corner belong together

Mask = npt.NDArray[np.bool_]
Digit = npt.NDArray[np.uint8]


def _spread(values: Grey) -> float:
    """Standard deviation estimated from the median: strokes that cross the border hardly change it."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def _box(mask: Mask) -> tuple[slice, ...]:
    """Rows and columns of the smallest box around a mask."""
    return ndimage.find_objects(mask.astype(np.int8))[0]


def _relief(grey: Grey) -> Grey:
    """Return how far strokes stand out from paper in any light, shadows with sharp edges included.

    The paper is what a disc wider than any stroke can cover: a morphological closing takes dark
    strokes away and keeps the edge of a shadow where it is. Reflected light is a share of the
    paper's, so that a stroke in the shadow is as dark as another.
    """
    side = max(3, max(grey.shape) // WIDEST_STROKE) | 1
    local = rank.median(np.clip(grey, 0, 255).astype(np.uint8), footprint_rectangle((side, side)))
    # a disc fits into the corner of a shadow where a square does not
    disc = disk(side // 2, decomposition="sequence")
    apart = grey.astype(np.float64) - local
    even = ndimage.gaussian_filter(grey, 0.7)
    if (apart**3).sum() > 0:
        return np.asarray(grey - opening(even, disc), np.float32)
    paper = np.maximum(closing(even, disc), 1)
    usual = float(np.median(paper))
    return np.asarray((paper - grey) * np.clip(usual / paper, 0.5, 4), np.float32)


def _is_even(grey: Grey) -> bool:
    """Return whether the paper at the border has the same brightness all along it."""
    border = ring(grey)
    if _spread(border) >= 3:
        return False
    if max(grey.shape) <= SMALL:
        return True
    # strokes that cross the border are narrower than this, a shadow or a table is not
    window = max(3, min(grey.shape) // WIDEST_STROKE) | 1
    edges = (grey[0], grey[-1], grey[:, 0], grey[:, -1])
    level = np.concatenate([ndimage.median_filter(edge, window) for edge in edges])
    return float(np.ptp(level)) < FAINTEST


def _ink(grey: Grey) -> tuple[Grey, Mask]:
    """How inky each pixel is, 0 to 1, for either polarity, and where strokes are; refuses what shows none."""
    is_even = _is_even(grey)
    if is_even:
        apart = grey - np.float32(np.median(ring(grey)))
        out = apart * np.sign((apart.astype(np.float64) ** 3).sum())
    else:
        out = _relief(grey)
    noise = _spread(ring(out))
    ink = np.maximum(out, 0).astype(np.float32)
    smooth, cut = _cut(ink)
    lines = _ruled(smooth > max(cut / 2, min(2.5 * noise, cut)))
    if lines.any():
        ink = np.where(lines, 0, ink)
        smooth, cut = _cut(ink)
    inky = smooth > cut
    floor = 2.5 * noise
    marks, _ = ndimage.label(smooth > max(cut / 2, min(floor, cut)), EIGHT)
    if not is_even:
        marks = _without_frame(marks)
        inky &= marks > 0
    full = float(np.percentile(ink[inky], 70)) if inky.any() else 0.0
    if full < FAINTEST:
        raise ImageError(
            "is blank: no stroke stands out from the background; write or scan it darker"
        )
    # a tight crop on even paper, or what is left of a shadow's edge
    touching = 0.4 if is_even else 0.2
    if full < 3 * noise or ring(inky).mean() > touching:
        raise ImageError(
            "shows no digit on a plain background; leave an even margin around the digit"
        )
    strokes = np.isin(marks, np.unique(marks[inky])) & (marks > 0)
    return np.clip((ink - floor) / (full - floor), 0, 1), strokes


def _cut(ink: Grey) -> tuple[Grey, float]:
    """Smooth away what is finer than a stroke, and find the level that parts ink from paper."""
    coarse = max(ink.shape) > 60
    smooth = ndimage.gaussian_filter(ink, max(ink.shape) / 300) if coarse else ink
    # skimage returns the centre of paper's last bin; its upper edge, half a bin up, is the better cut
    cut = float(threshold_otsu(smooth, nbins=128)) + float(np.ptp(smooth)) / 256  # type: ignore[no-untyped-call]
    return smooth, cut


def _ruled(inked: Mask) -> Mask:
    """Find the lines of ruled and squared paper: thin, straight, from the frame across the view.

    Where a stroke crosses a line, the line's pixels belong to the stroke.
    """
    if max(inked.shape) <= SMALL:
        return np.zeros_like(inked)
    return _rules(inked) | _rules(inked.T).T


def _rules(inked: Mask) -> Mask:
    """Find the ruled lines that run from left to right."""
    height, width = inked.shape
    widest = math.ceil(0.03 * max(height, width))
    thin = inked & ~ndimage.binary_opening(inked, np.ones((widest + 1, widest + 1)))
    slopes = np.pi / 2 + np.radians(np.linspace(-6, 6, 25))
    votes = hough_line(thin, slopes)  # type: ignore[no-untyped-call]
    peaks = hough_line_peaks(*votes, 3, 1, 0.4 * width, 80)  # type: ignore[no-untyped-call]
    rows, columns = np.mgrid[:height, :width]
    found = np.zeros_like(inked)
    thickest = 0.0
    for _, slope, distance in zip(*peaks, strict=True):
        away = np.abs(columns * np.cos(slope) + rows * np.sin(slope) - distance)
        own = thin & (away <= 1.5)
        covered = own.any(axis=0)
        reaches = covered[:3].any() or covered[-3:].any()
        if reaches and covered.mean() >= 0.4:
            thickness = own.sum() / covered.sum()
            thickest = max(thickest, thickness)
            found |= away <= thickness / 2 + 0.6
    crossed = ndimage.binary_closing(inked & ~found, np.ones((math.ceil(thickest) + 3, 1)))
    return found & ~(crossed & inked)


def _without_frame(marks: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Drop numbered marks that lie along the frame for longer than a stroke is wide.

    Such a mark is a sheet's edge, a shadow's corner or another thing. A digit that is cut tightly
    stays where there is nothing else.
    """
    along = np.zeros(marks.max() + 1, np.int64)
    for edge in (marks[0], marks[-1], marks[:, 0], marks[:, -1]):
        counts = np.bincount(edge, minlength=len(along))
        along = np.maximum(along, counts * MOST_ALONG // len(edge))
    is_frame = along > 1
    is_frame[0] = False
    rest = np.where(is_frame[marks], 0, marks)
    return rest if rest.any() else marks


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
        is_stacked = height > high.sum() and high.min() > 0.5 * high.max()
        if (
            peers.sum() > 2
            or gap >= 0.15 * max(height, width)
            or width >= 1.2 * height
            or is_stacked
        ):
            raise ImageError(
                f"holds {peers.sum()} marks of like size; one digit per image: cut it up"
            )
    dots = (extents > 0.15 * whole) & (extents < 0.5 * whole)
    if dots.sum() > 8:
        raise ImageError(
            f"holds {dots.sum() + peers.sum()} marks, as text or noise do; one digit per image"
        )
    gaps = (np.maximum(start, start[largest]) - np.minimum(stop, stop[largest])).max(axis=1)
    return np.isin(marks, 1 + np.flatnonzero((extents >= 0.15 * whole) & (gaps < 0.35 * whole)))


def _find(grey: Grey) -> tuple[Grey, Mask]:
    """Look at the whole sheet coarsely, then closer where the mark is, until the mark fills the view."""
    for _ in range(4):
        factor = max(1, max(grey.shape) // WORK_SIDE)
        ink, strokes = _ink(np.asarray(Image.fromarray(grey).reduce(factor), np.float32))
        mark = _one_mark(strokes)
        box = _box(mark)
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
    tight = np.pad(mark[_box(mark)], 1)
    if max(tight.shape) < LEAST_SIDE + 2:
        raise ImageError("is blank but for a speck; write the digit larger, or scan it finer")
    depth = ndimage.distance_transform_edt(tight)
    if depth.max() > 0.36 * max(tight.shape) and min(tight.shape) > 10:
        raise ImageError("shows a solid shape, not the strokes of a digit")
    # the first is the mark, the second the paper around it
    holes = np.bincount(ndimage.label(~tight)[0].ravel())[2:]
    if (holes > 0.004 * tight.size).sum() > MOST_HOLES:
        raise ImageError("shows a pattern or noise, not the strokes of a digit")
    unit = max(1.0, max(mark[_box(mark)].shape) / BOX)
    own = np.where(ndimage.distance_transform_edt(~mark) <= max(1.5, 1.2 * unit), ink, 0)
    return _thickened(np.asarray(own, np.float32), mark)


def _thickened(ink: Grey, mark: Mask) -> Grey:
    """The same ink, enlarged where it is small, if its strokes are thinner than a pen's."""
    box = _box(mark)
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
    ink = ink[_box(ink > 0.1)]
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
    return bool(BOX - 2 <= max(grey[_box(grey > 0)].shape) <= BOX and off.max() < 1)


def to_mnist(grey: Grey) -> Digit:
    """One plane of grey, dark on light or light on dark, to the digit as MNIST would hold it, light on black.

    From shape (h, w), float32, 0 to 255, at least 5x5, to (28, 28), uint8; bit for bit the input where
    :func:`is_mnist_form`. Raises ImageError if it is blank, without plain background, several digits or a solid shape.
    """
    return grey.astype(np.uint8) if is_mnist_form(grey) else size_normalised(_drawn(*_find(grey)))


def read_digit(source: Path | bytes) -> Digit:
    """An image file, or its bytes, to one MNIST-like digit, shape (28, 28), uint8; raises :class:`ImageError`."""
    return to_mnist(read_grey(source))
