"""Where a study's trials are kept: the storage, its creation, resuming it, and what resuming refuses."""

from __future__ import annotations

import json
import os
import shlex
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import psutil
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.storages.journal._storage import JournalOperation
from optuna.study import Study, StudyDirection

from digit_study import stores
from digit_study.config import Config, flatten
from digit_study.errors import StudyError
from digit_study.naming import nearest
from digit_study.search import supervision
from digit_study.search.search_config import StudyConfig, objectives_of
from digit_study.search.supervision import HEARTBEAT_S
from digit_study.stores import check_store, create_sqlite, without_password

#: Attributes of a study; the definition is set last.
DEFINITION, UID, OVERRIDES, DATA_PATH, CREATED = "definition", "uid", "overrides", "data_path", "created"
#: Overrides that do not describe the study: its name, its place, and what one call of the command wants.
NOT_STORED = (
    "study=", "data.path=", "search.plan", "search.fresh", "search.confirm", "search.workers", "search.trials",
    "search.storage=", "confirm.",
)  # fmt: skip
#: Keys that may change between a study and its resumption: where results go, and what does not decide them.
FREE_KEYS = ("tracking.", "training.threads", "training.seed", "data.path", "data.source", "reproduce")


class _KernelLock(BaseJournalFileLock):
    """Optuna's own file locks outlive a killed process by 30 s; the kernel gives this one back at once."""

    def __init__(self, path: Path) -> None:
        self.lock = FileLock(path)

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


class _Journal(JournalFileBackend):
    """Optuna's own waits for the disk after every line: milliseconds, a dozen times a trial.

    A killed process loses nothing that was handed to the kernel; against a power cut the end of a trial waits.
    """

    def __init__(self, path: Path, lock: _KernelLock) -> None:
        super().__init__(str(path), lock_obj=lock)
        self.kernel_lock = lock.lock

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self.kernel_lock, open(self._file_path, "ab") as file:
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


def address(study: StudyConfig) -> str:
    """The overrides by which another command finds the study."""
    if study.search.storage is None:
        return f"study={study.study}"
    return f"study={study.study} " + shlex.quote(f"search.storage='{describe_storage(study)}'")


def check_storage(study: StudyConfig) -> None:
    """Make sure that the storage can be reached, without creating anything.

    Raises:
        StudyError: it cannot; the message shows no password.
    """
    if study.search.storage is not None:
        check_store(study.search.storage, "search.storage")


def open_storage(study: StudyConfig) -> BaseStorage:
    """Open the storage, creating it first where it is new; one process at a time under :func:`_creating`."""
    if study.search.storage is None:
        return _open_journal(journal_path(study.study))
    uri = study.search.storage
    create_sqlite(uri, lambda new: RDBStorage(new).engine.dispose())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return RDBStorage(uri, heartbeat_interval=HEARTBEAT_S, grace_period=4 * HEARTBEAT_S)
    except Exception as fault:  # SQLAlchemy's messages quote what they were given
        raise StudyError(
            f"`search.storage` must be a database that Optuna can use, got '{without_password(uri)}': "
            f"{stores.without_secrets(str(fault), uri)}"
        ) from None


def _open_journal(path: Path) -> JournalStorage:
    lock = _KernelLock(path.with_suffix(".lock"))
    with lock.lock:
        _cut_half_line(path)
    return JournalStorage(_Journal(path, lock))


def _creating() -> FileLock:
    return supervision.lock(".create.lock")


def _cut_half_line(path: Path) -> None:
    """Remove what a process that was killed while writing left behind its last whole line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def definition_of(study: StudyConfig, run: Config) -> dict[str, Any]:
    """What makes trials comparable: the resolved baseline, the space, objectives and constraints."""
    kept = {key: value for key, value in flatten(run).items() if not key.startswith(FREE_KEYS)}
    space = {f"search.space.{key}": entry for key, entry in study.search.space.items()}
    rest = {"search.objectives": objectives_of(study.search), "search.constraints": study.search.constraints}
    found: dict[str, Any] = json.loads(json.dumps({**kept, **space, **rest}))
    return found


def open_study(study: StudyConfig, run: Config, overrides: Sequence[str]) -> Study:
    """Create the study, or find it again; with ``search.fresh`` the old one is first put aside under a dated name.

    Raises:
        StudyError: it exists with another space, objective, data or precision; names every difference.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _creating():
        opened = _load(study, open_storage(study))
        if opened is not None and study.search.fresh and not _is_of_this_moment(opened):
            _put_aside(study, opened)
            opened = None
        if opened is None or DEFINITION not in opened.user_attrs:
            return _create(study, run, overrides, opened)
    refuse_changes(opened, study, run)
    return opened


def _load(study: StudyConfig, storage: BaseStorage) -> Study | None:
    known = optuna.get_all_study_summaries(storage, include_best_trial=False)
    if study.study not in {summary.study_name for summary in known}:
        return None
    return optuna.load_study(study_name=study.study, storage=storage)


def _create(study: StudyConfig, run: Config, overrides: Sequence[str], begun: Study | None) -> Study:
    """Create the study; ``begun`` is one whose creator was killed before it was whole."""
    objectives = objectives_of(study.search)
    directions = [StudyDirection[name.upper()] for name in objectives.values()]
    created = begun or optuna.create_study(study_name=study.study, storage=open_storage(study), directions=directions)
    created.set_user_attr(UID, uuid.uuid4().hex)
    created.set_user_attr(CREATED, time.time())
    created.set_user_attr(OVERRIDES, [text for text in overrides if not text.startswith(NOT_STORED)])
    created.set_user_attr(DATA_PATH, run.data.path)
    with warnings.catch_warnings():  # the dashboard shows them; Optuna calls them experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        created.set_metric_names(list(objectives))
    created.set_user_attr(DEFINITION, definition_of(study, run))
    return created


def find_study(study: StudyConfig) -> Study:
    """Open a study that exists, to build on its trials.

    Raises:
        StudyError: there is none of that name; names those that there are.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_storage(study)
    if study.search.storage is None and not journal_path(study.study).exists():
        raise _no_study(study.study, sorted(path.stem for path in folder().glob("*.journal")))
    if study.search.storage is not None and stores.is_missing(study.search.storage):
        raise _no_study(study.study, [])
    with _creating():
        storage = open_storage(study)
    found = _load(study, storage)
    if found is None or DEFINITION not in found.user_attrs:
        names = [one.study_name for one in optuna.get_all_study_summaries(storage, include_best_trial=False)]
        raise _no_study(study.study, [name for name in names if name != study.study])
    return found


def _no_study(name: str, names: Sequence[str]) -> StudyError:
    return StudyError(
        f"`study` must name a study that exists, got '{name}'{nearest(name, names)}; "
        f"there are: {', '.join(names) or 'none'}: "
        f"search first with python sweeps/optuna_search.py study={name}"
    )


def _is_of_this_moment(opened: Study) -> bool:
    """Whether another command that was typed at the same time has begun it anew: this one then joins it."""
    return float(opened.user_attrs.get(CREATED, 0.0)) > psutil.Process().create_time()


def _put_aside(study: StudyConfig, opened: Study) -> None:
    busy = [name for name in supervision.supervisors(opened) if supervision.is_here(name)]
    if busy:
        raise StudyError(
            f"search.fresh=true starts a study anew that nobody works on, but '{study.study}' is being searched by "
            f"{', '.join(busy)}: stop that, or take another name with study=<name>"
        )
    aside = f"{study.study}-until-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    to = _open_journal(journal_path(aside)) if study.search.storage is None else opened._storage
    optuna.copy_study(from_study_name=study.study, from_storage=opened._storage, to_storage=to, to_study_name=aside)
    optuna.delete_study(study_name=study.study, storage=opened._storage)


def refuse_changes(opened: Study, study: StudyConfig, run: Config) -> None:
    """Make sure that ``opened`` was begun as it is asked for now.

    Raises:
        StudyError: names every difference.
    """
    was: Mapping[str, Any] = opened.user_attrs.get(DEFINITION, {})
    now, name = definition_of(study, run), study.study
    changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    if not changed:
        return
    told = "; ".join(f"`{key}` was {was.get(key)!r}, is now {now.get(key)!r}" for key in sorted(changed))
    raise StudyError(
        f"a study is continued as it began, but in study '{name}' {told}: change it back, "
        "take another name with study=<name>, or start it anew with search.fresh=true (the old one is kept)"
    )
