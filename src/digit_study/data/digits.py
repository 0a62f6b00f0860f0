"""The digits of a study: the split into training and validation, and the sealed test set.

Selection sees training and validation digits only. The test digits leave this file through
:func:`open_sealed_test_set`, which promotion alone may call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digit_study.config.run import DataConfig
from digit_study.data.sources import (
    CLASSES,
    MNIST_SHA256,
    MNIST_TEST_SHA256,
    Arrays,
    Labels,
    Pixels,
    Source,
    check_digest,
    digest,
    keras_arrays,
    read_npz,
    sample_part,
)  # fmt: skip
from digit_study.terminal.errors import StudyError


@dataclass(frozen=True)
class Digits:
    """Digits to train on and to select on.

    Attributes:
        name: ``mnist``, ``mnist_sample``, or the stem of a file with other content.
        sha256: :func:`digit_study.data.sources.digest` of all unsealed digits, before the split.
        train_images: shape (n, 28, 28, 1), uint8, 0 (paper) to 255 (ink).
        train_labels: shape (n,), int64, 0 to 9.
        validation_images: shape (m, 28, 28, 1), uint8.
        validation_labels: shape (m,), int64.
        validation_index: shape (m,), int64; where each validation image stands in the unsplit source.
    """

    name: str
    sha256: str
    train_images: Pixels
    train_labels: Labels
    validation_images: Pixels
    validation_labels: Labels
    validation_index: Labels

    def counts(self) -> dict[str, int]:
        """How many digits there are to train on and to validate on."""
        return {"train_images": len(self.train_labels), "validation_images": len(self.validation_labels)}


def split_sizes(available: int, config: DataConfig) -> tuple[int, int]:
    """How many of ``available`` digits are trained on and validated on.

    Raises:
        StudyError: the two do not fit.
    """
    validation = config.validation or min(5_000, available // 4)
    left = available - validation
    if left < CLASSES:
        raise StudyError(
            f"`data.validation` must leave digits to train on, got {validation} of {available}: hold out fewer"
        )
    if config.limit is not None and config.limit > left:
        raise StudyError(
            f"`data.limit` is at most the {left} digits that validation leaves of {available}, got {config.limit}: "
            "lower it, or set it to null to train on all of them"
        )
    return config.limit or left, validation


def _unsealed(config: DataConfig) -> Arrays:
    if config.path is not None:
        return read_npz(Path(config.path), "train")
    return sample_part(sealed=False) if config.source == "mnist_sample" else keras_arrays("train")


def _draw(labels: Labels, index: Labels, size: int, seed: int) -> tuple[Labels, Labels]:
    """Split ``index`` into ``size`` drawn, and the rest, each with every digit in its share."""
    from sklearn.model_selection import train_test_split

    if size == len(index):
        return index, index[:0]
    # a handful left over cannot have every digit in it, nor does it change anybody's share
    strata = labels[index] if len(index) - size >= CLASSES else None
    try:
        drawn, rest = train_test_split(index, train_size=size, stratify=strata, random_state=seed)
    except ValueError as error:
        raise StudyError(
            f"{size} of {len(index)} digits cannot be drawn with every digit in its share: {error}"
        ) from error
    return drawn, rest


def load_digits(config: DataConfig) -> Digits:
    """Load and split what :func:`digit_study.data.sources.resolve` found.

    Raises:
        StudyError: the content is no longer what was resolved.
    """
    images, labels = _unsealed(config)
    source = Source(config, "", digest(images[..., 0], labels), len(labels))
    check_digest(source, config)
    train_size, validation_size = split_sizes(len(labels), config)
    validation, rest = _draw(labels, np.arange(len(labels)), validation_size, config.seed)
    train, _ = _draw(labels, rest, train_size, config.seed)
    return Digits(
        name=dataset_name(config),
        sha256=source.sha256,
        train_images=images[train],
        train_labels=labels[train],
        validation_images=images[validation],
        validation_labels=labels[validation],
        validation_index=validation,
    )


def dataset_name(config: DataConfig) -> str:
    """Name of a resolved source: ``mnist``, ``mnist_sample`` or the stem of its file."""
    if config.path is None:
        return config.source
    return "mnist" if config.sha256 == MNIST_SHA256 else Path(config.path).stem


def open_sealed_test_set(config: DataConfig, record: Callable[[], None]) -> Arrays:
    """Break the seal: the test images (n, 28, 28, 1) uint8 and labels (n,) of a resolved source. For promotion alone.

    Args:
        config: a resolved source.
        record: writes down who reads and when; it is called first, and what it raises keeps the seal.

    Raises:
        StudyError: the test digits are missing, or not those that belong to the training digits.
    """
    record()
    images, labels = _sealed(config)
    found = digest(images[..., 0], labels)
    if config.sha256 == MNIST_SHA256 and found != MNIST_TEST_SHA256:
        raise StudyError(
            f"the test digits beside MNIST's training digits must be MNIST's, got sha256 {found}: restore the file"
        )
    return images, labels


def _sealed(config: DataConfig) -> Arrays:
    if config.path is not None:
        return read_npz(Path(config.path), "test")
    if config.source == "mnist_sample":
        return sample_part(sealed=True)
    return keras_arrays("test")
