"""A network that answers as long as the page is open, and changes when its alias moves.

It can also say which pixels its answer rests on, by an occlusion map.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from digit_study.inference.detector import Accepts
from digit_study.inference.prediction import Model, Picture, Reading
from digit_study.pictures.images import SIDE, Digit
from digit_study.support.errors import first_line

#: Seconds between two looks for a new version.
REFRESH_EVERY_S = 2.0
#: Pixels of a side of the patch that is covered. A stroke is two to four pixels wide: a patch cuts
#: it.
PATCH = 6
#: Pixels between two patches.
STEP = 2
#: Upper left corners (top, left) of all patches.
CORNERS = [
    (top, left)
    for top in range(0, SIDE - PATCH + 1, STEP)
    for left in range(0, SIDE - PATCH + 1, STEP)
]

#: Probabilities (10,) or a map (28, 28).
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What a network says of a digit."""

    #: Probabilities of 0 to 9, shape (10,), summing to 1.
    probabilities: FloatArray
    #: Shape (28, 28), in [-1, 1]: what the answer's probability loses, on average, when a patch
    #: over the pixel is covered. None where it was not asked for.
    saliency: FloatArray | None


def answer_with_saliency(model: Model, digit: Digit) -> Answer:
    """Predict a digit, and cover it part by part, all in a single call of the model.

    The map is positive where the ink speaks for the answer, negative where it speaks against it,
    and 0 far from ink. It is the occlusion map of M. D. Zeiler and R. Fergus, "Visualizing and
    Understanding Convolutional Networks" (ECCV 2014, arXiv 1311.2901, section 4.2), with paper in
    the place of their grey square. It is faithful by the way it is made: every number in it is a
    difference between two answers of the network itself. It says nothing of empty paper: to cover
    paper with paper changes nothing.

    Args:
        model: The network.
        digit: Grey levels (28, 28), uint8.
    """
    # Patches over paper would change nothing.
    inked = [
        (top, left) for top, left in CORNERS if digit[top : top + PATCH, left : left + PATCH].any()
    ]
    images = np.repeat(digit[None], 1 + len(inked), axis=0)
    for copy, (top, left) in zip(images[1:], inked, strict=True):
        copy[top : top + PATCH, left : left + PATCH] = 0
    answers = model(images)
    drops = answers[0].max() - answers[1:, answers[0].argmax()]
    total = np.zeros((SIDE, SIDE), np.float32)
    covered = np.zeros((SIDE, SIDE), np.float32)
    for (top, left), drop in zip(inked, drops, strict=True):
        total[top : top + PATCH, left : left + PATCH] += drop
        covered[top : top + PATCH, left : left + PATCH] += 1
    saliency = np.asarray(total / np.maximum(covered, 1), np.float32)
    return Answer(answers[0], saliency)


@dataclass(frozen=True)
class LoadedModel:
    """A model as it was loaded."""

    model: Model
    #: The version that its name stood for; None where the name can never move.
    version: str | None


@dataclass(frozen=True)
class NetworkSource:
    """Where a network comes from."""

    #: The model as a person named it.
    uri: str
    #: Asks the registry for the version that the name stands for; it needs no TensorFlow.
    version: Callable[[], str | None]
    #: Finds the file.
    file: Callable[[], Path]
    #: Loads the file.
    load: Callable[[Path], Model]


class ServedNetwork:
    """A network for any number of threads.

    A thread computes at a time: more would only wait for the same cores.
    """

    def __init__(self, source: NetworkSource, loaded: LoadedModel) -> None:
        self._source = source
        self._loaded = loaded
        self._computes = threading.Lock()
        #: The last version that was tried.
        self._tried = loaded.version

    @property
    def name(self) -> str:
        """Return what a person calls it: the name it was given, and the version that answers."""
        return display_name(self._source.uri, self._loaded.version)

    def predict(self, digit: Digit, *, with_saliency: bool) -> tuple[str, Answer]:
        """Predict a digit.

        Args:
            digit: Grey levels (28, 28), uint8.
            with_saliency: Make the map too, which takes the time of a hundred images.

        Returns:
            The name of the network that answers, and its answer.
        """
        with self._computes:
            loaded = self._loaded  # a new version may replace it while this computes
            if with_saliency:
                answer = answer_with_saliency(loaded.model, digit)
            else:
                answer = Answer(loaded.model(digit[None])[0], None)
        return display_name(self._source.uri, loaded.version), answer

    def read(self, picture: Picture, accepts: Accepts | None) -> tuple[str, Reading]:
        """Read what is written in a picture, as predict.py does.

        Args:
            picture: The picture.
            accepts: The detector of what is no digit, if it is asked.

        Returns:
            The name of the network that answers, and what it read.
        """
        with self._computes:
            loaded = self._loaded
            reading = picture.read(loaded.model, accepts)
        return display_name(self._source.uri, loaded.version), reading

    def refresh(self) -> bool:
        """Load the model that the name stands for now, if it is another version.

        A store that does not answer for a moment changes nothing. A version that cannot be loaded
        is reported on standard error, once, and the version before goes on answering.

        Returns:
            Whether a new version answers.
        """
        try:
            version = self._source.version()
            if version in (self._loaded.version, self._tried):
                return False
            file = self._source.file()
        except Exception:  # whatever a busy store raises: the next time may find it again
            return False
        self._tried = version
        try:
            model = self._source.load(file)
        except Exception as fault:  # the page must go on
            print(
                f"{self.name} goes on answering, for version {version} cannot be loaded: "
                f"{first_line(fault)}",
                file=sys.stderr,
            )
            return False
        self._loaded = LoadedModel(model, version)
        return True


def display_name(uri: str, version: str | None) -> str:
    """Return what a person calls a model.

    Args:
        uri: The model as a person named it.
        version: The version that an alias in it stands for.

    Returns:
        ``digit-recognizer 3 (champion)`` for an alias, ``digit-recognizer 3`` for a version, else
        the name as it is.
    """
    if not uri.startswith("models:/"):
        return uri
    name, at, alias = uri.removeprefix("models:/").partition("@")
    if at and version is not None:
        return f"{name} {version} ({alias})"
    return name.replace("/", " ")


def watch_versions(networks: list[ServedNetwork], ended: threading.Event) -> None:
    """Look for new versions in a thread until an event is set.

    Args:
        networks: What is refreshed.
        ended: Ends the thread.
    """

    def refresh_all() -> None:
        while not ended.wait(REFRESH_EVERY_S):
            for network in networks:
                network.refresh()

    threading.Thread(target=refresh_all, name="watch-versions", daemon=True).start()
