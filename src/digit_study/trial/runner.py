"""Keep an engine busy with the jobs of a source.

Search, confirmation, frontier, multirun and a single run differ in their source alone. The rules
for retries, outages and signals stand here, once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from digit_study.config.run_config import Config
from digit_study.support.errors import StudyError, first_line, is_infrastructure_error
from digit_study.support.signals import deferred_signals, raise_if_interrupted
from digit_study.tracking.session import Tracker
from digit_study.tracking.store import StoreFault
from digit_study.trial.events import (
    Decision,
    EpochDone,
    Event,
    Failed,
    FailureCause,
    Finished,
    Outcome,
    StepsDone,
)
from digit_study.trial.health import Health
from digit_study.trial.protocol import Engine

#: How often a job runs again because its process was killed or crashed.
MAX_RETRIES = 1
#: Seconds that an event is waited for, and while a run is being created.
EVENT_WAIT_S = 0.5
EVENT_WAIT_WHILE_CREATING_S = 0.1
#: Reason of a run whose job was stopped with its command.
STOPPED = "its command was stopped before it ended"
#: Seconds that a run which is being created has left when a command is interrupted.
CREATION_GRACE_S = 5.0


@dataclass(frozen=True)
class Job:
    """One configuration to train, and what its run says of it."""

    #: Unique among the jobs of a source.
    key: int
    #: For a person; also the name of the run.
    name: str
    config: Config
    #: Name of the data.
    dataset: str
    #: Tags of the run, beside those that every run has.
    tags: Mapping[str, str] = field(default_factory=dict)
    #: How often the process of this job died before.
    deaths: int = 0
    #: Why the configuration cannot be trained; None if it can.
    problem: str | None = None


@dataclass(frozen=True)
class LateAnswer:
    """The decision about a job that was paused after an epoch."""

    key: int
    #: CONTINUE or STOP.
    decision: Decision


class JobSource(Protocol):
    """Decides what is trained next: Optuna's trials, a race over seeds, or a list.

    The calls about a job come in the order of the methods; a job that could not be started has an
    end alone. A call that raises because a disk is full or a store is gone is made again when that
    is over.
    """

    @property
    def is_finished(self) -> bool:
        """Return whether all is done; asked whenever nothing is left to handle."""

    def next(self) -> Job | None:
        """Return the next job, None if there is nothing to start at this moment."""

    def late_answer(self, can_resume: Callable[[int], bool]) -> LateAnswer | None:
        """Decide about a job that was paused; a source that pauses none need not define this.

        Args:
            can_resume: Returns whether there is a slot for a paused job, given its key.

        Returns:
            The decision about a paused job, or None if those that there are go on waiting.
        """
        return None

    def on_created(self, job: Job, run_id: str) -> None:
        """Record the run of a job before it is trained."""

    def on_submitted(self, job: Job, worker: str) -> None:
        """Record the process that trains a job."""

    def on_steps(self, job: Job, event: StepsDone) -> None:
        """Follow a job within an epoch."""

    def on_epoch(self, job: Job, event: EpochDone) -> Decision:
        """Decide whether a job goes on after an epoch."""

    def on_end(self, job: Job, outcome: Outcome, *, runs_again: bool) -> None:
        """Record how a job ended.

        Args:
            job: The job.
            outcome: Its result, or why there is none.
            runs_again: Whether the source should offer the job once more.
        """

    def on_turn(self) -> None:
        """Do what has to be done every now and then."""

    def on_stop(self, *, is_interrupted: bool, had_outage: bool) -> None:
        """Record the end of the jobs that the engine has stopped.

        Args:
            is_interrupted: Whether the runner ends because of an error or a signal.
            had_outage: Whether the infrastructure failed at any time.
        """


def may_run_again(failure: Failed, deaths: int) -> bool:
    """Return whether a job that failed is trained once more.

    A job whose machine, store or supervisor failed runs again as often as that happens. A job
    whose own process died runs again :data:`MAX_RETRIES` times, and a job that failed by itself
    does not run again.

    Args:
        failure: How it ended.
        deaths: How often its process died before.
    """
    if not failure.cause.is_trials_fault:
        return True
    return failure.cause is FailureCause.PROCESS and deaths < MAX_RETRIES


def is_outage(error: Exception) -> bool:
    """Return whether a supervisor met a failure of the infrastructure: disk, store or database.

    A StudyError is none: whoever raises it has waited long enough.
    """
    if isinstance(error, StudyError):
        return False
    if isinstance(error, MlflowException | StorageInternalError | OperationalError):
        return True
    return is_infrastructure_error(error)


def describe_outage(error: BaseException) -> str:
    """Return an outage in one line; Optuna's own error only says that a commit failed."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return first_line(error.__cause__)
    return first_line(error)


@dataclass
class _ActiveJob:
    """A job that has a slot."""

    job: Job
    run_id: Future[str]
    is_submitted: bool = False


class Runner:
    """Keeps the slots of an engine full until its source has finished.

    While the infrastructure is down nothing starts, and what has to be recorded waits.
    """

    def __init__(
        self, engine: Engine, tracker: Tracker, health: Health, *, awaits_upload: bool = False
    ) -> None:
        """Prepare to run.

        Args:
            engine: Where jobs are trained; it is stopped at the end.
            tracker: Where their runs are created.
            health: The state of the infrastructure.
            awaits_upload: Whether a result counts only once the tracking store has it, because
                other machines act on it.
        """
        self._engine = engine
        self._tracker = tracker
        self._health = health
        self._awaits_upload = awaits_upload
        self._active: dict[int, _ActiveJob] = {}
        self._events: deque[Event] = deque()

    def run(self, source: JobSource) -> None:
        """Train the jobs of a source until it has finished.

        Raises:
            StudyError: If the infrastructure was down for longer than the outage time-out.
            Interrupted: After a signal. Everything that ran has then been ended.
        """
        try:
            while not self._advance(source):
                raise_if_interrupted()
                self._receive_events()
                raise_if_interrupted()
        except BaseException:
            self._stop(source, is_interrupted=True)
            raise
        self._stop(source, is_interrupted=False)

    @property
    def _creating(self) -> list[_ActiveJob]:
        """Jobs that have a slot, but not yet a run."""
        return [active for active in self._active.values() if not active.is_submitted]

    @property
    def _event_wait(self) -> float:
        return EVENT_WAIT_WHILE_CREATING_S if self._creating else EVENT_WAIT_S

    def _receive_events(self) -> None:
        """Wait for events; those that a full disk holds back come later."""
        try:
            self._events.extend(self._engine.events(self._event_wait))
        except Exception as error:
            if not is_outage(error):
                raise
            self._health.report_fault(describe_outage(error))

    def _advance(self, source: JobSource) -> bool:
        """Handle what has happened and fill free slots; return whether all is done.

        Signals wait: inside a transaction they could leave a database locked.
        """
        with deferred_signals():
            try:
                self._handle_events(source)
                for active in self._creating:
                    self._submit(source, active)
                is_healthy = self._health.is_ok()
                if is_healthy:
                    self._fill_slots(source)
                source.on_turn()
                return is_healthy and source.is_finished
            except Exception as error:
                if not is_outage(error):
                    raise
                self._health.report_fault(describe_outage(error))
                return False

    def _fill_slots(self, source: JobSource) -> None:
        """Start jobs until the slots are full or the source has none."""
        while self._engine.free > len(self._creating):
            answer = source.late_answer(self._engine.can_resume)
            if answer is not None:
                self._engine.answer(answer.key, answer.decision)
                continue
            job = source.next()
            if job is None:
                return
            run_id = self._tracker.request_run(job.config, job.dataset, job.name, **job.tags)
            active = _ActiveJob(job, run_id)
            self._active[job.key] = active
            self._submit(source, active)

    def _submit(self, source: JobSource, active: _ActiveJob) -> None:
        """Hand a job to the engine as soon as its run is created."""
        if not active.run_id.done():
            return
        job = active.job
        try:
            run_id = active.run_id.result()
            source.on_created(job, run_id)
            active.is_submitted = True
            if job.problem is not None:
                self._events.append(Failed(job.key, FailureCause.TRIAL, job.problem))
                return
            worker = self._engine.submit(job.key, job.config, run_id)
            if worker is not None:
                source.on_submitted(job, worker)
        except Exception as error:
            active.is_submitted = True
            if is_outage(error):
                # it ends, so that it comes again after the outage
                reason = describe_outage(error)
                self._events.append(Failed(job.key, FailureCause.INFRASTRUCTURE, reason))
            raise

    def _handle_events(self, source: JobSource) -> None:
        """Handle events in order; an event that met an outage stays, to be handled again."""
        for _ in range(len(self._events)):
            event = self._events[0]
            if self._must_wait(event):
                self._events.rotate(-1)
                continue
            self._handle(source, event)
            self._events.popleft()

    def _must_wait(self, event: Event) -> bool:
        """Return whether a result is not in the store yet, on which other machines act."""
        if not self._awaits_upload or not isinstance(event, Finished):
            return False
        return self._tracker.is_spooled(event.result.run_id)

    def _handle(self, source: JobSource, event: Event) -> None:
        active = self._active.get(event.key)
        if active is None:
            return
        job = active.job
        match event:
            case StepsDone():
                source.on_steps(job, event)
            case EpochDone():
                self._engine.answer(event.key, source.on_epoch(job, event))
            case Failed():
                self._end_failed(source, active, event)
            case _:
                source.on_end(job, event, runs_again=False)
                del self._active[event.key]

    def _end_failed(self, source: JobSource, active: _ActiveJob, failure: Failed) -> None:
        """Record a failure in the tracking store and in the source.

        The job is forgotten last: what an outage interrupts is done again.
        """
        job = active.job
        if active.run_id.done() and active.run_id.exception() is None:
            status = "FAILED" if failure.cause.is_trials_fault else "KILLED"
            self._tracker.close_run(active.run_id.result(), status, failure.reason)
        source.on_end(job, failure, runs_again=may_run_again(failure, job.deaths))
        del self._active[failure.key]
        if failure.cause is FailureCause.INFRASTRUCTURE:
            self._health.report_fault(failure.reason)

    def _stop(self, source: JobSource, *, is_interrupted: bool) -> None:
        """Stop the engine, let the source record what was stopped, and end the runs of it."""
        self._engine.stop()
        for active in self._creating:
            # the next command ends a run whose id did not arrive
            with suppress(*StoreFault, TimeoutError):
                source.on_created(active.job, active.run_id.result(CREATION_GRACE_S))
        source.on_stop(is_interrupted=is_interrupted, had_outage=self._health.had_fault)
        for active in self._active.values():
            if active.run_id.done() and active.run_id.exception() is None:
                # a process that was killed has not ended its run; where the store does not take
                # that, the next command does it
                with suppress(*StoreFault):
                    self._tracker.close_run(active.run_id.result(), "KILLED", STOPPED)
