"""The page to draw on, by its server: what it answers, refuses and keeps. No TensorFlow; real sockets."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import draw
from digit_study.apps.draw.drawing_store import NPZ, DrawingStore, sample
from digit_study.apps.draw.network_view import (
    CORNERS,
    PATCH,
    LoadedModel,
    NetworkSource,
    ServedNetwork,
    answer_with_saliency,
    display_name,
)
from digit_study.apps.draw.same_origin import listening_socket
from digit_study.apps.draw.server import PAGE, RequestLimits, make_app, make_server, predict_image
from digit_study.data.sources import DataConfig, read_npz, resolve
from digit_study.pictures.images import read_digit

ROOT = Path(__file__).parents[1]
HOSTILE = "<img src=x onerror=alert(1)>"


def by_brightness(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A stand-in for a model: certain, and of a digit that depends on the pixels."""
    return np.eye(10, dtype=np.float32)[images.sum(axis=(1, 2), dtype=np.int64) % 10]


def always(digit: int) -> Any:
    return lambda images: np.repeat(np.eye(10, dtype=np.float32)[[digit]], len(images), axis=0)


def network(
    model: Any = by_brightness, uri: str = "models:/m/1", version: str | None = None
) -> ServedNetwork:
    source = NetworkSource(uri, lambda: version, lambda: Path("a.keras"), lambda _: model)
    return ServedNetwork(source, LoadedModel(model, version))


def drawn(
    *strokes: list[tuple[int, int]],
    side: tuple[int, int] = (336, 336),
    width: int = 24,
    **save: Any,
) -> bytes:
    """A picture with black strokes on white; PNG unless ``save`` says otherwise."""
    image = Image.new("L", side, 255)
    for stroke in strokes:
        ImageDraw.Draw(image).line(stroke, fill=0, width=width, joint="curve")
    file = io.BytesIO()
    image.save(file, **{"format": "PNG", **save})
    return file.getvalue()


SEVEN = [(90, 80), (240, 80), (140, 270)]
DRAWN_7 = drawn(SEVEN)


@dataclass(frozen=True)
class Served:
    """A server in a thread of this process."""

    port: int
    folder: Path

    def ask(
        self, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> tuple[int, str, str]:
        """Status, content type and text of an answer; ``Host`` among the headers replaces the right one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
        finally:
            connection.close()

    def read(self, image: bytes, query: str = "") -> dict[str, Any]:
        status, _, text = self.ask(f"/read{query}", image)
        assert status == 200
        return dict(json.loads(text))

    def keep(self, image: bytes, label: str) -> dict[str, Any]:
        return dict(json.loads(self.ask(f"/keep?label={label}", image)[2]))


@contextmanager
def served(
    networks: list[ServedNetwork], folder: Path, limits: RequestLimits | None = None
) -> Iterator[Served]:
    with listening_socket(0) as listener:
        port = listener.getsockname()[1]
        server = make_server(make_app(networks, DrawingStore(folder), port, limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Served(port, folder)
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(
        [network(), network(always(3), HOSTILE)], tmp_path_factory.mktemp("page") / "kept"
    ) as page:
        yield page


# ---------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Host": "localhost:{port}"}, True),
        ({"Host": "[::1]:{port}", "Origin": "http://[::1]:{port}"}, True),
        ({"Origin": "http://127.0.0.1:{port}"}, True),
        ({"Host": "rebound.example:{port}"}, False),
        ({"Host": "127.0.0.1.example:{port}"}, False),
        ({"Host": "127.0.0.1:1"}, False),
        ({"Host": "localhost"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://127.0.0.1:{port}"}, False),
        (
            {"Origin": "http://localhost:{port}"},
            False,
        ),  # a page of this server under its other name is not this page
    ],
)
@pytest.mark.parametrize("path", ["/", "/state", "/read"])
def test_only_its_own_pages_are_answered(
    page: Served, headers: dict[str, str], allowed: bool, path: str
) -> None:
    given = {name: value.format(port=page.port) for name, value in headers.items()}
    status, _, text = page.ask(path, DRAWN_7 if path == "/read" else None, **given)
    assert status == (200 if allowed else 403)
    assert allowed or (text.count("\n") == 0 and "must be" in text)


def test_it_listens_on_the_loopback_address_alone(page: Served) -> None:
    with listening_socket(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/draw.html", "/docs", "/openapi.json"],
)
def test_no_path_reaches_the_file_system(page: Served, path: str) -> None:
    assert page.ask(path)[0] == 404


# ---------------------------------------------------------------------------------- the page itself


def test_the_page_may_run_its_own_script_only(page: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    nonces = []
    for _ in range(2):
        connection.request("GET", "/")
        answer = connection.getresponse()
        policy, html = answer.headers["Content-Security-Policy"], answer.read().decode()
        (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert html.count(f'nonce="{nonce}"') == 2 and "{{" not in html
        nonces.append(nonce)
    connection.close()
    assert nonces[0] != nonces[1]


def test_the_page_names_no_other_host_and_never_parses_text_as_html() -> None:
    html = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^/'\"\s]*", html)) == {
        "http://www.w3.org"
    }  # the name of SVG, never fetched
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|\son\w+=\"|style=\"", html
    )


def test_names_are_told_as_json_and_stand_nowhere_in_the_page(page: Served) -> None:
    status, kind, text = page.ask("/state")
    assert status == 200 and kind == "application/json"
    assert json.loads(text)["networks"] == ["m 1", HOSTILE]
    assert HOSTILE not in page.ask("/")[2]


def test_examples_are_unsealed_digits_of_every_class(page: Served) -> None:
    shown = np.array(json.loads(page.ask("/examples")[2]), np.uint8)
    images, labels = sample()
    assert [labels[(images[..., 0] == one).all(axis=(1, 2))][0] for one in shown] == list(range(10))


# ---------------------------------------------------------------------------------- reading


def test_a_drawing_is_read_as_predict_reads_its_file(page: Served, tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(DRAWN_7)
    expected = read_digit(tmp_path / "7.png")
    answer = page.read(DRAWN_7)
    assert answer["error"] is None and np.array_equal(answer["pixels"], expected)
    first, second = answer["answers"]
    assert (
        first["probabilities"] == by_brightness(expected[None])[0].tolist()
        and first["attention"] is None
    )
    assert first["digit"] == np.argmax(first["probabilities"]) and (
        second["network"],
        second["digit"],
    ) == (HOSTILE, 3)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (drawn(), "is blank"),
        (b"It was a seven, honestly.", "is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"", "is empty"),
        (DRAWN_7[:200], "is damaged"),
        (drawn(side=(10_000, 9_000)), "at most 80 megapixels"),
        (drawn(side=(4, 4)), "too small"),
    ],
)
@pytest.mark.parametrize("path", ["/read", "/keep?label=7"])
def test_what_is_no_digit_is_refused_in_words(
    page: Served, image: bytes, words: str, path: str
) -> None:
    status, _, text = page.ask(path, image)
    answer = json.loads(text)
    assert status == 200 and words in answer["error"] and answer["pixels"] is None
    assert DrawingStore(page.folder).names() == []


TWO_MARKS = drawn([(40, 60), (40, 290)], [(280, 60), (280, 290)])


def test_several_digits_are_read_and_never_kept(page: Served) -> None:
    answer = page.read(TWO_MARKS)
    assert answer["error"] is None and answer["pixels"] is None and answer["is_digit"]
    assert answer["size"] == [336, 336]
    for found in answer["answers"]:
        assert found["number"] == "".join(str(digit["digit"]) for digit in found["digits"])
        assert len(found["number"]) == 2 and 0 < found["probability"] <= 1
        lefts = [digit["box"][0] for digit in found["digits"]]
        assert lefts == sorted(lefts) and lefts[0] < 60 and lefts[1] > 250
    assert "2 marks of like size" in page.keep(TWO_MARKS, "7")["error"]
    assert DrawingStore(page.folder).names() == []


def test_marks_that_the_detector_refuses_are_read_with_a_warning() -> None:
    def accepts(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.zeros(len(images), np.bool_)

    answer = predict_image([network()], TWO_MARKS, with_saliency=False, accepts=accepts)
    assert answer["error"] is None and not answer["is_digit"]
    assert len(answer["answers"][0]["number"]) == 2


#: Wider than any digit: it may be one or two that touch.
WIDE = drawn([(40, 90), (100, 240), (168, 90), (236, 240), (296, 90)])


def sure_of(sure: list[int]) -> Any:
    """A stand-in for a model that is sure of some images of each call, by their index."""

    def model(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        answers = np.full((len(images), 10), 0.1, np.float32)
        answers[sure] = np.eye(10, dtype=np.float32)[4]
        return answers

    return model


@pytest.mark.parametrize(
    ("first", "second", "numbers"),
    [([0], [1, 2], ["4", "44"]), ([1, 2], [0], ["44", "4"]), ([1, 2], [1, 2], ["44", "44"])],
)
def test_each_network_shows_its_own_number(
    first: list[int], second: list[int], numbers: list[str]
) -> None:
    networks = [network(sure_of(first)), network(sure_of(second))]
    found = predict_image(networks, WIDE, with_saliency=False)
    assert [answer["number"] for answer in found["answers"]] == numbers
    assert [len(answer["digits"]) for answer in found["answers"]] == [*map(len, numbers)]
    assert found["pixels"] is None and found["size"] == [336, 336]


def test_a_digit_for_every_network_is_shown_as_a_digit() -> None:
    networks = [network(sure_of([0])), network(sure_of([0]))]
    found = predict_image(networks, WIDE, with_saliency=False)
    assert [answer["digit"] for answer in found["answers"]] == [4, 4]
    assert np.shape(found["pixels"]) == (28, 28)


@pytest.mark.parametrize("is_accepted", [True, False])
def test_a_picture_is_decoded_once_for_all_networks(is_accepted: bool) -> None:
    decoded = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "_decode":
            decoded.append(frame.f_code.co_filename)

    def accepts(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.full(len(images), is_accepted)

    sys.setprofile(note)
    try:
        found = predict_image([network()] * 2, TWO_MARKS, with_saliency=False, accepts=accepts)
    finally:
        sys.setprofile(None)
    assert found["error"] is None and found["is_digit"] is is_accepted
    assert len([file for file in decoded if file.endswith("image_files.py")]) == 1


def test_a_photo_of_twelve_megapixels_is_read(page: Served) -> None:
    photo = drawn(
        [(1300, 700), (2600, 700), (1800, 2400)], side=(4000, 3000), width=220, format="JPEG"
    )
    assert page.read(photo)["error"] is None


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_not_read_to_its_end(tmp_path: Path, declared: bool) -> None:
    sent = []

    def chunks() -> Iterator[bytes]:
        for number in range(10_000):
            sent.append(number)
            yield bytes(100_000)

    with served([network()], tmp_path, RequestLimits(max_bytes=100_000)) as page:
        try:
            status, _, text = page.ask("/read", bytes(200_000) if declared else chunks())
            assert status == 413 and "too large: at most" in text
        except (BrokenPipeError, ConnectionResetError):  # it hung up while this was still sending
            assert not declared
        assert len(sent) < 1_000


@pytest.mark.slow
def test_a_body_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    with (
        served([network()], tmp_path, RequestLimits(upload_s=0.2)) as page,
        socket.create_connection(("127.0.0.1", page.port), timeout=10) as slow,
    ):
        slow.sendall(
            f"POST /read HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nContent-Length: 99\r\n\r\nx".encode()
        )
        assert b" 408 " in slow.recv(100)


@pytest.mark.slow
def test_a_picture_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    def slow(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        time.sleep(0.4)
        return by_brightness(images)

    with served([network(slow)], tmp_path, RequestLimits(work_s=0.1)) as page:
        assert "takes longer than 0.1 s" in page.read(DRAWN_7)["error"]


@pytest.mark.slow
def test_eight_browsers_are_served_at_once(page: Served) -> None:
    images = [drawn([(x, y + 8 * browser) for x, y in SEVEN]) for browser in range(8)]
    expected = [page.read(image) for image in images]
    with ThreadPoolExecutor(8) as browsers:
        rounds = [list(browsers.map(page.read, images)) for _ in range(5)]
    assert all(answers == expected for answers in rounds)


# ---------------------------------------------------------------------------------- where it looked


def looks_at_a_corner(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Says 4, the surer the more ink lies in the upper left; ink in the lower right speaks against it."""
    lit = (images[:, 4:8, 4:8] / 255).mean(axis=(1, 2)) - 0.5 * (
        images[:, 20:24, 20:24] / 255
    ).mean(axis=(1, 2))
    answers = np.full((len(images), 10), 0.05, np.float32)
    answers[:, 4] += 0.5 * lit
    return answers


def test_the_map_shows_what_speaks_for_the_answer_and_what_against() -> None:
    digit = np.zeros((28, 28), np.uint8)
    digit[4:24, 4:24] = 255
    seen = answer_with_saliency(looks_at_a_corner, digit)
    assert seen.probabilities.argmax() == 4 and seen.saliency.shape == (28, 28)
    assert np.unravel_index(seen.saliency.argmax(), (28, 28)) <= (8, 8)
    assert seen.saliency[20:24, 20:24].max() < 0 and np.abs(seen.saliency[:, 12:16]).max() == 0


def test_a_pixel_of_the_map_is_the_mean_cost_of_covering_it() -> None:
    digit = np.random.default_rng(0).integers(1, 256, (28, 28)).astype(np.uint8)
    row, column, costs = 9, 6, []
    for top, left in CORNERS:
        if top <= row < top + PATCH and left <= column < left + PATCH:
            covered = digit.copy()
            covered[top : top + PATCH, left : left + PATCH] = 0
            costs.append(
                looks_at_a_corner(digit[None])[0, 4] - looks_at_a_corner(covered[None])[0, 4]
            )
    assert len(costs) == 9 and np.isclose(
        answer_with_saliency(looks_at_a_corner, digit).saliency[row, column],
        np.mean(costs),
        atol=1e-6,
    )


def test_the_map_comes_when_it_is_asked_for(page: Served) -> None:
    seen = page.read(DRAWN_7, "?look=1")["answers"]
    assert all(np.array(one["attention"]).shape == (28, 28) for one in seen)
    assert not np.any(seen[1]["attention"])  # a network that always says the same looks nowhere


# ---------------------------------------------------------------------------------- keeping


@pytest.mark.slow
def test_a_kept_drawing_can_be_trained_on(tmp_path: Path) -> None:
    with served([network()], tmp_path / "kept") as page:
        answer = page.keep(DRAWN_7, "7")
        page.keep(drawn([(168, 60), (168, 280)]), "1")
    assert answer["kept"] == 1 and re.fullmatch(r"7-[0-9a-f]{16}\.png", answer["file"])
    images, labels = read_npz(tmp_path / "kept" / NPZ, "train")
    assert images.shape == (4002, 28, 28, 1) and sorted(labels[-2:]) == [1, 7]
    assert np.array_equal(images[-1, ..., 0], read_digit(tmp_path / "kept" / answer["file"]))
    with np.load(tmp_path / "kept" / NPZ) as archive:
        assert sorted(archive) == ["x_train", "y_train"]  # the sealed digits are promotion's alone
    assert resolve(DataConfig(path=str(tmp_path / "kept" / NPZ))).images == 4002
    assert sorted(path.suffix for path in (tmp_path / "kept").iterdir()) == [".npz", ".png", ".png"]


def test_the_same_drawing_again_changes_its_label(tmp_path: Path) -> None:
    kept = DrawingStore(tmp_path)
    first, second = kept.add(DRAWN_7, "7"), kept.add(DRAWN_7, "1")
    assert kept.names() == [second] and first[1:] == second[1:]
    (tmp_path / second).unlink()  # what a person deletes is gone at the next one
    other = kept.add(drawn([(168, 60), (168, 280)]), "1")
    assert kept.names() == [other] and len(read_npz(tmp_path / NPZ, "train")[1]) == 4001


def test_a_kept_drawing_that_is_no_digit_hinders_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "3-0123456789abcdef.png"
    bad.write_bytes(drawn())
    kept = DrawingStore(tmp_path)
    kept.add(DRAWN_7, "7")
    kept.add(drawn([(168, 60), (168, 280)]), "1")
    assert sorted(read_npz(tmp_path / NPZ, "train")[1][4000:]) == [1, 7]
    told = capsys.readouterr().err
    assert told.count(bad.name) == 1 and "is blank" in told and "delete it" in told


def test_a_kept_photo_has_lost_what_a_camera_adds(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    name = DrawingStore(tmp_path).add(drawn(SEVEN, format="JPEG", exif=exif), "7")
    assert b"a maker" not in (tmp_path / name).read_bytes()


@pytest.mark.parametrize("label", ["", "10", "-1", "7.0", "..%2F..%2Fx", "%3Cb%3E", "٧"])
def test_a_label_is_one_of_ten(page: Served, label: str) -> None:
    from urllib.parse import quote

    answer = page.keep(DRAWN_7, quote(label, safe="%"))
    assert "a label must be a digit" in answer["error"] and not page.folder.exists()


def test_a_folder_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with served([network()], tmp_path / "file" / "kept") as page:
        assert "cannot be kept" in page.keep(DRAWN_7, "7")["error"]


# ---------------------------------------------------------------------------------- new champions


@dataclass
class Registry:
    """What an alias names; a version without a model cannot be loaded."""

    version: str = "1"
    answers: bool = True

    def named(self) -> str:
        if not self.answers:
            raise ConnectionError("the store is away")
        return self.version

    def load(self, file: Path) -> Any:
        if file.name == "9":
            raise ValueError("broken weights")
        return always(int(file.name))

    def network(self) -> ServedNetwork:
        source = NetworkSource(
            "models:/m@champion", self.named, lambda: Path(self.version), self.load
        )
        return ServedNetwork(source, LoadedModel(always(1), "1"))


def test_a_new_champion_answers_without_a_restart(capsys: pytest.CaptureFixture[str]) -> None:
    registry, digit = Registry(), np.zeros((28, 28), np.uint8)
    network = registry.network()
    assert network.name == "m 1 (champion)" and not network.refresh()
    registry.version, registry.answers = "2", False
    assert not network.refresh()
    registry.answers = True
    assert network.refresh() and not network.refresh()
    name, answer = network.predict(digit, with_saliency=False)
    assert name == "m 2 (champion)" and answer.probabilities.argmax() == 2
    registry.version = "9"
    assert not network.refresh() and not network.refresh() and network.name == "m 2 (champion)"
    assert capsys.readouterr().err.count("broken weights") == 1
    registry.version = "1"
    assert network.refresh() and network.name == "m 1 (champion)"


@pytest.mark.parametrize(
    ("uri", "version", "name"),
    [
        ("models:/digit-recognizer@champion", "3", "digit-recognizer 3 (champion)"),
        ("models:/digit-recognizer/2", None, "digit-recognizer 2"),
        ("runs:/0123/model", None, "runs:/0123/model"),
    ],
)
def test_a_network_is_called_by_its_version(uri: str, version: str | None, name: str) -> None:
    assert display_name(uri, version) == name


# ---------------------------------------------------------------------------------- as a person types it


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["modle=x"], "did you mean 'model'"),
        (["model="], "with a value"),
        (["--port=65536"], "[0, 65535]"),
        (["keep={file}"], "must be a folder"),
        (["--port={taken}"], "must be a free port"),
        (["--port=0", "model=nonsense"], "models:/digit-recognizer"),
        (["--port=0", "compare=nonsense", "model={file}"], "`compare` must be"),
        (["--port=0"], "promote.py"),
    ],
)
def test_a_mistake_gets_one_message(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.keras"
    file.write_text("")
    with listening_socket(0) as taken:
        given = [word.format(file=file, taken=taken.getsockname()[1]) for word in words]
        with pytest.raises(SystemExit, match="1"):
            draw.main([*given, f"tracking.uri=sqlite:///{tmp_path}/none.db"])
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("address", "allowed", "names"),
    [
        ("127.0.0.1", [], ["127.0.0.1:8765"]),
        ("127.0.0.1", ["localhost:9000"], ["127.0.0.1:8765", "localhost:9000"]),
        ("0.0.0.0", ["phone.local:8765"], ["127.0.0.1:8765", "phone.local:8765"]),
        ("192.168.1.5", ["192.168.1.5:8765"], ["192.168.1.5:8765"]),
    ],
)
def test_the_addresses_that_are_printed_are_listened_on(
    address: str, allowed: list[str], names: list[str]
) -> None:
    printed = draw.where_to_draw(address, 8765, allowed)
    assert re.findall(r"http://(\S+)/", printed) == names
    assert printed.startswith("Draw at ") and ("without a password" in printed) == bool(allowed)


@pytest.mark.slow
def test_what_is_missing_is_found_before_tensorflow_is_imported(tmp_path: Path) -> None:
    lines = f"""
import sys
sys.path.insert(0, {str(ROOT / "src")!r})
import draw
import pytest
with pytest.raises(SystemExit, match="1"):
    draw.main(["--port=0", "tracking.uri=sqlite:///{tmp_path}/none.db"])
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("is_digit", [True, False])
def test_a_drawing_that_the_detector_does_not_accept_is_answered_and_told(is_digit: bool) -> None:
    found = predict_image(
        [network(always(7))],
        drawn(SEVEN),
        with_saliency=False,
        accepts=lambda images: np.array([is_digit]),
    )
    assert found["is_digit"] is is_digit and found["answers"][0]["digit"] == 7
