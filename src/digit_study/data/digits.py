"""The digits of a study: training and validation to select, the sealed test set to promote."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from digit_study.data import sources
from digit_study.data.arrays import CLASSES, Arrays, Labels, Pixels
from digit_study.data.sources import DataConfig
from digit_study.support.errors import StudyError

#: Images that are held out by default, if four times as many are available.
DEFAULT_VALIDATION = 5_000


@dataclass(frozen=True)
class Digits:
    """Digits to train on and to select on.

    Attributes:
        name: Name of the source, see :func:`digit_study.data.sources.dataset_name`.
        sha256: :func:`digit_study.data.sources.digest` of all unsealed digits, before the split.
        train_images: (n, 28, 28, 1), uint8, 0 (paper) to 255 (ink).
        train_labels: (n,), int64, 0 to 9.
        validation_images: (m, 28, 28, 1), uint8.
        validation_labels: (m,), int64.
        validation_index: Position of each validation image in the unsplit source, (m,), int64.
    """

    name: str
    sha256: str
    train_images: Pixels
    train_labels: Labels
    validation_images: Pixels
    validation_labels: Labels
    validation_index: Labels

    def counts(self) -> dict[str, int]:
        """Return how many digits there are to train on and to validate on, by name."""
        return {
            "train_images": len(self.train_labels),
            "validation_images": len(self.validation_labels),
        }


def split_sizes(available: int, config: DataConfig) -> tuple[int, int]:
    """Return how many digits are trained on, and how many are validated on.

    Args:
        available: Unsealed digits of the source.
        config: What a person asked for.

    Raises:
        StudyError: If the two do not fit into what is available.
    """
    validation = config.validation or min(DEFAULT_VALIDATION, available // 4)
    left = available - validation
    if left < CLASSES:
        wrong = f"`data.validation` must leave digits to train on, got {validation} of {available}"
        raise StudyError(f"{wrong}: hold out fewer")
    if config.limit is not None and config.limit > left:
        wrong = (
            f"`data.limit` is at most the {left} digits that validation leaves of {available}, "
            f"got {config.limit}"
        )
        raise StudyError(f"{wrong}: lower it, or set it to null to train on all of them")
    return config.limit or left, validation


def _draw(labels: Labels, index: Labels, size: int, seed: int) -> tuple[Labels, Labels]:
    """Split positions into drawn ones and the rest, each with every digit in its share.

    Args:
        labels: Labels of the whole source.
        index: Positions to draw from.
        size: How many to draw.
        seed: Seed of the draw.
    """
    from sklearn.model_selection import train_test_split

    if size == len(index):
        return index, index[:0]
    # a handful left over cannot have every digit in it, nor does it change anybody's share
    strata = None
    if len(index) - size >= CLASSES:
        strata = labels[index]
    try:
        drawn, rest = train_test_split(index, train_size=size, stratify=strata, random_state=seed)
    except ValueError as error:
        wanted = f"{size} of {len(index)} digits"
        wrong = f"{wanted} cannot be drawn with every digit in its share"
        raise StudyError(f"{wrong}: {error}") from error
    return drawn, rest


@lru_cache(maxsize=1)
def load_digits(config: DataConfig, folder: Path | None = None) -> Digits:
    """Load and split a resolved source.

    Callers share the arrays, and so do processes that are forked from one that has loaded them:
    never write to them.

    Args:
        config: What :func:`digit_study.data.sources.resolve` returned.
        folder: Where the digits lie on a machine that was handed them by another.

    Returns:
        The digits, split by ``config.seed``.

    Raises:
        StudyError: If the source has changed, or the sizes do not fit.
    """
    name = sources.dataset_name(config)
    images, labels = sources.read_part(config, "train", folder)
    found = sources.digest(images[..., 0], labels)
    sources.require_digest(config, name, found)
    train_size, validation_size = split_sizes(len(labels), config)
    validation, rest = _draw(labels, np.arange(len(labels)), validation_size, config.seed)
    train, _ = _draw(labels, rest, train_size, config.seed)
    return Digits(
        name=name,
        sha256=found,
        train_images=images[train],
        train_labels=labels[train],
        validation_images=images[validation],
        validation_labels=labels[validation],
        validation_index=validation,
    )


def open_sealed_test_set(config: DataConfig, record: Callable[[], None]) -> Arrays:
    """Break the seal of a resolved source and read its test digits. For promotion alone.

    Args:
        config: The resolved config.
        record: Notes who reads, before anything is read; what it raises keeps the seal.

    Returns:
        Images (n, 28, 28, 1) uint8, and labels (n,) int64.

    Raises:
        StudyError: If the digits are missing, or are not those that belong to the training digits.
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
