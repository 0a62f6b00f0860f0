"""A list of jobs as a source: the runs of ``-m``, a single run, a reproduction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from digit_study.study.progress_source import ProgressSource
from digit_study.support import formatting
from digit_study.support.progress import JobProgress
from digit_study.tracking.session import Tracker
from digit_study.trial.events import (
    Decision,
    EpochDone,
    Failed,
    Finished,
    Outcome,
    Stopped,
)
from digit_study.trial.runner import Job


class JobList(ProgressSource):
    """Trains every job of a list, in the order given."""

    def __init__(
        self,
        jobs: Sequence[Job],
        progress: JobProgress,
        tracker: Tracker,
        *,
        trains_here: bool,
        finished: Mapping[int, Finished] = MappingProxyType({}),
    ) -> None:
        """Prepare to train.

        Args:
            jobs: What is trained, first what should start first.
            progress: Where that is shown.
            tracker: The store that has the runs of the jobs.
            trains_here: Whether jobs are trained on this machine, so that their runs are spooled
                here.
            finished: How other jobs of the same command have ended before, by their keys.
        """
        self._waiting = list(jobs)
        self._total = len(jobs) + len(finished)
        self._progress = progress
        self._tracker = tracker
        self._trains_here = trains_here
        #: How each job ended, by its key.
        self.outcomes: dict[int, Finished | Failed] = dict(finished)
        progress.count(len(finished), self._total)

    @property
    def is_finished(self) -> bool:
        """Return whether every job has ended."""
        return len(self.outcomes) == self._total

    def next(self) -> Job | None:
        """Return the next job of the list."""
        return self._waiting.pop(0) if self._waiting else None

    def on_created(self, job: Job, run_id: str) -> None:
        """Show a job that starts; its run ends also if this process is killed from now on."""
        if self._trains_here:
            self._tracker.claim_run(run_id)
        super().on_created(job, run_id)

    def on_epoch(self, job: Job, event: EpochDone) -> Decision:
        """Show an epoch; every job goes on to its end."""
        self._progress.epoch(job.key, event.epoch, event.record)
        return Decision.CONTINUE

    def on_end(self, job: Job, outcome: Outcome, *, runs_again: bool) -> None:
        """Keep how a job ended, or put it back at the head of the list."""
        self._progress.end(job.key)
        match outcome:
            case Finished():
                self.outcomes[job.key] = outcome
                text = formatting.accuracy_with_interval(outcome.result.metrics)
            case Failed() if runs_again:
                deaths = job.deaths + int(outcome.cause.is_trials_fault)
                self._waiting.insert(0, replace(job, deaths=deaths))
                text = f"{outcome.reason}; it runs again"
            case Failed():
                self.outcomes[job.key] = outcome
                text = f"FAILED ({outcome.cause}): {outcome.reason}"
            case Stopped():
                raise AssertionError("a job of a list is never told to stop")
        ended = len(self.outcomes)
        self._progress.count(ended, self._total)
        if self._total > 1:
            self._progress.print(f"{ended}/{self._total}  {job.name}: {text}")
