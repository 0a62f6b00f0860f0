"""A network that answers for as long as a page is open, says where it looked, and changes when its alias moves."""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from digit_study.inference.images import SIDE, Digit
from digit_study.inference.prediction import Model
from digit_study.support.messages import first_line

LOOKED_UP_EVERY_S = 2.0
PATCH, STEP = 6, 2  # pixels of 28: a stroke is two to four wide, so that a patch cuts it through
CORNERS = [
    (top, left)
    for top in range(0, SIDE - PATCH + 1, STEP)
    for left in range(0, SIDE - PATCH + 1, STEP)
]

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """An answer and where it came from."""

    probabilities: Map  # (10,), for 0 to 9, summing to 1
    attention: Map  # (28, 28), in [-1, 1]: what the answer loses, on average, when a patch over this pixel is covered


def look(model: Model, digit: Digit) -> Look:
    """Read one digit (28, 28), uint8, and cover it part by part, all in one call of the model.

    The map is positive where the ink speaks for the answer, negative where it speaks against, and 0 far from ink. It is
    the occlusion map of M. D. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV 2014,
    arXiv 1311.2901, section 4.2), with paper in the place of their grey square. It is faithful by the way it is made:
    every number in it is a difference between two answers of the network itself, none is a gradient's promise. It says
    nothing of empty paper: to cover paper with paper changes nothing.
    """
    # patches without ink beneath them would change nothing
    inked = [
        (top, left) for top, left in CORNERS if digit[top : top + PATCH, left : left + PATCH].any()
    ]
    images = np.repeat(digit[None], 1 + len(inked), axis=0)
    for copy, (top, left) in zip(images[1:], inked, strict=True):
        copy[top : top + PATCH, left : left + PATCH] = 0
    answers = model(images)
    drops = answers[0].max() - answers[1:, answers[0].argmax()]
    total, covered = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
    for (top, left), drop in zip(inked, drops, strict=True):
        total[top : top + PATCH, left : left + PATCH] += drop
        covered[top : top + PATCH, left : left + PATCH] += 1
    return Look(answers[0], np.asarray(total / np.maximum(covered, 1), np.float32))


@dataclass(frozen=True)
class Loaded:
    """A model as it was loaded, and the version its name stood for; None where the name can never move."""

    model: Model
    version: str | None


@dataclass(frozen=True)
class Place:
    """Where a network comes from: its name, and how its version is asked for, its file found and loaded."""

    uri: str
    version: Callable[
        [], str | None
    ]  # asks the registry, so it is called before TensorFlow is needed
    file: Callable[[], Path]
    load: Callable[[Path], Model]


class Network:
    """One network, for any number of threads: one computes at a time, for more would only wait for the same cores."""

    def __init__(self, place: Place, loaded: Loaded) -> None:
        self.place, self._loaded = place, loaded
        self._computes = threading.Lock()
        self._refused = loaded.version  # the last version that was tried

    @property
    def name(self) -> str:
        """What a person calls it: the name it was given, and the version that answers where that is not in it."""
        return name_of(self.place.uri, self._loaded.version)

    def read(self, digit: Digit, with_look: bool) -> tuple[str, Look]:
        """The name of the network that answers, and its answer to one digit (28, 28), uint8.

        Without ``with_look`` the map is all zeros, and the answer takes one image's time instead of a hundred's.
        """
        with self._computes:
            loaded = self._loaded  # another may take its place while this one computes
            blind = np.zeros(digit.shape, np.float32)
            seen = (
                look(loaded.model, digit)
                if with_look
                else Look(loaded.model(digit[None])[0], blind)
            )
        return name_of(self.place.uri, loaded.version), seen

    def refresh(self) -> bool:
        """Load the model that the name stands for now, if it is another one; says whether it was.

        A store that does not answer for a moment changes nothing. A version that cannot be loaded is reported on
        standard error, once, and the one before goes on answering.
        """
        try:
            version = self.place.version()
            if version in (self._loaded.version, self._refused):
                return False
            file = self.place.file()
        except (
            Exception
        ):  # whatever a store raises that is busy or gone: the next look may find it again
            return False
        self._refused = version
        try:
            model = self.place.load(file)
        except Exception as fault:  # the page must go on
            why = f"version {version} cannot be loaded: {first_line(fault)}"
            print(f"{self.name} goes on answering, for {why}", file=sys.stderr)
            return False
        self._loaded = Loaded(model, version)
        return True


def name_of(uri: str, version: str | None) -> str:
    """``digit-recognizer 3 (champion)`` for an alias, ``digit-recognizer 3`` for a version, else the name as it is."""
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if at and version is not None:
        return f"{name} {version} ({alias})"
    return name.replace("/", " ") if uri.startswith("models:/") else uri


def watch(
    networks: list[Network], ended: threading.Event, every_s: float = LOOKED_UP_EVERY_S
) -> threading.Thread:
    """Look for new versions in a thread of its own until ``ended`` is set."""

    def look_again() -> None:
        while not ended.wait(every_s):
            for network in networks:
                network.refresh()

    thread = threading.Thread(target=look_again, name="watch", daemon=True)
    thread.start()
    return thread
