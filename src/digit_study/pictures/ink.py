"""Separation of ink and paper in a picture: any polarity, light with shadows, ruled paper.

What is paper is read from the picture's border, never from its mean: a thick 8 may cover more than
half of a tight crop, but the border of a digit's picture is paper.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage.filters import rank, threshold_otsu
from skimage.morphology import closing, disk, footprint_rectangle
from skimage.transform import hough_line, hough_line_peaks

from digit_study.pictures.image_files import Grey, ImageError, ring

#: Grey levels of 255 between paper and ink: below it even a person guesses.
FAINTEST = 12.0
#: Contrast, in spreads of the paper, from which on ink is no noise.
LEAST_CONTRAST = 3
#: Spreads of the paper up to which brightness is no ink.
NOISE_SPREADS = 2.5
#: A mark that covers this part of an edge of the view, or more, is no digit.
MOST_ALONG = 1 / 6
#: Depth of a pen's stroke, half its width, as a part of the digit's longer side, at most.
DEEPEST = 0.36
#: How often marks along the frame are taken away before strokes are looked for, at most.
MOST_FRAMES = 3
#: A mark in a corner of the view is a shadow up to this part of the view's longer side.
LARGEST_CORNER = 0.25
#: Sides up to which a picture is a small drawing: strokes may be a fifth of it, or of its border.
SMALL = 64
#: Of the longer side of a view the widest stroke that is looked for in uneven light is this part.
WIDEST_STROKE = 4
#: Sizes at which strokes are looked for, as parts of the widest.
STROKE_SIZES = (0.14, 0.25, 0.43, 0.71, 1.0)
#: Energy at a size from which on something stands out there, as a part of the largest.
STANDS_OUT = 0.01
#: How much more it counts that strokes are thin than that they stand out.
THINNESS = 2.0
#: Product of the two votes, each from -1 to 1, from which on they clearly agree.
AGREEMENT = 0.25
#: How much more it counts that there is an edge all along strokes than that they stand out.
OUTLINE = 4.0
#: How far the things of a polarity stand out, as a part of those of the other, at least; less is
#: noise.
LEAST_OF_OTHER = 0.25
#: Slope of an edge, in levels a pixel, as a part of how far strokes stand out, at least.
LEAST_SLOPE = 0.06
#: What Sobel's filter gives on a plane that rises by a level a pixel.
SOBEL_OF_SLOPE = 8.0
#: What a sum of squares or cubes is divided by at least: a picture may be of one level.
LEAST_ENERGY = 1e-6
#: Parts of the width and the height of a view that lines of ruled and squared paper cover.
LEAST_RULE = (0.6, 0.7)
#: Slopes of ruled lines that are tried, in degrees from the horizontal.
SLOPES = np.linspace(-6, 6, 25)
#: Ruled lines of a picture, at most, in each direction.
MOST_LINES = 80
#: Part of a line that lies beside strokes, at least.
LEAST_SEEN = 0.3
#: Longer side, in pixels, of the view in which the paper's brightness is found.
PAPER_SIDE = 140
#: Part of the ink that is no ruled line, at least; where all of it is, it is strokes.
LEAST_LEFT = 0.03
#: Levels of 255 between a sheet and what lies around it, at least.
LEAST_EDGE = 30.0
#: Part of a picture that a sheet covers, at least.
LEAST_SHEET = 0.2
#: Connected strokes of a picture, at most.
MOST_MARKS = 2_500
#: Pixels that the four slanted lines of a disc reach along an axis, with a step each: two of them
#: reach two pixels, two of them one.
EXTENT_OF_SLANTED = 6
#: Pixels that touch at a corner belong together.
EIGHT = np.ones((3, 3))

Mask = npt.NDArray[np.bool_]
#: Of each pixel the number of its mark, from 1, or 0 for paper.
Numbered = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Ink:
    """What is written in a picture.

    Attributes:
        darkness: how inky each pixel is, (h, w), 0 to 1.
        strokes: where strokes are, (h, w).
        is_light: whether they are lighter than the paper; None where that was not asked, because
            the light is even.
    """

    darkness: Grey
    strokes: Mask
    is_light: bool | None


def _spread(values: Grey) -> float:
    """Estimate the standard deviation from the median.

    Strokes that cross the border hardly change it.
    """
    median = np.median(values)
    away = np.abs(values - median)
    return 1.4826 * float(np.median(away))


def box_of(mask: Mask) -> tuple[slice, ...]:
    """Return the smallest box around a mask.

    Args:
        mask: shape (h, w), with at least a pixel set.

    Returns:
        Its rows and its columns.
    """
    return ndimage.find_objects(mask.astype(np.int8))[0]


def reduced(grey: Grey, factor: int) -> Grey:
    """Return a plane whose pixels are the means of blocks of pixels.

    Args:
        grey: shape (h, w).
        factor: side of a block, in pixels.

    Returns:
        About (h / factor, w / factor), float32.
    """
    image = Image.fromarray(grey).reduce(factor)
    return np.asarray(image, np.float32)


def _edges(plane: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Return the first and the last row, and the first and the last column."""
    top = plane[0]
    bottom = plane[-1]
    left = plane[:, 0]
    right = plane[:, -1]
    return top, bottom, left, right


def _relief(grey: Grey, widest: int, *, is_light: bool) -> Grey:
    """Return how far strokes stand out from paper in any light, shadows with sharp edges included.

    The paper is what a disc wider than any stroke can cover: a morphological closing takes dark
    strokes away and keeps the edge of a shadow where it is. Reflected light is a share of the
    paper's, so that a stroke in the shadow is as dark as another.
    """
    coarse = _coarse(grey)
    side = _size_of_strokes(coarse, widest)
    if is_light:
        paper = -_resized(_paper(-coarse, side), grey.shape)
        return np.asarray(grey - paper, np.float32)
    paper = _resized(_paper(coarse, side), grey.shape)
    usual = float(np.median(paper))
    gain = usual / np.maximum(paper, 1)
    share = np.clip(gain, 0.5, 4)
    darker = paper - grey
    return np.asarray(darker * share, np.float32)


def _coarse(grey: Grey) -> Grey:
    """Return the view in which the paper's brightness is found."""
    factor = max(1, max(grey.shape) // PAPER_SIDE)
    return reduced(grey, factor)


def _size_of_strokes(grey: Grey, widest: int) -> int:
    """Return the width of the widest stroke of a view, in pixels, odd."""
    return _odd(max(grey.shape) // widest)


def _paper(coarse: Grey, side: int) -> Grey:
    """Return the paper around dark strokes: what a disc as wide as the widest stroke can cover.

    Args:
        coarse: brightness (h, w); negative where strokes are light.
        side: width of the disc, in pixels, odd.
    """
    # a shadow that the frame cuts off goes on beyond it: else a narrow rest would be a stroke
    beyond = side - 1
    continued = np.pad(coarse, beyond, mode="edge")
    even = ndimage.gaussian_filter(continued, 0.7)
    inner = slice(beyond, -beyond)
    return closed_by_disc(even, side)[inner, inner]


def sheet_alone(grey: Grey) -> Grey | None:
    """Return the light sheet of a picture, evenly lit, with paper in place of what lies around it.

    That is a table, a dark frame, a finger or dark corners: what is darker than the sheet, reaches
    the frame and is wider than a stroke.

    Args:
        grey: brightness (h, w), 0 to 255.

    Returns:
        Of the same shape; None where there is no such sheet, or nothing around it.
    """
    coarse = _coarse(grey)
    radius = _size_of_strokes(coarse, WIDEST_STROKE) // 2
    bright = _without_dark_strokes(coarse, radius)
    sheet = _largest_light_patch(bright)
    if sheet is None or not LEAST_SHEET <= sheet.mean() < 1:
        return None
    level = np.median(bright[sheet])
    level_around = np.median(bright[~sheet])
    if level - level_around < LEAST_EDGE:
        return None
    # light patches of a table lie beside it, and its edge is blurred or casts a shadow
    sheet = opened_by_square(sheet, radius // 2)
    within = ndimage.binary_erosion(sheet, EIGHT > 0, iterations=3, border_value=1)
    if not within.any():
        return None
    # beyond the sheet its paper goes on as it is at the nearest place within
    nearest = ndimage.distance_transform_edt(~within, return_distances=False, return_indices=True)
    continued = bright[tuple(nearest)]
    paper = _resized(continued, grey.shape)
    usual = np.float32(np.median(paper))
    share_within = _resized(within.astype(np.float32), grey.shape)
    gain = usual / np.maximum(paper, 1)
    evenly_lit = grey * gain
    return np.where(share_within > 0.5, evenly_lit, usual)


def _without_dark_strokes(coarse: Grey, radius: int) -> Grey:
    """Return a plane (h, w) without what is dark and narrower than a disc.

    It looks like :func:`_paper`, but keeps to skimage's disc on purpose: with the other disc some
    sheets are found otherwise.
    """
    # what is narrower than a stroke goes on beyond the frame: a closing would take it for a stroke
    margin = 2 * radius
    continued = np.pad(coarse, margin, mode="edge")
    even = ndimage.median_filter(continued, 3)
    disc = disk(radius, decomposition="sequence")
    closed = closing(even, disc)
    inner = slice(margin, -margin)
    return np.asarray(closed[inner, inner])


def _largest_light_patch(bright: Grey) -> Mask | None:
    """Return where the largest light patch of a plane is, its holes filled; None if there is none.

    Light is what Otsu's threshold parts from the dark.
    """
    is_light = bright > threshold_otsu(bright)
    numbered, count = ndimage.label(is_light)
    if count == 0:
        return None
    areas = np.bincount(numbered.ravel())
    # what is dark is no patch
    areas[0] = 0
    largest = areas.argmax()
    return np.asarray(ndimage.binary_fill_holes(numbered == largest))


def _resized(plane: Grey, shape: tuple[int, ...]) -> Grey:
    """Return a plane in another size."""
    height, width = shape
    image = Image.fromarray(plane)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _odd(side: int) -> int:
    """Return the side of a window that has a middle: odd, and at least 3."""
    return max(3, side) | 1


def _is_light(grey: Grey, widest: int) -> bool:
    """Return whether strokes are lighter than what is around them.

    Two signs are weighed against each other: that strokes stand out more than all else, and that
    they are thinner. A shadow or a reflection misleads the first, a thick pen the second. Where
    they do not clearly agree a third one is asked, which takes as long as both: the edge all along
    strokes.

    Args:
        grey: brightness (h, w), 0 to 255.
        widest: the widest stroke is this part of the longer side: 1 in so many.
    """
    coarse = _coarse(grey)
    largest_size = _size_of_strokes(coarse, widest)
    by_contrast = _vote_by_contrast(coarse, largest_size)
    by_size = _vote_by_size(coarse, largest_size)
    vote = by_contrast + THINNESS * by_size
    if by_contrast * by_size < AGREEMENT:
        vote += OUTLINE * _vote_by_outline(coarse, largest_size)
    return vote > 0


def _vote_by_contrast(grey: Grey, largest_size: int) -> float:
    """Return the balance of light and dark things, from -1 (dark) to 1, by how far they stand out.

    It is the skewness of what is apart from the median around it, relative to its greatest value.
    """
    square = footprint_rectangle((largest_size, largest_size))
    levels = np.clip(grey, 0, 255).astype(np.uint8)
    apart = grey.astype(np.float64) - rank.median(levels, square)
    cubes = apart**3
    return float(cubes.sum() / max(np.abs(cubes).sum(), LEAST_ENERGY))


def _vote_by_size(grey: Grey, largest_size: int) -> float:
    """Return the balance of light and dark things, from -1 (dark) to 1, at the finest size.

    That is the finest size at which something stands out. What stands out is what a square of that
    size cannot cover, as the black and the white top-hat transform give it.
    """
    continued = np.pad(grey, largest_size, mode="edge")
    even = ndimage.gaussian_filter(continued, 0.7)
    # the larger the square, the more it cannot cover: the last size has the largest energies
    least = STANDS_OUT * max(_top_hat_energies(even, largest_size))
    for part in STROKE_SIZES:
        size = _odd(round(part * largest_size))
        dark_energy, light_energy = _top_hat_energies(even, size)
        if max(dark_energy, light_energy) >= least:
            break
    difference = light_energy - dark_energy
    return float(difference / max(light_energy + dark_energy, LEAST_ENERGY))


def _top_hat_energies(plane: Grey, size: int) -> tuple[float, float]:
    """Return the energies of what is dark, and of what is light, and a square cannot cover."""
    dark = ndimage.black_tophat(plane, (size, size))
    light = ndimage.white_tophat(plane, (size, size))
    return float((dark**2).sum()), float((light**2).sum())


def _vote_by_outline(grey: Grey, largest_size: int) -> float:
    """Return the balance of light and dark things, from -1 (dark) to 1, by the edges around them.

    What lies between dark strokes is light beside them, but where it meets the paper there is no
    edge.
    """
    below_light = -_paper(-grey, largest_size)
    around_dark = _paper(grey, largest_size)
    even = ndimage.gaussian_filter(grey, 0.7)
    sobel = np.hypot(ndimage.sobel(even, 0), ndimage.sobel(even, 1))
    slope = np.asarray(sobel / SOBEL_OF_SLOPE, np.float32)
    light = _standing_out(grey - below_light)
    dark = _standing_out(around_dark - grey)
    highest_light = float(np.percentile(light, 99))
    highest_dark = float(np.percentile(dark, 99))
    # what stands out far less than the other is noise
    least = LEAST_OF_OTHER * max(highest_light, highest_dark)
    edge_of_light = _edge_of_outline(light, slope, max(highest_light, least))
    edge_of_dark = _edge_of_outline(dark, slope, max(highest_dark, least))
    difference = edge_of_light - edge_of_dark
    return difference / max(edge_of_light + edge_of_dark, LEAST_ENERGY)


def _standing_out(levels: Grey) -> Grey:
    """Return how far each pixel (h, w) stands out, 0 where it does not, without noise."""
    return ndimage.gaussian_filter(np.maximum(levels, 0), 0.7)


def _edge_of_outline(out: Grey, slope: Grey, highest: float) -> float:
    """Return how much edge there is around what stands out: its sum, times the share that has any.

    Args:
        out: how far each pixel stands out, (h, w), in levels.
        slope: levels a pixel at each pixel, (h, w).
        highest: how far strokes stand out.
    """
    mark = out > highest / 2
    outline = ndimage.binary_dilation(mark) & ~ndimage.binary_erosion(mark, border_value=1)
    if not outline.any():
        return 0.0
    slope_there = slope[outline]
    has_edge = slope_there > LEAST_SLOPE * highest
    return float(slope_there.sum() * has_edge.mean())


def _is_even(grey: Grey) -> bool:
    """Return whether the paper at the border has the same brightness all along it."""
    border = ring(grey)
    if _spread(border) >= 3:
        return False
    if max(grey.shape) <= SMALL:
        return True
    # strokes that cross the border are narrower than this, a shadow or a table is not
    window = _odd(min(grey.shape) // WIDEST_STROKE)
    levels = [ndimage.median_filter(edge, window) for edge in _edges(grey)]
    extent = np.ptp(np.concatenate(levels))
    return float(extent) < FAINTEST


def find_ink(
    grey: Grey,
    widest: int = WIDEST_STROKE,
    least_rule: tuple[float, float] = LEAST_RULE,
    *,
    is_light: bool | None = None,
) -> Ink:
    """Find ink of either polarity.

    Args:
        grey: brightness (h, w), 0 to 255.
        widest: the widest stroke is this part of the longer side: 1 in so many.
        least_rule: which part of the width of the view a ruled line covers at least, and of the
            height an upright one.
        is_light: whether strokes are lighter than the paper, where a wider view has said so; None:
            it is found out, which takes most of the time.

    Raises:
        ImageError: if no stroke stands out from the paper, or there are more marks than numbers
            have.
    """
    is_even = _is_even(grey)
    if is_even:
        out = _apart_from_border(grey)
    else:
        if is_light is None:
            is_light = _is_light(grey, widest)
        out = _relief(grey, widest, is_light=is_light)
    noise = _spread(ring(out))
    floor = NOISE_SPREADS * noise
    ink = np.maximum(out, 0).astype(np.float32)
    smooth, cut = _cut(ink, widest)
    inky = smooth > cut
    _check_count(inky)
    lines = _ruled_lines(smooth > _lower_cut(cut, floor), least_rule)
    unruled = inky & ~lines
    is_written_on = unruled.sum() >= LEAST_LEFT * inky.sum()
    strokes_alone = ink
    if lines.any() and is_written_on:
        strokes_alone = np.where(lines, 0, ink)
    if not is_even:
        strokes_alone = _without_ink_of_frame(strokes_alone, widest, floor)
    # where nothing was taken away the level of strokes is found already
    if strokes_alone is not ink:
        ink = strokes_alone
        smooth, cut = _cut(ink, widest)
        inky = smooth > cut
    marks: Numbered
    marks, _ = ndimage.label(smooth > _lower_cut(cut, floor), EIGHT)
    if not is_even:
        marks = _without_frame(marks)
        inky &= marks > 0
    full = _full_level(ink, inky)
    # what is left of a shadow's edge
    most_touching = 0.2
    if is_even:
        # a tight crop
        most_touching = 0.4
    is_noise = full < LEAST_CONTRAST * noise
    touching = ring(inky).mean()
    if is_noise or touching > most_touching:
        raise ImageError(
            "shows no digit on a plain background; leave an even margin around the digit"
        )
    inky_marks = np.unique(marks[inky])
    is_stroke = np.isin(marks, inky_marks)
    strokes = is_stroke & (marks > 0)
    darkness = (ink - floor) / (full - floor)
    return Ink(np.clip(darkness, 0, 1), strokes, is_light)


def _apart_from_border(grey: Grey) -> Grey:
    """Return how far strokes of either polarity stand out from paper in even light."""
    paper = np.float32(np.median(ring(grey)))
    apart = grey - paper
    precise = apart.astype(np.float64)
    skewness = (precise**3).sum()
    return np.asarray(apart * np.sign(skewness))


def _full_level(ink: Grey, inky: Mask) -> float:
    """Return how far full strokes stand out from paper; raises ImageError if hardly at all."""
    full = 0.0
    if inky.any():
        full = float(np.percentile(ink[inky], 70))
    if full < FAINTEST:
        raise ImageError(
            "is blank: no stroke stands out from the background; write or scan it darker"
        )
    return full


def _lower_cut(cut: float, floor: float) -> float:
    """Return the level of the faint ends of strokes: under the cut, above the noise."""
    return max(cut / 2, min(floor, cut))


def _check_count(inky: Mask) -> None:
    """Raise ImageError if there are more marks than numbers have."""
    _, count = ndimage.label(inky, EIGHT)
    if count > MOST_MARKS:
        # how many more is not known: in a large picture those that lie close run together
        raise ImageError(
            f"holds over {MOST_MARKS:,} marks, as text or noise do; numbers have fewer: crop it"
        )


def _cut(ink: Grey, widest: int) -> tuple[Grey, float]:
    """Smooth away what is finer than a stroke, and find the level that parts ink from paper."""
    smooth = ink
    longer = max(ink.shape)
    if longer > 60:
        smooth = ndimage.gaussian_filter(ink, longer / (75 * widest))
    # skimage returns the centre of paper's last bin; its upper edge, half a bin up, parts better
    centre = float(threshold_otsu(smooth, nbins=128))
    half_a_bin = float(np.ptp(smooth)) / 256
    return smooth, centre + half_a_bin


def _ruled_lines(inked: Mask, least: tuple[float, float]) -> Mask:
    """Find the lines of ruled and squared paper: thin, straight, from the frame across the view.

    Where a stroke crosses a line, the line's pixels belong to the stroke.
    """
    if max(inked.shape) <= SMALL:
        return np.zeros_like(inked)
    least_across, least_down = least
    level = _rules(inked, least_across)
    upright = _rules(inked.T, least_down).T
    return level | upright


def _rules(inked: Mask, least: float) -> Mask:
    """Find the ruled lines that run from left to right, at least a part of the way."""
    height, width = inked.shape
    widest = math.ceil(0.03 * max(height, width))
    thin = inked & ~opened_by_square(inked, widest + 1)
    rows, columns = np.mgrid[:height, :width]
    found = np.zeros_like(inked)
    thickest = 0.0
    for slope, distance in _straight_lines(thin):
        across = columns * np.cos(slope)
        down = rows * np.sin(slope)
        away = np.abs(across + down - distance)
        near = away <= 1.5
        line = thin & near
        covered = line.any(axis=0)
        # a stroke hides the line that it crosses
        reach = (inked & near).any(axis=0)
        starts_at_frame = covered[:3].any()
        ends_at_frame = covered[-3:].any()
        is_long = reach.mean() >= least
        is_seen = covered.mean() >= LEAST_SEEN
        if (starts_at_frame or ends_at_frame) and is_long and is_seen:
            thickness = line.sum() / covered.sum()
            thickest = max(thickest, thickness)
            found |= away <= thickness / 2 + 0.6
    # strokes above and below a line are joined across it: what lies between is theirs
    reach_of_strokes = math.ceil(thickest) + 3
    column = np.ones((reach_of_strokes, 1), np.bool_)
    strokes = inked & ~found
    joined = ndimage.binary_closing(strokes, column)
    crossings = joined & inked
    return found & ~crossings


def opened_by_square(mask: Mask, side: int) -> Mask:
    """Return a mask without what a square does not fit into, as ``ndimage.binary_opening`` does.

    Along one axis and then the other, as scipy opens grey levels, a large square takes a twentieth
    of the time.

    Args:
        mask: shape (h, w).
        side: side of the square, in pixels.
    """
    opened = ndimage.grey_opening(mask.astype(np.uint8), (side, side), mode="constant")
    return np.asarray(opened > 0)


def closed_by_disc(plane: Grey, side: int) -> Grey:
    """Return a plane without what is dark and narrower than a disc.

    A disc fits into the corner of a shadow where a square does not. The same function of a negative
    plane takes away what is light.

    Args:
        plane: shape (h, w). Its outermost ``side - 1`` pixels on all sides are margin: what comes
            out there means nothing.
        side: width of the disc, in pixels, odd.
    """
    dilated = _highest_in_disc(plane, side)
    return -_highest_in_disc(-dilated, side)


def _highest_in_disc(plane: Grey, side: int) -> Grey:
    """Return the greatest level in a disc around each pixel of a plane (h, w).

    The disc is a polygon of 16 sides, the sum of eight lines. At some widths it is the very disc
    that skimage puts together of lines, at others some pixels of its edge differ. A filter along a
    line takes the same time however long the line is. From a width of 35 on, a closing takes a
    third of skimage's time.

    Args:
        plane: its outermost pixels are margin, see :func:`closed_by_disc`.
        side: width of the disc, in pixels, odd.
    """
    lines = _Lines.of_disc(side)
    for axis in (0, 1):
        plane = ndimage.maximum_filter1d(plane, lines.straight + 1, axis=axis)
    width = plane.shape[1]
    # from a pixel to the next of a line, counted along the rows: a row is ``width`` pixels
    diagonals = (width - 1, width + 1)
    steep_and_flat = (2 * width - 1, 2 * width + 1, width - 2, width + 2)
    for step in diagonals:
        plane = _highest_in_steps(plane, step, lines.diagonal)
    for step in steep_and_flat:
        plane = _highest_in_steps(plane, step, lines.slanted)
    return plane


def _highest_in_steps(plane: Grey, step: int, steps: int) -> Grey:
    """Return the greatest level along a slanted line around each pixel.

    Args:
        plane: shape (h, w).
        step: pixels from one to the next of the line, counted along the rows.
        steps: length of the line, an even number.
    """
    missing = -plane.size % step
    pixels = np.pad(plane.ravel(), (0, missing), mode="edge")
    columns = pixels.reshape(-1, step)
    highest = ndimage.maximum_filter1d(columns, steps + 1, axis=0)
    return np.asarray(highest.ravel()[: plane.size].reshape(plane.shape))


@dataclass(frozen=True)
class _Lines:
    """The lines whose sum is a disc, by how many steps they have, an even number.

    Attributes:
        straight: Of the lines along the axes.
        diagonal: Of the two lines that go a row and a column further at each step.
        slanted: Of the four that go two rows and a column, or a row and two columns.
    """

    straight: int
    diagonal: int
    slanted: int

    @classmethod
    def of_disc(cls, side: int) -> "_Lines":
        """Choose lines of about the same length, whose extents along an axis make up the width.

        Args:
            side: width of the disc, in pixels, odd.
        """
        extent = side - 1
        length = extent / (1 + 2 / math.sqrt(2) + EXTENT_OF_SLANTED / math.sqrt(5))
        # two steps are left for the lines along the axes, which fill the gaps between the others
        most_slanted = (extent - 2) // (2 * EXTENT_OF_SLANTED)
        slanted = 2 * min(round(length / math.sqrt(5) / 2), most_slanted)
        rest = extent - EXTENT_OF_SLANTED * slanted
        most_diagonal = (rest - 2) // 4
        diagonal = 2 * min(round(rest / (2 + math.sqrt(2)) / 2), most_diagonal)
        return cls(rest - 2 * diagonal, diagonal, slanted)


def _straight_lines(thin: Mask) -> list[tuple[float, float]]:
    """Return the straight lines of a mask, nearly level: the slope and the distance of each."""
    # the angle is that of the line's normal
    normals = np.pi / 2 + np.radians(SLOPES)
    votes, angles, distances = hough_line(thin, normals)
    _, slopes, offsets = hough_line_peaks(
        votes,
        angles,
        distances,
        min_distance=3,
        min_angle=1,
        threshold=LEAST_SEEN * thin.shape[1],
        num_peaks=MOST_LINES,
    )
    return list(zip(slopes, offsets, strict=True))


def _without_frame(marks: Numbered) -> Numbered:
    """Drop marks along the frame that are longer than a stroke is wide, in a corner, or solid.

    Such a mark is a sheet's edge, a shadow's corner, a dark corner, a finger or another thing. A
    digit that is cut tightly stays where there is nothing else.
    """
    is_frame = np.zeros(marks.max() + 1, np.bool_)
    for edge in _edges(marks):
        counts = np.bincount(edge, minlength=len(is_frame))
        is_frame |= counts / len(edge) >= MOST_ALONG
    is_frame[_small_corners(marks)] = True
    is_frame[_solid_at_edge(marks)] = True
    is_frame[0] = False
    rest = np.where(is_frame[marks], 0, marks)
    if not rest.any():
        return marks
    return rest


def _solid_at_edge(marks: Numbered) -> list[int]:
    """Return the numbers of marks that reach the frame and are deeper than strokes are."""
    boxes = ndimage.find_objects(marks)
    at_edge = np.unique(np.concatenate(_edges(marks)))
    found = []
    for number in at_edge[at_edge > 0]:
        mark = marks[boxes[number - 1]] == number
        depth = ndimage.distance_transform_edt(np.pad(mark, 1))
        if depth.max() > DEEPEST * max(mark.shape):
            found.append(int(number))
    return found


def _without_ink_of_frame(ink: Grey, widest: int, floor: float) -> Grey:
    """Return ink without the marks that :func:`_without_frame` drops.

    How dark they are says nothing about strokes: a black corner of a photo would hide a thin pen.
    What comes to light once they are gone is looked at in the same way.

    Args:
        ink: how far each pixel stands out from paper, (h, w), from 0.
        widest: the widest stroke is this part of the longer side: 1 in so many.
        floor: the level of noise.
    """
    edge = 1 + max(ink.shape) // PAPER_SIDE
    for _ in range(MOST_FRAMES):
        smooth, cut = _cut(ink, widest)
        marks, _ = ndimage.label(smooth > _lower_cut(cut, floor), EIGHT)
        is_frame = (marks > 0) & (_without_frame(marks) == 0)
        if not is_frame.any():
            break
        with_edge = ndimage.binary_dilation(is_frame, EIGHT > 0, iterations=edge)
        ink = np.where(with_edge, 0, ink)
    return ink


def _small_corners(marks: Numbered) -> list[int]:
    """Return the numbers of marks that are small and lie in, or around, a corner of the view."""
    largest = LARGEST_CORNER * max(marks.shape)
    rows_end, columns_end = marks.shape
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(marks), start=1):
        touches_top_or_bottom = rows.start == 0 or rows.stop == rows_end
        touches_side = columns.start == 0 or columns.stop == columns_end
        height = rows.stop - rows.start
        width = columns.stop - columns.start
        if touches_top_or_bottom and touches_side and max(height, width) <= largest:
            found.append(number)
    return found
