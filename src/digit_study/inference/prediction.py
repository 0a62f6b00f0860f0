"""Image files to digits: which files, the loading of a model, and the reading of many files in batches.

TensorFlow is imported only by :func:`load_model`: after all paths and the model's name have been checked, and only if
at least one image can be read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from digit_study.inference.image_files import SUFFIXES, Grey, ImageError, read_grey, upright_size
from digit_study.inference.images import Digit, SeveralMarks, read_digit
from digit_study.inference.segmentation import Box, Ways, segment
from digit_study.model.calibration import prediction_sets
from digit_study.support.errors import StudyError, first_line
from digit_study.support.signals import native_stderr, signals_surface

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Files that are read before the model is called for all of them.
BATCH = 256
#: Readings that are drawn, at most.
MOST_SHOWN = 100
#: Title of the picture of readings, and how many pictures stand side by side in it.
TITLE = "What the network saw"
BOXES_A_ROW = 3
NO_DIGIT = (
    "shows no digit, but a letter, a symbol or the like; what it would be as one: abstain=false"
)
NO_NUMBER = (
    "holds several marks, most of them no digits, but letters or symbols; as digits: abstain=false"
)
#: What a refusal by the detector, and each piece of a mark, weighs against probabilities (in logs).
DOUBT = 0.7
DOUBT_OF_CUTS = 0.02
Model = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
#: Images (n, 28, 28, 1) to whether each shows a digit, (n,).
Accepts = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class NumberDigit:
    """A digit of a number."""

    digit: int
    probabilities: list[float]  # ten, for 0 to 9, in [0, 1], summing to 1
    box: Box  # in pixels of the upright picture
    pixels: Digit  # what the network reads, shape (28, 28), uint8


@dataclass(frozen=True)
class Number:
    """What is written in a row, or in several: lines from the top, digits of each from the left."""

    lines: list[list[NumberDigit]]

    @property
    def digits(self) -> list[NumberDigit]:
        """All digits, line by line."""
        return [digit for line in self.lines for digit in line]

    @property
    def text(self) -> str:
        """The digits, with a line break between lines."""
        return "\n".join("".join(str(digit.digit) for digit in line) for line in self.lines)

    @property
    def probability(self) -> float:
        """The probability that every digit is right, if they are so independently of each other."""
        return float(np.prod([max(digit.probabilities) for digit in self.digits]))


@dataclass(frozen=True)
class Reading:
    """The result for a file: a digit, a number, or the error that kept it from being read."""

    file: str  # the path as it was given, or found in a given folder
    digit: int | None = None
    probabilities: list[float] | None = None  # ten, for 0 to 9, in [0, 1], summing to 1
    error: str | None = None  # why there is no digit; all but ``file`` are None then
    pixels: Digit | None = None  # what the network reads, shape (28, 28), uint8
    digits: list[int] | None = None  # the prediction set, where one was asked for
    number: Number | None = None  # where more than a digit was read

    def as_json(self) -> dict[str, Any]:
        """Return the reading as an object of JSON.

        Returns:
            ``file``, ``digit``, ``probabilities``; where there are such also ``digits`` (the
            prediction set), ``error``, and of a number ``number`` (a string, lines parted by a
            line break), its ``probability``, and of each digit ``boxes`` (left, top, width, height
            in pixels) and ``digit_probabilities``.
        """
        found: dict[str, Any] = {
            "file": self.file,
            "digit": self.digit,
            "probabilities": self.probabilities,
        }
        if self.digits is not None:
            found["digits"] = self.digits
        if self.error is not None:
            found["error"] = self.error
        if self.number is not None:
            found["number"] = self.number.text
            found["probability"] = self.number.probability
            found["boxes"] = [list(astuple(digit.box)) for digit in self.number.digits]
            found["digit_probabilities"] = [digit.probabilities for digit in self.number.digits]
        return found


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


@dataclass(frozen=True)
class _Prepared:
    """A file before the network has seen it: an error, a digit, or the marks of a number."""

    file: str
    error: str | None = None
    pixels: Digit | None = None
    lines: list[list[Ways]] | None = None

    def images(self) -> list[Digit]:
        """Return the images (28, 28) that the network is to read, in order."""
        if self.pixels is not None:
            return [self.pixels]
        if self.lines is None:
            return []
        return [
            piece.pixels for line in self.lines for ways in line for way in ways for piece in way
        ]


@dataclass(frozen=True)
class _Answers:
    """What the network and the detector say of images, in order."""

    probabilities: npt.NDArray[np.float32]  # (n, 10)
    are_digits: npt.NDArray[np.bool_]  # (n,)
    sets: npt.NDArray[np.bool_]  # (n, 10): which digits are in the prediction set


def read_files(
    files: Iterable[Path],
    model: Model,
    accepts: Accepts | None = None,
    least: float | None = None,
    batch: int = BATCH,
    *,
    only_digit: bool = False,
) -> Iterator[Reading]:
    """Read files in batches, in order; what cannot be read yields its error and stops nothing.

    The model is called once for ``batch`` files, never without any; memory grows with ``batch`` and
    nothing else.

    Args:
        files: image files.
        model: images (n, 28, 28), uint8, to probabilities (n, 10).
        accepts: images (n, 28, 28, 1) to whether each shows a digit; None takes all for digits.
        least: the probability that a digit needs for its prediction set; None asks for no sets.
        batch: files that are read before the model is called.
        only_digit: refuse a picture of several digits.

    Yields:
        A reading for each file.
    """
    remaining = iter(files)
    while prepared := [_prepare(file, only_digit) for file in islice(remaining, batch)]:
        images = [image for single in prepared for image in single.images()]
        if not images:
            yield from (Reading(single.file, error=single.error) for single in prepared)
            continue
        answers = _answers(np.stack(images), model, accepts, least)
        first = 0
        for single in prepared:
            yield _reading(single, answers, first, wants_sets=least is not None)
            first += len(single.images())


def read_row(grey: Grey, model: Model, accepts: Accepts | None = None) -> Number | None:
    """Read what is written in a picture in a row, or in several.

    Args:
        grey: brightness (h, w), 0 to 255.
        model: images (n, 28, 28), uint8, to probabilities (n, 10).
        accepts: images (n, 28, 28, 1) to whether each shows a digit; None takes all for digits.

    Returns:
        The number, of at least two digits; None where there are fewer.

    Raises:
        ImageError: if it shows no strokes, more than numbers have, or mostly other than digits.
    """
    lines = segment(grey)
    prepared = _Prepared("", lines=lines)
    images = prepared.images()
    if not images:
        return None
    answers = _answers(np.stack(images), model, accepts, None)
    reading = _reading(prepared, answers, 0, wants_sets=False)
    if reading.error is not None:
        raise ImageError(reading.error)
    return reading.number


def _prepare(file: Path, only_digit: bool) -> _Prepared:
    """Find the digit of a file, or its digits."""
    try:
        return _Prepared(str(file), pixels=read_digit(file))
    except SeveralMarks as fault:
        return _prepare_number(file, str(fault), only_digit)
    except ImageError as fault:
        return _Prepared(str(file), error=str(fault))
    except OSError as fault:  # a folder that may not be entered, a disk that fails
        error = f"cannot be read ({fault.strerror}); check its permissions"
        return _Prepared(str(file), error=error)


def _prepare_number(file: Path, fault: str, only_digit: bool) -> _Prepared:
    """Find the digits of a file that holds no single one."""
    if only_digit:
        return _Prepared(str(file), error=fault)
    try:
        grey = read_grey(file)
        lines = segment(grey)
        scale = max(upright_size(file)) / max(grey.shape)
    except ImageError as error:
        return _Prepared(str(file), error=str(error))
    if sum(len(line) for line in lines) == 0:
        return _Prepared(str(file), error=fault)
    return _Prepared(str(file), lines=[[_scaled(ways, scale) for ways in line] for line in lines])


def _scaled(ways: Ways, scale: float) -> Ways:
    """Return the same pieces, with their boxes in the picture as it lies on disk."""
    return [[replace(piece, box=piece.box.scaled(scale)) for piece in way] for way in ways]


def _answers(pixels: Digit, model: Model, accepts: Accepts | None, least: float | None) -> _Answers:
    """Ask the network and the detector of images (n, 28, 28)."""
    probabilities = model(pixels)
    are_digits = np.ones(len(probabilities), np.bool_)
    if accepts is not None:
        are_digits = accepts(pixels[..., None])
    # a digit of any other probability is in no set
    sets = prediction_sets(probabilities, 1.0 if least is None else least)
    return _Answers(probabilities, are_digits, sets)


def _reading(prepared: _Prepared, answers: _Answers, first: int, *, wants_sets: bool) -> Reading:
    """Put together what was read in a file, whose images are those from ``first`` on."""
    if prepared.error is not None:
        return Reading(prepared.file, error=prepared.error)
    if prepared.lines is not None:
        return _number_reading(prepared.file, prepared.lines, answers, first)
    reading = Reading(prepared.file, pixels=prepared.pixels)
    if not answers.are_digits[first]:
        return replace(reading, error=NO_DIGIT)
    row = answers.probabilities[first]
    reading = replace(reading, digit=int(row.argmax()), probabilities=row.tolist())
    if not wants_sets:
        return reading
    return replace(reading, digits=np.flatnonzero(answers.sets[first]).tolist())


def _number_reading(file: str, lines: list[list[Ways]], answers: _Answers, first: int) -> Reading:
    """Choose for each mark the way to cut it up of which the network is surest."""
    found = []
    accepted = 0
    at = first
    for line in lines:
        own: list[NumberDigit] = []
        for ways in line:
            ends = at + np.cumsum([len(way) for way in ways])
            spans = [range(end - len(way), end) for end, way in zip(ends, ways, strict=True)]
            if not spans:
                continue
            best = int(np.argmax([_sureness(answers, span) for span in spans]))
            for place, piece in zip(spans[best], ways[best], strict=True):
                row = answers.probabilities[place]
                digit = int(row.argmax())
                own.append(NumberDigit(digit, row.tolist(), piece.box, piece.pixels))
            accepted += int(answers.are_digits[list(spans[best])].sum())
            at = int(ends[-1])
        if own:
            found.append(own)
    number = Number(found)
    if not number.digits or 2 * accepted < len(number.digits):
        return Reading(file, error=NO_NUMBER)
    if len(number.digits) > 1:
        return Reading(file, number=number)
    (only,) = number.digits
    return Reading(file, only.digit, only.probabilities, pixels=only.pixels)


def _sureness(answers: _Answers, span: range) -> float:
    """Return how sure network and detector are of the pieces of a way: the larger, the surer."""
    places = list(span)
    likely = np.log(answers.probabilities[places].max(axis=1)).mean()
    refused = 1 - answers.are_digits[places].mean()
    return float(likely - DOUBT * refused - DOUBT_OF_CUTS * len(places))


def readings_figure(readings: Sequence[Reading]) -> Figure:
    """Draw what was read in each image.

    Args:
        readings: of at least one file; the first :data:`MOST_SHOWN` are drawn.

    Returns:
        What the network saw of each digit; of numbers the picture, with a box for each digit.
    """
    from digit_study.report.figures import charts

    shown = readings[:MOST_SHOWN]
    which = "every image"
    if len(readings) > len(shown):
        which = f"the first {len(shown)} of {len(readings)} images"
    note = f"{which}: digit, probability, file"
    captions = [_caption(reading) for reading in shown]
    if any(reading.number is not None for reading in shown):
        return _boxes_figure(shown, captions, note)
    blank = np.zeros((28, 28), np.uint8)
    pixels = [blank if reading.pixels is None else reading.pixels for reading in shown]
    return charts.image_grid(np.stack(pixels), TITLE, note, 6, captions)


def _caption(reading: Reading) -> tuple[str, str]:
    """Return what was read in a file, and the colour in which it is written."""
    from digit_study.report.figures import charts

    name = charts.shorten(Path(reading.file).name, 14)
    if reading.number is not None:
        text = reading.number.text.replace("\n", " / ")
        return f"{text}, {reading.number.probability:.1%}\n{name}", "black"
    if reading.probabilities is None:
        return f"no digit\n{name}", charts.RED
    return f"{reading.digit}, {max(reading.probabilities):.1%}\n{name}", "black"


def _boxes_figure(
    readings: Sequence[Reading], captions: Sequence[tuple[str, str]], note: str
) -> Figure:
    """Draw pictures of numbers with a box for each digit, and the digits of the others."""
    from matplotlib.patches import Rectangle

    from digit_study.report.figures import charts

    columns = min(BOXES_A_ROW, len(readings))
    rows = -(-len(readings) // columns)
    figure = charts.new_figure(3.0 * columns, 2.6 * rows + 0.6, f"{TITLE}: {note}")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, reading, (text, colour) in zip(grid, readings, captions, strict=False):
        axes.set_title(text, fontsize=8, color=colour, parse_math=False)
        if reading.number is None:
            if reading.pixels is not None:
                axes.imshow(reading.pixels, cmap="gray_r", vmin=0, vmax=255)
            continue
        width, height = upright_size(Path(reading.file))
        grey = read_grey(Path(reading.file))
        axes.imshow(grey, cmap="gray", extent=(0, width, height, 0))
        for digit in reading.number.digits:
            box = digit.box
            corner = (box.left, box.top)
            frame = Rectangle(corner, box.width, box.height, fill=False, edgecolor=charts.RED)
            axes.add_patch(frame)
            axes.text(*corner, str(digit.digit), color=charts.RED, fontsize=8, va="bottom")
    return figure
