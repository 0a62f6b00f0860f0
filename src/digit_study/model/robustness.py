"""Accuracy of a network on corrupted images: the metric ``robust_accuracy``.

Some kinds of corruption are those of MNIST-C (N. Mu, J. Gilmer 2019, arXiv 1906.02337). The others
are what people vary when they write: pens, drawings of few pixels, forms that MNIST hardly has. The
same validation images give the same corrupted images in every run. A further kind is a function and
an entry in :data:`KINDS`.

Five kinds of MNIST-C are left out: fog, brightness, stripes, edges and impulse noise. They change
the paper, which the front end of ``predict.py`` makes white before a network sees it. Without them
the metric ranks networks as digits that people wrote do, see docs/performance.md.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.draw import line

from digit_study.data.sources import CLASSES, IMAGE_SIDE, Labels, Pixels
from digit_study.model import pen

#: Images (n, 28, 28), 0 (paper) to 1 (ink).
Ink = npt.NDArray[np.floating[Any]]
#: Numbers of double precision, of any shape.
Floats = npt.NDArray[np.float64]
Random = np.random.Generator
Corruption = Callable[[Ink, Random], Ink]
#: Images of each kind. More would take a deep network over a second.
IMAGES = 25
#: Digits that are drawn in forms that people write.
DRAWN = 175
#: Seed of the corruption. It is none of a training's.
SEED = 20_191
#: Pixels of the canvas, along a side, per pixel of a drawn digit.
CANVAS_SCALE = 4


def robust_correct(
    predict: Callable[[Pixels], npt.NDArray[np.float32]],
    images: Pixels,
    labels: Labels,
) -> npt.NDArray[np.bool_]:
    """Return which corrupted images are predicted correctly.

    Args:
        predict: A function of images (n, 28, 28, 1), uint8, to probabilities (n, 10).
        images: Validation images (n, 28, 28, 1), uint8.
        labels: Their digits (n,), int64.

    Returns:
        Shape (m,), in the order of :func:`corrupted_images`.
    """
    # bytes, because the results are cached by them
    corrupted, truth = corrupted_images(images.tobytes(), labels.tobytes())
    predicted = predict(corrupted).argmax(axis=1)
    return np.asarray(predicted == truth)


@lru_cache(maxsize=1)
def corrupted_images(images: bytes, labels: bytes) -> tuple[Pixels, Labels]:
    """Corrupt validation images in every way.

    Args:
        images: Bytes of the images (n, 28, 28, 1), uint8.
        labels: Bytes of their digits (n,), int64.

    Returns:
        Images (m, 28, 28, 1), uint8, and their digits (m,), int64. There are :data:`IMAGES` images
        of each kind, then :data:`DRAWN` digits drawn by a pen.
    """
    pixels = np.frombuffer(images, np.uint8)
    pixels = pixels.reshape(-1, IMAGE_SIDE, IMAGE_SIDE)
    digits = np.frombuffer(labels, np.int64)
    random = np.random.default_rng(SEED)
    found: list[Ink] = []
    truth: list[Labels] = []
    for corrupt in KINDS:
        chosen = random.integers(len(digits), size=IMAGES)
        ink = pixels[chosen].astype(np.float32) / 255
        found.append(corrupt(ink, random))
        truth.append(digits[chosen])
    wanted = np.arange(DRAWN) % CLASSES
    found.append(_drawn(wanted, random))
    truth.append(wanted)
    ink = np.clip(np.concatenate(found), 0, 1)
    corrupted = np.round(255 * ink).astype(np.uint8)
    return corrupted[..., np.newaxis], np.concatenate(truth)


def shot_noise(ink: Ink, random: Random) -> Ink:
    """Count photons."""
    photons = random.poisson(ink * 8)
    return np.asarray(photons / 8, np.float32)


def glass_blur(ink: Ink, random: Random) -> Ink:
    """Exchange pixels with near ones, and blur."""
    rows, columns = np.mgrid[:IMAGE_SIDE, :IMAGE_SIDE]
    down, across = random.integers(-1, 2, (2, *ink.shape))
    last = IMAGE_SIDE - 1
    y = np.clip(rows + down, 0, last)
    x = np.clip(columns + across, 0, last)
    number = np.arange(len(ink))[:, None, None]
    exchanged = ink[number, y, x]
    blurred = ndimage.gaussian_filter(exchanged, (0, 0.6, 0.6))
    return np.asarray(blurred)


def motion_blur(ink: Ink, random: Random) -> Ink:
    """Move the camera along one direction."""
    axis = int(random.integers(1, 3))
    return np.asarray(ndimage.uniform_filter1d(ink, 4, axis=axis))


def defocus(ink: Ink, random: Random) -> Ink:
    """Blur evenly."""
    return np.asarray(ndimage.gaussian_filter(ink, (0, 1.2, 1.2)))


def _identities(count: int) -> Floats:
    """Return matrices (count, 2, 2) that leave images as they are."""
    return np.tile(np.eye(2), (count, 1, 1))


def _no_shifts(count: int) -> Floats:
    """Return shifts (count, 2) of 0."""
    return np.zeros((count, 2))


def _smooth_noise(shape: tuple[int, ...], random: Random) -> Floats:
    """Draw noise (n, h, w) whose grain is about a pixel wide."""
    noise = random.normal(size=shape)
    return np.asarray(ndimage.gaussian_filter(noise, (0, 1, 1)))


def _moved(ink: Ink, matrices: Floats, shifts: Floats) -> Ink:
    """Map images about their centre by matrices (n, 2, 2) and shifts (n, 2), output to input."""
    middle = (IMAGE_SIDE - 1) / 2
    centre = np.array([middle, middle])
    moved = np.empty_like(ink)
    for target, image, matrix, shift in zip(moved, ink, matrices, shifts, strict=True):
        offset = middle - matrix @ centre + shift
        target[:] = ndimage.affine_transform(image, matrix, offset, order=1)
    return moved


def shear(ink: Ink, random: Random) -> Ink:
    """Slant to either side."""
    count = len(ink)
    matrices = _identities(count)
    matrices[:, 1, 0] = random.choice([-0.5, 0.5], count)
    return _moved(ink, matrices, _no_shifts(count))


def scale(ink: Ink, random: Random) -> Ink:
    """Shrink and stretch."""
    count = len(ink)
    sizes = random.uniform(0.85, 1.6, (count, 2))
    matrices = sizes[:, :, None] * np.eye(2)
    return _moved(ink, matrices, _no_shifts(count))


def rotate(ink: Ink, random: Random) -> Ink:
    """Turn by up to 30 degrees."""
    count = len(ink)
    degrees = random.uniform(-30, 30, count)
    angles = np.radians(degrees)
    cos = np.cos(angles)
    sin = np.sin(angles)
    first_rows = np.stack([cos, -sin], axis=1)
    second_rows = np.stack([sin, cos], axis=1)
    matrices = np.stack([first_rows, second_rows], axis=1)
    return _moved(ink, matrices, _no_shifts(count))


def translate(ink: Ink, random: Random) -> Ink:
    """Move by up to four pixels."""
    count = len(ink)
    shifts = random.uniform(-4, 4, (count, 2))
    return _moved(ink, _identities(count), shifts)


def spatter(ink: Ink, random: Random) -> Ink:
    """Spill drops."""
    noise = _smooth_noise(ink.shape, random)
    # only the peaks of the noise are drops
    least = 2.2 * noise.std()
    drops = np.clip((noise - least) * 8, 0, 1)
    return np.asarray(np.maximum(ink, drops), np.float32)


def dotted_line(ink: Ink, random: Random) -> Ink:
    """Draw a dotted line from the left edge to the right."""
    crossed = ink.copy()
    for image in crossed:
        # the second of the three is of no use, but without it all later images would be others
        left, _, right = random.integers(2, IMAGE_SIDE - 2, 3)
        rows, columns = line(left, 0, right, IMAGE_SIDE - 1)
        image[rows[::3], columns[::3]] = 1
    return crossed


def zigzag(ink: Ink, random: Random) -> Ink:
    """Draw a bent line from the left edge to the right."""
    crossed = ink.copy()
    middle = IMAGE_SIDE // 2
    last = IMAGE_SIDE - 1
    for image in crossed:
        left, bend, right = random.integers(2, IMAGE_SIDE - 2, 3)
        first_half = line(left, 0, bend, middle)
        second_half = line(bend, middle, right, last)
        image[first_half] = 1
        image[second_half] = 1
    return crossed


def thin_pen(ink: Ink, random: Random) -> Ink:
    """Make strokes thinner."""
    eroded = ndimage.grey_erosion(ink, (1, 2, 2))
    return np.asarray(0.25 * ink + 0.75 * eroded, np.float32)


def thick_pen(ink: Ink, random: Random) -> Ink:
    """Make strokes thicker."""
    return np.asarray(ndimage.grey_dilation(ink, (1, 3, 3)))


def blocky(ink: Ink, random: Random) -> Ink:
    """Draw in black and white, in blocks of two pixels."""
    half = IMAGE_SIDE // 2
    blocks = ink.reshape(-1, half, 2, half, 2)
    is_inked = blocks.mean(axis=(2, 4)) > 0.35
    rows = is_inked.repeat(2, axis=1)
    pixels = rows.repeat(2, axis=2)
    return np.asarray(pixels, np.float32)


def binarised(ink: Ink, random: Random) -> Ink:
    """Draw in black and white."""
    thresholds = random.uniform(0.2, 0.7, (len(ink), 1, 1))
    return np.asarray(ink > thresholds, np.float32)


def faint(ink: Ink, random: Random) -> Ink:
    """Write with a pencil that skips."""
    grain = _smooth_noise(ink.shape, random)
    variation = 0.8 * grain / grain.std() / 2
    pressure = np.clip(0.6 + variation, 0.1, 1)
    return np.asarray(ink * pressure, np.float32)


def elastic(ink: Ink, random: Random) -> Ink:
    """Bend like rubber."""
    noise = random.normal(size=(2, *ink.shape))
    shifts = ndimage.gaussian_filter(noise, (0, 0, 4, 4))
    # by two pixels, as a standard deviation
    shifts *= 2.0 / shifts.std()
    grid = np.mgrid[: len(ink), :IMAGE_SIDE, :IMAGE_SIDE]
    coordinates = grid.astype(np.float64)
    # the first coordinate is the number of the image
    coordinates[1:] += shifts
    bent = ndimage.map_coordinates(ink, coordinates, order=1)
    return np.asarray(bent, np.float32)


def _drawn(labels: Labels, random: Random) -> Ink:
    """Draw digits in forms that people write and MNIST hardly has."""
    drawn = np.zeros((len(labels), IMAGE_SIDE, IMAGE_SIDE), np.float32)
    for image, label in zip(drawn, labels, strict=True):
        form = pen.FORMS[label]
        ends = pen.cut(form(random))
        width = random.uniform(1.3, 3.0)
        slant = random.normal(0, 0.15)
        x = ends[..., 0]
        y = ends[..., 1]
        slanted = np.stack([x - slant * y, y], axis=-1)
        image[:] = _inked(slanted, width)
    return drawn


def _inked(ends: npt.NDArray[np.floating[Any]], width: float) -> Ink:
    """Draw pieces (k, 2, 2) with a round pen of a width in pixels, scaled to the box of a digit."""
    low = ends.min(axis=(0, 1))
    high = ends.max(axis=(0, 1))
    longer = (high - low).max()
    middle = ends.mean(axis=(0, 1))
    centred = (ends - middle) / longer * (pen.BOX - width)
    # on a canvas of smaller pixels, whose means are the grey levels of the image
    side = CANVAS_SCALE * IMAGE_SIDE
    points = np.round(CANVAS_SCALE * (centred + IMAGE_SIDE / 2)).astype(int)
    is_paper = np.ones((side, side), np.bool_)
    for (start_x, start_y), (stop_x, stop_y) in np.clip(points, 0, side - 1):
        rows, columns = line(start_y, start_x, stop_y, stop_x)
        is_paper[rows, columns] = False
    distance = ndimage.distance_transform_edt(is_paper)
    is_inked = distance <= CANVAS_SCALE * width / 2
    pixels = is_inked.reshape(IMAGE_SIDE, CANVAS_SCALE, IMAGE_SIDE, CANVAS_SCALE)
    return np.asarray(pixels.mean(axis=(1, 3)))


#: All kinds of corruption. Digits drawn by a pen come on top.
KINDS: tuple[Corruption, ...] = (
    shot_noise,
    glass_blur,
    motion_blur,
    defocus,
    shear,
    scale,
    rotate,
    translate,
    spatter,
    dotted_line,
    zigzag,
    thin_pen,
    thick_pen,
    blocky,
    binarised,
    faint,
    elastic,
)
