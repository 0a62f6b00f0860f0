"""A study at its end: the leaderboard with ties, tables, what is said of them, and the best of them as a command."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from digit_study.config import space
from digit_study.config.study_config import pruner_of
from digit_study.report.figures import charts
from digit_study.report.figures import optuna_figures as study_pictures
from digit_study.stats.metrics import Evaluation, accuracy_interval, evaluation_of
from digit_study.stats.ranking import Candidate, Group, pooled_leaderboard, sentence
from digit_study.study.storage import StoredStudy
from digit_study.study.study_plan import StudyPlan
from digit_study.study.study_plan import study_arguments as address
from digit_study.study.trial_attributes import (
    EXCESS,
    REASON,
    REPLICATE_OF,
    RUN_ID,
    SEED,
    THREADS,
    Rank,
)
from digit_study.study.trial_recorder import ranked_trials
from digit_study.support.console import CONFIGURATIONS, warn, with_interval
from digit_study.support.messages import first_line
from digit_study.tracking import provenance as origin
from digit_study.tracking import queries as lookup
from digit_study.tracking import runs as run_log
from digit_study.tracking import upload as delivery
from digit_study.tracking import views
from digit_study.trial.protocol import TrialResult

#: Of so many trials the page of a study shows more than a row.
MOST_NETWORKS = 10
#: Of runs by store and id: final metrics, and whether each validation image is read right, in the order of their index.
_remembered: dict[tuple[str, str], tuple[Mapping[str, float], npt.NDArray[np.bool_]]] = {}
#: Of trials that this process saw end, by store and id: the machine of every one, and all of the best.
_machines: dict[tuple[str, str], Mapping[str, str]] = {}
_best: dict[tuple[str, str], TrialResult] = {}


def feasible_trials(stored: StoredStudy) -> list[FrozenTrial]:
    """Complete trials that keep every constraint, the best first."""
    return [e.trial for e in ranked_trials(stored) if not e.rank.breaks_constraint]


def trial_name(trial: FrozenTrial, plan: StudyPlan) -> str:
    """``3: filters=16 pooling=max``: number and params, in the order of the space."""
    params = {one.key: trial.params[one.key] for one in plan.dimensions if one.key in trial.params}
    return f"{trial.number}: {space.short_name(params)}"


def leaderboard(plan: StudyPlan, stored: StoredStudy) -> pd.DataFrame:
    """Configurations by validation accuracy, replicates pooled; see :func:`ranking.pooled_leaderboard`."""
    groups: dict[str, list[Candidate]] = {}
    trials = sorted(
        feasible_trials(stored), key=lambda trial: trial.number
    )  # named after its first trial
    trials = [trial for trial in trials if RUN_ID in trial.user_attrs]
    read = lookup.each(
        plan.uri,
        lambda trial: candidate(plan, trial_name(trial, plan), trial.user_attrs[RUN_ID]),
        trials,
    )
    for trial, found in zip(trials, read, strict=True):
        if found is not None:
            groups.setdefault(space.fingerprint(trial.params), []).append(found)
    return pooled_leaderboard([Group(group[0].name, group) for group in groups.values()])


def candidate(plan: StudyPlan, name: str, run_id: str) -> Candidate | None:
    """A finished run of the study, with its per-image validation readings; None where MLflow has it no more."""
    try:
        metrics, correct = _result(plan.uri, run_id)
    except delivery.StoreFault as fault:
        warn(f"{name} is not ranked, its run {run_id} cannot be read: {first_line(fault)}")
        return None
    return Candidate(name, run_id, dict(metrics), correct, str(plan.run.data.sha256))


def remember(uri: str, result: TrialResult) -> None:
    """Keep what is told of a trial: no leaderboard or page need ask the store for it, which may be slow, or gone."""
    run, evaluation = (uri, result.run_id), result.evaluation.in_order()
    _remembered[run] = result.metrics, evaluation.correct
    _best[run] = replace(result, evaluation=evaluation)
    if result.machine:
        _machines[run] = result.machine
    if len(_best) > MOST_NETWORKS:
        del _best[min(_best, key=lambda one: _best[one].metrics["val_accuracy"])]


def result_of(uri: str, run_id: str) -> TrialResult | None:
    """All that a trial left, its images in order, if it is of the best that this process saw end."""
    return _best.get((uri, run_id))


def evaluation(uri: str, run_id: str) -> Evaluation | None:
    """How a finished run reads the validation images, in their order; None where the store does not tell."""
    if (result := result_of(uri, run_id)) is not None:
        return result.evaluation
    try:
        return evaluation_of(lookup.prediction_table(uri, run_id)).in_order()
    except (*delivery.StoreFault, pd.errors.ParserError, KeyError):
        return None


def _result(uri: str, run_id: str) -> tuple[Mapping[str, float], npt.NDArray[np.bool_]]:
    """Final metrics of a run, and which validation images it reads right; to ask for them takes 30 ms.

    They change no more. A leaderboard is made when a sweep ends, for its page, and after every trial that is watched.
    """
    if (uri, run_id) not in _remembered:
        correct = (
            lookup.prediction_table(uri, run_id).sort_values("index")["correct"].to_numpy(bool)
        )
        _remembered[uri, run_id] = lookup.finished_metrics(uri, run_id) or {}, correct
    return _remembered[uri, run_id]


def trials_frame(plan: StudyPlan, stored: StoredStudy) -> pd.DataFrame:
    """One row a trial: number, state, value, started, finished, every objective and every searched key."""

    def row(trial: FrozenTrial) -> dict[str, Any]:
        values = trial.values or [np.nan] * len(plan.objectives)
        return {
            "number": trial.number,
            "state": trial.state.name,
            "value": values[0],
            "started": pd.Timestamp(trial.datetime_start) if trial.datetime_start else pd.NaT,
            "finished": pd.Timestamp(trial.datetime_complete)
            if trial.datetime_complete
            else pd.NaT,
            "seed": trial.user_attrs.get(SEED),
            "replicate_of": trial.user_attrs.get(REPLICATE_OF),
            "reason": trial.user_attrs.get(REASON, ""),
            "run_id": trial.user_attrs.get(RUN_ID, ""),
            **(dict(zip(plan.objectives, values, strict=True)) if trial.values else {}),
            **{one.key: trial.params.get(one.key) for one in plan.dimensions},
        }

    rows = [row(trial) for trial in stored.trials()]
    return pd.DataFrame(rows, columns=None if rows else ["number", "state", "value"])


def pareto_front(plan: StudyPlan, stored: StoredStudy) -> pd.DataFrame:
    """One row a trial that no other beats in every objective: number, every objective, front (True)."""
    rows = [
        {
            "number": trial.number,
            **dict(zip(plan.objectives, trial.values, strict=True)),
            "front": True,
        }
        for trial in sorted(stored.study.best_trials, key=lambda trial: trial.number)
    ]
    return pd.DataFrame(rows, columns=["number", *plan.objectives, "front"])


def write(plan: StudyPlan, stored: StoredStudy, board: pd.DataFrame, folder: Path) -> None:
    """Write every table and picture of the study into ``folder``."""
    charts.write_table(trials_frame(plan, stored), folder, "trials")
    charts.write_table(board, folder, "leaderboard")
    if len(plan.objectives) > 1:
        charts.write_table(pareto_front(plan, stored), folder, "pareto")
    if len(board):
        charts.save(
            charts.comparison(board, "Leaderboard, validation"),
            folder / "figures" / "leaderboard.png",
        )
    study_pictures.write(
        stored.study, plan.objectives, plan.keys, stored.hosts(), folder / "figures"
    )


def note(
    plan: StudyPlan, stored: StoredStudy, board: pd.DataFrame | None = None
) -> views.RunDescription:
    """The description of the study's run: the answer, the first ten, what failed; without a ``board`` it goes on."""
    trials, search = stored.trials(), plan.study.search
    states = ", ".join(
        f"{count} {state.lower()}"
        for state, count in Counter(one.state.name for one in trials).items()
    )
    asked = f"Asked: which of {', '.join(plan.keys)} reads {plan.dataset} best, in {search.trials} trials "
    asked += f"({search.sampler}, {pruner_of(search)}); {states or 'none has begun'}"
    reasons = [(one.number, one.user_attrs.get(REASON)) for one in trials]
    failed = [
        f"trial {number}: {reason}"[:300]
        for number, reason in reasons
        if reason not in (None, EXCESS)
    ]
    where = address(
        plan.study.study, {"search.storage": search.storage, "tracking.uri": plan.run.tracking.uri}
    )
    if board is None or board.empty:
        answer = f"not at its end; best so far: {BestSoFar(plan, stored)()}"
        if board is not None:
            answer = "no trial that keeps the constraints has finished"
        return views.RunDescription(
            answer, asked, trouble=failed[-5:], command=f"python sweeps/optuna_search.py {where}"
        )
    pictures = [
        "figures/leaderboard.png",
        "figures/study.html",
        "figures/importances.png",
        "tables/trials.csv",
    ]
    shown = sentence(board, "trial"), asked, board, CONFIGURATIONS, failed[-5:], pictures
    return views.RunDescription(*shown, f"python sweeps/confirm.py {where}")


def machines(plan: StudyPlan, stored: StoredStudy, parent_run_id: str) -> str:
    """The :func:`mixture` of all trials that a leaderboard compares."""
    return mixture(
        plan.uri,
        parent_run_id,
        {str(one.user_attrs.get(RUN_ID)) for one in feasible_trials(stored)},
    )


def mixture(uri: str, parent_run_id: str, compared: Set[str]) -> str:
    """A sentence on what differs between the machines of the ``compared`` runs beneath a parent; empty if nothing does.

    Processor, cores and versions decide bits or seconds of a run, as its tags have them.
    """
    known = [_machines[uri, run_id] for run_id in compared if (uri, run_id) in _machines]
    if len(known) == len(compared):
        return origin.mixture(known)
    try:
        finished = run_log.children(uri, parent_run_id, "attributes.status = 'FINISHED'")
    except delivery.StoreFault:  # the uploader says so
        return ""
    return origin.mixture([origin.plain(tags) for run_id, tags in finished if run_id in compared])


class BestSoFar:
    """The best trial by the first objective as text, with its interval where that is an accuracy.

    Every trial is looked at once: a study may have thousands, and this is asked for at the end of each.
    """

    def __init__(self, plan: StudyPlan, stored: StoredStudy) -> None:
        self.plan, self.stored, self.seen = plan, stored, set[int]()
        self.best: tuple[Rank, FrozenTrial] | None = None

    def __call__(self) -> str:
        """What is best by now, or that nothing is yet."""
        new = [
            one for one in self.stored.trials(TrialState.COMPLETE) if one.number not in self.seen
        ]
        self.seen.update(one.number for one in new)
        ranked = [(Rank.of(one, self.stored.study), one) for one in new] + (
            [self.best] if self.best else []
        )
        self.best = min(ranked, key=lambda pair: pair[0], default=None)
        if (
            self.best is None or self.best[0].breaks_constraint
        ):  # that one breaks a constraint, and so do all others
            return "none yet"
        value, objective = self.best[1].values[0], next(iter(self.plan.objectives))
        images = self.stored.study.user_attrs.get("validation_images")
        shown = f"{objective} {value:.6g}"
        if objective == "val_accuracy" and images:
            shown = with_interval(value, *accuracy_interval(round(value * images), images))
        return f"trial {self.best[1].number}, {shown}"


def best_command(plan: StudyPlan, stored: StoredStudy) -> str:
    """The command that trains the best trial's configuration again, with its seed, on as many threads."""
    best, training = feasible_trials(stored)[0], plan.run.training
    # another number of workers leaves this command other threads than that trial had; what is searched is a param
    threads = best.user_attrs.get(THREADS, training.threads)
    used = {SEED: best.user_attrs[SEED], THREADS: threads, "training.precision": training.precision}
    chosen = best.params | used | best.params  # what was searched comes first, and counts
    words = []
    for text in plan.overrides:
        key = text.lstrip("+~").split("=")[0]
        if key not in chosen and re.split("[./]", key)[0] not in (
            "search",
            "confirm",
            "study",
            "tracking",
        ):
            words.append(text)
    for key, value in chosen.items():
        is_word = value is None or isinstance(value, bool)
        words.append(f"{key}={str(value).lower().replace('none', 'null') if is_word else value}")
    return " ".join(["python src/run.py", *map(shlex.quote, words)])
