"""A network that answers for as long as a page is open, and changes when the alias it was named by moves."""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digit_study.reading.attention import Look, look
from digit_study.reading.images import Digit
from digit_study.reading.prediction import Model
from digit_study.terminal.messages import first_line

LOOKED_UP_EVERY_S = 2.0


@dataclass(frozen=True)
class Loaded:
    """A model as it was loaded, and the version its name stood for; None where the name can never move."""

    model: Model
    version: str | None


@dataclass(frozen=True)
class Place:
    """Where a network comes from: its name, and how its version is asked for, its file found and loaded."""

    uri: str
    version: Callable[[], str | None]  # asks the registry, so it is called before TensorFlow is needed
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
            seen = look(loaded.model, digit) if with_look else Look(loaded.model(digit[None])[0], blind)
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
        except Exception:  # whatever a store raises that is busy or gone: the next look may find it again
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


def watch(networks: list[Network], ended: threading.Event, every_s: float = LOOKED_UP_EVERY_S) -> threading.Thread:
    """Look for new versions in a thread of its own until ``ended`` is set."""

    def look_again() -> None:
        while not ended.wait(every_s):
            for network in networks:
                network.refresh()

    thread = threading.Thread(target=look_again, name="watch", daemon=True)
    thread.start()
    return thread
