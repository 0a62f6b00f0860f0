"""The jobs of a multirun on an engine that has its own slots, instead of one process a job that Hydra launches."""

from collections.abc import Mapping, Sequence

from digit_study.config.run import Config
from digit_study.engine.protocol import ENGINES, LOST, Engine, Event, Limits, TrialResult
from digit_study.runs.plan import Job
from digit_study.terminal import console
from digit_study.terminal.progress import RunProgress, confirmation_progress
from digit_study.terminal.signals import raise_if_interrupted
from digit_study.tracking import run_log

Ends = dict[int, TrialResult | str]


def run_jobs(jobs: Sequence[Job], names: Sequence[str], limits: Limits) -> list[TrialResult | str]:
    """Run every job, whose config says beneath which parent; the result of each in their order, or why there is none.

    One whose process was killed runs once more, one whose node went away as often as that happens.
    """
    ends: Ends = {}
    engine = ENGINES[limits.place.engine](limits)
    try:
        with confirmation_progress() as progress:
            _follow(engine, dict(enumerate(zip(names, jobs, strict=True))), limits.uri, ends, progress)
    finally:
        engine.stop()
    return [ends[number] for number in range(len(jobs))]


def _follow(engine: Engine, jobs: Mapping[int, tuple[str, Job]], uri: str, ends: Ends, progress: RunProgress) -> None:
    waiting, runs, died = list(jobs), dict[int, str](), set[int]()
    progress.count(0, len(jobs))
    while len(ends) < len(jobs):
        raise_if_interrupted()
        while waiting and engine.free:
            number = waiting.pop(0)
            name, job = jobs[number]
            config: Config = job.config
            runs[number] = run_log.create_run(config, uri, job.dataset, name)
            progress.begin(number, name, config.training.epochs)
            engine.submit(number, config, runs[number])
        for event in engine.events():
            if event.kind in ("steps", "epoch"):
                progress.follow(event.key, event.kind, event.content)
                if event.kind == "epoch":
                    engine.answer(event.key, True)
                continue
            is_blameless = event.kind == "world" or event.content in LOST
            if again := is_blameless or (event.kind == "died" and event.key not in died):
                died |= set() if is_blameless else {event.key}
                waiting.append(event.key)
            else:
                ends[event.key] = event.content
            told = _told(event, uri, runs[event.key])
            progress.end(event.key)
            progress.count(len(ends), len(jobs))
            end = f"{told}; it runs again" if again else told
            progress.say(f"{len(ends)}/{len(jobs)}  {jobs[event.key][0]}: {end}")


def _told(event: Event, uri: str, run_id: str) -> str:
    """How a job ended, for a person; one without a result is ended in the store."""
    if isinstance(event.content, TrialResult):
        return console.accuracy_with_interval(event.content.metrics)
    run_log.close_run(uri, run_id, "KILLED" if event.content in LOST else "FAILED", f"{event.kind}: {event.content}")
    return f"FAILED ({event.kind}): {event.content}"
