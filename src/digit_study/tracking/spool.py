"""What runs have to tell their store, on disk before it is sent: a folder a run in ``mlruns/.outbox``.

A folder holds ``about.json`` (the store, and the process that writes while the run goes on), ``log.jsonl`` (params,
metrics, tags and the rest, a record a line), ``outcome.json`` once the run has ended, ``model/``, and every artifact
under its name. To send a record or a file twice changes nothing in MLflow, so that a sender may be killed anywhere.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from digit_study.support import machine
from digit_study.support.messages import without_password
from digit_study.tracking import database as stores

ABOUT, LOG, OUTCOME, SENT, MODEL = "about.json", "log.jsonl", "outcome.json", "sent.json", "model"
#: What a command was killed before it could say.
CUT_OFF = "its process ended before it"


@contextmanager
def file_lock(path: Path, operation: int) -> Iterator[bool]:
    """Hold the kernel's lock of a file inside the block, which hears whether it was got; it goes with its process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def _unmoved(operation: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Keep folders where they are while something is put into one (shared), or others away while one is removed."""
    stores.OUTBOX.mkdir(parents=True, exist_ok=True)
    with file_lock(stores.ARTIFACTS / ".outbox.lock", operation):
        yield


class SpooledRun:
    """The folder of one run."""

    def __init__(self, run_id: str, place: Path | None = None) -> None:
        self.run_id, self.folder = run_id, (place or stores.OUTBOX) / run_id
        self.told = 0

    def open(self, uri: str) -> None:
        """Let this process be the one that writes: until the run has an outcome the folder stays."""
        with _unmoved():
            self.folder.mkdir(exist_ok=True)
            self._write(ABOUT, {"uri": without_password(uri), "owner": machine.process_name()})
            (self.folder / OUTCOME).unlink(missing_ok=True)

    def put(self, uri: str, **record: Any) -> None:
        """Append a record; a run that has no folder gets one that goes when it is sent."""
        # of two values at one step the store takes the later, and of two in one millisecond the greater
        self.told = max(int(time.time() * 1000), self.told + 1)
        with _unmoved():
            self._make(uri)
            self._append([{"time": self.told, **record}])

    def _append(self, records: list[dict[str, Any]]) -> None:
        lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        with (self.folder / LOG).open("ab+") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(0, end - 1))
            torn = (
                b"" if log.read(1) in (b"", b"\n") else b"\n"
            )  # the disk was full in the middle of a line
            log.write(torn + lines)

    def merge(self, uri: str, other: Self) -> None:
        """Take over what a folder of this run from another machine has not sent; done twice it changes nothing."""
        own = shutil.ignore_patterns(ABOUT, LOG, OUTCOME, SENT, ".*")
        with _unmoved():
            self._make(uri)
            self._append(other.records(other.sent["bytes"])[0])
            shutil.copytree(other.folder, self.folder, ignore=own, dirs_exist_ok=True)
            self.sent = {**other.sent, "bytes": self.sent["bytes"]}
            self._write(OUTCOME, other.outcome)

    def put_file(self, uri: str, path: Path) -> None:
        """Add a copy of a file as an artifact."""
        with _unmoved():
            self._make(uri)
            shutil.copy2(path, self.folder / path.name)

    def end(self, status: str, **outcome: Any) -> None:
        """Say how the run ended: FINISHED, FAILED or KILLED."""
        with _unmoved():
            self._write(OUTCOME, {"status": status, "time": int(time.time() * 1000), **outcome})

    def close(self, uri: str, status: str, reason: str) -> None:
        """End the run in the name of a process that could not; one that has ended, or has its result, keeps that."""
        if self.outcome:
            return
        if self.has_result:  # its tables and its model are sent too
            self.put(uri, tags={"failure": f"it has its result, but not all figures: {reason}"})
            self.end("FINISHED")
        else:
            self.put(uri, close={"status": status, "reason": reason})
            with _unmoved():
                self._write(ABOUT, {"uri": without_password(uri)})

    def close_abandoned(self) -> None:
        """End the run if the process that wrote it is gone without doing so."""
        if self.is_abandoned:
            self.close(self.about["uri"], "KILLED", CUT_OFF)

    def _make(self, uri: str) -> None:
        self.folder.mkdir(exist_ok=True)
        if not self.about:
            self._write(ABOUT, {"uri": without_password(uri)})

    @property
    def about(self) -> dict[str, Any]:
        """What ABOUT says; nothing of a folder that is not there."""
        return self._read(ABOUT)

    @property
    def outcome(self) -> dict[str, Any]:
        """How the run ended; empty while it goes on, or where the folder is not that of a whole run."""
        return self._read(OUTCOME)

    @property
    def sent(self) -> dict[str, Any]:
        """What the store is known to have: ``bytes`` of the log, ``files``, the model's id, when it ``ended``."""
        return {"bytes": 0, "files": {}, **self._read(SENT)}

    @sent.setter
    def sent(self, content: Mapping[str, Any]) -> None:
        self._write(SENT, content)

    @property
    def is_open(self) -> bool:
        """Whether a process writes this run, or did when it was killed."""
        return "owner" in self.about and not self.outcome

    @property
    def is_abandoned(self) -> bool:
        """Whether the process that wrote this run is gone without an outcome."""
        return self.is_open and not machine.is_alive(self.about["owner"])

    def records(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """The whole records from byte ``start`` on, and the byte after the last; what a full disk tore is left out."""
        try:
            with (self.folder / LOG).open("rb") as log:
                log.seek(start)
                text = log.read()
        except FileNotFoundError:
            return [], start
        whole = text[: text.rfind(b"\n") + 1]
        found = []
        for line in whole.splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found, start + len(whole)

    @property
    def has_result(self) -> bool:
        """Whether the final metrics of the run are there, its tables and its model, whatever else is."""
        return self.outcome.get("status") == "FINISHED" or any(
            "result" in record for record in self.records()[0]
        )

    def metrics(self) -> dict[str, list[tuple[int, int, float]]]:
        """Every value of every metric by name, as (step, time, value) in MLflow's order: the last one counts."""
        found: dict[str, list[tuple[int, int, float]]] = {}
        for record in self.records()[0]:
            for name, value in record.get("metrics", {}).items():
                found.setdefault(name, []).append((record["step"], record["time"], value))
        return {name: sorted(values) for name, values in found.items()}

    def files(self) -> dict[str, list[int]]:
        """Artifacts and the model's files by their names, each with the time of its last change (ns) and its bytes."""
        own = {ABOUT, LOG, OUTCOME, SENT}
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if name not in own and not path.name.startswith(".") and path.is_file():
                found[name] = [path.stat().st_mtime_ns, path.stat().st_size]
        return found

    def remove(self, sent: int) -> bool:
        """Remove the folder unless more came than ``sent`` bytes of its log, or another process opened it."""
        with _unmoved(fcntl.LOCK_EX):
            is_whole = not self.is_open and self.records(sent)[1] == sent
            if is_whole:
                shutil.rmtree(self.folder, ignore_errors=True)
        return is_whole

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / name).read_text())
        except (
            FileNotFoundError,
            NotADirectoryError,
            ValueError,
        ):  # a full disk left a piece of it
            return {}
        return found

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        new = self.folder / f".{name}.{os.getpid()}"
        new.write_text(json.dumps(content))
        new.replace(self.folder / name)

    def set_aside(self) -> Path:
        """Keep the folder where nobody tries to send it any more; returns the new place."""
        aside = stores.OUTBOX / ".refused" / self.run_id
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        return self.folder.rename(aside)


def spooled_runs(uri: str) -> list[SpooledRun]:
    """The folders of all runs that have something to tell the store at ``uri``."""
    if not stores.OUTBOX.is_dir():
        return []
    found = [
        SpooledRun(path.name) for path in stores.OUTBOX.iterdir() if not path.name.startswith(".")
    ]
    own = [spooled for spooled in found if spooled.about.get("uri") == without_password(uri)]
    return sorted(own, key=lambda spooled: spooled.run_id)
