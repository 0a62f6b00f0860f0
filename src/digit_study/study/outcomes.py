"""How a trial ends: the truth about it in Optuna and in MLflow, whichever process records it."""

import math
import statistics
from bisect import insort
from collections.abc import Callable, Mapping, Sequence

from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import OperationalError

from digit_study.config.study import constraints_of
from digit_study.study.storage import REASON, SUPERSEDED, SUPERVISOR, WORKER, StoredStudy, orphans
from digit_study.study.study_plan import StudyPlan
from digit_study.support import machine
from digit_study.support.messages import StudyError, first_line, is_infrastructure_fault
from digit_study.tracking import queries as lookup
from digit_study.tracking import runs as run_log
from digit_study.trial.protocol import LOST, Event

#: Attributes of a trial.
RUN_ID, RETRY_OF, REPLICATE_OF = "run_id", "retry_of", "replicate_of"
SEED, THREADS, BASELINE = "training.seed", "training.threads", "baseline"
ABANDONED, INTERRUPTED = "its supervisor ended before it", "interrupted"
#: How often a configuration runs again because its process died; these reasons are no fault of it.
RETRIES, BLAMELESS = 1, (INTERRUPTED, ABANDONED, *LOST)
#: How the reason begins of a trial that a fault of the world has ended.
OF_WORLD = "no fault of the trial: "
#: Tag of a run whose trial has not ended yet.
RUNNING_TAG = {"trial.state": "RUNNING"}
RankKey = tuple[bool, float, int, str]


def is_fault(error: Exception) -> bool:
    """Whether the world is to blame for what a supervisor met: a disk, a store, a database."""
    if isinstance(error, StudyError):  # whoever raises one has waited long enough
        return False
    return isinstance(
        error, MlflowException | StorageInternalError | OperationalError
    ) or is_infrastructure_fault(error)


def told(fault: BaseException) -> str:
    """What a fault was, in a line: Optuna's own says of every commit that something was wrong with it."""
    return first_line(
        fault.__cause__ or fault if isinstance(fault, StorageInternalError) else fault
    )


def rank_key(trial: FrozenTrial, study: Study) -> RankKey:
    """What complete trials are sorted by: the first objective, best first, those that break a constraint last."""
    broken = any(value > 0 for value in trial.constraints.values())
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    return broken, sign * trial.values[0], trial.number, str(trial.user_attrs.get(RUN_ID))


def retries(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """How often this configuration was already run again because its process died; ``trials`` are all of the study."""
    by_number, count = {one.number: one for one in trials}, 0
    while (earlier := trial.user_attrs.get(RETRY_OF)) is not None:
        trial = by_number[earlier]
        count += not is_blameless(str(trial.user_attrs.get(REASON)))
    return count


def is_blameless(reason: str) -> bool:
    """Whether what ended a trial leaves its retries as they are."""
    return reason in BLAMELESS or reason.startswith(OF_WORLD)


def ranked_trials(stored: StoredStudy) -> list[tuple[RankKey, FrozenTrial]]:
    """All complete trials with their keys, the best first."""
    keyed = [(rank_key(trial, stored.study), trial) for trial in stored.trials(TrialState.COMPLETE)]
    return sorted(keyed, key=lambda pair: pair[0])


class Outcomes:
    """Ends the trials of one study, and calls ``report`` with number, state and reason of each."""

    def __init__(
        self,
        plan: StudyPlan,
        stored: StoredStudy,
        parent_run_id: str,
        report: Callable[[int, str, str], None],
    ) -> None:
        self.stored, self.parent_run_id, self.report = stored, parent_run_id, report
        self.study, self.search, self.uri = stored.study, plan.study.search, plan.uri
        self.objectives, self.constraints = list(plan.objectives), constraints_of(self.search)
        self.failures = 0
        self.stop_reason: str | None = None
        # the best complete trials, whose models are kept
        self.best = [key for key, _ in ranked_trials(stored)[: max(1, self.search.keep_models)]]

    def record(self, trial: FrozenTrial, event: Event, pruned_after: int | None) -> None:
        """End a trial by the last event of its run; ``pruned_after`` is the epoch after which it was asked to end."""
        if trial.user_attrs.get(REASON) == ABANDONED:
            self.report(
                trial.number, "FAIL", "this machine was out of reach: it runs again on another"
            )
        elif event.kind == "done":
            seconds = statistics.mean(record["epoch_seconds"] for record in event.content.epochs)
            self.complete(trial, {**event.content.metrics, "epoch_seconds": seconds})
        elif event.kind == "died":
            self.cut_off(trial, event.content)
        elif pruned_after is not None:
            self.prune(trial, pruned_after)
        elif event.kind == "world":
            self.cut_off(trial, OF_WORLD + event.content)
        else:  # failed by its own fault, or expired
            self.fail(trial, event.content, "FAILED", again=False)

    def complete(self, trial: FrozenTrial, metrics: Mapping[str, float]) -> None:
        """End a trial that has its metrics."""
        values = {name: metrics[name] for name in self.objectives}
        shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        if not all(map(math.isfinite, values.values())):
            self.fail(trial, f"its result is no number: {shown}", "FAILED", again=False)
            return
        if "validation_images" not in self.study.user_attrs:
            self.study.set_user_attr("validation_images", int(metrics["validation_images"]))
        if (
            not trial.state.is_finished()
        ):  # else a full disk ended this in the middle, and it is done again
            writable = Trial(self.study, self.stored.trial_id(trial.number))
            for one in self.constraints:
                name = f"{one.metric} {'<=' if one.sign > 0 else '>='} {one.bound:g}"
                writable.set_constraint(name, one.violation(dict(metrics)))
            self.study.tell(trial.number, list(values.values()), skip_if_finished=True)
        tags = {f"trial.{name}": f"{value:.6g}" for name, value in values.items()}
        run_log.tag_run(
            self.uri, str(trial.user_attrs.get(RUN_ID)), {"trial.state": "COMPLETE", **tags}
        )
        if (key := rank_key(self.stored.trial(trial.number), self.study)) not in self.best:
            insort(self.best, key)
        if len(self.best) > max(
            1, self.search.keep_models
        ):  # this result has pushed one out of the best
            *_, run_id = self.best.pop()
            if self.search.keep_models:  # else no trial saves one
                run_log.drop_models(self.uri, run_id)
        self.report(trial.number, "COMPLETE", shown)

    def prune(self, trial: FrozenTrial, epoch: int) -> None:
        """End a trial that was stopped after ``epoch``."""
        self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
        run_log.tag_run(self.uri, str(trial.user_attrs.get(RUN_ID)), {"trial.state": "PRUNED"})
        self.report(trial.number, "PRUNED", f"after epoch {epoch}")

    def cut_off(self, trial: FrozenTrial, reason: str) -> None:
        """End a trial that could not: with its result where MLflow has that, else it runs again, if killed only once.

        What ended with its supervisor was not killed for its own sake, and always runs again.
        """
        run_id = trial.user_attrs.get(RUN_ID)
        metrics = (lookup.finished_metrics(self.uri, run_id) if run_id else None) or {}
        needed = {*self.objectives, *(one.metric for one in self.constraints), "validation_images"}
        if needed <= metrics.keys() - {
            "epoch_seconds"
        }:  # of that only the last epoch's is kept, not the mean of all
            self.complete(trial, metrics)
        elif is_blameless(reason):
            self.fail(trial, reason, "KILLED", again=True)
        else:
            self.fail(trial, reason, "FAILED", again=retries(trial, self.stored.trials()) < RETRIES)

    def fail(self, trial: FrozenTrial, reason: str, status: str, again: bool) -> None:
        """Record a trial without a result in both stores; ``again`` enqueues its configuration once more."""
        if (
            not trial.state.is_finished()
        ):  # else a full disk ended this in the middle, and it is done again
            self._fail_in_optuna(trial, reason, again)
        if run_id := trial.user_attrs.get(RUN_ID):
            run_log.close_run(self.uri, run_id, status, reason)
            run_log.tag_run(self.uri, run_id, {"trial.state": "FAIL", "failure": reason})
        self.report(trial.number, "FAIL", reason + (" (it runs again)" if again else ""))
        if not again:
            self.failures += 1
            limit = 1 if self.search.fail_fast else self.search.max_failures
            if limit is not None and self.failures >= limit:
                name = (
                    "search.fail_fast=true"
                    if self.search.fail_fast
                    else f"search.max_failures={limit}"
                )
                self.stop_reason = f"stopped by {name}: trial {trial.number} failed: {reason}"

    def _fail_in_optuna(self, trial: FrozenTrial, reason: str, again: bool) -> None:
        writable = Trial(self.study, self.stored.trial_id(trial.number))
        writable.set_user_attr(REASON, reason)
        if again:
            writable.set_user_attr(SUPERSEDED, True)
            # else the process that began to end this trial was killed after this
            if all(one.user_attrs.get(RETRY_OF) != trial.number for one in self.stored.trials()):
                kept = {
                    key: trial.user_attrs[key]
                    for key in (BASELINE, SEED)
                    if key in trial.user_attrs
                }
                params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
                self.study.enqueue_trial(params, user_attrs={**kept, RETRY_OF: trial.number})
        self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def adopt_orphans(self) -> None:
        """End what supervisors that are gone left RUNNING: with its result where MLflow has it, else as interrupted."""
        for trial in orphans(self.stored):
            machine.end_process(trial.user_attrs.get(WORKER))
            self.cut_off(trial, ABANDONED)

    def interrupt(self) -> None:
        """End all that this process has started, so that nothing is RUNNING and every configuration comes again."""
        me = machine.process_name()
        for trial in self.stored.trials(TrialState.RUNNING):
            if trial.user_attrs.get(SUPERVISOR) == me:
                self.cut_off(trial, INTERRUPTED)

    def settle_runs(self) -> None:
        """Make MLflow agree with Optuna, where a process was killed between the two."""
        trials = {trial.number: trial for trial in self.stored.trials()}
        running = lookup.children_tagged(self.uri, self.parent_run_id, RUNNING_TAG)
        for run_id, tags in running:
            trial = trials.get(int(tags.get("trial.number", -1)))
            if (
                trial is not None
                and trial.user_attrs.get(RUN_ID) == run_id
                and trial.state.is_finished()
            ):
                state, reason = trial.state.name, trial.user_attrs.get(REASON)
            elif trial is None or trial.state != TrialState.RUNNING:
                state, reason = "FAIL", ABANDONED
            else:
                continue
            run_log.close_run(self.uri, run_id, "KILLED", reason or ABANDONED)
            run_log.tag_run(
                self.uri, run_id, {"trial.state": state, **({"failure": reason} if reason else {})}
            )

    def drop_models(self) -> None:
        """Delete the models of all but the best, whichever process trained them."""
        mine = {trial.user_attrs.get(RUN_ID) for trial in self.stored.trials()}
        best = {run_id for (*_, run_id), _ in ranked_trials(self.stored)[: self.search.keep_models]}
        for run_id in lookup.runs_with_models(self.uri, self.parent_run_id) & mine - best:
            run_log.drop_models(self.uri, str(run_id))
