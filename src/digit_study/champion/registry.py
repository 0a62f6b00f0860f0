"""The registered model: its versions and aliases, what was left half done, and the way back.

The alias ``champion`` is moved by a single call of MLflow, which is a single transaction of its store, and only to a
version that is complete: a version is created together with all its evidence. Whatever dies in between leaves the
champion as before or as after, and :meth:`Registry.tidy` finishes or undoes the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from digit_study.champion.ledger import Entry, Event, Ledger, new_id, now, times, who
from digit_study.terminal.errors import StudyError
from digit_study.tracking.recorded import ABSENT

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
#: Tags of a version: which entry of the ledger made it, which alias it was made for, and who was champion before.
ENTRY_TAG, ALIAS_TAG, BEFORE_TAG = "promotion.id", "promotion.alias", "promotion.champion_before"


@dataclass(frozen=True)
class Registry:
    """One registered model and its ledger. Every method that writes expects the lock to be held."""

    client: mlflow.MlflowClient
    ledger: Ledger

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self.ledger.name

    @property
    def uri(self) -> str:
        """Of MLflow's store."""
        return self.ledger.uri

    def at(self, alias: str) -> ModelVersion | None:
        """The version that ``alias`` points at, if it points at one."""
        try:
            return self.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as fault:
            if fault.error_code not in ABSENT:
                raise
            return None

    def aliases(self) -> dict[str, str]:
        """Version by alias, of the three that promotion moves."""
        found = {alias: self.at(alias) for alias in (CHAMPION, PREVIOUS, CHALLENGER)}
        return {alias: str(version.version) for alias, version in found.items() if version is not None}

    def versions(self) -> dict[str, ModelVersion]:
        """All versions by their number."""
        found = self.client.search_model_versions(f"name = '{self.name}'", max_results=10_000)
        return {str(version.version): version for version in found}

    def begin(self, kind: str, run_id: str, **details: object) -> Entry:
        """Open an entry of the ledger: it is on the disk before anything else is done."""
        begun: Event = {"id": new_id(), "event": "begun", "kind": kind, "at": now(), "who": who(), "run_id": run_id}
        begun |= {"aliases": self.aliases(), **details}
        self.ledger.append(begun)
        return Entry(begun, {})

    def end(self, entry: Entry, outcome: str, reason: str, **details: object) -> None:
        """Close an entry of the ledger and let the registered model's description say how things stand."""
        ended: Event = {"id": entry.begun["id"], "event": "ended", "at": now(), "outcome": outcome, "reason": reason}
        self.ledger.append({**ended, **details})
        self._describe()

    def register(self, entry: Entry, model_id: str, alias: str, evidence: Mapping[str, str]) -> str:
        """Create a version with its evidence, in one transaction; then let ``alias`` point at it. Returns its number.

        The champion that it dethrones gets the alias ``previous`` first.
        """
        before = entry.begun["aliases"].get(CHAMPION)
        tags = {**evidence, ENTRY_TAG: entry.begun["id"], ALIAS_TAG: alias, BEFORE_TAG: str(before or "")}
        run_id, source = entry.begun["run_id"], f"models:/{model_id}"
        made = self.client.create_model_version(self.name, source, run_id, tags, None, evidence["reason"], 60, model_id)
        if alias == CHAMPION and before is not None:
            self.client.set_registered_model_alias(self.name, PREVIOUS, before)
        self.client.set_registered_model_alias(self.name, alias, str(made.version))
        return str(made.version)

    def tidy(self) -> list[str]:
        """Finish or undo what processes that died left behind; returns a sentence for each."""
        self.ledger.sync()
        done = [self.settle(entry) for entry in self.ledger.entries() if not entry.ended]
        if not self.is_tidy():
            self._describe()
        return done

    def is_tidy(self) -> bool:
        """Whether nothing was left half done."""
        entries = self.ledger.entries()
        if not entries:
            return True
        ended = all(entry.ended for entry in entries)
        return ended and self.ledger.in_step() and self.ledger.description() == self._description()

    def settle(self, entry: Entry, why: str = "its process ended") -> str:
        """Finish an entry whose alias has moved, undo one whose alias has not; returns what was done."""
        settle = self._settle_rollback if entry.begun["kind"] == "rollback" else self._settle_promotion
        done = settle(entry, f"cut off before the alias moved ({why}), nothing of it stands")
        return (
            f"the {entry.begun['kind']} of run {entry.begun['run_id']} begun at {entry.begun['at']} was cut off: {done}"
        )

    def _settle_promotion(self, entry: Entry, undone: str) -> str:
        made = [one for one in self.versions().values() if one.tags.get(ENTRY_TAG) == entry.begun["id"]]
        for version in made:
            if self.aliases().get(version.tags[ALIAS_TAG]) == str(version.version):
                outcome = "promoted" if version.tags[ALIAS_TAG] == CHAMPION else "kept"
                self.end(entry, outcome, version.tags["reason"], version=str(version.version), evidence=version.tags)
                return f"it had {outcome} version {version.version}, which stands"
            self._give_back(PREVIOUS, entry.begun["aliases"].get(PREVIOUS))
            self.client.delete_model_version(self.name, version.version)
        self.end(entry, "interrupted", undone)
        return "nothing of it stands, run it again"

    def _settle_rollback(self, entry: Entry, undone: str) -> str:
        target = entry.begun["version"]
        if self.aliases().get(CHAMPION) == target:
            self._finish_rollback(entry)
            return f"version {target} is champion again, which stands"
        self.end(entry, "interrupted", undone)
        return "nothing of it stands, run it again"

    def _give_back(self, alias: str, version: str | None) -> None:
        """Let ``alias`` point at ``version`` if that still exists, else at nothing: then the alias is deleted."""
        if version is not None and version in self.versions():
            self.client.set_registered_model_alias(self.name, alias, version)
        elif self.at(alias) is not None:
            self.client.delete_registered_model_alias(self.name, alias)

    def previous(self) -> ModelVersion:
        """The champion before this one.

        Raises:
            StudyError: there is none.
        """
        found = self.at(PREVIOUS)
        if found is None:
            raise StudyError(
                f"rollback needs the alias '{PREVIOUS}' of {self.name}, which points at nothing: no champion was "
                "replaced since; promote another run with run_id=<run_id>, or see history=true"
            )
        return found

    def roll_back(self) -> str:
        """Make the previous champion the champion again; returns a sentence that says so.

        The alias ``previous`` goes one further back, to whom that one had replaced, if it still exists.
        """
        target, reigning = self.previous(), self.at(CHAMPION)
        version, compared = str(target.version), str(reigning.version) if reigning else None
        entry = self.begin("rollback", str(target.run_id), version=version, compared=compared)
        self.client.set_registered_model_alias(self.name, CHAMPION, version)
        return self._finish_rollback(entry)

    def _finish_rollback(self, entry: Entry) -> str:
        version, compared = entry.begun["version"], entry.begun["compared"]
        self._give_back(PREVIOUS, self.versions()[version].tags.get(BEFORE_TAG))
        left = self.aliases().get(PREVIOUS)
        reason = (
            f"version {version} (run {entry.begun['run_id']}) is champion again instead of version {compared}; "
            f"{f'version {left} is the one before it' if left else 'there is none before it'}"
        )
        self.end(entry, "restored", reason, version=version)
        return reason

    def _describe(self) -> None:
        self.client.update_registered_model(self.name, self._description())

    def _description(self) -> str:
        champion = self.at(CHAMPION)
        reigns = f"version {champion.version}, run {champion.run_id}" if champion else "none"
        return (
            f"Reads one handwritten digit: raw pixels (n, 28, 28, 1), 0 to 255, to ten probabilities.\n\n"
            f"Champion: {reigns}.\n\nThe sealed test set has been opened {times(self.ledger.openings())}; "
            f"the tags `ledger.*` say by whom, when, for which run and to what end "
            f"(`python sweeps/promote.py history=true`)."
        )
