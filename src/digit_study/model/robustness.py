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
Random = np.random.Generator
Corruption = Callable[[Ink, Random], Ink]
#: Images of each kind. More would take a deep network over a second.
IMAGES = 25
#: Digits that are drawn in forms that people write.
DRAWN = 175
#: Seed of the corruption. It is none of a training's.
SEED = 20_191
#: Side of the box that holds a drawn digit.
BOX = 20


def robust_accuracy(
    predict: Callable[[Pixels], npt.NDArray[np.float32]], images: Pixels, labels: Labels
) -> float:
    """Return the accuracy on corrupted images.

    Args:
        predict: A function of images (n, 28, 28, 1), uint8, to probabilities (n, 10).
        images: Validation images (n, 28, 28, 1), uint8.
        labels: Their digits (n,), int64.

    Returns:
        A share of images in [0, 1].
    """
    return float(robust_correct(predict, images, labels).mean())


def robust_correct(
    predict: Callable[[Pixels], npt.NDArray[np.float32]], images: Pixels, labels: Labels
) -> npt.NDArray[np.bool_]:
    """Return which corrupted images are predicted correctly.

    Args:
        predict: A function of images (n, 28, 28, 1), uint8, to probabilities (n, 10).
        images: Validation images (n, 28, 28, 1), uint8.
        labels: Their digits (n,), int64.

    Returns:
        Shape (m,), in the order of :func:`corrupted_images`.
    """
    corrupted, truth = corrupted_images(images.tobytes(), labels.tobytes())
    return np.asarray(predict(corrupted).argmax(axis=1) == truth)


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
    pixels = np.frombuffer(images, np.uint8).reshape(-1, IMAGE_SIDE, IMAGE_SIDE)
    digits = np.frombuffer(labels, np.int64)
    random = np.random.default_rng(SEED)
    found = []
    truth = []
    for corrupt in KINDS:
        chosen = random.integers(len(digits), size=IMAGES)
        ink = pixels[chosen].astype(np.float32) / 255
        found.append(corrupt(ink, random))
        truth.append(digits[chosen])
    wanted = np.arange(DRAWN) % CLASSES
    found.append(_drawn(wanted, random))
    truth.append(wanted)
    whole = np.clip(np.concatenate(found), 0, 1)
    return np.round(255 * whole).astype(np.uint8)[..., np.newaxis], np.concatenate(truth)


def shot_noise(ink: Ink, random: Random) -> Ink:
    """Count photons."""
    return np.asarray(random.poisson(ink * 8) / 8, np.float32)


def glass_blur(ink: Ink, random: Random) -> Ink:
    """Exchange pixels with near ones, and blur."""
    rows, columns = np.mgrid[:IMAGE_SIDE, :IMAGE_SIDE]
    moves = random.integers(-1, 2, (2, *ink.shape))
    y = np.clip(rows + moves[0], 0, IMAGE_SIDE - 1)
    x = np.clip(columns + moves[1], 0, IMAGE_SIDE - 1)
    number = np.arange(len(ink))[:, None, None]
    return np.asarray(ndimage.gaussian_filter(ink[number, y, x], (0, 0.6, 0.6)))


def motion_blur(ink: Ink, random: Random) -> Ink:
    """Move the camera along one direction."""
    return np.asarray(ndimage.uniform_filter1d(ink, 4, axis=int(random.integers(1, 3))))


def defocus(ink: Ink, random: Random) -> Ink:
    """Blur evenly."""
    return np.asarray(ndimage.gaussian_filter(ink, (0, 1.2, 1.2)))


def _moved(ink: Ink, matrices: npt.NDArray[np.float64], shifts: npt.NDArray[np.float64]) -> Ink:
    """Map images about their centre by matrices (n, 2, 2) and shifts (n, 2), output to input."""
    centre = (IMAGE_SIDE - 1) / 2
    moved = np.empty_like(ink)
    for number, (image, matrix, shift) in enumerate(zip(ink, matrices, shifts, strict=True)):
        offset = centre - matrix @ np.array([centre, centre]) + shift
        moved[number] = ndimage.affine_transform(image, matrix, offset, order=1)
    return moved


def shear(ink: Ink, random: Random) -> Ink:
    """Slant to either side."""
    matrices = np.tile(np.eye(2), (len(ink), 1, 1))
    matrices[:, 1, 0] = random.choice([-0.5, 0.5], len(ink))
    return _moved(ink, matrices, np.zeros((len(ink), 2)))


def scale(ink: Ink, random: Random) -> Ink:
    """Shrink and stretch."""
    sizes = random.uniform(0.85, 1.6, (len(ink), 2))
    return _moved(ink, sizes[:, :, None] * np.eye(2), np.zeros((len(ink), 2)))


def rotate(ink: Ink, random: Random) -> Ink:
    """Turn by up to 30 degrees."""
    angles = np.radians(random.uniform(-30, 30, len(ink)))
    cos = np.cos(angles)
    sin = np.sin(angles)
    matrices = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    return _moved(ink, matrices, np.zeros((len(ink), 2)))


def translate(ink: Ink, random: Random) -> Ink:
    """Move by up to four pixels."""
    matrices = np.tile(np.eye(2), (len(ink), 1, 1))
    return _moved(ink, matrices, random.uniform(-4, 4, (len(ink), 2)))


def spatter(ink: Ink, random: Random) -> Ink:
    """Spill drops."""
    drops = ndimage.gaussian_filter(random.normal(size=ink.shape), (0, 1, 1))
    drops = np.clip((drops - 2.2 * drops.std()) * 8, 0, 1)
    return np.asarray(np.maximum(ink, drops), np.float32)


def dotted_line(ink: Ink, random: Random) -> Ink:
    """Draw a dotted line from the left edge to the right."""
    crossed = ink.copy()
    for image in crossed:
        heights = random.integers(2, IMAGE_SIDE - 2, 3)
        rows, columns = line(heights[0], 0, heights[2], IMAGE_SIDE - 1)
        image[rows[::3], columns[::3]] = 1
    return crossed


def zigzag(ink: Ink, random: Random) -> Ink:
    """Draw a bent line from the left edge to the right."""
    crossed = ink.copy()
    middle = IMAGE_SIDE // 2
    for image in crossed:
        left, bend, right = random.integers(2, IMAGE_SIDE - 2, 3)
        image[line(left, 0, bend, middle)] = 1
        image[line(bend, middle, right, IMAGE_SIDE - 1)] = 1
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
    blocks = ink.reshape(-1, half, 2, half, 2).mean(axis=(2, 4)) > 0.35
    return np.asarray(blocks.repeat(2, axis=1).repeat(2, axis=2), np.float32)


def binarised(ink: Ink, random: Random) -> Ink:
    """Draw in black and white."""
    thresholds = random.uniform(0.2, 0.7, (len(ink), 1, 1))
    return np.asarray(ink > thresholds, np.float32)


def faint(ink: Ink, random: Random) -> Ink:
    """Write with a pencil that skips."""
    grain = ndimage.gaussian_filter(random.normal(size=ink.shape), (0, 1, 1))
    pressure = np.clip(0.6 + 0.8 * grain / grain.std() / 2, 0.1, 1)
    return np.asarray(ink * pressure, np.float32)


def elastic(ink: Ink, random: Random) -> Ink:
    """Bend like rubber."""
    shifts = ndimage.gaussian_filter(random.normal(size=(2, *ink.shape)), (0, 0, 4, 4))
    shifts *= 2.0 / shifts.std()
    coordinates = np.mgrid[: len(ink), :IMAGE_SIDE, :IMAGE_SIDE].astype(np.float64)
    coordinates[1:] += shifts
    return np.asarray(ndimage.map_coordinates(ink, coordinates, order=1), np.float32)


def _drawn(labels: Labels, random: Random) -> Ink:
    """Draw digits in forms that people write and MNIST hardly has."""
    drawn = np.zeros((len(labels), IMAGE_SIDE, IMAGE_SIDE), np.float32)
    # pixels of the canvas per pixel of the image
    fine = 4
    for image, label in zip(drawn, labels, strict=True):
        ends = pen.cut(pen.FORMS[label](random))
        width = random.uniform(1.3, 3.0)
        slant = random.normal(0, 0.15)
        ends = np.stack([ends[..., 0] - slant * ends[..., 1], ends[..., 1]], axis=-1)
        longer = (ends.max(axis=(0, 1)) - ends.min(axis=(0, 1))).max()
        centred = (ends - ends.mean(axis=(0, 1))) / longer * (BOX - width)
        points = np.round(fine * (centred + IMAGE_SIDE / 2)).astype(int)
        is_paper = np.ones((fine * IMAGE_SIDE, fine * IMAGE_SIDE), np.bool_)
        for start, stop in np.clip(points, 0, fine * IMAGE_SIDE - 1):
            rows, columns = line(start[1], start[0], stop[1], stop[0])
            is_paper[rows, columns] = False
        inked = ndimage.distance_transform_edt(is_paper) <= fine * width / 2
        image[:] = inked.reshape(IMAGE_SIDE, fine, IMAGE_SIDE, fine).mean(axis=(1, 3))
    return drawn


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
