"""The study in one page: what stands on it, that it is safe to open and small, and who may watch it."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from lab import Lab, lab, wait_until  # noqa: F401
from recorded_store import add_run, make_store, predictions
from stub_worker import SPACE, Stubs, plan
from test_study_pictures import study_of

from digit_study.config import compose
from digit_study.config.study_config import StudyConfig
from digit_study.data.digits import load_digits
from digit_study.data.sources import SAMPLE_SHA256, DataConfig
from digit_study.registry.ledger import Ledger
from digit_study.report.figures import charts
from digit_study.report.figures import optuna_figures as study_pictures
from digit_study.report.figures import run_figures as figures
from digit_study.study import page_networks as networks
from digit_study.study import page_pictures as pictures
from digit_study.study import page_tables as tables
from digit_study.study import results as report
from digit_study.study import study_page as study
from digit_study.study import watch
from digit_study.study.confirmation import confirm
from digit_study.study.search import run_study
from digit_study.study.storage import CREATED, OVERRIDES, StoredStudy, refuse_changes
from digit_study.support.messages import StudyError
from digit_study.support.workspace import Workspace
from digit_study.tracking import database as stores
from digit_study.tracking import queries as lookup
from digit_study.tracking.session import Tracker

HOSTILE = "<img src=x onerror=alert(1)>'\"</script>"
MOST_BYTES = 5_000_000
TWO = "search.objectives=[{val_accuracy: maximize},{parameters: minimize}]"
compose.register("study", StudyConfig)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no PNGs: they take a second a study."""
    monkeypatch.setattr(study_pictures, "write", lambda *drawn: None)
    monkeypatch.setattr(charts, "comparison", lambda board, title: charts.message_figure("", ""))
    monkeypatch.setattr(figures, "write_data_figures", lambda digits, folder: None)


def search(store: str, *words: str, **how: Any) -> tuple[Any, StoredStudy]:
    wanted = plan("search.trials=4", "search.pruner=none", *words)
    return wanted, run_study(wanted, Stubs(store, **how).engine)


def page_of(wanted: Any, stored: StoredStudy) -> tuple[study.StudyPage, str]:
    page = study.collect(wanted, stored)
    return page, study.render(page)


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


def test_a_page_is_on_the_disk_and_beside_the_studys_run(store: str) -> None:
    wanted, stored = search(store)
    path = study.write_page(wanted, stored)
    text = path.read_text()
    assert path == stores.ARTIFACTS / "studies" / "s.html"
    assert_safe(text)
    parent = study.parent_of(wanted, stored)
    copy = mlflow.MlflowClient(store).download_artifacts(str(parent), "study.html")
    assert Path(copy).read_text() == text
    assert [one.path for one in mlflow.MlflowClient(store).list_artifacts(str(parent))].count(
        "study.html"
    ) == 1
    for word in (
        SAMPLE_SHA256,
        "python sweeps/optuna_search.py study=s-again",
        "python src/run.py data=mnist_sample",
    ):
        assert word in text


def test_the_answer_of_a_search_says_what_it_rests_on(store: str) -> None:
    page, _ = page_of(*search(store))
    board = page.leaderboard
    assert page.answer.value == board.rows[0][1].text
    assert "200 validation images" in page.answer.basis[0]
    assert (
        f"{len(board.marked)} configuration" in page.answer.basis[1]
        and "partly luck" in page.answer.basis[2]
    )
    assert page.facts["trials"] == "4" and page.confirmation is None and page.ledger.rows == []


def test_one_trial_makes_a_page(store: str) -> None:
    page, text = page_of(*search(store, "search.trials=1"))
    assert_safe(text)
    assert len(page.leaderboard.rows) == 1 and all(
        one.figure or one.problem for one in page.pictures
    )


def test_a_study_without_a_result_has_its_page_before_its_message(store: str, capsys: Any) -> None:
    wanted = plan("search.trials=2")
    with pytest.raises(StudyError, match="has no finished trial"), study.page_at_end(wanted):
        run_study(wanted, Stubs(store, lambda config, n: "failed").engine)
    text = (stores.ARTIFACTS / "studies" / "s.html").read_text()
    assert_safe(text)
    assert "No answer yet" in text and "training diverged" in text
    assert "Not drawn: no trial has the result that it shows" in text
    assert "the study in one page: " in capsys.readouterr().out


def test_several_objectives_have_their_front(store: str) -> None:
    page, text = page_of(*search(store, TWO, "search.sampler=random"))
    assert page.front is not None and len(page.front.rows) >= 1
    assert {"pareto"} <= {one.name for one in page.pictures} and 'id="front"' in text


@pytest.mark.slow
def test_a_confirmed_study_answers_with_fresh_seeds_and_both_kinds_of_noise(store: str) -> None:
    wanted, stored = search(store, "confirm.top=2", "confirm.seeds=3")
    confirm(wanted, stored, Stubs(store).engine)
    page, text = page_of(wanted, stored)
    assert_safe(text)
    assert page.confirmation is not None and "3 fresh seeds" in page.answer.basis[0]
    for row, shown in zip(page.confirmation.rows, page.confirmation.table.rows, strict=True):
        assert shown[3].number == pytest.approx(100 * np.std(row["values"], ddof=1))
        assert shown[5].number == pytest.approx(
            np.hypot(shown[3].number, shown[4].number), rel=1e-5
        )
    assert "Optimism of the sweep" in page.confirmation.summary


@pytest.mark.slow
def test_a_confirmation_from_before_noise_was_split_is_still_shown(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, stored = search(store, "confirm.top=2", "confirm.seeds=2")
    confirm(wanted, stored, Stubs(store).engine)
    added, read = (
        ["sd_seeds", "sd_images", "sd_both", "sweep_val_accuracy", "optimism"],
        lookup.artifact_table,
    )
    monkeypatch.setattr(
        lookup, "artifact_table", lambda *where: read(*where).drop(columns=added, errors="ignore")
    )
    page, text = page_of(wanted, stored)
    assert_safe(text)
    assert page.confirmation is not None
    assert [row["sweep_val_accuracy"] for row in page.confirmation.rows] == [None, None]
    for row, shown in zip(page.confirmation.rows, page.confirmation.table.rows, strict=True):
        assert shown[3].number == pytest.approx(100 * np.std(row["values"], ddof=1))
        assert [cell.text for cell in shown[4:6]] == ["–", "–"]


@pytest.mark.slow
def test_a_confirmation_of_an_older_study_of_the_same_name_is_not_shown(store: str) -> None:
    wanted, stored = search(store, "confirm.top=2", "confirm.seeds=2")
    confirm(wanted, stored, Stubs(store).engine)
    assert page_of(wanted, stored)[0].confirmation is not None
    stored.study.set_user_attr(CREATED, time.time())  # as search.fresh=true in a later process does
    assert page_of(wanted, stored)[0].confirmation is None


def test_promotions_stand_on_the_page_with_their_evidence(store: str) -> None:
    wanted, stored = search(store)
    own = stored.trials()[0].user_attrs["run_id"]
    ledger = Ledger(Tracker(store, Workspace.of_project()), stores.REGISTERED_NAME)
    for run_id in ("another", own):
        begun = ledger.record("begun", run_id, kind="promotion", study="s")
        ledger.append(
            begun["id"], "ended", outcome="promoted", reason=f"better {HOSTILE}", version="7"
        )
    page, text = page_of(wanted, stored)
    assert_safe(text)
    assert [row[1].text for row in page.ledger.rows] == ["promotion: promoted as version 7"] * 2
    assert page.ledger.marked == [0] and page.ledger.rows[0][2].text.startswith("better")


def test_a_stored_study_is_found_again_without_its_command_line(store: str) -> None:
    wanted, stored = search(store)
    found, again = study.plan_page(compose.compose_config(["study=s"], "study"))
    assert (found.dataset, found.run.model, found.objectives) == (
        wanted.dataset,
        wanted.run.model,
        wanted.objectives,
    )
    ignored = {"written", "commands"}
    one, other = (vars(study.collect(*pair)) for pair in ((wanted, stored), (found, again)))
    assert {key for key in one if one[key] != other[key]} <= ignored
    with pytest.raises(StudyError, match="did you mean 's'|must name a study that exists"):
        study.plan_page(compose.compose_config(["study=ss"], "study"))


def test_a_fault_of_the_page_is_told_in_a_line_and_raises_nothing(
    store: str, capsys: Any, monkeypatch: Any
) -> None:
    wanted, _ = search(store)
    monkeypatch.setattr(study, "collect", lambda plan, stored: 1 / 0)
    with study.page_at_end(wanted):
        pass
    said = capsys.readouterr().err
    assert (
        "the page of study 's' was not written: division by zero" in said and said.count("\n") == 1
    )


# --------------------------------------------------------------------------- names, sizes, numbers


def test_names_are_text_wherever_they_stand(store: str) -> None:
    wanted, stored = search(store)
    page = study.collect(wanted, stored)
    cell, compared = (
        tables.Cell(HOSTILE),
        [{"name": HOSTILE, "run_id": "r", "confusion": [], "says": [], "sure": []}],
    )
    board = replace(page.leaderboard, rows=[[cell] * 10], note=HOSTILE)
    bad = replace(
        page, name=HOSTILE, answer=study.Answer(HOSTILE, HOSTILE, [HOSTILE]), facts={HOSTILE: HOSTILE},
        leaderboard=board, networks=networks.Networks([{"name": HOSTILE, "epoch": []}], compared, [], HOSTILE),
        origins={HOSTILE: HOSTILE}, commands={HOSTILE: HOSTILE},
        pictures=[pictures.Picture(HOSTILE, HOSTILE, HOSTILE, None, HOSTILE)],
    )  # fmt: skip
    text = study.render(bad)
    assert_safe(text)
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") >= 10 and "\\u003cimg" in text
    assert text.count("</script>") == 4
    assert "&lt;img" in study.render_fault(HOSTILE, HOSTILE) and "<img" not in study.render_fault(
        HOSTILE, HOSTILE
    )


@pytest.mark.slow
def test_four_hundred_trials_of_twelve_keys_stay_small(store: str) -> None:
    page = study.collect(*search(store))
    wanted, stored = study_of(400, keys=12)
    wanted.run = SimpleNamespace(training=SimpleNamespace(epochs=3))
    frame = report.trials_frame(wanted, stored)
    trials = tables.trials_table(frame, [one.key for one in wanted.dimensions], wanted.objectives)
    text = study.render(replace(page, trials=trials, pictures=pictures.pictures(wanted, stored)))
    assert_safe(text)
    assert len(trials.rows) == 400 and "most important keys" in text


def test_columns_of_numbers_sort_as_numbers() -> None:
    frame = pd.DataFrame(
        {"number": [1, 2], "val_accuracy": [0.5, np.nan], "parameters": [1200, 90]}
    )
    table = tables.front_table(frame, {"val_accuracy": "maximize", "parameters": "minimize"})
    assert table.numeric == [True, True, True]
    assert [cell.text for cell in table.rows[1]] == ["2", "–", "90"] and table.rows[1][
        1
    ].number == float("-inf")


# --------------------------------------------------------------------------- two networks


@pytest.fixture
def board(migrated: Path, tmp_path: Path) -> tuple[str, pd.DataFrame]:
    """Two runs on the sample's validation images, the second with 60 mistakes, and a third without predictions."""
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
    found = networks.networks(
        board[0], DataConfig(source="mnist_sample", sha256=SAMPLE_SHA256), board[1]
    )
    assert [one["name"] for one in found.compared] == [
        "1: a=1",
        "2: a=2",
    ] and "Of 1 networks" in found.note
    wrong = [np.array(one["confusion"]) for one in found.compared]
    assert [int(one.sum() - np.trace(one)) for one in wrong] == [3, 60]
    assert 40 <= len(found.images) <= 43 and all(one["png"] for one in found.images)
    for one, most in zip(found.compared, (3, 43), strict=True):
        misread = [
            says
            for says, image in zip(one["says"], found.images, strict=True)
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
    found = networks.networks(board[0], source, board[1])
    assert len(found.compared) == 2 and not any(one["png"] for one in found.images)
    assert "not there any more" in found.note or "others than" in found.note


# --------------------------------------------------------------------------- watched


def new_server() -> AbstractContextManager[watch.PageServer]:
    return watch.serving(socket.create_server(("127.0.0.1", 0)))


@pytest.fixture(scope="module")
def server() -> Iterator[watch.PageServer]:
    with new_server() as serving:
        yield serving


def ask(
    server: watch.PageServer,
    path: str,
    host: str | None = None,
    method: str = "GET",
    **headers: str,
) -> Any:
    """Status and text of an answer; ``host`` is what the browser says that it asked."""
    port = server.socket.getsockname()[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": host or f"127.0.0.1:{port}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_the_newest_page_is_served_and_its_version_counts() -> None:
    with new_server() as server:
        assert "being written" in ask(server, "/")[1] and ask(server, "/version") == (200, "0")
        server.show("one")
        server.show("two")
        assert ask(server, "/") == (200, "two") and ask(server, "/version") == (200, "2")
        port = server.socket.getsockname()[1]
        assert ask(server, "/", f"localhost:{port}")[0] == 200
        assert ask(server, "/version", Origin=f"http://127.0.0.1:{port}")[0] == 200
        assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "origin"),
    [("evil.example", None), ("evil.example:{port}", None), ("127.0.0.1", None), ("127.0.0.1:1", None), ("", None),
     ("127.0.0.1:{port}", "http://evil.example"), ("127.0.0.1:{port}", "null"),
     ("127.0.0.1:{port}.evil.example", None)],
)  # fmt: skip
def test_a_foreign_host_or_origin_is_refused(
    host: str, origin: str | None, server: watch.PageServer
) -> None:
    server.show("secret")
    port = server.socket.getsockname()[1]
    headers = {"Origin": origin} if origin else {}
    for path in ("/", "/version", "/x"):
        status, text = ask(server, path, host.format(port=port) or " ", **headers)
        assert status == 403 and "secret" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/../../../../etc/passwd",
        "/?",
        "/version/",
        "/%2e%2e/",
        "/study.html",
        "*",
        ".",
    ],
)
def test_no_path_reaches_the_file_system(path: str, server: watch.PageServer) -> None:
    assert ask(server, path) == (404, "there is / and /version")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_only_reading_is_answered(method: str, server: watch.PageServer) -> None:
    assert ask(server, "/", method=method)[0] == 501


def test_a_page_that_cannot_be_drawn_says_so_where_it_is_watched(
    store: str, monkeypatch: Any
) -> None:
    wanted, stored = search(store)
    monkeypatch.setattr(study, "collect", lambda plan, stored, is_watched: 1 / 0)
    assert "could not be written: division by zero" in watch._render(wanted, stored, 1)


def test_a_study_goes_on_watched_or_not(store: str) -> None:
    _, stored = search(store, "search.watch=true")
    assert not any("watch" in text for text in stored.study.user_attrs[OVERRIDES])
    other = plan("search.trials=4", "search.pruner=none")
    refuse_changes(stored.study, other.study, other.run)
    assert "watch" in SPACE or len(search(store)[1].trials()) == 4


@pytest.mark.slow
def test_a_sweep_is_watched_until_it_ends(lab: Lab) -> None:  # noqa: F811
    sweep = lab.start("search.watch=true", "search.trials=3", "search.workers=1")
    sweep.wait_for("watch the study in a browser of this machine: ")
    line = next(line for line in sweep.lines if "http://" in line)
    port = int(line.rsplit(":", 1)[1].strip("/\n"))
    versions: set[str] = set()

    def grown() -> bool:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/version")
            versions.add(connection.getresponse().read().decode())
        except OSError:
            return sweep.process.poll() is not None
        return sweep.process.poll() is not None

    wait_until(grown, 120, "the sweep has ended")
    assert sweep.finish().code == 0 and versions
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)
    assert "the study in one page: mlruns/studies/" in "".join(sweep.lines)


@pytest.mark.slow
def test_what_watches_ends_with_a_killed_sweep(lab: Lab) -> None:  # noqa: F811
    sweep = lab.start("search.watch=true", "search.trials=30")
    sweep.wait_for("COMPLETE")
    sweep.process.kill()
    sweep.finish()  # the lab looks for what is left
