"""The page of a study while it grows, on this machine alone: served by a process of its own, which costs no trial time.

A request reaches nothing but two texts in memory: its path is looked up among their names.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

from hydra.core.override_parser.types import Quote, QuotedString

from digit_study.config.compose import ROOT
from digit_study.config.study_config import StudyConfig
from digit_study.study import study_page as study
from digit_study.study.storage import StoredStudy
from digit_study.study.study_plan import StudyPlan
from digit_study.support import console
from digit_study.support.messages import first_line

LOOPBACK = "127.0.0.1"
#: Names the inherited socket to the process that serves a sweep's page.
SOCKET = "DIGIT_STUDY_SOCKET"
#: Seconds between two looks at the study; and how much longer than it took to write a page nothing is written.
PAUSE_S, REST = 2.0, 4.0
#: Seconds the process that serves has to end itself, and how it ends when it is told to.
GRACE_S, ENDED = 5.0, (-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT)
WAITING = """<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="2"><title>Study</title>
<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">
<p style="font: 1.2rem system-ui, sans-serif; margin: 3rem">The page is being written …</p>"""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class PageServer(ThreadingHTTPServer):
    """Serves the newest page to browsers of this machine, on a loopback socket that listens already."""

    daemon_threads = True

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.version = listening, 0
        self.answers = {"/": ("text/html", WAITING), "/version": ("text/plain", "0")}
        port = listening.getsockname()[1]
        self.hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}

    def show(self, page: str) -> None:
        """Replace the page by that of the next version."""
        self.version += 1
        self.answers = {"/": ("text/html", page), "/version": ("text/plain", str(self.version))}


class Handler(BaseHTTPRequestHandler):
    """Answers one request, unless another site's page has sent it."""

    server: PageServer
    server_version, sys_version = "study", ""
    timeout = 10

    def do_GET(self) -> None:
        """Answer with the page or its version."""
        kind, text = self.server.answers.get(self.path, ("", ""))
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        own = {f"http://{host}" for host in self.server.hosts}
        # another site may let its own name point to this machine, and then read what it answers
        if len(hosts) != 1 or hosts[0] not in self.server.hosts or not own.issuperset(origins):
            self._answer(
                HTTPStatus.FORBIDDEN, "text/plain", "this page is for browsers of this machine"
            )
        elif not kind:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", "there is / and /version")
        else:
            self._answer(HTTPStatus.OK, kind, text)

    def _answer(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": f"{kind}; charset=utf-8"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal shows the sweep."""


@contextmanager
def serving(listening: socket.socket) -> Iterator[PageServer]:
    """Answer requests on ``listening`` inside the block, which says what is shown."""
    with PageServer(listening) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def serve(typed: StudyConfig) -> None:
    """Serve the page of a study, written anew as trials end, until a signal comes or the sweep that asked for it ends.

    Raises StudyError if there is no such study.
    """
    if SOCKET in os.environ:
        listening = socket.socket(fileno=int(os.environ.pop(SOCKET)))
        os.nice(10)  # trials come first
        threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    else:
        listening = socket.create_server((LOOPBACK, 0))
        _print_address(listening)
    with serving(listening) as server:
        plan, stored = study.plan_page(typed)
        shown = -1
        while True:
            started = time.monotonic()
            ended = sum(trial.state.is_finished() for trial in stored.trials())
            if ended != shown:
                server.show(_render(plan, stored, server.version + 1))
                shown = ended
            time.sleep(max(PAUSE_S, REST * (time.monotonic() - started)))


def _render(plan: StudyPlan, stored: StoredStudy, version: int) -> str:
    """The page, or one that says what it stumbled over: the next trial's end is the next chance."""
    try:
        return study.render(study.collect(plan, stored, is_watched=True), version)
    except Exception as fault:
        return study.render_fault(plan.study.study, first_line(fault))


def _end_with(parent: IO[bytes]) -> None:
    """End this process when its parent closes the pipe, or is killed."""
    parent.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _print_address(listening: socket.socket) -> None:
    address = f"http://{LOOPBACK}:{listening.getsockname()[1]}/"
    console.console().print(
        f"watch the study in a browser of this machine: {address}", soft_wrap=True
    )


@contextmanager
def watched(plan: StudyPlan) -> Iterator[None]:
    """Serve the page of a study that exists, for as long as the block lasts; a fault of that is told, not raised."""
    places = {
        "study": plan.study.study,
        "search.storage": plan.study.search.storage,
        "tracking.uri": plan.uri,
    }
    words = [
        f"{key}={QuotedString(text, Quote.single).with_quotes()}"
        for key, text in places.items()
        if text
    ]
    line = [sys.executable, str(ROOT / "sweeps" / "report.py"), *words, "search.watch=true"]
    with tempfile.TemporaryFile() as said, socket.create_server((LOOPBACK, 0)) as listening:
        process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, pass_fds=[listening.fileno()],
            env={**os.environ, SOCKET: str(listening.fileno())},
        )  # fmt: skip
        _print_address(listening)
        listening.close()  # now it is the other process's alone
        try:
            yield
        finally:
            _stop(process, said)


def _stop(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    """End the process that serves; if it has ended by itself before, say why."""
    if process.poll() is None:
        process.terminate()
    try:
        process.communicate(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    if process.returncode not in (*ENDED, -signal.SIGKILL):
        said.seek(0)
        reason = said.read().decode(errors="replace").strip().split("\n")[-1]
        console.warn(f"the study could not be watched: {reason}")
