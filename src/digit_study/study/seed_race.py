"""A race of candidates over fresh seeds: the job source of confirmations and frontiers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile

import numpy as np

from digit_study.config.run_config import Config
from digit_study.report import sentences
from digit_study.stats.race import InterimAnalysis, race
from digit_study.stats.ranking import Candidate
from digit_study.study.parent_run import parent_run
from digit_study.study.progress_source import ProgressSource
from digit_study.study.results import RunResults
from digit_study.study.study_plan import StudyPlan
from digit_study.support import formatting
from digit_study.support.errors import StudyError
from digit_study.support.progress import JobProgress, job_progress
from digit_study.tracking.queries import HAS_RESULT
from digit_study.tracking.session import Tracker
from digit_study.tracking.writer import RunWriter
from digit_study.trial.events import (
    Decision,
    EpochDone,
    Failed,
    Finished,
    Outcome,
    Stopped,
)
from digit_study.trial.protocol import Engine
from digit_study.trial.runner import Job, Runner

#: Tags of a run that name its candidate and its seed.
CANDIDATE_TAG = "candidate"
SEED_TAG = "seed"
#: What the tag ``kind`` says of a run of a race.
KIND = "confirmation-run"


@dataclass(frozen=True)
class RaceEntry:
    """A configuration that takes part in a race."""

    #: For a person.
    name: str
    config: Config


@dataclass(frozen=True)
class SeedRun:
    """A candidate, by its fingerprint, and a seed."""

    fingerprint: str
    seed: int


@dataclass
class SeedRace(ProgressSource):
    """Decides which candidate is trained on which seed next, until the race is over.

    It has many attributes: its rules, and all that has happened so far.
    """

    # what takes part, and by which rules

    #: The study whose candidates race.
    plan: StudyPlan
    tracker: Tracker
    #: Id of the parent run.
    parent_run_id: str
    #: Candidates by their fingerprint, the best of the search first.
    entries: Mapping[str, RaceEntry]
    #: Seeds, the same for every candidate, as many as there may be.
    seeds: Sequence[int]
    #: How many seeds every candidate gets in any case.
    first_seeds: int

    # what has happened so far

    #: Finished runs.
    runs: dict[SeedRun, Candidate] = field(default_factory=dict)
    #: What went wrong with a run, in a sentence.
    failed: dict[SeedRun, str] = field(default_factory=dict)
    _progress: JobProgress = field(init=False, repr=False)
    _active: dict[int, SeedRun] = field(default_factory=dict, init=False)
    _deaths: dict[SeedRun, int] = field(default_factory=dict, init=False)
    _keys: count[int] = field(default_factory=count, init=False)
    _analysis: InterimAnalysis | None = field(default=None, init=False)
    _analysed: tuple[int, int] = field(default=(0, 0), init=False)

    def finished(self, fingerprint: str) -> list[Candidate]:
        """Return the runs of a candidate with its first seeds, up to one that has not finished."""
        runs = [SeedRun(fingerprint, seed) for seed in self.seeds]
        first_runs = takewhile(lambda run: run in self.runs, runs)
        return [self.runs[run] for run in first_runs]

    def interim(self) -> InterimAnalysis:
        """Return where the race stands, with the candidates in the order of :attr:`entries`."""
        ended = (len(self.runs), len(self.failed))
        if self._analysis is None or self._analysed != ended:
            self._analysis = self._analyse()
            self._analysed = ended
        return self._analysis

    def _analyse(self) -> InterimAnalysis:
        correct = []  # of every candidate, shape (seeds, images)
        parameters = []
        lost = []
        for number, fingerprint in enumerate(self.entries):
            runs = self.finished(fingerprint)
            correct.append(np.array([run.correct for run in runs], dtype=np.bool_))
            count = 0.0
            if runs:
                count = runs[0].metrics["parameters"]
            parameters.append(count)
            if self._has_lost_next_seed(fingerprint, len(runs)):
                lost.append(number)
        return race(correct, parameters, self.first_seeds, len(self.seeds), lost)

    def _has_lost_next_seed(self, fingerprint: str, finished: int) -> bool:
        """Return whether the run after a candidate's finished runs has failed."""
        if finished == len(self.seeds):
            return False
        following = SeedRun(fingerprint, self.seeds[finished])
        return following in self.failed

    def failures(self) -> list[str]:
        """Return what went wrong with seeds that a candidate needed, one sentence each."""
        states = zip(self.entries, self.interim().states, strict=True)
        lost = {fingerprint for fingerprint, state in states if state == "lost"}
        found = []
        for run, sentence in self.failed.items():
            if run.fingerprint in lost:
                found.append(sentence)
        return found

    def raise_failures(self, what: str) -> None:
        """Raise StudyError if a seed failed that a candidate needed.

        Args:
            what: What the runs are of, as ``confirmation``.
        """
        failures = self.failures()
        if failures:
            heading = f"{sentences.counted(len(failures), 'run')} of the {what} failed:"
            raise StudyError("\n".join([heading, *failures]))

    def keep_models(self, run_ids: Collection[str]) -> None:
        """Delete the models of all runs but these."""
        for run in self.runs.values():
            if run.run_id not in run_ids:
                self.tracker.drop_models(run.run_id)

    def train(self, engine: Engine) -> None:
        """Train what the race needs until it is over and the store has it all.

        The engine is stopped at the end.
        """
        with job_progress(prints_epochs=False) as progress:
            self._progress = progress
            runner = Runner(engine, self.tracker, self.plan.health())
            runner.run(self)
        self.tracker.wait()

    # The methods of a job source.

    @property
    def is_finished(self) -> bool:
        """Return whether the race is over, whatever still runs."""
        return not self._needed(self.interim())

    def next(self) -> Job | None:
        """Return a run that the next interim analysis needs, or a later analysis may need."""
        interim = self.interim()
        active = set(self._active.values())
        waiting = [run for run in self._useful(interim) if run not in active]
        if not waiting:
            return None
        run = waiting[0]
        key = next(self._keys)
        self._active[key] = run
        entry = self.entries[run.fingerprint]
        config = self.plan.child_config(self.parent_run_id, entry.config, run.seed, save_model=True)
        tags = {
            "kind": KIND,
            "study": self.plan.study.study,
            CANDIDATE_TAG: run.fingerprint,
            SEED_TAG: str(run.seed),
        }
        deaths = self._deaths.get(run, 0)
        return Job(key, self._job_name(run), config, self.plan.dataset, tags, deaths)

    def on_epoch(self, job: Job, event: EpochDone) -> Decision:
        """Stop a run that the race does not need any more."""
        self._progress.epoch(job.key, event.epoch, event.record)
        run = self._active[job.key]
        if run in self._useful(self.interim()):
            return Decision.CONTINUE
        return Decision.STOP

    def on_end(self, job: Job, outcome: Outcome, *, runs_again: bool) -> None:
        """Take in how a run ended, and say what the race makes of it."""
        run = self._active.pop(job.key)
        before = self.interim()
        match outcome:
            case Finished(result=result):
                self.runs[run] = Candidate(
                    self.entries[run.fingerprint].name,
                    result.run_id,
                    result.metrics,
                    result.evaluation.in_order().correct,
                    str(self.plan.run.data.sha256),
                )
                text = formatting.accuracy_with_interval(result.metrics)
            case Stopped():
                text = "not needed any more"
            case Failed() if runs_again:
                self._deaths[run] = job.deaths + int(outcome.cause.is_trials_fault)
                text = f"{outcome.reason}; it runs again"
            case Failed():
                self.failed[run] = f"{job.name}: {outcome.reason}"
                text = f"FAILED ({outcome.cause})"
        self._show_end(job.key, self._short_job_name(run), text, before)

    def _useful(self, interim: InterimAnalysis) -> list[SeedRun]:
        """Return what is worth a slot: what the next analysis needs first."""
        return [*self._needed(interim), *self._ahead(interim)]

    def _needed(self, interim: InterimAnalysis) -> list[SeedRun]:
        """Return what must still finish for the next analysis, seed by seed; nothing at the end."""
        first_seeds = self.seeds[: self.first_seeds]
        first = _seed_by_seed(first_seeds, self.entries)
        wanted = self.seeds[: interim.wanted]
        further = [run for run in self._further(interim) if run.seed in wanted]
        return self._unfinished([*first, *further])

    def _ahead(self, interim: InterimAnalysis) -> list[SeedRun]:
        """Return what fills slots meanwhile: later seeds, of the best candidates first."""
        means = {}
        for fingerprint in self.entries:
            finished = self.finished(fingerprint)
            accuracies = [run.metrics["val_accuracy"] for run in finished]
            means[fingerprint] = np.mean(accuracies or [0.0])
        further = self._further(interim)
        further.sort(key=lambda run: (run.seed, -means[run.fingerprint]))
        return self._unfinished(further)

    def _further(self, interim: InterimAnalysis) -> list[SeedRun]:
        """Return the runs beyond the first seeds of all candidates that are still in the race."""
        states = zip(self.entries, interim.goes_on, strict=True)
        going = [fingerprint for fingerprint, goes_on in states if goes_on]
        later_seeds = self.seeds[self.first_seeds :]
        return _seed_by_seed(later_seeds, going)

    def _unfinished(self, runs: Sequence[SeedRun]) -> list[SeedRun]:
        return [run for run in runs if run not in self.runs and run not in self.failed]

    def _job_name(self, run: SeedRun) -> str:
        """Return candidate and seed, for a person."""
        entry = self.entries[run.fingerprint]
        return f"{entry.name} seed {run.seed}"

    def _short_job_name(self, run: SeedRun) -> str:
        """Return candidate and seed as a line of progress has them: a trial by its number alone."""
        entry = self.entries[run.fingerprint]
        trial, colon, _ = entry.name.partition(":")
        if colon and trial.isdigit():
            return f"trial {trial}, seed {run.seed}"
        return self._job_name(run)

    def _show_end(self, key: int, name: str, text: str, before: InterimAnalysis) -> None:
        """Print how a run ended, and what an interim analysis that it completed has found."""
        self._progress.end(key)
        interim = self.interim()
        ended = len(self.runs) + len(self.failed)
        total = ended + len(self._needed(interim))
        self._progress.count(ended, total)
        self._progress.print(f"{ended}/{total}  {name}: {text}")
        is_race = self.first_seeds < len(self.seeds)
        is_new_analysis = before.wanted != interim.wanted != self.first_seeds
        if is_race and is_new_analysis:
            self._progress.print(self._news(before, interim))

    def _news(self, before: InterimAnalysis, interim: InterimAnalysis) -> str:
        """Return what an interim analysis has found, in a sentence."""
        names = [sentences.trial_of(entry.name) for entry in self.entries.values()]
        dropped = []
        for name, was, state in zip(names, before.states, interim.states, strict=True):
            if state == "out" and was != "out":
                dropped.append(name)
        going = []
        for name, goes_on in zip(names, interim.goes_on, strict=True):
            if goes_on:
                going.append(name)
        sentence = f"after {max(interim.seeds)} seeds each: "
        if dropped:
            sentence += f"out {', '.join(dropped)}; "
        if going:
            return f"{sentence}more seeds for {', '.join(going)}"
        return f"{sentence}the race is over"


def _seed_by_seed(seeds: Iterable[int], fingerprints: Collection[str]) -> list[SeedRun]:
    """Return the runs of candidates on seeds: all candidates on a seed, then the next seed."""
    runs = []
    for seed in seeds:
        runs += [SeedRun(fingerprint, seed) for fingerprint in fingerprints]
    return runs


@contextmanager
def race_run(race: SeedRace, results: RunResults, interrupted: str) -> Iterator[RunWriter]:
    """Write the parent run of a race, which takes over what an earlier command has finished.

    Args:
        race: The race.
        results: Results of its runs.
        interrupted: What a person who interrupts the command is told.

    Yields:
        The writer of the parent run.
    """
    tracker = race.tracker
    run_id = race.parent_run_id
    config = race.plan.run
    tracker.close_children(run_id, "KILLED")
    try:
        with parent_run(tracker, run_id, config, interrupted=interrupted) as writer:
            race.runs.update(_finished_before(race, results))
            yield writer
    finally:
        tracker.close_children(run_id, "KILLED")


def _finished_before(race: SeedRace, results: RunResults) -> dict[SeedRun, Candidate]:
    """Return the runs of a race that earlier commands have finished."""
    finished = race.tracker.children(race.parent_run_id, HAS_RESULT)
    digest = str(race.plan.run.data.sha256)
    found = {}
    for run_id, tags in finished:
        fingerprint = tags.get(CANDIDATE_TAG, "")
        seed = int(tags.get(SEED_TAG, -1))
        takes_part = fingerprint in race.entries and seed in race.seeds
        if not takes_part:
            continue
        run = SeedRun(fingerprint, seed)
        name = race.entries[fingerprint].name
        candidate = results.candidate(name, run_id, digest)
        if candidate is not None:
            found[run] = candidate
    return found
