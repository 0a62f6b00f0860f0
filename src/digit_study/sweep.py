"""The search: asks Optuna for trials, runs them in parallel, tells it the truth about each, until the total is met."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from filelock import FileLock
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from digit_study import space, study_store, tracking
from digit_study.config import Config
from digit_study.errors import StudyError
from digit_study.pool import Event, Pool
from digit_study.results import TrialResult
from digit_study.samplers import make_pruner, make_sampler
from digit_study.search_config import StudyConfig, constraints_of, objectives_of
from digit_study.space import Dimension, Params
from digit_study.study_store import HEARTBEAT_S, REASON, RETRY_OF, RUN_ID, SUPERSEDED, SUPERVISOR

BASELINE, REPLICATE_OF, SEED = "baseline", "replicate_of", "training.seed"
RETRIES = 1


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


@dataclass
class Running:
    """A trial that runs."""

    trial: Trial
    run_id: str
    params: Params
    epochs: int
    epoch: float = 0.0
    value: float | None = None
    started: float = field(default_factory=time.monotonic)
    replicate_of: int | None = None


class Observer(Protocol):
    """Who is shown how a sweep goes on."""

    def update(self, sweep: Sweep) -> None:
        """Look at the sweep as it is now."""

    def ended(self, number: int, state: str, text: str) -> None:
        """Hear how a trial ended."""


class Sweep:
    """One supervisor of a study; several may run on one storage.

    Args:
        setting: what is searched.
        study: the opened Optuna study.
        pool: where trials run.
        observer: who is shown how it goes on.
    """

    def __init__(self, setting: Setting, study: Study, pool: Pool, observer: Observer) -> None:
        self.setting, self.study, self.pool, self.observer = setting, study, pool, observer
        self.search = setting.study.search
        self.objectives = list(objectives_of(self.search))
        self.running: dict[int, Running] = {}
        self.durations: list[float] = []
        self.failures = 0
        self.stopping: str | None = None
        self.fingerprints: dict[int, str] = {}
        self.dropped: set[str] = set()
        points = space.grid(setting.dimensions) if self.search.sampler == "grid" else None
        self.total = min(self.search.trials, len(points)) if points else self.search.trials
        self.beat = 0.0
        self.me = study_store.supervisor()

    def run(self) -> None:
        """Search until the declared total is met.

        Raises:
            StudyError: too many trials failed.
        """
        self._join()
        try:
            while self.running or self._refill():
                for event in self.pool.events():
                    self._hear(event)
                self._refill()
                self._heartbeat()
                self.observer.update(self)
        finally:
            self._interrupt_all()
        if self.stopping:
            raise StudyError(self.stopping)

    @property
    def left(self) -> int:
        """Trials still to start."""
        return max(0, self.total - len(study_store.counted(self._trials())))

    def seconds_left(self) -> float | None:
        """An estimate of what the rest takes; None before a trial has ended."""
        if not self.durations:
            return None
        return statistics.mean(self.durations) * (self.left + 0.5 * len(self.running)) / self.pool.size

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    # --- joining -----------------------------------------------------------------------------------------------

    def _join(self) -> None:
        with self._turn():
            before = int(self.study.user_attrs.get("supervisors", 0))
            self.study.set_user_attr("supervisors", before + 1)
            self.study.sampler = make_sampler(self.search, before)
            self.study.pruner = make_pruner(self.search, self._longest())
            for trial in study_store.orphans(self.study):
                self._adopt(trial)
            self._enqueue_first()

    def _turn(self) -> FileLock:
        """Supervisors on one machine decide on trials in turn; on several the surplus is told apart afterwards."""
        return study_store.turn(self.setting.study.study)

    def _longest(self) -> int:
        ends = [one.ends() for one in self.setting.dimensions if one.key == "training.epochs"]
        return int(max(ends[0])) if ends else self.setting.run.training.epochs

    def _enqueue_first(self) -> None:
        """Enqueue the hand-set baseline, and a grid's points, unless they are there already."""
        params, _ = space.baseline(self.setting.dimensions, self.setting.run)
        points = [params] if params else []
        if self.search.sampler == "grid":
            points += [point for point in space.grid(self.setting.dimensions) or [] if point != params]
        for point in points[: self.search.trials]:
            self.study.enqueue_trial(point, user_attrs={BASELINE: point == params}, skip_if_exists=True)

    def _adopt(self, trial: FrozenTrial) -> None:
        """End what a supervisor that is gone left RUNNING: with its result where MLflow has it, else as interrupted."""
        run_id = trial.user_attrs.get(RUN_ID)
        metrics = tracking.finished_metrics(self.setting.uri, run_id) if run_id else None
        values = [metrics.get(name) for name in self.objectives] if metrics else [None]
        if None not in values:
            self.study.tell(trial.number, [float(value) for value in values])  # type: ignore[arg-type]
            self._tag(str(run_id), "COMPLETE")
            return
        self._fail(trial, "its supervisor ended before it", "KILLED", again=True)

    # --- starting ----------------------------------------------------------------------------------------------

    def _refill(self) -> bool:
        """Start trials in the free slots; whether any runs then."""
        while self.pool.free > 0 and self.stopping is None:
            with self._turn():
                if self.left == 0:
                    break
                trial = self.study.ask()
                trial.set_user_attr(SUPERVISOR, self.me)
            if self._is_surplus(trial.number):
                break
            self._start(trial)
        return bool(self.running)

    def _is_surplus(self, number: int) -> bool:
        """Whether supervisors on other machines began the last trials at the same moment; this one then goes."""
        if not isinstance(self.study._storage, RDBStorage):
            return False
        before = [trial for trial in study_store.counted(self._trials()) if trial.number <= number]
        if len(before) > self.total:
            self.study._storage.set_trial_user_attr(before[-1]._trial_id, SUPERSEDED, True)
            self.study.tell(number, state=TrialState.FAIL)
        return len(before) > self.total

    def _start(self, trial: Trial) -> None:
        params = space.suggest(trial, self.setting.dimensions)
        try:
            config = space.apply(params, self.setting.overrides, self.setting.run)
        except StudyError as error:  # a combination that no rule of a single key could exclude
            self._fail(self._frozen(trial), str(error), "FAILED", again=False)
            return
        twin = self._earlier(trial.number, params)
        seed = trial.user_attrs.get(SEED, self.search.seed + 1 + trial.number)
        trial.set_user_attr(SEED, seed)
        if twin is not None:
            trial.set_user_attr(REPLICATE_OF, twin)
        run = self._settled(config, seed, params)
        extra = {} if twin is None else {"trial.replicate_of": str(twin)}
        try:
            run_id = tracking.create_run(
                run, self.setting.uri, self.setting.dataset, f"trial {trial.number}",
                kind="trial", study=self.setting.study.study, **{"trial.number": str(trial.number)}, **extra,
            )  # fmt: skip
        except tracking.StoreFault as fault:
            self.stopping = f"the tracking store {self.setting.uri} does not answer any more: {fault}"
            self._fail(self._frozen(trial), "interrupted", "KILLED", again=True)
            return
        trial.set_user_attr(RUN_ID, run_id)
        self.running[trial.number] = Running(trial, run_id, params, run.training.epochs, replicate_of=twin)
        self.pool.submit(trial.number, run, run_id)

    def _settled(self, config: Config, seed: int, params: Params) -> Config:
        training = config.training if "training.seed" in params else replace(config.training, seed=seed)
        place = replace(
            config.tracking,
            parent_run_id=self.setting.parent_run_id,
            experiment=self.setting.experiment,
            save_model=config.tracking.save_model and self.search.keep_models > 0,
        )
        return replace(config, training=training, tracking=place)

    def _earlier(self, number: int, params: Params) -> int | None:
        """The first trial of the same configuration that was or is being evaluated, if there is one."""
        self.fingerprints[number] = mine = space.fingerprint(params)
        tried = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        for trial in self._trials(*tried):
            known = self.fingerprints.get(trial.number) or space.fingerprint(trial.params)
            self.fingerprints[trial.number] = known
            if known == mine and trial.number != number:
                return trial.number
        return None

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    # --- ending ------------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        running = self.running[event.key]
        if event.kind == "steps":
            epoch, step, steps = event.content
            running.epoch = epoch - 1 + step / steps
        elif event.kind == "epoch":
            self._epoch(running, *event.content)
        else:
            del self.running[event.key]
            self.durations.append(time.monotonic() - running.started)
            HEARD[event.kind](self, running, event.content)

    def _epoch(self, running: Running, number: int, record: dict[str, float]) -> None:
        running.epoch, prune = float(number), False
        objective = self.objectives[0]
        if len(self.objectives) == 1 and objective in record:
            running.value = record[objective]
            running.trial.report(record[objective], number)
            prune = number < running.epochs and running.trial.should_prune()
        if prune:
            running.trial.set_user_attr("pruned_after", number)
        self.pool.answer(running.trial.number, not prune)

    def _done(self, running: Running, result: TrialResult) -> None:
        metrics = objective_metrics(result)
        for constraint in constraints_of(self.search):
            running.trial.set_constraint(
                f"{constraint.metric} {constraint.sign} {constraint.bound}", constraint.violation(metrics)
            )
        for name in ("parameters", "training_seconds", "val_accuracy", "val_loss"):
            running.trial.set_user_attr(name, metrics[name])
        if "validation_images" not in self.study.user_attrs:
            self.study.set_user_attr("validation_images", int(metrics["validation_images"]))
        values = [metrics[name] for name in self.objectives]
        self.study.tell(running.trial, values)
        self._tag(
            running.run_id,
            "COMPLETE",
            **{f"trial.{n}": f"{v:.6g}" for n, v in zip(self.objectives, values, strict=True)},
        )
        self._keep_models()
        self.observer.ended(running.trial.number, "COMPLETE", _shown(self.objectives, values))

    def _failed(self, running: Running, reason: str) -> None:
        number = running.trial.number
        if "pruned_after" in running.trial.user_attrs:
            self.study.tell(running.trial, state=TrialState.PRUNED)
            self._tag(running.run_id, "PRUNED")
            self.observer.ended(number, "PRUNED", f"after epoch {running.trial.user_attrs['pruned_after']}")
            return
        self._fail(self._frozen(running.trial), reason, "FAILED", again=False)

    def _died(self, running: Running, reason: str) -> None:
        frozen = self._frozen(running.trial)
        self._fail(frozen, reason, "FAILED", again=_retries(frozen, self._trials()) < RETRIES)

    def _fail(self, trial: FrozenTrial, reason: str, status: str, again: bool) -> None:
        """Tell both stores of a trial without a result; ``again`` enqueues its configuration once more."""
        storage = self.study._storage
        storage.set_trial_user_attr(trial._trial_id, REASON, reason)
        if again:
            storage.set_trial_user_attr(trial._trial_id, SUPERSEDED, True)
            kept = {key: trial.user_attrs[key] for key in (BASELINE, SEED) if key in trial.user_attrs}
            self.study.enqueue_trial(trial.params, user_attrs={**kept, RETRY_OF: trial.number})
        self.study.tell(trial.number, state=TrialState.FAIL)
        if run_id := trial.user_attrs.get(RUN_ID):
            tracking.close_run(self.setting.uri, run_id, status, reason)
            self._tag(run_id, "FAIL", failure=reason)
        self.observer.ended(trial.number, "FAIL", reason + (" (it runs again)" if again else ""))
        if not again:
            self._count_failure(trial.number, reason)

    def _count_failure(self, number: int, reason: str) -> None:
        self.failures += 1
        limit = 1 if self.search.fail_fast else self.search.max_failures
        if limit is not None and self.failures >= limit:
            name = "search.fail_fast=true" if self.search.fail_fast else f"search.max_failures={limit}"
            self.stopping = f"stopped by {name}: trial {number} failed: {reason}"

    def _interrupt_all(self) -> None:
        """End what still runs, so that nothing is left RUNNING and every configuration comes again on resume."""
        self.pool.stop()
        for running in self.running.values():
            self._fail(self._frozen(running.trial), "interrupted", "KILLED", again=True)
        self.running.clear()

    def _tag(self, run_id: str, state: str, **tags: str) -> None:
        tracking.tag_run(self.setting.uri, run_id, {"trial.state": state, **tags})

    def _keep_models(self) -> None:
        """Keep the models of the best trials only."""
        complete = [trial for trial in self._trials(TrialState.COMPLETE) if RUN_ID in trial.user_attrs]
        best = ranked(complete, self.study)
        for trial in best[self.search.keep_models :]:
            run_id = trial.user_attrs[RUN_ID]
            if run_id not in self.dropped:
                tracking.drop_models(self.setting.uri, run_id)
                self.dropped.add(run_id)

    def _heartbeat(self) -> None:
        storage = self.study._storage
        if not isinstance(storage, RDBStorage) or time.monotonic() - self.beat < HEARTBEAT_S:
            return
        self.beat = time.monotonic()
        for running in self.running.values():
            storage.record_heartbeat(running.trial._trial_id)
        for trial in study_store.orphans(self.study):  # of a machine that went away meanwhile
            self._adopt(trial)


HEARD: dict[str, Callable[[Sweep, Running, Any], None]] = {
    "done": Sweep._done,
    "failed": Sweep._failed,
    "expired": Sweep._failed,
    "died": Sweep._died,
}


def objective_metrics(result: TrialResult) -> dict[str, float]:
    """All that can be an objective or be bounded: final metrics, and the mean epoch in seconds."""
    seconds = [record["epoch_seconds"] for record in result.epochs]
    return {**result.metrics, "epoch_seconds": statistics.mean(seconds)}


def ranked(trials: Sequence[FrozenTrial], study: Study) -> list[FrozenTrial]:
    """Trials by their first objective, best first, those that break a constraint last."""
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1

    def key(trial: FrozenTrial) -> tuple[bool, float, int]:
        broken = any(value > 0 for value in trial.constraints.values())
        return broken, sign * trial.values[0], trial.number

    return sorted(trials, key=key)


def _retries(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """How often this configuration was already run again because its process died."""
    by_number = {one.number: one for one in trials}
    count = 0
    while (earlier := trial.user_attrs.get(RETRY_OF)) is not None:
        trial = by_number[earlier]
        count += trial.user_attrs.get(REASON) not in INTERRUPTIONS
    return count


#: Reasons that are no fault of the trial, and so use up no retry.
INTERRUPTIONS = ("interrupted", "its supervisor ended before it")


def _shown(names: Sequence[str], values: Sequence[float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in zip(names, values, strict=True))
