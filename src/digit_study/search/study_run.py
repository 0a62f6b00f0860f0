"""A study from its plan to its leaderboard: the stores, the parent run, the sweep, the report."""

from __future__ import annotations

import gc
import json
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from digit_study.config.compose import ROOT
from digit_study.config.run import flatten
from digit_study.config.study import objectives_of
from digit_study.data import digits as data
from digit_study.engine import process as workers
from digit_study.engine.local import Pool, Worker, in_process
from digit_study.evaluation.metrics import accuracy_interval
from digit_study.search import storage, study_report, study_store, supervision
from digit_study.search.study_display import board_table, display, front_table
from digit_study.search.study_plan import StudyPlan
from digit_study.search.study_report import StudyView
from digit_study.search.study_store import CREATOR
from digit_study.search.sweep import Sweep
from digit_study.search.trial_ends import RUN_ID, SEED, Setting, ranked, standing
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.terminal.signals import Interrupted
from digit_study.tracking import run_log as tracking
from digit_study.tracking import stores
from digit_study.training import artifacts as report

#: Seconds that the process that began a study needs at most until its parent run is in MLflow.
PARENT_WITHIN_S = 60.0


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
    # a trial that was stopped while it wrote still holds its lock on the tracking store: first of all it must go
    for trial in supervision.orphans(study):
        supervision.end_worker(trial)
    if launch is in_process:
        workers.warm_up()
    stores.prepare_store(plan.uri)
    parent = _parent_run(plan, study)
    view = StudyView(
        study, plan.dimensions, objectives_of(plan.study.search), plan.uri, str(plan.run.data.sha256), plan.workers
    )
    status = "FAILED"
    try:
        _describe(plan, parent)
        _sweep(plan, view, parent, launch)
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        console.complain(f"interrupted: the same command goes on with study '{plan.study.study}'")
        raise
    finally:
        _end(plan, view, parent, status)
    if plan.study.search.confirm:
        from digit_study.verify.confirmation import confirm

        confirm(plan, study, launch)
    return view


def _describe(plan: StudyPlan, parent: str) -> None:
    log = tracking.RunLog(plan.uri, parent)
    log.config(plan.run)
    said = {**flatten(plan.study), "search.storage": storage.describe_storage(plan.study)}  # may hold a password
    (log.folder / "study.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(said, default=str))))
    report.write_data_pictures(data.load_digits(plan.run.data), log.folder)


def _sweep(plan: StudyPlan, view: StudyView, parent: str, launch: Callable[..., Worker]) -> None:
    search = plan.study.search
    experiment = tracking.experiment_name(plan.run, plan.dataset)
    setting = Setting(plan.study, plan.overrides, plan.run, plan.dataset, plan.dimensions, plan.uri, parent, experiment)
    pool = Pool(plan.workers, search.trial_timeout, search.trial_memory, launch)
    gc.freeze()  # what the imports left need not be gone through again in every collection of garbage
    with display(BestSoFar(view)) as shown:
        Sweep(setting, view.study, pool, shown).run()


def _end(plan: StudyPlan, view: StudyView, parent: str, status: str) -> None:
    """Report and end the parent run; supervisors of one study in turn, for it has one folder on this machine."""
    with supervision.lock(f"{plan.study.study}.report"):
        log = tracking.RunLog(plan.uri, parent)
        try:
            if status != "KILLED":
                _report(plan, view, log, status)
        except BaseException as error:
            status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
            raise
        finally:
            log.end(status, {"study": plan.study.study})


def _parent_run(plan: StudyPlan, study: Study) -> str:
    """Find the parent run of a study again, or create it.

    Raises:
        StudyError: the study has trials whose runs are in another tracking store.
    """
    _await_creator(plan, study)
    with supervision.turn(plan.study.study):
        known = study_report.parent_of(study, plan.uri)
        if known is not None and tracking.reopen_run(plan.uri, known):
            return known
        if any(RUN_ID in trial.user_attrs for trial in study.get_trials(deepcopy=False)):
            raise study_report.kept_elsewhere(plan.study.study, plan.uri)
        name, tags = f"study {plan.study.study}", study_report.mark_of(study)
        return tracking.create_run(plan.run, plan.uri, plan.dataset, name, study=plan.study.study, **tags)


def _await_creator(plan: StudyPlan, study: Study) -> None:
    """Leave the parent run to the process that began the study, while that lives: two would be one too many."""
    me = supervision.supervisor()
    creator = study.user_attrs.get(CREATOR, me)
    deadline = time.monotonic() + PARENT_WITHIN_S
    while creator != me and supervision.is_alive(creator) and time.monotonic() < deadline:
        if study_report.parent_of(study, plan.uri) is not None:
            return
        time.sleep(0.5)


class BestSoFar:
    """The best trial by the first objective as text, with its interval where that is an accuracy.

    Every trial is looked at once: a study may have thousands, and this is asked for at the end of each.
    """

    def __init__(self, view: StudyView) -> None:
        self.view, self.seen = view, set[int]()
        self.best: FrozenTrial | None = None

    def __call__(self) -> str:
        """What is best by now, or that nothing is yet."""
        new = [one for one in self.view.trials(TrialState.COMPLETE) if one.number not in self.seen]
        self.seen.update(one.number for one in new)
        known = [self.best] if self.best else []
        self.best = min([*known, *new], key=lambda one: standing(one, self.view.study), default=None)
        if self.best is None or not study_report.is_feasible(self.best):
            return "none yet"
        return f"trial {self.best.number}, {_valued(self.view, self.best.values[0])}"


def _valued(view: StudyView, value: float) -> str:
    images = view.study.user_attrs.get("validation_images")
    if view.objective != "val_accuracy" or not images:
        return f"{view.objective} {value:.6g}"
    low, high = accuracy_interval(round(value * images), images)
    return console.accuracy_with_interval({"val_accuracy": value, "val_accuracy_low": low, "val_accuracy_high": high})


def _report(plan: StudyPlan, view: StudyView, log: tracking.RunLog, status: str) -> None:
    board = study_report.leaderboard(view)
    study_report.write(view, board, log.folder)
    if board.empty:
        if status == "FAILED":  # and that says why
            return
        raise StudyError(
            f"study '{plan.study.study}' has no finished trial that keeps the constraints; see {stores.look(plan.uri)}"
        )
    best = board.iloc[0]
    log.metrics({"best_val_accuracy": best["val_accuracy"], "trials": len(view.trials())})
    log.tags({"best.run_id": best["run_id"], "best.name": best["name"]})
    line = override_line(plan, view)
    path = storage.folder() / f"{plan.study.study}.best.txt"
    path.write_text(line + "\n")
    terminal = console.console()
    terminal.print(board_table(board.head(10), f"Leaderboard of study '{plan.study.study}'"))
    if len(view.objectives) > 1:
        terminal.print(front_table(study_report.pareto_frame(view), view.objectives))
    terminal.print(f"best config (also in {_relative(path)}):\n  {line}", soft_wrap=True)
    places = {"search.storage": plan.study.search.storage, "tracking.uri": plan.run.tracking.uri}
    where = storage.address(plan.study.study, places)
    terminal.print(f"next:\n  python sweeps/confirm.py {where}\n  {stores.look(plan.uri)}", soft_wrap=True)


def override_line(plan: StudyPlan, view: StudyView) -> str:
    """The command that trains the best trial's configuration again, with its seed."""
    complete = [trial for trial in view.trials(TrialState.COMPLETE) if study_report.is_feasible(trial)]
    best = ranked(complete, view.study)[0]
    recipe = plan.run.training
    chosen = {**best.params, "training.seed": best.user_attrs[SEED], "training.threads": recipe.threads}
    chosen.setdefault("training.precision", recipe.precision)
    typed = [text for text in plan.overrides if _describes_run(text, chosen)]
    return " ".join(["python src/run.py", *map(shlex.quote, typed), *(_override(*pair) for pair in chosen.items())])


def _describes_run(override: str, chosen: Mapping[str, Any]) -> bool:
    key = override.lstrip("+~").split("=")[0]
    return key not in chosen and key.split(".")[0].split("/")[0] not in ("search", "confirm", "study", "tracking")


def _override(key: str, value: Any) -> str:
    """``key=value`` as Hydra and a shell read it."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return shlex.quote(f"{key}={text}")


def _relative(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
