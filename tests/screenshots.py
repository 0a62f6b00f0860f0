"""The README's screenshots: ``python tests/screenshots.py [study]``, of a study that has been searched and confirmed.

They are of this project's own stores: MLflow's view of the trials, the study's page, and the page to draw on with the
champion. Needs chromium and chromedriver.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from browser import MISSING, REASON, chrome

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
SHOTS = ROOT / ".readme"
MLFLOW = "http://127.0.0.1:5000"
#: A 7 with a bar, on a sheet of 336 by 336.
SEVEN = ([(90, 80), (170, 68), (246, 82), (196, 190), (160, 300)], [(140, 190), (240, 182)])


@contextmanager
def serving(*command: str, says: str) -> Iterator[str]:
    """Run a command as long as the block; yields the line that says it is ready."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        yield next(line for line in process.stdout if says in line)
    finally:
        process.terminate()
        process.wait()


def shoot(driver: Any, name: str) -> None:
    """Save what the window shows, in 256 colours, which is all that a page has."""
    from PIL import Image

    path = SHOTS / f"{name}.png"
    driver.save_screenshot(str(path))
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    print(path)


def draw(driver: Any) -> None:
    """Draw :data:`SEVEN` with the mouse."""
    from selenium.webdriver.common.action_chains import ActionChains

    sheet = driver.find_element("id", "sheet")
    scale, actions = sheet.rect["width"] / 336, ActionChains(driver, duration=10)
    for stroke in SEVEN:
        for number, (x, y) in enumerate(stroke):
            actions.move_to_element_with_offset(
                sheet, round((x - 168) * scale), round((y - 168) * scale)
            )
            if number == 0:
                actions.click_and_hold()
        actions.release()
    actions.perform()


def main(study: str) -> None:
    """Take all three."""
    from digit_study.tracking import queries as lookup

    client, uri = lookup.open_store(None)
    run_id = lookup.find_run(uri, {"kind": "study", "study": study})
    if MISSING or run_id is None:
        sys.exit(
            REASON
            if MISSING
            else f"study '{study}' must have been searched: python sweeps/optuna_search.py"
        )
    experiment = client.get_run(run_id).info.experiment_id
    view = (
        f"#/experiments/{experiment}/runs?viewStateShareKey={run_id}&workflowType=machine_learning"
    )
    with (
        serving(str(Path(sys.executable).with_name("mlflow")), "ui", says="startup complete"),
        chrome(width=1500, height=700) as driver,
    ):
        driver.get(f"{MLFLOW}/{view}")
        time.sleep(8)
        for label in ("Close", "close"):  # the assistant beside the page
            for button in driver.find_elements("css selector", f"button[aria-label='{label}']")[
                -1:
            ]:
                driver.execute_script("arguments[0].click()", button)
        time.sleep(2)
        shoot(driver, "mlflow")
    with chrome(width=1200, height=1000) as driver:
        driver.get((ROOT / "mlruns" / "studies" / f"{study}.html").as_uri())
        time.sleep(5)
        shoot(driver, "study")
    with (
        serving(sys.executable, "src/draw.py", "--port=0", says="Draw at") as line,
        chrome(width=1180, height=790) as driver,
    ):
        driver.get(line.split()[2])
        time.sleep(2)
        draw(driver)
        time.sleep(2)
        shoot(driver, "draw")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
