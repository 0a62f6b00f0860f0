"""Asynchronous successive halving that pauses trials: which of them go on from which epoch.

After some epochs, the rungs, only the best third of the trials that came so far goes on. The others
are paused, not ended. A paused trial goes on as soon as it belongs to the best third, because later
trials were worse. This is the promotion of ASHA (L. Li et al. 2020, arXiv 1810.05934): no good
trial is lost for a slow start.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # no plan waits for Optuna
    from optuna.trial import FrozenTrial

#: A trial in so many goes on from a rung.
REDUCTION = 3


@dataclass(frozen=True)
class PausedTrial:
    """A trial that waits, and the rung at which it does."""

    number: int
    #: Epochs after which it was paused.
    epoch: int


def rungs(epochs: int) -> tuple[int, ...]:
    """Return after how many epochs trials are compared, in ascending order.

    Args:
        epochs: Epochs that a trial has at most, at least 1.

    Returns:
        A third of the epochs, a third of that, and so on, each rounded up: 1, 2 for 6 epochs. It is
        empty where a trial has a single epoch.
    """
    found = []
    while epochs > 1:
        epochs = math.ceil(epochs / REDUCTION)
        found.append(epochs)
    return tuple(reversed(found))


class Halving:
    """Decides from what trials have reached which of them go on."""

    def __init__(self, epochs: int, *, maximizes: bool) -> None:
        """Prepare to decide.

        Args:
            epochs: Epochs that a trial has at most.
            maximizes: Whether the objective is better where it is larger.
        """
        self.rungs = rungs(epochs)
        self._sign = 1.0
        if maximizes:
            self._sign = -1.0

    def best(self, trials: Sequence[FrozenTrial], epoch: int, *, at_least: int) -> list[int]:
        """Return the trials that go on from a rung.

        Args:
            trials: All trials of the study.
            epoch: The rung.
            at_least: How many go on, even if a third is less than that: 1 where a trial cannot
                wait for others.

        Returns:
            Their numbers, the best first. Trials that went on before are among them.
        """
        losses = self._losses(trials, epoch)
        ranked = sorted(losses, key=lambda number: (losses[number], number))
        return ranked[: max(at_least, len(ranked) // REDUCTION)]

    def promotable(
        self, trials: Sequence[FrozenTrial], paused: Collection[PausedTrial], *, at_least: int
    ) -> list[int]:
        """Return the paused trials that should go on.

        Args:
            trials: All trials of the study.
            paused: The trials that wait.
            at_least: See :meth:`best`.

        Returns:
            Their numbers: those with the most epochs first, and of these the best first.
        """
        found = []
        for epoch in reversed(self.rungs):
            waiting = {trial.number for trial in paused if trial.epoch == epoch}
            if not waiting:
                continue
            best = self.best(trials, epoch, at_least=at_least)
            found += [number for number in best if number in waiting]
        return found

    def worst(self, trials: Sequence[FrozenTrial], paused: Collection[PausedTrial]) -> int:
        """Return the paused trial that is least likely to go on.

        Args:
            trials: All trials of the study.
            paused: The trials that wait, at least one.

        Returns:
            The number of the worst of those with the fewest epochs.
        """
        epoch = min(trial.epoch for trial in paused)
        losses = self._losses(trials, epoch)
        waiting = [trial.number for trial in paused if trial.epoch == epoch]
        return max(waiting, key=lambda number: (losses[number], number))

    def _losses(self, trials: Sequence[FrozenTrial], epoch: int) -> Mapping[int, float]:
        """Return what trials had reached after an epoch, the smaller the better."""
        losses = {}
        for trial in trials:
            value = trial.intermediate_values.get(epoch)
            if value is None:
                continue
            losses[trial.number] = self._sign * value
            if math.isnan(value):
                losses[trial.number] = math.inf
        return losses
