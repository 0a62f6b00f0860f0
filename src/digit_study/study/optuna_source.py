"""Optuna's trials as a source: sampled, pruned and recorded until the declared total is met."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from filelock import FileLock
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from digit_study.config import space
from digit_study.study import _optuna, storage
from digit_study.study.pausing import Pausing
from digit_study.study.results import RunResults
from digit_study.study.storage import StoredStudy
from digit_study.study.study_plan import (
    StudyPlan,
    halving_of,
    paused_limit,
)
from digit_study.study.trial_attributes import (
    PAUSED_AFTER,
    REASON,
    REPLICATE_OF,
    RETRY_OF,
    RUN_ID,
    SEED,
    SUPERVISOR,
    THREADS,
    WORKER,
    counted,
    deaths,
    paused_after,
)
from digit_study.study.trial_recorder import TrialRecorder
from digit_study.support import processes
from digit_study.support.console import warn
from digit_study.support.progress import SweepProgress
from digit_study.support.trial_status import ABANDONED, FAILURE_TAG, STATUS_TAG, TrialStatus
from digit_study.tracking.session import Tracker
from digit_study.trial.events import (
    Decision,
    EpochDone,
    Failed,
    FailureCause,
    Finished,
    Outcome,
    StepsDone,
    Stopped,
)
from digit_study.trial.runner import (
    Job,
    JobSource,
    LateAnswer,
    describe_outage,
    is_outage,
    may_run_again,
)

#: How many of the last trials the remaining time is estimated from.
RECENT_TRIALS = 100
#: Seconds that recording has left when a command is interrupted.
INTERRUPTED_WAIT_S = 5.0


@dataclass
class _RunningTrial:
    """A trial that has a slot, and where it is."""

    trial: Trial
    params: space.Params
    #: Epochs that it has at most.
    most_epochs: int
    #: The first trial of the same configuration.
    replicate_of: int | None = None
    started: float = field(default_factory=time.monotonic)
    host: str = ""
    #: Epochs done, with the share of the present one.
    epochs: float = 0.0
    #: The objective after the last epoch.
    value: float | None = None
    #: Whether it was told to stop.
    is_pruned: bool = False
    #: The epoch after which it was paused last, or told to stop.
    stopped_after: int | None = None
    #: Id of its run, once that is created.
    run_id: str | None = None
    #: When it was paused, by the monotonic clock; None while it runs.
    paused_since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds for which it has run."""
        until = self.paused_since or time.monotonic()
        return until - self.started

    def resume(self) -> None:
        """Let the clock go on."""
        if self.paused_since is not None:
            self.started += time.monotonic() - self.paused_since
        self.paused_since = None


class _Total:
    """Counts how many trials are still to start; finished ones are counted once."""

    def __init__(self, stored: StoredStudy, total: int, minutes: float | None) -> None:
        """Prepare to count.

        Args:
            stored: The study.
            total: Trials that it has at its end.
            minutes: After so many no more are to start; None: no limit.
        """
        self._stored = stored
        self._total = total
        self._deadline = math.inf
        if minutes is not None:
            self._deadline = time.monotonic() + 60 * minutes
        self._looked_at = 0
        self._counted = 0

    @property
    def is_over(self) -> bool:
        """Return whether the time is over within which trials start."""
        return time.monotonic() >= self._deadline

    def to_start(self) -> int:
        """Return how many trials are still to start: none when the time is over."""
        if self.is_over:
            return 0
        return self.missing()

    def missing(self) -> int:
        """Return how many trials the study lacks to its total."""
        trials = self._stored.trials()
        while self._looked_at < len(trials) and trials[self._looked_at].state.is_finished():
            self._counted += len(counted([trials[self._looked_at]]))
            self._looked_at += 1
        rest = len(counted(trials[self._looked_at :]))
        return max(0, self._total - self._counted - rest)


def _set_unless_taken_over(trial: Trial, key: str, value: str | int | None) -> None:
    """Set an attribute of a trial, unless another machine has ended the trial meanwhile.

    Then the trial is told to stop after its next epoch.
    """
    with suppress(UpdateFinishedTrialError):
        trial.set_user_attr(key, value)


class OptunaSource(JobSource):
    """Asks Optuna for trials, prunes them, and records the truth about each in both stores.

    Several processes, also on several machines, may work on one study, each with a source of its
    own. A source has many attributes, because it stands between the plan, both stores, what trials
    leave for the report, and the display.
    """

    def __init__(
        self,
        plan: StudyPlan,
        stored: StoredStudy,
        tracker: Tracker,
        parent_run_id: str,
        results: RunResults,
        progress: SweepProgress,
    ) -> None:
        """Prepare to search; :meth:`join` begins.

        Args:
            plan: The study as it was asked for.
            stored: The study as Optuna has it.
            tracker: The store that has the runs of the trials.
            parent_run_id: Id of the study's run.
            results: Keeps what trials leave, for the report.
            progress: Where trials are shown.
        """
        self._plan = plan
        self._stored = stored
        self._tracker = tracker
        self._parent_run_id = parent_run_id
        self._results = results
        self._progress = progress
        self._recorder = TrialRecorder(plan, stored, tracker, parent_run_id, progress.ended)
        self._total = _Total(stored, plan.total, plan.study.search.timeout)
        self._pausing: Pausing | None = None
        halving = halving_of(plan)
        if halving is not None:
            self._pausing = Pausing(halving, stored, paused_limit(plan))
        self._running: dict[int, _RunningTrial] = {}
        #: Trials that Optuna has begun and an outage kept from becoming jobs.
        self._not_started: list[Failed] = []
        #: Seconds that trials took.
        self._durations: list[float] = []
        self._last_heartbeat = time.monotonic()
        #: Seconds of training steps, of all trials together.
        self.step_seconds = 0.0

    @property
    def stop_reason(self) -> str | None:
        """Why the study stopped before its total; None if it did not."""
        return self._recorder.stop_reason

    @property
    def missing_at_timeout(self) -> int:
        """Return how many trials the study lacks because its time was over, 0 if it was not."""
        if not self._total.is_over:
            return 0
        return self._total.missing()

    def join(self) -> None:
        """Sign up as a supervisor, end what dead supervisors left, and enqueue the baseline.

        A grid sampler's points are enqueued too. Supervisors on one machine do this in turn; on
        several machines excess trials are sorted out afterwards.
        """
        search = self._plan.study.search
        study = self._stored.study
        with self._turn():
            joined = [key for key in study.user_attrs if key.startswith(storage.SUPERVISED)]
            study.set_user_attr(f"{storage.SUPERVISED}{processes.process_name()}", value=True)
            study.sampler, study.pruner = _optuna.make_sampler_and_pruner(
                search, self._plan.longest_epochs, len(joined)
            )
            if self._stored.trials():
                self._recorder.adopt_orphans()
                self._recorder.reconcile_runs()
            self._enqueue_first_points()

    # The methods of a job source.

    @property
    def is_finished(self) -> bool:
        """Return whether the total is met and nothing runs, here or in another process."""
        if self._running or self._not_started:
            return False
        if self.stop_reason is not None or self._total.is_over:
            return True
        return self._total.to_start() == 0 and not self._others_run()

    def next(self) -> Job | None:
        """Ask Optuna for a trial; return None once the total is met."""
        self._end_not_started()
        if self.stop_reason is not None:
            return None
        with self._turn():
            if self._total.to_start() == 0:
                # of a supervisor that was killed meanwhile
                self._recorder.adopt_orphans()
            if self._total.to_start() == 0:
                return None
            trial = self._ask()
            trial.set_user_attr(SUPERVISOR, processes.process_name())
        self._stored.send_heartbeats([trial.number])
        if self._stored.drop_excess(trial, self._plan.total):
            return None
        try:
            return self._job(trial)
        except Exception as error:
            if is_outage(error):
                reason = describe_outage(error)
                failure = Failed(trial.number, FailureCause.INFRASTRUCTURE, reason)
                self._running.pop(trial.number, None)
                self._not_started.append(failure)
            raise

    def on_created(self, job: Job, run_id: str) -> None:
        """Record the run of a trial in Optuna."""
        running = self._running[job.key]
        running.run_id = run_id
        _set_unless_taken_over(running.trial, RUN_ID, run_id)

    def on_submitted(self, job: Job, worker: str) -> None:
        """Record the process of a trial in Optuna."""
        running = self._running[job.key]
        _set_unless_taken_over(running.trial, WORKER, worker)
        running.host = worker.rsplit(":", 2)[0]

    def on_steps(self, job: Job, event: StepsDone) -> None:
        """Follow a trial within an epoch."""
        self._running[job.key].epochs = event.epoch - 1 + event.step / event.steps

    def on_epoch(self, job: Job, event: EpochDone) -> Decision:
        """Decide about a trial after an epoch.

        A trial that another machine has taken over meanwhile stops.
        """
        running = self._running[job.key]
        running.epochs = float(event.epoch)
        self.step_seconds += event.record.get("step_seconds", 0.0)
        objective = self._objective
        if len(self._plan.objectives) > 1 or objective not in event.record:
            return Decision.CONTINUE
        running.value = event.record[objective]
        try:
            running.trial.report(running.value, event.epoch)
        except UpdateFinishedTrialError:
            return Decision.STOP
        if event.epoch >= job.config.epochs:
            return Decision.CONTINUE
        decision = self._decide(running, event.epoch)
        if decision is not Decision.CONTINUE:
            running.stopped_after = event.epoch
        if decision is Decision.PAUSE:
            self._mark_paused(running, event.epoch)
        running.is_pruned = decision is Decision.STOP
        return decision

    def late_answer(self, can_resume: Callable[[int], bool]) -> LateAnswer | None:
        """Let a paused trial go on, or end it."""
        if self._pausing is None or not self._pausing.has_paused:
            return None
        answer = self._pausing.late_answer(
            can_resume,
            nothing_else_runs=self._nothing_else_runs(),
            ends=self.stop_reason is not None,
        )
        if answer is None:
            return None
        running = self._running[answer.key]
        running.is_pruned = answer.decision is Decision.STOP
        running.resume()
        if not running.is_pruned:
            self._mark_paused(running, None)
        return answer

    def on_end(self, job: Job, outcome: Outcome, *, runs_again: bool) -> None:
        """Record the end of a trial in both stores."""
        running = self._running[job.key]
        trial = self._stored.trial(job.key)
        is_taken_over = trial.user_attrs.get(REASON) == ABANDONED
        if not is_taken_over:
            try:
                self._record(running, outcome, runs_again=runs_again)
            except UpdateFinishedTrialError:
                # by another machine, at this moment
                is_taken_over = True
        if is_taken_over:
            self._leave_to_other_machine(running)
        del self._running[job.key]
        if self._pausing is not None:
            self._pausing.forget(job.key)
        self._durations.append(running.seconds)

    def on_turn(self) -> None:
        """Tell other machines that the trials here live, and update the display."""
        self._send_heartbeats()
        if not self._progress.live:
            return
        to_start = self._total.to_start()
        active = len(self._active)
        seconds = None
        if self._durations:
            rounds = (to_start + 0.5 * active) / self._plan.workers
            seconds = statistics.mean(self._durations[-RECENT_TRIALS:]) * rounds
        paused = len(self._running) - active
        self._progress.update(self._objective, self._rows(), to_start + active, paused, seconds)

    def on_stop(self, *, is_interrupted: bool, had_outage: bool) -> None:
        """End what this process has started, and make both stores agree where they may not."""
        try:
            self._recorder.interrupt()
            if is_interrupted:
                self._reconcile(INTERRUPTED_WAIT_S)
            elif had_outage or not self._is_alone:
                self._reconcile(None)
        except Exception as error:
            if not is_outage(error):
                raise
            reason = describe_outage(error)
            warn(f"not everything is recorded yet, the same command goes on with it: {reason}")

    @property
    def _active(self) -> dict[int, _RunningTrial]:
        """Return the trials that are not paused, by their number."""
        return {
            number: running
            for number, running in self._running.items()
            if running.paused_since is None
        }

    def _nothing_else_runs(self) -> bool:
        """Return whether all that is left of the study is paused, here and elsewhere."""
        if self._active or self._not_started or self._total.to_start() > 0:
            return False
        if self._total.is_over:
            return True
        return all(
            paused_after(trial) is not None or trial.number in self._running
            for trial in self._stored.trials(TrialState.RUNNING)
        )

    def _decide(self, running: _RunningTrial, epoch: int) -> Decision:
        """Decide about a trial that has reached an epoch before its last."""
        if self._pausing is not None:
            return self._pausing.decide(running.trial.number, epoch)
        if running.trial.should_prune():
            return Decision.STOP
        return Decision.CONTINUE

    def _mark_paused(self, running: _RunningTrial, epoch: int | None) -> None:
        """Record in both stores that a trial is paused after an epoch; None: that it goes on."""
        status = TrialStatus.RUNNING
        if epoch is not None:
            running.paused_since = time.monotonic()
            status = TrialStatus.PAUSED
        trial = running.trial
        _set_unless_taken_over(trial, PAUSED_AFTER, epoch)
        self._tracker.tag_run(str(running.run_id), {STATUS_TAG: status})

    @property
    def _objective(self) -> str:
        """Return the objective that ranks."""
        return next(iter(self._plan.objectives))

    @property
    def _is_alone(self) -> bool:
        """Return whether every trial is of this process: both stores then agree unless cut off."""
        this_process = processes.process_name()
        supervisors = {trial.user_attrs.get(SUPERVISOR) for trial in self._stored.trials()}
        return supervisors <= {this_process}

    def _turn(self) -> FileLock:
        """Return the lock under which supervisors on one machine decide."""
        return storage.study_lock(self._plan.workspace, self._plan.study.study, "turn")

    def _ask(self) -> Trial:
        """Ask Optuna for a trial."""
        with warnings.catch_warnings():
            # Optuna warns that ask() sends no heartbeats; _send_heartbeats() does
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            return self._stored.study.ask()

    def _job(self, trial: Trial) -> Job:
        """Let a trial choose its parameters, and make a job of it."""
        plan = self._plan
        number = trial.number
        params = space.suggest(trial, plan.dimensions)
        seed = trial.user_attrs.get(SEED, plan.study.search.seed + 1 + number)
        trial.set_user_attr(SEED, seed)
        tags = {
            "kind": "trial",
            "study": plan.study.study,
            "trial.number": str(number),
            STATUS_TAG: TrialStatus.RUNNING,
        }
        earlier = self._stored.same_configuration(number, params)
        if earlier is not None:
            trial.set_user_attr(REPLICATE_OF, earlier)
            tags["trial.replicate_of"] = str(earlier)
        planned = plan.trial_config(params, seed, self._parent_run_id)
        trial.set_user_attr(THREADS, planned.config.training.threads)
        died = 0
        if RETRY_OF in trial.user_attrs:
            died = deaths(self._stored.trial(number), self._stored.trials())
        self._running[number] = _RunningTrial(trial, params, planned.config.epochs, earlier)
        return Job(
            key=number,
            name=f"trial {number}: {space.short_name(params)}"[:250],
            config=planned.config,
            dataset=plan.dataset,
            tags=tags,
            deaths=died,
            problem=planned.problem,
        )

    def _record(self, running: _RunningTrial, outcome: Outcome, *, runs_again: bool) -> None:
        """Record an outcome in both stores.

        A trial that was told to stop counts as pruned, unless its process died over it.
        """
        recorder = self._recorder
        trial = self._stored.trial(running.trial.number)
        # The order is the rule. A process may die before it does what it is told: what it has
        # recorded decides then, and comes before what it was told.
        match outcome:
            case Finished():
                self._results.remember(outcome.result)
                seconds = [record["epoch_seconds"] for record in outcome.result.epochs]
                metrics = {**outcome.result.metrics, "epoch_seconds": statistics.mean(seconds)}
                recorder.complete(trial, metrics)
            case Failed(cause=FailureCause.PROCESS | FailureCause.NODE | FailureCause.SLOT):
                recorder.end_without_result(trial, outcome, runs_again=runs_again)
            case _ if running.is_pruned and running.stopped_after is not None:
                recorder.prune(trial, running.stopped_after)
            case Failed(cause=FailureCause.TRIAL | FailureCause.LIMIT):
                recorder.fail(trial, outcome, runs_again=runs_again)
            case Failed():
                recorder.end_without_result(trial, outcome, runs_again=runs_again)
            case Stopped():
                failure = Failed(trial.number, FailureCause.TRIAL, "it was told to stop")
                recorder.fail(trial, failure, runs_again=False)

    def _leave_to_other_machine(self, running: _RunningTrial) -> None:
        """Show how another machine has ended a trial, and tag its run in the same way.

        The trial's process was told to stop, and has recorded the end of a trial that is pruned.
        """
        trial = self._stored.trial(running.trial.number)
        status = TrialStatus(trial.state.name)
        if status is TrialStatus.FAIL and running.run_id is not None:
            reason = str(trial.user_attrs.get(REASON))
            self._tracker.tag_run(running.run_id, {STATUS_TAG: status, FAILURE_TAG: reason})
        text = "this machine was out of reach: another has taken it over"
        self._progress.ended(trial.number, status, text)

    def _end_not_started(self) -> None:
        """Fail the trials that an outage kept from becoming jobs; they come again."""
        while self._not_started:
            failure = self._not_started[0]
            trial = self._stored.trial(failure.key)
            self._recorder.fail(trial, failure, runs_again=may_run_again(failure, 0))
            self._not_started.pop(0)

    def _enqueue_first_points(self) -> None:
        """Enqueue the configuration that the study was begun with, and the points of a grid."""
        plan = self._plan
        is_grid = plan.study.search.sampler == "grid"
        baseline, is_outside = space.baseline(plan.dimensions, plan.run)
        points = list(plan.start)
        if baseline and not (is_outside and is_grid):
            points.append(baseline)
        if is_grid:
            points += space.grid(plan.dimensions) or []
        known = {
            space.fingerprint(trial.system_attrs.get("fixed_params", trial.params))
            for trial in self._stored.trials()
        }
        distinct = {space.fingerprint(point): point for point in points}
        for name, point in list(distinct.items())[: plan.total]:
            if name not in known:
                self._stored.study.enqueue_trial(point)

    def _others_run(self) -> bool:
        """Return whether the last trials of other supervisors still run.

        A trial whose supervisor dies meanwhile is run again here.
        """
        this_process = processes.process_name()
        others = [
            trial.number
            for trial in self._stored.trials(TrialState.RUNNING)
            if trial.user_attrs.get(SUPERVISOR) != this_process
        ]
        self._progress.waiting(others)
        return bool(others)

    def _send_heartbeats(self) -> None:
        """Tell other machines that the trials here live; take over those of dead supervisors."""
        now = time.monotonic()
        if now - self._last_heartbeat < storage.HEARTBEAT_S:
            return
        self._last_heartbeat = now
        self._stored.send_heartbeats(self._running)
        with self._turn():
            self._recorder.adopt_orphans()

    def _reconcile(self, seconds: float | None) -> None:
        """Wait until the store has all runs, then make it agree with Optuna.

        Args:
            seconds: How long to wait at most; None waits until the outage time-out. What is not
                done by then, the next command does.
        """
        if self._tracker.wait(seconds) > 0:
            return
        self._recorder.reconcile_runs()
        self._recorder.drop_models()

    def _rows(self) -> list[Sequence[str]]:
        """Return trial, host, epoch, value and configuration of every trial that runs."""
        rows: list[Sequence[str]] = []
        for number, running in sorted(self._active.items()):
            name = space.short_name(running.params)
            if running.replicate_of is not None:
                name = f"(a further seed of trial {running.replicate_of}) {name}"
            value = ""
            if running.value is not None:
                value = f"{running.value:.5f}"
            epochs = f"{running.epochs:.1f}/{running.most_epochs}"
            rows.append((str(number), running.host, epochs, value, name))
        return rows
