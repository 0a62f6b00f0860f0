"""The trials of this process that are paused, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable

from digit_study.study.halving import LEAST_RESULTS, Halving
from digit_study.study.storage import StoredStudy
from digit_study.trial.events import Decision
from digit_study.trial.runner import LateAnswer


class Pausing:
    """Pauses trials at rungs, lets them go on, and ends those that never will."""

    def __init__(self, halving: Halving, stored: StoredStudy, limit: int) -> None:
        """Prepare to decide.

        Args:
            halving: The rule.
            stored: The study, also with the trials of other processes.
            limit: Trials that are paused here at most. At 0 a trial that would be paused is pruned.
        """
        self._halving = halving
        self._stored = stored
        self._limit = limit
        #: Epochs after which a trial was paused, by its number.
        self._epochs: dict[int, int] = {}

    @property
    def has_paused(self) -> bool:
        """Return whether a trial is paused here."""
        return bool(self._epochs)

    def decide(self, number: int, epoch: int) -> Decision:
        """Decide about a trial that has reached an epoch before its last.

        Args:
            number: Of the trial.
            epoch: Epochs that it has done; what it has reached is in the study already.
        """
        if epoch not in self._halving.rungs:
            return Decision.CONTINUE
        # a trial that cannot wait for others to be compared with goes on
        at_least = int(self._limit == 0)
        if number in self._halving.best(self._stored.trials(), epoch, at_least=at_least):
            return Decision.CONTINUE
        if self._limit == 0:
            return Decision.STOP
        self._epochs[number] = epoch
        return Decision.PAUSE

    def late_answer(
        self, can_resume: Callable[[int], bool], *, nothing_else_runs: bool, ends: bool
    ) -> LateAnswer | None:
        """Decide about a paused trial, which is no longer paused then.

        Args:
            can_resume: Returns whether there is a slot for a paused trial, given its number.
            nothing_else_runs: Whether no trial runs or will start, so that nothing is to be waited
                for: the best of each rung goes on, and what is not among them ends.
            ends: Whether the study ends: no trial goes on.

        Returns:
            The decision, or None if all go on waiting.
        """
        if not self.has_paused:
            return None
        trials = self._stored.trials()
        if ends or len(self._epochs) > self._limit:
            return self._end(self._halving.worst(trials, self._epochs))
        at_least = 0
        if nothing_else_runs:
            at_least = LEAST_RESULTS
        promotable = self._halving.promotable(trials, self._epochs, at_least=at_least)
        for number in promotable:
            if can_resume(number):
                del self._epochs[number]
                return LateAnswer(number, Decision.CONTINUE)
        if nothing_else_runs and not promotable:
            return self._end(self._halving.worst(trials, self._epochs))
        return None

    def forget(self, number: int) -> None:
        """Forget a trial that has ended, for whatever reason."""
        self._epochs.pop(number, None)

    def _end(self, number: int) -> LateAnswer:
        del self._epochs[number]
        return LateAnswer(number, Decision.STOP)
