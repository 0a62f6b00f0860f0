"""The study in one page: what stands on it, and that it is safe to open and small."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from example_studies import study_of
from recorded_store import add_run, make_store, predictions
from stub_worker import Stubs, plan, results_of, runs, workspace

from digit_study.config import compose
from digit_study.config.study_config import StudyConfig
from digit_study.data.digits import load_digits
from digit_study.data.sources import SAMPLE_SHA256, DataConfig
from digit_study.registry.ledger import Ledger
from digit_study.report.figures import (
    charts,
    interactive,
    optuna_figures,
    ranking_figures,
    run_figures,
)
from digit_study.report.study_report import Answer, NetworkComparison, StudyReport
from digit_study.report.tables import Cell, TableView, front_table, trials_table
from digit_study.study import study_page
from digit_study.study.confirmation import confirm
from digit_study.study.page_networks import compare_networks
from digit_study.study.results import trials_frame
from digit_study.study.search import find_parent, run_study
from digit_study.study.storage import CREATED, StoredStudy
from digit_study.support.errors import StudyError
from digit_study.tracking.location import REGISTERED_NAME
from digit_study.tracking.session import Tracker

HOSTILE = "<img src=x onerror=alert(1)>'\"</script>"
MOST_BYTES = 5_000_000
TWO = "search.objectives=[{val_accuracy: maximize},{parameters: minimize}]"
compose.register("study", StudyConfig)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no PNGs: they take a second a study."""
    monkeypatch.setattr(optuna_figures, "write", lambda *drawn: None)
    monkeypatch.setattr(
        ranking_figures, "leaderboard_figure", lambda board, title: charts.message_figure("", "")
    )
    monkeypatch.setattr(run_figures, "write_data_figures", lambda digits, folder: None)


def search(store: str, *words: str, **how: Any) -> tuple[Any, StoredStudy]:
    wanted = plan("search.trials=4", "search.pruner=none", *words)
    return wanted, run_study(wanted, Stubs(store, **how).engine)


def collect(wanted: Any, stored: StoredStudy) -> StudyReport:
    return study_page.collect(wanted, stored, results_of(wanted.uri))


def page_of(wanted: Any, stored: StoredStudy) -> tuple[StudyReport, str]:
    page = collect(wanted, stored)
    return page, page.html()


def column(table: TableView, heading: str) -> list[Cell]:
    return [row[list(table.headings).index(heading)] for row in table.rows]


def assert_safe(text: str) -> None:
    """Small enough, loads nothing, and no name has become markup."""
    assert len(text.encode()) < MOST_BYTES
    assert (
        "<img" not in text
        and "<script src" not in text
        and 'http-equiv="Content-Security-Policy"' in text
    )
    resources = re.findall(
        r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"([^\"]*)\"", text
    )
    assert resources == ["data:,"]
    assert not re.search(r"https?://", text), "an address that could be loaded"


# --------------------------------------------------------------------------- what stands on it


@pytest.mark.slow
def test_a_page_is_on_the_disk_and_beside_the_studys_run(store: str) -> None:
    wanted, stored = search(store)
    path = study_page.write_page(wanted, stored, results_of(store))
    text = path.read_text()
    assert path == workspace().studies / "s.html"
    assert_safe(text)
    parent = find_parent(Stubs(store).tracker, stored)
    copy = mlflow.MlflowClient(store).download_artifacts(str(parent), "study.html")
    assert Path(copy).read_text() == text
    assert [file.path for file in mlflow.MlflowClient(store).list_artifacts(str(parent))].count(
        "study.html"
    ) == 1
    for word in (
        SAMPLE_SHA256,
        "python sweeps/optuna_search.py study=s-again",
        "python src/run.py data=mnist_sample",
    ):
        assert word in text


@pytest.mark.slow
def test_the_answer_of_a_search_says_what_it_rests_on(store: str) -> None:
    page, _ = page_of(*search(store))
    board = page.leaderboard
    assert page.answer.value == board.rows[0][1].text
    assert "200 validation images" in page.answer.basis[0]
    assert (
        f"{len(board.marked)} configuration" in page.answer.basis[1]
        and "partly luck" in page.answer.basis[2]
    )
    assert page.facts["trials"] == "4" and page.confirmation is None and page.promotions.rows == []


@pytest.mark.slow
def test_one_trial_makes_a_page(store: str) -> None:
    page, text = page_of(*search(store, "search.trials=1"))
    assert_safe(text)
    assert len(page.leaderboard.rows) == 1 and all(
        picture.figure or picture.problem for picture in page.pictures
    )


@pytest.mark.slow
def test_a_study_without_a_result_has_its_page_before_its_message(store: str, capsys: Any) -> None:
    wanted = plan("search.trials=2")
    with (
        pytest.raises(StudyError, match="has no finished trial"),
        study_page.page_at_end(wanted, results_of(store)),
    ):
        run_study(wanted, Stubs(store, lambda config, n: "failed").engine)
    text = (workspace().studies / "s.html").read_text()
    assert_safe(text)
    assert "No answer yet" in text and "training diverged" in text
    assert "Not drawn: no trial has the result that it shows" in text
    assert "the study in one page: " in capsys.readouterr().out


@pytest.mark.slow
def test_several_objectives_have_their_front(store: str) -> None:
    page, text = page_of(*search(store, TWO, "search.sampler=random"))
    assert page.front is not None and len(page.front.rows) >= 1
    assert {"pareto"} <= {picture.name for picture in page.pictures} and 'id="front"' in text


@pytest.mark.slow
def test_a_confirmed_study_answers_with_fresh_seeds_and_both_kinds_of_noise(store: str) -> None:
    wanted, stored = search(store, "confirm.top=2", "confirm.seeds=3")
    confirm(wanted, stored, results_of(store), Stubs(store).engine)
    page, text = page_of(wanted, stored)
    assert_safe(text)
    assert page.confirmation is not None and "3 fresh seeds" in page.answer.basis[0]
    table = page.confirmation.table
    by_seeds = [cell.number for cell in column(table, "± seeds")]
    by_images = [cell.number for cell in column(table, "± images")]
    both = [cell.number for cell in column(table, "± both")]
    deviations = [
        100 * np.std(candidate["values"], ddof=1) for candidate in page.confirmation.candidates
    ]
    assert by_seeds == pytest.approx(deviations)
    assert both == pytest.approx(np.hypot(by_seeds, by_images).tolist(), rel=1e-5)
    assert "Selection bias" in page.confirmation.summary


@pytest.mark.slow
def test_a_confirmation_from_before_noise_was_split_is_still_shown(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, stored = search(store, "confirm.top=2", "confirm.seeds=2")
    confirm(wanted, stored, results_of(store), Stubs(store).engine)
    added = ["sd_seeds", "sd_images", "sd_both", "sweep_val_accuracy", "selection_bias"]
    read = Tracker.artifact_table
    monkeypatch.setattr(
        Tracker,
        "artifact_table",
        lambda *where: read(*where).drop(columns=added, errors="ignore"),
    )
    page, text = page_of(wanted, stored)
    assert_safe(text)
    assert page.confirmation is not None
    candidates = page.confirmation.candidates
    assert [candidate["sweep_val_accuracy"] for candidate in candidates] == [None, None]
    table = page.confirmation.table
    deviations = [100 * np.std(candidate["values"], ddof=1) for candidate in candidates]
    assert [cell.number for cell in column(table, "± seeds")] == pytest.approx(deviations)
    for heading in ("± images", "± both"):
        assert [cell.text for cell in column(table, heading)] == ["–", "–"]


@pytest.mark.parametrize("name", ["selection_bias", "sweep_optimism"])
def test_a_selection_bias_is_read_under_its_earlier_name_too(name: str) -> None:
    run = SimpleNamespace(data=SimpleNamespace(metrics={name: 0.01}))
    assert study_page.selection_bias(run) == 0.01


@pytest.mark.slow
def test_a_confirmation_of_an_older_study_of_the_same_name_is_not_shown(store: str) -> None:
    wanted, stored = search(store, "confirm.top=2", "confirm.seeds=2")
    confirm(wanted, stored, results_of(store), Stubs(store).engine)
    assert page_of(wanted, stored)[0].confirmation is not None
    stored.study.set_user_attr(CREATED, time.time())  # as search.fresh=true in a later process does
    assert page_of(wanted, stored)[0].confirmation is None


@pytest.mark.slow
def test_a_confirmation_of_another_clones_study_of_the_same_name_is_not_shown(store: str) -> None:
    wanted, stored = search(store, "confirm.top=2", "confirm.seeds=2")
    confirm(wanted, stored, results_of(store), Stubs(store).engine)
    client = mlflow.MlflowClient(store)
    run = runs(store)["confirmation"]
    client.set_tag(run.info.run_id, "study.uid", "of another clone")
    assert page_of(wanted, stored)[0].confirmation is None
    # earlier versions did not say which study it is
    client.delete_tag(run.info.run_id, "study.uid")
    assert page_of(wanted, stored)[0].confirmation is not None


@pytest.mark.slow
def test_promotions_stand_on_the_page_with_their_evidence(store: str) -> None:
    wanted, stored = search(store)
    own = stored.trials()[0].user_attrs["run_id"]
    ledger = Ledger(Stubs(store).tracker, REGISTERED_NAME)
    for run_id in ("another", own):
        begun = ledger.record("begun", run_id, kind="promotion", study="s")
        ledger.append(
            begun["id"], "ended", outcome="promoted", reason=f"better {HOSTILE}", version="7"
        )
    page, text = page_of(wanted, stored)
    assert_safe(text)
    shown = page.promotions
    assert [row[1].text for row in shown.rows] == ["promotion: promoted as version 7"] * 2
    assert shown.marked == [0] and shown.rows[0][2].text.startswith("better")


@pytest.mark.slow
def test_a_stored_study_is_found_again_without_its_command_line(store: str) -> None:
    wanted, stored = search(store)
    tracker = results_of(store).tracker
    found, again = study_page.plan_page(compose.compose_config(["study=s"], "study"), tracker)
    assert (found.dataset, found.run.model, found.objectives) == (
        wanted.dataset,
        wanted.run.model,
        wanted.objectives,
    )
    ignored = {"written", "commands"}
    first, second = (vars(collect(*pair)) for pair in ((wanted, stored), (found, again)))
    assert {key for key in first if first[key] != second[key]} <= ignored
    with pytest.raises(StudyError, match="did you mean 's'|must name a study that exists"):
        study_page.plan_page(compose.compose_config(["study=ss"], "study"), tracker)


@pytest.mark.slow
def test_a_fault_of_the_page_is_told_in_a_line_and_raises_nothing(
    store: str, capsys: Any, monkeypatch: Any
) -> None:
    wanted, _ = search(store)
    monkeypatch.setattr(study_page, "collect", lambda plan, stored, results: 1 / 0)
    with study_page.page_at_end(wanted, results_of(store)):
        pass
    said = capsys.readouterr().err
    assert (
        "the page of study 's' was not written: division by zero" in said and said.count("\n") == 1
    )


@pytest.mark.slow
def test_the_commands_of_a_page_name_the_stores(
    store: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    places = (f"search.storage=sqlite:///{tmp_path}/o.db", f"tracking.uri={store}")
    address = f"study=s \"search.storage='sqlite:///{tmp_path}/o.db'\" \"tracking.uri='{store}'\""
    wanted, stored = search(store, *places)
    typed = compose.compose_config(["study=s", *places], "study")
    found, again = study_page.plan_page(typed, results_of(store).tracker)
    for page in (collect(wanted, stored), collect(found, again)):
        assert page.commands["write this page"] == f"python sweeps/report.py {address}"
        assert f"python sweeps/confirm.py {address}" in page.answer.basis[2]
    monkeypatch.setattr(study_page, "collect", lambda plan, stored, results: 1 / 0)
    capsys.readouterr()
    with study_page.page_at_end(wanted, results_of(store)):
        pass
    assert f"write it with python sweeps/report.py {address}" in capsys.readouterr().err


# --------------------------------------------------------------------------- names, sizes, numbers


@pytest.mark.slow
def test_names_are_text_wherever_they_stand(store: str) -> None:
    wanted, stored = search(store)
    page = collect(wanted, stored)
    cell, compared = (
        Cell(HOSTILE),
        [{"name": HOSTILE, "run_id": "r", "confusion": [], "says": [], "sure": []}],
    )
    board = replace(
        page.leaderboard,
        rows=[[cell] * len(page.leaderboard.headings)],
        note=HOSTILE,
        legend=HOSTILE,
        marked=[],
    )
    networks = NetworkComparison([{"name": HOSTILE, "epoch": []}], compared, [], HOSTILE)
    bad = replace(
        page, name=HOSTILE, answer=Answer(HOSTILE, HOSTILE, [HOSTILE]), facts={HOSTILE: HOSTILE},
        leaderboard=board, networks=networks,
        origins={HOSTILE: HOSTILE}, commands={HOSTILE: HOSTILE},
        pictures=[interactive.Picture(HOSTILE, HOSTILE, HOSTILE, None, HOSTILE)],
    )  # fmt: skip
    text = bad.html()
    assert_safe(text)
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") >= 10 and "\\u003cimg" in text
    assert text.count("</script>") == 4


@pytest.mark.slow
def test_four_hundred_trials_of_twelve_keys_stay_small(store: str) -> None:
    page = collect(*search(store))
    wanted, stored = study_of(400, keys=12)
    trials = trials_table(trials_frame(wanted, stored), wanted.keys, wanted.objectives)
    pictures = interactive.pictures(
        stored.study, wanted.objectives, wanted.keys, stored.hosts(), epochs=3
    )
    text = replace(page, trials=trials, pictures=pictures).html()
    assert_safe(text)
    assert len(trials.rows) == 400 and "most important keys" in text


def test_columns_of_numbers_sort_as_numbers() -> None:
    frame = pd.DataFrame(
        {"number": [1, 2], "val_accuracy": [0.5, np.nan], "parameters": [1200, 90]}
    )
    table = front_table(frame, {"val_accuracy": "maximize", "parameters": "minimize"})
    assert table.numeric == [True, True, True]
    assert [cell.text for cell in table.rows[1]] == ["2", "–", "90"] and table.rows[1][
        1
    ].number == float("-inf")


# --------------------------------------------------------------------------- two networks


@pytest.fixture
def board(migrated: Path, tmp_path: Path) -> tuple[str, pd.DataFrame]:
    """Two runs on the sample's validation images and a third without predictions.

    The first makes 3 mistakes, the second 60.
    """
    held = make_store(migrated, tmp_path)
    digits = load_digits(DataConfig(source="mnist_sample", sha256=SAMPLE_SHA256))
    labels, index = digits.validation_labels, digits.validation_index
    runs = []
    for wrong in (3, 60):
        says = np.where(np.arange(len(labels)) < wrong, (labels + 1) % 10, labels)
        runs.append(
            add_run(held, model=False, table=predictions(list(says), list(labels), list(index)))
        )
    runs.append(add_run(held, model=False))
    return held.uri, pd.DataFrame({"run_id": runs, "name": ["1: a=1", "2: a=2", "3: a=3"]})


def test_the_mistakes_of_two_networks_are_there_as_images(board: tuple[str, pd.DataFrame]) -> None:
    found = compare_networks(
        results_of(board[0]), DataConfig(source="mnist_sample", sha256=SAMPLE_SHA256), board[1]
    )
    assert [network["name"] for network in found.compared] == [
        "1: a=1",
        "2: a=2",
    ] and "Of 1 networks" in found.note
    wrong = [np.array(network["confusion"]) for network in found.compared]
    assert [int(matrix.sum() - np.trace(matrix)) for matrix in wrong] == [3, 60]
    assert 40 <= len(found.images) <= 43 and all(image["png"] for image in found.images)
    for network, most in zip(found.compared, (3, 43), strict=True):
        misread = [
            says
            for says, image in zip(network["says"], found.images, strict=True)
            if says != image["label"]
        ]
        assert len(misread) <= most
    json.dumps(found.compared)


@pytest.mark.parametrize(
    "source", [DataConfig(path="gone.npz"), DataConfig(source="mnist_sample", seed=5)]
)
def test_digits_that_are_gone_or_others_are_told(
    source: DataConfig, board: tuple[str, pd.DataFrame]
) -> None:
    found = compare_networks(results_of(board[0]), source, board[1])
    assert len(found.compared) == 2 and not any(image["png"] for image in found.images)
    assert "not there any more" in found.note or "others than" in found.note
