"""What a person meets in MLflow: descriptions, shared views, addresses."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from tracked import again, created, tracker, workspace

from digit_study.report.description import RunDescription
from digit_study.report.markdown import run_page
from digit_study.report.ranking import Medium, RankedTable, RankingKind
from digit_study.report.sentences import ranking_answer
from digit_study.report.terminal import fitted, rich_table
from digit_study.stats.race import rank_most_seeds_first
from digit_study.stats.ranking import Candidate, leaderboard
from digit_study.support import processes
from digit_study.support.formatting import p_equals
from digit_study.support.workspace import Workspace
from digit_study.tracking import pages
from digit_study.tracking.database import restore_command
from digit_study.tracking.location import local_address, view_command
from digit_study.tracking.session import Tracker

__all__ = ["tracker", "workspace"]
HOSTILE = "<img onerror=alert(1) src=x> | a `b` [c](d) *e*"


def board(count: int) -> pd.DataFrame:
    metrics = {"val_loss": 0.1, "parameters": 1000.0, "training_seconds": 1.0}
    right = [np.arange(200) >= 2 * number for number in range(count)]
    ranked = [
        Candidate(
            f"n={number} {HOSTILE}",
            f"{number:032x}",
            {**metrics, "val_accuracy": float(correct.mean())},
            correct,
            "d",
        )
        for number, correct in enumerate(right)
    ]
    return leaderboard(ranked)


def description(tracker: Tracker, run_id: str) -> str:
    return str(tracker.client.get_run(run_id).data.tags["mlflow.note.content"])


def test_a_note_begins_with_the_answer_and_links_the_first_ten() -> None:
    ranking = board(13)
    note = RunDescription(
        ranking_answer(ranking, "run"),
        "Asked: what?",
        RankedTable.of(RankingKind.RUNS, ranking),
        ["n=1: broke"],
        ["figures/a.png"],
        "go on",
    )
    text = note.markdown("7", "f00")
    assert text.startswith(
        "**100.00 % \\[98.12, 100.00\\] of 200 validation images are predicted correctly "
        "by the best run"
    )
    assert [text.count(f"#/experiments/7/runs/{number:032x})") for number in (0, 9, 10)] == [
        1,
        1,
        0,
    ]
    assert "The best 10 of 13." in text and "- n=1: broke" in text and "Next: `go on`" in text
    assert "[Compare these 10 runs side by side](#/compare-runs?runs=%5B%22000" in text
    assert "(#/experiments/7/runs/f00/artifacts/figures/a.png)" in text
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert len(rows) == 12 and "run id" not in rows[0]


def test_what_a_person_named_is_no_markup() -> None:
    ranking = RankedTable.of(RankingKind.RUNS, board(2))
    text = RunDescription(HOSTILE, HOSTILE, ranking, [HOSTILE]).markdown("1", "r")
    assert "\\<img onerror=alert(1) src=x\\> \\| a \\`b\\` \\[c\\](d) \\*e\\*" in text
    assert not re.search(r"(?<!\\)<", text)  # and so no tag, whatever draws it


def test_a_parent_its_experiment_and_a_view_say_what_was_found(tracker: Tracker) -> None:
    first = created(tracker)
    second = created(tracker)
    for run_id, answer in ((first, "it is 16"), (second, "it is 32 | or 64")):
        found = RunDescription(answer, "Asked: which?")
        tracker.writer(run_id).describe(found, ["model.filters"], ["trial.state"])
    run = tracker.client.get_run(second)
    assert description(tracker, second) == "**it is 32 \\| or 64**\n\nAsked: which?"
    assert run.data.tags["answer"]
    tags = tracker.client.get_experiment(run.info.experiment_id).tags
    said = tags["mlflow.note.content"]
    assert said.index("it is 32 \\| or 64") < said.index("it is 16")
    assert f"#/experiments/{run.info.experiment_id}/runs/{first}" in said
    view = json.loads(tags[f"mlflow.sharedViewState.{second}"])
    assert view["searchFilter"] == f"tags.mlflow.parentRunId = '{second}'"
    assert view["selectedColumns"][0] == view["orderByKey"]
    assert {"params.`model.filters`", "tags.`trial.state`"} < set(view["selectedColumns"])


def test_a_description_is_brought_up_to_date(tracker: Tracker) -> None:
    log = tracker.writer(created(tracker))
    for answer in ("not yet", "it is 16"):
        log.describe(RunDescription(answer, "Asked: which?"))
    assert description(tracker, log.run_id).startswith("**it is 16**")
    experiment = tracker.client.get_experiment(tracker.experiment_of(log.run_id))
    assert "not yet" not in experiment.tags["mlflow.note.content"]


def test_a_parent_says_what_is_best_of_so_many(tracker: Tracker) -> None:
    """When it has ended, when it is resumed with nothing to do, and with a trial more."""
    log = tracker.writer(created(tracker))
    for count, low in ((2, 0.9), (2, 0.9), (3, 0.8)):
        log.best(board(count).assign(val_accuracy_low=low), f"{count} trials")
    run = tracker.client.get_run(log.run_id)
    name = f"n=0 {HOSTILE}"
    assert log.fault is None
    assert (run.data.tags["best.run_id"], run.data.tags["best.name"]) == ("0" * 32, name)
    assert run.data.metrics["best_val_accuracy"] == 1.0
    assert run.data.metrics["best_val_accuracy_low"] == 0.8
    assert run.data.params == {
        "best_of_2_trials": f"{name}, 100.00 % [90.00, 100.00]",
        "best_of_3_trials": f"{name}, 100.00 % [80.00, 100.00]",
    }


#: Characters that MLflow takes as the value of a run's tag; it cuts what is longer.
LONGEST_TAG = 8000


def test_a_description_longer_than_mlflow_takes_is_cut(tracker: Tracker) -> None:
    log = tracker.writer(created(tracker))
    log.describe(RunDescription("a" * 9000, "b"))
    assert log.fault is None and len(description(tracker, log.run_id)) == LONGEST_TAG


@pytest.mark.parametrize("children", [True, False])
def test_the_address_opens_the_view(children: bool, tracker: Tracker) -> None:
    run_id = created(tracker)
    tracker.workspace.artifacts.mkdir()
    shown = tracker.address(run_id, children=children)
    command, place = shown.split(", then ")
    assert command == "mlflow ui"  # which finds the store of its folder
    assert place.startswith("http://127.0.0.1:5000/#/experiments/")
    assert (f"viewStateShareKey={run_id}" in place) == children
    assert (f"/runs/{run_id}" in place) != children
    assert place.endswith("workflowType=machine_learning")
    assert tracker.workspace.newest_result.read_text() == f"{place}\n"


def test_a_store_elsewhere_is_named_in_the_command(tracker: Tracker, tmp_path: Path) -> None:
    elsewhere = Tracker(tracker.uri, Workspace(tmp_path / "other"))
    shown = elsewhere.address(created(tracker))
    assert shown.startswith(f"mlflow ui --backend-store-uri '{tracker.uri}', then http")


@pytest.mark.parametrize("uri", ["sqlite:////home/me/it's mine/mlflow.db", "sqlite:////a/b.db"])
def test_a_shell_takes_the_commands_for_a_store_in_a_folder_of_any_name(
    uri: str, workspace: Workspace
) -> None:
    view = shlex.split(view_command(uri, workspace))
    assert view == ["mlflow", "ui", "--backend-store-uri", uri]
    restore = shlex.split(restore_command(uri, "run", "0123", workspace))
    assert restore[0] == f"MLFLOW_TRACKING_URI={uri}" and restore[-1] == "0123"


@pytest.mark.parametrize("server", ["http://127.0.0.1:5000", "databricks://mine"])
def test_a_page_of_a_server_needs_no_command(server: str, workspace: Workspace) -> None:
    shown = Tracker(server, workspace).page_address("#/models/m")
    assert shown == f"{server}/#/models/m?{pages.TRAINING}"


def test_a_model_is_shown_by_its_version_or_by_its_run(tracker: Tracker) -> None:
    client = tracker.client
    run_id = created(tracker)
    mlflow.set_tracking_uri(tracker.uri)  # from which MLflow takes what a version is made of
    experiment = tracker.experiment_of(run_id)
    made = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    client.create_registered_model("digits, mine")
    for _ in range(2):
        client.create_model_version(
            "digits, mine", f"models:/{made.model_id}", model_id=made.model_id
        )
    client.set_registered_model_alias("digits, mine", "champion", "2")
    shown_pages = {
        "models:/digits, mine@champion": "#/models/digits%2C%20mine/versions/2",
        "models:/digits, mine/1": "#/models/digits%2C%20mine/versions/1",
        f"models:/{made.model_id}": run_page(experiment, run_id),
        f"runs:/{run_id}/model": run_page(experiment, run_id),
    }
    for named, page in shown_pages.items():
        expected = f"mlflow ui, then {local_address()}/{page}?{pages.TRAINING}"
        assert tracker.model_address(named) == expected, named
    for gone in (
        "models:/digits, mine@nobody",
        "models:/digits, mine/9",
        "models:/m-0123",
        "runs:/0123/model",
    ):
        assert again(tracker).model_address(gone) == "mlflow ui"
    # what only predicts is no new result
    assert not tracker.workspace.newest_result.exists()


def test_without_a_store_that_answers_the_command_alone_is_shown(tracker: Tracker) -> None:
    assert tracker.address("0" * 32, children=True) == "mlflow ui"


def test_a_user_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.user_name.cache_clear()
    monkeypatch.setattr(processes.getpass, "getuser", lambda: "ada")
    assert processes.user_name() == "ada"
    processes.user_name.cache_clear()

    def nameless() -> str:
        raise KeyError("uid 1234")

    monkeypatch.setattr(processes.getpass, "getuser", nameless)
    assert processes.user_name() == "unknown"
    processes.user_name.cache_clear()


def trial_board() -> pd.DataFrame:
    """Three configurations of a search, the last of which has a conditional key."""
    names = ["3: filters=16 shift=1.5", "0: filters=8", "12: filters=32 shift=2 pooling=max"]
    return board(3).assign(name=names, p_adjusted=[1.0, 0.034, 4e-5])


def test_the_page_has_a_column_for_each_setting_and_the_terminal_a_short_name() -> None:
    ranking = RankedTable.of(RankingKind.CONFIGURATIONS, trial_board())
    page = ranking.view(Medium.PAGE)
    at = list(page.headings).index("trial")
    assert page.headings[at : at + 4] == ["trial", "filters", "shift", "pooling"]
    texts = [[cell.text for cell in row[at : at + 4]] for row in page.rows]
    assert texts == [["3", "16", "1.5", "–"], ["0", "8", "–", "–"], ["12", "32", "2", "max"]]
    p_values = [row[list(page.headings).index("p")].text for row in page.rows]
    assert p_values == ["1.000", "0.034", "<0.001"]
    assert "trial: configuration" in ranking.view(Medium.TERMINAL).headings
    named = RankedTable.of(RankingKind.CONFIGURATIONS, trial_board().assign(name=list("abc")))
    assert "trial: configuration" in named.view(Medium.PAGE).headings


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (160, []),
        (120, ["run id"]),
        (100, ["run id", "loss", "seconds"]),
        (80, ["run id", "loss", "seconds", "p", "robust"]),
    ],
)
def test_a_narrow_terminal_shows_the_names_and_leaves_out_what_matters_less(
    width: int, left_out: list[str]
) -> None:
    named = board(3).assign(name=[f"model.filters={number}" for number in (8, 16, 32)])
    whole = RankedTable.of(RankingKind.RUNS, named).view(Medium.TERMINAL)
    view = fitted(whole, width)
    assert set(whole.headings) - set(view.headings) == set(left_out)
    assert view.legend.endswith(", ".join(left_out))
    target = Console(width=width, file=io.StringIO())
    with target.capture() as shown:
        target.print(rich_table(view))
    assert "model.filters=32" in shown.get() and "best" in shown.get()
    assert max(map(len, shown.get().splitlines())) <= width


def test_candidates_stand_in_two_groups_and_the_table_says_so() -> None:
    table = pd.DataFrame(
        {
            "name": ["1: a=1", "2: a=2", "3: a=3", "4: a=4"],
            "run_id": list("abcd"),
            "mean": [0.90, 0.99, 0.95, 0.97],
            "low": [0.8] * 4,
            "high": [1.0] * 4,
            "parameters": [10] * 4,
            "seeds": [8, 3, 8, 4],
            "tied": [False, True, True, False],
        }
    )
    ordered = rank_most_seeds_first(table)
    assert list(ordered["name"]) == ["3: a=3", "1: a=1", "2: a=2", "4: a=4"]
    assert rank_most_seeds_first(ordered).equals(ordered)
    view = RankedTable.of(RankingKind.CANDIDATES, ordered).view(Medium.TERMINAL)
    assert view.sections == [2]
    assert view.note.startswith("First the 2 with all 8 seeds, below the line the 2 that left")
    even = RankedTable.of(RankingKind.CANDIDATES, rank_most_seeds_first(table.assign(seeds=3)))
    assert even.view(Medium.TERMINAL).note == "" and even.view(Medium.TERMINAL).sections == []


@pytest.mark.parametrize(
    ("value", "level", "text"),
    [
        (0.0341, 0.05, "p = 0.034"),
        (0.001, 0.05, "p = 0.001"),
        (0.00099, 0.05, "p <0.001"),
        (0.0, 0.05, "p <0.001"),
        (0.00012, 0.0005, "p = 0.00012"),
    ],
)
def test_no_p_value_is_printed_as_zero(value: float, level: float, text: str) -> None:
    assert p_equals(value, level) == text
