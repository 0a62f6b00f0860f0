"""The best configurations of a study, trained again on fresh seeds, and the winner among them.

The best trial of a search is partly luck: of many noisy accuracies the highest is too high. Fresh
seeds, the same for every candidate, are not selected on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from optuna.trial import TrialState

from digit_study.config import space
from digit_study.config.study_config import StudyConfig, prefer_of, ranks_by_robustness
from digit_study.data.digits import load_digits
from digit_study.report import sentences
from digit_study.report.description import RunDescription
from digit_study.report.figures import charts, paired_figures
from digit_study.report.figures.ranking_figures import confirmation_figure
from digit_study.report.ranking import RankedTable, RankingKind
from digit_study.report.sentences import MISCLASSIFIED, SelectionBias
from digit_study.report.terminal import print_lines, print_next, print_ranking
from digit_study.stats.metrics import misclassified_by_all
from digit_study.stats.race import FIRST, Gap, confirmed_ranking
from digit_study.stats.ranking import Group
from digit_study.study import results as study_results
from digit_study.study.begun_study import words_of_begin
from digit_study.study.parent_run import find_or_create
from digit_study.study.results import RunResults
from digit_study.study.search import require_parent
from digit_study.study.seed_race import RaceEntry, SeedRace, race_run
from digit_study.study.storage import (
    DATA_PATH,
    StoredStudy,
    exclusive,
    find_study,
    refuse_changes,
)
from digit_study.study.study_plan import StudyPlan, address_of, plan_study, study_arguments
from digit_study.study.trial_attributes import RUN_ID
from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker, session
from digit_study.tracking.writer import RunWriter
from digit_study.trial.protocol import ENGINES, Engine, EngineContext

#: Far from the seeds of a search, so that a confirmation never meets a seed that was selected on.
FIRST_SEED = 1_000_000
#: Tag ``kind`` of the parent run.
KIND = "confirmation"
#: Files that the description of a confirmation links.
FILES = ("figures/confirmation.png", f"figures/{MISCLASSIFIED}.png", "tables/seeds.csv")
#: Failures that the description of a confirmation names.
MOST_PROBLEMS = 5


@dataclass
class _Candidates:
    """What is confirmed, by the fingerprint of each configuration, the best first."""

    #: How many configurations the search has; the candidates are the best of them.
    configurations: int
    entries: dict[str, RaceEntry] = field(default_factory=dict)
    #: The validation accuracy that each had in the search, by its name.
    searched: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Conclusion:
    """What a confirmation found."""

    ranking: pd.DataFrame
    #: A row a network of a ranked candidate: candidate, seed, val_accuracy, run_id.
    seeds: pd.DataFrame
    #: All networks that count, those of candidates too that lost a seed.
    run_ids: Sequence[str]
    #: None where the best of the search lost a seed that it needed.
    bias: SelectionBias | None
    #: Sentences on what the seeds have shown.
    lessons: Sequence[str]

    @property
    def table(self) -> RankedTable:
        """Return the ranking as people see it."""
        return RankedTable.of(RankingKind.CANDIDATES, self.ranking)


def plan_confirmation(
    arguments: Sequence[str], study: StudyConfig, workspace: Workspace
) -> tuple[StudyPlan, StoredStudy]:
    """Rebuild a study from what its storage holds and what is typed now.

    Args:
        arguments: The command line.
        study: The same, composed.
        workspace: Where the study is kept.

    Raises:
        StudyError: If it were not the same study.
    """
    found = find_study(study, workspace)
    attributes = found.study.user_attrs
    words = words_of_begin(attributes)
    data_path = attributes.get(DATA_PATH)
    if data_path is not None:
        words.append(f"data.path={json.dumps(data_path)}")
    plan = plan_study([*words, *arguments], workspace)
    refuse_changes(found.study, plan.study, plan.run)
    return plan, found


def confirm(
    plan: StudyPlan,
    stored: StoredStudy,
    results: RunResults,
    open_engine: Callable[[EngineContext], Engine] | None = None,
) -> str:
    """Train every candidate on every seed, rank them, and name the winner.

    Args:
        plan: The study.
        stored: Its trials.
        results: Results of its runs.
        open_engine: Makes the engine; by default the engine that ``search.engine`` names.

    Returns:
        The id of the winner's run.

    Raises:
        StudyError: If nothing can be confirmed, or runs failed.
    """
    search = plan.study.search
    with exclusive(plan.workspace, plan.study.study, "confirm", "is being confirmed"):
        make_engine = open_engine or ENGINES[search.engine]
        engine = make_engine(plan.context)
        timeout = search.outage_timeout
        with session(plan.uri, plan.workspace, timeout, "search.outage_timeout") as tracker:
            candidates = _choose(plan, stored, results, tracker)
            race = _prepare(plan, stored, candidates, tracker)
            conclusion = _run(race, candidates, engine, results)
    race.raise_failures("confirmation")
    return conclusion.table.winner.run_id


def _run(
    race: SeedRace, candidates: _Candidates, engine: Engine, results: RunResults
) -> _Conclusion:
    """Train, rank and publish, in a parent run that goes on where an earlier start ended."""
    name = race.plan.study.study
    message = f"interrupted: the same command goes on with the confirmation of '{name}'"
    with race_run(race, results, message) as writer:
        writer.describe(_description(race), _keys(race.plan))
        race.train(engine)
        conclusion = _conclude(race, candidates)
        _publish(race, conclusion, results, writer)
    return conclusion


def _prepare(
    plan: StudyPlan, stored: StoredStudy, candidates: _Candidates, tracker: Tracker
) -> SeedRace:
    """Set up the race of the candidates, beneath the run of the same confirmation or a new one."""
    settings = plan.study.confirm
    count = settings.fixed or settings.max_seeds
    first = 1000 * plan.study.search.seed + FIRST_SEED
    seeds = list(range(first, first + count))
    keys = list(candidates.entries)
    return SeedRace(
        plan=plan,
        tracker=tracker,
        parent_run_id=_parent_run_id(plan, stored, keys, seeds, tracker),
        entries=candidates.entries,
        seeds=seeds,
        first_seeds=settings.fixed or FIRST,
    )


def _choose(
    plan: StudyPlan, stored: StoredStudy, results: RunResults, tracker: Tracker
) -> _Candidates:
    """Return the best configurations of the search.

    Raises:
        StudyError: If it has none, or its runs are in another store.
    """
    require_parent(plan, stored, tracker)
    name = plan.study.study
    board = study_results.leaderboard(plan, stored, results)
    if board.empty:
        raise StudyError(
            f"a confirmation needs finished trials, but study '{name}' has none that keeps the "
            f"constraints: go on with python sweeps/optuna_search.py {address_of(plan.study)}"
        )
    complete = stored.trials(TrialState.COMPLETE)
    trial_of_run = {trial.user_attrs.get(RUN_ID): trial for trial in complete}
    chosen = _Candidates(len(board))
    if ranks_by_robustness(plan.study.search):
        board = board.sort_values("robust_accuracy", ascending=False, kind="stable")
    best = board.head(plan.study.confirm.top)
    for row in best.to_dict("records"):
        trial = trial_of_run[row["run_id"]]
        key = _digest(space.fingerprint(trial.params), 12)
        config = space.apply(trial.params, plan.overrides, plan.run)
        trial_name = study_results.trial_name(trial, plan)
        chosen.entries[key] = RaceEntry(trial_name, config)
        chosen.searched[trial_name] = float(row["val_accuracy"])
    return chosen


def _digest(text: str, length: int) -> str:
    """Return the first hexadecimal digits of the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _parent_run_id(
    plan: StudyPlan,
    stored: StoredStudy,
    keys: Sequence[str],
    seeds: Sequence[int],
    tracker: Tracker,
) -> str:
    """Reopen the parent run of the same candidates on the same seeds, or create it."""
    trained_on: list[int | str] = [*seeds]
    if not plan.study.confirm.fixed:
        trained_on.insert(0, "race")
    content = json.dumps([stored.uid, sorted(keys), trained_on, prefer_of(plan.study)])
    identity = {"kind": KIND, "confirmation.key": _digest(content, 16)}
    study = plan.study.study
    name = f"confirmation of {study}"
    tags = {"study": study, "study.uid": stored.uid}
    return find_or_create(tracker, plan.run, plan.dataset, name, identity, **tags)


def _conclude(race: SeedRace, candidates: _Candidates) -> _Conclusion:
    """Rank the candidates; StudyError if none finished on all seeds."""
    interim = race.interim()
    if "in" not in interim.states:
        lines = ["no candidate finished on all seeds:", *race.failures()]
        raise StudyError("\n".join(lines))
    groups = []
    for (key, entry), count in zip(race.entries.items(), interim.seeds, strict=True):
        counted_runs = race.finished(key)[:count]
        groups.append(Group(entry.name, counted_runs))
    ranking = confirmed_ranking(groups, interim, prefer_of(race.plan.study))
    ranking["sweep_val_accuracy"] = ranking["name"].map(candidates.searched)
    ranking["selection_bias"] = ranking["sweep_val_accuracy"] - ranking["mean"]
    by_name = {group.name: group for group in groups}
    ranked = {name: by_name[name] for name in ranking["name"]}
    bias = _selection_bias(candidates, ranking)
    lessons = []
    if bias is not None:
        lessons.append(str(bias))
    if len(ranking) > 1:
        lessons.append(_separation(ranking, ranked))
    ranked_groups = [group for group in groups if group.name in ranked]
    seeds = _seeds_table(race, ranked_groups)
    run_ids: list[str] = []
    for group in groups:
        run_ids += [run.run_id for run in group.runs]
    return _Conclusion(ranking, seeds, run_ids, bias, lessons)


def _seeds_table(race: SeedRace, groups: Sequence[Group]) -> pd.DataFrame:
    rows = []
    for group in groups:
        for seed, run in zip(race.seeds, group.runs, strict=False):
            accuracy = run.metrics["val_accuracy"]
            rows.append((group.name, seed, accuracy, run.run_id))
    return pd.DataFrame(rows, columns=["candidate", "seed", "val_accuracy", "run_id"])


def _selection_bias(candidates: _Candidates, ranking: pd.DataFrame) -> SelectionBias | None:
    """Return by how much the best of the search was better there than on fresh seeds."""
    best = next(iter(candidates.entries.values()))
    rows = ranking[ranking["name"] == best.name].to_dict("records")
    if not rows:  # it lost a seed that it needed
        return None
    row = rows[0]
    return SelectionBias(
        name=best.name,
        configurations=candidates.configurations,
        searched=row["sweep_val_accuracy"],
        confirmed=row["mean"],
        seeds=row["seeds"],
    )


def _separation(ranking: pd.DataFrame, groups: Mapping[str, Group]) -> str:
    """Say whether the seeds separate the best from the next tied one, or how many more would.

    Where no other is tied, it is compared with the second.
    """
    best = ranking.iloc[0]
    others = ranking.iloc[1:].sort_values("tied", ascending=False, kind="stable")
    other = others.iloc[0]
    names = [best["name"], other["name"]]
    seeds = min(len(groups[name].runs) for name in names)
    correct = []
    for name in names:
        shared = groups[name].runs[:seeds]
        correct.append(np.array([run.correct for run in shared]))  # shape (seeds, images)
    gap = Gap.of(*correct)
    return sentences.separation(names, gap, is_tied=bool(other["tied"]))


def _publish(race: SeedRace, conclusion: _Conclusion, results: RunResults, log: RunWriter) -> None:
    """Record the conclusion, keep the winner's model alone, and print it."""
    _write_files(race, conclusion, results, log)
    log.describe(_description(race, conclusion), _keys(race.plan))
    winner = conclusion.table.winner
    log.tags({"winner.run_id": winner.run_id, "winner.name": winner.name})
    accuracy = {
        "val_accuracy": winner.accuracy.value,
        "val_accuracy_low": winner.accuracy.low,
        "val_accuracy_high": winner.accuracy.high,
    }
    candidates = f"{len(conclusion.ranking)} candidates"
    log.best_of(candidates, {"name": winner.name, **accuracy})
    metrics = {f"winner_{name}": value for name, value in accuracy.items()}
    if conclusion.bias is not None:
        metrics["selection_bias"] = conclusion.bias.value
    log.metrics(metrics)
    race.keep_models([winner.run_id])
    _print(race, conclusion, results)


def _write_files(
    race: SeedRace, conclusion: _Conclusion, results: RunResults, log: RunWriter
) -> None:
    """Write tables and figures, what all networks misclassify among them."""
    figures = log.folder / "figures"
    charts.write_table(conclusion.seeds, log.folder, "seeds")
    charts.write_table(conclusion.ranking, log.folder, "confirmation")
    ranking = conclusion.ranking.rename(columns={"name": "candidate"})
    figure = confirmation_figure(conclusion.seeds, ranking, conclusion.lessons)
    charts.save(figure, figures / "confirmation.png")
    found = results.evaluations(conclusion.run_ids)
    evaluations = [evaluation for evaluation in found if evaluation is not None]
    if not evaluations:
        return
    table = misclassified_by_all(evaluations)
    charts.write_table(table, log.folder, MISCLASSIFIED)
    digits = load_digits(race.plan.run.data)
    figure = paired_figures.misclassified_by_all(
        table, digits.validation_images, digits.validation_index, len(evaluations)
    )
    charts.save(figure, figures / f"{MISCLASSIFIED}.png")


def _print(race: SeedRace, conclusion: _Conclusion, results: RunResults) -> None:
    """Print the ranking, what it teaches, the winner, and what to do next."""
    study = race.plan.study
    winner = conclusion.table.winner
    print_ranking(f"Confirmation of study '{study.study}'", conclusion.table)
    is_even = conclusion.ranking["seeds"].nunique() == 1
    rule = sentences.winner_rule(prefer_of(study), is_even=is_even)
    run_ids = {run.run_id for run in race.runs.values()}
    networks = conclusion.ranking["seeds"].sum()
    print_lines(
        *conclusion.lessons,
        f"{networks} networks were compared",
        results.machines(race.parent_run_id, run_ids),
        f"winner: {winner.name} ({rule}), run {winner.run_id}",
    )
    promote = f"python sweeps/promote.py {_address(race.plan)}"
    shown_at = race.tracker.address(race.parent_run_id, children=True)
    print_next(promote, shown_at)


def _description(race: SeedRace, conclusion: _Conclusion | None = None) -> RunDescription:
    """Describe the parent run: winner, ranking and failures; without a conclusion it goes on."""
    study = race.plan.study
    note = race.plan.run.tracking.note or ""
    seeds = sentences.range_of([race.first_seeds, len(race.seeds)])
    question = sentences.confirmation_question(
        study.study, len(race.entries), seeds, prefer_of(study)
    )
    if conclusion is None:
        again = f"python sweeps/confirm.py {address_of(study)}"
        return RunDescription("no winner yet", question, command=again, note=note)
    return RunDescription(
        answer=sentences.confirmation_answer(conclusion.table.winner),
        question="; ".join([question, *conclusion.lessons]),
        ranking=conclusion.table,
        problems=race.failures()[:MOST_PROBLEMS],
        files=FILES,
        command=f"python sweeps/promote.py {_address(race.plan)}",
        note=note,
    )


def _keys(plan: StudyPlan) -> list[str]:
    """Return the config keys that MLflow's view of the runs has columns for."""
    return ["training.seed", *plan.keys]


def _address(plan: StudyPlan) -> str:
    """Return the overrides by which a promotion, which asks MLflow alone, finds a study."""
    return study_arguments(plan.study.study, {"tracking.uri": plan.run.tracking.uri})
