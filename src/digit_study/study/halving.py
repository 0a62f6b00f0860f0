"""Asynchronous successive halving that pauses trials: which of them go on from which epoch.

After some epochs, the rungs, only the best of the trials that came so far go on. The others are
paused, not ended. A paused trial goes on as soon as it belongs to the best, because later trials
were worse. This is the promotion of ASHA (L. Li et al. 2020, arXiv 1810.05934): no good trial is
lost for a slow start.

Where the rungs are and how many go on was chosen on recorded curves, by
``tests/benchmarks/bench_search.py``: after a first epoch a strict choice saves most, and after a
second epoch a mild choice loses least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # no plan waits for Optuna
    from optuna.trial import FrozenTrial

#: The first rung is at this share of the epochs, and from it a trial in so many goes on.
FIRST_SHARE = 1 / 9
FIRST_REDUCTION = 4
#: The second rung.
SECOND_SHARE = 1 / 3
SECOND_REDUCTION = 2
#: Trials that get to their end in a small study too: a confirmation needs some to choose from.
LEAST_RESULTS = 3


def reductions(epochs: int) -> dict[int, int]:
    """Return after how many epochs trials are compared, and that a trial in how many goes on.

    Args:
        epochs: Epochs that a trial has at most, at least 1.

    Returns:
        One trial in how many goes on, by the rung, in ascending order: ``{1: 4, 2: 2}`` for 6
        epochs. It is empty where a trial has a single epoch.
    """
    second = math.ceil(SECOND_SHARE * epochs)
    first = math.ceil(FIRST_SHARE * epochs)
    found = {first: FIRST_REDUCTION}
    if second > first:
        found[second] = SECOND_REDUCTION
    return {epoch: reduction for epoch, reduction in found.items() if epoch < epochs}


class Halving:
    """Decides from what trials have reached which of them go on."""

    def __init__(self, epochs: int, *, maximizes: bool) -> None:
        """Prepare to decide.

        Args:
            epochs: Epochs that a trial has at most.
            maximizes: Whether the objective is better where it is larger.
        """
        self._reductions = reductions(epochs)
        self._sign = 1.0
        if maximizes:
            self._sign = -1.0

    @property
    def rungs(self) -> tuple[int, ...]:
        """Return the epochs after which trials are compared, in ascending order."""
        return tuple(self._reductions)

    def best(self, trials: Sequence[FrozenTrial], epoch: int, *, at_least: int) -> list[int]:
        """Return the trials that go on from a rung.

        Args:
            trials: All trials of the study.
            epoch: The rung.
            at_least: How many go on however few trials there are: 1 where a trial cannot wait for
                others, :data:`LEAST_RESULTS` where all others have come.

        Returns:
            Their numbers, the best first. Trials that went on before are among them.
        """
        losses = self._losses(trials, epoch)
        ranked = sorted(losses, key=lambda number: (losses[number], number))
        count = len(ranked) // self._reductions[epoch]
        return ranked[: max(at_least, count)]

    def promotable(
        self, trials: Sequence[FrozenTrial], paused: Mapping[int, int], *, at_least: int
    ) -> list[int]:
        """Return the paused trials that should go on.

        Args:
            trials: All trials of the study.
            paused: After how many epochs each trial that waits was paused, by its number.
            at_least: See :meth:`best`.

        Returns:
            Their numbers: those with the most epochs first, and of these the best first.
        """
        found = []
        for epoch in reversed(self.rungs):
            if epoch not in paused.values():
                continue
            best = self.best(trials, epoch, at_least=at_least)
            found += [number for number in best if paused.get(number) == epoch]
        return found

    def may_go_on(self, trials: Sequence[FrozenTrial], number: int, epoch: int, total: int) -> bool:
        """Return whether a paused trial may belong to the best at the end of a study.

        Args:
            trials: All trials that the study has so far.
            number: Of the trial.
            epoch: Epochs after which it was paused.
            total: Trials that the study has at its end.
        """
        if epoch not in self._reductions:
            # an earlier version had other rungs, and what it paused comes again
            return True
        at_end = float(total)
        for rung, reduction in self._reductions.items():
            at_end /= reduction
            if rung == epoch:
                break
        places = max(LEAST_RESULTS, int(at_end))
        return number in self.best(trials, epoch, at_least=places)

    def worst(self, trials: Sequence[FrozenTrial], paused: Mapping[int, int]) -> int:
        """Return the paused trial that is least likely to go on.

        Args:
            trials: All trials of the study.
            paused: After how many epochs each trial that waits was paused, by its number; at least
                one.

        Returns:
            The number of the worst of those with the fewest epochs.
        """
        first = min(paused.values())
        losses = self._losses(trials, first)
        waiting = [number for number, epoch in paused.items() if epoch == first]
        return max(waiting, key=lambda number: (losses[number], number))

    def _losses(self, trials: Sequence[FrozenTrial], epoch: int) -> Mapping[int, float]:
        """Return what trials had reached after an epoch, the smaller the better.

        A trial that failed is not among them. It gets to no end, and if it runs again it would be
        compared twice: then nothing might be left that goes on.
        """
        losses = {}
        for trial in trials:
            value = trial.intermediate_values.get(epoch)
            if value is None or trial.state.name == "FAIL":
                continue
            loss = self._sign * value
            if math.isnan(value):
                loss = math.inf
            losses[trial.number] = loss
        return losses
