"""The runs of one command: a single run, or those of ``-m`` with a parent and their comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import pandas as pd

from digit_study.config.renamed_keys import key_of
from digit_study.config.run_config import Config
from digit_study.report.description import RunDescription
from digit_study.report.figures import charts
from digit_study.report.figures.ranking_figures import leaderboard_figure
from digit_study.report.ranking import RankedTable, RankingKind, splits_view
from digit_study.report.sentences import (
    goes_on,
    multirun_goes_on,
    ranking_answer,
    runs_question,
    several_validation_sets,
    splits_answer,
    unpaired_answer,
)
from digit_study.report.terminal import print_lines, print_ranking, print_run, print_table
from digit_study.stats import ranking
from digit_study.stats.ranking import Candidate, Group
from digit_study.study.interrupted_multirun import (
    ENDED_TAG,
    JOB_TAG,
    MultirunParent,
    open_parent,
)
from digit_study.study.job_list import JobList
from digit_study.study.parent_run import parent_run
from digit_study.study.run_plan import PlannedRun, RunPlan
from digit_study.support.errors import StudyError
from digit_study.support.progress import job_progress
from digit_study.support.rules import flatten, raise_violations
from digit_study.tracking import session
from digit_study.tracking.location import experiment_name
from digit_study.tracking.session import Tracker
from digit_study.tracking.writer import RunWriter
from digit_study.trial.checkpoint import Checkpoint, fingerprint
from digit_study.trial.events import Failed, Finished
from digit_study.trial.health import Health
from digit_study.trial.protocol import ENGINES, TrialResult
from digit_study.trial.runner import Job, Runner

#: What the runs of a command are that ended, in its order.
Outcomes = Sequence[Finished | Failed]
#: What a person who interrupts -m is told.
INTERRUPTED = "interrupted: the same command trains the runs that are missing"
#: Characters that the name of a run has at most.
LONGEST_NAME = 200
#: Figures of the data, which the page of a parent run links.
DATA_FIGURES = ("figures/class_counts.png", "figures/samples.png")
#: Figure of the ranking, which it links where runs were ranked.
RANKING_FIGURE = "figures/comparison.png"
#: Failures that the page of a parent run lists.
LISTED_FAILURES = 5


@dataclass(frozen=True)
class Comparison:
    """What came of the runs of ``-m``."""

    #: A leaderboard for each set of validation images that several runs share.
    boards: Sequence[pd.DataFrame]
    #: Runs that share their images with no other; None if there are none.
    unpaired: pd.DataFrame | None = None
    #: Mean and spread of each configuration that was trained on several splits; None if none was.
    splits: pd.DataFrame | None = None

    @property
    def all_boards(self) -> list[pd.DataFrame]:
        """Return all tables with a row for each run."""
        if self.unpaired is None:
            return list(self.boards)
        return [*self.boards, self.unpaired]

    @property
    def answers(self) -> list[str]:
        """Return what was found, in sentences."""
        answers = []
        if self.splits is not None:
            answers.append(splits_answer(self.splits))
        answers += [ranking_answer(board, "run") for board in self.boards]
        if self.splits is None and self.unpaired is not None:
            answers.append(unpaired_answer(len(self.unpaired)))
        return answers

    @property
    def first_table(self) -> RankedTable | None:
        """Return the table of the parent's page."""
        if self.boards:
            return RankedTable.of(RankingKind.RUNS, self.boards[0])
        if self.unpaired is not None:
            return RankedTable.of(RankingKind.UNPAIRED_RUNS, self.unpaired)
        return None


def run(plan: RunPlan) -> None:
    """Train the runs of a command and print what came of them.

    Raises:
        StudyError: If a run failed.
        Interrupted: After a signal.
    """
    timeout = plan.context.options.outage_timeout
    with session.session(plan.uri, plan.workspace, timeout, "outage_timeout") as tracker:
        if plan.is_multirun:
            _run_many(plan, tracker)
        else:
            name = run_name(plan.runs[0], [])
            result = train_single(plan, tracker, name)
            where = tracker.address(result.run_id)
            print_run(result.run_id, result.metrics, where)


def train_single(plan: RunPlan, tracker: Tracker, name: str, **tags: str) -> TrialResult:
    """Train the only run of a plan.

    Args:
        plan: A plan with one run.
        tracker: Where the run is recorded.
        name: Name of the run.
        tags: Its tags.

    Raises:
        StudyError: If it failed.
    """
    planned = plan.runs[0]
    config = planned.config
    before = Checkpoint(config, plan.workspace, plan.uri).read()
    if before is not None:
        done = len(before.epochs)
        print_lines(goes_on(done, config.epochs, before.run_id))
    job = Job(0, name, config, planned.dataset, tags)
    outcome = _train(plan, tracker, [job])[0]
    if isinstance(outcome, Failed):
        raise StudyError(outcome.reason)
    return outcome.result


def run_name(planned: PlannedRun, shared: Sequence[str]) -> str:
    """Return the short name of a run: the overrides that not all runs of its command share.

    Args:
        planned: The run.
        shared: Overrides of all runs.
    """
    typed = [text for text in planned.overrides if _is_of_run(text)]
    own = [text for text in typed if text not in shared]
    return " ".join(own or typed) or "default"


def _is_of_run(override: str) -> bool:
    """Return whether an override says what is trained, not where its results go."""
    return not key_of(override).startswith(("hydra", "tracking."))


def _run_many(plan: RunPlan, tracker: Tracker) -> None:
    """Train the runs of ``-m`` and compare them on their parent's page and on the terminal."""
    first = plan.runs[0]
    swept = [text for text in plan.typed if _is_of_run(text)]
    title = f"{len(plan.runs)} runs: {' '.join(swept)}"
    parent = open_parent(plan, tracker, title[:LONGEST_NAME])
    run_id = parent.run_id
    with parent_run(tracker, run_id, first.config, interrupted=INTERRUPTED) as writer:
        _describe(writer, plan, Comparison([]), [])
        names = _names(plan)
        if parent.finished:
            print_lines(multirun_goes_on(len(parent.finished), len(plan.runs)))
        if plan.validation_sets > 1:
            print_lines(several_validation_sets(plan.validation_sets))
        try:
            jobs = _child_jobs(plan, names, parent)
            outcomes = _train(plan, tracker, jobs, parent.finished)
        except BaseException:
            # also a run whose id did not arrive
            tracker.close_children(run_id, "KILLED")
            raise
        comparison = _compare(plan, names, outcomes)
        _record(writer, comparison)
        failed = _failures(names, outcomes)
        _describe(writer, plan, comparison, failed)
        _print(comparison)
        where = tracker.address(run_id, children=True)
        print_lines(f"parent run {run_id}", f"see it: {where}")
        tracker.tag_run(run_id, {ENDED_TAG: "true"})
        if failed:
            heading = f"{len(failed)} of {len(outcomes)} runs FAILED:"
            raise_violations([heading, *failed])


def _failures(names: Sequence[str], outcomes: Outcomes) -> list[str]:
    """Return why runs failed, a sentence each."""
    found = []
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, Failed):
            found.append(f"{name}: {outcome.reason}")
    return found


def _names(plan: RunPlan) -> list[str]:
    """Return the short names of all runs of a plan."""
    overrides = [set(planned.overrides) for planned in plan.runs]
    shared = list(set.intersection(*overrides))
    return [run_name(planned, shared) for planned in plan.runs]


def _child_jobs(plan: RunPlan, names: Sequence[str], parent: MultirunParent) -> list[Job]:
    """Return the runs of a plan that its parent lacks, the longest first."""
    first = plan.runs[0]
    experiment = experiment_name(first.config, first.dataset)
    jobs = []
    for number in plan.longest_first:
        if number in parent.finished:
            continue
        planned = plan.runs[number]
        tracking = replace(
            planned.config.tracking, parent_run_id=parent.run_id, experiment=experiment
        )
        config = replace(planned.config, tracking=tracking)
        tags = {JOB_TAG: fingerprint(planned.config)}
        jobs.append(Job(number, names[number], config, planned.dataset, tags))
    return jobs


def _train(
    plan: RunPlan,
    tracker: Tracker,
    jobs: Sequence[Job],
    finished: Mapping[int, Finished] = MappingProxyType({}),
) -> Outcomes:
    """Train jobs on the engine of a plan.

    Args:
        plan: The plan.
        tracker: Where the runs are recorded.
        jobs: What is trained.
        finished: How other jobs have ended before, by their keys.

    Returns:
        How all of them ended, in the order of their keys.
    """
    options = plan.context.options
    engine = ENGINES[options.engine](plan.context)
    health = Health(plan.uri, plan.workspace, options.outage_timeout, "outage_timeout")
    with job_progress(prints_epochs=True) as progress:
        trains_here = options.engine == "local"
        source = JobList(jobs, progress, tracker, trains_here=trains_here, finished=finished)
        Runner(engine, tracker, health).run(source)
    return [source.outcomes[key] for key in sorted(source.outcomes)]


def _compare(plan: RunPlan, names: Sequence[str], outcomes: Outcomes) -> Comparison:
    """Rank runs on the same validation images together, and summarise splits of the data."""
    by_images: dict[str, list[Candidate]] = {}
    by_configuration: dict[str, list[Candidate]] = {}
    for planned, name, outcome in zip(plan.runs, names, outcomes, strict=True):
        if not isinstance(outcome, Finished):
            continue
        result = outcome.result
        correct = result.evaluation.in_order().correct
        images = planned.validation
        candidate = Candidate(name, result.run_id, result.metrics, correct, images)
        by_images.setdefault(images, []).append(candidate)
        configuration = _without_split(planned.config)
        by_configuration.setdefault(configuration, []).append(candidate)
    if len(by_images) == 1:
        board = ranking.leaderboard(*by_images.values())
        return Comparison([board])
    boards = []
    alone = []
    for same_images in by_images.values():
        if len(same_images) > 1:
            boards.append(ranking.leaderboard(same_images))
        else:
            alone += same_images
    unpaired = None
    if alone:
        unpaired = ranking.unpaired_board(alone)
    return Comparison(boards, unpaired, splits=_over_splits(by_configuration.values()))


def _over_splits(configurations: Iterable[Sequence[Candidate]]) -> pd.DataFrame | None:
    """Summarise configurations that were trained on several splits; None if none was."""
    groups = []
    for runs in configurations:
        digests = {run.digest for run in runs}
        if len(digests) > 1:
            name = _configuration_name(runs[0].name)
            groups.append(Group(name, runs))
    if not groups:
        return None
    return ranking.mean_over_splits(groups)


def _without_split(config: Config) -> str:
    """Return a text that is equal for runs that differ in the split of their data alone."""
    values = flatten(config)
    del values["data.seed"]
    return str(sorted(values.items(), key=str))


def _configuration_name(name: str) -> str:
    """Return the name of a run without its split."""
    words = [word for word in name.split() if key_of(word) != "data.seed"]
    return " ".join(words) or "the configuration"


def _record(writer: RunWriter, comparison: Comparison) -> None:
    """Put the tables and figures of a comparison on the parent's page."""
    for number, board in enumerate(comparison.all_boards, start=1):
        name = f"comparison_{number}"
        if number == 1:
            name = "comparison"
        charts.write_table(board, writer.folder, name)
        figure = leaderboard_figure(board, "Validation accuracy")
        charts.save(figure, writer.folder / "figures" / f"{name}.png")
    if len(comparison.boards) == 1 and comparison.unpaired is None:
        board = comparison.boards[0]
        writer.best(board, f"{len(board)} runs")
    if comparison.splits is not None:
        charts.write_table(comparison.splits, writer.folder, "splits")
        best = comparison.splits.iloc[0]
        columns = ("mean_val_accuracy", "sd_val_accuracy")
        writer.metrics({column: best[column] for column in columns})


def _print(comparison: Comparison) -> None:
    """Print the tables of a comparison."""
    for board in comparison.boards:
        compared = RankedTable.of(RankingKind.RUNS, board)
        print_ranking("Comparison on the validation images", compared)
    if comparison.unpaired is not None:
        listed = RankedTable.of(RankingKind.UNPAIRED_RUNS, comparison.unpaired)
        print_ranking("Each on its own validation images", listed)
    if comparison.splits is not None:
        print_table(splits_view(comparison.splits))


def _describe(
    writer: RunWriter, plan: RunPlan, comparison: Comparison, failed: Sequence[str]
) -> None:
    """Put the answer and the first runs on the parent's page."""
    files = list(DATA_FIGURES)
    if comparison.first_table is not None:
        files.insert(0, RANKING_FIGURE)
    configs = [flatten(planned.config) for planned in plan.runs]
    differing = []
    for key in configs[0]:
        values = {str(config[key]) for config in configs}
        if len(values) > 1:
            differing.append(key)
    description = RunDescription(
        answer="; ".join(comparison.answers) or "no run has finished yet",
        question=runs_question(len(plan.runs), plan.typed),
        ranking=comparison.first_table,
        problems=failed[:LISTED_FAILURES],
        files=files,
        note=plan.runs[0].config.tracking.note or "",
    )
    writer.describe(description, differing)
