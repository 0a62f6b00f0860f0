"""A photograph that lies on its side is turned, where it shows no digit as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import sample
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from digit_study.inference.prediction import read_files
from digit_study.pictures.image_files import may_lie_on_its_side

Bitmap = npt.NDArray[np.uint8]
DIGITS, LABELS = sample()
FOUR = DIGITS[int(np.flatnonzero(LABELS == 4)[3])]


def photo_of(digit: Bitmap, quarters: int, width: int = 1600, height: int = 1200) -> Image.Image:
    """Return a photograph of a digit on white paper, turned by quarters to the left."""
    turned = Image.fromarray(255 - np.rot90(digit, quarters)).resize((560, 560))
    photo = Image.new("L", (width, height), 255)
    photo.paste(turned, (width // 3, height // 4))
    return photo


def is_four(images: Bitmap, *, margin: float = 0.0) -> npt.NDArray[np.bool_]:
    """A stand-in for the detector: only an upright 4 is a digit."""
    known = FOUR.ravel().astype(np.float64)
    alike = [np.corrcoef(image.ravel(), known)[0, 1] for image in images]
    return np.array(alike) > 0.8


def surely_four(images: Bitmap) -> npt.NDArray[np.float32]:
    """A stand-in for a network that sees a 4 in everything."""
    return np.eye(10, dtype=np.float32)[[4] * len(images)]


@pytest.mark.parametrize(("quarters", "turned"), [(0, None), (-1, "left"), (1, "right")])
def test_it_is_read_and_said_how_it_was_turned(
    quarters: int, turned: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "photo.jpg"
    photo_of(FOUR, quarters).save(file)
    (reading,) = read_files([file], surely_four, is_four)
    assert (reading.digit, reading.turned, reading.error) == (4, turned, None)
    assert reading.pixels is not None and is_four(reading.pixels[None])[0]
    assert reading.as_json().get("turned") == turned
    assert reading.file == str(file)


def test_what_shows_no_digit_either_way_keeps_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "photo.jpg"
    photo_of(FOUR, 2).save(file)
    (reading,) = read_files([file], surely_four, is_four)
    assert reading.digit is None and "is not surely a digit" in str(reading.error)


def test_another_digit_each_way_is_none(tmp_path: Path) -> None:
    """A 6 on its side is a 9 as well."""

    def counted(images: Bitmap) -> npt.NDArray[np.float32]:
        return np.eye(10, dtype=np.float32)[np.arange(len(images)) % 10]

    calls = []

    def all_but_upright(images: Bitmap, *, margin: float = 0.0) -> npt.NDArray[np.bool_]:
        calls.append(len(images))
        return np.full(len(images), len(calls) > 1)

    file = tmp_path / "photo.jpg"
    photo_of(FOUR, 1).save(file)
    (reading,) = read_files([file], counted, all_but_upright)
    assert reading.digit is None and reading.turned is None
    assert calls[1:] == [2]


@pytest.mark.slow
def test_a_turned_photo_needs_more_than_others(tmp_path: Path) -> None:
    def barely_four(images: Bitmap, *, margin: float = 0.0) -> npt.NDArray[np.bool_]:
        return is_four(images) & (margin <= 0)

    def unsure(images: Bitmap) -> npt.NDArray[np.float32]:
        return 0.6 * surely_four(images) + 0.04

    file = tmp_path / "photo.jpg"
    photo_of(FOUR, 1).save(file)
    for model, accepts in ((surely_four, barely_four), (unsure, is_four)):
        (reading,) = read_files([file], model, accepts)
        assert reading.digit is None and reading.turned is None
    # without the detector everything is read as it is
    (reading,) = read_files([file], surely_four)
    assert (reading.digit, reading.turned) == (4, None)


@pytest.mark.parametrize(
    ("size", "name", "orientation", "may"),
    [
        ((1600, 1200), "a.jpg", None, True),
        ((1280, 720), "a.jpg", None, True),
        # 1,365.33 by 1,024
        ((1365, 1024), "a.jpg", None, True),
        ((1200, 1600), "a.jpg", None, False),
        ((1600, 1100), "a.jpg", None, False),
        ((640, 480), "a.jpg", None, False),
        ((1600, 1200), "a.png", None, False),
        ((1600, 1200), "a.jpg", 1, False),
        ((1600, 1200), "a.jpg", 6, False),
    ],
)
def test_it_is_an_uncropped_photograph_without_a_note_how_it_was_held(
    size: tuple[int, int], name: str, orientation: int | None, may: bool, tmp_path: Path
) -> None:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("L", size, 255).save(tmp_path / name, exif=exif)
    assert may_lie_on_its_side(tmp_path / name) is may


def test_a_damaged_note_how_it_was_held_is_an_error_of_its_file(tmp_path: Path) -> None:
    notes = PngInfo()
    notes.add_text("Raw profile type exif", "exif\n2\nlines\nno hexadecimal number")
    Image.new("L", (1600, 1200), 255).save(tmp_path / "a.png", pnginfo=notes)
    (reading,) = read_files([tmp_path / "a.png"], surely_four, is_four)
    assert "is damaged" in str(reading.error)
