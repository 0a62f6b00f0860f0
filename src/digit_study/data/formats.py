"""Read files of digits other than Keras's mnist.npz.

The formats are:

* Kaggle's CSV: ``train.csv`` of Digit Recognizer, and tables laid out like it,
* the IDX files of MNIST's page,
* a folder with a subfolder of pictures for each digit.

A further format is a :class:`Format` and an entry in :data:`FORMATS`.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from digit_study.data.arrays import CLASSES, IMAGE_SIDE, Arrays, Pixels
from digit_study.support.errors import StudyError

#: Pixels of an image.
PIXELS = IMAGE_SIDE * IMAGE_SIDE
#: How the names of MNIST's files begin, by part.
IDX_PREFIXES = {"train": "train", "test": "t10k"}
#: IDX's code of unsigned bytes.
UNSIGNED_BYTES = 8
#: Bytes of an IDX file before the sizes of its dimensions.
IDX_MAGIC_BYTES = 4
#: Pictures that an error names, at most.
MOST_NAMED = 5


@dataclass(frozen=True)
class Format:
    """How a format is read.

    Attributes:
        read: Returns the digits of a part, ``train`` or ``test``, of what a path names: images
            (n, 28, 28), uint8, and labels (n,), int64.
        has_test: Returns whether there is a test set, without reading digits.
    """

    read: Callable[[Path, str], Arrays]
    has_test: Callable[[Path], bool]


def missing_test(path: Path) -> StudyError:
    """Return the error of digits that come without a test set."""
    return StudyError(
        f"the digits of {path} come without a test set, so nothing that is trained on them can be "
        "promoted: use data with one, such as MNIST's"
    )


def format_of(path: Path) -> Format | None:
    """Return the format of a file or folder; None for an npz, and for any other file."""
    if path.is_dir():
        if _idx_file(path, "train", "images") is None:
            return FOLDER
        return IDX
    for ending, file_format in FORMATS.items():
        if path.name.endswith(ending):
            return file_format
    return None


def read_csv(path: Path, part: str) -> Arrays:
    """Read a table of images with their labels, as Kaggle's ``train.csv``.

    Args:
        path: A CSV file, with a line of names or without. Each row is a label and 784 grey levels,
            0 to 255.
        part: ``train``; such a file has no test set.

    Returns:
        Images (n, 28, 28) and labels (n,).

    Raises:
        StudyError: If the file is laid out otherwise, or ``part`` is ``test``.
    """
    if part == "test":
        raise missing_test(path)
    table = _csv_table(path)
    if table.shape[1] != 1 + PIXELS:
        raise StudyError(
            f"`data.path` must be a CSV file with a label and {PIXELS} pixels a row, got "
            f"{table.shape[1]} columns in {path}: it is Kaggle's train.csv that holds the labels"
        )
    values = _as_bytes(table, path)
    images = values[:, 1:].reshape(-1, IMAGE_SIDE, IMAGE_SIDE)
    labels = values[:, 0].astype(np.int64)
    return images, labels


def read_unlabelled_csv(path: Path) -> Pixels:
    """Read a table of images without labels, as Kaggle's ``test.csv``.

    Args:
        path: A CSV file, with a line of names or without. Each row is 784 grey levels, 0 to 255.

    Returns:
        Images (n, 28, 28), uint8.

    Raises:
        StudyError: If the file is laid out otherwise.
    """
    table = _csv_table(path)
    if table.shape[1] != PIXELS:
        raise StudyError(
            f"a CSV file to be predicted must have {PIXELS} pixels a row and no label, as "
            f"Kaggle's test.csv, got {table.shape[1]} columns: {path}"
        )
    return _as_bytes(table, path).reshape(-1, IMAGE_SIDE, IMAGE_SIDE)


def _csv_table(path: Path) -> npt.NDArray[np.float64]:
    import pandas as pd

    if not path.is_file():
        raise StudyError(f"there must be a CSV file at {path}: check the spelling")
    try:
        first = pd.read_csv(path, header=None, nrows=1, dtype=str)
        header = None
        if not all(_is_number(value) for value in first.iloc[0]):
            header = 0
        return pd.read_csv(path, header=header).to_numpy(np.float64)
    except (OSError, ValueError, UnicodeError) as fault:  # pandas' own errors are ValueErrors
        reason = str(fault).splitlines()[0]
        raise StudyError(f"a CSV file must hold whole numbers, got {path}: {reason}") from None


def _is_number(text: str) -> bool:
    """Return whether a cell holds a number, and not the name of a column."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_bytes(table: npt.NDArray[np.float64], path: Path) -> Pixels:
    """Return a table of whole numbers from 0 to 255 as bytes; raises StudyError for another."""
    # NaN and what is larger become some byte
    with np.errstate(invalid="ignore"):
        values = table.astype(np.uint8)
    wrong = table[values != table]
    if len(wrong) > 0:
        rule = "a CSV file must hold whole numbers from 0 to 255"
        remedy = "correct that cell, or leave its row out"
        if 0 < wrong[0] < 1:
            remedy = "multiply pixels that were scaled to [0, 1] by 255"
        found = f"{wrong[0]:g}"
        if np.isnan(wrong[0]):
            found = "an empty cell"
        raise StudyError(f"{rule}, got {found} in {path}: {remedy}")
    return values


def read_idx(path: Path, part: str) -> Arrays:
    """Read MNIST's files, compressed or not.

    Args:
        path: The folder of the files, or any of the files.
        part: ``train`` or ``test``.

    Returns:
        Images (n, 28, 28) and labels (n,).

    Raises:
        StudyError: If a file is missing, damaged, or laid out otherwise.
    """
    folder = _idx_folder(path)
    images_file = _idx_file(folder, part, "images")
    labels_file = _idx_file(folder, part, "labels")
    if images_file is None or labels_file is None:
        if part == "test":
            raise missing_test(path)
        raise StudyError(
            f"`data.path` must lead to MNIST's files of images and labels, but {folder} lacks one: "
            "train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without .gz"
        )
    return _idx_array(images_file), _idx_array(labels_file).astype(np.int64)


def _idx_folder(path: Path) -> Path:
    """Return the folder of MNIST's files, given it or a file in it."""
    if path.is_dir():
        return path
    return path.parent


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    """Return MNIST's file of a part, under any of the names it has on the web."""
    prefix = IDX_PREFIXES[part]
    # some copies are called train-images.idx3-ubyte
    files = sorted(folder.glob(f"{prefix}-{kind}*ubyte*"))
    return next(iter(files), None)


def _has_idx_test(path: Path) -> bool:
    folder = _idx_folder(path)
    return all(_idx_file(folder, "test", kind) is not None for kind in ("images", "labels"))


def _idx_array(file: Path) -> Pixels:
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
        magic = content[:IDX_MAGIC_BYTES]
        zero, kind, dimensions = struct.unpack(">HBB", magic)
        header_bytes = IDX_MAGIC_BYTES + 4 * dimensions
        sizes = content[IDX_MAGIC_BYTES:header_bytes]
        shape = struct.unpack(f">{dimensions}I", sizes)
        if zero != 0 or kind != UNSIGNED_BYTES:
            raise ValueError("it is no IDX file of bytes")
        values = np.frombuffer(content, np.uint8, offset=header_bytes)
        expected = math.prod(shape)
        if len(values) != expected:
            raise ValueError(f"it holds {len(values):,} bytes and says {expected:,}")
        return values.reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as fault:
        raise StudyError(f"an IDX file must be whole, got {file}: {fault}") from None


def read_folder(path: Path, part: str) -> Arrays:
    """Read the pictures of a folder with a subfolder for each digit, named 0 to 9.

    They are brought into MNIST's form as predict.py does it: photos, scans and drawings of any
    size. What has that form already is taken as it is.

    Args:
        path: A folder with subfolders ``0`` to ``9``. These may also lie in its subfolders
            ``train`` and ``test``.
        part: ``train`` or ``test``.

    Returns:
        Images (n, 28, 28) and labels (n,), digit by digit, in the order of the files' names.

    Raises:
        StudyError: If there are no such subfolders, or predict.py refuses a picture.
    """
    if part == "test" and not _has_folder_test(path):
        raise missing_test(path)
    folder = path / part
    if not folder.is_dir():
        folder = path
    files: list[Path] = []
    labels: list[int] = []
    for digit in range(CLASSES):
        found = _pictures(folder / str(digit))
        files += found
        labels += [digit] * len(found)
    if not files:
        raise StudyError(
            "`data.path` must be a folder with a subfolder of pictures for each digit (0 to 9), or "
            f"with MNIST's own files, got {path}: put the pictures of sevens into {path / '7'}"
        )
    return np.stack(_digits(files)), np.array(labels, np.int64)


def _has_folder_test(path: Path) -> bool:
    return (path / "test").is_dir()


def _pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder by name; none if there is no such folder."""
    if not folder.is_dir():
        return []
    from digit_study.pictures.image_files import HEIF_SUFFIXES, SUFFIXES

    # HEIC without its package is refused when it is read, and not left out unsaid
    endings = SUFFIXES | HEIF_SUFFIXES
    pictures: list[Path] = []
    for file in sorted(folder.iterdir()):
        is_picture = file.suffix.lower() in endings
        is_hidden = file.name.startswith(".")
        if is_picture and not is_hidden:
            pictures.append(file)
    return pictures


def _digits(files: Iterable[Path]) -> list[Pixels]:
    """Return pictures as predict.py sees them, (28, 28) each; StudyError names those it refuses."""
    # scikit-image is imported only where pictures are read
    from digit_study.pictures.image_files import ImageError
    from digit_study.pictures.images import read_digit

    digits = []
    refused = []
    for file in files:
        try:
            digits.append(read_digit(file))
        except ImageError as fault:
            refused.append(f"{file} {fault}")
    if refused:
        named = "\n".join(refused[:MOST_NAMED])
        if len(refused) > MOST_NAMED:
            named += f"\nand {len(refused) - MOST_NAMED} more"
        raise StudyError(
            "every picture of `data.path` must show a digit, as predict.py sees it, but of "
            f"{len(digits) + len(refused)} it refuses {len(refused)}: mend them, or put them "
            f"elsewhere\n{named}"
        )
    return digits


#: Kaggle's table.
CSV = Format(read_csv, has_test=lambda path: False)
#: MNIST's files.
IDX = Format(read_idx, has_test=_has_idx_test)
#: A folder of pictures.
FOLDER = Format(read_folder, has_test=_has_folder_test)
#: Formats of files, by the end of the name.
FORMATS: dict[str, Format] = {
    ".csv": CSV,
    ".csv.gz": CSV,
    "ubyte": IDX,
    "ubyte.gz": IDX,
}
