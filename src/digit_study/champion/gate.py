"""The gate: whether a challenger becomes champion, decided from numbers alone."""

from dataclasses import dataclass

from digit_study.config.promote import GateConfig
from digit_study.evaluation.metrics import accuracy_interval
from digit_study.evaluation.ranking import PairedTest
from digit_study.terminal.console import percent, with_interval


@dataclass(frozen=True)
class Score:
    """The result of one network on the sealed images."""

    name: str  # in the sentence that explains the decision
    correct: int  # images that it reads correctly
    images: int
    parameters: int

    @property
    def accuracy(self) -> float:
        """Share of images read correctly, in [0, 1]."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return accuracy_interval(self.correct, self.images)

    def __str__(self) -> str:
        return f"{self.name} ({with_interval(self.accuracy, *self.interval)}, {self.parameters:,} parameters)"


@dataclass(frozen=True)
class Decision:
    """Whether the alias ``champion`` moves, by which rule, and why in one sentence."""

    promoted: bool
    rule: str
    reason: str


def decide(challenger: Score, champion: Score | None, test: PairedTest | None, limits: GateConfig) -> Decision:
    """Apply the gate. ``test`` compares the champion (first) with the challenger (second) on the same images.

    The champion is replaced if McNemar's exact test shows that the challenger is better, or if the challenger is
    smaller and its measured accuracy is at most ``margin`` lower. This second rule uses the difference itself, not the
    lower end of its interval: on 10,000 images with 60 flips the interval alone reaches 0.15 points down, so no smaller
    network could ever win a tie. The interval is part of the sentence.
    """
    if champion is None or test is None:
        facts = f"{challenger} on {challenger.images:,} test images, without a champion to compare with"
        if challenger.accuracy >= limits.floor:
            return Decision(True, "first", f"{facts}: at least the floor of {percent(limits.floor)}")
        reason = f"below the floor of {percent(limits.floor)} that the first must pass"
        return Decision(False, "below_floor", f"{facts}: {reason}")
    facts = (
        f"{challenger} against {champion} on {test.images:,} test images: {100 * test.difference:+.2f} points "
        f"[{100 * test.low:+.2f}, {100 * test.high:+.2f}], exact McNemar p = {test.p_value:.3g}"
    )
    if test.only_second > test.only_first and test.p_value < limits.significance:
        return Decision(True, "better", f"{facts}: better, since p is below {limits.significance:g}")
    lost, saved = test.only_first - test.only_second, champion.parameters - challenger.parameters
    if lost > limits.margin * test.images + 1e-9:  # in images, not fractions: 10 of 10,000 is exactly 0.001
        reason = f"worse by more than the margin of {limits.margin:g} ({lost} of {test.images:,} images lost)"
        return Decision(False, "worse", f"{facts}: {reason}")
    if saved > 0:
        reason = f"not worse by more than {limits.margin:g}, with {saved:,} parameters fewer"
        return Decision(True, "smaller", f"{facts}: {reason}")
    reason = f"not better, since p is not below {limits.significance:g} or no accuracy is gained, and no smaller"
    return Decision(False, "not_better", f"{facts}: {reason} ({'as many' if saved == 0 else 'more'} parameters)")
