"""An image file of any format, mode and orientation to one plane of grey levels."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from digit_study.support.errors import StudyError

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "ICO", "TGA", "AVIF")
KNOWN = "png jpg jpeg jpe jfif gif bmp dib tif tiff webp pbm pgm ppm pnm jp2 ico tga avif"
SUFFIXES = frozenset(f".{name}" for name in KNOWN.split())
MOST_PIXELS = 80_000_000  # a phone's 50 megapixels pass; Pillow's own limit is 89
LEAST_SIDE, READ_SIDE = 5, 1000

#: EXIF's tag of the orientation.
ORIENTATION = 0x0112
Grey = npt.NDArray[np.float32]


class ImageError(StudyError):
    """A file or picture that is not one digit; the message says what it is instead."""


def ring(grey: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """All pixels of the outermost rows and columns of a plane (h, w), shape (n,)."""
    return np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])


def _open(source: Path | bytes) -> Image.Image:
    """Read the header only, so that the size can be refused before a pixel is decoded."""
    if isinstance(source, Path) and not source.is_file():
        raise ImageError(
            f"{'holds no image files' if source.is_dir() else 'is no file'}; name another"
        )
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise ImageError("is empty (0 bytes); save or copy the image again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MOST_PIXELS is lower
            Image.init()  # a Pillow built without one of the formats knows no name for it
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError:
        raise ImageError(
            f"is too large: over {MOST_PIXELS // 10**6} megapixels; crop or shrink it"
        ) from None
    except PermissionError:
        raise ImageError("may not be read; give yourself permission (chmod u+r)") from None
    except Exception:  # Pillow's readers raise whatever a damaged header makes them raise
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as contents:
            is_svg = b"<svg" in contents.read(512)
        why = "is not an image that can be read (PNG, JPEG, GIF, BMP, TIFF, WebP …); save it as PNG"
        raise ImageError(
            "is an SVG drawing, not pixels; export it as PNG" if is_svg else why
        ) from None


def _decode(image: Image.Image) -> Image.Image:
    """First frame, upright, in one of the modes L, RGB, RGBA or F, longest side about ``READ_SIDE``."""
    width, height = image.size
    if width * height > MOST_PIXELS:
        limit = MOST_PIXELS // 10**6
        raise ImageError(
            f"is too large: at most {limit} megapixels, got {width}x{height}; crop or shrink it"
        )
    scale = min(1.0, READ_SIDE / max(width, height))
    # a JPEG decodes at a fraction of its size, and its time
    image.draft(None, (max(1, int(width * scale)), max(1, int(height * scale))))
    try:
        image.load()
        if (
            image.mode in ("L", "RGB") and not image.has_transparency_data
        ):  # before all pixels are touched again
            image = image.reduce(max(1, max(image.size) // READ_SIDE))
        image = ImageOps.exif_transpose(image)
    except Exception as fault:  # as above: damaged data raise anything from OSError to struct.error
        raise ImageError(
            f"is damaged or cut short ({fault}); save or copy the image again"
        ) from None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep, low, factor = np.nan_to_num(np.asarray(image, np.float32)), 0.0, 1.0
        if (
            deep.min() < 0
            or deep.max() > 65535
            or (deep.max() < 2 and not np.array_equal(deep, deep.round()))
        ):
            low, factor = float(deep.min()), 255 / max(float(np.ptp(deep)), 1e-9)
        else:  # the smallest usual depth that holds the brightest pixel: 8, 12 or 16 bits
            factor = 255 / next(top for top in (255, 4095, 65535) if deep.max() <= top)
        image = Image.fromarray(np.asarray((deep - low) * factor, np.float32))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    else:
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    return image.reduce(max(1, max(image.size) // READ_SIDE))


def _without_alpha(rgba: Grey) -> Grey:
    """Colours (h, w, 3) over a fitting paper, or the alpha itself where the drawing is in the alpha."""
    colours, alpha = rgba[..., :3], rgba[..., 3:]
    solid = alpha[..., 0] > 190
    if solid.all():
        return colours
    # one ink on a transparent sheet: its colour is no clue
    if not solid.any() or colours[solid].std(axis=0).max() < 25:
        return np.repeat(alpha, 3, axis=2)
    paper = np.median(colours[solid], axis=0)
    return np.asarray(paper + (colours - paper) * alpha / 255, np.float32)


def upright_size(source: Path | bytes) -> tuple[int, int]:
    """Return width and height of a picture as it is shown, from its header alone."""
    with _open(source) as image:
        width, height = image.size
        # of the eight orientations the last four lie on their side
        is_turned = image.getexif().get(ORIENTATION, 1) >= 5
    return (height, width) if is_turned else (width, height)


def read_grey(source: Path | bytes) -> Grey:
    """Any image file, or its bytes, as one plane of grey, upright; of an animation or a multi-page TIFF the first.

    Shape (h, w), float32, 0 to 255, longest side under 2,000 (larger ones are averaged down); the values of an 8-bit
    grey file are its own. Raises ImageError if it is missing, empty, unreadable, damaged, too large or too small.
    """
    with _open(source) as file:
        picture = _decode(file)
    if min(picture.size) < LEAST_SIDE:
        width, height = picture.size
        raise ImageError(
            f"is too small: at least {LEAST_SIDE} pixels a side, got {width}x{height}; scan it larger"
        )
    pixels = np.asarray(picture, np.float32)
    if pixels.ndim == 2:
        return pixels
    colours = _without_alpha(pixels) if pixels.shape[2] == 4 else pixels
    if (colours == colours[..., :1]).all():
        return np.asarray(colours[..., 0])
    # luminance, or the one of red, green, blue that shows the ink far better (yellow on white)
    planes = [colours @ np.array([0.299, 0.587, 0.114], np.float32), *np.moveaxis(colours, 2, 0)]
    step = max(
        1, max(colours.shape) // 250
    )  # a fraction of the pixels shows how far apart ink and paper are
    coarse = [plane[::step, ::step] for plane in planes]
    contrast = [np.percentile(np.abs(plane - np.median(ring(plane))), 97) for plane in coarse]
    best = int(np.argmax(contrast))
    return np.asarray(planes[best if contrast[best] > 1.5 * contrast[0] else 0])
