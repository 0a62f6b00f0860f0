"""What a person meets in MLflow: descriptions, shared views, addresses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from test_tracking import created

from digit_study.report.description import RunDescription, run_page
from digit_study.report.ranking import RankedTable, RankingKind
from digit_study.report.sentences import ranking_answer
from digit_study.stats.ranking import Candidate, leaderboard
from digit_study.support import machine
from digit_study.tracking import runs as run_log
from digit_study.tracking import upload as delivery
from digit_study.tracking import views

HOSTILE = "<img onerror=alert(1) src=x> | a `b` [c](d) *e*"


def board(count: int) -> pd.DataFrame:
    metrics = {"val_loss": 0.1, "parameters": 1000.0, "training_seconds": 1.0}
    right = [np.arange(200) >= 2 * number for number in range(count)]
    ranked = [
        Candidate(
            f"n={number} {HOSTILE}",
            f"{number:032x}",
            {**metrics, "val_accuracy": float(one.mean())},
            one,
            "d",
        )
        for number, one in enumerate(right)
    ]
    return leaderboard(ranked)


def description(store: str, run_id: str) -> str:
    return str(mlflow.MlflowClient(store).get_run(run_id).data.tags["mlflow.note.content"])


def test_a_note_begins_with_the_answer_and_links_the_first_ten() -> None:
    ranking = board(13)
    note = RunDescription(
        ranking_answer(ranking, "run"),
        "Question: what?",
        RankedTable.of(RankingKind.RUNS, ranking),
        ["n=1: broke"],
        ["figures/a.png"],
        "go on",
    )
    text = note.markdown("7", "f00")
    assert text.startswith(
        "**100.00 % \\[98.12, 100.00\\] of 200 validation images are classified correctly by the best run"
    )
    assert [text.count(f"#/experiments/7/runs/{number:032x})") for number in (0, 9, 10)] == [
        1,
        1,
        0,
    ]
    assert "The best 10 of 13" in text and "- n=1: broke" in text and "Next: `go on`" in text
    assert "[Compare these 10 runs side by side](#/compare-runs?runs=%5B%22000" in text
    assert "(#/experiments/7/runs/f00/artifacts/figures/a.png)" in text
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert len(rows) == 12 and "run id" not in rows[0]


def test_what_a_person_named_is_no_markup() -> None:
    table = RankedTable.of(RankingKind.RUNS, board(2))
    text = RunDescription(HOSTILE, HOSTILE, table, [HOSTILE]).markdown("1", "r")
    assert "\\<img onerror=alert(1) src=x\\> \\| a \\`b\\` \\[c\\](d) \\*e\\*" in text
    assert not re.search(r"(?<!\\)<", text)  # and so no tag, whatever draws it


def test_a_parent_its_experiment_and_a_view_say_what_was_found(store: str) -> None:
    first, second = created(store), created(store)
    for run_id, answer in ((first, "it is 16"), (second, "it is 32 | or 64")):
        run_log.RunLog(store, run_id).describe(
            RunDescription(answer, "Question: which?"), ["model.filters"]
        )
    client = mlflow.MlflowClient(store)
    run = client.get_run(second)
    assert (
        description(store, second) == "**it is 32 \\| or 64**\n\nQuestion: which?"
        and run.data.tags["answer"]
    )
    tags = client.get_experiment(run.info.experiment_id).tags
    said = tags["mlflow.note.content"]
    assert said.index("it is 32 \\| or 64") < said.index("it is 16")
    assert f"#/experiments/{run.info.experiment_id}/runs/{first}" in said
    view = json.loads(tags[f"mlflow.sharedViewState.{second}"])
    assert view["searchFilter"] == f"tags.mlflow.parentRunId = '{second}'"
    assert (
        view["selectedColumns"][0] == view["orderByKey"]
        and "params.`model.filters`" in view["selectedColumns"]
    )


def test_a_description_is_brought_up_to_date(store: str) -> None:
    log = run_log.RunLog(store, created(store))
    for answer in ("not yet", "it is 16"):
        log.describe(RunDescription(answer, "Question: which?"))
    assert description(store, log.run_id).startswith("**it is 16**")
    experiment = mlflow.MlflowClient(store).get_experiment(look_up(store, log.run_id))
    assert "not yet" not in experiment.tags["mlflow.note.content"]


def look_up(store: str, run_id: str) -> str:
    return str(mlflow.MlflowClient(store).get_run(run_id).info.experiment_id)


def test_a_parent_says_what_is_best_of_so_many(store: str) -> None:
    log = run_log.RunLog(store, created(store))
    for count, low in (
        (2, 0.9),
        (2, 0.9),
        (3, 0.8),
    ):  # ended, resumed with nothing to do, and with one trial more
        log.best(board(count).assign(val_accuracy_low=low), f"{count} trials")
    run, name = mlflow.MlflowClient(store).get_run(log.run_id), f"n=0 {HOSTILE}"
    assert log.fault is None and (run.data.tags["best.run_id"], run.data.tags["best.name"]) == (
        "0" * 32,
        name,
    )
    assert (
        run.data.metrics["best_val_accuracy"] == 1.0
        and run.data.metrics["best_val_accuracy_low"] == 0.8
    )
    ends = {"best_of_2_trials": "[90.00, 100.00]", "best_of_3_trials": "[80.00, 100.00]"}
    assert run.data.params == {
        key: f"{name}, 100.00 % {interval}" for key, interval in ends.items()
    }


def test_a_description_longer_than_mlflow_takes_is_cut(store: str) -> None:
    log = run_log.RunLog(store, created(store))
    log.describe(RunDescription("a" * 9000, "b"))
    assert log.fault is None and len(description(store, log.run_id)) == delivery.LONGEST_TAG


@pytest.mark.parametrize("children", [True, False])
def test_the_address_opens_the_view(
    children: bool, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "NEWEST", tmp_path / "newest")
    run_id = created(store)
    shown = views.address(mlflow.MlflowClient(store), store, run_id, children)
    command, place = shown.split(", then ")
    assert command.startswith("mlflow ui --backend-store-uri") and place.startswith(
        "http://127.0.0.1:5000/#/experiments/"
    )
    assert (f"viewStateShareKey={run_id}" in place) == children and (
        f"/runs/{run_id}" in place
    ) != children
    assert (
        place.endswith("workflowType=machine_learning")
        and (tmp_path / "newest").read_text() == f"{place}\n"
    )


def test_a_model_is_shown_by_its_version_or_by_its_run(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "NEWEST", tmp_path / "newest")
    client, run_id = mlflow.MlflowClient(store), created(store)
    mlflow.set_tracking_uri(store)  # from which MLflow takes what a version is made of
    experiment = look_up(store, run_id)
    made = client.create_logged_model(experiment, name="model", source_run_id=run_id)
    client.create_registered_model("digits, mine")
    for _ in range(2):
        client.create_model_version(
            "digits, mine", f"models:/{made.model_id}", model_id=made.model_id
        )
    client.set_registered_model_alias("digits, mine", "champion", "2")
    pages = {
        "models:/digits, mine@champion": "#/models/digits%2C%20mine/versions/2",
        "models:/digits, mine/1": "#/models/digits%2C%20mine/versions/1",
        f"models:/{made.model_id}": run_page(experiment, run_id),
        f"runs:/{run_id}/model": run_page(experiment, run_id),
    }
    for named, page in pages.items():
        shown = views.model_place(store, named)
        assert (
            shown == f"{views.view_command(store)}, then {views.LOCAL}/{page}?{views.TRAINING}"
        ), named
    for gone in ("models:/digits, mine@nobody", "models:/m-0123", "runs:/0123/model"):
        assert views.model_place(store, gone) == views.view_command(store)
    assert not views.NEWEST.exists()  # what only reads images is no new result


def test_without_a_store_that_answers_the_command_alone_is_shown(
    store: str, tmp_path: Path
) -> None:
    client = mlflow.MlflowClient(store)
    assert (
        views.address(client, store, "0" * 32, True) == f"mlflow ui --backend-store-uri '{store}'"
    )


def test_a_user_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.user_name.cache_clear()
    monkeypatch.setattr(machine.getpass, "getuser", lambda: "ada")
    assert machine.user_name() == "ada"
    machine.user_name.cache_clear()

    def nameless() -> str:
        raise KeyError("uid 1234")

    monkeypatch.setattr(machine.getpass, "getuser", nameless)
    assert machine.user_name() == "unknown"
    machine.user_name.cache_clear()


def test_a_run_of_more_than_seconds_says_what_its_machine_did(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "SECONDS_A_BATCH", 0.0)
    log = run_log.RunLog(store, created(store))
    log.epoch(1, {"val_loss": 1.0})
    log.opened -= run_log.SYSTEM_AFTER_S
    log.epoch(2, {"val_loss": 0.5})
    client = mlflow.MlflowClient(store)
    names = ["system/cpu_utilization_percentage", "system/system_memory_usage_percentage"]
    found = [client.get_metric_history(log.run_id, name) for name in names]
    assert [[one.step for one in history] for history in found] == [[2], [2]]
    assert all(0 <= history[0].value <= 100 for history in found)
