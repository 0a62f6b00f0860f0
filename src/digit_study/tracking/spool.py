"""What runs still have to upload to their store: on disk first, in ``mlruns/.outbox``.

Each run has a folder. It holds ``about.json`` (the store, and the process that writes while the
run goes on), ``log.jsonl`` (params, metrics, tags and the rest, a record a line), ``outcome.json``
once the run has ended, ``sent.json`` (what the store has), ``model/``, and every artifact under
its name. To upload a record or a file twice changes nothing in MLflow, so that whatever uploads
may be killed anywhere.

Three kinds of locks keep processes apart. Those that write into folders share
``mlruns/.outbox.lock``, and no folder is removed meanwhile. The holder of ``.lock`` in a run's
folder uploads that run. The holder of ``mlruns/.uploader-…`` uploads all runs of a store in the
background, and no run uploads itself meanwhile.

MLflow's own asynchronous logging is no alternative: it holds the data in memory, where a killed
process loses them, and drops them when the store answers with an error.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from digit_study.support import processes
from digit_study.support.files import (
    append_json_lines,
    file_lock,
    parse_json_lines,
    write_whole,
)
from digit_study.support.redaction import without_password
from digit_study.support.trial_status import FAILURE_TAG
from digit_study.support.workspace import Workspace

#: File with the URI of the store and the name of the process that writes.
ABOUT = "about.json"
#: File with the records, a JSON object a line.
LOG = "log.jsonl"
#: File that says how the run ended.
OUTCOME = "outcome.json"
#: File that says what the store has.
SENT = "sent.json"
#: Folder of the Keras model.
MODEL = "model"
#: Key of the outcome of a run that is FINISHED without a result; it says why it was stopped.
STOPPED = "stopped"
#: Why a run is closed whose process was killed.
CUT_OFF = "its process ended before it"


class MetricValue(NamedTuple):
    """A value of a metric, in the order in which MLflow sorts: the last counts."""

    step: int
    #: Milliseconds since 1970.
    time: int
    value: float


@dataclass(frozen=True)
class Records:
    """Records of a log, and where they end."""

    found: list[dict[str, Any]]
    #: The byte after the last whole record.
    end: int


def replaces_status(old: str, new: str) -> bool:
    """Return whether a run that has ended gets another status.

    A trial that is killed while it is paused counts as stopped on purpose where the study finds
    that it would never have gone on.
    """
    return old == "KILLED" and new == "FINISHED"


class SpooledRun:
    """The folder of one run."""

    def __init__(self, run_id: str, workspace: Workspace, spool: Path | None = None) -> None:
        """Name the folder; nothing is created.

        Args:
            run_id: Id of the run.
            workspace: Where runs are spooled.
            spool: Folder that holds the run's folder, by default the workspace's.
        """
        self.run_id = run_id
        self._workspace = workspace
        self.folder = (spool or workspace.spool) / run_id
        self._last_time = 0

    # ------------------------------------------------------------------------------- written

    def open(self, uri: str) -> None:
        """Make this process the one that writes: until the run has an outcome the folder stays."""
        owner = processes.process_name()
        with self._folders_stay():
            self.folder.mkdir(exist_ok=True)
            self._write(ABOUT, {"uri": without_password(uri), "owner": owner})
            outcome = self.folder / OUTCOME
            outcome.unlink(missing_ok=True)

    def put(self, uri: str, **record: Any) -> None:
        """Append a record; a run without a folder gets one, which goes when it is uploaded.

        Args:
            uri: URI of the store that the run is in.
            **record: What `RunUpload` knows how to upload, as JSON.
        """
        # of two values at one step the store keeps the later, and of two in one millisecond the
        # greater: no two records have the same time
        self._last_time = max(_milliseconds(), self._last_time + 1)
        timed = {"time": self._last_time, **record}
        with self._folders_stay():
            self._make(uri)
            append_json_lines(self.folder / LOG, [timed])

    def put_file(self, uri: str, path: Path) -> None:
        """Add a copy of a file as an artifact.

        Args:
            uri: URI of the store that the run is in.
            path: The file; its name is the artifact's.
        """
        with self._folders_stay():
            self._make(uri)
            shutil.copy2(path, self.folder / path.name)

    def merge(self, uri: str, other: Self) -> None:
        """Take over a folder of this run from another machine.

        Its whole log comes too, and is uploaded again. A part of it would be taken for all that the
        run has recorded, as by `metrics`. Done twice it changes nothing.
        """
        own = shutil.ignore_patterns(ABOUT, LOG, OUTCOME, SENT, ".*")
        with self._folders_stay():
            self._make(uri)
            append_json_lines(self.folder / LOG, other.records().found)
            shutil.copytree(other.folder, self.folder, ignore=own, dirs_exist_ok=True)
            self.sent = {**other.sent, "bytes": self.sent["bytes"]}
            self._write(OUTCOME, other.outcome)

    def end(self, status: str, **outcome: Any) -> None:
        """Record how the run ended.

        Args:
            status: FINISHED, FAILED or KILLED.
            **outcome: More that is kept, as JSON.
        """
        with self._folders_stay():
            self._write(OUTCOME, {"status": status, "time": _milliseconds(), **outcome})

    def close(self, uri: str, status: str, reason: str) -> None:
        """End the run in the name of a process that could not.

        A run that has ended keeps its outcome; but a trial that was killed while it was paused, and
        would never have gone on, counts as stopped on purpose. A run that has its result is
        FINISHED: its tables and its model are uploaded too.

        Args:
            uri: URI of the store that the run is in.
            status: FAILED or KILLED; FINISHED of a trial that was stopped on purpose.
            reason: Why, in one line.
        """
        closing = {"status": status, "reason": reason}
        outcome = self.outcome
        if outcome:
            if replaces_status(outcome["status"], status):
                self.put(uri, close=closing)
                self.end(status, **{STOPPED: reason})
            return
        if self.has_result:
            incomplete = f"it has its result, but not all figures: {reason}"
            self.put(uri, tags={FAILURE_TAG: incomplete})
            self.end("FINISHED")
            return
        self.put(uri, close=closing)
        with self._folders_stay():
            self._write(ABOUT, {"uri": without_password(uri)})

    def close_abandoned(self) -> None:
        """End the run if the process that wrote it is gone without doing so."""
        if self.is_abandoned:
            self.close(self.about["uri"], "KILLED", CUT_OFF)

    def remove(self, is_uploaded: Callable[[], bool]) -> bool:
        """Remove the folder, unless there is more to upload or a process writes the run.

        Args:
            is_uploaded: Returns whether the store has everything. It is asked while nothing can be
                written: since it was asked last, the run may have ended or got another file.

        Returns:
            Whether the folder is gone.
        """
        with self._folders_stay(exclusive=True):
            is_whole = not self.is_open and is_uploaded()
            if is_whole:
                shutil.rmtree(self.folder, ignore_errors=True)
        return is_whole

    def refuse(self) -> Path:
        """Move the folder to where nothing tries to upload it; return the new folder."""
        refused = self._workspace.spool / ".refused" / self.run_id
        refused.parent.mkdir(exist_ok=True)
        shutil.rmtree(refused, ignore_errors=True)
        return self.folder.rename(refused)

    # ------------------------------------------------------------------------------- read

    @property
    def about(self) -> dict[str, Any]:
        """Return what `ABOUT` holds; nothing of a folder that is not there."""
        return self._read(ABOUT)

    @property
    def outcome(self) -> dict[str, Any]:
        """Return how the run ended; empty while it goes on or without a whole run."""
        return self._read(OUTCOME)

    @property
    def sent(self) -> dict[str, Any]:
        """Return what the store has: ``bytes`` of the log, ``files``, model, when it ``ended``."""
        return {"bytes": 0, "files": {}, **self._read(SENT)}

    @sent.setter
    def sent(self, content: Mapping[str, Any]) -> None:
        self._write(SENT, content)

    @property
    def is_open(self) -> bool:
        """Return whether a process writes this run, or did when it was killed."""
        return not self.outcome and "owner" in self.about

    @property
    def is_abandoned(self) -> bool:
        """Return whether the process that wrote this run is gone without an outcome."""
        return self.is_open and not processes.is_alive(self.about["owner"])

    def records(self, start: int = 0) -> Records:
        """Return the whole records from a byte on; what a full disk tore is left out.

        Args:
            start: The first byte to read.
        """
        try:
            with (self.folder / LOG).open("rb") as log:
                log.seek(start)
                text = log.read()
        except FileNotFoundError:
            return Records([], start)
        whole = text[: text.rfind(b"\n") + 1]
        found = list(parse_json_lines(whole.splitlines()))
        return Records(found, start + len(whole))

    @property
    def has_result(self) -> bool:
        """Return whether the run's final metrics, its tables and its model are there."""
        outcome = self.outcome
        has_finished = outcome.get("status") == "FINISHED"
        if has_finished and STOPPED not in outcome:
            return True
        records = self.records().found
        return any("result" in record for record in records)

    def params(self) -> dict[str, str]:
        """Return all params that were recorded."""
        found: dict[str, str] = {}
        for record in self.records().found:
            found.update(record.get("params", {}))
        return found

    def metrics(self) -> dict[str, list[MetricValue]]:
        """Return every value of every metric by name, in MLflow's order: the last one counts."""
        found: dict[str, list[MetricValue]] = {}
        for record in self.records().found:
            values = record.get("metrics", {})
            for name, value in values.items():
                point = MetricValue(record["step"], record["time"], value)
                found.setdefault(name, []).append(point)
        return {name: sorted(points) for name, points in found.items()}

    def files(self) -> dict[str, list[int]]:
        """Return artifacts and the model's files by their names.

        Returns:
            For each the time of its last change (nanoseconds since 1970) and its bytes.
        """
        own = {ABOUT, LOG, OUTCOME, SENT}
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            is_hidden = path.name.startswith(".")
            if name in own or is_hidden or not path.is_file():
                continue
            status = path.stat()
            found[name] = [status.st_mtime_ns, status.st_size]
        return found

    # ------------------------------------------------------------------------------- private

    @contextmanager
    def _folders_stay(self, *, exclusive: bool = False) -> Iterator[None]:
        """Keep folders from being removed while something is written into one of them.

        With ``exclusive=True`` keep others from writing while one is removed.
        """
        self._workspace.spool.mkdir(parents=True, exist_ok=True)
        lock = self._workspace.artifacts / ".outbox.lock"
        with file_lock(lock, exclusive=exclusive):
            yield

    def _make(self, uri: str) -> None:
        self.folder.mkdir(exist_ok=True)
        if not self.about:
            self._write(ABOUT, {"uri": without_password(uri)})

    def _read(self, name: str) -> dict[str, Any]:
        try:
            text = (self.folder / name).read_text()
            found: dict[str, Any] = json.loads(text)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError:  # a full disk left a piece of it
            return {}
        return found

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(content)
        write_whole(self.folder / name, text.encode())


def _milliseconds() -> int:
    """Return the time, in milliseconds since 1970."""
    return int(time.time() * 1000)


def spooled_runs(uri: str, workspace: Workspace) -> list[SpooledRun]:
    """Return all runs that have something to upload to the store at a URI, sorted by id."""
    if not workspace.spool.is_dir():
        return []
    names = sorted(path.name for path in workspace.spool.iterdir())
    runs = [SpooledRun(name, workspace) for name in names if not name.startswith(".")]
    known_uri = without_password(uri)
    return [run for run in runs if run.about.get("uri") == known_uri]
