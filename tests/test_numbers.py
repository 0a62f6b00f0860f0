"""Pictures of several digits are read as numbers: cut up, in order, with a box for each digit."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import numpy.typing as npt
import pytest
from conftest import sample
from PIL import Image, ImageDraw
from scipy import ndimage
from skimage.morphology import closing, disk, opening

from digit_study.inference import prediction
from digit_study.inference.picture import readings_figure
from digit_study.inference.prediction import MOST_AT_A_TIME, BatchSize, Picture, read_files
from digit_study.inference.segmentation import segment
from digit_study.pictures.image_files import ImageError, read_grey, upright_size
from digit_study.pictures.images import SeveralMarks, read_digit
from digit_study.pictures.ink import (
    _highest_in_disc,
    box_of,
    closed_by_disc,
    opened_by_square,
)
from digit_study.support.hardware import cores

Bitmap = npt.NDArray[np.uint8]
DIGITS, LABELS = sample()
#: One clear image of each digit.
CLEAR = [int(np.flatnonzero(digit == LABELS)[3]) for digit in range(10)]


def row_of(digits: str, apart: int = 0) -> Bitmap:
    """Dark digits on white paper, side by side, with a margin."""
    images = [np.pad(DIGITS[CLEAR[int(digit)]], ((0, 0), (0, apart))) for digit in digits]
    return np.asarray(255 - np.pad(np.hstack(images), 20), np.uint8)


def by_likeness(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """A stand-in for a network: the likest of the clear digits."""
    known = DIGITS[CLEAR].reshape(10, -1).astype(np.float64)
    seen = images.reshape(len(images), -1).astype(np.float64)
    alike = np.corrcoef(seen, known)[: len(seen), len(seen) :]
    chances = np.exp(8 * alike)
    return np.asarray(chances / chances.sum(axis=1, keepdims=True), np.float32)


def save(folder: Path, picture: Bitmap, name: str = "n.png") -> Path:
    Image.fromarray(picture).save(folder / name)
    return folder / name


def png(picture: Bitmap) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("enlarged", [1, 4])
def test_a_row_is_read_from_the_left(enlarged: int, tmp_path: Path) -> None:
    picture = np.kron(row_of("3072", 6), np.ones((enlarged, enlarged), np.uint8))
    (reading,) = read_files([save(tmp_path, picture)], by_likeness)
    assert reading.error is None and reading.number is not None
    assert reading.number.text == "3072" and reading.digit is None
    found = reading.as_json()
    assert found["number"] == "3072" and len(found["digit_probabilities"]) == 4
    lefts = [box[0] for box in found["boxes"]]
    assert lefts == sorted(lefts) and 0 < found["probability"] <= 1
    # boxes are in pixels of the picture, whatever it was shrunk to
    assert all(20 * enlarged <= box[1] <= 48 * enlarged for box in found["boxes"])


#: EXIF whose only tag is an orientation of 6, as text instead of a number.
ORIENTATION_AS_TEXT = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\x006\0\0\0\0\0\0\0"


def test_an_orientation_that_is_no_number_means_nothing(tmp_path: Path) -> None:
    picture = row_of("18", 6)
    Image.fromarray(picture).save(tmp_path / "n.png", exif=ORIENTATION_AS_TEXT)
    assert upright_size(tmp_path / "n.png") == picture.shape[::-1]
    (reading,) = read_files([tmp_path / "n.png"], by_likeness)
    assert reading.number is not None and reading.number.text == "18"


@pytest.mark.parametrize("name", ["n.png", "n.jpg", "n.tif", "uncompressed.tif"])
def test_boxes_lie_in_the_picture_as_it_is_shown(name: str, tmp_path: Path) -> None:
    picture = row_of("18", 6)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"compression": "tiff_lzw"} if name == "n.tif" else {}
    Image.fromarray(np.rot90(picture)).save(tmp_path / name, exif=exif, **options)
    (reading,) = read_files([tmp_path / name], by_likeness)
    assert reading.number is not None and reading.number.text == "18"
    assert upright_size(tmp_path / name) == picture.shape[::-1]


def test_lines_are_read_from_the_top() -> None:
    lines = [row_of("4096", 4), row_of("5138", 4)]
    reading = Picture(png(np.vstack(lines))).read(by_likeness)
    assert reading.number is not None and reading.number.text == "4096\n5138"


def test_a_minus_and_dots_are_left_out() -> None:
    picture = Image.fromarray(np.pad(row_of("325", 8), ((0, 0), (30, 0)), constant_values=255))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((20, 34, 34, 36), 0)
    pen.ellipse((84, 42, 87, 45), 0)
    number = Picture(png(np.asarray(picture))).read(by_likeness).number
    assert number is not None and number.text == "325"


def test_ruled_lines_are_taken_out() -> None:
    picture = np.kron(row_of("648", 8), np.ones((5, 5), np.uint8))
    for top in range(30, picture.shape[0], 60):
        picture[top : top + 3] = np.minimum(picture[top : top + 3], 150)
    number = Picture(png(picture)).read(by_likeness).number
    assert number is not None and number.text == "648"


def test_touching_zeros_are_cut_apart() -> None:
    zeros = DIGITS[CLEAR[0]]
    columns = np.flatnonzero(zeros.any(axis=0))
    tight = zeros[:, columns[0] : columns[-1] + 1]
    picture = np.kron(np.pad(np.hstack([tight, tight[:, 1:]]), 20), np.ones((4, 4), np.uint8))
    ((ways,),) = segment((255 - picture).astype(np.float32))
    assert 2 in [len(way) for way in ways]


def test_whoever_insists_on_a_digit_gets_none_of_several(tmp_path: Path) -> None:
    file = save(tmp_path, row_of("3072", 6))
    (reading,) = read_files([file], by_likeness, only_digit=True)
    assert reading.number is None and "4 marks" in str(reading.error)


def test_marks_that_are_no_digits_are_no_number(tmp_path: Path) -> None:
    file = save(tmp_path, row_of("3072", 6))
    (reading,) = read_files([file], by_likeness, lambda images: np.zeros(len(images), np.bool_))
    assert reading.number is None and "not surely digits" in str(reading.error)


def test_a_single_digit_stays_a_digit(tmp_path: Path) -> None:
    (reading,) = read_files([save(tmp_path, row_of("7"))], by_likeness)
    assert reading.digit == 7 and reading.number is None and "number" not in reading.as_json()


def test_a_digit_among_marks_that_are_none_has_its_prediction_set(tmp_path: Path) -> None:
    picture = Image.fromarray(row_of("7", 200))
    pen = ImageDraw.Draw(picture)
    for column in range(70, 220, 16):
        pen.rectangle((column, 32, column + 7, 34), 0)
    file = save(tmp_path, np.asarray(picture))
    with pytest.raises(SeveralMarks):
        read_digit(file)
    (reading,) = read_files([file], by_likeness, least=0.2)
    assert reading.digit == 7 and reading.digits == [7]


def test_the_model_is_called_once_for_digits_and_numbers(tmp_path: Path) -> None:
    calls = []

    def counted(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        calls.append(len(images))
        return by_likeness(images)

    files = [
        save(tmp_path, row_of("7"), "a.png"),
        save(tmp_path, row_of("18", 6), "b.png"),
        save(tmp_path, row_of("4"), "c.png"),
    ]
    readings = list(read_files(files, counted))
    assert len(calls) == 1
    assert [reading.digit for reading in readings] == [7, None, 4]
    assert readings[1].number is not None and readings[1].number.text == "18"


def page_of_marks(side: int) -> Bitmap:
    """A page of side x side upright bars."""
    mark = np.pad(np.zeros((14, 8), np.uint8), ((4, 5), (7, 8)), constant_values=255)
    return np.pad(np.tile(mark, (side, side)), 50, constant_values=255)


def steps_of(picture: Bitmap) -> set[str]:
    """Names of the functions of the front end through which a picture goes that is refused."""
    called = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "digit_study" in frame.f_code.co_filename:
            called.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        with pytest.raises(ImageError):
            segment(picture.astype(np.float32))
    finally:
        sys.setprofile(None)
    return called


def never(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """A network that nobody may ask."""
    raise AssertionError(f"{len(images)} images were predicted")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "reason", "left_out"),
    [
        # marks are counted before lines are looked for and before they are put together
        (100, "holds over 2,500 marks", {"_ruled_lines", "_together", "_ways"}),
        (24, "holds 576 digits; at most 500 are read", {"_ways", "_cut_up", "_piece"}),
    ],
)
def test_a_page_of_too_many_marks_is_refused_before_they_are_cut_up(
    side: int, reason: str, left_out: set[str]
) -> None:
    page = page_of_marks(side)
    assert reason in str(Picture(png(page)).read(never).error)
    called = steps_of(page)
    assert "find_ink" in called and not called & left_out


@pytest.mark.parametrize("side", [2, 3, 6, 7])
def test_a_mask_is_opened_as_scipy_does(side: int) -> None:
    random = np.random.default_rng(side)
    dots = random.random((40, 50)) > 0.97
    mask = ndimage.binary_dilation(dots, np.ones((7, 5))) | (random.random((40, 50)) > 0.99)
    square = np.ones((side, side))
    assert np.array_equal(opened_by_square(mask, side), ndimage.binary_opening(mask, square))


# widths at which the disc is the one that skimage puts together of lines
@pytest.mark.parametrize("side", [7, 17, 35, 55])
def test_a_plane_is_closed_and_opened_by_a_disc_as_skimage_does(side: int) -> None:
    plane = np.random.default_rng(side).normal(size=(3 * side, 4 * side)).astype(np.float32)
    disc = disk(side // 2, decomposition="sequence")
    inner = slice(side - 1, 1 - side)
    closed = closing(plane, disc)[inner, inner]
    opened = opening(plane, disc)[inner, inner]
    assert np.array_equal(closed_by_disc(plane, side)[inner, inner], closed)
    assert np.array_equal(-closed_by_disc(-plane, side)[inner, inner], opened)


@pytest.mark.parametrize("side", range(3, 73, 2))
def test_a_disc_of_any_width_is_round_and_solid(side: int) -> None:
    point = np.zeros((3 * side, 3 * side), np.float32)
    middle = 3 * side // 2
    point[middle, middle] = 1
    dilated = _highest_in_disc(point, side) > 0
    rows, columns = box_of(dilated)
    disc = dilated[rows, columns]
    assert disc.shape == (side, side)
    assert np.array_equal(disc, disc.T) and np.array_equal(disc, disc[::-1])
    # no row has a gap, and no hole lies inside
    assert (np.abs(np.diff(disc.astype(int), axis=1)).sum(axis=1) <= 2).all()
    assert np.array_equal(disc, ndimage.binary_fill_holes(disc))
    # the smallest two are squares
    most_over = 0.16
    if side < 7:
        most_over = 0.28
    assert disc.sum() == pytest.approx(math.pi * side**2 / 4, rel=most_over)


@pytest.mark.slow
def test_memory_is_bounded_by_digits_too(tmp_path: Path) -> None:
    """Pages of many digits are predicted before as many files are read as of single digits."""
    opened = []
    calls = []

    def files() -> Iterator[Path]:
        page = save(tmp_path, np.vstack([row_of("0123456789" * 2, 6)] * 5))
        for number in range(12):
            opened.append(number)
            yield page

    def counted(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        calls.append((len(opened), len(images)))
        return by_likeness(images)

    assert len(list(read_files(files(), counted, batch=BatchSize(files=4, images=250)))) == 12
    # two pages are enough for a call; those that are prepared meanwhile wait for the next one
    ahead = 2 * min(cores(), MOST_AT_A_TIME)
    assert [opened for opened, _ in calls] == [min(12, 2 * call + ahead) for call in range(1, 7)]


def test_files_are_read_in_order_however_long_each_takes(tmp_path: Path) -> None:
    rows = ["7", "3072", "1", "12", "9", "4096", "0", "5"]
    files = [save(tmp_path, row_of(row, 6), f"{row}.png") for row in rows]
    found = list(read_files(files, by_likeness))
    assert [reading.file for reading in found] == [str(file) for file in files]


def test_a_fault_while_files_are_prepared_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(source: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(prediction, "read_grey", fails)
    files = [save(tmp_path, row_of("7"))] * 20
    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(read_files(files, by_likeness))


def test_the_picture_has_a_box_for_each_digit(tmp_path: Path) -> None:
    files = [save(tmp_path, row_of("3072", 6)), save(tmp_path, row_of("7"), "a.png")]
    first, _ = readings_figure(list(read_files(files, by_likeness))).axes
    assert len(first.patches) == 4 and read_grey(files[0]).shape == (68, 176)
