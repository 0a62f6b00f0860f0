"""The page of a study as a person uses it: in a real browser, from a file, and in MLflow."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import MISSING, REASON, chrome, console_errors, foreign_requests
from conftest import Project
from typed_study import CONFIRM, TypedStudy, wait_until

from digit_study.report.markdown import run_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=REASON),
]
WORDS = (
    "data=mnist_sample",
    "data.path=null",
    "data.validation=200",
    "data.limit=300",
    "training.epochs=2",
)


@pytest.fixture(scope="module")
def typed_study(
    project: Project, migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> TypedStudy:
    """A small study that was searched and confirmed, with its page."""
    folder = tmp_path_factory.mktemp("browser")
    made = TypedStudy(
        project,
        f"sqlite:///{shutil.copy(migrated, folder / 'mlflow.db')}",
        "looked-at",
        folder / "none.npz",
    )
    searched = made.run(*WORDS)
    assert searched.code == 0 and "the study in one page: " in searched.out, searched.err
    confirmed = made.run("confirm.top=2", "confirm.seeds=2", script=CONFIRM)
    assert confirmed.code == 0 and "the study in one page: " in confirmed.out, confirmed.err
    return made


@pytest.fixture
def page(typed_study: TypedStudy) -> str:
    return (typed_study.project.root / "mlruns" / "studies" / "looked-at.html").as_uri()


@pytest.fixture
def driver(page: str) -> Iterator[Any]:
    with chrome() as opened:
        opened.get(page)
        yield opened
        assert console_errors(opened) == []
        assert foreign_requests(opened, "file:") == []


def drawn(driver: Any, name: str) -> Any:
    """The picture of that name, once it is drawn: that is when it is scrolled to."""
    script = f"""const place = document.querySelector('[data-plot="{name}"]');
    place.scrollIntoView({{block: "center"}});
    return place.querySelector(".main-svg") ? place : null"""
    wait_until(lambda: driver.execute_script(script), 30, f"{name} is drawn")
    return driver.execute_script(script)


def texts(driver: Any, column: int) -> list[str]:
    rows = """return [...document.querySelectorAll("#leaderboard tbody tr")]"""
    return list(driver.execute_script(f"{rows}.map((row) => row.cells[{column}].innerText)"))


def test_every_picture_is_drawn(driver: Any) -> None:
    names = driver.execute_script(
        """return [...document.querySelectorAll("[data-plot]")].map((one) => one.dataset.plot)"""
    )
    assert {
        "optimisation_history",
        "slices",
        "contour",
        "parallel_coordinates",
        "timeline",
        "confirmed",
    } <= set(names)
    for name in names:
        drawn(driver, name)
    assert driver.execute_script("""return document.getElementById("problem").textContent""") == ""


def test_a_table_is_sorted_by_a_click_and_by_a_key(driver: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    buttons = driver.find_elements("css selector", "#leaderboard th button")
    parameters = next(
        at for at, button in enumerate(buttons) if button.text.startswith("parameters")
    )
    numbers = sorted(int(text.replace(",", "")) for text in texts(driver, parameters))
    buttons[parameters].click()
    assert [int(text.replace(",", "")) for text in texts(driver, parameters)] == numbers[::-1]
    buttons[parameters].send_keys(Keys.ENTER)
    assert [int(text.replace(",", "")) for text in texts(driver, parameters)] == numbers
    states = [
        heading.get_attribute("aria-sort")
        for heading in driver.find_elements("css selector", "#leaderboard th")
    ]
    assert states[parameters] == "ascending" and states.count("none") == len(states) - 1


def test_a_point_says_what_it_is(driver: Any) -> None:
    from selenium.webdriver import ActionChains

    place = drawn(driver, "val_accuracy")
    ActionChains(driver).move_to_element(
        place.find_element("css selector", ".scatterlayer .point")
    ).perform()
    wait_until(
        lambda: place.find_elements("css selector", ".hoverlayer .hovertext"),
        10,
        "the point is told",
    )
    assert "epoch" in place.find_element("css selector", ".hoverlayer").text


def test_any_two_networks_are_compared(driver: Any) -> None:
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", "a")).select_by_index(1)
    Select(driver.find_element("id", "b")).select_by_index(0)
    tables = driver.find_elements("css selector", "#matrices table")
    cells = [[cell.text for cell in table.find_elements("css selector", "td")] for table in tables]
    assert [len(matrix) for matrix in cells] == [100] * 3
    a, b, change = ([int(text.replace("−", "-") or 0) for text in matrix] for matrix in cells)
    assert sum(a) == sum(b) == 200 and [y - x for x, y in zip(a, b, strict=True)] == change
    shown = driver.execute_script(
        """return [...document.querySelectorAll("#mistakes img")].map((one) => one.naturalWidth)"""
    )
    assert shown and set(shown) == {28}


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_down_only(dark: bool, page: str) -> None:
    with chrome(width=390, height=800, dark=dark) as driver:
        driver.get(page)
        drawn(driver, "optimisation_history")
        drawn(driver, "slices")
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(17, 21, 26)" if dark else "rgb(246, 247, 249)")
        assert console_errors(driver) == []


@pytest.fixture(scope="module")
def ui(typed_study: TypedStudy) -> Iterator[str]:
    """Address of ``mlflow ui`` on the study's store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("ui", "--backend-store-uri", typed_study.uri, "--port", str(port), "--workers", "1")
    quiet = subprocess.DEVNULL
    server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], stdout=quiet, stderr=quiet)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}"), 90, "mlflow ui answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def test_mlflow_shows_the_page_as_an_artifact(typed_study: TypedStudy, ui: str) -> None:
    [parent] = [run for run in typed_study.runs() if run.data.tags["kind"] == "study"]
    with chrome(width=1600) as driver:
        page = run_page(parent.info.experiment_id, parent.info.run_id)
        driver.get(f"{ui}/{page}/artifacts/study.html")
        wait_until(
            lambda: driver.find_elements("css selector", "iframe"), 60, "the artifact is shown"
        )
        driver.switch_to.frame(driver.find_element("css selector", "iframe"))
        wait_until(lambda: driver.find_elements("css selector", "p.value"), 30, "the page is in it")
        assert "%" in driver.find_element("css selector", "p.value").text
        wait_until(
            lambda: driver.find_elements("css selector", "#matrices td"), 30, "its scripts run"
        )


def test_the_printed_address_opens_on_the_best_trial_and_the_answer(
    typed_study: TypedStudy, ui: str
) -> None:
    runs = typed_study.runs()
    [parent] = [run for run in runs if run.data.tags["kind"] == "study"]
    trials = [
        run
        for run in runs
        if run.data.tags["kind"] == "trial" and "val_accuracy" in run.data.metrics
    ]
    ranked = sorted(trials, key=lambda run: -run.data.metrics["val_accuracy"])
    page = f"runs?viewStateShareKey={parent.info.run_id}&workflowType=machine_learning"
    with chrome(width=1600) as driver:
        driver.get(f"{ui}/#/experiments/{parent.info.experiment_id}/{page}")
        names = [run.info.run_name for run in ranked]
        links = "//a[starts-with(., 'trial ')]"
        wait_until(
            lambda: len(driver.find_elements("xpath", links)) >= len(names),
            60,
            "the trials are listed",
        )
        shown = driver.find_element("css selector", "body").text
        assert driver.find_elements("xpath", links)[0].text.startswith(names[0][:20])
        assert all(word in shown for word in ("val_accuracy", "parameters", "model.filters", "% ["))
        best = f"{ranked[0].data.metrics['val_accuracy']:.3f}".rstrip("0")
        assert best in shown


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/health", timeout=1).close()
    except OSError:
        time.sleep(0.2)
        return False
    return True
