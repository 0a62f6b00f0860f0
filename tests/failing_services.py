"""Real services that fail: an MLflow server to kill and start again, a slow connection to it, a full disk."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
import pytest
from conftest import LIGHT, ROOT, Command, Project
from typed_study import TypedStudy, in_an_epoch, wait_until

#: What a server imports that takes long; what depends on its options it imports itself.
SERVING = (
    *LIGHT,
    "uvicorn",
    "fastapi",
    "flask",
    "graphene",
    "mlflow.cli",
    "mlflow.store.tracking.sqlalchemy_store",
)


class Server:
    """An MLflow server on one port, over a sqlite database of its own."""

    def __init__(self, project: Project, migrated: Path, folder: Path) -> None:
        self.project = project
        self.folder, self.behind = (
            folder,
            f"sqlite:///{shutil.copy(migrated, folder / 'server.db')}",
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.command: Command | None = None

    def start(self) -> None:
        """Start it in the background."""
        words = [
            "--backend-store-uri",
            self.behind,
            "--artifacts-destination",
            str(self.folder / "artifacts"),
        ]
        words = [str(self.folder), *words, "--port", str(self.port)]
        self.command = self.project.fork(
            *words, script=str(ROOT / "tests" / "serve.py"), preloaded=SERVING
        )
        self.project.sessions.discard(self.command.process.pid)  # it outlives the tests' studies

    def ensure(self) -> None:
        """Start it unless it runs, and wait until it answers."""
        if self.command is None or self.command.process.poll() is not None:
            self.start()
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return
            time.sleep(0.1)
        assert self.command is not None
        raise AssertionError("".join(self.command.complaints))

    def kill(self) -> None:
        if self.command is not None:
            self.command.process.kill()
            self.command.process.wait()


class SlowConnection:
    """A port that hands everything on to a server, and each answer back ``delay`` seconds late; notes the requests."""

    def __init__(self, to: int, delay: float) -> None:
        self.to, self.delay = to, delay
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.asked: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with self.listener, suppress(OSError):  # the server is gone, or the test is over
            while True:
                here, _ = self.listener.accept()
                there = socket.create_connection(("127.0.0.1", self.to))
                is_asked = threading.Event()
                for way in ((here, there, is_asked, False), (there, here, is_asked, True)):
                    threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(
        self,
        source: socket.socket,
        target: socket.socket,
        is_asked: threading.Event,
        is_answer: bool,
    ) -> None:
        with source:
            with suppress(OSError):
                while data := source.recv(1 << 20):
                    if not is_answer:
                        is_asked.set()
                        if data.split(b" ")[0] in (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"):
                            self.asked.append(data.split(b"\r\n")[0].decode())
                    elif is_asked.is_set():  # the first piece of an answer
                        is_asked.clear()
                        time.sleep(self.delay)
                    target.sendall(data)
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)


class Disk:
    """A small file system of its own."""

    def __init__(self, place: Path) -> None:
        self.place, self.filler = place, place / "filler"

    def fill(self) -> None:
        """Leave no byte."""
        with self.filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        self.filler.unlink(missing_ok=True)


@contextmanager
def mounted(place: Path, *words: str) -> Iterator[None]:
    """A mount at ``place`` inside the block; the test is skipped where it may not be made."""
    place.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", *words, str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def small_disk(place: Path, megabytes: int = 48) -> Iterator[Disk]:
    """A tmpfs at ``place``."""
    if shutil.which("mount") is None or os.name != "posix":
        pytest.skip("there is no `mount` here")
    with mounted(place, "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs"):
        yield Disk(place)


def assert_survives(typed_study: TypedStudy, server: Server, command: Command) -> None:
    """A study of real processes, with models, loses its server in mid-epoch; it is back when a trial has ended."""
    wait_until(lambda: in_an_epoch(typed_study, command), 300, "an epoch")
    server.kill()
    command.wait_for("COMPLETE")
    server.start()
    done = command.finish()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err and "UserWarning" not in done.err
    client = mlflow.MlflowClient(server.uri)
    trials = [run for run in typed_study.runs() if run.data.tags.get("kind") == "trial"]
    assert [run.info.status for run in trials] == ["FINISHED"] * 3 and typed_study.statuses(
        "study"
    ) == ["FINISHED"]
    for run in trials:
        models = client.search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run.info.run_id}'"
        )
        assert [str(model.status) for model in models] == ["READY"]
        assert client.list_artifacts(run.info.run_id, "figures")
    outbox = typed_study.project.root / "mlruns" / ".outbox"
    assert not [
        run.info.run_id for run in typed_study.runs() if (outbox / run.info.run_id).is_dir()
    ]
