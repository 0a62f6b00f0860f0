"""The digits of a study: training and validation, for selection, and the sealed test set, for promotion alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from digit_study.data import sources
from digit_study.data.sources import CLASSES, Arrays, DataConfig, Labels, Pixels
from digit_study.support.messages import StudyError


@dataclass(frozen=True)
class Digits:
    """Digits to train on and to select on."""

    name: str  # of the source, see :func:`dataset_name`
    sha256: str  # :func:`digit_study.data.sources.digest` of all unsealed digits, before the split
    train_images: Pixels  # (n, 28, 28, 1), uint8, 0 (paper) to 255 (ink)
    train_labels: Labels  # (n,), int64, 0 to 9
    validation_images: Pixels  # (m, 28, 28, 1), uint8
    validation_labels: Labels  # (m,), int64
    validation_index: (
        Labels  # (m,), int64: where each validation image stands in the unsplit source
    )

    def counts(self) -> dict[str, int]:
        """How many digits there are to train on and to validate on."""
        return {
            "train_images": len(self.train_labels),
            "validation_images": len(self.validation_labels),
        }


def split_sizes(available: int, config: DataConfig) -> tuple[int, int]:
    """How many of ``available`` digits are trained on and validated on; raises StudyError if the two do not fit."""
    validation = config.validation or min(5_000, available // 4)
    if (left := available - validation) < CLASSES:
        wrong = f"`data.validation` must leave digits to train on, got {validation} of {available}"
        raise StudyError(f"{wrong}: hold out fewer")
    if config.limit is not None and config.limit > left:
        wrong = f"`data.limit` is at most the {left} digits that validation leaves of {available}, got {config.limit}"
        raise StudyError(f"{wrong}: lower it, or set it to null to train on all of them")
    return config.limit or left, validation


def _draw(labels: Labels, index: Labels, size: int, seed: int) -> tuple[Labels, Labels]:
    """Split ``index`` into ``size`` drawn ones and the rest, each with every digit in its share."""
    from sklearn.model_selection import train_test_split

    if size == len(index):
        return index, index[:0]
    # a handful left over cannot have every digit in it, nor does it change anybody's share
    strata = labels[index] if len(index) - size >= CLASSES else None
    try:
        drawn, rest = train_test_split(index, train_size=size, stratify=strata, random_state=seed)
    except ValueError as error:
        wanted = f"{size} of {len(index)} digits"
        raise StudyError(
            f"{wanted} cannot be drawn with every digit in its share: {error}"
        ) from error
    return drawn, rest


@lru_cache(maxsize=1)
def load_digits(config: DataConfig, folder: Path | None = None) -> Digits:
    """Load and split what :func:`digit_study.data.sources.resolve` found; raises StudyError if it has changed.

    ``folder`` is where the digits lie on a machine that was handed them by another.
    Never write to what callers share: a process that was forked from one that had loaded them has the same digits.
    """
    name = dataset_name(config)
    images, labels = sources.read_part(config, "train", folder)
    found = sources.digest(images[..., 0], labels)
    sources.require_digest(config, name, found)
    train_size, validation_size = split_sizes(len(labels), config)
    validation, rest = _draw(labels, np.arange(len(labels)), validation_size, config.seed)
    train, _ = _draw(labels, rest, train_size, config.seed)
    return Digits(
        name,
        found,
        images[train],
        labels[train],
        images[validation],
        labels[validation],
        validation,
    )


def dataset_name(config: DataConfig) -> str:
    """Name of a resolved source: ``mnist``, ``mnist_sample`` or the stem of its file."""
    if config.path is None:
        return config.source
    return "mnist" if config.sha256 == sources.MNIST_SHA256 else Path(config.path).stem


def open_sealed_test_set(config: DataConfig, record: Callable[[], None]) -> Arrays:
    """Break the seal: the test images (n, 28, 28, 1) uint8 and labels (n,) of a resolved source. For promotion alone.

    ``record`` notes who reads, first; what it raises keeps the seal. Raises StudyError on missing or foreign digits.
    """
    record()
    images, labels = sources.read_part(config, "test")
    found = sources.digest(images[..., 0], labels)
    if config.sha256 == sources.MNIST_SHA256 and found != sources.MNIST_TEST_SHA256:
        wrong = (
            f"the test digits beside MNIST's training digits must be MNIST's, got sha256 {found}"
        )
        raise StudyError(f"{wrong}: restore the file")
    return images, labels
