"""The jobs of a multirun on an engine that has its own slots, instead of one process a job that Hydra launches."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from digit_study.config.run_config import Config
from digit_study.study.run_plan import Job
from digit_study.support import console
from digit_study.support.progress import RunProgress, confirmation_progress
from digit_study.support.signals import raise_if_interrupted
from digit_study.tracking import runs as run_log
from digit_study.trial.health import Health
from digit_study.trial.protocol import ENGINES, LOST, Engine, EngineContext, Event, TrialResult


def run_jobs(
    jobs: Sequence[Job], names: Sequence[str], context: EngineContext
) -> list[TrialResult | str]:
    """Run every job, whose config says beneath which parent; the result of each in their order, or why there is none.

    One whose process was killed runs once more; one whose node went away, or that a fault of the world ended, as often
    as that happens, for as long as outage_timeout lasts.
    """
    engine = ENGINES[context.place.engine](context)
    try:
        with confirmation_progress() as progress:
            work = _Jobs(
                jobs,
                names,
                context.uri,
                engine,
                progress,
                Health(context.uri, context.place.outage_timeout, "outage_timeout"),
            )
            progress.count(0, len(jobs))
            while len(work.ends) < len(jobs):
                raise_if_interrupted()
                work.fill()
                for event in engine.events():
                    work.handle(event)
    finally:
        engine.stop()
    return [work.ends[number] for number in range(len(jobs))]


@dataclass
class _Jobs:
    jobs: Sequence[Job]
    names: Sequence[str]
    uri: str
    engine: Engine
    progress: RunProgress
    health: Health
    ends: dict[int, TrialResult | str] = field(default_factory=dict)  # by place in ``jobs``
    runs: dict[int, str] = field(default_factory=dict)  # their ids, of those that run
    died: set[int] = field(default_factory=set)

    def fill(self) -> None:
        """Give every free slot something to do."""
        for number in [
            one for one in range(len(self.jobs)) if one not in self.ends and one not in self.runs
        ]:
            if not (self.engine.free and self.health.is_well()):
                break
            job, name = self.jobs[number], self.names[number]
            config: Config = job.config
            if (run_id := self.health.create_run(config, job.dataset, name)) is None:
                break
            self.runs[number] = run_id
            self.progress.begin(number, name, config.epochs)
            self.engine.submit(number, config, run_id)

    def handle(self, event: Event) -> None:
        """Take in what is new of a run."""
        if event.kind in ("steps", "epoch"):
            self.progress.follow(event.key, event.kind, event.content)
            if event.kind == "epoch":
                self.engine.answer(event.key, True)
            return
        told = self._end(event, self.runs.pop(event.key))
        self.progress.end(event.key)
        self.progress.count(len(self.ends), len(self.jobs))
        self.progress.say(f"{len(self.ends)}/{len(self.jobs)}  {self.names[event.key]}: {told}")

    def _end(self, event: Event, run_id: str) -> str:
        """Record how a run ended, and tell it; one without a result is ended in the store."""
        number, reason = event.key, event.content
        if isinstance(reason, TrialResult):
            self.ends[number] = reason
            return console.accuracy_with_interval(reason.metrics)
        is_blameless = event.kind == "world" or reason in LOST
        run_log.close_run(
            self.uri, run_id, "KILLED" if is_blameless else "FAILED", f"{event.kind}: {reason}"
        )
        if event.kind == "world":
            self.health.hit(str(reason))
        if is_blameless or (event.kind == "died" and number not in self.died):
            self.died |= set() if is_blameless else {number}
            return f"{reason}; it runs again"
        self.ends[number] = str(reason)
        return f"FAILED ({event.kind}): {reason}"
