"""Take the README's screenshots: ``python tools/screenshots.py [study]``.

The study must have been searched, confirmed and promoted. The screenshots are of this project's own
stores: MLflow's view of the trials, the study's page, and the page to draw on with the champion.
Needs chromium and chromedriver.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from browser import MISSING, REASON, chrome

from digit_study.support.workspace import Workspace
from digit_study.tracking.session import open_store

#: The project's folder.
ROOT = Path(__file__).resolve().parents[1]
#: Where the screenshots go.
FOLDER = ROOT / "docs" / "images"
#: Where ``mlflow ui`` listens.
MLFLOW = "http://127.0.0.1:5000"
#: Side of the sheet that :data:`SEVEN` is meant for.
SHEET = 336
#: Strokes of a 7 with a bar, as points (x, y).
SEVEN = (
    [(90, 80), (170, 68), (246, 82), (196, 190), (160, 300)],
    [(140, 190), (240, 182)],
)
#: Colours of a screenshot; a page has no more.
COLOURS = 256
#: Seconds until MLflow's page has loaded.
MLFLOW_LOADS_S = 8
#: Seconds until the study's page has drawn its figures.
STUDY_LOADS_S = 5
#: Seconds until the page to draw on has answered, and until a panel has closed.
PAGE_ANSWERS_S = 2


@contextmanager
def running(*command: str, ready: str) -> Iterator[str]:
    """Run a command as long as the block lasts.

    Args:
        command: The command.
        ready: Text in the line that it prints when it is ready.

    Yields:
        That line.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        yield next(line for line in process.stdout if ready in line)
    finally:
        process.terminate()
        process.wait()


def save_screenshot(driver: Any, name: str) -> None:
    """Save what the window shows as ``<name>.png``."""
    from PIL import Image

    path = FOLDER / f"{name}.png"
    driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    print(path)


def show_mlflow(run_id: str, experiment: str) -> None:
    """Take MLflow's view of the trials of a study.

    Args:
        run_id: The study's parent run.
        experiment: Id of its experiment.
    """
    view = (
        f"#/experiments/{experiment}/runs?viewStateShareKey={run_id}&workflowType=machine_learning"
    )
    with (
        running(sys.executable, "-m", "mlflow", "ui", ready="startup complete"),
        chrome(width=1500, height=700) as driver,
    ):
        driver.get(f"{MLFLOW}/{view}")
        time.sleep(MLFLOW_LOADS_S)
        _close_assistant(driver)
        save_screenshot(driver, "mlflow")


def _close_assistant(driver: Any) -> None:
    """Close the assistant beside the page."""
    for label in ("Close", "close"):
        for button in driver.find_elements("css selector", f"button[aria-label='{label}']")[-1:]:
            driver.execute_script("arguments[0].click()", button)
    time.sleep(PAGE_ANSWERS_S)


def show_study(page: Path) -> None:
    """Take a study's page."""
    with chrome(width=1200, height=1000) as driver:
        driver.get(page.as_uri())
        time.sleep(STUDY_LOADS_S)
        save_screenshot(driver, "study")


def show_drawing() -> None:
    """Take the page to draw on, with a 7."""
    with (
        running(sys.executable, "src/draw.py", "--port=0", ready="Draw at") as line,
        chrome(width=1180, height=790) as driver,
    ):
        driver.get(line.split()[2])
        time.sleep(PAGE_ANSWERS_S)
        draw_seven(driver)
        time.sleep(PAGE_ANSWERS_S)
        save_screenshot(driver, "draw")


def draw_seven(driver: Any) -> None:
    """Draw :data:`SEVEN` with the mouse."""
    from selenium.webdriver.common.action_chains import ActionChains

    sheet = driver.find_element("id", "sheet")
    scale = sheet.rect["width"] / SHEET
    actions = ActionChains(driver, duration=10)
    for stroke in SEVEN:
        for number, (x, y) in enumerate(stroke):
            right = round((x - SHEET / 2) * scale)
            down = round((y - SHEET / 2) * scale)
            actions.move_to_element_with_offset(sheet, right, down)
            if number == 0:
                actions.click_and_hold()
        actions.release()
    actions.perform()


def main(study: str) -> None:
    """Take all three screenshots of a study."""
    if MISSING:
        sys.exit(REASON)
    workspace = Workspace.of_project()
    tracker = open_store(None, workspace)
    run_id = tracker.find_run({"kind": "study", "study": study})
    if run_id is None:
        sys.exit(f"study '{study}' must have been searched: python sweeps/optuna_search.py")
    show_mlflow(run_id, tracker.client.get_run(run_id).info.experiment_id)
    show_study(workspace.studies / f"{study}.html")
    show_drawing()


if __name__ == "__main__":
    STUDY = "default"
    if len(sys.argv) > 1:
        STUDY = sys.argv[1]
    main(STUDY)
