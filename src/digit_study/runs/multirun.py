"""One run, or Hydra's -m: a parent run, a child per job in a process of its own, and their comparison."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from digit_study.config.run import Config
from digit_study.data import digits as data
from digit_study.engine import process as workers
from digit_study.engine.trial import run_in_worker, train_here
from digit_study.evaluation.ranking import Candidate, leaderboard
from digit_study.runs.plan import Plan, run_hydra
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.terminal.signals import Interrupted
from digit_study.tracking import run_log as tracking
from digit_study.tracking import stores
from digit_study.training import artifacts as report

SUMMARY = "outcome.json"
CORRECT = "correct.npy"


@dataclass(frozen=True)
class Outcome:
    """How one job of a multirun ended; ``reason`` is empty where it finished, ``kept`` where all of it was tracked."""

    name: str
    run_id: str
    digest: str
    metrics: dict[str, float]
    reason: str = ""
    kept: str = ""


def run_single(config: Config, dataset: str, overrides: Sequence[str]) -> None:
    """Train one resolved config in this process, with progress, and end with a short table."""
    uri = stores.tracking_uri(config.tracking.uri)
    stores.prepare_store(uri)
    run_id = tracking.create_run(config, uri, dataset, job_name(overrides))
    try:
        with console.ticker(config.model.name, config.training.epochs) as ticker:
            result = train_here(config, run_id, ticker)
    except BaseException as error:  # also a Ctrl-C while TensorFlow is being imported
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        tracking.close_run(uri, run_id, status, f"{type(error).__name__}: {error}")
        raise
    console.console().print(console.run_table(result.run_id, result.metrics, stores.look(uri)))
    if result.kept:
        raise StudyError(_unsent(str(result.fault), str(result.kept)))


def run_many(plan: Plan, task: Callable[[], None]) -> None:
    """Launch every job of a multirun beneath one parent run, then rank them there and on the terminal.

    Raises:
        StudyError: jobs failed; says which and why.
    """
    first = plan.jobs[0]
    uri = stores.tracking_uri(first.config.tracking.uri)
    stores.prepare_store(uri)
    if plan.parallel == 1:
        workers.warm_up()
    run_id = tracking.create_run(first.config, uri, first.dataset, _parent_name(plan), kind="multirun")
    log = tracking.RunLog(uri, run_id)
    scratch = stores.ARTIFACTS / ".scratch" / run_id
    settled, shared = plan.settled(), set.intersection(*(set(job.overrides) for job in plan.jobs))
    status, name = "FAILED", tracking.experiment_name(first.config, first.dataset)
    try:
        scratch.mkdir(parents=True)
        os.environ.update(DIGIT_STUDY_SCRATCH=str(scratch), DIGIT_STUDY_SHARED="\n".join(shared))
        log.config(first.config)
        digits = data.load_digits(first.config.data)
        log.dataset(digits.name, digits.sha256, digits.counts())
        report.write_data_pictures(digits, log.folder)
        run_hydra(task, [*settled, f"tracking.parent_run_id={run_id}", f"tracking.experiment='{name}'"])
        outcomes = [_read(scratch / str(number), job.overrides) for number, job in enumerate(plan.jobs)]
        boards = _compare(log, outcomes)
        status = "FINISHED" if not any(outcome.reason for outcome, _ in outcomes) else "FAILED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        tracking.close_children(uri, run_id, status)
        kept = log.end(status, {})
        if kept:
            console.complain(f"the parent run: {_unsent(str(log.fault), str(kept))}")
        shutil.rmtree(scratch, ignore_errors=True)
    _report(boards, [outcome for outcome, _ in outcomes], run_id, stores.look(uri))


def run_job(config: Config, overrides: Sequence[str], folder: Path, live: bool) -> None:
    """Run one resolved job of a multirun; whatever happens to it is written into ``folder``, never raised."""
    name, uri = job_name(overrides), stores.tracking_uri(config.tracking.uri)
    outcome = Outcome(name, "", str(config.data.sha256), {})
    correct = np.zeros(0, dtype=np.bool_)
    try:
        run_id = tracking.create_run(config, uri, data.dataset_name(config.data), name)
        outcome = replace(outcome, run_id=run_id)
        with console.ticker(name, config.training.epochs, live) as ticker:
            result = run_in_worker(config, run_id, ticker)
        outcome = replace(outcome, metrics=result.metrics, kept=str(result.kept or ""))
        correct = result.evaluation.predicted == result.evaluation.labels
    except Exception as error:  # whatever it is, it is this job's alone: the others go on
        reason = str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {error}"
        outcome = replace(outcome, reason=reason)
        console.complain(f"{name}: FAILED: {reason}")
        if outcome.run_id:
            tracking.close_run(uri, outcome.run_id, "FAILED", reason)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).write_text(json.dumps(asdict(outcome)))
    np.save(folder / CORRECT, correct)


def job_name(overrides: Sequence[str]) -> str:
    """Short name of a job: the overrides that it does not share with the others of its multirun."""
    shared, settled = (os.environ.get(f"DIGIT_STUDY_{what}", "").split("\n") for what in ("SHARED", "SETTLED"))
    told = [text for text in overrides if text not in settled and not text.startswith(("hydra", "tracking."))]
    return " ".join([text for text in told if text not in shared] or told) or "default"


def _parent_name(plan: Plan) -> str:
    swept = [text for text in plan.typed if "tracking." not in text and not text.startswith("hydra")]
    return f"{len(plan.jobs)} runs: {' '.join(swept)}"[:200]


def _read(folder: Path, overrides: Sequence[str]) -> tuple[Outcome, npt.NDArray[np.bool_]]:
    try:
        return Outcome(**json.loads((folder / SUMMARY).read_text())), np.load(folder / CORRECT)
    except FileNotFoundError:
        return Outcome(job_name(overrides), "", "", {}, "it ended without a word"), np.zeros(0, dtype=np.bool_)


def _compare(log: tracking.RunLog, outcomes: Sequence[tuple[Outcome, npt.NDArray[np.bool_]]]) -> list[pd.DataFrame]:
    """Rank the finished jobs, those on equal data together, and put table and picture on the parent."""
    finished = [
        Candidate(outcome.name, outcome.run_id, outcome.metrics, correct, outcome.digest)
        for outcome, correct in outcomes
        if not outcome.reason
    ]
    digests = list(dict.fromkeys(candidate.digest for candidate in finished))
    boards = [leaderboard([one for one in finished if one.digest == digest]) for digest in digests]
    report.write_comparison(boards, log.folder)
    if len(boards) == 1:
        best = boards[0].iloc[0]
        log.metrics({"best_val_accuracy": best["val_accuracy"]})
        log.tags({"best.run_id": best["run_id"], "best.name": best["name"]})
    return boards


def _report(boards: Sequence[pd.DataFrame], outcomes: Sequence[Outcome], parent: str, look: str) -> None:
    terminal = console.console()
    for board in boards:
        terminal.print(console.leaderboard_table(board, "Comparison"))
    terminal.print(f"parent run {parent}; look at it: {look}")
    unsent = [_unsent(outcome.name, outcome.kept) for outcome in outcomes if outcome.kept]
    failed = [f"{outcome.name}: {outcome.reason}" for outcome in outcomes if outcome.reason]
    if failed:
        failed.insert(0, f"{len(failed)} of {len(outcomes)} runs FAILED:")
    if failed or unsent:
        raise StudyError("\n".join([*failed, *unsent]))


def _unsent(what: str, kept: str) -> str:
    return f"training ended, but the tracking store did not take the result ({what}): it is kept in {kept}"
