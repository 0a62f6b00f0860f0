"""A study as tables and pictures: leaderboard with ties, history, importances, slices, timeline, Pareto front."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from digit_study.evaluation import charts as figures
from digit_study.evaluation.ranking import Candidate, Group, pooled_leaderboard
from digit_study.search import study_figures
from digit_study.search.space import Dimension, fingerprint
from digit_study.search.study_store import UID
from digit_study.search.trial_ends import RUN_ID
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError
from digit_study.terminal.redaction import without_password
from digit_study.tracking import lookups
from digit_study.tracking import run_log as tracking
from digit_study.training import artifacts as report
from digit_study.verify import comparison_figures


@dataclass(frozen=True)
class StudyView:
    """A study, and what is needed to speak of it.

    Attributes:
        study: the Optuna study.
        dimensions: what is searched.
        objectives: metric to direction, the first one ranks.
        uri: the tracking store that holds the trials' runs.
        digest: sha256 of the data.
        workers: trials at a time.
    """

    study: Study
    dimensions: list[Dimension]
    objectives: dict[str, str]
    uri: str
    digest: str
    workers: int

    @property
    def objective(self) -> str:
        """The metric that ranks."""
        return next(iter(self.objectives))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in ``states``, or all."""
        return self.study.get_trials(deepcopy=False, states=states or None)


def mark_of(study: Study) -> dict[str, str]:
    """The tags by which the parent run of a study is found."""
    return {"kind": "study", "study.uid": str(study.user_attrs[UID])}


def parent_of(study: Study, uri: str) -> str | None:
    """The parent run of a study; None where this tracking store does not have it."""
    return lookups.find_run(uri, mark_of(study))


def kept_elsewhere(name: str, uri: str) -> StudyError:
    """What to say of a study whose runs are in another store."""
    return StudyError(
        f"the runs of study '{name}' are not in {without_password(uri)}: set MLFLOW_TRACKING_URI to the store "
        "that it was begun with, or start it anew with search.fresh=true"
    )


def name_of(trial: FrozenTrial, dimensions: Sequence[Dimension]) -> str:
    """Params as short text: the last part of every key and its value, in the order of the space."""
    parts = []
    for one in dimensions:
        if one.key in trial.params:
            value = trial.params[one.key]
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            parts.append(f"{one.key.split('.')[-1]}={shown}")
    return " ".join(parts)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial keeps every constraint."""
    return all(value <= 0 for value in trial.constraints.values())


def leaderboard(view: StudyView) -> pd.DataFrame:
    """Configurations by validation accuracy, replicates pooled; see :func:`selection.pooled_leaderboard`."""
    groups: dict[str, list[Candidate]] = {}
    for trial in view.trials(TrialState.COMPLETE):
        if is_feasible(trial) and RUN_ID in trial.user_attrs:
            name = f"{trial.number}: {name_of(trial, view.dimensions)}"
            found = candidate(view, name, trial.user_attrs[RUN_ID])
            if found is not None:
                groups.setdefault(fingerprint(trial.params), []).append(found)
    named = [Group(group[0].name, group) for group in groups.values()]
    return pooled_leaderboard(named)


def candidate(view: StudyView, name: str, run_id: str) -> Candidate | None:
    """A finished run of the study, with its per-image validation readings; None where MLflow has it no more."""
    try:
        table = pd.read_csv(io.StringIO(lookups.read_text(view.uri, run_id, "tables/predictions.csv")))
        metrics = lookups.finished_metrics(view.uri, run_id) or {}
    except tracking.StoreFault as fault:
        console.warn(f"{name} is not ranked, its run {run_id} cannot be read: {tracking.first_line(fault)}")
        return None
    return Candidate(name, run_id, metrics, table.sort_values("index")["correct"].to_numpy(bool), view.digest)


def trials_frame(view: StudyView) -> pd.DataFrame:
    """One row a trial: number, state, value, started, finished, every objective and every searched key."""
    rows = [_row(trial, view) for trial in view.trials()]
    return pd.DataFrame(rows, columns=None if rows else ["number", "state", "value"])


def _row(trial: FrozenTrial, view: StudyView) -> dict[str, Any]:
    values = trial.values or [np.nan] * len(view.objectives)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": values[0],
        "started": pd.Timestamp(trial.datetime_start) if trial.datetime_start else pd.NaT,
        "finished": pd.Timestamp(trial.datetime_complete) if trial.datetime_complete else pd.NaT,
        "seed": trial.user_attrs.get("training.seed"),
        "replicate_of": trial.user_attrs.get("replicate_of"),
        "reason": trial.user_attrs.get("reason", ""),
        "run_id": trial.user_attrs.get(RUN_ID, ""),
        **(dict(zip(view.objectives, values, strict=True)) if trial.values else {}),
        **{one.key: trial.params.get(one.key) for one in view.dimensions},
    }


def importances(view: StudyView) -> dict[str, float]:
    """Importance of every searched key for the first objective (PED-ANOVA); empty where there are too few trials."""
    complete = view.trials(TrialState.COMPLETE)
    if len(complete) < 4:
        return {}
    target: Callable[[FrozenTrial], float] | None = (
        (lambda trial: trial.values[0]) if len(view.objectives) > 1 else None
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dict(optuna.importance.get_param_importances(view.study, target=target))
    except (ValueError, RuntimeError):  # all values are equal, or every key was conditional
        return {}


def pictures(view: StudyView, trials: pd.DataFrame) -> dict[str, Figure]:
    """Every picture that applies to this study, by file name."""
    objective, maximise = view.objective, view.objectives[view.objective] == "maximize"
    keys = [one.key for one in view.dimensions]
    log = {one.key for one in view.dimensions if one.log}
    found = view.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    drawn = {
        "optimisation_history": study_figures.optimisation_history(trials, objective, maximise),
        "importances": study_figures.importances(importances(view), objective),
        "slices": study_figures.slices(trials, keys, log, objective),
        "parallel_coordinates": study_figures.parallel_coordinates(trials, keys, log, objective),
        "timeline": study_figures.timeline(trials, view.workers),
    }
    if len(view.objectives) == 1:
        curves = {trial.number: dict(trial.intermediate_values) for trial in found if trial.intermediate_values}
        states = {trial.number: trial.state.name for trial in found}
        drawn["intermediate_values"] = study_figures.intermediate_values(curves, states, objective)
    else:
        drawn["pareto"] = comparison_figures.pareto(pareto_frame(view), view.objectives)
    return drawn


def pareto_frame(view: StudyView) -> pd.DataFrame:
    """One row a feasible complete trial: number, every objective, front (whether no other is better in all)."""
    best = {trial.number for trial in view.study.best_trials}
    rows = [
        {"number": t.number, **dict(zip(view.objectives, t.values, strict=True)), "front": t.number in best}
        for t in view.trials(TrialState.COMPLETE)
        if is_feasible(t)
    ]
    return pd.DataFrame(rows, columns=["number", *view.objectives, "front"])


def write(view: StudyView, board: pd.DataFrame, folder: Path) -> None:
    """Write every table and picture of the study into ``folder``."""
    trials = trials_frame(view)
    report.write_table(trials, folder, "trials")
    report.write_table(board, folder, "leaderboard")
    if len(view.objectives) > 1:
        report.write_table(pareto_frame(view).query("front"), folder, "pareto")
    if len(board):
        figures.save(figures.comparison(board, "Leaderboard, validation"), folder / "figures" / "leaderboard.png")
    for name, picture in pictures(view, trials).items():
        figures.save(picture, folder / "figures" / f"{name}.png")
