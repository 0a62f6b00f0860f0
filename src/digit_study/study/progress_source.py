"""What sources share whose jobs are bars on the terminal: a list, and a race over seeds."""

from __future__ import annotations

from digit_study.support.progress import JobProgress
from digit_study.trial.events import StepsDone
from digit_study.trial.runner import Job, JobSource


class ProgressSource(JobSource):
    """Shows jobs while they are trained; no other command works on them."""

    #: Where jobs are shown.
    _progress: JobProgress

    def on_created(self, job: Job, run_id: str) -> None:
        """Show a job that starts."""
        self._progress.begin(job.key, job.name, job.config.epochs)

    def on_submitted(self, job: Job, worker: str) -> None:
        """Note nothing: which process trains a job is in its run."""

    def on_steps(self, job: Job, event: StepsDone) -> None:
        """Show where a job is within an epoch."""
        self._progress.steps(job.key, event.epoch, event.step, event.steps)

    def on_turn(self) -> None:
        """Do nothing: there is nobody to be told that the jobs live."""

    def on_stop(self, *, is_interrupted: bool, had_outage: bool) -> None:
        """Do nothing: the runner and the parent run end what was stopped."""
