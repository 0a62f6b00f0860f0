"""The gate: whether a challenger becomes champion, decided from numbers alone."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

from digit_study.stats.metrics import accuracy_interval
from digit_study.stats.ranking import PairedTest
from digit_study.support.console import percent, with_interval
from digit_study.support.rules import Rule, between

MODEL_NAME = Rule(
    "a letter or digit, then letters, digits, '-', '_' or '.'",
    lambda value: re.fullmatch(r"[A-Za-z0-9][\w.-]*", value, re.ASCII) is not None,
)


@dataclass(frozen=True)
class GateConfig:
    """Say what a challenger must show before the alias ``champion`` moves."""

    #: Accuracy that a smaller network may give up; 0.002 is twenty images of MNIST's 10,000.
    margin: Annotated[float, between(0, 1, "[)")] = 0.002
    #: Accuracy of the first champion; nearest neighbours reach it (LeCun et al. 1998, table 2).
    floor: Annotated[float, between(0, 1)] = 0.95
    #: The chance of a wrong move that all comparisons on the sealed images share.
    significance: Annotated[float, between(0, 0.5, "(]")] = 0.05
    #: Say what would be compared and touch nothing.
    dry_run: bool = False
    #: Name of the registered model.
    model_name: Annotated[str, MODEL_NAME] = "digit-recognizer"


@dataclass(frozen=True)
class Contestant:
    """The result of one network on the sealed images."""

    name: str  # in the sentence that explains the decision
    correct: int  # images that it reads correctly
    images: int
    parameters: int

    @property
    def accuracy(self) -> float:
        """Share of images read correctly, in [0, 1]."""
        return self.correct / self.images

    def __str__(self) -> str:
        shown = with_interval(self.accuracy, *accuracy_interval(self.correct, self.images))
        return f"{self.name} ({shown}, {self.parameters:,} parameters)"


@dataclass(frozen=True)
class GateDecision:
    """Whether the alias ``champion`` moves, by which rule, and why in one sentence."""

    promoted: bool
    rule: str
    reason: str


@dataclass(frozen=True)
class Budget:
    """What all comparisons on one sealed test set may spend together, and what the next one may."""

    comparison: int  # which one it is, counted from 1
    level: float  # the significance that it may spend
    left: float  # what is left for all that come after it


def budget(significance: float, before: int) -> Budget:
    """What the next comparison may spend of ``significance``, after ``before`` ones on the same sealed images.

    The n-th may spend the share 6 / (pi n)^2 of it, which sums to 1 (alpha spending, after Lan & DeMets 1983): that any
    of them moves the alias wrongly has a chance below ``significance``. The Ladder (Blum & Hardt 2015, arXiv
    1502.04585) has steps of (log(k n) / n)^(1/3), a thousand of 10,000 images, where twenty count here.
    """
    shares = [6 / (math.pi * number) ** 2 for number in range(1, before + 2)]
    return Budget(before + 1, significance * shares[-1], significance * max(0.0, 1 - sum(shares)))


def decide(
    challenger: Contestant,
    champion: Contestant | None,
    test: PairedTest | None,
    limits: GateConfig,
    before: int = 0,
) -> GateDecision:
    """Apply the gate. ``test`` compares the champion (first) with the challenger (second) on the same images.

    The champion is replaced if McNemar's exact test shows that the challenger is better, or if it is smaller and shown
    to be not worse by ``margin``, by the lower end of the difference's interval; both at the level that is left after
    ``before`` comparisons, see :func:`budget`. An equally good, smaller one on 10,000 images passes at the first, with
    a margin of 0.002, in 95, 74 and 46 of 100 cases where they differ on 30, 60 and 120 images.
    """
    if champion is None or test is None:
        facts = (
            f"{challenger} on {challenger.images:,} test images, without a champion to compare with"
        )
        if challenger.accuracy >= limits.floor:
            return GateDecision(
                True, "first", f"{facts}: at least the floor of {percent(limits.floor)}"
            )
        reason = f"below the floor of {percent(limits.floor)} that the first must pass"
        return GateDecision(False, "below_floor", f"{facts}: {reason}")
    may = budget(limits.significance, before)
    facts = (
        f"{challenger} against {champion} on {test.images:,} test images: {100 * test.difference:+.2f} points "
        f"[{100 * test.low:+.2f}, {100 * test.high:+.2f}], exact McNemar p = {test.p_value:.3g}"
    )
    spent = f"comparison {may.comparison} on these images, which leaves {may.left:.2g} of {limits.significance:g}"
    saved, least = champion.parameters - challenger.parameters, test.lower_end(may.level)
    if test.only_second > test.only_first and test.p_value < may.level:
        return GateDecision(
            True, "better", f"{facts}: better, since p is below {may.level:.3g} ({spent})"
        )
    shown = f"at worst {100 * least:+.2f} points at the level {may.level:.3g} ({spent})"
    if saved > 0 and least >= -limits.margin:
        reason = f"not worse by {limits.margin:g}, with {saved:,} parameters fewer: {shown}"
        return GateDecision(True, "smaller", f"{facts}: {reason}")
    if test.difference < -limits.margin:
        return GateDecision(
            False, "worse", f"{facts}: worse by more than the margin of {limits.margin:g}: {shown}"
        )
    size = (
        f"{saved:,} parameters fewer, but not shown to be within {limits.margin:g}"
        if saved > 0
        else "no smaller"
    )
    return GateDecision(False, "not_better", f"{facts}: not better, and {size}: {shown}")
