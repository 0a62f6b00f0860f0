"""Who becomes champion: the decision, pure, from numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from digit_study.config.promote import GateConfig
from digit_study.evaluation.metrics import PairedTest, accuracy_interval
from digit_study.terminal.console import percent
from digit_study.terminal.errors import StudyError


@dataclass(frozen=True)
class Score:
    """What one network showed on the sealed images.

    Attributes:
        name: as the sentence of the decision calls it.
        correct: images it reads right.
        images: how many there are.
        parameters: size of the network.
    """

    name: str
    correct: int
    images: int
    parameters: int

    @property
    def accuracy(self) -> float:
        """Share of images read right, in [0, 1]."""
        return self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return accuracy_interval(self.correct, self.images)

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval)
        return f"{self.name} ({percent(self.accuracy)} [{low:.2f}, {high:.2f}], {self.parameters:,} parameters)"


@dataclass(frozen=True)
class Decision:
    """Whether the alias ``champion`` moves, by which rule, and why in one sentence."""

    promoted: bool
    rule: str
    reason: str


def require_same_data(challenger: str | None, champion: str | None, names: tuple[str, str], model: str) -> None:
    """Refuse to compare networks from different digits.

    Raises:
        StudyError: the digests differ, or one is unknown.
    """
    if challenger is None or challenger != champion:
        raise StudyError(
            f"challenger and champion must stem from the same digits, got dataset.sha256 {challenger} for {names[0]} "
            f"and {champion} for {names[1]}: train on the champion's digits, or keep a registered model of its own "
            f"for these, promote.model_name={model}-2"
        )


def decide(challenger: Score, champion: Score | None, test: PairedTest | None, limits: GateConfig) -> Decision:
    """Apply the gate. ``test`` compares the champion (first) with the challenger (second) on the same images.

    The champion goes when McNemar's exact test says that the challenger is better, or when a smaller challenger's
    accuracy, as measured, is at most ``margin`` lower. That second rule looks at the difference itself and not at the
    lower end of its interval: on 10,000 images with 60 flips the interval alone reaches 0.15 points down, so no
    smaller network could ever win a tie. The interval is in the sentence for all to see.
    """
    if champion is None or test is None:
        return _first(challenger, limits)
    versus = f"{challenger} against {champion} on {test.images:,} test images: {_difference(test)}"
    smaller = challenger.parameters < champion.parameters
    if test.only_second > test.only_first and test.p_value < limits.significance:
        return Decision(True, "better", f"{versus}: better, since p is below {limits.significance:g}")
    lost = f"{test.only_first - test.only_second} of {test.images:,} images lost"
    # in images, not fractions: 10 of 10,000 is exactly the margin of 0.001
    within = test.only_first - test.only_second <= limits.margin * test.images + 1e-9
    saved = f"{champion.parameters - challenger.parameters:,} parameters fewer"
    if within and smaller:
        return Decision(True, "smaller", f"{versus}: not worse by more than {limits.margin:g}, with {saved}")
    if within:
        size = "as many" if challenger.parameters == champion.parameters else "more"
        reason = f"not better, since p is not below {limits.significance:g} or no accuracy is gained, and no smaller"
        return Decision(False, "not_better", f"{versus}: {reason} ({size} parameters)")
    reason = f"worse by more than the margin of {limits.margin:g} ({lost})"
    return Decision(False, "worse", f"{versus}: {reason}")


def _difference(test: PairedTest) -> str:
    low, high = 100 * test.low, 100 * test.high
    return f"{100 * test.difference:+.2f} points [{low:+.2f}, {high:+.2f}], exact McNemar p = {test.p_value:.3g}"


def _first(challenger: Score, limits: GateConfig) -> Decision:
    on = f"{challenger} on {challenger.images:,} test images, without a champion to compare with"
    if challenger.accuracy >= limits.floor:
        return Decision(True, "first", f"{on}: at least the floor of {percent(limits.floor)}")
    return Decision(False, "below_floor", f"{on}: below the floor of {percent(limits.floor)} that the first must pass")
