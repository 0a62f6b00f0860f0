"""Where a network looked: what its answer loses when a part of the ink is covered.

The map is the occlusion map of M. D. Zeiler and R. Fergus, "Visualizing and Understanding Convolutional Networks"
(ECCV 2014, arXiv 1311.2901, section 4.2), with paper in the place of their grey square. It is faithful by the way it
is made: every number in it is a difference between two answers of the network itself, none is a gradient's promise.
It says nothing of empty paper: to cover paper with paper changes nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from digit_study.reading.images import SIDE, Digit
from digit_study.reading.prediction import Model

PATCH, STEP = 6, 2  # pixels of 28: a stroke is two to four wide, so that a patch cuts it through
CORNERS = [(top, left) for top in range(0, SIDE - PATCH + 1, STEP) for left in range(0, SIDE - PATCH + 1, STEP)]

Map = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """An answer and where it came from."""

    probabilities: Map  # (10,), for 0 to 9, summing to 1
    attention: Map  # (28, 28), in [-1, 1]: what the answer loses, on average, when a patch over this pixel is covered


def occluded(digit: Digit) -> tuple[npt.NDArray[np.uint8], list[tuple[int, int]]]:
    """Copies of a digit (28, 28), each with one patch of paper: (n, 28, 28), and the n corners (top, left).

    Only patches with ink beneath them: the others would change nothing.
    """
    inked = [(top, left) for top, left in CORNERS if digit[top : top + PATCH, left : left + PATCH].any()]
    copies = np.repeat(digit[None], len(inked), axis=0)
    for copy, (top, left) in zip(copies, inked, strict=True):
        copy[top : top + PATCH, left : left + PATCH] = 0
    return copies, inked


def look(model: Model, digit: Digit) -> Look:
    """Read one digit (28, 28), uint8, and cover it part by part, all in one call of the model.

    Positive where the ink speaks for the answer, negative where it speaks against; 0 where there is no ink near.
    """
    copies, inked = occluded(digit)
    answers = model(np.concatenate([digit[None], copies]))
    drops = answers[0].max() - answers[1:, answers[0].argmax()]
    total, covered = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
    for (top, left), drop in zip(inked, drops, strict=True):
        total[top : top + PATCH, left : left + PATCH] += drop
        covered[top : top + PATCH, left : left + PATCH] += 1
    return Look(answers[0], np.asarray(total / np.maximum(covered, 1), np.float32))
