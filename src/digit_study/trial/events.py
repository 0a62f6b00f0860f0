"""What an engine reports about its trials, and why a trial has no result."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy, which a node without the packages lacks
    from digit_study.model.training_state import Epoch
    from digit_study.trial.protocol import TrialResult


class Decision(StrEnum):
    """What a trial does after an epoch."""

    CONTINUE = "continue"
    STOP = "stop"
    #: It waits, without a slot, for a later decision.
    PAUSE = "pause"


class FailureCause(StrEnum):
    """Why a trial ended without a result. Its value is what the stores keep."""

    #: The trial itself: training diverged, an exception.
    TRIAL = "trial"
    #: It exceeded a limit of time or memory.
    LIMIT = "limit"
    #: Its process was killed or crashed.
    PROCESS = "process"
    #: Disk, memory, database or tracking server failed.
    INFRASTRUCTURE = "infrastructure"
    #: Its node of the cluster went away.
    NODE = "node"
    #: Its slot on a node was killed.
    SLOT = "slot"
    #: Its supervisor ended before it.
    SUPERVISOR = "supervisor"
    #: A person interrupted the command.
    INTERRUPTED = "interrupted"

    @property
    def is_trials_fault(self) -> bool:
        """Return whether the trial may be to blame: it then runs again only so many times."""
        return self in (FailureCause.TRIAL, FailureCause.LIMIT, FailureCause.PROCESS)


@dataclass(frozen=True)
class StepsDone:
    """A trial has trained some steps of an epoch."""

    key: int
    epoch: int
    step: int
    steps: int


@dataclass(frozen=True)
class EpochDone:
    """A trial has finished an epoch and waits for a :class:`Decision`."""

    key: int
    epoch: int
    record: Epoch


@dataclass(frozen=True)
class Finished:
    """A trial has its result; it may still draw the figures of its run."""

    key: int
    result: TrialResult


@dataclass(frozen=True)
class Stopped:
    """A trial ended after an epoch because :attr:`Decision.STOP` was the answer to it."""

    key: int


@dataclass(frozen=True)
class Failed:
    """A trial ended without a result."""

    key: int
    cause: FailureCause
    reason: str


#: Reasons of trials that have no result because their node or their slot is gone.
LOST_REASONS = {
    FailureCause.NODE: "its node went away",
    FailureCause.SLOT: "its slot was killed",
}
#: How a trial ended.
Outcome = Finished | Stopped | Failed
#: What an engine reports.
Event = StepsDone | EpochDone | Outcome
