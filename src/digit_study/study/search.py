"""Search: a study from its plan to its leaderboard.

The way of a trial: this file → :mod:`digit_study.study.optuna_source` (what is trained next, and
how it ended) → :mod:`digit_study.trial.runner` (keeps the engine busy) →
:mod:`digit_study.trial.run_trial` (one configuration to one tracked run) →
:mod:`digit_study.tracking.session` (both stores).
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import yaml

from digit_study.report.tables import front_table
from digit_study.report.terminal import print_lines, print_next, print_ranking, print_table
from digit_study.study import results as study_results
from digit_study.study.optuna_source import OptunaSource
from digit_study.study.parent_run import parent_run
from digit_study.study.results import RunResults
from digit_study.study.storage import CREATOR, StoredStudy, open_study, orphans, study_lock
from digit_study.study.study_plan import StudyPlan, address_of, describe_storage
from digit_study.study.trial_attributes import RUN_ID, WORKER
from digit_study.support import console, processes
from digit_study.support.errors import StudyError
from digit_study.support.progress import sweep_progress
from digit_study.support.redaction import without_password
from digit_study.support.rules import flatten
from digit_study.support.trial_status import STATUS_TAG
from digit_study.tracking.location import view_command
from digit_study.tracking.pages import INITIAL
from digit_study.tracking.session import Tracker, session
from digit_study.tracking.writer import RunWriter
from digit_study.trial.health import Health
from digit_study.trial.protocol import ENGINES, Engine, EngineContext
from digit_study.trial.runner import Runner

#: Seconds that the process which created a study has to create its run.
PARENT_WITHIN_S = 60.0
#: Rows of the leaderboard on the terminal.
PRINTED_ROWS = 10


def run_study(
    plan: StudyPlan,
    open_engine: Callable[[EngineContext], Engine] | None = None,
    results: RunResults | None = None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    *,
    health: Health | None = None,
    open_session: Callable[..., AbstractContextManager[Tracker]] = session,
) -> StoredStudy:
    """Search until the declared total is met, then report; the same call resumes.

    Args:
        plan: The study.
        open_engine: Makes the engine; by default that of ``search.engine``.
        results: Keeps what trials leave, for whoever reports on them later.
        around: Left when everything is reported, while the store can still be asked.
        health: Watches over what trials need; by default that of the plan.
        open_session: Opens the tracking store as :func:`digit_study.tracking.session.session` does.

    Raises:
        StudyError: If the study is not the one that was begun, or too many trials failed.
        Interrupted: After a signal; both stores are then left without anything RUNNING.
    """
    search = plan.study.search
    stored = open_study(plan.study, plan.run, plan.overrides, plan.workspace)
    # a worker that was suspended while it wrote still holds its lock on the tracking store
    for trial in orphans(stored):
        processes.end_process(trial.user_attrs.get(WORKER))
    engine = (open_engine or ENGINES[search.engine])(plan.context)
    timeout = search.outage_timeout
    if results is None:
        results = RunResults(Tracker(plan.uri, plan.workspace))
    opened = open_session(plan.uri, plan.workspace, timeout, "search.outage_timeout")
    with opened as tracker, around():
        _search(plan, stored, engine, results, tracker, health or plan.health())
        if tracker.fault is not None:
            # what is around this may ask the store
            tracker.wait()
    return stored


def find_parent(tracker: Tracker, stored: StoredStudy) -> str | None:
    """Return the id of a study's run, None where this store does not have it."""
    return tracker.find_run({"kind": "study", "study.uid": stored.uid})


class NoParentError(StudyError):
    """The run of a study is not in the store, so that there is nothing to report on."""


def no_parent(plan: StudyPlan, stored: StoredStudy, tracker: Tracker) -> NoParentError:
    """Return the error of a study whose run is not there: deleted, gone, or in another store."""
    name = plan.study.study
    deleted = tracker.find_run({"kind": "study", "study.uid": stored.uid}, is_deleted=True)
    if deleted is not None:
        command = tracker.restore_command(deleted)
        return NoParentError(
            f"the run of study '{name}' was deleted in MLflow: restore it with `{command}`"
        )
    fresh = f"python sweeps/optuna_search.py {address_of(plan.study)} search.fresh=true"
    trials = [trial.user_attrs[RUN_ID] for trial in stored.trials() if RUN_ID in trial.user_attrs]
    if any(tracker.has_run(run_id) for run_id in trials):
        return NoParentError(
            f"the run of study '{name}' is gone from MLflow for good (by `mlflow gc`): search "
            f"again with `{fresh}`"
        )
    return NoParentError(
        f"the runs of study '{name}' are not in {without_password(plan.uri)}: set "
        "MLFLOW_TRACKING_URI to the store that it was begun with; if `mlflow gc` has removed them "
        f"from there, search again with `{fresh}`"
    )


def require_parent(plan: StudyPlan, stored: StoredStudy, tracker: Tracker) -> str:
    """Return the id of a study's run.

    Raises:
        NoParentError: If this store does not have it.
    """
    found = find_parent(tracker, stored)
    if found is None:
        raise no_parent(plan, stored, tracker)
    return found


def _search(
    plan: StudyPlan,
    stored: StoredStudy,
    engine: Engine,
    results: RunResults,
    tracker: Tracker,
    health: Health,
) -> None:
    """Run the trials of a study and report on them."""
    run_id = _open_parent(plan, stored, tracker)
    with parent_run(
        tracker,
        run_id,
        plan.run,
        interrupted=f"interrupted: the same command goes on with study '{plan.study.study}'",
        report=partial(_report, plan, stored, results),
        lock=study_lock(plan.workspace, plan.study.study, "report"),
    ) as writer:
        writer.describe(study_results.description(plan, stored), plan.keys, [STATUS_TAG])
        _write_study_config(plan, writer)
        # what the imports left need not be gone through in every collection of garbage
        gc.freeze()
        began = time.monotonic()
        with sweep_progress(study_results.BestSoFar(plan, stored)) as progress:
            source = OptunaSource(plan, stored, tracker, run_id, results, progress)
            source.join()
            runner = Runner(engine, tracker, health, awaits_upload=stored.database is not None)
            runner.run(source)
        if source.stop_reason is not None:
            raise StudyError(source.stop_reason)
        missing = source.missing_at_timeout
        if missing:
            print_lines(
                f"the time is over (search.timeout={plan.study.search.timeout:g}): "
                f"{missing} of {plan.study.search.trials} trials are left, the same "
                "command goes on"
            )
        _log_efficiency(plan, writer, source.step_seconds, time.monotonic() - began)


def _open_parent(plan: StudyPlan, stored: StoredStudy, tracker: Tracker) -> str:
    """Find the run of a study again, or create it.

    Raises:
        StudyError: If its runs are in another store.
    """
    study = plan.study.study
    _await_creator(stored, tracker)
    with study_lock(plan.workspace, study, "turn"):
        known = find_parent(tracker, stored)
        if known is not None:
            tracker.reopen_run(known)
            return known
        if any(RUN_ID in trial.user_attrs for trial in stored.trials()):
            raise no_parent(plan, stored, tracker)
        tags = {**INITIAL, "study": study, "kind": "study", "study.uid": stored.uid}
        return tracker.create_run(plan.run, plan.dataset, f"study {study}", **tags)


def _await_creator(stored: StoredStudy, tracker: Tracker) -> None:
    """Leave the creation of the run to the process that created the study, while that lives."""
    creator = stored.study.user_attrs.get(CREATOR)
    if creator in (processes.process_name(), None):
        return
    deadline = time.monotonic() + PARENT_WITHIN_S
    while processes.is_alive(creator) and time.monotonic() < deadline:
        if find_parent(tracker, stored) is not None:
            return
        time.sleep(0.5)


def _write_study_config(plan: StudyPlan, writer: RunWriter) -> None:
    """Keep the config of a study as an artifact, without any password."""
    values = {**flatten(plan.study), "search.storage": describe_storage(plan)}
    plain = json.loads(json.dumps(values, default=str))
    (writer.folder / "study.yaml").write_text(yaml.safe_dump(plain))


def _log_efficiency(
    plan: StudyPlan, writer: RunWriter, step_seconds: float, seconds: float
) -> None:
    """Log which share of the workers' time was training steps, in [0, 1]."""
    if step_seconds == 0.0:
        # all trials had been there already
        return
    efficiency = step_seconds / (plan.workers * seconds)
    writer.metrics({"sweep_efficiency": efficiency})
    console.console().print(
        f"training steps took {100 * efficiency:.0f} % of the workers' time "
        f"({plan.workers} × {seconds:.0f} s)"
    )


def _report(
    plan: StudyPlan, stored: StoredStudy, results: RunResults, writer: RunWriter, status: str
) -> None:
    """Put the leaderboard on the study's run, on the terminal and on disk.

    Raises:
        StudyError: If no trial finished, unless the study fails for another reason.
    """
    if status == "KILLED":
        writer.describe(study_results.description(plan, stored), plan.keys, [STATUS_TAG])
        return
    board = study_results.leaderboard(plan, stored, results)
    machines = study_results.machines(stored, writer.run_id, results)
    study_results.write(plan, stored, board, writer.folder)
    description = study_results.description(plan, stored, board, machines)
    writer.describe(description, plan.keys, [STATUS_TAG])
    if board.empty and status == "FAILED":
        return
    if board.empty:
        raise StudyError(
            f"study '{plan.study.study}' has no finished trial that keeps the constraints; see "
            f"{view_command(plan.uri, plan.workspace)}"
        )
    # a number of trials has one best: trials that wait count once they have run
    trials = sum(trial.state.is_finished() for trial in stored.trials())
    best_trial = float(str(board.iloc[0]["name"]).split(":")[0])
    writer.best(board, f"{trials} trials")
    writer.metrics({"best_trial": best_trial, "trials": trials})
    ranking = study_results.ranking_of(board)
    print_ranking(f"Leaderboard of study '{plan.study.study}'", ranking, most_rows=PRINTED_ROWS)
    if next(iter(plan.objectives)) != "val_accuracy":
        best = study_results.BestSoFar(plan, stored)()
        print_lines(f"ranked by validation accuracy; best by the objective: {best}")
    if machines:
        print_lines(machines)
    if len(plan.objectives) > 1:
        print_table(front_table(study_results.pareto_front(plan, stored), plan.objectives))
    _print_next_steps(plan, stored, results, writer.run_id)


def _print_next_steps(
    plan: StudyPlan, stored: StoredStudy, results: RunResults, run_id: str
) -> None:
    """Print the best configuration as a command, which is also kept, and what to do next."""
    command = study_results.best_command(plan, stored)
    path = plan.workspace.studies / f"{plan.study.study}.best.txt"
    path.write_text(command + "\n")
    print_lines(f"best config (also in {plan.workspace.shown(path)}):", f"  {command}")
    confirm = f"python sweeps/confirm.py {address_of(plan.study)}"
    print_next(confirm, results.tracker.address(run_id, children=True))
