"""What a study found: results of its runs, its leaderboard, its tables, its best trial."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from digit_study.config import compose, space
from digit_study.config.renamed_keys import key_of
from digit_study.config.study_config import pruner_of
from digit_study.report import sentences
from digit_study.report.description import RunDescription
from digit_study.report.figures import charts, optuna_figures, ranking_figures
from digit_study.report.ranking import RankedTable, RankingKind
from digit_study.report.tables import Estimate
from digit_study.stats.metrics import Evaluation, accuracy_interval, evaluation_from_table
from digit_study.stats.ranking import Candidate, Group, pooled_leaderboard
from digit_study.study.storage import StoredStudy
from digit_study.study.study_plan import StudyPlan, address_of
from digit_study.study.trial_attributes import (
    EXCESS,
    REASON,
    REPLICATE_OF,
    RUN_ID,
    SEED,
    THREADS,
    Rank,
    ranked_trials,
    shown_state,
)
from digit_study.support.console import warn
from digit_study.support.errors import first_line
from digit_study.tracking import provenance
from digit_study.tracking.queries import HAS_RESULT
from digit_study.tracking.session import Tracker
from digit_study.tracking.store import StoreFault
from digit_study.trial.protocol import TrialResult

#: Of so many trials, the best ones, the study page shows more than a row.
MOST_NETWORKS = 10
#: Problems that the description of a study names, the latest ones.
MOST_PROBLEMS = 5
#: Files that the description of a study links.
FILES = ("study.html", "figures/leaderboard.png", "figures/importances.png", "tables/trials.csv")
#: Groups of config keys that do not belong to a single run.
NOT_OF_A_RUN = ("search", "confirm", "study", "tracking")


@dataclass(frozen=True)
class _RunFacts:
    """What a leaderboard needs of a finished run, which changes no more."""

    metrics: Mapping[str, float]
    #: Whether each validation image is predicted correctly, in the order of their index.
    correct: npt.NDArray[np.bool_]


class RunResults:
    """Results of finished runs of one store, each asked for once.

    What this process saw end need not be asked for at all: a store may be slow, or gone.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._facts: dict[str, _RunFacts] = {}
        #: Whole results of the best runs that this process saw end.
        self._best: dict[str, TrialResult] = {}
        #: Machine of every run that this process saw end.
        self._machines: dict[str, Mapping[str, str]] = {}

    def remember(self, result: TrialResult) -> None:
        """Keep the result of a trial that has just ended."""
        evaluation = result.evaluation.in_order()
        run_id = result.run_id
        self._facts[run_id] = _RunFacts(result.metrics, evaluation.correct)
        self._best[run_id] = replace(result, evaluation=evaluation)
        if result.machine:
            self._machines[run_id] = result.machine
        if len(self._best) > MOST_NETWORKS:
            worst = min(self._best.values(), key=lambda kept: kept.metrics["val_accuracy"])
            del self._best[worst.run_id]

    def remembered(self, run_id: str) -> TrialResult | None:
        """Return the whole result of a run, images in the order of their index.

        Only the best of the trials that this process saw end are kept; None of any other.
        """
        return self._best.get(run_id)

    def evaluation(self, run_id: str) -> Evaluation | None:
        """Return the predictions of a run for the validation images, in the order of their index.

        Returns:
            None where the store does not have them.
        """
        if run_id in self._best:
            return self._best[run_id].evaluation
        try:
            table = self.tracker.artifact_table(run_id, "predictions")
            return evaluation_from_table(table).in_order()
        except (*StoreFault, pd.errors.ParserError, KeyError):
            return None

    def evaluations(self, run_ids: Iterable[str]) -> list[Evaluation | None]:
        """Return :meth:`evaluation` of several runs, in their order."""
        return self.tracker.each(self.evaluation, run_ids)

    def candidate(self, name: str, run_id: str, digest: str) -> Candidate | None:
        """Return a finished run as it is ranked.

        Args:
            name: What it is called in tables.
            run_id: Id of the run.
            digest: sha256 of its data.

        Returns:
            None, after a warning, where the store does not have it any more.
        """
        try:
            facts = self._facts_of(run_id)
        except StoreFault as fault:
            reason = first_line(fault)
            warn(f"{name} is not ranked, its run {run_id} cannot be read: {reason}")
            return None
        return Candidate(name, run_id, dict(facts.metrics), facts.correct, digest)

    def _facts_of(self, run_id: str) -> _RunFacts:
        """Return what is known of a run; to ask the store takes 30 ms."""
        if run_id not in self._facts:
            table = self.tracker.artifact_table(run_id, "predictions").sort_values("index")
            metrics = self.tracker.finished_metrics(run_id) or {}
            correct = table["correct"].to_numpy(bool)
            self._facts[run_id] = _RunFacts(metrics, correct)
        return self._facts[run_id]

    def machines(self, parent_run_id: str, run_ids: Set[str]) -> str:
        """Say how the machines of runs differ: processor, cores and versions.

        These decide bits or seconds of a run.

        Args:
            parent_run_id: Parent of the runs.
            run_ids: Runs that are compared with each other.

        Returns:
            A sentence, empty where nothing differs.
        """
        known = [self._machines[run_id] for run_id in run_ids if run_id in self._machines]
        if len(known) == len(run_ids):
            return provenance.mixture(known)
        try:
            finished = self.tracker.children(parent_run_id, HAS_RESULT)
        except StoreFault:  # the uploader says so
            return ""
        compared = [provenance.plain(tags) for run_id, tags in finished if run_id in run_ids]
        return provenance.mixture(compared)


def feasible_trials(stored: StoredStudy) -> list[FrozenTrial]:
    """Return complete trials that keep every constraint, the best first."""
    return [rank.trial for rank in ranked_trials(stored.study) if not rank.breaks_constraint]


def trial_name(trial: FrozenTrial, plan: StudyPlan) -> str:
    """Return number and params in the order of the space, as ``3: filters=16 pooling=max``."""
    params = {key: trial.params[key] for key in plan.keys if key in trial.params}
    return f"{trial.number}: {space.short_name(params)}"


def leaderboard(plan: StudyPlan, stored: StoredStudy, results: RunResults) -> pd.DataFrame:
    """Rank configurations by validation accuracy, replicates pooled.

    A configuration is named after its first trial.

    Args:
        plan: The study.
        stored: Its trials.
        results: Results of their runs.

    Returns:
        See :func:`digit_study.stats.ranking.pooled_leaderboard`.
    """
    digest = str(plan.run.data.sha256)
    trials = [trial for trial in feasible_trials(stored) if RUN_ID in trial.user_attrs]
    trials.sort(key=lambda trial: trial.number)

    def candidate_of(trial: FrozenTrial) -> Candidate | None:
        name = trial_name(trial, plan)
        run_id = trial.user_attrs[RUN_ID]
        return results.candidate(name, run_id, digest)

    candidates = results.tracker.each(candidate_of, trials)
    replicates: dict[str, list[Candidate]] = {}
    for trial, candidate in zip(trials, candidates, strict=True):
        if candidate is not None:
            configuration = space.fingerprint(trial.params)
            replicates.setdefault(configuration, []).append(candidate)
    groups = [Group(same[0].name, same) for same in replicates.values()]
    return pooled_leaderboard(groups)


def ranking_of(board: pd.DataFrame) -> RankedTable:
    """Return the leaderboard of a study as people see it."""
    return RankedTable.of(RankingKind.CONFIGURATIONS, board)


def machines(stored: StoredStudy, parent_run_id: str, results: RunResults) -> str:
    """Say how the machines of the trials differ that a leaderboard compares; empty if nothing."""
    run_ids = {str(trial.user_attrs.get(RUN_ID)) for trial in feasible_trials(stored)}
    return results.machines(parent_run_id, run_ids)


def trials_frame(plan: StudyPlan, stored: StoredStudy) -> pd.DataFrame:
    """Return one row a trial.

    Returns:
        Columns number, state, value, started, finished, seed, replicate_of, reason, run_id, every
        objective and every searched key.
    """
    rows = [_trial_row(plan, trial) for trial in stored.trials()]
    if not rows:
        return pd.DataFrame(columns=["number", "state", "value"])
    return pd.DataFrame(rows)


def _trial_row(plan: StudyPlan, trial: FrozenTrial) -> dict[str, Any]:
    attributes = trial.user_attrs
    values = trial.values or [np.nan] * len(plan.objectives)
    row = {
        "number": trial.number,
        "state": shown_state(trial),
        "value": values[0],
        "started": _time(trial.datetime_start),
        "finished": _time(trial.datetime_complete),
        "seed": attributes.get(SEED),
        "replicate_of": attributes.get(REPLICATE_OF),
        "reason": attributes.get(REASON, ""),
        "run_id": attributes.get(RUN_ID, ""),
    }
    if trial.values:
        row |= dict(zip(plan.objectives, values, strict=True))
    params = {key: trial.params.get(key) for key in plan.keys}
    return row | params


def _time(moment: Any) -> Any:
    if moment is None:
        return pd.NaT
    return pd.Timestamp(moment)


def pareto_front(plan: StudyPlan, stored: StoredStudy) -> pd.DataFrame:
    """Return one row a trial that no other beats in every objective.

    Returns:
        Columns number, every objective, and front, which is True.
    """
    trials = sorted(stored.study.best_trials, key=lambda trial: trial.number)
    rows = []
    for trial in trials:
        values = dict(zip(plan.objectives, trial.values, strict=True))
        rows.append({"number": trial.number, **values, "front": True})
    return pd.DataFrame(rows, columns=["number", *plan.objectives, "front"])


def write(plan: StudyPlan, stored: StoredStudy, board: pd.DataFrame, folder: Path) -> None:
    """Write every table and picture of the study.

    Args:
        plan: The study.
        stored: Its trials.
        board: Its leaderboard.
        folder: Where ``tables/`` and ``figures/`` are made.
    """
    trials = trials_frame(plan, stored)
    charts.write_table(trials, folder, "trials")
    charts.write_table(board, folder, "leaderboard")
    if len(plan.objectives) > 1:
        front = pareto_front(plan, stored)
        charts.write_table(front, folder, "pareto")
    figures = folder / "figures"
    if len(board):
        figure = ranking_figures.leaderboard_figure(board, "Leaderboard, validation images")
        charts.save(figure, figures / "leaderboard.png")
    optuna_figures.write(stored.study, plan.objectives, plan.keys, stored.hosts(), figures)


def description(
    plan: StudyPlan,
    stored: StoredStudy,
    board: pd.DataFrame | None = None,
    machines: str = "",
) -> RunDescription:
    """Describe the study's run: the answer, the first ten configurations, what failed.

    Args:
        plan: The study.
        stored: Its trials.
        board: Its leaderboard; None while it goes on.
        machines: How the machines of its trials differ, empty where they do not.
    """
    search = plan.study.search
    states = [shown_state(trial) for trial in stored.trials()]
    method = f"{search.sampler}, {pruner_of(search)}"
    question = sentences.search_question(plan.keys, plan.dataset, search.trials, method, states)
    problems = _problems(stored)
    note = plan.run.tracking.note or ""
    again = f"python sweeps/optuna_search.py {address_of(plan.study)}"
    if board is None:
        answer = f"the search has not ended; best so far: {BestSoFar(plan, stored)()}"
        return RunDescription(answer, question, problems=problems, command=again, note=note)
    if board.empty:
        answer = "no trial that keeps the constraints has finished"
        return RunDescription(answer, question, problems=problems, command=again, note=note)
    return RunDescription(
        answer=sentences.ranking_answer(board, "trial", machines),
        question=question,
        ranking=ranking_of(board),
        problems=problems,
        files=FILES,
        command=f"python sweeps/confirm.py {address_of(plan.study)}",
        note=note,
    )


def _problems(stored: StoredStudy) -> list[str]:
    """Return why the latest trials failed, a sentence each."""
    found = []
    for trial in stored.trials():
        reason = trial.user_attrs.get(REASON)
        if reason not in (None, EXCESS):
            problem = f"trial {trial.number}: {reason}"
            found.append(problem[:300])
    return found[-MOST_PROBLEMS:]


class BestSoFar:
    """The best trial by the first objective as text, with its interval where that is an accuracy.

    Each trial is compared once: a study may have thousands, and this is asked for at the end of
    each.
    """

    def __init__(self, plan: StudyPlan, stored: StoredStudy) -> None:
        self._objective = next(iter(plan.objectives))
        self._stored = stored
        self._seen: set[int] = set()
        self._best: Rank | None = None

    def __call__(self) -> str:
        """Return what is best by now, or that nothing is yet."""
        study = self._stored.study
        for trial in self._stored.trials(TrialState.COMPLETE):
            if trial.number in self._seen:
                continue
            self._seen.add(trial.number)
            rank = Rank.of(trial, study)
            if self._best is None or rank < self._best:
                self._best = rank
        # if the best breaks a constraint, so do all others
        if self._best is None or self._best.breaks_constraint:
            return "none yet"
        best = self._best.trial
        return f"trial {best.number}, {self._shown(best.values[0])}"

    def _shown(self, value: float) -> str:
        images = self._stored.study.user_attrs.get("validation_images")
        if self._objective == "val_accuracy" and images:
            correct = round(value * images)
            low, high = accuracy_interval(correct, images)
            return str(Estimate(value, low, high))
        return f"{self._objective} {value:.6g}"


def best_command(plan: StudyPlan, stored: StoredStudy) -> str:
    """Return the command that trains the best trial's configuration again, with its seed.

    It trains on as many threads as that trial had.
    """
    best = feasible_trials(stored)[0]
    training = plan.run.training
    # another number of workers leaves this command other threads than that trial had
    recorded = {
        SEED: best.user_attrs[SEED],
        THREADS: best.user_attrs.get(THREADS, training.threads),
        "training.precision": training.precision,
    }
    # what was searched comes first, and counts
    chosen = best.params | recorded | best.params
    overrides = compose.without_space(plan.overrides)
    typed = [text for text in overrides if _is_kept(text, chosen)]
    chosen_words = [f"{key}={compose.typed_value(value)}" for key, value in chosen.items()]
    quoted = [shlex.quote(word) for word in (*typed, *chosen_words)]
    return " ".join(["python src/run.py", *quoted])


def _is_kept(override: str, chosen: Mapping[str, Any]) -> bool:
    """Return whether an override of the study belongs to the command of a single run."""
    key = key_of(override)
    group = re.split("[./]", key)[0]
    return key not in chosen and group not in NOT_OF_A_RUN
