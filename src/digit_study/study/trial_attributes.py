"""What the project keeps of trials beside what Optuna keeps, and how trials rank.

The values of the constants are in stores that people have: they never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from digit_study.support.trial_status import ABANDONED, TrialStatus
from digit_study.trial.events import FailureCause

#: Attribute of a trial: id of its run in MLflow.
RUN_ID = "run_id"
#: Number of the trial of which it is a retry.
RETRY_OF = "retry_of"
#: Number of the first trial of the same configuration.
REPLICATE_OF = "replicate_of"
#: Seed that it was trained with.
SEED = "training.seed"
#: Threads that it was trained with.
THREADS = "training.threads"
#: Process that decides about it.
SUPERVISOR = "supervisor"
#: Process that trains it.
WORKER = "worker"
#: Why it failed, in a sentence.
REASON = "reason"
#: Why it failed, as a :class:`FailureCause`; records of earlier versions have the sentence alone.
CAUSE = "failure_cause"
#: Epochs after which it is paused; None once it goes on.
PAUSED_AFTER = "paused_after"
#: Whether it does not count: its configuration runs again, or it is in excess of the total.
REQUEUED = "superseded"

#: Reason of a trial that a person interrupted.
INTERRUPTED = "interrupted"
#: Reason of a trial in excess of the total.
EXCESS = "one too many: another machine had begun the last one"
#: How the reason begins of a trial that a failure of the infrastructure ended.
INFRASTRUCTURE_PREFIX = "no fault of the trial: "

#: Causes by the sentences that earlier versions kept alone.
_CAUSES_BY_REASON = {
    ABANDONED: FailureCause.SUPERVISOR,
    INTERRUPTED: FailureCause.INTERRUPTED,
    "its node went away": FailureCause.NODE,
    "its slot was killed": FailureCause.SLOT,
}


def failure_cause(trial: FrozenTrial) -> FailureCause:
    """Return why a trial failed, also of a record without a cause of its own."""
    cause = trial.user_attrs.get(CAUSE)
    if cause is not None:
        return FailureCause(cause)
    reason = str(trial.user_attrs.get(REASON))
    if reason.startswith(INFRASTRUCTURE_PREFIX):
        return FailureCause.INFRASTRUCTURE
    return _CAUSES_BY_REASON.get(reason, FailureCause.PROCESS)


def paused_after(trial: FrozenTrial) -> int | None:
    """Return after how many epochs a trial is paused, None if it is not paused."""
    if trial.state != TrialState.RUNNING:
        return None
    epochs: int | None = trial.user_attrs.get(PAUSED_AFTER)
    return epochs


def shown_state(trial: FrozenTrial) -> str:
    """Return how a trial stands for a person: Optuna's state, or PAUSED."""
    if paused_after(trial) is not None:
        return TrialStatus.PAUSED
    return str(trial.state.name)


def deaths(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """Return how often the process of a configuration died in the trials that this one retries.

    Args:
        trial: A trial.
        trials: All trials of its study.
    """
    by_number = {trial.number: trial for trial in trials}
    died = 0
    while (earlier := trial.user_attrs.get(RETRY_OF)) is not None:
        trial = by_number[earlier]
        died += failure_cause(trial).is_trials_fault
    return died


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count towards the total: all that began and were not requeued."""
    return [
        trial
        for trial in trials
        if trial.state != TrialState.WAITING and not trial.user_attrs.get(REQUEUED)
    ]


@dataclass(frozen=True, order=True)
class Rank:
    """A complete trial and what such trials are sorted by, the best first."""

    breaks_constraint: bool
    #: The first objective, negated where it is maximised.
    loss: float
    number: int
    trial: FrozenTrial = field(compare=False)

    @classmethod
    def of(cls, trial: FrozenTrial, study: Study) -> Rank:
        """Return the rank of a complete trial of a study."""
        sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
        return cls(
            breaks_constraint=any(value > 0 for value in trial.constraints.values()),
            loss=sign * trial.values[0],
            number=trial.number,
            trial=trial,
        )

    @property
    def run_id(self) -> str:
        """Return the id of the trial's run."""
        return str(self.trial.user_attrs.get(RUN_ID))


def ranked_trials(study: Study) -> list[Rank]:
    """Return all complete trials of a study, the best first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(Rank.of(trial, study) for trial in complete)
