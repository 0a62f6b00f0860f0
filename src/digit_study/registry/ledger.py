"""The ledger: who promoted what, when and why, and every opening of the sealed test set.

It is append-only and durable. An event is a JSON line in ``mlruns/``, synced to the disk, and a tag
of the registered model. For a local store, file and tags complete each other. For a remote store
the tags are authoritative and the file is a copy.
"""

import json
import platform
import re
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import mlflow
from mlflow.entities.model_registry import RegisteredModel

from digit_study.support import processes
from digit_study.support.files import append_json_lines, parse_json_lines
from digit_study.support.sqlite import sqlite_path
from digit_study.support.workspace import Workspace
from digit_study.tracking.queries import ABSENT
from digit_study.tracking.session import Tracker

#: Prefix of the tags of the registered model that hold events.
PREFIX = "ledger."
#: Tag of the registered model: how many promotions have opened the sealed test set.
OPENED_TAG = "test_set.opened"

#: An event as it is stored: ``id``, ``event`` (an :class:`EventKind`), ``at`` and details.
LedgerEvent = dict[str, Any]
#: Events by their id and their kind: ``begun`` and ``ended`` of a promotion share their id.
EventsByKey = dict[tuple[str, str], LedgerEvent]
T = TypeVar("T")


class EventKind(StrEnum):
    """What an event of the ledger says."""

    #: A promotion or a rollback has begun.
    BEGUN = "begun"
    #: It has ended.
    ENDED = "ended"
    #: A request had no effect, because another promotion was under way.
    NOTED = "noted"


class EntryKind(StrEnum):
    """What was asked for."""

    PROMOTION = "promotion"
    ROLLBACK = "rollback"


class EntryOutcome(StrEnum):
    """How a promotion or a rollback ended."""

    PROMOTED = "promoted"
    KEPT = "kept"
    RESTORED = "restored"
    INTERRUPTED = "interrupted"


#: What a person reads of an outcome.
_OUTCOME_TEXTS = {
    EntryOutcome.PROMOTED: "promoted as version {version}",
    EntryOutcome.KEPT: "not promoted, registered as challenger, version {version}",
    EntryOutcome.RESTORED: "restored version {version}",
    EntryOutcome.INTERRUPTED: "interrupted",
}


@dataclass(frozen=True)
class Entry:
    """A promotion or a rollback, by its events."""

    #: The event ``begun``: id, kind, at, who, run_id, compared, and the aliases before it.
    start: LedgerEvent
    #: The event ``ended``: outcome, reason, version, evidence. It is empty until then.
    end: LedgerEvent

    @property
    def has_ended(self) -> bool:
        """Return whether it is neither under way nor cut off."""
        return bool(self.end)

    @property
    def outcome_text(self) -> str:
        """Return how it ended, as a person reads it."""
        text = _OUTCOME_TEXTS.get(self.end.get("outcome", ""), "has not ended")
        return text.format(version=self.end.get("version"))

    @property
    def reason(self) -> str:
        """Why it ended like this, in a sentence."""
        return str(self.end.get("reason", "under way, or cut off"))


def find(ask: Callable[..., T], *names: str) -> T | None:
    """Return what a method of MLflow's client finds, or None where there is no such thing.

    Args:
        ask: The method.
        names: Its arguments.
    """
    try:
        return ask(*names)
    except mlflow.MlflowException as fault:
        if fault.error_code not in ABSENT:
            raise
        return None


def ledger_path(uri: str, name: str, workspace: Workspace) -> Path:
    """Return the ledger's file of a registered model.

    Args:
        uri: URI of the store.
        name: Name of the registered model.
        workspace: Where the file lies if the store is not local.

    Returns:
        A path in ``mlruns/`` beside a local database, else in the workspace.
    """
    if uri.startswith("sqlite:"):
        database = sqlite_path(uri).absolute()
        return database.parent / "mlruns" / f"ledger.{database.stem}.{name}.jsonl"
    parts = urllib.parse.urlsplit(uri)
    address = f"{parts.hostname}_{parts.port or ''}{parts.path}"
    server = re.sub(r"[^A-Za-z0-9.-]+", "_", address)
    return workspace.artifacts / f"ledger.{server}.{name}.jsonl"


class Ledger:
    """The events of a registered model."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._client = tracker.client
        self._name = name
        #: Whether other machines may use the store too.
        self.is_remote = not tracker.uri.startswith("sqlite:")
        self.path = ledger_path(tracker.uri, name, tracker.workspace)

    def record(self, event: str, run_id: str, **details: Any) -> LedgerEvent:
        """Append an event about a run, with the person, the machine, the time and a new id.

        Args:
            event: Its :class:`EventKind`.
            run_id: The run that it is about.
            details: What else is kept of it, as JSON.

        Returns:
            The event. Ids sort by time.
        """
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        unique = uuid.uuid4().hex[:6]
        return self.append(
            f"{now}-{unique}",
            event,
            who=f"{processes.user_name()}@{platform.node()}",
            run_id=run_id,
            **details,
        )

    def append(self, identity: str, event: str, **details: Any) -> LedgerEvent:
        """Write an event to the disk, then to the registered model.

        Args:
            identity: Id of the promotion or rollback that it belongs to.
            event: Its :class:`EventKind`.
            details: What else is kept of it, as JSON.

        Returns:
            The event, with its time as ISO 8601 in UTC.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        appended = {
            "id": identity,
            "event": str(event),
            "at": now,
            **details,
        }
        self._write(appended)
        self._tag([appended])
        return appended

    def entries(self) -> list[Entry]:
        """Return all promotions and rollbacks, oldest first."""
        end_of = {event["id"]: event for event in self.events(EventKind.ENDED)}
        entries = []
        for start in self.events(EventKind.BEGUN):
            end = end_of.get(start["id"], {})
            entries.append(Entry(start, end))
        return entries

    def events(self, kind: str) -> list[LedgerEvent]:
        """Return the events of a kind, oldest first."""
        events = self._tagged()
        if not self.is_remote:
            events = {**self._written(), **events}
        of_kind = [event for event in events.values() if event["event"] == kind]
        return sorted(of_kind, key=lambda event: str(event["id"]))

    def openings(self) -> int:
        """Return how many promotions have opened the sealed test set."""
        return len(self._promotions())

    def comparisons(self) -> int:
        """Return how many promotions have compared a challenger with a champion on it."""
        return sum(bool(start.get("compared")) for start in self._promotions())

    def _promotions(self) -> list[LedgerEvent]:
        begun = self.events(EventKind.BEGUN)
        return [start for start in begun if start.get("kind") == EntryKind.PROMOTION]

    def model(self) -> RegisteredModel | None:
        """Return the registered model, if it exists."""
        return find(self._client.get_registered_model, self._name)

    def is_consistent(self) -> bool:
        """Return whether file, tags and the count agree.

        They do unless a process died between two writes.
        """
        model = self.model()
        count = "0"
        if model:
            count = model.tags.get(OPENED_TAG, "0")
        if count != str(self.openings()):
            return False
        if self.is_remote:
            return True
        return self._tagged().keys() == self._written().keys()

    def sync(self) -> None:
        """Bring file and tags to the same events, and the count in line with them."""
        tagged = self._tagged()
        written = self._written()
        not_written = sorted(tagged.keys() - written.keys())
        for key in not_written:
            self._write(tagged[key])
        not_tagged = sorted(written.keys() - tagged.keys())
        missing: list[LedgerEvent] = []
        if not self.is_remote:
            missing = [written[key] for key in not_tagged]
        if missing or not self.is_consistent():
            self._tag(missing)

    def _tagged(self) -> EventsByKey:
        """Return the events in the tags of the registered model."""
        model = self.model()
        if model is None:
            return {}
        texts = [text for key, text in model.tags.items() if key.startswith(PREFIX)]
        return _parse(texts)

    def _written(self) -> EventsByKey:
        """Return the events in the file."""
        if not self.path.is_file():
            return {}
        text = self.path.read_text(errors="replace")
        return _parse(text.splitlines())

    def _tag(self, events: Iterable[LedgerEvent]) -> None:
        """Tag the registered model with events and the count; it is created if it is missing."""
        if self.model() is None:
            self._client.create_registered_model(self._name)
        for event in events:
            tag = f"{PREFIX}{event['id']}.{event['event']}"
            self._client.set_registered_model_tag(self._name, tag, json.dumps(event))
        openings = str(self.openings())
        self._client.set_registered_model_tag(self._name, OPENED_TAG, openings)

    def _write(self, event: LedgerEvent) -> None:
        """Append a line to the file; file and folder are on the disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_json_lines(self.path, [event], sync=True)


def _parse(texts: Iterable[str]) -> EventsByKey:
    """Return events by their keys; what a power cut tore is left out."""
    events: EventsByKey = {}
    for event in parse_json_lines(texts):
        if isinstance(event, dict) and {"id", "event"} <= event.keys():
            key = (str(event["id"]), str(event["event"]))
            events[key] = event
    return events
