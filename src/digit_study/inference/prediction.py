"""Prediction of the digits and numbers in image files, in batches, and the loading of a model.

TensorFlow is imported only by :func:`load_model`: after all paths and the model's name have been
checked, and only if at least one image can be read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from digit_study.data.sources import CLASSES
from digit_study.inference.detector import Accepts
from digit_study.inference.segmentation import Box, Piece, Ways, segment
from digit_study.model.calibration import prediction_sets
from digit_study.pictures.image_files import (
    Grey,
    ImageError,
    may_lie_on_its_side,
    read_grey,
    upright_size,
)
from digit_study.pictures.images import SIDE, Digit, SeveralMarks, to_mnist
from digit_study.support.errors import StudyError, first_line
from digit_study.support.hardware import cores
from digit_study.support.signals import native_stderr, signals_surface

#: Why a picture of a single mark is refused. The detector cannot tell a letter from a poor digit.
NO_DIGIT = (
    "is not surely a digit, but a letter, a symbol, or a digit that is blurred or of a rare form; "
    "to read it anyway: abstain=false"
)
#: Why a picture of several marks is refused.
NO_NUMBER = (
    "holds several marks, most of them not surely digits, but letters, symbols, or digits that are "
    "blurred or run together; to read them anyway: abstain=false"
)
#: What a refusal by the detector weighs against probabilities, as a logarithm.
DOUBT = 0.7
#: What each piece of a mark weighs against probabilities, as a logarithm.
DOUBT_OF_CUTS = 0.02

#: How a photograph that lies on its side is turned, and how many quarters that is to the left.
TURNS = {"left": 1, "right": -1}
#: Probability of its digit from which on a turned photograph is read. Letters on their side
#: resemble digits too: an N is a 2, an M is a 3.
PROBABILITY_OF_TURN = 0.9
#: By how much the detector must be surer of a turned photograph than of others, as log-odds.
MARGIN_OF_TURN = 3.0
#: Files that are decoded at a time, at most: each may take hundreds of megabytes meanwhile.
MOST_AT_A_TIME = 4

#: Images (n, 28, 28) to the probabilities of ten digits, (n, 10).
Model = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class BatchSize:
    """How much is read before the model is called for all of it.

    Attributes:
        files: Files, at most.
        images: Images (28, 28) from which on no further file is read: a page of numbers has
            thousands.
    """

    files: int = 64
    images: int = 8_000


#: What ``predict.py`` reads before the model is called.
BATCH = BatchSize()


@dataclass(frozen=True)
class NumberDigit:
    """A digit of a number."""

    digit: int
    #: Ten, for 0 to 9, in [0, 1], summing to 1.
    probabilities: list[float]
    #: In pixels of the upright picture.
    box: Box
    #: What the network sees, (28, 28), uint8.
    pixels: Digit


@dataclass(frozen=True)
class Number:
    """What is written in a row, or in several."""

    #: Lines from the top, and the digits of each from the left.
    lines: list[list[NumberDigit]]

    @property
    def digits(self) -> list[NumberDigit]:
        """Return all digits, line by line."""
        return [digit for line in self.lines for digit in line]

    @property
    def text(self) -> str:
        """Return the digits, with a line break between lines."""
        texts = []
        for line in self.lines:
            digits = [str(digit.digit) for digit in line]
            texts.append("".join(digits))
        return "\n".join(texts)

    @property
    def probability(self) -> float:
        """Return the probability that every digit is correct, if they are independent."""
        highest = [max(digit.probabilities) for digit in self.digits]
        return float(np.prod(highest))


@dataclass(frozen=True)
class Reading:
    """The result for a file: a digit, a number, or the error that kept it from being read."""

    #: The path as it was given, or found in a given folder.
    file: str
    digit: int | None = None
    #: Ten, for 0 to 9, in [0, 1], summing to 1.
    probabilities: list[float] | None = None
    #: Why there is no digit.
    error: str | None = None
    #: What the network sees, (28, 28), uint8.
    pixels: Digit | None = None
    #: The prediction set, where it was asked for.
    digits: list[int] | None = None
    #: Where more than a digit was read.
    number: Number | None = None
    #: A name in :data:`TURNS`, where a photograph that lies on its side was turned.
    turned: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the reading as an object of JSON.

        Returns:
            ``file``, ``digit``, ``probabilities``; where there are such also ``digits`` (the
            prediction set), ``turned``, ``error``, and of a number ``number`` (a string, lines
            parted by a line break), its ``probability``, and of each digit ``boxes`` (left, top,
            width, height in pixels) and ``digit_probabilities``.
        """
        found: dict[str, Any] = {
            "file": self.file,
            "digit": self.digit,
            "probabilities": self.probabilities,
        }
        if self.digits is not None:
            found["digits"] = self.digits
        if self.turned is not None:
            found["turned"] = self.turned
        if self.error is not None:
            found["error"] = self.error
        if self.number is not None:
            digits = self.number.digits
            found["number"] = self.number.text
            found["probability"] = self.number.probability
            found["boxes"] = [list(astuple(digit.box)) for digit in digits]
            found["digit_probabilities"] = [digit.probabilities for digit in digits]
        return found


def load_model(file: Path) -> Model:
    """Load a network from a Keras file, in safe mode.

    Args:
        file: the Keras file.

    Returns:
        A function: images (n, 28, 28), uint8, to probabilities (n, 10), float32.

    Raises:
        StudyError: if the file cannot be loaded, or the model takes or gives other shapes.
    """
    with native_stderr(), signals_surface():
        import keras

        try:
            model = keras.models.load_model(file, compile=False)
        except (ValueError, TypeError, OSError) as fault:
            rule = "a model must load with the Keras installed here"
            raise StudyError(f"{rule}, got '{file}': {first_line(fault)}") from None
        taken = tuple(model.input_shape[1:])
        given = tuple(model.output_shape[1:])
        if taken != (SIDE, SIDE, 1) or given != (CLASSES,):
            raise StudyError(
                f"a model must take (28, 28, 1) and give (10,), got {taken} and {given}: '{file}'"
            )

        from digit_study.model.fit import Predictor

        # a single image takes a seventh of the time of Keras's own call
        predict = Predictor(model)
        blank = np.zeros((1, SIDE, SIDE, 1), np.uint8)
        # the first call sets TensorFlow up, which may print
        predict(blank)

    def predict_images(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with_channel = images[..., None]
        return np.asarray(predict(with_channel), np.float32)

    return predict_images


@dataclass(frozen=True)
class Prepared:
    """A file before the network has seen it: an error, a digit, or the marks of a number."""

    file: str
    error: str | None = None
    #: The digit, (28, 28), uint8.
    pixels: Digit | None = None
    #: Of each line the marks, and of each mark the ways to cut it up.
    lines: list[list[Ways]] | None = None

    def images(self) -> list[Digit]:
        """Return the images (28, 28) that the network is to see, in order."""
        if self.pixels is not None:
            return [self.pixels]
        if self.lines is None:
            return []
        found = []
        for line in self.lines:
            for ways in line:
                for way in ways:
                    found += [piece.pixels for piece in way]
        return found


@dataclass(frozen=True)
class Picture:
    """A picture that is decoded and cut up once, however many networks read it."""

    #: An image file, or its bytes.
    source: Path | bytes

    @cached_property
    def prepared(self) -> Prepared:
        """Return the digit, the marks of a number, or the error."""
        return _prepare(self.source, "", only_digit=False)

    @cached_property
    def turned_forms(self) -> dict[str, Digit]:
        """Return the digit of a photograph, turned each way in :data:`TURNS` that shows one."""
        try:
            if not may_lie_on_its_side(self.source):
                return {}
            grey = read_grey(self.source)
        except (ImageError, OSError):
            # the reading as it is says why
            return {}
        forms = {}
        for turned, quarters in TURNS.items():
            try:
                forms[turned] = to_mnist(np.rot90(grey, quarters))
            except ImageError:
                continue
        return forms

    def read(self, model: Model, accepts: Accepts | None = None) -> Reading:
        """Read what is written in it: a digit, or numbers in a row or in several.

        Args:
            model: images (n, 28, 28), uint8, to probabilities (n, 10).
            accepts: images (n, 28, 28, 1) to whether each shows a digit; None takes all for digits.

        Returns:
            What was read, or the error; without the name of a file.
        """
        (upright,) = _readings([self.prepared], model, accepts, None)
        return _turned_if_refused(self, upright, model, accepts, None)


@dataclass(frozen=True)
class _Answers:
    """What the network and the detector say of images, in order."""

    #: Of each digit, (n, 10).
    probabilities: npt.NDArray[np.float32]
    #: Whether each image passes for a digit, (n,).
    are_digits: npt.NDArray[np.bool_]
    #: Which digits are in each prediction set, (n, 10); None where nobody asked for sets.
    sets: npt.NDArray[np.bool_] | None


def read_files(
    files: Iterable[Path],
    model: Model,
    accepts: Accepts | None = None,
    least: float | None = None,
    batch: BatchSize = BATCH,
    *,
    only_digit: bool = False,
) -> Iterator[Reading]:
    """Read files in batches, in order; what cannot be read yields its error and stops nothing.

    The model is called once for each batch, and never without an image. Memory does not grow with
    the number of files.

    Args:
        files: image files.
        model: images (n, 28, 28), uint8, to probabilities (n, 10).
        accepts: images (n, 28, 28, 1) to whether each shows a digit; None takes all for digits.
        least: the probability that a digit needs for its prediction set; None asks for no sets.
        batch: how much is read before the model is called.
        only_digit: refuse a picture of several digits.

    Yields:
        A reading for each file.
    """
    for prepared in _batches(files, batch, only_digit=only_digit):
        for upright in _readings(prepared, model, accepts, least):
            picture = Picture(Path(upright.file))
            yield _turned_if_refused(picture, upright, model, accepts, least)


def _readings(
    prepared: Sequence[Prepared], model: Model, accepts: Accepts | None, least: float | None
) -> list[Reading]:
    """Read prepared files, with a single call of the model, or none if there are no images."""
    images: list[Digit] = []
    for single in prepared:
        images += single.images()
    if not images:
        return [Reading(single.file, error=single.error) for single in prepared]
    answers = _answers(np.stack(images), model, accepts, least)
    readings = []
    first = 0
    for single in prepared:
        readings.append(_reading(single, answers, first))
        first += len(single.images())
    return readings


def _turned_if_refused(
    picture: Picture,
    upright: Reading,
    model: Model,
    accepts: Accepts | None,
    least: float | None,
) -> Reading:
    """Turn a photograph by a quarter, if it shows no digit as it is, but one when it is turned.

    Args:
        picture: the picture.
        upright: its reading as it is.
        model: images (n, 28, 28), uint8, to probabilities (n, 10).
        accepts: which images (n, 28, 28, 1) show a digit; None takes all for digits.
        least: the probability that a digit needs for its prediction set; None asks for no sets.

    Returns:
        The reading of the turned photograph. That as it is where something was read or nothing is
        refused, where it is no photograph that may lie on its side, and where it shows no digit
        either way, or another digit each way, as a 6 does.
    """
    if upright.error is None or accepts is None:
        return upright
    forms = picture.turned_forms
    prepared = [Prepared(upright.file, pixels=pixels) for pixels in forms.values()]
    readings = _readings(prepared, model, accepts, least)
    found = []
    for turned, reading in zip(forms, readings, strict=True):
        if reading.digit is not None:
            found.append(replace(reading, turned=turned))
    if len({reading.digit for reading in found}) != 1:
        return upright
    surest = max(found, key=_highest_probability)
    pixels = forms[str(surest.turned)]
    (is_surely_digit,) = accepts(pixels[None, ..., None], margin=MARGIN_OF_TURN)
    if not is_surely_digit or _highest_probability(surest) < PROBABILITY_OF_TURN:
        return upright
    return surest


def _highest_probability(reading: Reading) -> float:
    """Return the probability of the digit that was read."""
    return max(reading.probabilities or [0.0])


def _batches(
    files: Iterable[Path], batch: BatchSize, *, only_digit: bool
) -> Iterator[list[Prepared]]:
    """Prepare files, as many at a time as the model is called for."""
    group: list[Prepared] = []
    count = 0
    for prepared in _side_by_side(files, only_digit=only_digit):
        group.append(prepared)
        count += len(prepared.images())
        if len(group) == batch.files or count >= batch.images:
            yield group
            group = []
            count = 0
    if group:
        yield group


def _side_by_side(files: Iterable[Path], *, only_digit: bool) -> Iterator[Prepared]:
    """Prepare files, several at a time, and yield them in order.

    Pillow, numpy and scipy let other threads run while they compute.
    """
    at_a_time = min(cores(), MOST_AT_A_TIME)
    with ThreadPoolExecutor(at_a_time) as pool:
        begun: deque[Future[Prepared]] = deque()
        try:
            for file in files:
                begun.append(pool.submit(_prepare, file, str(file), only_digit=only_digit))
                # a few more than are worked on, so that no core waits for the first of them
                if len(begun) > 2 * at_a_time:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for waiting in begun:
                waiting.cancel()


def _prepare(source: Path | bytes, name: str, *, only_digit: bool) -> Prepared:
    """Find the digit of a file, or its digits."""
    try:
        grey = read_grey(source)
        try:
            return Prepared(name, pixels=to_mnist(grey))
        except SeveralMarks as fault:
            if only_digit:
                raise
            scale = max(upright_size(source)) / max(grey.shape)
            return _prepare_number(grey, name, str(fault), scale)
    except ImageError as fault:
        return Prepared(name, error=str(fault))
    except OSError as fault:  # a folder that may not be entered, a disk that fails
        error = f"cannot be read ({fault.strerror}); check its permissions"
        return Prepared(name, error=error)


def _prepare_number(grey: Grey, name: str, fault: str, scale: float) -> Prepared:
    """Find the digits of a picture that holds several marks, or keep the fault if it has none.

    Args:
        grey: the picture.
        name: of its file.
        fault: why it is no single digit.
        scale: how many pixels of the file a pixel of ``grey`` is wide.

    Raises:
        ImageError: if it holds no strokes, or more marks than numbers have.
    """
    prepared = Prepared(name, lines=segment(grey, scale))
    if not prepared.images():
        return Prepared(name, error=fault)
    return prepared


def _answers(pixels: Digit, model: Model, accepts: Accepts | None, least: float | None) -> _Answers:
    """Ask the network and the detector of images (n, 28, 28)."""
    probabilities = model(pixels)
    are_digits = np.ones(len(probabilities), np.bool_)
    if accepts is not None:
        are_digits = accepts(pixels[..., None])
    sets = None
    if least is not None:
        sets = prediction_sets(probabilities, least)
    return _Answers(probabilities, are_digits, sets)


def _reading(prepared: Prepared, answers: _Answers, first: int) -> Reading:
    """Put together what was read in a file, whose images are those from ``first`` on."""
    if prepared.error is not None:
        return Reading(prepared.file, error=prepared.error)
    if prepared.lines is not None:
        return _number_reading(prepared.file, prepared.lines, answers, first)
    if not answers.are_digits[first]:
        return Reading(prepared.file, error=NO_DIGIT, pixels=prepared.pixels)
    return _digit_reading(prepared.file, prepared.pixels, answers, first)


def _digit_reading(file: str, pixels: Digit | None, answers: _Answers, index: int) -> Reading:
    """Put together what was read of a single digit, whose answer has an index."""
    row = answers.probabilities[index]
    digits_of_set = None
    if answers.sets is not None:
        digits_of_set = np.flatnonzero(answers.sets[index]).tolist()
    return Reading(
        file,
        digit=int(row.argmax()),
        probabilities=row.tolist(),
        pixels=pixels,
        digits=digits_of_set,
    )


def _number_reading(file: str, lines: list[list[Ways]], answers: _Answers, first: int) -> Reading:
    """Choose for each mark the way to cut it up of which the network is surest."""
    found = []
    chosen: list[int] = []
    for line in lines:
        digits: list[NumberDigit] = []
        for ways in line:
            if not ways:
                continue
            spans = _spans(ways, first)
            first = spans[-1].stop
            sureness = [_sureness(answers, span) for span in spans]
            best = int(np.argmax(sureness))
            span_of_best = spans[best]
            digits += _number_digits(ways[best], answers, span_of_best)
            chosen += range(span_of_best.start, span_of_best.stop)
        if digits:
            found.append(digits)
    # there is a digit at least: a picture of none is an error before the network is asked
    if answers.are_digits[chosen].mean() < 0.5:
        return Reading(file, error=NO_NUMBER)
    number = Number(found)
    if len(chosen) > 1:
        return Reading(file, number=number)
    (only,) = number.digits
    return _digit_reading(file, only.pixels, answers, chosen[0])


def _spans(ways: Ways, first: int) -> list[slice]:
    """Return where the answers to the pieces of each way lie, the first of all at ``first``."""
    spans = []
    for way in ways:
        stop = first + len(way)
        spans.append(slice(first, stop))
        first = stop
    return spans


def _number_digits(way: Sequence[Piece], answers: _Answers, span: slice) -> list[NumberDigit]:
    """Return the digits of the pieces of a way."""
    digits = []
    for piece, row in zip(way, answers.probabilities[span], strict=True):
        digit = NumberDigit(
            digit=int(row.argmax()),
            probabilities=row.tolist(),
            box=piece.box,
            pixels=piece.pixels,
        )
        digits.append(digit)
    return digits


def _sureness(answers: _Answers, span: slice) -> float:
    """Return how sure network and detector are of the pieces of a way: the larger, the surer."""
    highest = answers.probabilities[span].max(axis=1)
    are_digits = answers.are_digits[span]
    likely = np.log(highest).mean()
    refused = 1 - are_digits.mean()
    pieces = len(highest)
    return float(likely - DOUBT * refused - DOUBT_OF_CUTS * pieces)
