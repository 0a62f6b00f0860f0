"""The gate: whether a challenger becomes champion, decided from numbers alone."""

import math
import re
from dataclasses import dataclass
from typing import Annotated

from digit_study.stats.metrics import accuracy_interval
from digit_study.stats.ranking import PairedTest
from digit_study.support.formatting import percent, points, points_with_interval, with_interval
from digit_study.support.rules import Rule, between

#: What the name of a registered model must be.
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
class NetworkResult:
    """The result of a network on the sealed images.

    Attributes:
        name: Its name in the sentence that explains the decision.
        correct: Images that it predicts correctly.
        images: All images.
        parameters: Its size.
    """

    name: str
    correct: int
    images: int
    parameters: int

    @property
    def accuracy(self) -> float:
        """Return the share of images that are predicted correctly, in [0, 1]."""
        return self.correct / self.images

    def __str__(self) -> str:
        low, high = accuracy_interval(self.correct, self.images)
        shown = with_interval(self.accuracy, low, high)
        return f"{self.name} ({shown}, {self.parameters:,} parameters)"


@dataclass(frozen=True)
class GateDecision:
    """Whether the alias ``champion`` moves.

    Attributes:
        promoted: Whether it does.
        rule: Which rule decided: ``first``, ``below_floor``, ``better``, ``smaller``, ``worse`` or
            ``not_better``.
        reason: Why, in a sentence.
    """

    promoted: bool
    rule: str
    reason: str


@dataclass(frozen=True)
class Budget:
    """What the comparisons on a sealed test set may spend of their common significance.

    Attributes:
        comparison: Number of the next comparison, from 1.
        level: Significance level of the next comparison.
        left: What is left for all that come after it.
    """

    comparison: int
    level: float
    left: float


def budget(significance: float, before: int) -> Budget:
    """Return what the next comparison on the same sealed images may spend.

    Args:
        significance: Probability, at most, that any comparison at all moves the alias wrongly.
        before: How many comparisons there were on these images.

    See docs/statistics.md#promotion
    """
    comparison = before + 1
    # the shares of all comparisons, without end, add up to 1
    shares = [6 / (math.pi * number) ** 2 for number in range(1, comparison + 1)]
    share_left = max(0.0, 1 - sum(shares))
    return Budget(
        comparison=comparison,
        level=significance * shares[-1],
        left=significance * share_left,
    )


def decide(
    challenger: NetworkResult,
    champion: NetworkResult | None,
    test: PairedTest | None,
    limits: GateConfig,
    before: int = 0,
) -> GateDecision:
    """Decide whether a challenger becomes champion.

    It does if it is shown to be better, or if it is smaller and shown to be not worse by
    ``limits.margin``. The first champion has to reach ``limits.floor``.

    Args:
        challenger: Result of the challenger.
        champion: Result of the champion on the same images, if there is a champion.
        test: Comparison of the champion (first) with the challenger (second).
        limits: What a challenger must show.
        before: How many comparisons there were on these images.

    See docs/statistics.md#promotion
    """
    if champion is None or test is None:
        return _decide_first(challenger, limits)
    margin = limits.margin
    own_budget = budget(limits.significance, before)
    level = own_budget.level
    spent = (
        f"comparison {own_budget.comparison} on these images, "
        f"which leaves {own_budget.left:.2g} of {limits.significance:g}"
    )
    facts = f"{challenger} against {champion} on {_in_words(test)}"
    is_ahead = test.only_second > test.only_first
    if is_ahead and test.p_value < level:
        reason = f"{facts}: better, since p is below {level:.3g} ({spent})"
        return GateDecision(promoted=True, rule="better", reason=reason)
    parameters_saved = champion.parameters - challenger.parameters
    is_smaller = parameters_saved > 0
    lowest = test.lower_end(level)
    shown = f"at worst {points(lowest)} at the level {level:.3g} ({spent})"
    if is_smaller and lowest >= -margin:
        reason = f"not worse by {margin:g}, with {parameters_saved:,} parameters fewer: {shown}"
        return GateDecision(promoted=True, rule="smaller", reason=f"{facts}: {reason}")
    if test.difference < -margin:
        reason = f"worse by more than the margin of {margin:g}: {shown}"
        return GateDecision(promoted=False, rule="worse", reason=f"{facts}: {reason}")
    size = "no smaller"
    if is_smaller:
        size = f"{parameters_saved:,} parameters fewer, but not shown to be within {margin:g}"
    reason = f"not better, and {size}: {shown}"
    return GateDecision(promoted=False, rule="not_better", reason=f"{facts}: {reason}")


def _in_words(test: PairedTest) -> str:
    """Return the comparison of a champion with a challenger as text."""
    difference = points_with_interval(test.difference, test.low, test.high)
    return f"{test.images:,} test images: {difference}, exact McNemar p = {test.p_value:.3g}"


def _decide_first(challenger: NetworkResult, limits: GateConfig) -> GateDecision:
    """Decide about a challenger where there is no champion to compare with."""
    facts = f"{challenger} on {challenger.images:,} test images, without a champion to compare with"
    floor = percent(limits.floor)
    if challenger.accuracy >= limits.floor:
        reason = f"{facts}: at least the floor of {floor}"
        return GateDecision(promoted=True, rule="first", reason=reason)
    reason = f"{facts}: below the floor of {floor} that the first must pass"
    return GateDecision(promoted=False, rule="below_floor", reason=reason)
