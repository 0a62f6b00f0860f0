"""The runs of one command: a single run, or those of ``-m`` with a parent and their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from digit_study.report.description import RunDescription
from digit_study.report.figures import charts
from digit_study.report.figures.ranking_figures import leaderboard_figure
from digit_study.report.ranking import RankedTable, RankingKind
from digit_study.report.sentences import ranking_answer, runs_question
from digit_study.report.terminal import print_lines, print_ranking, print_run
from digit_study.stats import ranking
from digit_study.stats.ranking import Candidate
from digit_study.study.job_list import JobList
from digit_study.study.parent_run import parent_run
from digit_study.study.run_plan import PlannedRun, RunPlan
from digit_study.support.errors import StudyError
from digit_study.support.progress import job_progress
from digit_study.support.rules import flatten, raise_violations
from digit_study.tracking import session
from digit_study.tracking.location import experiment_name
from digit_study.tracking.pages import INITIAL
from digit_study.tracking.session import Tracker
from digit_study.tracking.writer import RunWriter
from digit_study.trial.events import Failed, Finished
from digit_study.trial.health import Health
from digit_study.trial.protocol import ENGINES, TrialResult
from digit_study.trial.runner import Job, Runner

#: What the runs of a command are that ended, in its order.
Outcomes = Sequence[Finished | Failed]
#: Characters that the name of a run has at most.
LONGEST_NAME = 200
#: Figures of the data, which the page of a parent run links.
DATA_FIGURES = ("figures/class_counts.png", "figures/samples.png")
#: Figure of the ranking, which it links where runs were ranked.
RANKING_FIGURE = "figures/comparison.png"
#: Failures that the page of a parent run lists.
LISTED_FAILURES = 5


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
            result = train_single(plan, tracker, run_name(plan.runs[0], []))
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
    job = Job(0, name, planned.config, planned.dataset, tags)
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
    typed = [text for text in planned.overrides if not text.startswith(("hydra", "tracking."))]
    own = [text for text in typed if text not in shared]
    return " ".join(own or typed) or "default"


def _run_many(plan: RunPlan, tracker: Tracker) -> None:
    """Train the runs of ``-m`` and compare them on their parent's page and on the terminal."""
    first = plan.runs[0]
    swept = [
        text for text in plan.typed if "tracking." not in text and not text.startswith("hydra")
    ]
    title = f"{len(plan.runs)} runs: {' '.join(swept)}"[:LONGEST_NAME]
    tags = {"kind": "multirun", **INITIAL}
    run_id = tracker.create_run(first.config, first.dataset, title, **tags)
    with parent_run(tracker, run_id, first.config) as writer:
        _describe(writer, plan, [], [])
        names = _names(plan)
        try:
            outcomes = _train(plan, tracker, _child_jobs(plan, names, run_id))
        except BaseException:
            # also a run whose id did not arrive
            tracker.close_children(run_id, "KILLED")
            raise
        boards = _rank(writer, plan, names, outcomes)
        failed = [
            f"{name}: {outcome.reason}"
            for name, outcome in zip(names, outcomes, strict=True)
            if isinstance(outcome, Failed)
        ]
        _describe(writer, plan, boards, failed)
        for board in boards:
            compared = RankedTable.of(RankingKind.RUNS, board)
            print_ranking("Comparison on the validation images", compared)
        print_lines(f"parent run {run_id}", f"see it: {tracker.address(run_id, children=True)}")
        if failed:
            raise_violations([f"{len(failed)} of {len(outcomes)} runs FAILED:", *failed])


def _names(plan: RunPlan) -> list[str]:
    """Return the short names of all runs of a plan."""
    shared = set.intersection(*(set(planned.overrides) for planned in plan.runs))
    return [run_name(planned, list(shared)) for planned in plan.runs]


def _child_jobs(plan: RunPlan, names: Sequence[str], parent_run_id: str) -> list[Job]:
    """Return the runs of a plan as children of a run, the longest first."""
    experiment = experiment_name(plan.runs[0].config, plan.runs[0].dataset)
    jobs = []
    for number in plan.longest_first:
        planned = plan.runs[number]
        tracking = replace(
            planned.config.tracking, parent_run_id=parent_run_id, experiment=experiment
        )
        config = replace(planned.config, tracking=tracking)
        jobs.append(Job(number, names[number], config, planned.dataset))
    return jobs


def _train(plan: RunPlan, tracker: Tracker, jobs: Sequence[Job]) -> Outcomes:
    """Train jobs on the engine of a plan; return how they ended, by their keys."""
    options = plan.context.options
    engine = ENGINES[options.engine](plan.context)
    health = Health(plan.uri, plan.workspace, options.outage_timeout, "outage_timeout")
    with job_progress(prints_epochs=True) as progress:
        source = JobList(jobs, progress, tracker, trains_here=options.engine == "local")
        Runner(engine, tracker, health).run(source)
    return [source.outcomes[key] for key in sorted(source.outcomes)]


def _rank(
    writer: RunWriter, plan: RunPlan, names: Sequence[str], outcomes: Outcomes
) -> list[pd.DataFrame]:
    """Rank runs on equal data together, and put tables and figures on their parent."""
    candidates = []
    for planned, name, outcome in zip(plan.runs, names, outcomes, strict=True):
        if isinstance(outcome, Finished):
            result = outcome.result
            correct = result.evaluation.predicted == result.evaluation.labels
            digest = str(planned.config.data.sha256)
            candidates.append(Candidate(name, result.run_id, result.metrics, correct, digest))
    boards = []
    for digest in dict.fromkeys(candidate.digest for candidate in candidates):
        same = [candidate for candidate in candidates if candidate.digest == digest]
        board = ranking.leaderboard(same)
        boards.append(board)
        suffix = f"_{len(boards)}"
        if len(boards) == 1:
            suffix = ""
        charts.write_table(board, writer.folder, f"comparison{suffix}")
        figure = leaderboard_figure(board, "Validation accuracy")
        charts.save(figure, writer.folder / "figures" / f"comparison{suffix}.png")
    if len(boards) == 1:
        writer.best(boards[0], f"{len(boards[0])} runs")
    return boards


def _describe(
    writer: RunWriter, plan: RunPlan, boards: Sequence[pd.DataFrame], failed: Sequence[str]
) -> None:
    """Put the answer and the first runs on the parent's page."""
    answers = [ranking_answer(board, "run") for board in boards]
    table = None
    files = list(DATA_FIGURES)
    if boards:
        files.insert(0, RANKING_FIGURE)
        table = RankedTable.of(RankingKind.RUNS, boards[0])
    configs = [flatten(planned.config) for planned in plan.runs]
    differing = [key for key in configs[0] if len({str(config[key]) for config in configs}) > 1]
    description = RunDescription(
        answer="; ".join(answers) or "no run has finished yet",
        question=runs_question(len(plan.runs), plan.typed),
        ranking=table,
        problems=failed[:LISTED_FAILURES],
        files=files,
    )
    writer.describe(description, differing)
