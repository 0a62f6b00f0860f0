"""Image files to digits: which files, which model, and the reading of many in batches.

TensorFlow is imported by :func:`load_model` alone, after every path and the model's name have proved good,
and only where at least one image can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from digit_study.reading.image_files import SUFFIXES, ImageError
from digit_study.reading.images import Digit, read_digit
from digit_study.terminal.errors import StudyError
from digit_study.terminal.quiet import native_stderr
from digit_study.terminal.signals import not_swallowed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "digit-recognizer"
CHAMPION = f"models:/{NAME}@champion"
BATCH = 256
MOST_SHOWN = 100

Model = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Reading:
    """What was read in one file: a digit with its probabilities, or the error that kept it from being read.

    Attributes:
        file: the path as it was given, or found in a given folder.
        digit: 0 to 9.
        probabilities: ten, for 0 to 9, in [0, 1], summing to 1.
        error: why there is no digit; all but ``file`` are None then.
        seen: what the network saw, shape (28, 28), uint8.
    """

    file: str
    digit: int | None = None
    probabilities: list[float] | None = None
    error: str | None = None
    seen: Digit | None = None

    def as_json(self) -> dict[str, Any]:
        """``file``, ``digit``, ``probabilities`` and, where there is one, ``error``."""
        plain = {"file": self.file, "digit": self.digit, "probabilities": self.probabilities}
        return plain if self.error is None else {**plain, "error": self.error}


# ---------------------------------------------------------------------------------------- which files


def _natural(path: Path) -> list[str | int]:
    """2.png before 10.png."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", path.name)]


def _images_in(folder: Path) -> list[Path]:
    held = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    return sorted(held, key=_natural) or [folder]  # the folder itself then says that it holds no image


def image_files(paths: Sequence[str]) -> list[Path]:
    """The files named, and of a folder the image files directly in it, in natural order.

    Raises:
        StudyError: none named, or some do not exist.
    """
    if not paths:
        raise StudyError("at least one image or folder must be named: python src/predict.py photo.png scans/")
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        some = ", ".join(f"'{path}'" for path in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise StudyError(f"every path must exist, got {some}: check the spelling, from {Path.cwd()}")
    found = [_images_in(Path(path)) if os.path.isdir(path) else [Path(path)] for path in paths]
    return [file for files in found for file in files]


# ---------------------------------------------------------------------------------------- which model


def _versions() -> str:
    from mlflow import MlflowClient

    versions = MlflowClient().search_model_versions(f"name = '{NAME}'", max_results=200)
    if not versions:
        return f"no version of {NAME} is registered yet; run `python sweeps/promote.py`"
    numbers = ", ".join(str(number) for number in sorted(int(version.version) for version in versions))
    return f"take one of the versions there are ({numbers}), as model=models:/{NAME}/{versions[0].version}, "


def _remedy(uri: str) -> str:
    if not uri.startswith("models:/"):
        return "see the runs with `mlflow ui`, or leave `model` out for the champion"
    versions = _versions()
    return versions if versions.startswith("no ") else versions + "or promote one: `python sweeps/promote.py`"


def model_file(uri: str, tracking: str | None = None) -> Path:
    """Where the Keras file of a model lies, fetched from MLflow if need be; TensorFlow stays unimported.

    Args:
        uri: ``models:/name@alias``, ``models:/name/version``, ``runs:/run id/model`` or a ``.keras`` file.
        tracking: MLflow's store; None for the usual one.

    Raises:
        StudyError: no such store, alias, version or run, or the model is not one of Keras.
    """
    if uri.endswith(".keras") and os.path.isfile(uri):
        return Path(uri)
    if not uri.startswith(("models:/", "runs:/")):
        raise StudyError(
            f"`model` must be {CHAMPION}, models:/{NAME}/3, runs:/<run id>/model or a .keras file, got '{uri}'"
        )
    from digit_study.tracking.stores import require_store, tracking_uri

    store = tracking_uri(tracking)
    first = "run `python src/run.py` and `python sweeps/promote.py`"
    require_store(store, "a model must be registered first", first)
    return _fetched(uri, store)


def _fetched(uri: str, store: str) -> Path:
    import mlflow

    mlflow.set_tracking_uri(store)  # the registry follows it; download_artifacts(tracking_uri=) asks another
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
    except (mlflow.exceptions.MlflowException, OSError) as fault:
        why = str(fault).splitlines()[0].rstrip(".")
        raise StudyError(f"`model` must name a model that MLflow holds, got '{uri}' ({why}): {_remedy(uri)}") from None
    file = folder / "data" / "model.keras"
    if not file.is_file():
        raise StudyError(f"`model` must be a Keras model, got '{uri}' without data/model.keras: {_remedy(uri)}")
    return file


def load_model(file: Path) -> Model:
    """Load a Keras file, in safe mode, as a function: images (n, 28, 28), uint8, to softmax (n, 10), float32.

    Raises:
        StudyError: the file cannot be loaded or takes or gives other shapes.
    """
    with native_stderr(), not_swallowed():
        import keras

        try:
            model = keras.models.load_model(file, compile=False)
        except (ValueError, TypeError, OSError) as fault:
            why = str(fault).splitlines()[0]
            raise StudyError(f"a model must load with the Keras installed here, got '{file}': {why}") from None
        shapes = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
        if shapes != ((28, 28, 1), (10,)):
            raise StudyError(f"a model must take (28, 28, 1) and give (10,), got {shapes[0]} and {shapes[1]}: '{file}'")

        def probabilities(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            return np.asarray(model(images[..., None].astype(np.float32), training=False), np.float32)

        probabilities(np.zeros((1, 28, 28), np.uint8))  # the first call sets TensorFlow up, and may speak
    return probabilities


# ---------------------------------------------------------------------------------------- reading


def _look(file: Path) -> Reading:
    try:
        return Reading(str(file), seen=read_digit(file))
    except ImageError as fault:
        return Reading(str(file), error=str(fault))
    except OSError as fault:  # a folder that may not be entered, a disk that fails
        return Reading(str(file), error=f"cannot be read ({fault.strerror}); check its permissions")


def _read_batch(looks: Sequence[Reading], model: Model) -> Iterator[Reading]:
    seen = [look.seen for look in looks if look.seen is not None]
    rows: Iterator[Any] = iter(model(np.stack(seen)) if seen else ())
    for look in looks:
        if look.seen is None:
            yield look
        else:
            row = next(rows)
            yield Reading(look.file, int(row.argmax()), [float(p) for p in row], seen=look.seen)


def read_files(files: Iterable[Path], model: Model, batch: int = BATCH) -> Iterator[Reading]:
    """Read files in batches, in order; one that is no digit yields its error and stops nothing.

    Args:
        files: image files.
        model: images (n, 28, 28), uint8, to probabilities (n, 10); called once a batch, never with n = 0.
        batch: files per call of the model; memory grows with it and nothing else.
    """
    rest = iter(files)
    while looks := [_look(file) for file in islice(rest, batch)]:
        yield from _read_batch(looks, model)


def seen_figure(readings: Sequence[Reading]) -> Figure:
    """What the network saw, image by image, with what it read there; the first ``MOST_SHOWN`` of them."""
    from matplotlib.figure import Figure

    shown = readings[:MOST_SHOWN]
    columns = min(10, max(1, len(shown)))
    lines = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(max(3.0, 1.5 * columns), 1.9 * lines), layout="constrained")
    for axes, reading in zip(figure.subplots(lines, columns, squeeze=False).flat, shown, strict=False):
        if reading.seen is not None:
            axes.imshow(reading.seen, cmap="gray", vmin=0, vmax=255)
        sure = f"{reading.digit} ({max(reading.probabilities):.1%})" if reading.probabilities else "no digit"
        axes.set_title(f"{Path(reading.file).name[-18:]}\n{sure}", fontsize=7, parse_math=False)
    for axes in figure.axes:
        axes.set_axis_off()
    return figure
