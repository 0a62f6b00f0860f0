"""Measure how long a stroke waits for its answer on the page to draw on, over its own sockets.

    python tests/benchmarks/bench_draw.py [model=… compare=… tracking.uri=…]

Without settings it uses a network of 421,930 parameters that is untrained, which takes as long. It
prints the median and the 95th percentile of a browser that draws, of eight at once, and with the
saliency map, in milliseconds from the question to the last byte of the answer. Under 50 ms at the
median is the aim.
"""

from __future__ import annotations

import http.client
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
SRC = Path(__file__).resolve().parents[2] / "src"
CORNERS = ((90, 80), (240, 80), (140, 270))
STROKE = [
    (x0 + (x1 - x0) * k / 20, y0 + (y1 - y0) * k / 20)
    for (x0, y0), (x1, y1) in zip(CORNERS, CORNERS[1:], strict=False)
    for k in range(21)
]
#: Browsers that draw at once.
BROWSERS = 8
#: How often the single browser draws.
ROUNDS = 5


def main(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = words or [f"model={untrained(Path(folder))}"]
        command = [
            sys.executable,
            str(SRC / "draw.py"),
            "--port=0",
            f"keep={folder}/kept",
            *settings,
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            found = re.search(r":(\d+)/", server.stdout.readline())
            if found is None:
                sys.exit("draw.py did not start")
            measure(int(found[1]))
            server.send_signal(signal.SIGINT)


def untrained(folder: Path) -> Path:
    """Save the network of the default config, untrained."""
    sys.path.insert(0, str(SRC))
    from digit_study.config.compose import compose_config, register
    from digit_study.model.networks import build_model

    register()
    file = folder / "untrained.keras"
    build_model(compose_config([]).model).save(file)
    return file


def measure(port: int) -> None:
    states = [drawn(STROKE[:end]) for end in range(4, len(STROKE) + 1)]
    draw(port, states, "/read?look=0")  # the first answers set things up
    times: list[float] = []
    for _ in range(ROUNDS):
        times += draw(port, states, "/read?look=0")
    report("one browser", times)
    report("one browser, with the map", draw(port, states, "/read?look=1"))
    with ThreadPoolExecutor(BROWSERS) as browsers:
        drawings = browsers.map(lambda _: draw(port, states, "/read?look=0"), range(BROWSERS))
        report(f"{BROWSERS} browsers", [time for times in drawings for time in times])


def drawn(stroke: list[tuple[float, float]]) -> bytes:
    """Return the page's sheet while a 7 is drawn: 336x336, RGBA as a browser's canvas gives it."""
    image = Image.new("RGBA", (336, 336), "white")
    ImageDraw.Draw(image).line(stroke, fill="black", width=24, joint="curve")
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def draw(port: int, states: list[bytes], path: str) -> list[float]:
    """Ask for every state of the sheet in order, as the page does; return milliseconds of each."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times = []
    for state in states:
        begun = time.perf_counter()
        connection.request("POST", path, state)
        connection.getresponse().read()
        times.append(1000 * (time.perf_counter() - begun))
    connection.close()
    return times


def report(what: str, times: list[float]) -> None:
    median, late = np.percentile(times, [50, 95])
    print(
        f"{what:26} median {median:6.1f} ms, 95 % within {late:6.1f} ms, of {len(times)}",
        flush=True,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
