"""Digits of Kaggle's tables, of MNIST's own files and of folders as ``data.path``."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import sample
from PIL import Image, ImageDraw

from digit_study.data import formats, sources
from digit_study.data.sources import DataConfig
from digit_study.pictures.image_files import reads_heif
from digit_study.pictures.images import read_digit
from digit_study.support.errors import StudyError

ALL_IMAGES, ALL_LABELS = sample()
IMAGES = ALL_IMAGES[::20]
LABELS = ALL_LABELS[::20]
PIXEL_NAMES = ",".join(f"pixel{number}" for number in range(784))


def write_csv(file: Path, *, names: bool = True) -> Path:
    rows = []
    if names:
        rows.append(f"label,{PIXEL_NAMES}")
    for image, label in zip(IMAGES, LABELS, strict=True):
        rows.append(",".join(map(str, [label, *image.ravel()])))
    file.write_text("\n".join(rows))
    return file


def write_idx(folder: Path, part: str, ending: str) -> None:
    for kind, array in (("images", IMAGES), ("labels", LABELS.astype(np.uint8))):
        header = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
        content = header + array.tobytes()
        if ending == ".gz":
            content = gzip.compress(content)
        (folder / f"{part}-{kind}-idx{array.ndim}-ubyte{ending}").write_bytes(content)


def write_folder(folder: Path) -> Path:
    for number, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:03}.png")
    return folder


@pytest.mark.parametrize("names", [True, False])
def test_kaggles_table(names: bool, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "train.csv", names=names)
    images, labels = sources.read_path(table, "train")
    assert np.array_equal(images[..., 0], IMAGES)
    assert np.array_equal(labels, LABELS)


def test_tables_of_floats_without_names(tmp_path: Path) -> None:
    file = tmp_path / "digits.csv"
    pixels = IMAGES.reshape(len(IMAGES), -1)
    np.savetxt(file, np.column_stack([LABELS, pixels]), delimiter=",")
    images, labels = sources.read_path(file, "train")
    assert np.array_equal(images[..., 0], IMAGES)
    assert np.array_equal(labels, LABELS)
    np.savetxt(file, pixels, delimiter=",", fmt="%.1f")
    assert np.array_equal(formats.read_unlabelled_csv(file), IMAGES)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "0.5 .* by 255"),
        (1.5, "1.5 .* correct that cell"),
        (256, "256 .* correct that cell"),
        (-1, "-1 .* correct that cell"),
        (np.nan, "an empty cell .* correct that cell"),
        (np.inf, "inf .* correct that cell"),
    ],
)
def test_a_pixel_that_is_no_grey_level_is_refused(value: float, said: str, tmp_path: Path) -> None:
    file = tmp_path / "digits.csv"
    pixels = IMAGES.reshape(len(IMAGES), -1).astype(np.float64)
    pixels[3, 200] = value
    np.savetxt(file, pixels, delimiter=",")
    with pytest.raises(StudyError, match=f"whole numbers from 0 to 255, got {said}"):
        formats.read_unlabelled_csv(file)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnists_files(ending: str, tmp_path: Path) -> None:
    write_idx(tmp_path, "train", ending)
    file = tmp_path / f"train-images-idx3-ubyte{ending}"
    for path in (tmp_path, file):
        images, labels = sources.read_path(path, "train")
        assert np.array_equal(images[..., 0], IMAGES)
        assert np.array_equal(labels, LABELS)
    assert not sources.has_test_set(tmp_path)
    write_idx(tmp_path, "t10k", ending)
    assert sources.has_test_set(tmp_path)
    assert len(sources.read_path(tmp_path, "test")[1]) == len(LABELS)


@pytest.mark.slow
def test_a_folder_with_a_subfolder_for_each_digit(tmp_path: Path) -> None:
    images, labels = sources.read_path(write_folder(tmp_path / "pictures"), "train")
    order = np.argsort(LABELS, kind="stable")
    assert np.array_equal(images[..., 0], IMAGES[order])
    assert np.array_equal(labels, LABELS[order])


def test_pictures_of_a_folder_are_seen_as_predict_sees_them(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    # a photo in uneven light, with the digit beside the middle
    digit = Image.fromarray(IMAGES[0]).resize((300, 300))
    light = np.linspace(120, 220, 800)[None].repeat(600, axis=0)
    light[100:400, 80:380] -= 0.4 * np.asarray(digit)
    photo = Image.fromarray(light.astype(np.uint8)).convert("RGB")
    photo.save(tmp_path / "0" / "photo.jpg")
    # a drawing of 12 pixels, dark on light
    drawing = Image.new("L", (12, 12), 255)
    ImageDraw.Draw(drawing).ellipse((2, 1, 8, 10), outline=0)
    drawing.save(tmp_path / "0" / "drawing.png")
    (tmp_path / "0" / "notes.txt").write_text("no picture")
    images, labels = formats.read_folder(tmp_path, "train")
    assert labels.tolist() == [0, 0]
    for image, name in zip(images, ("drawing.png", "photo.jpg"), strict=True):
        assert np.array_equal(image, read_digit(tmp_path / "0" / name))
    correlation = np.corrcoef(images[1].ravel().astype(float), IMAGES[0].ravel().astype(float))
    assert correlation[0, 1] > 0.8


@pytest.mark.slow
def test_pictures_that_predict_refuses_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pictures")
    Image.new("L", (40, 40), 255).save(folder / "3" / "blank.png")
    (folder / "7" / "word.png").write_text("seven")
    with pytest.raises(StudyError, match="it refuses 2") as caught:
        sources.read_path(folder, "train")
    assert f"{folder / '3' / 'blank.png'} is blank" in str(caught.value)
    assert f"{folder / '7' / 'word.png'} is not an image" in str(caught.value)


def test_pictures_of_phones_are_not_left_out_unsaid(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    photo = tmp_path / "3" / "IMG_1.HEIC"
    photo.write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(StudyError, match="of 1 it refuses 1") as caught:
        formats.read_folder(tmp_path, "train")
    assert str(photo) in str(caught.value)
    if not reads_heif():
        assert "pip install pillow-heif" in str(caught.value)


def test_a_missing_test_set_is_reported_before_anything_is_trained(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "train.csv")
    source = sources.resolve(DataConfig(path=str(table)))
    assert source.warning is not None
    assert "nothing is promoted" in source.warning
    with pytest.raises(StudyError, match="without a test set"):
        sources.read_path(tmp_path / "train.csv", "test")


@pytest.mark.parametrize(
    ("content", "word"),
    [("a,b\n1,2\n", "got 2 columns"), ("x\nword\n", "whole numbers"), ("", "whole numbers")],
)
def test_another_table_is_refused(content: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(StudyError, match=word):
        sources.read_path(tmp_path / "train.csv", "train")


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="check the spelling"):
        sources.read_path(tmp_path / "trian.csv", "train")


def test_a_damaged_idx_file_is_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", "")
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(StudyError, match="must be whole"):
        sources.read_path(tmp_path, "train")


def test_a_table_without_labels_is_for_prediction(tmp_path: Path) -> None:
    rows = [PIXEL_NAMES]
    for image in IMAGES:
        rows.append(",".join(map(str, image.ravel())))
    (tmp_path / "test.csv").write_text("\n".join(rows))
    assert np.array_equal(formats.read_unlabelled_csv(tmp_path / "test.csv"), IMAGES)
    with pytest.raises(StudyError, match="train.csv that holds the labels"):
        sources.read_path(tmp_path / "test.csv", "train")
