"""Readers of files of digits other than Keras's mnist.npz.

That is Kaggle's CSV (``train.csv`` of Digit Recognizer, and tables laid out like it), the IDX files
of MNIST's own page, and a folder with a subfolder of pictures for each digit. A further format is a
function and an entry in :data:`READERS`.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from digit_study.support.errors import StudyError

Pixels = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
#: Images (n, 28, 28), uint8, and labels (n,).
Table = tuple[Pixels, Numbers]

SIDE = 28
#: Side of the box that holds the digit in MNIST's images.
BOX = 20
CLASSES = 10
#: How the names of MNIST's own files begin, by part.
IDX_PREFIXES = {"train": "train", "test": "t10k"}
#: IDX's code of unsigned bytes.
UNSIGNED_BYTES = 8
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm")


def missing_test(path: Path) -> StudyError:
    """Return the error of digits that come without a test set."""
    return StudyError(
        f"the digits of {path} come without a test set, so nothing that is trained on them can be "
        "promoted: use data with one, such as MNIST's"
    )


def reader_of(path: Path) -> Callable[[Path, str], Table] | None:
    """Return the reader of a path; None for an npz, and for what is none of the formats."""
    if path.is_dir():
        return read_idx if _idx_file(path, "train", "images") is not None else read_folder
    return next((reader for ending, reader in READERS.items() if path.name.endswith(ending)), None)


def read_csv(path: Path, part: str) -> Table:
    """Read a table with a row an image: its label, and 784 grey levels from 0 to 255.

    Args:
        path: a CSV file, with a line of names (Kaggle's) or without.
        part: ``train``; such a file has no test set.

    Returns:
        Images (n, 28, 28) and labels (n,).

    Raises:
        StudyError: if the file is laid out otherwise, or ``part`` is ``test``.
    """
    if part == "test":
        raise missing_test(path)
    table = _csv_table(path)
    if table.shape[1] != 1 + SIDE * SIDE:
        raise StudyError(
            f"`data.path` must be a CSV file with a label and {SIDE * SIDE} pixels a row, got "
            f"{table.shape[1]} columns in {path}: it is Kaggle's train.csv that holds the labels"
        )
    return _images(table[:, 1:], path), table[:, 0].astype(np.int64)


def read_unlabelled_csv(path: Path) -> Pixels:
    """Read a table of images without labels, as Kaggle's ``test.csv``.

    Args:
        path: a CSV file with 784 grey levels a row, with a line of names or without.

    Returns:
        Images (n, 28, 28), uint8.

    Raises:
        StudyError: if the file is laid out otherwise.
    """
    table = _csv_table(path)
    if table.shape[1] != SIDE * SIDE:
        raise StudyError(
            f"a CSV file to be predicted must have {SIDE * SIDE} pixels a row and no label, as "
            f"Kaggle's test.csv, got {table.shape[1]} columns: {path}"
        )
    return _images(table, path)


def _csv_table(path: Path) -> npt.NDArray[np.float64]:
    import pandas as pd

    try:
        first = pd.read_csv(path, header=None, nrows=1, dtype=str)
        has_names = not all(str(value).strip().isdecimal() for value in first.iloc[0])
        table = pd.read_csv(path, header=0 if has_names else None)
        return table.to_numpy(np.float64)
    except (OSError, ValueError, UnicodeError) as fault:  # pandas' own errors are ValueErrors
        reason = str(fault).splitlines()[0]
        raise StudyError(f"a CSV file must hold whole numbers, got {path}: {reason}") from None


def _images(rows: npt.NDArray[np.float64], path: Path) -> Pixels:
    if not np.isfinite(rows).all() or rows.min(initial=0) < 0 or rows.max(initial=0) > 255:
        raise StudyError(f"the pixels of a CSV file must be numbers from 0 to 255: {path}")
    return rows.astype(np.uint8).reshape(-1, SIDE, SIDE)


def read_idx(path: Path, part: str) -> Table:
    """Read MNIST's own files, compressed or not.

    Args:
        path: the folder of the files, or the file of the training images.
        part: ``train`` or ``test``.

    Returns:
        Images (n, 28, 28) and labels (n,).

    Raises:
        StudyError: if a file is missing, damaged, or laid out otherwise.
    """
    folder = path if path.is_dir() else path.parent
    files = [_idx_file(folder, part, kind) for kind in ("images", "labels")]
    if None in files and part == "test":
        raise missing_test(path)
    if files[0] is None or files[1] is None:
        raise StudyError(
            f"`data.path` must lead to MNIST's files of images and labels, but {folder} lacks one: "
            "train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without .gz"
        )
    images = _idx_array(files[0])
    labels = _idx_array(files[1])
    return images, labels.astype(np.int64)


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    """Return MNIST's file of a part, under any of the names it has on the web."""
    # some copies are called train-images.idx3-ubyte
    return next(iter(sorted(folder.glob(f"{IDX_PREFIXES[part]}-{kind}*ubyte*"))), None)


def _idx_array(file: Path) -> Pixels:
    try:
        whole = file.read_bytes()
        if file.suffix == ".gz":
            whole = gzip.decompress(whole)
        zero, kind, dimensions = struct.unpack(">HBB", whole[:4])
        shape = struct.unpack(f">{dimensions}I", whole[4 : 4 + 4 * dimensions])
        if (zero, kind) != (0, UNSIGNED_BYTES):
            raise ValueError("it is no IDX file of bytes")
        rest = np.frombuffer(whole, np.uint8, offset=4 + 4 * dimensions)
        if len(rest) != math.prod(shape):
            raise ValueError(f"it holds {len(rest):,} bytes and says {math.prod(shape):,}")
        return rest.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as fault:
        raise StudyError(f"an IDX file must be whole, got {file}: {fault}") from None


def read_folder(path: Path, part: str) -> Table:
    """Read the pictures of a folder with a subfolder for each digit, named 0 to 9.

    Pictures of 28x28 with light ink on black are taken as they are. Others are inverted if their
    border is light, cut to the ink, and put into the middle of 28x28 as MNIST's are.

    Args:
        path: a folder with subfolders ``0`` to ``9``, or with ``train`` and perhaps ``test``, that
            have these.
        part: ``train`` or ``test``.

    Returns:
        Images (n, 28, 28) and labels (n,), digit by digit, in the order of the files' names.

    Raises:
        StudyError: if there are no such subfolders, or a picture cannot be read.
    """
    has_parts = (path / "train").is_dir()
    if part == "test" and not (path / "test").is_dir():
        raise missing_test(path)
    folder = path / part if has_parts or part == "test" else path
    images = []
    labels = []
    for digit in range(CLASSES):
        own = folder / str(digit)
        files = sorted(own.iterdir()) if own.is_dir() else []
        pictures = [file for file in files if file.suffix.lower() in PICTURES]
        images += [_picture(file) for file in pictures]
        labels += [digit] * len(pictures)
    if not images:
        raise StudyError(
            "`data.path` must be a folder with a subfolder of pictures for each digit (0 to 9), or "
            f"with MNIST's own files, got {path}: put the pictures of sevens into {path / '7'}"
        )
    return np.stack(images), np.array(labels, np.int64)


def _picture(file: Path) -> Pixels:
    """Return a picture as 28x28 with light ink."""
    try:
        with Image.open(file) as opened:
            grey = ImageOps.exif_transpose(opened).convert("L")
    except (OSError, UnidentifiedImageError, ValueError) as fault:
        raise StudyError(
            f"every picture of `data.path` must be readable: {file}: {fault}"
        ) from None
    pixels = np.asarray(grey)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    is_light = np.median(border) > 127
    if pixels.shape == (SIDE, SIDE) and not is_light:
        return pixels
    ink = ImageOps.autocontrast(ImageOps.invert(grey) if is_light else grey, cutoff=(50, 0))
    cut = ink.crop(ink.point(lambda level: 255 * (level > 64)).getbbox())
    fitted = ImageOps.contain(cut, (BOX, BOX), Image.Resampling.BOX)
    canvas = Image.new("L", (SIDE, SIDE))
    canvas.paste(fitted, ((SIDE - fitted.width) // 2, (SIDE - fitted.height) // 2))
    return np.asarray(canvas)


#: By the end of a file's name: a reader of (path, part).
READERS: dict[str, Callable[[Path, str], Table]] = {
    ".csv": read_csv,
    ".csv.gz": read_csv,
    "ubyte": read_idx,
    "ubyte.gz": read_idx,
}


def _has_idx_test(path: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    return all(_idx_file(folder, "test", kind) is not None for kind in ("images", "labels"))


#: By reader: whether what a path names has a test set.
HAS_TEST: dict[Callable[[Path, str], Table], Callable[[Path], bool]] = {
    read_csv: lambda path: False,
    read_idx: _has_idx_test,
    read_folder: lambda path: (path / "test").is_dir(),
}
