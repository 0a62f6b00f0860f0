"""Record how trials ended, in Optuna and in MLflow, whichever process records it."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Mapping
from contextlib import suppress

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from digit_study.config.study_config import constraints_of
from digit_study.study.storage import StoredStudy, orphans
from digit_study.study.study_plan import StudyPlan, halving_of
from digit_study.study.trial_attributes import (
    CAUSE,
    INFRASTRUCTURE_PREFIX,
    INTERRUPTED,
    REASON,
    REQUEUED,
    RETRY_OF,
    RUN_ID,
    SEED,
    SUPERVISOR,
    WORKER,
    Rank,
    paused_after,
    ranked_trials,
)
from digit_study.support import processes
from digit_study.support.trial_status import (
    ABANDONED,
    FAILURE_TAG,
    PRUNED_REASON,
    STATUS_TAG,
    TrialStatus,
)
from digit_study.tracking.session import Tracker
from digit_study.trial.events import Failed, FailureCause


class TrialRecorder:
    """Ends the trials of one study in both stores."""

    def __init__(
        self,
        plan: StudyPlan,
        stored: StoredStudy,
        tracker: Tracker,
        parent_run_id: str,
        on_end: Callable[[int, TrialStatus, str], None],
    ) -> None:
        """Prepare to record.

        Args:
            plan: The study as it was asked for.
            stored: The study as Optuna has it.
            tracker: The store that has the runs of the trials.
            parent_run_id: Id of the study's run.
            on_end: Called with the number of each trial that ends, its status and a text for a
                person.
        """
        self._plan = plan
        self._stored = stored
        self._tracker = tracker
        self._parent_run_id = parent_run_id
        self._on_end = on_end
        self._failures = 0
        #: Why no more trials start; None while they do.
        self.stop_reason: str | None = None
        kept = max(1, plan.study.search.keep_models)
        #: Ranks of the best trials, whose models are kept.
        self._best = ranked_trials(stored.study)[:kept]

    def complete(self, trial: FrozenTrial, metrics: Mapping[str, float]) -> None:
        """End a trial that has its final metrics.

        A trial whose objective is not finite fails.
        """
        values = {name: metrics[name] for name in self._plan.objectives}
        shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        is_finite = all(math.isfinite(value) for value in values.values())
        if not is_finite:
            reason = f"its result is no number: {shown}"
            failure = Failed(trial.number, FailureCause.TRIAL, reason)
            self.fail(trial, failure, runs_again=False)
            return
        study = self._stored.study
        if "validation_images" not in study.user_attrs:
            study.set_user_attr("validation_images", int(metrics["validation_images"]))
        # after a full disk this is done again, and may be done already
        if not trial.state.is_finished():
            self._set_constraints(trial, metrics)
            study.tell(trial.number, list(values.values()), skip_if_finished=True)
        tags = {f"trial.{name}": f"{value:.6g}" for name, value in values.items()}
        self._tag(trial, {STATUS_TAG: TrialStatus.COMPLETE, **tags})
        completed = self._stored.trial(trial.number)
        self._drop_surpassed_model(Rank.of(completed, study))
        self._on_end(trial.number, TrialStatus.COMPLETE, shown)

    def prune(self, trial: FrozenTrial, epoch: int) -> None:
        """End a trial that was stopped after ``epoch``."""
        self._stored.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
        run_id = str(trial.user_attrs.get(RUN_ID))
        # a trial that was stopped has ended its run; a trial whose process is gone has not
        self._tracker.close_run(run_id, "FINISHED", PRUNED_REASON)
        self._tag(trial, {STATUS_TAG: TrialStatus.PRUNED})
        self._on_end(trial.number, TrialStatus.PRUNED, f"after epoch {epoch}")

    def end_without_result(self, trial: FrozenTrial, failure: Failed, *, runs_again: bool) -> None:
        """End a trial whose process did not report a result.

        If MLflow already holds its result, the trial is completed. If it was stopped, it is pruned.

        Args:
            trial: The trial.
            failure: Why no result was reported.
            runs_again: Whether its configuration is enqueued once more, where there is no result.
        """
        metrics = self._known_metrics(trial)
        if metrics is not None:
            self.complete(trial, metrics)
            return
        run_id = trial.user_attrs.get(RUN_ID)
        if run_id is not None and self._tracker.was_stopped(run_id):
            self.prune(trial, trial.last_step or 0)
            return
        self.fail(trial, failure, runs_again=runs_again)

    def fail(self, trial: FrozenTrial, failure: Failed, *, runs_again: bool) -> None:
        """Record a trial without a result in both stores.

        Args:
            trial: The trial.
            failure: Why it has no result.
            runs_again: Whether its configuration is enqueued once more.
        """
        reason = failure.reason
        if failure.cause is FailureCause.INFRASTRUCTURE:
            reason = INFRASTRUCTURE_PREFIX + reason
        # after a full disk this is done again, and may be done already
        if not trial.state.is_finished():
            self._fail_in_optuna(trial, failure.cause, reason, runs_again=runs_again)
        run_id = trial.user_attrs.get(RUN_ID)
        if run_id is not None:
            status = "KILLED"
            if failure.cause.is_trials_fault:
                status = "FAILED"
            self._tracker.close_run(run_id, status, reason)
            self._tracker.tag_run(run_id, {STATUS_TAG: TrialStatus.FAIL, FAILURE_TAG: reason})
        if runs_again:
            self._on_end(trial.number, TrialStatus.FAIL, f"{reason} (it runs again)")
            return
        self._on_end(trial.number, TrialStatus.FAIL, reason)
        self._count_failure(trial, reason)

    def adopt_orphans(self) -> None:
        """End the trials that supervisors left RUNNING which are gone."""
        for trial in orphans(self._stored):
            worker = trial.user_attrs.get(WORKER)
            processes.end_process(worker)
            abandoned = Failed(trial.number, FailureCause.SUPERVISOR, ABANDONED)
            self._end_left(trial, abandoned)

    def interrupt(self) -> None:
        """End all trials that this process started, so that every configuration comes again."""
        this_process = processes.process_name()
        for trial in self._stored.trials(TrialState.RUNNING):
            if trial.user_attrs.get(SUPERVISOR) == this_process:
                interrupted = Failed(trial.number, FailureCause.INTERRUPTED, INTERRUPTED)
                self._end_left(trial, interrupted)

    def _end_left(self, trial: FrozenTrial, failure: Failed) -> None:
        """End a trial whose process is gone, so that its configuration comes again.

        A trial that was paused, and cannot be among the best any more, counts as pruned. A trial
        that another machine takes over at the same moment is left to that machine.
        """
        with suppress(UpdateFinishedTrialError):
            self._end_or_prune(trial, failure)

    def _end_or_prune(self, trial: FrozenTrial, failure: Failed) -> None:
        """End a trial whose process is gone, as pruned where it cannot be among the best."""
        epoch = paused_after(trial)
        halving = halving_of(self._plan)
        if epoch is not None and halving is not None:
            trials = self._stored.trials()
            if not halving.may_go_on(trials, trial.number, epoch, self._plan.total):
                self.prune(trial, epoch)
                return
        self.end_without_result(trial, failure, runs_again=True)

    def reconcile_runs(self) -> None:
        """Make MLflow agree with Optuna, where a process was killed between the two."""
        trials = {trial.number: trial for trial in self._stored.trials()}
        for run_id, tags in self._tracker.open_trials(self._parent_run_id).items():
            number = int(tags.get("trial.number", -1))
            self._reconcile_run(run_id, trials.get(number))

    def _reconcile_run(self, run_id: str, trial: FrozenTrial | None) -> None:
        """End a run that has not ended in MLflow, unless Optuna's trial still runs.

        Args:
            run_id: Id of the run.
            trial: The trial that its tags name; None where Optuna has no such trial.
        """
        is_its_run = trial is not None and trial.user_attrs.get(RUN_ID) == run_id
        if trial is not None and is_its_run and trial.state.is_finished():
            status = TrialStatus(trial.state.name)
            reason = trial.user_attrs.get(REASON)
        elif trial is None or trial.state != TrialState.RUNNING:
            status = TrialStatus.FAIL
            reason = ABANDONED
        else:
            return
        if status is TrialStatus.PRUNED:
            self._tracker.close_run(run_id, "FINISHED", PRUNED_REASON)
        else:
            self._tracker.close_run(run_id, "KILLED", reason or ABANDONED)
        changed = {STATUS_TAG: status.value}
        if reason:
            changed[FAILURE_TAG] = reason
        self._tracker.tag_run(run_id, changed)

    def drop_models(self) -> None:
        """Delete the models of all trials but the best, whichever process trained them."""
        own = {trial.user_attrs.get(RUN_ID) for trial in self._stored.trials()}
        keep_models = self._plan.study.search.keep_models
        best = {rank.run_id for rank in ranked_trials(self._stored.study)[:keep_models]}
        with_models = self._tracker.runs_with_models(self._parent_run_id)
        for run_id in with_models & (own - best):
            self._tracker.drop_models(str(run_id))

    def _known_metrics(self, trial: FrozenTrial) -> Mapping[str, float] | None:
        """Return the final metrics of a trial where MLflow has them all, else None."""
        run_id = trial.user_attrs.get(RUN_ID)
        if run_id is None:
            return None
        metrics = self._tracker.finished_metrics(run_id)
        if metrics is None:
            return None
        constraints = constraints_of(self._plan.study.search)
        needed = {*self._plan.objectives, "validation_images"}
        needed |= {constraint.metric for constraint in constraints}
        # MLflow has the seconds of the last epoch, not the mean of all
        known = metrics.keys() - {"epoch_seconds"}
        if not needed <= known:
            return None
        return metrics

    def _set_constraints(self, trial: FrozenTrial, metrics: Mapping[str, float]) -> None:
        """Record by how much a trial breaks each constraint."""
        writable = Trial(self._stored.study, self._stored.trial_id(trial.number))
        for constraint in constraints_of(self._plan.study.search):
            sign = ">="
            if constraint.sign > 0:
                sign = "<="
            name = f"{constraint.metric} {sign} {constraint.bound:g}"
            violation = constraint.violation(dict(metrics))
            writable.set_constraint(name, violation)

    def _drop_surpassed_model(self, rank: Rank) -> None:
        """Delete the model of the trial that a new result pushes out of the best."""
        if rank not in self._best:
            insort(self._best, rank)
        keep_models = self._plan.study.search.keep_models
        if len(self._best) > max(1, keep_models):
            surpassed = self._best.pop()
            if keep_models:
                self._tracker.drop_models(surpassed.run_id)

    def _fail_in_optuna(
        self, trial: FrozenTrial, cause: FailureCause, reason: str, *, runs_again: bool
    ) -> None:
        """Record in Optuna why a trial failed; enqueue its configuration if it runs again."""
        study = self._stored.study
        writable = Trial(study, self._stored.trial_id(trial.number))
        writable.set_user_attr(REASON, reason)
        writable.set_user_attr(CAUSE, cause.value)
        if runs_again:
            writable.set_user_attr(REQUEUED, value=True)
            self._enqueue_again(trial)
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        """Enqueue the configuration of a trial, once."""
        # a process that was killed while it ended this trial may have enqueued it already
        retried = {other.user_attrs.get(RETRY_OF) for other in self._stored.trials()}
        if trial.number in retried:
            return
        attributes = {RETRY_OF: trial.number}
        if SEED in trial.user_attrs:
            attributes[SEED] = trial.user_attrs[SEED]
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        self._stored.study.enqueue_trial(params, user_attrs=attributes)

    def _count_failure(self, trial: FrozenTrial, reason: str) -> None:
        """Stop the study after as many failures as it may have."""
        self._failures += 1
        search = self._plan.study.search
        limit = search.max_failures
        failed = f"trial {trial.number} failed: {reason}"
        if search.fail_fast:
            self.stop_reason = f"stopped by search.fail_fast=true: {failed}"
        elif limit is not None and self._failures >= limit:
            self.stop_reason = f"stopped by search.max_failures={limit}: {failed}"

    def _tag(self, trial: FrozenTrial, tags: Mapping[str, str]) -> None:
        run_id = str(trial.user_attrs.get(RUN_ID))
        self._tracker.tag_run(run_id, tags)
