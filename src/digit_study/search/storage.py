"""Where the trials of a study are kept: a journal file on this machine, or a database that several machines share."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation

from digit_study.config.study import StudyConfig
from digit_study.search.supervision import HEARTBEAT_S
from digit_study.terminal.errors import StudyError
from digit_study.terminal.redaction import without_password, without_secrets
from digit_study.tracking import stores
from digit_study.tracking.stores import check_store, create_sqlite


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """A journal file to append to, whole and for this process alone; the kernel frees the lock of one that is killed.

    Optuna's own file locks outlive a killed process by 30 s.
    """
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _cut_half_line(file)
        yield file


def _cut_half_line(file: BinaryIO) -> None:
    """Remove what a process that was killed while writing left behind its last whole line."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read(1) in (b"", b"\n"):
        return
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


class _Journal(JournalFileBackend):
    """Optuna's own waits for the disk after every line: milliseconds, a dozen times a trial.

    A killed process loses nothing that was handed to the kernel; against a power cut the end of a trial waits.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with _locked(Path(self._file_path)) as file:
            file.write(text.encode())
            if any(log.get("op_code") == JournalOperation.SET_TRIAL_STATE_VALUES for log in logs):
                file.flush()
                os.fsync(file.fileno())


def folder() -> Path:
    """Where the studies of this machine are kept."""
    return stores.ARTIFACTS / "studies"


def journal_path(study: str) -> Path:
    """The journal file of a study that is kept on this machine."""
    return folder() / f"{study}.journal"


def describe_storage(study: StudyConfig) -> str:
    """Where the trials are kept, without any password."""
    return without_password(study.search.storage) if study.search.storage else str(journal_path(study.study))


def address(study: str, places: Mapping[str, str | None]) -> str:
    """The overrides by which another command finds a study, without any password.

    Args:
        study: its name.
        places: URIs of where it is kept, by key; None where that is the usual place.
    """
    given = [f"{key}='{without_password(uri)}'" for key, uri in places.items() if uri is not None]
    return " ".join([f"study={study}", *map(_quoted, given)])


def _quoted(override: str) -> str:
    """An override with quotes of its own, as a shell takes it and a person can read it."""
    return shlex.quote(override) if set(override) & set('"$`\\!') else f'"{override}"'


def check_storage(study: StudyConfig) -> None:
    """Make sure that the storage can be reached, without creating anything.

    Raises:
        StudyError: it cannot; the message shows no password.
    """
    if study.search.storage is not None:
        check_store(study.search.storage, "search.storage")


def is_shared(study: StudyConfig) -> bool:
    """Whether other machines, with which no lock is shared, may work on the same study."""
    return study.search.storage is not None and not study.search.storage.startswith("sqlite:")


def open_storage(study: StudyConfig) -> BaseStorage:
    """Open the storage, creating it first where it is new; on this machine for one process at a time.

    Raises:
        StudyError: Optuna cannot use it; the message shows no password.
    """
    if study.search.storage is None:
        return open_journal(journal_path(study.study))
    uri = study.search.storage
    create_sqlite(uri, lambda new: RDBStorage(new).engine.dispose())
    try:
        return stores.with_tables(lambda: _open_database(uri), is_shared(study))
    except Exception as fault:  # SQLAlchemy's messages quote what they were given
        raise StudyError(
            f"`search.storage` must be a database that Optuna can use, got '{without_password(uri)}': "
            f"{without_secrets(str(fault), uri)}"
        ) from None


def _open_database(uri: str) -> RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return RDBStorage(uri, heartbeat_interval=HEARTBEAT_S, grace_period=4 * HEARTBEAT_S)


def open_journal(path: Path) -> JournalStorage:
    """Open a journal file, made where it is missing, without what a killed writer left behind its last whole line."""
    with _locked(path):
        return JournalStorage(_Journal(str(path)))
