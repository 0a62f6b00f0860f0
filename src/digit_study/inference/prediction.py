"""Image files to digits: which files, the loading of a model, and the reading of many files in batches.

TensorFlow is imported only by :func:`load_model`: after all paths and the model's name have been checked, and only if
at least one image can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from digit_study.inference.image_files import SUFFIXES, ImageError
from digit_study.inference.images import Digit, read_digit
from digit_study.model.calibration import prediction_sets
from digit_study.support.errors import StudyError, first_line
from digit_study.support.signals import native_stderr, signals_surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH, MOST_SHOWN = 256, 100
NO_DIGIT = (
    "shows no digit, but a letter, a symbol or the like; what it would be as one: abstain=false"
)
Model = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
#: Images (n, 28, 28, 1) to whether each shows a digit, (n,).
Accepts = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Reading:
    """The result for one file: a digit with its probabilities, or the error that kept it from being read."""

    file: str  # the path as it was given, or found in a given folder
    digit: int | None = None
    probabilities: list[float] | None = None  # ten, for 0 to 9, in [0, 1], summing to 1
    error: str | None = None  # why there is no digit; all but ``file`` are None then
    pixels: Digit | None = None  # what the network reads, shape (28, 28), uint8
    digits: list[int] | None = None  # the prediction set, where one was asked for

    def as_json(self) -> dict[str, Any]:
        """``file``, ``digit``, ``probabilities``; ``digits`` (the prediction set) and ``error`` where there is one."""
        plain = {"file": self.file, "digit": self.digit, "probabilities": self.probabilities}
        further = {"digits": self.digits, "error": self.error}
        return {**plain, **{key: value for key, value in further.items() if value is not None}}


def image_files(paths: Sequence[str]) -> list[Path]:
    """The files named, and of a folder the image files directly in it, in natural order (2.png before 10.png).

    A folder without any stands for itself, an error when it is read. Raises StudyError if none is named or one is gone.
    """
    if not paths:
        raise StudyError(
            "at least one image or folder must be named: python src/predict.py photo.png scans/"
        )
    missing = [f"'{path}'" for path in paths if not os.path.exists(path)]
    if missing:
        some = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise StudyError(
            f"every path must exist, got {some}: check the spelling, from {Path.cwd()}"
        )

    files: list[Path] = []
    for path in map(Path, paths):
        inside = path.iterdir() if path.is_dir() else ()
        images = [
            one for one in inside if one.suffix.lower() in SUFFIXES and not one.name.startswith(".")
        ]
        named = {
            one: re.split(r"(\d+)", one.name.casefold()) for one in images
        }  # text and numbers in turn
        files += sorted(
            named, key=lambda one: [int(p) if p.isdecimal() else p for p in named[one]]
        ) or [path]
    return files


def load_model(file: Path) -> Model:
    """Load a Keras file, in safe mode, as a function: images (n, 28, 28), uint8, to softmax (n, 10), float32.

    Raises StudyError if the file cannot be loaded, or the model takes or gives other shapes.
    """
    with native_stderr(), signals_surface():
        import keras

        try:
            model = keras.models.load_model(file, compile=False)
        except (ValueError, TypeError, OSError) as fault:
            rule = "a model must load with the Keras installed here"
            raise StudyError(f"{rule}, got '{file}': {first_line(fault)}") from None
        taken, given = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
        if (taken, given) != ((28, 28, 1), (10,)):
            raise StudyError(
                f"a model must take (28, 28, 1) and give (10,), got {taken} and {given}: '{file}'"
            )

        from digit_study.model.fit import Predictor

        read = Predictor(model)  # a single image takes a seventh of the time of Keras's own call
        read(
            np.zeros((1, 28, 28, 1), np.uint8)
        )  # the first call sets TensorFlow up, which may print
    return lambda images: np.asarray(read(images[..., None]), np.float32)


def read_files(
    files: Iterable[Path],
    model: Model,
    accepts: Accepts | None = None,
    least: float | None = None,
    batch: int = BATCH,
) -> Iterator[Reading]:
    """Read files in batches, in order; one that shows no digit yields its error and stops nothing.

    What ``accepts`` does not is no digit; with ``least``, the probability that a digit needs for it, each has its set.

    The model is called once for ``batch`` files, never without any; memory grows with ``batch`` and nothing else.
    """

    def prepare(file: Path) -> Reading:
        try:
            return Reading(str(file), pixels=read_digit(file))
        except ImageError as fault:
            return Reading(str(file), error=str(fault))
        except OSError as fault:  # a folder that may not be entered, a disk that fails
            return Reading(
                str(file), error=f"cannot be read ({fault.strerror}); check its permissions"
            )

    remaining = iter(files)
    while readings := [prepare(file) for file in islice(remaining, batch)]:
        pixels = [reading.pixels for reading in readings if reading.pixels is not None]
        answers = iter(_answers(np.stack(pixels), model, accepts, least) if pixels else ())
        yield from (
            reading if reading.pixels is None else replace(reading, **next(answers))
            for reading in readings
        )


def _answers(
    pixels: Digit, model: Model, accepts: Accepts | None, least: float | None
) -> Iterator[dict[str, Any]]:
    """What is read in each of ``pixels`` (n, 28, 28), as fields of :class:`Reading`."""
    rows = model(pixels)
    are_digits = np.ones(len(rows), np.bool_) if accepts is None else accepts(pixels[..., None])
    sets = prediction_sets(rows, 1.0 if least is None else least)
    for row, is_digit, members in zip(rows, are_digits, sets, strict=True):
        if is_digit:
            digits = None if least is None else np.flatnonzero(members).tolist()
            yield {"digit": int(row.argmax()), "probabilities": row.tolist(), "digits": digits}
        else:
            yield {"error": NO_DIGIT}


def readings_figure(readings: Sequence[Reading]) -> Figure:
    """Draw the pixels of each image and what was read in them, for the first ``MOST_SHOWN`` readings."""
    from digit_study.report.figures import charts

    shown = readings[:MOST_SHOWN]
    captions = []
    for reading in shown:
        likely = reading.probabilities and f"{reading.digit}, {max(reading.probabilities):.1%}"
        name = charts.shorten(Path(reading.file).name, 14)
        captions.append((f"{likely or 'no digit'}\n{name}", "black" if likely else charts.RED))
    blank = np.zeros((28, 28), np.uint8)
    pixels = np.stack([blank if reading.pixels is None else reading.pixels for reading in shown])
    some = (
        f"the first {len(shown)} of {len(readings)} images"
        if len(readings) > len(shown)
        else "every image"
    )
    return charts.image_grid(
        pixels, "What the network saw", f"{some}: digit, probability, file", 6, captions
    )
