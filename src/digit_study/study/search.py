"""A study from its plan to its leaderboard: the stores, the parent run, the sweep, the report."""

import gc
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import yaml

from digit_study.data.digits import load_digits
from digit_study.report.figures import run_figures as figures
from digit_study.report.tables import front_table
from digit_study.report.terminal import print_lines, print_next, print_ranking, print_table
from digit_study.study import results as report
from digit_study.study.optuna_source import Sweep
from digit_study.study.outcomes import RUN_ID
from digit_study.study.results import RunResults
from digit_study.study.storage import CREATOR, UID, WORKER, StoredStudy, lock, open_study, orphans
from digit_study.study.study_plan import StudyPlan, describe_storage, studies_folder
from digit_study.support import console, machine
from digit_study.support.messages import StudyError, flatten, without_password
from digit_study.support.progress import sweep_progress
from digit_study.support.signals import Interrupted
from digit_study.support.workspace import Workspace
from digit_study.tracking import database as stores
from digit_study.tracking import queries as lookup
from digit_study.tracking import views
from digit_study.tracking.runs import RunLog, reopen_run
from digit_study.tracking.session import Tracker
from digit_study.tracking.uploader import BackgroundUploader
from digit_study.trial.protocol import ENGINES, Engine, EngineContext

#: Seconds that the process that created a study needs at most until its parent run is in MLflow.
PARENT_WITHIN_S = 60.0
#: Parent runs by store and study.
_parents: dict[tuple[str, str], str] = {}


def run_study(
    plan: StudyPlan,
    open_engine: Callable[[EngineContext], Engine] | None = None,
    results: RunResults | None = None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> StoredStudy:
    """Search until the declared total is met, then report; an interrupted study goes on with the same command.

    ``open_engine`` makes the engine that trials run on; by default it is the one that ``search.engine`` names.
    ``results`` keeps what trials leave; ``around`` is left when all is reported, while the uploader still works.
    Raises StudyError if the study is not the one that was begun or too many trials failed, and Interrupted after a
    signal; both stores are then left without anything RUNNING.
    """
    stored = open_study(plan.study, plan.run, plan.overrides)
    # a trial that was suspended while it wrote still holds its lock on the tracking store: first of all it must go
    for trial in orphans(stored):
        machine.end_process(trial.user_attrs.get(WORKER))
    search = plan.study.search
    engine = (open_engine or ENGINES[search.engine])(plan.context)
    stores.prepare_store(plan.uri)
    if results is None:
        results = RunResults(Tracker(plan.uri, Workspace(stores.ARTIFACTS.parent)))
    with BackgroundUploader(plan.uri, search.outage_timeout) as uploader, around():
        _search(plan, stored, engine, results, uploader)
        if uploader.fault is not None:  # what is around this may ask the store
            uploader.wait()
    return stored


def _search(
    plan: StudyPlan,
    stored: StoredStudy,
    engine: Engine,
    results: RunResults,
    uploader: BackgroundUploader,
) -> None:
    """The parent run, from its beginning to its end."""
    parent, status = _parent_run(plan, stored, uploader), "FAILED"
    try:
        log = RunLog(plan.uri, parent)
        log.config(plan.run)
        log.describe(report.description(plan, stored), plan.keys)
        shown = {
            **flatten(plan.study),
            "search.storage": describe_storage(plan.study),
        }  # the URI may hold a password
        (log.folder / "study.yaml").write_text(
            yaml.safe_dump(json.loads(json.dumps(shown, default=str)))
        )
        digits = load_digits(plan.run.data)
        log.dataset(digits.name, digits.sha256, digits.counts())
        figures.write_data_figures(digits, log.folder)
        gc.freeze()  # what the imports left need not be gone through again in every collection of garbage
        with sweep_progress(report.BestSoFar(plan, stored)) as progress:
            sweep = Sweep(plan, stored, parent, engine, progress, uploader, results)
            sweep.run()
        if sweep.step_seconds:  # else all had been there already
            log.metrics({"sweep_efficiency": sweep.efficiency})
            share = (
                f"{sweep.efficiency:.0%} of {plan.workers} × {time.monotonic() - sweep.began:.1f} s"
            )
            console.console().print(f"{share} were training steps (sweep_efficiency)")
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        console.print_error(
            f"interrupted: the same command goes on with study '{plan.study.study}'"
        )
        raise
    finally:
        _end(plan, stored, parent, status, results)


def parent_of(plan: StudyPlan, stored: StoredStudy) -> str | None:
    """The parent run of a study, which is asked for once; None where this tracking store does not have it."""
    place = _place(plan, stored)
    if place not in _parents:
        found = lookup.find_run(plan.uri, {"kind": "study", "study.uid": place[1]})
        if found is None:
            return None
        _parents[place] = found
    return _parents[place]


def _place(plan: StudyPlan, stored: StoredStudy) -> tuple[str, str]:
    return plan.uri, str(stored.study.user_attrs[UID])


def kept_elsewhere(plan: StudyPlan) -> StudyError:
    """What to say of a study whose runs are in another store."""
    return StudyError(
        f"the runs of study '{plan.study.study}' are not in {without_password(plan.uri)}: set MLFLOW_TRACKING_URI to "
        "the store that it was begun with, or start it anew with search.fresh=true"
    )


def _parent_run(plan: StudyPlan, stored: StoredStudy, uploader: BackgroundUploader) -> str:
    """Find the parent run of a study again, or create it; raises StudyError if its runs are in another store."""
    # it is left to the process that created the study, while that lives: two would be one too many
    me = machine.process_name()
    creator, place = stored.study.user_attrs.get(CREATOR), _place(plan, stored)
    deadline = time.monotonic() + PARENT_WITHIN_S
    while creator not in (me, None) and machine.is_alive(creator) and time.monotonic() < deadline:
        if parent_of(plan, stored) is not None:
            break
        time.sleep(0.5)
    with lock(f"{plan.study.study}.turn"):
        # of one that this process has just created no store knows anything
        known = _parents.get(place) if creator == me else parent_of(plan, stored)
        if known is not None and reopen_run(plan.uri, known):
            return known
        if any(RUN_ID in trial.user_attrs for trial in stored.trials()):
            raise kept_elsewhere(plan)
        tags = {
            **views.INITIAL,
            "study": plan.study.study,
            "kind": "study",
            "study.uid": place[1],
        }
        _parents[place] = uploader.create_run(
            plan.run, plan.dataset, f"study {plan.study.study}", 0, **tags
        ).result()
        return _parents[place]


def _end(
    plan: StudyPlan, stored: StoredStudy, parent: str, status: str, results: RunResults
) -> None:
    """Report and end the parent run; supervisors of one study in turn, for it has one folder on this machine."""
    with lock(f"{plan.study.study}.report"):
        log = RunLog(plan.uri, parent)
        try:
            if status == "KILLED":
                log.describe(report.description(plan, stored), plan.keys)
            else:
                _report(plan, stored, log, status, results)
        except BaseException as error:
            status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
            raise
        finally:
            log.end(status, {"study": plan.study.study})


def _report(
    plan: StudyPlan, stored: StoredStudy, log: RunLog, status: str, results: RunResults
) -> None:
    board, name = report.leaderboard(plan, stored, results), plan.study.study
    mixture = report.machines(stored, log.run_id, results)
    report.write(plan, stored, board, log.folder)
    log.describe(report.description(plan, stored, board, mixture), plan.keys)
    if board.empty:
        if status == "FAILED":  # and that says why
            return
        raise StudyError(
            f"study '{name}' has no finished trial that keeps the constraints; see {stores.view_command(plan.uri)}"
        )
    trials = len(stored.trials())
    log.best(board, f"{trials} trials")
    log.metrics({"best_trial": float(str(board.iloc[0]["name"]).split(":")[0]), "trials": trials})
    command = report.best_command(plan, stored)
    path = studies_folder() / f"{name}.best.txt"
    path.write_text(command + "\n")
    print_ranking(f"Leaderboard of study '{name}'", report.ranking_of(board), most_rows=10)
    if mixture:
        print_lines(mixture)
    if len(plan.objectives) > 1:
        print_table(front_table(report.pareto_front(plan, stored), plan.objectives))
    print_lines(f"best config (also in {results.workspace.shown(path)}):", f"  {command}")
    confirm = f"python sweeps/confirm.py {report.address_of(plan)}"
    print_next(confirm, results.tracker.address(log.run_id, children=True))
