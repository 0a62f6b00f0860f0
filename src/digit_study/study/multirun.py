"""One run, or Hydra's -m: a parent run, a child per job in a process of its own, and their comparison."""

import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd

from digit_study.config.compose import run_hydra
from digit_study.config.run import Config
from digit_study.data.digits import dataset_name, load_digits
from digit_study.report.description import RunDescription
from digit_study.report.figures import charts
from digit_study.report.figures import run_figures as figures
from digit_study.report.figures.ranking_figures import leaderboard_figure
from digit_study.report.ranking import RankedTable, RankingKind
from digit_study.report.sentences import ranking_answer, runs_question
from digit_study.report.terminal import print_lines, print_ranking, print_run
from digit_study.stats import ranking
from digit_study.study import job_list as elsewhere
from digit_study.study.run_plan import Plan
from digit_study.support import console, messages, signals
from digit_study.support.messages import StudyError
from digit_study.support.progress import epoch_progress
from digit_study.tracking import database as stores
from digit_study.tracking import runs as run_log
from digit_study.tracking import views
from digit_study.tracking.uploader import BackgroundUploader
from digit_study.trial import protocol
from digit_study.trial.local import child

OUTCOME = "outcome.pickle"


@dataclass(frozen=True)
class JobOutcome:
    """How one job of a multirun ended."""

    name: str
    candidate: ranking.Candidate | None = None  # what can be ranked of it if it finished
    reason: str = ""  # why it did not


def run_single(config: Config, dataset: str, overrides: Sequence[str]) -> None:
    """Train one resolved config in this process, with progress, and end with a short table."""
    uri = stores.tracking_uri(config.tracking.uri)
    stores.prepare_store(uri)
    run_id = run_log.create_run(config, uri, dataset, job_name(overrides))
    result = child.train_here(config, run_id)
    where = views.address(run_log.client_of(uri), uri, run_id, children=False)
    print_run(result.run_id, result.metrics, where)
    if result.kept:
        raise StudyError(unsent(str(result.fault), result.kept))


def run_many(plan: Plan, task: Callable[[], None]) -> None:
    """Launch every job beneath one parent run, rank them there and on the terminal; raises StudyError if some fail."""
    first = plan.jobs[0]
    uri = stores.tracking_uri(first.config.tracking.uri)
    stores.prepare_store(uri)
    with BackgroundUploader(uri, first.config.outage_timeout, "outage_timeout"):
        _run_beneath(plan, task, uri)


def _run_beneath(plan: Plan, task: Callable[[], None], uri: str) -> None:
    """The parent run, from its beginning to its end, and what is then said of its jobs."""
    first = plan.jobs[0]
    swept = [
        text for text in plan.typed if "tracking." not in text and not text.startswith("hydra")
    ]
    name = f"{len(plan.jobs)} runs: {' '.join(swept)}"[:200]
    run_id = run_log.create_run(
        first.config, uri, first.dataset, name, kind="multirun", **views.INITIAL
    )
    log = run_log.RunLog(uri, run_id)
    scratch = stores.use_scratch() / "jobs"
    shared = set.intersection(*(set(job.overrides) for job in plan.jobs))
    status, experiment = "FAILED", stores.experiment_name(first.config, first.dataset)
    try:
        scratch.mkdir()
        os.environ.update(DIGIT_STUDY_SCRATCH=str(scratch), DIGIT_STUDY_SHARED="\n".join(shared))
        log.config(first.config)
        _describe(log, plan, [], [])
        digits = load_digits(first.config.data)
        log.dataset(digits.name, digits.sha256, digits.counts())
        figures.write_data_figures(digits, log.folder)
        parent = [f"tracking.parent_run_id={run_id}", f"tracking.experiment='{experiment}'"]
        outcomes = _elsewhere(plan, run_id, experiment) if plan.context else []
        if plan.context is None:
            try:
                run_hydra(task, [*plan.resolved_overrides(), *parent])
            finally:  # also if a signal came between two jobs, while figures were drawn
                if plan.parallel == 1:
                    _engine().stop()
        for number, job in enumerate(plan.jobs if plan.context is None else []):
            path = scratch / str(number) / OUTCOME
            lost = JobOutcome(job_name(job.overrides), reason="its process ended without a message")
            outcomes.append(pickle.loads(path.read_bytes()) if path.is_file() else lost)
        boards = _rank(log, [outcome.candidate for outcome in outcomes if outcome.candidate])
        _describe(
            log, plan, boards, [f"{one.name}: {one.reason}" for one in outcomes if one.reason]
        )
        status = "FAILED" if any(outcome.reason for outcome in outcomes) else "FINISHED"
    except signals.Interrupted:
        status = "KILLED"
        raise
    finally:
        run_log.close_children(uri, run_id, status)
        log.end(status, {})
        shutil.rmtree(scratch, ignore_errors=True)
    for board in boards:
        ranking_of_runs = RankedTable.of(RankingKind.RUNS, board)
        print_ranking("Comparison on the validation images", ranking_of_runs)
    where = views.address(run_log.client_of(uri), uri, run_id, children=True)
    print_lines(f"parent run {run_id}", f"see it: {where}")
    failed = [f"{outcome.name}: {outcome.reason}" for outcome in outcomes if outcome.reason]
    head = [f"{len(failed)} of {len(outcomes)} runs FAILED:"] if failed else []
    messages.raise_violations([*head, *failed])


def run_job(config: Config, overrides: Sequence[str], folder: Path, live: bool) -> None:
    """Run one resolved job of a multirun; whatever happens to it is written into ``folder``, never raised."""
    name, uri, run_id = job_name(overrides), stores.tracking_uri(config.tracking.uri), ""
    try:
        run_id = run_log.create_run(config, uri, dataset_name(config.data), name)
        with epoch_progress(name, config.epochs, live) as progress:
            result = protocol.run_to_end(_engine(), config, run_id, progress)
        outcome = _finished(name, config, result)
    except Exception as error:  # whatever it is, it is this job's alone: the others go on
        reason = str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {error}"
        outcome = JobOutcome(name, reason=reason)
        console.print_error(f"{name}: FAILED: {reason}")
        if run_id:
            run_log.close_run(uri, run_id, "FAILED", reason)
    if not live:  # the next job may be another process's
        _engine().stop()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME).write_bytes(pickle.dumps(outcome))


@cache
def _engine() -> protocol.Engine:
    """The engine of the jobs that this process runs: the figures of one are drawn while the next is trained."""
    return protocol.ENGINES["local"](protocol.EngineContext())


def _elsewhere(plan: Plan, parent_run_id: str, experiment: str) -> list[JobOutcome]:
    """Run all jobs on the engine that the plan names."""
    assert plan.context is not None
    os.environ["DIGIT_STUDY_SETTLED"] = "\n".join(plan.resolved_overrides())
    names = [job_name(job.overrides) for job in plan.jobs]
    configs = [job.config for job in plan.jobs]
    places = [
        replace(one.tracking, parent_run_id=parent_run_id, experiment=experiment) for one in configs
    ]
    configs = [replace(one, tracking=place) for one, place in zip(configs, places, strict=True)]
    jobs = [replace(job, config=config) for job, config in zip(plan.jobs, configs, strict=True)]
    ends = elsewhere.run_jobs(jobs, names, plan.context)
    return [
        JobOutcome(name, reason=end) if isinstance(end, str) else _finished(name, config, end)
        for name, config, end in zip(names, configs, ends, strict=True)
    ]


def _finished(name: str, config: Config, result: protocol.TrialResult) -> JobOutcome:
    correct = result.evaluation.predicted == result.evaluation.labels
    candidate = ranking.Candidate(
        name, result.run_id, result.metrics, correct, str(config.data.sha256)
    )
    return JobOutcome(name, candidate)


def job_name(overrides: Sequence[str]) -> str:
    """Short name of a job: the overrides that it does not share with the others of its multirun."""
    shared, resolved = (
        os.environ.get(f"DIGIT_STUDY_{what}", "").split("\n") for what in ("SHARED", "SETTLED")
    )
    typed = [
        text
        for text in overrides
        if text not in resolved and not text.startswith(("hydra", "tracking."))
    ]
    return " ".join([text for text in typed if text not in shared] or typed) or "default"


def unsent(what: str, kept: Path | str) -> str:
    """What to say of a result that the tracking store did not take."""
    said = f"training ended, but the tracking store did not take the result ({what}): it is kept in {kept}"
    return f"{said}, and sent by the next command of any kind once the store answers"


def _rank(log: run_log.RunLog, finished: Sequence[ranking.Candidate]) -> list[pd.DataFrame]:
    """Rank those on equal data together, and put table and figure on the parent."""
    digests = dict.fromkeys(candidate.digest for candidate in finished)
    boards = [
        ranking.leaderboard([one for one in finished if one.digest == digest]) for digest in digests
    ]
    for number, board in enumerate(boards, start=1):
        name = "comparison" if number == 1 else f"comparison_{number}"
        charts.write_table(board, log.folder, name)
        figure = leaderboard_figure(board, "Validation accuracy")
        charts.save(figure, log.folder / "figures" / f"{name}.png")
    if len(boards) == 1:
        log.best(boards[0], f"{len(boards[0])} runs")
    return boards


def _describe(
    log: run_log.RunLog, plan: Plan, boards: Sequence[pd.DataFrame], failed: Sequence[str]
) -> None:
    """Put the answer and the first ten on the parent's page."""
    answer = (
        "; ".join(ranking_answer(board, "run") for board in boards) or "no run has finished yet"
    )
    asked = runs_question(len(plan.jobs), plan.typed)
    figures = [f"figures/{name}.png" for name in ("comparison", "class_counts", "samples")]
    configs = [messages.flatten(job.config) for job in plan.jobs]
    differing = [key for key in configs[0] if len({str(config[key]) for config in configs}) > 1]
    table = RankedTable.of(RankingKind.RUNS, boards[0]) if boards else None
    note = RunDescription(answer, asked, table, failed[:5], figures)
    log.describe(note, differing)
