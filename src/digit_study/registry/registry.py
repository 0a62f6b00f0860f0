"""The registered model: its lock, versions and aliases, recovery from a crash, and rollback.

The alias ``champion`` is moved by a single call of MLflow, which is a single transaction of its store, and only to a
complete version: a version is created together with all its evidence. A process that dies in between leaves the
champion as before or as after, and :meth:`Registry.recover` finishes or undoes the rest.
"""

import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import mlflow
import psutil
from filelock import FileLock, Timeout
from mlflow.entities.model_registry import ModelVersion

from digit_study.registry.ledger import Entry, Ledger, if_there, times
from digit_study.support import console
from digit_study.support.messages import StudyError

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
#: Tags of a version: the entry of the ledger that made it, the alias it was made for, and the champion before it.
ENTRY_TAG, ALIAS_TAG, BEFORE_TAG = "promotion.id", "promotion.alias", "promotion.champion_before"
LOCK_TAG, WAIT_S = "promotion.lock", 600.0
STALE_S = 900.0  # an older lock tag was left by a process that died: a promotion takes a minute


class Registry:
    """One registered model and its ledger. Methods that write expect the lock to be held."""

    def __init__(self, client: mlflow.MlflowClient, uri: str, name: str) -> None:
        self.client, self.uri, self.name = client, uri, name
        self.ledger = Ledger(client, uri, name)

    @contextmanager
    def lock(self, run_id: str) -> Iterator[bool]:
        """Hold a file lock against other processes here and, for a remote store, a tag against other machines.

        The tag is best effort: MLflow has no lock, so two may write it in the same instant. Yields whether it had to
        wait. Raises StudyError after ``WAIT_S`` seconds; the ledger then notes the request.
        """
        lock, waited = FileLock(self.ledger.path.with_suffix(".lock")), False
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waited = True
            console.warn(f"another promotion of {self.name} is under way: waiting for it")
            try:
                lock.acquire(timeout=WAIT_S)
            except Timeout:
                raise self._refuse(run_id) from None
        with ExitStack() as stack:
            stack.callback(lock.release)
            if self.ledger.remote and self.ledger.model() is not None:
                own = f"{time.time():.0f} {platform.node()} {os.getpid()} {uuid.uuid4().hex}"
                deadline, holder = time.monotonic() + WAIT_S, ""
                while holder != own:
                    if self._is_unclaimed():
                        self.client.set_registered_model_tag(self.name, LOCK_TAG, own)
                        time.sleep(
                            0.3
                        )  # by now any other claim is written too, and the last one counts
                        holder = self.client.get_registered_model(self.name).tags.get(LOCK_TAG)
                    elif time.monotonic() > deadline:
                        raise self._refuse(run_id)
                    else:
                        time.sleep(2.0)
                stack.callback(self.client.delete_registered_model_tag, self.name, LOCK_TAG)
            yield waited

    def _is_unclaimed(self) -> bool:
        """Whether no living process on any machine holds the lock tag."""
        holder = self.client.get_registered_model(self.name).tags.get(LOCK_TAG)
        if holder is None:
            return True
        since, host, pid, _ = holder.split(" ")
        is_dead = host == platform.node() and not psutil.pid_exists(int(pid))
        return is_dead or time.time() - float(since) > STALE_S

    def _refuse(self, run_id: str) -> StudyError:
        outcome = f"refused: another promotion was under way for more than {WAIT_S:g} s"
        self.ledger.record("noted", run_id, outcome=outcome)
        rule = f"one promotion of {self.name} runs at a time, and another one has been at it for {WAIT_S:g} s"
        return StudyError(
            f"{rule}: see history=true, end it if it hangs, then run the same command again"
        )

    def at(self, alias: str) -> ModelVersion | None:
        """The version that ``alias`` points at, if any."""
        return if_there(self.client.get_model_version_by_alias, self.name, alias)

    def aliases(self) -> dict[str, str]:
        """Version by alias, of the three that promotion moves."""
        model = self.ledger.model()
        found = model.aliases if model else {}
        return {
            alias: str(found[alias]) for alias in (CHAMPION, PREVIOUS, CHALLENGER) if alias in found
        }

    def versions(self) -> dict[str, ModelVersion]:
        """All versions by number."""
        found = self.client.search_model_versions(f"name = '{self.name}'", max_results=10_000)
        return {str(version.version): version for version in found}

    def previous(self) -> ModelVersion:
        """The champion before this one; raises StudyError if there is none."""
        if (found := self.at(PREVIOUS)) is not None:
            return found
        why = f"the alias '{PREVIOUS}' of {self.name}, which points at nothing: no champion was replaced since"
        raise StudyError(
            f"rollback needs {why}; promote another run with run_id=<run_id>, or see history=true"
        )

    def begin(self, kind: str, run_id: str, **details: object) -> Entry:
        """Open an entry of the ledger; it is on the disk before anything else is done."""
        return Entry(
            self.ledger.record("begun", run_id, kind=kind, aliases=self.aliases(), **details), {}
        )

    def end(self, entry: Entry, outcome: str, reason: str, **details: object) -> None:
        """Close an entry of the ledger and bring the model's description up to date."""
        self.ledger.append(entry.start["id"], "ended", outcome=outcome, reason=reason, **details)
        self.client.update_registered_model(self.name, self._description())

    def register(
        self, entry: Entry, model_id: str, alias: str, evidence: Mapping[str, str], note: str
    ) -> str:
        """Create a version with its evidence in one transaction, then point ``alias`` at it; returns its number.

        ``note`` is its description, in Markdown.
        """
        before = entry.start["aliases"].get(CHAMPION)
        tags = {
            **evidence,
            ENTRY_TAG: entry.start["id"],
            ALIAS_TAG: alias,
            BEFORE_TAG: str(before or ""),
        }
        run_id, source = entry.start["run_id"], f"models:/{model_id}"
        made = self.client.create_model_version(
            self.name, source, run_id, tags, None, note, 60, model_id
        )
        if alias == CHAMPION and before is not None:
            self.client.set_registered_model_alias(self.name, PREVIOUS, before)
        self.client.set_registered_model_alias(self.name, alias, str(made.version))
        return str(made.version)

    def roll_back(self) -> str:
        """Make the previous champion the champion again; returns a sentence that says so."""
        target, champion = self.previous(), self.at(CHAMPION)
        version, compared = str(target.version), str(champion.version) if champion else None
        entry = self.begin("rollback", str(target.run_id), version=version, compared=compared)
        self.client.set_registered_model_alias(self.name, CHAMPION, version)
        return self._finish_rollback(entry)

    def _finish_rollback(self, entry: Entry) -> str:
        version, compared = entry.start["version"], entry.start["compared"]
        self._restore_previous(
            self.versions()[version].tags.get(BEFORE_TAG)
        )  # which that one had replaced
        left = self.aliases().get(PREVIOUS)
        before = f"version {left} is the one before it" if left else "there is none before it"
        again = f"version {version} (run {entry.start['run_id']}) is champion again"
        reason = f"{again} instead of version {compared}; {before}"
        self.end(entry, "restored", reason, version=version)
        return reason

    def _restore_previous(self, version: str | None) -> None:
        """Point the alias ``previous`` at ``version`` if that still exists; else delete the alias."""
        if version is not None and version in self.versions():
            self.client.set_registered_model_alias(self.name, PREVIOUS, version)
        elif self.at(PREVIOUS) is not None:
            self.client.delete_registered_model_alias(self.name, PREVIOUS)

    def is_clean(self) -> bool:
        """Whether no process that died has left anything unfinished."""
        entries, model = self.ledger.entries(), self.ledger.model()
        if not entries:
            return True
        is_described = model is not None and model.description == self._description()
        return is_described and all(entry.end for entry in entries) and self.ledger.is_consistent()

    def recover(self) -> None:
        """Finish or undo what processes that died left behind, with a warning for each."""
        self.ledger.sync()
        for entry in [one for one in self.ledger.entries() if not one.end]:
            self.with_defaults(entry)
        if not self.is_clean():
            self.client.update_registered_model(self.name, self._description())

    def recover_if_idle(self) -> None:
        """Recover what is to be recovered, unless another promotion is under way."""
        if self.is_clean():
            return
        with suppress(Timeout), FileLock(self.ledger.path.with_suffix(".lock"), timeout=0):
            if not self.ledger.remote or self._is_unclaimed():
                self.recover()

    def with_defaults(self, entry: Entry, why: str = "its process ended") -> None:
        """Finish an entry whose alias has moved, undo one whose alias has not, and warn of it."""
        start, done = entry.start, ""
        if start["kind"] == "rollback" and self.aliases().get(CHAMPION) == start["version"]:
            self._finish_rollback(entry)
            done = f"version {start['version']} is champion again, which stands"
        for version in [
            one for one in self.versions().values() if one.tags.get(ENTRY_TAG) == start["id"]
        ]:
            alias, number = version.tags[ALIAS_TAG], str(version.version)
            if self.aliases().get(alias) == number:
                outcome = "promoted" if alias == CHAMPION else "kept"
                self.end(
                    entry, outcome, version.tags["reason"], version=number, evidence=version.tags
                )
                done = f"it had {outcome} version {number}, which stands"
                break
            self._restore_previous(start["aliases"].get(PREVIOUS))
            self.client.delete_model_version(self.name, version.version)
        if not done:
            self.end(
                entry,
                "interrupted",
                f"cut off before the alias moved ({why}), nothing of it stands",
            )
            done = "nothing of it stands, run it again"
        console.warn(
            f"the {start['kind']} of run {start['run_id']} begun at {start['at']} was cut off: {done}"
        )

    def _description(self) -> str:
        champion = self.at(CHAMPION)
        current = "none"
        if champion is not None:
            before = champion.tags.get(BEFORE_TAG)
            replaced = f"it replaced version {before}" if before else "there was none before it"
            current = f"**version {champion.version}**, run {champion.run_id}; {replaced}.\n\n{champion.description}"
        return (
            "Reads one handwritten digit: raw pixels (n, 28, 28, 1), 0 to 255, to ten probabilities.\n\n"
            f"Champion: {current}.\n\nThe sealed test set has been opened {times(self.ledger.openings())}; the tags "
            "`ledger.*` say by whom, when, for which run and to what end (`python sweeps/promote.py history=true`)."
        )
