"""The page to draw on as a person meets it: a real browser, a real network, real strokes."""

from __future__ import annotations

import base64
import http.server
import io
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import MISSING, REASON, chrome, console_errors, foreign_requests
from conftest import Command, Project
from PIL import Image, ImageDraw

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=REASON),
]

Points = list[tuple[float, float]]
ONE: Points = [(168, 60), (168, 280)]
SEVEN: Points = [(95, 80), (240, 80), (200, 160), (150, 280)]
ZERO: Points = [
    (168 + 70 * np.sin(turn), 168 - 105 * np.cos(turn)) for turn in np.linspace(0, 2 * np.pi, 15)
]
#: What a browser does with a file that a person drops or pastes.
GIVE = """
const [name, type, base64, how] = arguments, bytes = Uint8Array.from(atob(base64), c => c.charCodeAt(0))
const given = new DataTransfer(), sheet = document.getElementById("sheet")
given.items.add(new File([bytes], name, { type }))
const more = { dataTransfer: given, clipboardData: given, bubbles: true, cancelable: true }
if (how === "paste") sheet.dispatchEvent(new ClipboardEvent("paste", more))
else for (const kind of ["dragover", "drop"]) sheet.dispatchEvent(new DragEvent(kind, more))
"""


@dataclass(frozen=True)
class Page:
    """The page in a browser, and the folder in which it keeps drawings."""

    driver: Any
    kept: Path

    def text(self, name: str) -> str:
        return str(
            self.driver.execute_script(
                "return document.getElementById(arguments[0]).textContent", name
            )
        )

    def pixels(self, name: str) -> Any:
        """Grey levels of a canvas, shape (h, w), uint8."""
        url = self.driver.execute_script(
            "return document.getElementById(arguments[0]).toDataURL()", name
        )
        return np.asarray(
            Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L")
        )

    def wait_for(self, holds: Callable[[], object], what: str, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, (
                f"not within {seconds} s: {what}; the page says {self.text('notice')!r}"
            )
            time.sleep(0.02)

    def says(self, *words: str) -> None:
        """Wait until the page says all of ``words``, to those who see it and to those who hear it."""
        for name in ("notice", "live"):
            self.wait_for(
                lambda name=name: all(word in self.text(name) for word in words), " ".join(words)
            )

    def draw(self, *strokes: Points, pointer: str = "mouse") -> None:
        """Draw with a ``mouse``, a finger (``touch``) or a ``pen``.

        Points are those of the sheet, 336 high and 336 wide, or three times that.
        """
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        sheet = self.driver.find_element("id", "sheet")
        scale = sheet.rect["height"] / 336
        middle = sheet.rect["width"] / scale / 2
        actions = ActionChains(self.driver, duration=10, devices=[PointerInput(pointer, pointer)])
        for stroke in strokes:
            (x, y), *rest = [
                (round((x - middle) * scale), round((y - 168) * scale)) for x, y in stroke
            ]
            actions.move_to_element_with_offset(sheet, x, y).click_and_hold()
            for x, y in rest:
                actions.move_to_element_with_offset(sheet, x, y)
            actions.release()
        actions.perform()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, label: str) -> None:
        self.driver.find_element(
            "xpath", f"//button[.='{label}' or starts-with(@aria-label, '{label}')]"
        ).click()

    def give(self, name: str, kind: str, content: bytes, how: str = "drop") -> None:
        self.driver.execute_script(GIVE, name, kind, base64.b64encode(content).decode(), how)

    def clear(self) -> None:
        self.press("\ue00c")  # Esc
        self.says("Blank")


def drawn(stroke: Points, scale: float = 1.0, **save: Any) -> bytes:
    image = Image.new("L", (round(336 * scale), round(252 * scale)), 250)
    points = [(x * scale, 0.75 * y * scale) for x, y in stroke]
    ImageDraw.Draw(image).line(points, fill=30, width=round(18 * scale), joint="curve")
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **save})
    return file.getvalue()


@pytest.fixture(scope="module")
def network(
    project: Project, migrated: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """URI of a store, and of a network in it that reads plain drawings: two seconds on the sample."""
    import mlflow

    store = f"sqlite:///{shutil.copy(migrated, tmp_path_factory.mktemp('store') / 'mlflow.db')}"
    words = (
        "data=mnist_sample",
        "model.filters=16",
        "training.epochs=5",
        "training.seed=1",
        f"tracking.uri={store}",
    )
    done = project.run(*words)
    assert done.code == 0, done.err
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return store, f"runs:/{run.info.run_id}/model"


@pytest.fixture(scope="module")
def server(
    project: Project, network: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """Address of the page, and the folder of kept drawings; ends with Ctrl-C, silently."""
    store, model = network
    kept = tmp_path_factory.mktemp("kept")
    words = (
        "--port=0",
        f"model={model}",
        f"compare={model}",
        f"keep={kept}",
        f"tracking.uri={store}",
    )
    command: Command = project.start(*words, script="src/draw.py")
    command.wait_for("Draw at http://127.0.0.1:")
    yield command.lines[0].split()[2], kept
    command.process.send_signal(signal.SIGINT)
    done = command.finish(30)
    assert done.code == 0 and done.err == ""


@pytest.fixture(scope="module")
def opened(server: tuple[str, Path]) -> Iterator[Page]:
    address, kept = server
    with chrome(width=1280) as driver:
        driver.get(address)
        yield Page(driver, kept)


@pytest.fixture
def page(opened: Page, server: tuple[str, Path]) -> Iterator[Page]:
    """The page with an empty sheet; afterwards its console must be clean, and nothing asked of another host."""
    opened.press("\ue00c")
    opened.says("Blank")
    yield opened
    assert console_errors(opened.driver) == []
    assert foreign_requests(opened.driver, server[0]) == []


@pytest.mark.parametrize("pointer", ["mouse", "touch", "pen"])
@pytest.mark.parametrize(("stroke", "digit"), [(ONE, 1), (SEVEN, 7), (ZERO, 0)])
def test_a_digit_is_read_as_it_is_drawn(
    page: Page, stroke: Points, digit: int, pointer: str
) -> None:
    page.draw(stroke, pointer=pointer)
    page.says(f"Both read {digit}, ")
    (first, second) = page.driver.find_elements("css selector", ".answer")
    assert (
        first.find_element("css selector", ".digit").text
        == second.find_element("css selector", ".digit").text
        == str(digit)
    )
    bars = [bar.text.split() for bar in first.find_elements("css selector", ".bars li")]
    assert [int(bar[0]) for bar in bars] == list(range(10))
    assert abs(sum(float(bar[1]) for bar in bars) - 100) < 1
    assert 0 < page.pixels("seen").mean() < 128
    assert all(
        "covering costs" in one.text
        for one in page.driver.find_elements("css selector", ".map figcaption")
    )


def test_the_answer_changes_before_the_pen_is_lifted(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    sheet = page.driver.find_element("id", "sheet")
    actions = ActionChains(page.driver, duration=10)
    actions.move_to_element_with_offset(
        sheet, 0, -110
    ).click_and_hold().move_to_element_with_offset(sheet, 0, 110).perform()
    page.wait_for(lambda: "1, " in page.text("notice"), "a 1 while the pen is down")
    ActionChains(page.driver).release().perform()


@pytest.mark.parametrize(
    ("strokes", "words"),
    [
        ([[(168, 168)]], ("The drawing shows a solid shape",)),
    ],
)
def test_what_is_no_digit_is_refused_in_words(
    page: Page, strokes: list[Points], words: tuple[str, ...]
) -> None:
    page.draw(*strokes)
    page.says(*words)
    assert {one.text for one in page.driver.find_elements("css selector", ".digit")} == {"–"}
    assert not page.driver.find_element("css selector", "#labels button").is_enabled()


def test_a_number_is_written_on_the_wide_sheet(page: Page) -> None:
    page.click("Wide sheet")
    assert page.pixels("sheet").shape == (336, 1008)
    for number, digit in enumerate([SEVEN, ONE, ZERO]):
        page.draw([(x + 336 * number, y) for x, y in digit])
    page.says("Both read 710, ")
    boxes = page.driver.find_elements("css selector", "#boxes div")
    assert [box.text for box in boxes] == ["7", "1", "0"]
    sheet = page.driver.find_element("id", "sheet").rect
    for number, box in enumerate(boxes):
        middle = box.rect["x"] + box.rect["width"] / 2 - sheet["x"]
        assert number / 3 < middle / sheet["width"] < (number + 1) / 3
    bars = page.driver.find_elements("css selector", ".answer:first-child .bars li")
    assert [bar.text.split()[0] for bar in bars] == ["7", "1", "0"]
    assert not page.driver.find_element("id", "pixels").is_displayed()
    # a single digit there is read as on the other sheet
    page.clear()
    page.draw([(x + 336, y) for x, y in SEVEN])
    page.says("Both read 7, ")
    assert not page.driver.find_elements("css selector", "#boxes div")
    assert len(page.driver.find_elements("css selector", ".answer:first-child .bars li")) == 10
    page.click("Wide sheet")
    assert page.pixels("sheet").shape == (336, 336)
    page.says("Blank")


def test_undo_and_clear(page: Page) -> None:
    page.draw(SEVEN)
    page.says("Both read 7")
    page.draw([(30, 60), (30, 290)], [(320, 60), (320, 290)])
    page.says("Both read 171, ")
    for _ in range(2):
        page.click("Undo")
    page.says("Both read 7")
    page.clear()
    page.click("Undo")
    page.says("Both read 7")


def test_thicker_and_thinner(page: Page) -> None:
    amounts = []
    for keys in ("", "++", "----"):
        page.press(*keys)
        page.draw(SEVEN)
        page.says("Both read 7")
        amounts.append((page.pixels("sheet") < 128).sum())
        page.clear()
    page.press("++")
    assert amounts[1] > 1.3 * amounts[0] and amounts[2] < 0.8 * amounts[0]


def test_a_digit_is_drawn_with_the_keyboard_alone(page: Page) -> None:
    page.driver.find_element("id", "sheet").send_keys(" ", *["\ue015"] * 16, " ")  # arrow down
    page.says("Both read 1")


@pytest.mark.parametrize(
    ("name", "kind", "content", "words"),
    [
        ("seven.png", "image/png", drawn(SEVEN), ("Both read 7",)),
        ("photo.jpg", "image/jpeg", drawn(SEVEN, 12, format="JPEG"), ("Both read 7",)),
        ("notes.png", "image/png", b"It was a seven, honestly.", ("“notes.png” is not an image",)),
        ("blank.png", "image/png", drawn([(-50, -50), (-50, -60)]), ("“blank.png” is blank",)),
        ("<b>x</b>.png", "image/png", b"no", ("“<b>x</b>.png” is not an image",)),
        ("huge.png", "image/png", bytes(17 * 2**20), ("“huge.png” is too large", "16 MB")),
    ],
)
def test_a_file_that_is_dropped(
    page: Page, name: str, kind: str, content: bytes, words: tuple[str, ...]
) -> None:
    page.give(name, kind, content)
    page.says(*words)


def test_a_picture_is_pasted_or_opened(page: Page, tmp_path: Path) -> None:
    page.give("image.png", "image/png", drawn(SEVEN), "paste")
    page.says("Both read 7")
    page.clear()
    (tmp_path / "zero.png").write_bytes(drawn(ZERO))
    page.driver.find_element("id", "open").send_keys(str(tmp_path / "zero.png"))
    page.says("Both read 0")


def test_an_example_is_read(page: Page) -> None:
    page.wait_for(lambda: page.driver.find_elements("css selector", "#examples button"), "examples")
    page.click("Example of a 0")
    page.wait_for(lambda: "Blank" not in page.text("notice"), "an answer")
    assert page.pixels("seen").max() > 200  # its ink, whichever was drawn


def test_a_labelled_drawing_is_kept_and_trained_on(
    page: Page, project: Project, typed_store: str
) -> None:
    page.draw(SEVEN)
    page.says("Both read 7")
    page.click("That was a 7")
    page.wait_for(lambda: "Kept as a 7" in page.text("kept"), "that it is kept")
    (file,) = page.kept.glob("7-*.png")
    assert file.name in page.text("kept") and str(page.kept / "drawings.npz") in page.text("kept")
    words = (
        f"data.path={page.kept / 'drawings.npz'}",
        "training=smoke",
        "training.epochs=1",
        "model=tiny",
    )
    done = project.run(*words, f"tracking.uri={typed_store}")
    assert done.code == 0, done.err


def test_another_site_and_a_name_of_its_own_for_this_machine_are_refused(
    server: tuple[str, Path],
) -> None:
    address, kept = server
    port = address.rstrip("/").rpartition(":")[2]
    drawing = base64.b64encode(drawn(SEVEN)).decode()
    # what a hostile page does while the person has the drawing page open: it keeps a drawing, and reads an answer
    attack = """
    const [address, drawing, done] = arguments, body = Uint8Array.from(atob(drawing), c => c.charCodeAt(0))
    const post = (path, mode) => fetch(address + path, { method: "POST", body, mode }).then(() => "sent", () => "no")
    Promise.all([post("keep?label=3", "no-cors"), post("read?look=0", "cors")]).then(done)
    """
    rebinding = f"--host-resolver-rules=MAP evil.test 127.0.0.1:{port}"
    with (
        chrome(rebinding) as driver,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as site,
    ):
        threading.Thread(target=site.serve_forever, daemon=True).start()
        driver.get(address)
        assert driver.execute_async_script(attack, address, drawing) == ["sent", "sent"]
        own = sorted(kept.glob("3-*.png"))
        driver.get(f"http://127.0.0.1:{site.server_address[1]}/")
        assert driver.execute_async_script(attack, address, drawing)[1] == "no"
        driver.get("http://evil.test/")
        assert "`Host` must be one of" in driver.find_element("css selector", "body").text
        site.shutdown()
    assert own and sorted(kept.glob("3-*.png")) == own


class Hostile(http.server.BaseHTTPRequestHandler):
    """A site of somebody else's."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>win a prize</title>")

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def test_it_is_usable_on_a_phone_and_in_the_dark(page: Page) -> None:
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    assert (
        page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        == "rgb(20, 22, 26)"
    )
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_everything_that_can_be_pressed_has_a_name(page: Page) -> None:
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    pressed = [
        node
        for node in tree
        if node.get("role", {}).get("value") in ("button", "application", "image")
    ]
    assert len(pressed) > 20 and all(node["name"]["value"] for node in pressed), json.dumps(pressed)
