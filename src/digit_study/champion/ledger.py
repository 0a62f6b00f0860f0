"""Who was promoted when, on what evidence, and every opening of the sealed test set: append-only and durable.

An event is one JSON line in ``mlruns/``, synced to the disk, and one tag of the registered model. A local store's
file and tags complete each other; of a remote store the tags are the truth, and the file is a copy.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import urllib.parse
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from digit_study.tracking.recorded import ABSENT
from digit_study.tracking.stores import ARTIFACTS

PREFIX = "ledger."
OPENED_TAG = "test_set.opened"
Event = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One promotion or rollback: how it began, and how it ended, if it did.

    Attributes:
        begun: id, kind (promotion or rollback), at, who, run_id, compared, aliases as they stood, and more.
        ended: outcome, version, reason, evidence; empty as long as it has not ended.
    """

    begun: Event
    ended: Event

    @property
    def opened(self) -> bool:
        """Whether the sealed test set was opened for it."""
        return self.begun.get("kind") == "promotion"


def who() -> str:
    """The person and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{platform.node()}"


def new_id() -> str:
    """An id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:6]}"


def times(number: int) -> str:
    """``1 time``, ``2 times``."""
    return f"{number} time{'' if number == 1 else 's'}"


def now() -> str:
    """The time, in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_remote(uri: str) -> bool:
    """Whether the store at ``uri`` may be used from other machines."""
    return not uri.startswith("sqlite:")


def ledger_path(uri: str, name: str) -> Path:
    """The ledger of registered model ``name``: in ``mlruns/`` beside a local database, else in the project's."""
    if not is_remote(uri):
        database = Path(uri.removeprefix("sqlite:///")).absolute()
        return database.parent / "mlruns" / f"ledger.{database.stem}.{name}.jsonl"
    parts = urllib.parse.urlsplit(uri)
    server = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{parts.hostname}_{parts.port or ''}{parts.path}")
    return ARTIFACTS / f"ledger.{server}.{name}.jsonl"


class Ledger:
    """Events of one registered model."""

    def __init__(self, client: mlflow.MlflowClient, uri: str, name: str) -> None:
        self.client, self.uri, self.name, self.remote = client, uri, name, is_remote(uri)
        self.path = ledger_path(uri, name)

    def append(self, event: Event) -> None:
        """Write one event to the disk, then to the registered model, which is created where it is missing."""
        self._write(event)
        if self._tags() is None:
            self.client.create_registered_model(self.name)
        self._mirror(event)
        self._count()

    def entries(self) -> list[Entry]:
        """All promotions and rollbacks, oldest first."""
        events = self._events().values()
        ended = {event["id"]: event for event in events if event["event"] == "ended"}
        begun = [event for event in events if event["event"] == "begun"]
        return sorted((Entry(one, ended.get(one["id"], {})) for one in begun), key=lambda entry: entry.begun["id"])

    def notes(self) -> list[Event]:
        """Requests that came to nothing because another promotion was under way, oldest first."""
        return sorted((one for one in self._events().values() if one["event"] == "noted"), key=lambda one: one["id"])

    def openings(self) -> int:
        """How many times the sealed test set has been opened."""
        return sum(entry.opened for entry in self.entries())

    def in_step(self) -> bool:
        """Whether file, tags and the count say the same, as they do unless something died between two writes."""
        tags = self._tags() or {}
        same = self.remote or _parsed(tags).keys() == _keyed(_read(self.path)).keys()
        return same and tags.get(OPENED_TAG, "0") == str(self.openings())

    def sync(self) -> None:
        """Bring file and tags to the same events, and the count to theirs."""
        tags, lines = self._tags(), _read(self.path)
        held, written = _parsed(tags or {}), _keyed(lines)
        for key in sorted(held.keys() - written.keys()):
            self._write(held[key])
        missing = [] if self.remote else sorted(written.keys() - held.keys())
        if missing and tags is None:
            self.client.create_registered_model(self.name)
        for key in missing:
            self._mirror(written[key])
        if not self.in_step():
            self._count()

    def _events(self) -> dict[str, Event]:
        held = _parsed(self._tags() or {})
        return held if self.remote else {**_keyed(_read(self.path)), **held}

    def description(self) -> str:
        """What the registered model says of itself."""
        found = self._model()
        return str(found.description or "") if found else ""

    def _tags(self) -> dict[str, str] | None:
        found = self._model()
        return None if found is None else dict(found.tags)

    def _model(self) -> RegisteredModel | None:
        try:
            return self.client.get_registered_model(self.name)
        except MlflowException as fault:
            if fault.error_code not in ABSENT:
                raise
            return None

    def _mirror(self, event: Event) -> None:
        self.client.set_registered_model_tag(self.name, PREFIX + _key(event), json.dumps(event))

    def _count(self) -> None:
        self.client.set_registered_model_tag(self.name, OPENED_TAG, str(self.openings()))

    def _write(self, event: Event) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"\n", b"")
        line = ("" if whole else "\n") + json.dumps(event) + "\n"  # what a power cut tore stays on its own line
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)
        _sync_folder(self.path.parent)


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _key(event: Event) -> str:
    return f"{event['id']}.{event['event']}"


def _keyed(events: Iterable[Event]) -> dict[str, Event]:
    return {_key(event): event for event in events}


def _parsed(tags: Mapping[str, str]) -> dict[str, Event]:
    return _keyed(_decoded(text for key, text in tags.items() if key.startswith(PREFIX)))


def _read(path: Path) -> list[Event]:
    return _decoded(path.read_text(errors="replace").splitlines()) if path.is_file() else []


def _decoded(texts: Iterable[str]) -> list[Event]:
    found = []
    for text in texts:
        try:
            event = json.loads(text)
        except json.JSONDecodeError:  # a line that was torn by a power cut
            continue
        if isinstance(event, dict) and {"id", "event"} <= event.keys():
            found.append(event)
    return found
