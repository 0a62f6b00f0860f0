"""The registered model: its versions and aliases, recovery from a crash, and rollback.

The alias ``champion`` is moved by a single call of MLflow, which is a single transaction of its
store, and only to a complete version: a version is created together with all its evidence. A
process that dies in between leaves the champion as before or as after, and :meth:`Registry.recover`
finishes or undoes the rest.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from mlflow.entities.model_registry import ModelVersion

from digit_study.registry import promotion_report
from digit_study.registry.ledger import (
    Entry,
    EntryKind,
    EntryOutcome,
    EventKind,
    Ledger,
    find,
)
from digit_study.registry.promotion_lock import WAIT_S, PromotionLock
from digit_study.support import console
from digit_study.support.errors import StudyError
from digit_study.tracking.session import Tracker

#: Alias of the version that predictions use.
CHAMPION = "champion"
#: Alias of the version that the champion replaced.
PREVIOUS = "previous"
#: Alias of the latest version that was not promoted.
CHALLENGER = "challenger"
#: Tag of a version: the entry of the ledger that made it.
ENTRY_TAG = "promotion.id"
#: Tag of a version: the alias that it was made for.
ALIAS_TAG = "promotion.alias"
#: Tag of a version: the champion before it; empty where there was none.
BEFORE_TAG = "promotion.champion_before"
#: Seconds in which MLflow creates a version.
CREATED_WITHIN_S = 60


class Registry:
    """A registered model and its ledger. Methods that write expect the lock to be held."""

    def __init__(self, tracker: Tracker, name: str, lock_wait_s: float = WAIT_S) -> None:
        self.tracker = tracker
        self.name = name
        self.ledger = Ledger(tracker, name)
        self._client = tracker.client
        self._lock = PromotionLock(self._client, self.ledger, name, lock_wait_s)

    @contextmanager
    def lock(self, run_id: str = "") -> Iterator[bool]:
        """Let no other process promote inside the block; yield whether that took waiting.

        Args:
            run_id: The run to promote, which the ledger notes if it is refused; empty for a
                rollback.

        Raises:
            StudyError: If another promotion is under way for too long.
        """
        with ExitStack() as stack:
            try:
                waited = stack.enter_context(self._lock.hold())
            except TimeoutError:
                raise self._refusal(run_id) from None
            yield waited

    def _refusal(self, run_id: str) -> StudyError:
        """Note in the ledger that a request was refused, and return what to say of it."""
        seconds = f"{self._lock.wait_s:g} s"
        outcome = f"refused: another promotion was under way for more than {seconds}"
        self.ledger.record(EventKind.NOTED, run_id, outcome=outcome)
        return StudyError(
            f"one promotion of {self.name} runs at a time, and another has been running for "
            f"{seconds}: see history=true, end it if it hangs, then run the same command again"
        )

    def at(self, alias: str) -> ModelVersion | None:
        """Return the version that an alias points at, if any."""
        return find(self._client.get_model_version_by_alias, self.name, alias)

    def aliases(self) -> dict[str, str]:
        """Return the version of each of the three aliases that promotion moves and that exists."""
        model = self.ledger.model()
        if model is None:
            return {}
        found = {}
        for alias in (CHAMPION, PREVIOUS, CHALLENGER):
            if alias in model.aliases:
                found[alias] = str(model.aliases[alias])
        return found

    def versions(self) -> dict[str, ModelVersion]:
        """Return all versions by number."""
        found = self._client.search_model_versions(f"name = '{self.name}'", max_results=10_000)
        return {str(version.version): version for version in found}

    def previous(self) -> ModelVersion:
        """Return the champion before this one.

        Raises:
            StudyError: If there is none.
        """
        found = self.at(PREVIOUS)
        if found is None:
            raise StudyError(
                f"rollback needs the alias '{PREVIOUS}' of {self.name}, which points at nothing: "
                "no champion was replaced since; promote another run with run_id=<run_id>, or see "
                "history=true"
            )
        return found

    def begin(self, kind: EntryKind, run_id: str, **details: object) -> Entry:
        """Open an entry of the ledger, which is on the disk before anything else is done.

        Args:
            kind: What was asked for.
            run_id: The run that would be champion.
            details: What else is kept of it, as JSON.
        """
        aliases = self.aliases()
        start = self.ledger.record(EventKind.BEGUN, run_id, kind=kind, aliases=aliases, **details)
        return Entry(start, end={})

    def end(self, entry: Entry, outcome: EntryOutcome, reason: str, **details: object) -> None:
        """Close an entry of the ledger and bring the model's description up to date.

        Args:
            entry: What :meth:`begin` returned.
            outcome: How it ended.
            reason: Why, in a sentence.
            details: What else is kept of it, as JSON.
        """
        self.ledger.append(
            entry.start["id"], EventKind.ENDED, outcome=outcome, reason=reason, **details
        )
        self._describe()

    def register(
        self, entry: Entry, model_id: str, alias: str, evidence: Mapping[str, str], description: str
    ) -> str:
        """Create a version with its evidence in one transaction, then point an alias at it.

        Args:
            entry: The entry of the ledger that it belongs to.
            model_id: MLflow's id of the model.
            alias: What is to point at it.
            evidence: Its tags.
            description: Its description, in Markdown.

        Returns:
            The number of the version.
        """
        before = entry.start["aliases"].get(CHAMPION)
        tags = {
            **evidence,
            ENTRY_TAG: entry.start["id"],
            ALIAS_TAG: alias,
            BEFORE_TAG: str(before or ""),
        }
        made = self._client.create_model_version(
            self.name,
            source=f"models:/{model_id}",
            run_id=entry.start["run_id"],
            tags=tags,
            description=description,
            await_creation_for=CREATED_WITHIN_S,
            model_id=model_id,
        )
        version = str(made.version)
        if alias == CHAMPION and before is not None:
            self._client.set_registered_model_alias(self.name, PREVIOUS, before)
        self._client.set_registered_model_alias(self.name, alias, version)
        return version

    def roll_back(self) -> str:
        """Make the previous champion the champion again; return a sentence that says so."""
        target = self.previous()
        champion = self.at(CHAMPION)
        version = str(target.version)
        compared = str(champion.version) if champion else None
        entry = self.begin(
            EntryKind.ROLLBACK, str(target.run_id), version=version, compared=compared
        )
        self._client.set_registered_model_alias(self.name, CHAMPION, version)
        return self._finish_rollback(entry)

    def _finish_rollback(self, entry: Entry) -> str:
        """Bring the alias ``previous`` and the ledger in line with a rollback."""
        start = entry.start
        version = start["version"]
        restored = self.versions()[version]
        self._restore_previous(restored.tags.get(BEFORE_TAG))
        previous = self.aliases().get(PREVIOUS)
        reason = promotion_report.rollback_sentence(
            version, start["run_id"], start["compared"], previous
        )
        self.end(entry, EntryOutcome.RESTORED, reason, version=version)
        return reason

    def _restore_previous(self, version: str | None) -> None:
        """Point the alias ``previous`` at a version if that still exists, else delete the alias."""
        if version is not None and version in self.versions():
            self._client.set_registered_model_alias(self.name, PREVIOUS, version)
        elif self.at(PREVIOUS) is not None:
            self._client.delete_registered_model_alias(self.name, PREVIOUS)

    def is_clean(self) -> bool:
        """Return whether no process that died has left anything unfinished."""
        entries = self.ledger.entries()
        if not entries:
            return True
        model = self.ledger.model()
        if model is None or model.description != self._description():
            return False
        have_ended = all(entry.has_ended for entry in entries)
        return have_ended and self.ledger.is_consistent()

    def recover(self) -> None:
        """Finish or undo what processes that died left behind, with a warning for each."""
        self.ledger.sync()
        for entry in self.ledger.entries():
            if not entry.has_ended:
                self.resolve(entry)
        if not self.is_clean():
            self._describe()

    def recover_if_idle(self) -> None:
        """Recover what is to be recovered, unless another promotion is under way."""
        if self.is_clean():
            return
        with self._lock.hold_if_free() as is_free:
            if is_free:
                self.recover()

    def resolve(self, entry: Entry, why: str = "its process ended") -> None:
        """Finish an entry whose alias has moved, undo an entry whose alias has not, and warn of it.

        Args:
            entry: An entry that has begun and not ended.
            why: What cut it off.
        """
        done = self._finish_or_undo(entry)
        if done is None:
            reason = f"cut off before the alias moved ({why}), nothing of it stands"
            self.end(entry, EntryOutcome.INTERRUPTED, reason)
            done = "nothing of it stands, run it again"
        start = entry.start
        console.warn(
            f"the {start['kind']} of run {start['run_id']} begun at {start['at']} was cut off: "
            f"{done}"
        )

    def _finish_or_undo(self, entry: Entry) -> str | None:
        """Finish an entry whose alias has moved, and say so; else delete its version."""
        start = entry.start
        aliases = self.aliases()
        is_rollback = start["kind"] == EntryKind.ROLLBACK
        if is_rollback and aliases.get(CHAMPION) == start["version"]:
            self._finish_rollback(entry)
            return f"version {start['version']} is champion again, which stands"
        for number, version in self.versions().items():
            if version.tags.get(ENTRY_TAG) != start["id"]:
                continue
            alias = version.tags[ALIAS_TAG]
            if aliases.get(alias) == number:
                outcome = outcome_of(alias)
                reason = version.tags["reason"]
                self.end(entry, outcome, reason, version=number, evidence=version.tags)
                return f"it had {outcome} version {number}, which stands"
            self._restore_previous(start["aliases"].get(PREVIOUS))
            self._client.delete_model_version(self.name, version.version)
        return None

    def _describe(self) -> None:
        """Bring the description of the registered model up to date."""
        self._client.update_registered_model(self.name, self._description())

    def _description(self) -> str:
        champion = self.at(CHAMPION)
        replaced = None
        if champion is not None:
            replaced = champion.tags.get(BEFORE_TAG)
        return promotion_report.model_description(champion, replaced, self.ledger.openings())


def outcome_of(alias: str) -> EntryOutcome:
    """Return how a promotion ends that points an alias at its version."""
    if alias == CHAMPION:
        return EntryOutcome.PROMOTED
    return EntryOutcome.KEPT
