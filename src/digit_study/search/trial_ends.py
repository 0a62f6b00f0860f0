"""How a trial ends: the truth about it in Optuna and in MLflow, whoever is there to tell it."""

from __future__ import annotations

import math
import statistics
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from digit_study.config.run import Config
from digit_study.config.study import StudyConfig, constraints_of, objectives_of
from digit_study.engine.results import TrialResult
from digit_study.search import supervision
from digit_study.search.space import Dimension
from digit_study.search.supervision import SUPERSEDED, SUPERVISOR
from digit_study.tracking import lookups
from digit_study.tracking import run_log as tracking

#: Attributes of a trial.
RUN_ID, REASON, RETRY_OF, SEED, BASELINE = "run_id", "reason", "retry_of", "training.seed", "baseline"
ABANDONED, INTERRUPTED = "its supervisor ended before it", "interrupted"
#: Reasons that are no fault of the trial, and so use up no retry.
BLAMELESS = (INTERRUPTED, ABANDONED)
RETRIES = 1
Standing = tuple[bool, float, int, str]


@dataclass(frozen=True)
class Setting:
    """All that a sweep needs to know and that does not change while it runs."""

    study: StudyConfig
    overrides: list[str]
    run: Config
    dataset: str
    dimensions: list[Dimension]
    uri: str
    parent_run_id: str
    experiment: str


class Ends:
    """Ends the trials of one study.

    Args:
        setting: of the sweep.
        study: the opened Optuna study.
        tell: called with number, state and reason of every trial that ended.
    """

    def __init__(self, setting: Setting, study: Study, tell: Callable[[int, str, str], None]) -> None:
        self.setting, self.study, self.tell = setting, study, tell
        self.search = setting.study.search
        self.objectives = list(objectives_of(self.search))
        self.failures = 0
        self.stopping: str | None = None
        self.standings: list[Standing] = sorted(
            standing(trial, study) for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        )[: max(1, self.search.keep_models)]

    def complete(self, trial: FrozenTrial, metrics: Mapping[str, float]) -> None:
        """End a trial that has its metrics."""
        values = [metrics[name] for name in self.objectives]
        if not all(map(math.isfinite, values)):
            self.fail(trial, f"its result is no number: {_shown(self.objectives, values)}", "FAILED", again=False)
            return
        self._note(trial, metrics)
        self.study.tell(trial.number, values, skip_if_finished=True)
        told = {f"trial.{name}": f"{value:.6g}" for name, value in zip(self.objectives, values, strict=True)}
        self._tag(str(trial.user_attrs.get(RUN_ID)), "COMPLETE", **told)
        insort(self.standings, standing(self._now(trial), self.study))
        self._drop_model_beyond()
        self.tell(trial.number, "COMPLETE", _shown(self.objectives, values))

    def prune(self, trial: FrozenTrial, epoch: int) -> None:
        """End a trial that was stopped after ``epoch``."""
        self.study.tell(trial.number, state=TrialState.PRUNED, skip_if_finished=True)
        self._tag(str(trial.user_attrs.get(RUN_ID)), "PRUNED")
        self.tell(trial.number, "PRUNED", f"after epoch {epoch}")

    def die(self, trial: FrozenTrial, reason: str) -> None:
        """End a trial whose process was killed from outside; it runs once more unless its result was kept already."""
        if (metrics := self._kept(trial)) is not None:
            self.complete(trial, metrics)
            return
        by_number = {one.number: one for one in self.study.get_trials(deepcopy=False)}
        self.fail(trial, reason, "FAILED", again=retries(trial, by_number) < RETRIES)

    def fail(self, trial: FrozenTrial, reason: str, status: str, again: bool) -> None:
        """Tell both stores of a trial without a result; ``again`` enqueues its configuration once more."""
        storage = self.study._storage
        storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        if again:
            storage.set_trial_user_attr(trial._trial_id, SUPERSEDED, True)
            self._enqueue_again(trial)
        self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        if run_id := trial.user_attrs.get(RUN_ID):
            tracking.close_run(self.setting.uri, run_id, status, reason)
            self._tag(run_id, "FAIL", failure=reason)
        self.tell(trial.number, "FAIL", reason + (" (it runs again)" if again else ""))
        if not again:
            self._count_failure(trial.number, reason)

    def adopt_orphans(self) -> None:
        """End what supervisors that are gone left RUNNING: with its result where MLflow has it, else as interrupted."""
        for trial in supervision.orphans(self.study):
            supervision.end_worker(trial)
            self._end_early(trial, ABANDONED)

    def interrupt(self) -> None:
        """End all that this process has begun, so that nothing is RUNNING and every configuration comes again."""
        me = supervision.supervisor()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(SUPERVISOR) == me:
                self._end_early(trial, INTERRUPTED)

    def settle_runs(self) -> None:
        """Make MLflow say what Optuna says, where a process was killed between the two."""
        trials = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        for run_id, tags in lookups.children_tagged(self.setting.uri, self.setting.parent_run_id, RUNNING_TAG):
            trial = trials.get(int(tags.get("trial.number", -1)))
            own = trial is not None and trial.user_attrs.get(RUN_ID) == run_id
            if trial is not None and own and trial.state.is_finished():
                reason = trial.user_attrs.get(REASON)
                tracking.close_run(self.setting.uri, run_id, "KILLED", reason or ABANDONED)
                self._tag(run_id, trial.state.name, **({"failure": reason} if reason else {}))
            elif trial is None or trial.state != TrialState.RUNNING:
                tracking.close_run(self.setting.uri, run_id, "KILLED", ABANDONED)
                self._tag(run_id, "FAIL", failure=ABANDONED)

    def drop_models(self) -> None:
        """Delete the models of all but the best, whoever trained them."""
        mine = {trial.user_attrs.get(RUN_ID) for trial in self.study.get_trials(deepcopy=False)}
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = {
            run_id for *_, run_id in sorted(standing(one, self.study) for one in complete)[: self.search.keep_models]
        }
        for run_id in lookups.runs_with_models(self.setting.uri, self.setting.parent_run_id) & mine - best:
            tracking.drop_models(self.setting.uri, str(run_id))

    def _end_early(self, trial: FrozenTrial, reason: str) -> None:
        if (metrics := self._kept(trial)) is not None:
            self.complete(trial, metrics)
        else:
            self.fail(trial, reason, "KILLED", again=True)

    def _kept(self, trial: FrozenTrial) -> dict[str, float] | None:
        """The metrics of a trial that MLflow has as FINISHED, if they are all that is needed."""
        run_id = trial.user_attrs.get(RUN_ID)
        metrics = lookups.finished_metrics(self.setting.uri, run_id) if run_id else None
        needed = {*self.objectives, *(one.metric for one in constraints_of(self.search)), "validation_images"}
        # the mean of all epochs is not kept as a metric, only the last one
        return metrics if metrics is not None and needed <= metrics.keys() - {"epoch_seconds"} else None

    def _note(self, trial: FrozenTrial, metrics: Mapping[str, float]) -> None:
        storage = self.study._storage
        for one in constraints_of(self.search):
            key = f"constraints:{one.metric} {'<=' if one.sign > 0 else '>='} {one.bound:g}"
            storage.set_trial_system_attr(trial._trial_id, key, one.violation(dict(metrics)))
        if "validation_images" not in self.study.user_attrs:
            self.study.set_user_attr("validation_images", int(metrics["validation_images"]))

    def _enqueue_again(self, trial: FrozenTrial) -> None:
        if any(one.user_attrs.get(RETRY_OF) == trial.number for one in self.study.get_trials(deepcopy=False)):
            return  # whoever began to end this trial was killed after this
        kept = {key: trial.user_attrs[key] for key in (BASELINE, SEED) if key in trial.user_attrs}
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        self.study.enqueue_trial(params, user_attrs={**kept, RETRY_OF: trial.number})

    def _drop_model_beyond(self) -> None:
        """Delete the model that the latest result has pushed out of the best."""
        if len(self.standings) <= max(1, self.search.keep_models):
            return
        *_, run_id = self.standings.pop()
        if self.search.keep_models:  # else no trial saves one
            tracking.drop_models(self.setting.uri, run_id, self.setting.parent_run_id)

    def _count_failure(self, number: int, reason: str) -> None:
        self.failures += 1
        limit = 1 if self.search.fail_fast else self.search.max_failures
        if limit is not None and self.failures >= limit:
            name = "search.fail_fast=true" if self.search.fail_fast else f"search.max_failures={limit}"
            self.stopping = f"stopped by {name}: trial {number} failed: {reason}"

    def _tag(self, run_id: str, state: str, **tags: str) -> None:
        tracking.tag_run(self.setting.uri, run_id, {**RUNNING_TAG, "trial.state": state, **tags})

    def _now(self, trial: FrozenTrial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)


#: Tag of a run whose trial has not ended yet.
RUNNING_TAG = {"trial.state": "RUNNING"}


def objective_metrics(result: TrialResult) -> dict[str, float]:
    """All that can be an objective or be bounded: final metrics, and the mean epoch in seconds."""
    seconds = [record["epoch_seconds"] for record in result.epochs]
    return {**result.metrics, "epoch_seconds": statistics.mean(seconds)}


def standing(trial: FrozenTrial, study: Study) -> Standing:
    """What complete trials are sorted by: the first objective, best first, those that break a constraint last."""
    broken = any(value > 0 for value in trial.constraints.values())
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    return broken, sign * trial.values[0], trial.number, str(trial.user_attrs.get(RUN_ID))


def ranked(trials: Sequence[FrozenTrial], study: Study) -> list[FrozenTrial]:
    """Complete trials, best first; see :func:`standing`."""
    return sorted(trials, key=lambda trial: standing(trial, study))


def retries(trial: FrozenTrial, by_number: Mapping[int, FrozenTrial]) -> int:
    """How often this configuration was already run again because its process died."""
    count = 0
    while (earlier := trial.user_attrs.get(RETRY_OF)) is not None:
        trial = by_number[earlier]
        count += trial.user_attrs.get(REASON) not in BLAMELESS
    return count


def _shown(names: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in zip(names, values, strict=True))
