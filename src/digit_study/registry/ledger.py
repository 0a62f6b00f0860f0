"""The ledger: who promoted what, when and why, and every opening of the sealed test set; append-only and durable.

An event is one JSON line in ``mlruns/``, synced to the disk, and one tag of the registered model. For a local store,
file and tags complete each other; for a remote store the tags are authoritative and the file is a copy.
"""

import json
import os
import platform
import re
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from mlflow.entities.model_registry import RegisteredModel

from digit_study.support import machine
from digit_study.tracking.database import ARTIFACTS
from digit_study.tracking.queries import ABSENT

PREFIX, OPENED_TAG = "ledger.", "test_set.opened"
Event = dict[str, Any]
#: Events by id and by what they are: ``begun`` and ``ended`` of one promotion share their id.
Events = dict[tuple[str, str], Event]
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One promotion or rollback, by its events."""

    start: Event  # ``begun``: id, kind (promotion or rollback), at, who, run_id, compared, aliases before it
    end: Event  # ``ended``: outcome, reason, version, evidence; empty while it has not ended


def times(number: int) -> str:
    """``1 time``, ``2 times``."""
    return f"{number} time{'' if number == 1 else 's'}"


def if_there(ask: Callable[..., T], *names: str) -> T | None:
    """What a method of MLflow's client returns for ``names``, or None where there is no such thing."""
    try:
        return ask(*names)
    except mlflow.MlflowException as fault:
        if fault.error_code not in ABSENT:
            raise
        return None


def ledger_path(uri: str, name: str) -> Path:
    """The file of registered model ``name``: in ``mlruns/`` beside a local database, else in the project's."""
    if uri.startswith("sqlite:"):
        database = Path(uri.removeprefix("sqlite:///")).absolute()
        return database.parent / "mlruns" / f"ledger.{database.stem}.{name}.jsonl"
    parts = urllib.parse.urlsplit(uri)
    server = re.sub(r"[^A-Za-z0-9.-]+", "_", f"{parts.hostname}_{parts.port or ''}{parts.path}")
    return ARTIFACTS / f"ledger.{server}.{name}.jsonl"


class Ledger:
    """Events of one registered model. A remote store may be used from other machines."""

    def __init__(self, client: mlflow.MlflowClient, uri: str, name: str) -> None:
        self.client, self.name, self.remote = client, name, not uri.startswith("sqlite:")
        self.path = ledger_path(uri, name)

    def record(self, event: str, run_id: str, **details: Any) -> Event:
        """Append an event about a run, with the person, the machine, the time, and an id that sorts by time."""
        identity = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:6]}"
        return self.append(
            identity,
            event,
            who=f"{machine.user_name()}@{platform.node()}",
            run_id=run_id,
            **details,
        )

    def append(self, identity: str, event: str, **details: Any) -> Event:
        """Write an event, with the time as ISO 8601 in UTC, to the disk, then to the registered model."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        appended = {"id": identity, "event": event, "at": now, **details}
        self._write(appended)
        self._tag([appended])
        return appended

    def entries(self) -> list[Entry]:
        """All promotions and rollbacks, oldest first."""
        events = self.events("begun", "ended")
        ended = {event["id"]: event for event in events if event["event"] == "ended"}
        return [
            Entry(event, ended.get(event["id"], {}))
            for event in events
            if event["event"] == "begun"
        ]

    def events(self, *kinds: str) -> list[Event]:
        """Events of these kinds, oldest first; ``noted`` are requests that a promotion under way left no effect."""
        tagged, written = self._recorded()
        events = tagged if self.remote else {**written, **tagged}
        return sorted(
            (one for one in events.values() if one["event"] in kinds),
            key=lambda one: str(one["id"]),
        )

    def openings(self, with_champion: bool = False) -> int:
        """How many promotions have opened the sealed test set; ``with_champion`` counts those that compared two."""
        promotions = [one.start for one in self.entries() if one.start.get("kind") == "promotion"]
        return sum(bool(start.get("compared")) or not with_champion for start in promotions)

    def model(self) -> RegisteredModel | None:
        """The registered model, if it exists."""
        return if_there(self.client.get_registered_model, self.name)

    def is_consistent(self) -> bool:
        """Whether file, tags and the count agree, as they do unless a process died between two writes."""
        model, (tagged, written) = self.model(), self._recorded()
        count = model.tags.get(OPENED_TAG, "0") if model else "0"
        return (self.remote or tagged.keys() == written.keys()) and count == str(self.openings())

    def sync(self) -> None:
        """Bring file and tags to the same events, and the count in line with them."""
        tagged, written = self._recorded()
        for key in sorted(tagged.keys() - written.keys()):
            self._write(tagged[key])
        missing = (
            [] if self.remote else [written[key] for key in sorted(written.keys() - tagged.keys())]
        )
        if missing or not self.is_consistent():
            self._tag(missing)

    def _recorded(self) -> tuple[Events, Events]:
        """Events in the tags, and events in the file."""
        model = self.model()
        tags = [text for key, text in model.tags.items() if key.startswith(PREFIX)] if model else []
        lines = self.path.read_text(errors="replace").splitlines() if self.path.is_file() else []
        return _parse(tags), _parse(lines)

    def _tag(self, events: Iterable[Event]) -> None:
        """Tag the registered model, which is created if it is missing, with events and then with the count."""
        if self.model() is None:
            self.client.create_registered_model(self.name)
        for event in events:
            tag = f"{PREFIX}{event['id']}.{event['event']}"
            self.client.set_registered_model_tag(self.name, tag, json.dumps(event))
        self.client.set_registered_model_tag(self.name, OPENED_TAG, str(self.openings()))

    def _write(self, event: Event) -> None:
        """Append a line to the file; file and folder are on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"\n", b"")
        line = (
            ("" if is_whole else "\n") + json.dumps(event) + "\n"
        )  # a line torn by a power cut stays by itself
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _parse(texts: Iterable[str]) -> Events:
    """Events by their keys; what a power cut tore is left out."""
    events: Events = {}
    for text in texts:
        with suppress(json.JSONDecodeError):
            event = json.loads(text)
            if isinstance(event, dict) and {"id", "event"} <= event.keys():
                events[str(event["id"]), str(event["event"])] = event
    return events
