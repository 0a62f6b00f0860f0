"""The search: asks Optuna for trials, runs them in parallel, tells it the truth about each, until the total is met."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from filelock import FileLock
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from digit_study.config.run import Config
from digit_study.config.study import objectives_of
from digit_study.engine.local import Event, Pool
from digit_study.engine.results import TrialResult
from digit_study.search import space, supervision
from digit_study.search.samplers import make_pruner, make_sampler
from digit_study.search.space import Params
from digit_study.search.supervision import HEARTBEAT_S, SUPERSEDED, SUPERVISED, SUPERVISOR, WORKER
from digit_study.search.trial_ends import (
    BASELINE,
    INTERRUPTED,
    RUN_ID,
    RUNNING_TAG,
    SEED,
    Ends,
    Setting,
    objective_metrics,
)
from digit_study.terminal.errors import StudyError
from digit_study.terminal.signals import insist
from digit_study.tracking import run_log as tracking

REPLICATE_OF, PRUNED_AFTER = "replicate_of", "pruned_after"


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
    pruned_after: int | None = None


class Observer(Protocol):
    """Who is shown how a sweep goes on."""

    def update(self, sweep: Sweep) -> None:
        """Look at the sweep as it is now."""

    def ended(self, number: int, state: str, text: str) -> None:
        """Hear how a trial ended."""

    def waiting(self, numbers: list[int]) -> None:
        """Hear of trials that other processes run and that the end of the study waits for."""


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
        self.ends = Ends(setting, study, observer.ended)
        self.objectives = list(objectives_of(self.search))
        self.running: dict[int, Running] = {}
        self.durations: list[float] = []
        self.tried: dict[str, list[int]] = {}
        self.looked_at: set[int] = set()
        points = space.grid(setting.dimensions) if self.search.sampler == "grid" else None
        self.total = min(self.search.trials, len(points)) if points else self.search.trials
        self.settled, self.spent = 0, 0
        self.beat = time.monotonic()
        self.me = supervision.supervisor()

    def run(self) -> None:
        """Search until the declared total is met.

        Raises:
            StudyError: too many trials failed.
        """
        try:
            self._join()
            while self.running or self._refill() or self._others_run():
                insist()
                for event in self.pool.events():
                    self._hear(event)
                self._refill()
                self._heartbeat()
                self.observer.update(self)
        finally:
            self.pool.stop()
            self.ends.interrupt()
            self.ends.settle_runs()
        self.ends.drop_models()
        if self.ends.stopping:
            raise StudyError(self.ends.stopping)

    @property
    def left(self) -> int:
        """Trials still to start."""
        trials = self.study.get_trials(deepcopy=False)
        while self.settled < len(trials) and trials[self.settled].state.is_finished():  # which changes no more
            self.spent += len(supervision.counted([trials[self.settled]]))
            self.settled += 1
        return max(0, self.total - self.spent - len(supervision.counted(trials[self.settled :])))

    def seconds_left(self) -> float | None:
        """An estimate of what the rest takes; None before a trial has ended."""
        if not self.durations:
            return None
        return statistics.mean(self.durations[-100:]) * (self.left + 0.5 * len(self.running)) / self.pool.size

    # --- joining -----------------------------------------------------------------------------------------------

    def _join(self) -> None:
        with self._turn():
            before = len(supervision.supervisors(self.study))
            self.study.set_user_attr(f"{SUPERVISED}{self.me}", True)
            self.study.sampler = make_sampler(self.search, before)
            self.study.pruner = make_pruner(self.search, self._longest())
            self.ends.adopt_orphans()
            self.ends.settle_runs()
            self._enqueue_first()

    def _turn(self) -> FileLock:
        """Supervisors on one machine decide on trials in turn; on several the surplus is told apart afterwards."""
        return supervision.turn(self.setting.study.study)

    def _longest(self) -> int:
        ends = [one.ends() for one in self.setting.dimensions if one.key == "training.epochs"]
        return int(max(ends[0])) if ends else self.setting.run.training.epochs

    def _enqueue_first(self) -> None:
        """Enqueue the hand-set baseline, and a grid's points, unless they are there already."""
        params, outside = space.baseline(self.setting.dimensions, self.setting.run)
        points = [params] if params and not (outside and self.search.sampler == "grid") else []
        if self.search.sampler == "grid":
            points += [point for point in space.grid(self.setting.dimensions) or [] if point != params]
        trials = self.study.get_trials(deepcopy=False)
        known = {space.fingerprint(trial.system_attrs.get("fixed_params", trial.params)) for trial in trials}
        for point in points[: self.total]:
            if space.fingerprint(point) not in known:
                self.study.enqueue_trial(point, user_attrs={BASELINE: point == params and not outside})

    # --- starting ----------------------------------------------------------------------------------------------

    def _refill(self) -> bool:
        """Start trials in the free slots; whether any runs then."""
        while self.pool.free > 0 and self.ends.stopping is None:
            with self._turn():
                if self.left == 0:
                    self.ends.adopt_orphans()  # of another supervisor, killed meanwhile
                if self.left == 0:
                    break
                trial = self._ask()
            if self._is_surplus(trial.number):
                break
            self._start(trial)
        return bool(self.running)

    def _others_run(self) -> bool:
        """Whether other supervisors' last trials still run: one that dies with its machine is run again here."""
        if self.ends.stopping is not None:
            return False
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        others = [trial.number for trial in running if trial.user_attrs.get(SUPERVISOR) != self.me]
        self.observer.waiting(others)
        return bool(others)

    def _ask(self) -> Trial:
        with warnings.catch_warnings():  # its heart beats in _heartbeat
            warnings.filterwarnings("ignore", message="Heartbeat of storage")
            trial = self.study.ask()
        trial.set_user_attr(SUPERVISOR, self.me)
        if (storage := supervision.heart(self.study)) is not None:
            storage.record_heartbeat(trial._trial_id)
        return trial

    def _is_surplus(self, number: int) -> bool:
        """Whether supervisors on other machines began the last trials at the same moment; this one then goes."""
        if supervision.heart(self.study) is None:
            return False
        trials = supervision.counted(self.study.get_trials(deepcopy=False))
        before = [trial for trial in trials if trial.number <= number]
        if len(before) > self.total:
            self.study._storage.set_trial_user_attr(before[-1]._trial_id, SUPERSEDED, True)
            self.study.tell(number, state=TrialState.FAIL)
        return len(before) > self.total

    def _start(self, trial: Trial) -> None:
        params = space.suggest(trial, self.setting.dimensions)
        seed = trial.user_attrs.get(SEED, self.search.seed + 1 + trial.number)
        trial.set_user_attr(SEED, seed)
        twin = self._earlier(trial.number, params)
        if twin is not None:
            trial.set_user_attr(REPLICATE_OF, twin)
        run, flaw = self._settled(seed, params)
        try:
            run_id = self._create_run(run, trial.number, twin)
        except tracking.StoreFault as fault:
            self.ends.stopping = f"the tracking store does not answer any more: {tracking.first_line(fault)}"
            self.ends.fail(self._frozen(trial), INTERRUPTED, "KILLED", again=True)
            return
        trial.set_user_attr(RUN_ID, run_id)
        if flaw is not None:
            self.ends.fail(self._frozen(trial), flaw, "FAILED", again=False)
            return
        self.running[trial.number] = Running(trial, run_id, params, run.training.epochs, replicate_of=twin)
        pid = self.pool.submit(trial.number, run, run_id)
        if pid is not None:
            trial.set_user_attr(WORKER, supervision.process_name(pid))

    def _create_run(self, run: Config, number: int, twin: int | None) -> str:
        extra = {} if twin is None else {"trial.replicate_of": str(twin)}
        return tracking.create_run(
            run, self.setting.uri, self.setting.dataset, f"trial {number}",
            kind="trial", study=self.setting.study.study, **{"trial.number": str(number)}, **RUNNING_TAG, **extra,
        )  # fmt: skip

    def _settled(self, seed: int, params: Params) -> tuple[Config, str | None]:
        """What a trial runs; where no rule of a single key could exclude a bad combination, the baseline and why."""
        flaw, config = None, self.setting.run
        try:
            config = space.apply(params, self.setting.overrides, config)
        except StudyError as error:
            flaw = str(error)
        training = config.training if SEED in params else replace(config.training, seed=seed)
        place = replace(
            config.tracking,
            parent_run_id=self.setting.parent_run_id,
            experiment=self.setting.experiment,
            save_model=config.tracking.save_model and self.search.keep_models > 0,
        )
        return replace(config, training=training, tracking=place), flaw

    def _earlier(self, number: int, params: Params) -> int | None:
        """The first trial of the same configuration that was or is being evaluated, if there is one."""
        alive = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            # one that was only begun may not have all its params yet
            if trial.number not in self.looked_at and trial.state.is_finished():
                self._look_at(trial.number, trial.params)
        mine = space.fingerprint(params)
        found = [one for one in self.tried.get(mine, []) if one != number and trials[one].state in alive]
        self._look_at(number, params)
        return min(found, default=None)

    def _look_at(self, number: int, params: Params) -> None:
        self.looked_at.add(number)
        self.tried.setdefault(space.fingerprint(params), []).append(number)

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    # --- listening ---------------------------------------------------------------------------------------------

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
            running.pruned_after = number
        self.pool.answer(running.trial.number, not prune)

    def _done(self, running: Running, result: TrialResult) -> None:
        self.ends.complete(self._frozen(running.trial), objective_metrics(result))

    def _failed(self, running: Running, reason: str) -> None:
        if running.pruned_after is not None:
            self.ends.prune(self._frozen(running.trial), running.pruned_after)
        else:
            self.ends.fail(self._frozen(running.trial), reason, "FAILED", again=False)

    def _died(self, running: Running, reason: str) -> None:
        self.ends.die(self._frozen(running.trial), reason)

    def _heartbeat(self) -> None:
        if time.monotonic() - self.beat < HEARTBEAT_S:
            return
        self.beat = time.monotonic()
        if (storage := supervision.heart(self.study)) is not None:
            for running in self.running.values():
                storage.record_heartbeat(running.trial._trial_id)
        with self._turn():
            self.ends.adopt_orphans()  # of a supervisor that went away meanwhile


HEARD: dict[str, Callable[[Sweep, Running, Any], None]] = {
    "done": Sweep._done,
    "failed": Sweep._failed,
    "expired": Sweep._failed,
    "died": Sweep._died,
}
