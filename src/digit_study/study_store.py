"""Where a study's trials are kept: the storage, its creation, resuming it, and what resuming refuses."""

from __future__ import annotations

import json
import os
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
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from digit_study import hardware
from digit_study.config import Config, flatten
from digit_study.errors import StudyError
from digit_study.search_config import StudyConfig, objectives_of
from digit_study.stores import ARTIFACTS, check_store, without_password

STUDIES = ARTIFACTS / "studies"
HEARTBEAT_S = 15
#: Attributes of a trial; ``superseded`` is set on a failed one whose configuration was enqueued again.
SUPERVISOR, SUPERSEDED, RETRY_OF, RUN_ID, REASON = "supervisor", "superseded", "retry_of", "run_id", "reason"
#: Attributes of a study.
DEFINITION, UID, OVERRIDES, DATA_PATH = "definition", "uid", "overrides", "data_path"
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


def journal_path(study: str) -> Path:
    """The journal file of a study that is kept on this machine."""
    return STUDIES / f"{study}.journal"


def describe_storage(study: StudyConfig) -> str:
    """Where the trials are kept, without any password."""
    return without_password(study.search.storage) if study.search.storage else str(journal_path(study.study))


def check_storage(study: StudyConfig) -> None:
    """Make sure that the storage can be reached, without creating anything.

    Raises:
        StudyError: it cannot; the message shows no password.
    """
    if study.search.storage is not None:
        check_store(study.search.storage, "search.storage")


def open_storage(study: StudyConfig) -> BaseStorage:
    """Open the storage, creating it first where it is new, one process at a time."""
    STUDIES.mkdir(parents=True, exist_ok=True)
    with FileLock(STUDIES / ".create.lock"):
        if study.search.storage is None:
            path = journal_path(study.study)
            lock = _KernelLock(path.with_suffix(".lock"))
            with lock.lock:
                _cut_half_line(path)
            return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
        return RDBStorage(study.search.storage, heartbeat_interval=HEARTBEAT_S, grace_period=4 * HEARTBEAT_S)


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
    storage = open_storage(study)
    with FileLock(STUDIES / ".create.lock"):
        existing = {summary.study_name for summary in optuna.get_all_study_summaries(storage, include_best_trial=False)}
        if study.search.fresh and study.study in existing:
            _put_aside(study.study, storage)
            existing.discard(study.study)
        if study.study not in existing:
            return _create(study, run, overrides, storage)
    opened = optuna.load_study(study_name=study.study, storage=storage)
    refuse_changes(opened, study, run)
    return opened


def _create(study: StudyConfig, run: Config, overrides: Sequence[str], storage: BaseStorage) -> Study:
    directions = [StudyDirection[name.upper()] for name in objectives_of(study.search).values()]
    created = optuna.create_study(study_name=study.study, storage=storage, directions=directions)
    created.set_user_attr(DEFINITION, definition_of(study, run))
    created.set_user_attr(UID, uuid.uuid4().hex)
    created.set_user_attr(OVERRIDES, overrides)
    created.set_user_attr(DATA_PATH, run.data.path)
    with warnings.catch_warnings():  # the dashboard shows them; Optuna calls them experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        created.set_metric_names(list(objectives_of(study.search)))
    return created


def find_study(study: StudyConfig) -> Study:
    """Open a study that exists, to build on its trials.

    Raises:
        StudyError: there is none of that name; names those that there are.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_storage(study)
    if study.search.storage is None and not journal_path(study.study).exists():
        raise _no_study(study.study, sorted(path.stem for path in STUDIES.glob("*.journal")))
    storage = open_storage(study)
    names = [one.study_name for one in optuna.get_all_study_summaries(storage, include_best_trial=False)]
    if study.study not in names:
        raise _no_study(study.study, names)
    return optuna.load_study(study_name=study.study, storage=storage)


def _no_study(name: str, names: Sequence[str]) -> StudyError:
    return StudyError(
        f"`study` must name a study that exists, got '{name}'; there are: {', '.join(names) or 'none'}: "
        f"search first with python sweeps/optuna_search.py study={name}"
    )


def _put_aside(name: str, storage: BaseStorage) -> None:
    aside = f"{name}-until-{time.strftime('%Y%m%d-%H%M%S')}"
    optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=storage, to_study_name=aside)
    optuna.delete_study(study_name=name, storage=storage)


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


def turn(study: str) -> FileLock:
    """The lock under which supervisors of one study on one machine decide; the kernel frees it when one dies."""
    STUDIES.mkdir(parents=True, exist_ok=True)
    return FileLock(STUDIES / f"{study}.turn")


def supervisor() -> str:
    """This process, named so that another one can tell whether it is still there."""
    me = psutil.Process()
    return f"{hardware.describe()['host']}:{me.pid}:{me.create_time():.2f}"


def is_alive(name: str) -> bool:
    """Whether the supervisor ``name`` still runs; one on another host is taken to be alive while it has a heartbeat."""
    host, pid, created = name.rsplit(":", 2)
    if host != hardware.describe()["host"]:
        return True
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(created)) < 0.5
    except psutil.NoSuchProcess:
        return False


def orphans(study: Study) -> list[FrozenTrial]:
    """RUNNING trials whose supervisor is gone: dead on this host, or silent on another."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    storage = study._storage
    silent = set(storage._get_stale_trial_ids(study._study_id)) if isinstance(storage, RDBStorage) else set()
    me = supervisor()
    return [
        trial
        for trial in running
        if trial._trial_id in silent
        or trial.user_attrs.get(SUPERVISOR) is None
        or (trial.user_attrs[SUPERVISOR] != me and not is_alive(trial.user_attrs[SUPERVISOR]))
    ]


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count towards the declared total: those begun, but for those that were put back to run again."""
    return [one for one in trials if one.state != TrialState.WAITING and not one.user_attrs.get(SUPERSEDED)]
