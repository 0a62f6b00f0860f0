"""Candidates are trained on fresh seeds, as many as their race needs, on an engine."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from digit_study.config.run import Config
from digit_study.data.digits import load_digits
from digit_study.stats.race import InterimAnalysis, race
from digit_study.stats.ranking import Candidate
from digit_study.study.outcomes import BLAMELESS
from digit_study.study.results import RunResults
from digit_study.study.study_plan import StudyPlan
from digit_study.support import console
from digit_study.support.progress import RunProgress, confirmation_progress
from digit_study.support.signals import Interrupted, raise_if_interrupted
from digit_study.tracking import runs as run_log
from digit_study.trial.health import Health
from digit_study.trial.protocol import Engine, Event, TrialResult

#: Fingerprint of a candidate, and a seed.
Job = tuple[str, int]


@dataclass
class Confirmation:
    """A confirmation that goes on."""

    plan: StudyPlan  # of the study that is confirmed
    names: dict[str, str]  # candidates by fingerprint, best first
    configs: dict[str, Config]  # what each candidate trains
    searched: dict[str, float]  # the validation accuracy that each had in the sweep
    configurations: int  # of the sweep, of which the candidates are the best
    seeds: list[int]  # the same for every candidate, all that there may be
    first: int  # so many of them are trained in any case
    parent: str  # id of the parent run
    runs: dict[Job, Candidate] = field(default_factory=dict)  # finished ones
    failed: dict[Job, str] = field(default_factory=dict)  # what went wrong, one sentence each

    def name(self, job: Job) -> str:
        """Candidate and seed, for a person."""
        return f"{self.names[job[0]]} seed {job[1]}"

    def keep_models(self, run_ids: Collection[str]) -> None:
        """Drop the models of all other runs."""
        for run in self.runs.values():
            if run.run_id not in run_ids:
                run_log.drop_models(self.plan.uri, run.run_id)

    def interim(self) -> InterimAnalysis:
        """Where the race stands, candidates in the order of :attr:`names`."""
        runs = [self.finished(key) for key in self.names]
        following = [
            (key, *self.seeds[len(own) :][:1]) for key, own in zip(self.names, runs, strict=True)
        ]
        lost = [place for place, job in enumerate(following) if job in self.failed]
        parameters = [own[0].metrics["parameters"] if own else 0.0 for own in runs]
        correct = [np.array([run.correct for run in own], dtype=np.bool_) for own in runs]
        return race(correct, parameters, self.first, len(self.seeds), lost)

    def finished(self, key: str) -> list[Candidate]:
        """Runs of a candidate with its first seeds, up to one that has not finished."""
        return [
            self.runs[key, seed]
            for seed in takewhile(lambda seed: (key, seed) in self.runs, self.seeds)
        ]

    def needed(self, interim: InterimAnalysis) -> list[Job]:
        """What must still finish for the next look, seed by seed; nothing when the race is over."""
        jobs = [(key, seed) for seed in self.seeds[: self.first] for key in self.names]
        jobs += [job for job in self._further(interim) if job[1] in self.seeds[: interim.wanted]]
        return self._left(jobs)

    def spare(self, interim: InterimAnalysis) -> list[Job]:
        """What slots do that would be idle until the next look: later seeds, of the best so far first."""
        means = {
            key: np.mean([run.metrics["val_accuracy"] for run in self.finished(key)] or [0])
            for key in self.names
        }
        return self._left(sorted(self._further(interim), key=lambda job: (job[1], -means[job[0]])))

    def _further(self, interim: InterimAnalysis) -> list[Job]:
        """Beyond the seeds that all have, whatever those that go on may need."""
        going = [key for key, goes_on in zip(self.names, interim.goes_on, strict=True) if goes_on]
        return [(key, seed) for seed in self.seeds[self.first :] for key in going]

    def _left(self, jobs: list[Job]) -> list[Job]:
        return [job for job in jobs if job not in self.runs and job not in self.failed]

    def failures(self) -> list[str]:
        """What went wrong with seeds that a candidate needed, one sentence each."""
        lost = [
            key
            for key, state in zip(self.names, self.interim().states, strict=True)
            if state == "lost"
        ]
        return [text for (key, _), text in self.failed.items() if key in lost]


@contextmanager
def parent_run(
    work: Confirmation, results: RunResults, interrupted: str
) -> Iterator[run_log.RunLog]:
    """The parent run, begun with what an earlier start has finished, and ended as the block ends.

    ``interrupted`` is what a person is told who ends it.
    """
    plan, status = work.plan, "FAILED"
    try:
        log, digits = run_log.RunLog(plan.uri, work.parent), load_digits(plan.run.data)
        log.config(plan.run)
        log.dataset(digits.name, digits.sha256, digits.counts())
        run_log.close_children(plan.uri, work.parent, "KILLED")
        for run_id, tags in run_log.children(
            plan.uri, work.parent, "attributes.status = 'FINISHED'"
        ):
            key, seed = tags.get("candidate", ""), int(tags.get("seed", -1))
            if key in work.names and seed in work.seeds:
                found = results.candidate(work.names[key], run_id, str(plan.run.data.sha256))
                work.runs |= {} if found is None else {(key, seed): found}
        yield log
        status = "FINISHED" if not work.failures() else "FAILED"
    except Interrupted:
        status = "KILLED"
        console.print_error(interrupted)
        raise
    finally:
        run_log.close_children(plan.uri, work.parent, "KILLED")
        run_log.RunLog(plan.uri, work.parent).end(status, {"study": plan.study.study})


def train(work: Confirmation, engine: Engine) -> None:
    """Run what is needed until the race is over; a run whose process was killed from outside runs once more."""
    with confirmation_progress() as progress:
        try:
            training = _Training(work, engine, progress, work.interim(), work.plan.health())
            while work.needed(training.interim):
                raise_if_interrupted()
                training.fill()
                for event in engine.events():
                    training.handle(event)
        finally:
            engine.stop()  # also what the race was decided without


@dataclass
class _Training:
    work: Confirmation
    engine: Engine
    progress: RunProgress
    interim: InterimAnalysis
    health: Health
    number: int = 0
    jobs: dict[int, tuple[Job, str]] = field(
        default_factory=dict
    )  # and the id of the run, by number
    died: set[Job] = field(default_factory=set)
    dropped: set[Job] = field(default_factory=set)

    def fill(self) -> None:
        """Give every free slot something to do."""
        work, running = self.work, [job for job, _ in self.jobs.values()]
        waiting = dict.fromkeys([*work.needed(self.interim), *work.spare(self.interim)])
        for job in [job for job in waiting if job not in running][: self.engine.free]:
            key, seed = job
            config = work.plan.beneath(work.parent, work.configs[key], seed, save_model=True)
            tags = {
                "kind": "confirmation-run",
                "study": work.plan.study.study,
                "candidate": key,
                "seed": str(seed),
            }
            if not self.health.is_well():
                break
            if (
                run_id := self.health.create_run(config, work.plan.dataset, work.name(job), **tags)
            ) is None:
                break
            self.number += 1
            self.jobs[self.number] = job, run_id
            self.progress.begin(self.number, work.name(job), config.epochs)
            self.engine.submit(self.number, config, run_id)

    def handle(self, event: Event) -> None:
        """Take in what is new of a run."""
        job, run_id = self.jobs[event.key]
        if event.kind in ("steps", "epoch"):
            self.progress.follow(event.key, event.kind, event.content)
            if event.kind == "epoch":
                is_useful = job in {*self.work.needed(self.interim), *self.work.spare(self.interim)}
                self.dropped |= set() if is_useful else {job}
                self.engine.answer(event.key, is_useful)
            return
        del self.jobs[event.key]
        self.progress.end(event.key)
        self._end(job, run_id, event)

    def _end(self, job: Job, run_id: str, event: Event) -> None:
        work, result = self.work, event.content
        if isinstance(result, TrialResult):
            correct = result.evaluation.correct[result.evaluation.index.argsort()]
            digest = str(work.plan.run.data.sha256)
            work.runs[job] = Candidate(work.names[job[0]], run_id, result.metrics, correct, digest)
            text = console.accuracy_with_interval(result.metrics)
        elif job in self.dropped:
            text = "not needed any more"
        else:
            run_log.close_run(work.plan.uri, run_id, "FAILED", f"{event.kind}: {result}")
            text = f"{result}; it runs again"
            if event.kind == "world":  # no fault of the run, which waits until the world is well
                self.health.hit(str(result))
            elif event.kind != "died" or (job in self.died and result not in BLAMELESS):
                work.failed[job], text = f"{work.name(job)}: {result}", f"FAILED ({event.kind})"
            else:
                self.died.add(job)
        before, self.interim = self.interim, work.interim()
        ended = len(work.runs) + len(work.failed)
        total = ended + len(work.needed(self.interim))
        self.progress.count(ended, total)
        self.progress.say(f"{ended}/{total}  {work.name(job)}: {text}")
        if before.wanted != self.interim.wanted and self.interim.wanted != work.first < len(
            work.seeds
        ):
            self.progress.say(self._news(before))

    def _news(self, before: InterimAnalysis) -> str:
        """What a look has found."""
        now, names = self.interim, [name.split(":")[0] for name in self.work.names.values()]
        changed = zip(names, before.states, now.states, strict=True)
        out = [name for name, was, state in changed if state == "out" != was]
        going = [name for name, goes_on in zip(names, now.goes_on, strict=True) if goes_on]
        found = f"after {max(now.seeds)} seeds each: " + (f"out {', '.join(out)}; " if out else "")
        return found + (f"more seeds for {', '.join(going)}" if going else "the race is over")
