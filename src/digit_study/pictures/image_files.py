"""Decoding of an image file of any format, mode and orientation to a plane of grey levels."""

import io
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from digit_study.support.errors import StudyError

#: Pillow's names of the formats that are read.
FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
    "JPEG2000",
    "ICO",
    "TGA",
    "AVIF",
    "HEIF",
)
#: Endings of the files that are taken from a folder.
ENDINGS = "png jpg jpeg jpe jfif gif bmp dib tif tiff webp pbm pgm ppm pnm jp2 ico tga avif"
SUFFIXES = frozenset(f".{ending}" for ending in ENDINGS.split())
#: Endings of what phones write; they are read where :data:`HEIF_PACKAGE` is installed.
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))
#: Package by which Pillow reads HEIC.
HEIF_PACKAGE = "pillow_heif"
#: What a file of HEIC begins with, after four bytes: of several brands the usual ones.
HEIF_BRANDS = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftypmif1")
#: What has to be done where such a file is met without that package.
NEEDS_HEIF = "is HEIC, which needs the package pillow-heif: pip install pillow-heif"
#: Pixels of a picture, at most: a phone's 50 megapixels pass, Pillow's own limit is 89.
MOST_PIXELS = 80_000_000
#: The same limit, as messages name it.
MOST_MEGAPIXELS = MOST_PIXELS // 10**6
#: Pixels of the shorter side, at least.
LEAST_SIDE = 5
#: Pixels of the longer side from which on a picture is averaged down: it keeps at least these.
READ_SIDE = 1000
#: EXIF's tag of the orientation.
ORIENTATION = 0x0112
#: Orientations in which width and height are exchanged. A damaged tag holds any type of value.
SIDEWAYS = (5, 6, 7, 8)
#: Longer side over shorter side of what cameras take, uncropped.
CAMERA_ASPECTS = (4 / 3, 3 / 2, 16 / 9)
#: Pixels of the longer side of an uncropped photograph, at least: messengers shrink to this.
CAMERA_SIDE = 1000
#: Weights of red, green and blue in luminance.
LUMINANCE = (0.299, 0.587, 0.114)
#: Brightest values of the usual depths: 8, 12 and 16 bits.
WHITES = (255, 4095, 65535)
#: Alpha from which on a pixel counts as opaque.
OPAQUE = 190
#: Held while a file is opened: meanwhile a warning of Pillow's is left out, in all threads.
OPENING = Lock()

#: A plane of grey levels, (h, w).
Grey = npt.NDArray[np.float32]


class ImageError(StudyError):
    """A file or picture that is not a single digit; the message says what it is instead."""


def reads_heif() -> bool:
    """Return whether the package that reads HEIC is installed."""
    return find_spec(HEIF_PACKAGE) is not None


def ring(grey: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the pixels of the outermost rows and columns.

    Args:
        grey: a plane (h, w), of any dtype.

    Returns:
        Shape (n,), of the same dtype.
    """
    return np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])


def upright_size(source: Path | bytes) -> tuple[int, int]:
    """Return width and height of a picture as it is shown, from its header alone.

    Args:
        source: an image file, or its bytes.

    Returns:
        Width and height in pixels.

    Raises:
        ImageError: if it is missing, empty, unreadable or too large.
    """
    with _open(source) as image:
        width, height = image.size
        # Pillow gives the size of a TIFF as it is shown
        is_as_shown = image.format == "TIFF"
        is_sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
    if is_sideways and not is_as_shown:
        return height, width
    return width, height


def may_lie_on_its_side(source: Path | bytes) -> bool:
    """Return whether a picture is a photograph that may lie on its side.

    A phone that is held upright stores a picture that lies on its side, with EXIF's tag of the
    orientation. Messengers drop that tag. What they leave is a JPEG in a camera's format, wider
    than high, without the tag.

    Args:
        source: an image file, or its bytes.

    Raises:
        ImageError: if it is missing, empty, unreadable or too large.
    """
    with _open(source) as image:
        width, height = image.size
        # asked first: a damaged tag of other formats raises anything
        if image.format != "JPEG" or width < CAMERA_SIDE:
            return False
        if ORIENTATION in image.getexif():
            return False
    # a side that was rounded is half a pixel off
    return any(abs(width - aspect * height) <= aspect for aspect in CAMERA_ASPECTS)


def read_grey(source: Path | bytes) -> Grey:
    """Decode an image file to a plane of grey, upright.

    Of an animation or a multi-page TIFF the first picture is read. The values of an 8-bit grey file
    stay as they are.

    Args:
        source: an image file, or its bytes.

    Returns:
        Shape (h, w), float32, 0 to 255. The longest side is under 2,000: larger pictures are
        averaged down.

    Raises:
        ImageError: if it is missing, empty, unreadable, damaged, too large or too small.
    """
    with _open(source) as file:
        width, height = file.size
        picture = _decode(file)
    if min(width, height) < LEAST_SIDE:
        raise ImageError(
            f"is too small: at least {LEAST_SIDE} pixels a side, got {width}x{height}; "
            "scan it larger"
        )
    if min(picture.size) < LEAST_SIDE:
        raise ImageError(
            f"is too narrow: at least {LEAST_SIDE} pixels a side once it is averaged down to "
            f"{READ_SIDE:,} pixels, got {width}x{height}; crop its longer side"
        )
    pixels = np.asarray(picture, np.float32)
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 4:
        pixels = _without_alpha(pixels)
    return _clearest_plane(pixels)


def _open(source: Path | bytes) -> Image.Image:
    """Read the header only, so that the size can be refused before a pixel is decoded."""
    if _byte_count(source) == 0:
        raise ImageError("is empty (0 bytes); save or copy the image again")
    # a Pillow built without a format knows no name for it
    Image.init()
    if "HEIF" not in Image.OPEN and reads_heif():
        import_module(HEIF_PACKAGE).register_heif_opener()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with OPENING, warnings.catch_warnings():
            # MOST_PIXELS is lower
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(source, bytes):
                return Image.open(io.BytesIO(source), formats=formats)
            image = Image.open(source, formats=formats)
            # a named file may be mapped into memory, which Pillow 13 does with the size that a
            # turned TIFF is shown with, not with that of its rows
            image.filename = ""
            return image
    except Image.DecompressionBombError:
        raise ImageError(
            f"is too large: over {MOST_MEGAPIXELS} megapixels; crop or shrink it"
        ) from None
    except PermissionError:
        raise ImageError("may not be read; give yourself permission (chmod u+r)") from None
    except Exception:  # Pillow's readers raise whatever a damaged header makes them raise
        start = _first_bytes(source)
        if b"<svg" in start:
            raise ImageError("is an SVG drawing, not pixels; export it as PNG") from None
        if start[4:12] in HEIF_BRANDS and not reads_heif():
            raise ImageError(f"{NEEDS_HEIF}, or save it as PNG") from None
        raise ImageError(
            "is not an image that can be read (PNG, JPEG, GIF, BMP, TIFF, WebP …); save it as PNG"
        ) from None


def _byte_count(source: Path | bytes) -> int:
    """Return the length of a file; raise ImageError if there is none."""
    if isinstance(source, bytes):
        return len(source)
    if source.is_dir() and any(entry.is_dir() for entry in source.iterdir()):
        raise ImageError("holds no image files itself; name the folders in it, such as folder/*")
    if source.is_dir():
        raise ImageError("holds no image files; name another")
    if source.suffix.lower() == ".csv":
        raise ImageError("is a table; for Kaggle, add --submission submission.csv")
    if not source.is_file():
        raise ImageError("is no file; name another")
    return source.stat().st_size


def _first_bytes(source: Path | bytes) -> bytes:
    """Return what a file begins with."""
    if isinstance(source, bytes):
        return source[:512]
    with source.open("rb") as file:
        return file.read(512)


def _decode(image: Image.Image) -> Image.Image:
    """Decode the first frame, upright.

    The result is of mode L, RGB, RGBA or F, and its longest side is about :data:`READ_SIDE`.
    """
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"is too large: at most {MOST_MEGAPIXELS} megapixels, got {width}x{height}; "
            "crop or shrink it"
        )
    scale = min(1.0, READ_SIDE / max(width, height))
    small_width = max(1, int(width * scale))
    small_height = max(1, int(height * scale))
    # a JPEG decodes at a fraction of its size, and its time
    image.draft(None, (small_width, small_height))
    try:
        image.load()
        # before all pixels are touched again
        if image.mode in ("L", "RGB") and not image.has_transparency_data:
            image = _reduced(image)
        image = ImageOps.exif_transpose(image)
    except Exception as fault:  # damaged data raise anything from OSError to struct.error
        raise ImageError(
            f"is damaged or cut short ({fault}); save or copy the image again"
        ) from None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in ("1", "L"):
        image = image.convert("L")
    else:
        image = image.convert("RGB")
    return _reduced(image)


def _reduced(image: Image.Image) -> Image.Image:
    """Average a picture down, if its longest side is at least twice :data:`READ_SIDE`."""
    factor = max(image.size) // READ_SIDE
    if factor <= 1:
        return image
    return image.reduce(factor)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Bring a picture of deeper or floating-point values to mode F, 0 to 255."""
    deep = np.nan_to_num(np.asarray(image, np.float32))
    brightest = deep.max()
    is_outside = deep.min() < 0 or brightest > WHITES[-1]
    is_fractional = brightest < 2 and not np.array_equal(deep, deep.round())
    if is_outside or is_fractional:
        low = float(deep.min())
        factor = 255 / max(float(np.ptp(deep)), 1e-9)
    else:
        # the smallest usual depth that holds the brightest pixel
        low = 0.0
        factor = 255 / next(white for white in WHITES if brightest <= white)
    levels = (deep - low) * factor
    return Image.fromarray(np.asarray(levels, np.float32))


def _without_alpha(rgba: Grey) -> Grey:
    """Return colours (h, w, 3) over a fitting paper, or the alpha where the drawing is in it."""
    colours = rgba[..., :3]
    alpha = rgba[..., 3:]
    solid = alpha[..., 0] > OPAQUE
    if solid.all():
        return colours
    # a single ink on a transparent sheet: its colour is no clue
    if not solid.any() or colours[solid].std(axis=0).max() < 25:
        return np.repeat(alpha, 3, axis=2)
    paper = np.median(colours[solid], axis=0)
    return np.asarray(paper + (colours - paper) * alpha / 255, np.float32)


def _clearest_plane(colours: Grey) -> Grey:
    """Return the luminance of colours (h, w, 3), or a channel that shows the ink far better.

    Yellow on white shows in the blue channel only.
    """
    red = colours[..., :1]
    if (colours == red).all():
        return np.asarray(colours[..., 0])
    luminance = colours @ np.array(LUMINANCE, np.float32)
    planes = [luminance, *np.moveaxis(colours, 2, 0)]
    # a fraction of the pixels shows how far apart ink and paper are
    step = max(1, max(colours.shape) // 250)
    contrast = [_contrast(plane[::step, ::step]) for plane in planes]
    best = int(np.argmax(contrast))
    if contrast[best] > 1.5 * contrast[0]:
        return np.asarray(planes[best])
    return np.asarray(luminance)


def _contrast(plane: Grey) -> np.floating[Any]:
    """Return how far the ink of a plane stands out from its border."""
    paper = np.median(ring(plane))
    contrast: np.floating[Any] = np.percentile(np.abs(plane - paper), 97)
    return contrast
