"""The augmentation after people's handwriting, the forms it draws, and ``robust_accuracy``."""

from __future__ import annotations

import time

import numpy as np
import pytest
from augmented import changed_batches
from conftest import sample

from digit_study.model import pen, robustness

IMAGES, LABELS = sample()


def batches_of(count: int, one_hot: bool = False):  # type: ignore[no-untyped-def]
    import tensorflow as tf

    targets = np.eye(10, dtype=np.float32)[LABELS] if one_hot else LABELS
    chosen = np.random.default_rng(0).permutation(len(LABELS))[: 2 * count]
    whole = tf.data.Dataset.from_tensors((IMAGES[chosen, :, :, None], targets[chosen]))
    return whole.unbatch().batch(count)


def varied(seed: int, one_hot: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    from digit_study.model.augmentation import handwriting

    batches = changed_batches(batches_of(64, one_hot), seed, handwriting(seed))
    return [(images.numpy(), targets.numpy()) for images, targets in batches]


@pytest.mark.slow
def test_images_vary_and_labels_stay() -> None:
    plain = [(images.numpy(), targets.numpy()) for images, targets in batches_of(64)]
    for (images, targets), (before, labels) in zip(varied(0), plain, strict=True):
        assert images.shape == before.shape and images.dtype == np.float32
        assert images.min() >= 0 and images.max() <= 255 and np.isfinite(images).all()
        assert np.array_equal(targets, labels)
        same = [np.array_equal(*pair) for pair in zip(images, before, strict=True)]
        assert sum(same) == 16


@pytest.mark.slow
def test_the_same_seed_gives_the_same_images_and_each_batch_others() -> None:
    first, again, other = varied(3), varied(3), varied(4)
    assert np.array_equal(first[0][0], again[0][0]) and np.array_equal(first[1][0], again[1][0])
    assert not np.array_equal(first[0][0], other[0][0])


@pytest.mark.slow
def test_smoothed_labels_are_understood() -> None:
    assert varied(0, one_hot=True)[0][1].shape == (64, 10)


@pytest.mark.slow
def test_forms_differ_and_fit_into_a_box() -> None:
    drawn = pen.variants(0, 20)
    assert drawn.shape == (10, 20, pen.PIECES, 2, 2) and np.isfinite(drawn).all()
    extents = drawn.max(axis=(2, 3)) - drawn.min(axis=(2, 3))
    assert extents.max(axis=-1) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(drawn, pen.variants.__wrapped__(0, 20))
    assert not np.array_equal(drawn, pen.variants(1, 20))


@pytest.mark.slow
def test_robust_accuracy_is_of_the_same_images_every_time_and_quick() -> None:
    images = IMAGES[:1000, :, :, None]
    labels = LABELS[:1000].astype(np.int64)
    seen = []

    def predict(some: np.ndarray) -> np.ndarray:
        seen.append(some)
        return np.eye(10, dtype=np.float32)[np.zeros(len(some), int)]

    robustness.corrupted_images.cache_clear()
    began = time.process_time()
    found = robustness.robust_correct(predict, images, labels)
    assert time.process_time() - began < 1
    robustness.corrupted_images.cache_clear()
    assert np.array_equal(robustness.robust_correct(predict, images, labels), found)
    assert np.array_equal(*seen) and seen[0].dtype == np.uint8
    assert len(seen[0]) == len(robustness.KINDS) * robustness.IMAGES + robustness.DRAWN
