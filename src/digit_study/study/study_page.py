"""The study in one page: collected from Optuna, MLflow and the ledger, and kept."""

from __future__ import annotations

import math
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Run

from digit_study.config import compose, space
from digit_study.config.renamed_keys import key_of
from digit_study.config.study_config import StudyConfig
from digit_study.registry.ledger import Entry, Ledger
from digit_study.report import sentences, tables
from digit_study.report.figures.interactive import pictures
from digit_study.report.ranking import Medium, RankedTable, RankingKind
from digit_study.report.study_report import Answer, ConfirmationReport, StudyReport
from digit_study.report.tables import Cell, TableView
from digit_study.report.terminal import print_lines
from digit_study.stats.race import rank_most_seeds_first
from digit_study.study import results as study_results
from digit_study.study.begun_study import words_of_begin
from digit_study.study.page_networks import compare_networks
from digit_study.study.results import RunResults
from digit_study.study.search import NoParentError, require_parent
from digit_study.study.storage import CREATED, StoredStudy, find_study, refuse_changes
from digit_study.study.study_plan import StudyPlan, address_of
from digit_study.study.trial_attributes import RUN_ID
from digit_study.support.console import warn
from digit_study.support.errors import StudyError, first_line
from digit_study.support.trial_status import TrialStatus
from digit_study.support.workspace import Workspace
from digit_study.tracking import provenance
from digit_study.tracking.location import REGISTERED_NAME
from digit_study.tracking.queries import recorded_config
from digit_study.tracking.session import Tracker
from digit_study.tracking.store import StoreFault

#: Tags of the parent run that say what a result came from, by what the page calls them.
ORIGINS = {
    "code": "git.commit",
    "data": "dataset.name",
    "sha256 of the data": "dataset.sha256",
    "precision": "precision",
    "threads a trial": "threads",
    "TensorFlow": "version.tensorflow",
    "Keras": "version.keras",
    "Optuna": "version.optuna",
    "MLflow": "version.mlflow",
    "processor": "processor",
    "system": "os",
}
#: Metrics of a confirmation that hold its selection bias, the second in stores written earlier.
BIAS_METRICS = ("selection_bias", "sweep_optimism")
#: Columns of a confirmed ranking that the picture of the candidates needs.
CANDIDATE_COLUMNS = ["name", "mean", "low", "high", "winner", "sweep_val_accuracy"]


def plan_page(typed: StudyConfig, tracker: Tracker) -> tuple[StudyPlan, StoredStudy]:
    """Find a study as its stores hold it; its digits need not be there any more.

    Args:
        typed: What the command line asks for.
        tracker: The store of its runs.

    Returns:
        The plan of the study, and its trials.

    Raises:
        StudyError: If there is no such study, or its runs are in another store.
    """
    stored = find_study(typed, tracker.workspace)
    overrides = words_of_begin(stored.study.user_attrs)
    study: StudyConfig = compose.compose_config(
        [*overrides, f"study='{typed.study}'"], "study", recorded=True
    )
    # the overrides of a study do not say where it is kept now
    study = replace(
        study,
        search=replace(study.search, storage=typed.search.storage),
        tracking=replace(study.tracking, uri=typed.tracking.uri),
    )
    plan = StudyPlan(
        study=study,
        overrides=overrides,
        run=typed.run,
        dataset="",
        dimensions=space.parse_space(study.search.space, study.run),
        workers=1,
        uri=tracker.uri,
        workspace=tracker.workspace,
    )
    run = tracker.client.get_run(require_parent(plan, stored, tracker))
    baseline = recorded_config(run)
    if typed.data.path is not None:  # the digits no longer lie where the study found them
        baseline = replace(baseline, data=replace(baseline.data, path=typed.data.path))
    return replace(plan, run=baseline, dataset=run.data.tags["dataset.name"]), stored


def collect(plan: StudyPlan, stored: StoredStudy, results: RunResults) -> StudyReport:
    """Gather the page from Optuna, MLflow and the ledger.

    Args:
        plan: The study.
        stored: Its trials.
        results: Results of its runs.

    Raises:
        StudyError: If the runs of the study are in another store.
    """
    tracker = results.tracker
    parent_id = require_parent(plan, stored, tracker)
    board = study_results.leaderboard(plan, stored, results)
    ledger = Ledger(tracker, REGISTERED_NAME)
    questions: list[Callable[[], Any]] = [
        lambda: tracker.client.get_run(parent_id),
        lambda: _confirmation(plan, stored, board, results),
        ledger.entries,
    ]
    parent, confirmation, entries = tracker.each(lambda ask: ask(), questions)
    frame = study_results.trials_frame(plan, stored)
    answer = _answer(plan, board, confirmation)
    machines = study_results.machines(stored, parent_id, results)
    if machines:
        answer = replace(answer, basis=[*answer.basis, f"Trials were {machines}."])
    hosts = stored.hosts()
    epochs = plan.run.training.epochs
    leaderboard = study_results.ranking_of(board)
    return StudyReport(
        name=plan.study.study,
        written=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        answer=answer,
        facts=_facts(plan, frame, board),
        leaderboard=leaderboard.view(Medium.PAGE, most_rows=tables.MOST_ROWS),
        front=_front(plan, stored),
        trials=tables.trials_table(frame, plan.keys, plan.objectives),
        pictures=pictures(stored.study, plan.objectives, plan.keys, hosts, epochs),
        networks=compare_networks(results, plan.run.data, board),
        confirmation=confirmation,
        promotions=_promotions(entries, stored, confirmation),
        origins=_origins(parent),
        commands=_commands(plan, stored, board),
    )


def _answer(
    plan: StudyPlan, board: pd.DataFrame, confirmation: ConfirmationReport | None
) -> Answer:
    """Return the answer of the confirmation, else of the search, which is partly luck."""
    if confirmation is not None:
        winner = confirmation.winner
        basis = [sentences.confirmation_basis(winner.seeds), confirmation.summary]
        return Answer(str(winner.accuracy), winner.name, basis)
    if board.empty:
        return Answer("No answer yet", "", ["No trial has finished that keeps the constraints."])
    best = study_results.ranking_of(board).rows[0]
    tied = int(board["tied"].sum())
    images = int(board["n"].iloc[0])
    basis = sentences.search_basis(best, images, tied, len(board), address_of(plan.study))
    return Answer(str(best.accuracy), best.name, basis)


def _facts(plan: StudyPlan, frame: pd.DataFrame, board: pd.DataFrame) -> dict[str, str]:
    """Return the study in a line of numbers."""
    facts = {"trials": f"{len(frame)}"}
    states = Counter(frame["state"])
    for status in TrialStatus:
        if states[status]:
            facts[status.lower()] = f"{states[status]}"
    if len(frame) and frame["finished"].notna().any():
        seconds = (frame["finished"].max() - frame["started"].min()).total_seconds()
        facts["from first to last"] = _duration(seconds)
    if len(board):
        facts["could be best"] = f"{int(board['tied'].sum())} of {len(board)}"
        facts["validation images"] = f"{board['n'].iloc[0]:,}"
    facts["data"] = plan.dataset
    facts["objective"] = ", ".join(plan.objectives)
    facts |= plan.run.tracking.own_tags
    if plan.run.tracking.note:
        facts["note"] = plan.run.tracking.note
    return facts


def _duration(seconds: float) -> str:
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.0f} s"


def _front(plan: StudyPlan, stored: StoredStudy) -> TableView | None:
    if len(plan.objectives) == 1:
        return None
    return tables.front_table(study_results.pareto_front(plan, stored), plan.objectives)


def _promotions(
    entries: list[Entry], stored: StoredStudy, confirmation: ConfirmationReport | None
) -> TableView:
    """Return the ledger, the newest entry first, with the runs of this study marked."""
    own = {str(trial.user_attrs.get(RUN_ID)) for trial in stored.trials()}
    if confirmation is not None:
        own.update(confirmation.run_ids)
    rows = []
    marked = []
    for position, entry in enumerate(reversed(entries)):
        start = entry.start
        run_id = str(start.get("run_id"))
        rows.append(
            [
                Cell(str(start.get("at"))),
                Cell(f"{start.get('kind')}: {entry.outcome_text}"),
                Cell(entry.reason),
                Cell(run_id, run_id=run_id),
                Cell(str(start.get("who"))),
            ]
        )
        if run_id in own:
            marked.append(position)
    return TableView(["date", "decision", "evidence", "run", "who"], rows, marked=marked)


def _origins(parent: Run) -> dict[str, str]:
    """Return what the study came from, by what the page calls it."""
    tags = provenance.plain(parent.data.tags)
    origins = {name: tags[tag] for name, tag in ORIGINS.items() if tag in tags}
    if tags.get("git.dirty") == "true":
        commit = origins.get("code", "unknown")
        origins["code"] = f"{commit}, with changes that were not committed"
    origins["run of the study"] = str(parent.info.run_id)
    return origins


def _confirmation(
    plan: StudyPlan, stored: StoredStudy, board: pd.DataFrame, results: RunResults
) -> ConfirmationReport | None:
    """Return the latest confirmation of this study, None without.

    A study of the same name before ``search.fresh`` is another study.
    """
    since = float(stored.study.user_attrs.get(CREATED, 0.0))
    run = results.tracker.newest_confirmation(plan.study.study, stored.uid, since)
    if run is None:
        return None
    run_id = run.info.run_id
    try:
        # earlier versions kept another order
        ranking = rank_most_seeds_first(results.tracker.artifact_table(run_id, "confirmation"))
        seeds = results.tracker.artifact_table(run_id, "seeds")
    except StoreFault as fault:
        warn(f"the confirmation {run_id} cannot be read: {first_line(fault)}")
        return None
    values = {name: group["val_accuracy"] for name, group in seeds.groupby("candidate")}
    if "sd_both" not in ranking:  # it was confirmed before these were kept
        deviations = {name: float(np.std(value, ddof=1)) for name, value in values.items()}
        ranking = ranking.assign(
            sd_seeds=ranking["name"].map(deviations),
            sd_images=math.nan,
            sd_both=math.nan,
            sweep_val_accuracy=None,
        )
    candidates = ranking[CANDIDATE_COLUMNS].to_dict("records")
    for candidate in candidates:
        candidate["values"] = values[candidate["name"]].tolist()
    summary = sentences.confirmation_summary(
        tied=int(ranking["tied"].sum()),
        count=len(ranking),
        images=_validation_images(stored, board),
        bias=selection_bias(run),
    )
    table = RankedTable.of(RankingKind.CANDIDATES, ranking)
    return ConfirmationReport(
        table=table.view(Medium.PAGE),
        winner=table.winner,
        candidates=candidates,
        summary=summary,
        run_ids=[row.run_id for row in table.rows],
    )


def _validation_images(stored: StoredStudy, board: pd.DataFrame) -> int | None:
    recorded: int | None = stored.study.user_attrs.get("validation_images")
    if recorded is None and len(board):
        return int(board["n"].iloc[0])
    return recorded


def selection_bias(run: Run) -> float | None:
    """Return the selection bias that a confirmation recorded, in [-1, 1]."""
    metrics = run.data.metrics
    return next((float(metrics[name]) for name in BIAS_METRICS if name in metrics), None)


def _commands(plan: StudyPlan, stored: StoredStudy, board: pd.DataFrame) -> dict[str, str]:
    """Return what a person types to get the same again, by what it does."""
    begin = words_of_begin(stored.study.user_attrs)
    kept = [text for text in begin if key_of(text) != "study"]
    total = sum(trial.state.is_finished() for trial in stored.trials())
    words = [f"study={plan.study.study}-again", *kept, f"search.trials={max(total, 1)}"]
    again = ["python sweeps/optuna_search.py", *map(shlex.quote, words)]
    commands = {"search again": " ".join(again)}
    if len(board):
        commands["train the best configuration"] = study_results.best_command(plan, stored)
    commands["write this page"] = f"python sweeps/report.py {address_of(plan.study)}"
    return commands


def write_page(plan: StudyPlan, stored: StoredStudy, results: RunResults) -> Path:
    """Write ``<study>.html`` beside the studies, and log it to the study's run as ``study.html``.

    Args:
        plan: The study.
        stored: Its trials.
        results: Results of its runs.

    Returns:
        The path of the page.

    Raises:
        StudyError: If the study's runs are in another store, or the store does not take the page.
    """
    text = collect(plan, stored, results).html()
    path = plan.workspace.studies / f"{plan.study.study}.html"
    path.write_text(text)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "study.html"
        copy.write_text(text)
        results.tracker.add_file(require_parent(plan, stored, results.tracker), copy)
    return path


@contextmanager
def page_at_end(plan: StudyPlan, results: RunResults) -> Iterator[None]:
    """Write the page of a study when the block has ended, well or with a StudyError.

    What goes wrong with the page is a warning. A signal ends the block without a page: whoever
    stops a study wants it to stop.

    Args:
        plan: The study.
        results: Results of its runs.
    """
    try:
        yield
    except NoParentError:
        # its page would end with the same words
        raise
    except StudyError:
        _write_or_warn(plan, results)
        raise
    _write_or_warn(plan, results)


def _write_or_warn(plan: StudyPlan, results: RunResults) -> None:
    try:
        stored = find_study(plan.study, plan.workspace)
        # else another study of the same name would be shown
        refuse_changes(stored.study, plan.study, plan.run)
        _print_path(write_page(plan, stored, results), plan.workspace)
    except Exception as fault:  # the study is whole on the disk, whatever went wrong with its page
        name = plan.study.study
        warn(sentences.no_page(name, first_line(fault), address_of(plan.study)))


def _print_path(path: Path, workspace: Workspace) -> None:
    print_lines(f"the study in one page: {workspace.shown(path)}")


def show(plan: StudyPlan, stored: StoredStudy, results: RunResults) -> None:
    """Write the page, and print where it lies and where MLflow shows it."""
    _print_path(write_page(plan, stored, results), plan.workspace)
    parent_id = require_parent(plan, stored, results.tracker)
    print_lines(results.tracker.address(parent_id))
