"""The sweep: asks Optuna for trials, runs them on an engine, records the truth about each, until the total is met.

One trial, top to bottom: :meth:`Sweep._refill` asks, :meth:`Sweep._start` hands it to the engine,
:meth:`Sweep._handle` follows and prunes it, and :class:`digit_study.study.outcomes.Outcomes` ends it in both stores.
"""

import statistics
import time
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from digit_study.config.run import Config
from digit_study.study import _optuna, outcomes, space
from digit_study.study import storage as study
from digit_study.study.outcomes import RUN_ID, SEED, THREADS, is_fault, told
from digit_study.study.results import RunResults
from digit_study.study.study_plan import StudyPlan
from digit_study.support import machine
from digit_study.support.console import warn
from digit_study.support.messages import StudyError
from digit_study.support.progress import SweepProgress
from digit_study.support.signals import deferred_signals, raise_if_interrupted
from digit_study.tracking import runs as run_log
from digit_study.tracking.upload import StoreFault
from digit_study.tracking.uploader import HURRIED_S, BackgroundUploader
from digit_study.trial.protocol import Engine, Epoch, Event


@dataclass
class Running:
    """A trial that runs."""

    trial: Trial
    params: space.Params
    config: Config
    run_id: Future[str]
    problem: str | None  # of its configuration, which is not run then
    epoch: float = 0.0
    value: float | None = None
    started: float = field(default_factory=time.monotonic)
    replicate_of: int | None = None
    host: str = ""
    is_submitted: bool = False
    pruned_after: int | None = None


class Sweep:
    """One supervisor of a study, whose run in MLflow is ``parent_run_id``; several may work on one storage."""

    def __init__(
        self, plan: StudyPlan, stored: study.StoredStudy, parent_run_id: str, engine: Engine, progress: SweepProgress,
        uploader: BackgroundUploader, results: RunResults,
    ) -> None:  # fmt: skip
        self.plan, self.stored, self.engine, self.progress = plan, stored, engine, progress
        self.results = results
        self.study, self.parent_run_id, self.search = stored.study, parent_run_id, plan.study.search
        self.uploader, self.health, self.news = uploader, plan.health(), deque[Event]()
        self.outcomes = outcomes.Outcomes(plan, stored, parent_run_id, progress.ended)
        self.objective = next(iter(plan.objectives))
        self.running: dict[int, Running] = {}
        self.durations: list[float] = []
        points = space.grid(plan.dimensions) if self.search.sampler == "grid" else None
        self.total = min(self.search.trials, len(points)) if points else self.search.trials
        self.finished, self.finished_counted, self.step_seconds = 0, 0, 0.0
        self.began = self.last_heartbeat = time.monotonic()
        self.me = machine.process_name()

    def run(self) -> None:
        """Search until the declared total is met; raises StudyError if too many trials failed, or outage_timeout is lost."""
        try:
            with deferred_signals():
                self._join()
                is_working = self._go_on()
            while is_working:
                raise_if_interrupted()
                self.news.extend(self.engine.events(0.1 if self.creating else 0.5))
                with deferred_signals():  # one inside a transaction may leave a database locked
                    is_working = self._go_on()
                if self.progress.live:
                    left = self.left + len(self.running)
                    turns = (self.left + 0.5 * len(self.running)) / self.plan.workers
                    seconds = (
                        statistics.mean(self.durations[-100:]) * turns if self.durations else None
                    )
                    self.progress.update(self.objective, self.rows(), left, seconds)
        except BaseException:
            self._end(HURRIED_S)
            raise
        self._end(None)
        if self.outcomes.stop_reason:
            raise StudyError(self.outcomes.stop_reason)

    def _go_on(self) -> bool:
        """Handle the news and fill free slots; whether more is to come. A fault of the world delays both."""
        try:
            for _ in range(len(self.news)):
                first, is_shared = self.news[0], self.stored.database is not None
                # other machines hear of a result once MLflow has it: until then it would be gone with this one
                if (
                    is_shared
                    and first.kind == "done"
                    and run_log.is_kept_here(first.content.run_id)
                ):
                    self.news.rotate(-1)
                else:
                    self._handle(first)
                    self.news.popleft()
            for number in self.creating:
                with self._starting(number):
                    self._submit(number)
            is_working = not self.health.is_well() or self._refill() or self._others_run()
            self._send_heartbeat()
        except Exception as fault:
            if not is_fault(fault):
                raise
            self.health.hit(told(fault))
            return True
        return is_working

    def _end(self, seconds: float | None) -> None:
        """End what runs; what can then be told is told within ``seconds``, or as long as outage_timeout lasts."""
        self.engine.stop()
        try:
            for one in [self.running[number] for number in self.creating]:
                with suppress(*StoreFault):  # the next command finds it
                    one.trial.set_user_attr(RUN_ID, one.run_id.result(HURRIED_S))
            self.outcomes.interrupt()
            # what this process alone has recorded is the same in both stores, unless it was cut off
            others = any(
                one.user_attrs.get(study.SUPERVISOR) != self.me for one in self.stored.trials()
            )
            may_differ = seconds is not None or self.health.was_hit or others
            if (
                may_differ and self.uploader.wait(seconds) == 0
            ):  # else the next command does the rest
                self.outcomes.settle_runs()
                self.outcomes.drop_models()
        except Exception as fault:
            if not is_fault(fault):
                raise
            warn(f"not all is told, the same command goes on with it: {told(fault)}")

    @property
    def creating(self) -> list[int]:
        """Trials that have a slot, but not yet a run."""
        return [number for number, one in self.running.items() if not one.is_submitted]

    @property
    def efficiency(self) -> float:
        """Which share of its workers' time since it began was training steps, in [0, 1]."""
        return self.step_seconds / (self.plan.workers * (time.monotonic() - self.began))

    @property
    def left(self) -> int:
        """Trials still to start."""
        trials = self.stored.trials()
        while (
            self.finished < len(trials) and trials[self.finished].state.is_finished()
        ):  # these change no more
            self.finished_counted += len(study.counted([trials[self.finished]]))
            self.finished += 1
        return max(
            0, self.total - self.finished_counted - len(study.counted(trials[self.finished :]))
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Trial, host, epoch, value and configuration of every trial that runs."""
        rows: list[tuple[str, ...]] = []
        for number, one in sorted(self.running.items()):
            value, epochs = "" if one.value is None else f"{one.value:.5f}", one.config.epochs
            again = (
                "" if one.replicate_of is None else f"(a further seed of trial {one.replicate_of}) "
            )
            name = again + space.short_name(one.params)
            rows.append((str(number), one.host, f"{one.epoch:.1f}/{epochs}", value, name))
        return rows

    def _join(self) -> None:
        """Sign up, end what dead supervisors left, and enqueue the hand-set baseline and a grid's points."""
        dimensions, run, is_grid = (
            self.plan.dimensions,
            self.plan.run,
            self.search.sampler == "grid",
        )
        longest = [
            max(one.choices or (one.high,)) for one in dimensions if one.key == "training.epochs"
        ]
        # supervisors on one machine decide in turn; on several the surplus is sorted out afterwards
        with study.lock(f"{self.plan.study.study}.turn"):
            before = sum(key.startswith(study.SUPERVISED) for key in self.study.user_attrs)
            epochs = run.model.members * int(longest[0] if longest else run.training.epochs)
            self.study.set_user_attr(f"{study.SUPERVISED}{self.me}", True)
            self.study.sampler, self.study.pruner = _optuna.make_sampler_and_pruner(
                self.search, epochs, before
            )
            if self.stored.trials():
                self.outcomes.adopt_orphans()
                self.outcomes.settle_runs()
            params, outside = space.baseline(dimensions, run)
            points = [params] if params and not (outside and is_grid) else []
            points += (
                [point for point in space.grid(dimensions) or [] if point != params]
                if is_grid
                else []
            )
            trials = self.stored.trials()
            known = {
                space.fingerprint(trial.system_attrs.get("fixed_params", trial.params))
                for trial in trials
            }
            for point in points[: self.total]:
                if space.fingerprint(point) not in known:
                    self.study.enqueue_trial(
                        point, user_attrs={outcomes.BASELINE: point == params and not outside}
                    )

    def _refill(self) -> bool:
        """Ask for trials and start them in the free slots; whether any runs then, or waits for one."""
        while self.engine.free > len(self.creating) and self.outcomes.stop_reason is None:
            with study.lock(f"{self.plan.study.study}.turn"):
                if self.left == 0:
                    self.outcomes.adopt_orphans()  # of another supervisor, killed meanwhile
                if self.left == 0:
                    break
                with warnings.catch_warnings():  # _send_heartbeat does what Optuna misses
                    warnings.filterwarnings("ignore", message="Heartbeat of storage")
                    trial = self.study.ask()
                trial.set_user_attr(study.SUPERVISOR, self.me)
            self.stored.send_heartbeats([trial.number])
            if self.stored.drop_surplus(trial, self.total):
                break
            with self._starting(trial.number):
                self._start(trial)
        return bool(self.running) or (self.outcomes.stop_reason is None and self.left > 0)

    def _others_run(self) -> bool:
        """Whether other supervisors' last trials still run: one that dies with its machine is run again here."""
        if self.outcomes.stop_reason is not None:
            return False
        running = self.stored.trials(TrialState.RUNNING)
        others = [
            trial.number for trial in running if trial.user_attrs.get(study.SUPERVISOR) != self.me
        ]
        self.progress.waiting(others)
        return bool(others)

    @contextmanager
    def _starting(self, number: int) -> Iterator[None]:
        """A step of a trial's start; after a fault of the world the trial comes again when that is well."""
        try:
            yield
        except Exception as fault:
            if is_fault(fault):
                self.running.pop(number, None)
                self.news.append(Event(number, "world", told(fault)))
            raise

    def _start(self, trial: Trial) -> None:
        """Let a trial choose its params, ask for its run, and submit it if that is there."""
        params, number = space.suggest(trial, self.plan.dimensions), trial.number
        seed = trial.user_attrs.get(SEED, self.search.seed + 1 + number)
        trial.set_user_attr(SEED, seed)
        earlier = self.stored.same_configuration(number, params)
        tags = {
            "kind": "trial",
            "study": self.plan.study.study,
            "trial.number": str(number),
            **outcomes.RUNNING_TAG,
        }
        if earlier is not None:
            trial.set_user_attr(outcomes.REPLICATE_OF, earlier)
            tags["trial.replicate_of"] = str(earlier)
        config, problem = self.plan.trial_config(params, seed, self.parent_run_id)
        trial.set_user_attr(THREADS, config.training.threads)
        name = f"trial {number}: {space.short_name(params)}"[:250]
        ahead = (
            0 if self.stored.database else self.left
        )  # of runs made ahead only this machine knows whose they are
        run_id = self.uploader.create_run(config, self.plan.dataset, name, ahead, **tags)
        self.running[number] = Running(trial, params, config, run_id, problem, replicate_of=earlier)
        self._submit(number)

    def _submit(self, number: int) -> None:
        """Hand a trial to the engine as soon as its run is known."""
        one = self.running[number]
        if not one.run_id.done():
            return
        one.trial.set_user_attr(RUN_ID, run_id := one.run_id.result())
        one.is_submitted = True
        if one.problem is not None:
            del self.running[number]
            self.outcomes.fail(self.stored.trial(number), one.problem, "FAILED", again=False)
        elif worker := self.engine.submit(number, one.config, run_id):
            one.trial.set_user_attr(study.WORKER, worker)
            one.host = worker.rsplit(":", 2)[0]

    def _handle(self, event: Event) -> None:
        """Follow a trial, and record its end."""
        if event.key not in self.running:  # it could not be started
            self.outcomes.fail(
                self.stored.trial(event.key),
                outcomes.OF_WORLD + event.content,
                "KILLED",
                again=True,
            )
            return
        running = self.running[event.key]
        if event.kind == "steps":
            epoch, step, steps = event.content
            running.epoch = epoch - 1 + step / steps
        elif event.kind == "epoch":
            self.engine.answer(event.key, self._goes_on(running, *event.content))
        else:
            if event.kind == "done":
                self.results.remember(event.content)
            self.outcomes.record(self.stored.trial(event.key), event, running.pruned_after)
            if event.kind == "world":
                self.health.hit(event.content)
            del self.running[event.key]  # last: what a full disk did not let happen is done again
            self.durations.append(time.monotonic() - running.started)

    def _goes_on(self, running: Running, number: int, record: Epoch) -> bool:
        """Whether a trial goes on after an epoch: the pruner decides, until another machine has taken it over."""
        running.epoch = float(number)
        self.step_seconds += record.get("step_seconds", 0.0)
        if len(self.plan.objectives) == 1 and self.objective in record:
            running.value = record[self.objective]
            try:
                running.trial.report(running.value, number)
            except UpdateFinishedTrialError:
                return False
            if number < running.config.epochs and running.trial.should_prune():
                running.pruned_after = number
        return running.pruned_after is None

    def _send_heartbeat(self) -> None:
        """Tell other machines that the trials here live, and take over those of a supervisor that went away."""
        if time.monotonic() - self.last_heartbeat < study.HEARTBEAT_S:
            return
        self.last_heartbeat = time.monotonic()
        self.stored.send_heartbeats(self.running)
        with study.lock(f"{self.plan.study.study}.turn"):
            self.outcomes.adopt_orphans()
