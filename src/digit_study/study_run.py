"""A study from its plan to its leaderboard: the stores, the parent run, the sweep, the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml
from optuna.study import Study
from optuna.trial import TrialState

from digit_study import console, data, report, stores, study_report, study_store, tracking, workers
from digit_study.composition import ROOT
from digit_study.config import flatten
from digit_study.errors import StudyError
from digit_study.evaluation import accuracy_interval
from digit_study.interruption import Interrupted
from digit_study.pool import Pool, Worker, in_process
from digit_study.search_config import objectives_of
from digit_study.study_display import display
from digit_study.study_plan import StudyPlan
from digit_study.study_report import StudyView
from digit_study.sweep import Setting, Sweep, ranked

PARENT = "parent_run_id"


def run_study(plan: StudyPlan, launch: Callable[..., Worker] = in_process) -> StudyView:
    """Search until the declared total is met, then report; an interrupted study goes on with the same command.

    Args:
        plan: a sound study.
        launch: starts a trial; benchmarks and tests hand in a cheap one.

    Raises:
        StudyError: the study is not the one that was begun, or too many trials failed.
        Interrupted: a signal came; both stores are left without anything RUNNING.
    """
    study = study_store.open_study(plan.study, plan.run, plan.overrides)
    if launch is in_process:
        workers.warm_up()
    stores.prepare_store(plan.uri)
    parent = _parent_run(plan, study)
    log = tracking.RunLog(plan.uri, parent)
    view = StudyView(
        study, plan.dimensions, objectives_of(plan.study.search), plan.uri, str(plan.run.data.sha256), plan.workers
    )
    status = "FAILED"
    try:
        _sweep(plan, view, parent, launch)
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        console.complain(f"interrupted: the same command goes on with study '{plan.study.study}'")
        raise
    finally:
        if status != "KILLED":
            _report(plan, view, log)
        log.end(status, {"study": plan.study.study})
    if plan.study.search.confirm:
        from digit_study.confirmation import confirm

        confirm(plan, study, launch)
    return view


def _sweep(plan: StudyPlan, view: StudyView, parent: str, launch: Callable[..., Worker]) -> None:
    search = plan.study.search
    experiment = tracking.experiment_name(plan.run, plan.dataset)
    setting = Setting(plan.study, plan.overrides, plan.run, plan.dataset, plan.dimensions, plan.uri, parent, experiment)
    pool = Pool(plan.workers, search.trial_timeout, search.trial_memory, launch)
    with display(lambda: best_so_far(view)) as shown:
        Sweep(setting, view.study, pool, shown).run()


def _parent_run(plan: StudyPlan, study: Study) -> str:
    """Find the parent run of a study again, or create it with the two pictures of the digits."""
    with study_store.turn(plan.study.study):
        known = study.user_attrs.get(PARENT)
        if known is not None and tracking.reopen_run(plan.uri, known):
            _close_leftovers(plan, study, known)
            return str(known)
        run_id = tracking.create_run(
            plan.run, plan.uri, plan.dataset, f"study {plan.study.study}", kind="study", study=plan.study.study
        )
        study.set_user_attr(PARENT, run_id)
    log = tracking.RunLog(plan.uri, run_id)
    log.config(plan.run)
    (log.folder / "study.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(flatten(plan.study), default=str))))
    report.write_data_pictures(data.load_digits(plan.run.data), log.folder)
    return run_id


def _close_leftovers(plan: StudyPlan, study: Study, parent: str) -> None:
    """Close runs that a killed supervisor left RUNNING, but for those of trials whose supervisor lives."""
    orphaned = {trial.number for trial in study_store.orphans(study)}
    running = {trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}
    alive = {str(number) for number in running - orphaned}
    tracking.close_children(plan.uri, parent, "KILLED", spare=lambda tags: tags.get("trial.number") in alive)


def best_so_far(view: StudyView) -> str:
    """The best trial by the first objective, with its interval where that is an accuracy."""
    complete = [trial for trial in view.trials(TrialState.COMPLETE) if study_report.is_feasible(trial)]
    if not complete:
        return "none yet"
    best = ranked(complete, view.study)[0]
    return f"trial {best.number}, {_valued(view, best.values[0])}"


def _valued(view: StudyView, value: float) -> str:
    images = view.study.user_attrs.get("validation_images")
    if view.objective != "val_accuracy" or not images:
        return f"{view.objective} {value:.6g}"
    low, high = accuracy_interval(round(value * images), images)
    return console.accuracy_with_interval({"val_accuracy": value, "val_accuracy_low": low, "val_accuracy_high": high})


def _report(plan: StudyPlan, view: StudyView, log: tracking.RunLog) -> None:
    board = study_report.leaderboard(view)
    study_report.write(view, board, log.folder)
    terminal = console.console()
    if board.empty:
        raise StudyError(
            f"study '{plan.study.study}' has no finished trial that keeps the constraints; see {stores.look(plan.uri)}"
        )
    best = board.iloc[0]
    log.metrics({"best_val_accuracy": best["val_accuracy"], "trials": len(view.trials())})
    log.tags({"best.run_id": best["run_id"], "best.name": best["name"]})
    terminal.print(console.leaderboard_table(board.head(10), f"Leaderboard of study '{plan.study.study}'"))
    line = override_line(plan, view)
    path = study_store.STUDIES / f"{plan.study.study}.best.txt"
    path.write_text(line + "\n")
    terminal.print(f"best config (also in {_relative(path)}):\n  {line}")
    terminal.print(f"next:\n  python sweeps/confirm.py study={plan.study.study}\n  {stores.look(plan.uri)}")


def override_line(plan: StudyPlan, view: StudyView) -> str:
    """The command that trains the best trial's configuration again, with its seed."""
    complete = [trial for trial in view.trials(TrialState.COMPLETE) if study_report.is_feasible(trial)]
    best = ranked(complete, view.study)[0]
    not_run = ("search", "confirm", "study", "tracking.", *best.params)
    typed = [text for text in plan.overrides if not text.lstrip("+~").startswith(not_run)]
    chosen = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in best.params.items()]
    settled = [f"training.seed={best.user_attrs['training.seed']}", f"training.threads={plan.run.training.threads}"]
    return " ".join(["python src/run.py", *typed, *chosen, *settled])


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT)
