"""The study in one page: collected, rendered as one HTML file that needs nothing else, kept on disk and in MLflow."""

import json
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import escape

from digit_study.config import compose, space
from digit_study.config.compose import ROOT
from digit_study.config.study_config import StudyConfig
from digit_study.registry.ledger import Ledger
from digit_study.study import page_tables as tables
from digit_study.study import results as report
from digit_study.study.outcomes import RUN_ID
from digit_study.study.page_networks import MOST_MISTAKES, Networks, networks
from digit_study.study.page_pictures import Picture, packed, packed_plotly, pictures
from digit_study.study.page_tables import Table
from digit_study.study.search import kept_elsewhere, parent_of
from digit_study.study.storage import CREATED, OVERRIDES, StoredStudy, find_study, refuse_changes
from digit_study.study.study_plan import StudyPlan, studies_folder
from digit_study.support import console
from digit_study.support.messages import StudyError, first_line
from digit_study.support.workspace import Workspace
from digit_study.tracking import database as stores
from digit_study.tracking import provenance as origin
from digit_study.tracking import queries as lookup
from digit_study.tracking import runs as run_log
from digit_study.tracking import upload as delivery
from digit_study.tracking import views
from digit_study.tracking.session import Tracker

#: The text of a page, where every value is escaped.
PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "report"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
#: Tags of the parent run that say what a result came from.
ORIGINS = {
    "code": "git.commit", "data": "dataset.name", "sha256 of the data": "dataset.sha256", "precision": "precision",
    "threads a trial": "threads", "TensorFlow": "version.tensorflow", "Keras": "version.keras",
    "Optuna": "version.optuna", "MLflow": "version.mlflow", "processor": "processor", "system": "os",
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What the study says: the accuracy with its interval, of which network, and what that rests on."""

    value: str
    network: str
    basis: list[str]  # sentences


@dataclass(frozen=True)
class Confirmation:
    """The study's latest confirmation, as a table and as what is drawn."""

    table: Table
    rows: list[
        dict[str, Any]
    ]  # name, mean, low, high, winner, values: one a seed; accuracies in [0, 1]
    summary: str


@dataclass(frozen=True)
class StudyPage:
    """All that the page shows."""

    name: str
    written: str
    answer: Answer
    facts: dict[str, str]
    leaderboard: Table
    front: Table | None  # of several objectives
    trials: Table
    pictures: list[Picture]
    networks: Networks
    confirmation: Confirmation | None
    ledger: Table
    origins: dict[str, str]
    commands: dict[str, str]


def plan_page(typed: StudyConfig) -> tuple[StudyPlan, StoredStudy]:
    """A study as its stores hold it, for which its digits need not be there any more; raises StudyError without one."""
    found = find_study(typed)
    uri = stores.require_store(
        typed.tracking.uri, "a page needs the runs of its study", "set MLFLOW_TRACKING_URI"
    )
    stores.prepare_store(uri)
    overrides = list(found.study.user_attrs[OVERRIDES])
    study: StudyConfig = compose.compose_config([*overrides, f"study='{typed.study}'"], "study")
    plan = StudyPlan(
        study, overrides, typed.run, "", space.parse_space(study.search.space, study.run), 1, uri
    )
    if (parent := parent_of(plan, found)) is None:
        raise kept_elsewhere(plan)
    run = run_log.client_of(uri).get_run(parent)
    baseline = lookup.recorded_config(run)
    if (
        typed.data.path is not None
    ):  # the same digits, should they no longer lie where the study found them
        baseline = replace(baseline, data=replace(baseline.data, path=typed.data.path))
    return replace(plan, run=baseline, dataset=run.data.tags["dataset.name"]), found


def collect(plan: StudyPlan, stored: StoredStudy, is_watched: bool = False) -> StudyPage:
    """Gather the page from Optuna, MLflow and the ledger; raises StudyError if the runs are in another store.

    One that ``is_watched`` is made after every trial, and does not ask each time on which machines all of them ran.
    """
    if (parent_id := parent_of(plan, stored)) is None:
        raise kept_elsewhere(plan)
    client, board = run_log.client_of(plan.uri), report.leaderboard(plan, stored)
    ledger = Ledger(Tracker(plan.uri, Workspace.of_project()), stores.REGISTERED_NAME)
    asked: list[Callable[[], Any]] = [
        partial(client.get_run, parent_id),
        partial(_confirmation, plan, stored, board),
    ]
    parent, confirmation, entries = lookup.each(
        plan.uri, lambda ask: ask(), [*asked, ledger.entries]
    )
    run_ids = [str(trial.user_attrs.get(RUN_ID)) for trial in stored.trials()]
    run_ids += [row[-1].text for row in confirmation.table.rows] if confirmation else []
    frame, is_front = report.trials_frame(plan, stored), len(plan.objectives) > 1
    answer = _confirmed_answer(confirmation) if confirmation else _searched_answer(plan, board)
    mixed = "" if is_watched else report.machines(plan, stored, parent_id)
    tags = origin.plain(parent.data.tags)
    origins = {name: tags[tag] for name, tag in ORIGINS.items() if tag in tags}
    if tags.get("git.dirty") == "true":
        origins["code"] = f"{origins.get('code', 'unknown')}, with changes that were not committed"
    return StudyPage(
        name=plan.study.study,
        written=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        answer=replace(
            answer, basis=[*answer.basis, *filter(None, [mixed and f"Trials were {mixed}."])]
        ),
        facts=_facts(plan, frame, board),
        leaderboard=tables.leaderboard_table(board),
        front=tables.front_table(report.pareto_front(plan, stored), plan.objectives)
        if is_front
        else None,
        trials=tables.trials_table(frame, plan.keys, plan.objectives),
        pictures=pictures(plan, stored),
        networks=networks(plan.uri, plan.run.data, board),
        confirmation=confirmation,
        ledger=tables.ledger_table(entries, run_ids),
        origins={**origins, "run of the study": str(parent.info.run_id)},
        commands=_commands(plan, stored, board),
    )


def _searched_answer(plan: StudyPlan, board: pd.DataFrame) -> Answer:
    """The answer of a search alone, which is partly luck."""
    if board.empty:
        return Answer("No answer yet", "", ["No trial has finished that keeps the constraints."])
    best, tied = board.iloc[0], int(board["tied"].sum())
    seeds = "one seed" if best["seeds"] == 1 else f"the mean of {best['seeds']} seeds"
    basis = [
        f"Measured on {best['n']:,} validation images, {seeds}; the interval is of the images (Wilson, 95 %).",
        f"{_count(tied, 'configuration')} of {len(board)} could be the best: with 95 % confidence they hold every one "
        "that truly is (McNemar, Holm).",
        "It was selected on these images, so it is partly luck: "
        f"python sweeps/confirm.py study={plan.study.study} measures that on fresh seeds.",
    ]
    value = console.with_interval(
        best["val_accuracy"], best["val_accuracy_low"], best["val_accuracy_high"]
    )
    return Answer(value, str(best["name"]), basis)


def _confirmed_answer(confirmation: Confirmation) -> Answer:
    """The answer of a confirmation: fresh seeds, on which nothing was selected."""
    winner = next(row for row in confirmation.rows if row["winner"])
    value = console.with_interval(winner["mean"], winner["low"], winner["high"])
    seeds = f"The mean over {len(winner['values'])} fresh seeds, on which nothing was selected; its 95 % interval is of "
    return Answer(value, str(winner["name"]), [f"{seeds}the seeds (t).", confirmation.summary])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _facts(plan: StudyPlan, frame: pd.DataFrame, board: pd.DataFrame) -> dict[str, str]:
    """The study in a line of numbers."""
    states = Counter(frame["state"])
    ended = {name: f"{states[name.upper()]}" for name in ("complete", "pruned", "fail", "running")}
    facts = {
        "trials": f"{len(frame)}",
        **{name: count for name, count in ended.items() if count != "0"},
    }
    if len(frame) and frame["finished"].notna().any():
        seconds = (frame["finished"].max() - frame["started"].min()).total_seconds()
        facts["from first to last"] = (
            f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
        )
    if len(board):
        facts |= {"could be best": f"{int(board['tied'].sum())} of {len(board)}"}
        facts |= {"validation images": f"{board['n'].iloc[0]:,}"}
    return {**facts, "data": plan.dataset, "objective": ", ".join(plan.objectives)}


def _confirmation(plan: StudyPlan, stored: StoredStudy, board: pd.DataFrame) -> Confirmation | None:
    """The latest confirmation of this study, not of one of the same name before ``search.fresh``; None without."""
    run = lookup.newest_confirmation(
        plan.uri, plan.study.study, float(stored.study.user_attrs.get(CREATED, 0.0))
    )
    if run is None:
        return None
    try:
        ranking, seeds = (
            lookup.artifact_table(plan.uri, run.info.run_id, name)
            for name in ("confirmation", "seeds")
        )
    except delivery.StoreFault as fault:
        console.warn(f"the confirmation {run.info.run_id} cannot be read: {first_line(fault)}")
        return None
    values = {name: group["val_accuracy"] for name, group in seeds.groupby("candidate")}
    images = stored.study.user_attrs.get("validation_images") or (
        int(board["n"].iloc[0]) if len(board) else None
    )
    if "sd_both" not in ranking:  # it was confirmed before these were kept
        deviations = ranking["name"].map(
            {name: float(np.std(value, ddof=1)) for name, value in values.items()}
        )
        ranking = ranking.assign(
            sd_seeds=deviations, sd_images=None, sd_both=None, sweep_val_accuracy=None
        )
    drawn = ranking[["name", "mean", "low", "high", "winner", "sweep_val_accuracy"]].to_dict(
        "records"
    )
    rows = [
        {**{str(key): value for key, value in row.items()}, "values": values[row["name"]].tolist()}
        for row in drawn
    ]
    tied, n = int(ranking["tied"].sum()), f" on {images:,} validation images" if images else ""
    summary = f"{_count(tied, 'candidate')} of {len(ranking)}{n} cannot be told from the best mean (Tukey over seeds, "
    summary += f"or Holm over images); of these run {run.data.tags['winner.run_id'][:8]} won."
    if (optimism := run.data.metrics.get("sweep_optimism")) is not None:
        summary += f" Optimism of the sweep, what its best lost on fresh seeds: {100 * optimism:+.2f} points."
    return Confirmation(tables.confirmation_table(ranking), rows, summary)


def _commands(plan: StudyPlan, stored: StoredStudy, board: pd.DataFrame) -> dict[str, str]:
    """What a person types to get the same again, by what it does."""
    kept = [text for text in stored.study.user_attrs[OVERRIDES] if not text.startswith("study=")]
    total = sum(trial.state.is_finished() for trial in stored.trials())
    words = [f"study={plan.study.study}-again", *kept, f"search.trials={max(total, 1)}"]
    commands = {
        "search again": " ".join(["python sweeps/optuna_search.py", *map(shlex.quote, words)])
    }
    if len(board):
        commands["train the best configuration"] = report.best_command(plan, stored)
    return {**commands, "write this page": f"python sweeps/report.py study={plan.study.study}"}


def render(page: StudyPage, version: int | None = None) -> str:
    """The page as HTML that loads nothing; ``version`` is of a watched one, which looks for the next by itself."""
    drawn = {
        "pictures": [
            {"name": one.name, "figure": one.figure} for one in page.pictures if one.figure
        ]
    }
    parts = {"plotly": packed_plotly(), "drawn": packed(json.dumps(drawn, separators=(",", ":")))}
    confirmed = page.confirmation.rows if page.confirmation else []
    data = {
        "curves": page.networks.curves, "compared": page.networks.compared, "images": page.networks.images,
        "confirmed": confirmed, "version": version, "most": MOST_MISTAKES,
    }  # fmt: skip
    return PAGES.get_template("study.html").render(page=page, data=data, packed=parts)


def render_fault(name: str, fault: str) -> str:
    """A page that says why there is none, and looks again by itself."""
    head = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="5"><link rel="icon" href="data:,">'
    return head + str(escape(f"The page of study {name} could not be written: {fault}"))


def write_page(plan: StudyPlan, stored: StoredStudy) -> Path:
    """Write ``mlruns/studies/<study>.html`` and log it to the study's run, as ``study.html``; returns the path.

    Raises StudyError if the study's runs are in another store, or the store does not take the page.
    """
    text = render(collect(plan, stored))
    path = studies_folder() / f"{plan.study.study}.html"
    path.write_text(text)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "study.html"
        copy.write_text(text)
        run_log.add_file(plan.uri, str(parent_of(plan, stored)), copy)
    return path


@contextmanager
def page_at_end(plan: StudyPlan) -> Iterator[None]:
    """Write the page of a study when the block has ended, well or with an error; a fault of that is told, not raised.

    A signal ends it without a page: whoever stops a study wants it to stop.
    """
    try:
        yield
    except StudyError:
        _write_and_tell(plan)
        raise
    _write_and_tell(plan)


def _write_and_tell(plan: StudyPlan) -> None:
    try:
        stored = find_study(plan.study)
        refuse_changes(
            stored.study, plan.study, plan.run
        )  # else another study of the same name would be shown
        tell(write_page(plan, stored))
    except (
        Exception
    ) as fault:  # the study is whole on the disk, whatever a picture of it stumbled over
        again = f"python sweeps/report.py study={plan.study.study}"
        console.warn(
            f"the page of study '{plan.study.study}' was not written: {first_line(fault)}; again with {again}"
        )


def tell(path: Path) -> None:
    """Print where a page is."""
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    console.console().print(f"the study in one page: {shown}", soft_wrap=True)


def show(plan: StudyPlan, stored: StoredStudy) -> None:
    """Write the page, and print where it lies and where MLflow shows it."""
    tell(write_page(plan, stored))
    where = views.address(
        run_log.client_of(plan.uri), plan.uri, str(parent_of(plan, stored)), children=False
    )
    console.console().print(where, soft_wrap=True)
