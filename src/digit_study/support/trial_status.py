"""How a trial stands, in the words that Optuna, MLflow, the terminal and the pages share."""

from __future__ import annotations

from enum import StrEnum

#: Tag of a run that says how its trial stands; its values are those of :class:`TrialStatus`.
STATUS_TAG = "trial.state"
#: Tag of a run that says why it was stopped before its last epoch.
STOPPED_TAG = "stopped"
#: Tag of a run that says why it failed or was killed.
FAILURE_TAG = "failure"
#: What `FAILURE_TAG` says of a trial whose supervisor ended before it.
ABANDONED = "its supervisor ended before it"
#: What `STOPPED_TAG` says of a pruned trial.
PRUNED_REASON = "others promise more"


class TrialStatus(StrEnum):
    """How a trial stands. The values are Optuna's names, and are in stores that people have.

    A new member gets its colours in `support.progress` and `report.figures.interactive`.
    """

    #: It has its result.
    COMPLETE = "COMPLETE"
    #: It was stopped early because others promise more. That is no failure, and no result.
    PRUNED = "PRUNED"
    #: It has no result: training diverged, or its process died.
    FAIL = "FAIL"
    #: It waits for others after some epoch, and may be resumed. Optuna calls it RUNNING.
    PAUSED = "PAUSED"
    #: It trains, or is about to.
    RUNNING = "RUNNING"
