"""The stored study: created, found again, put aside or refused, by one process or by several."""

from __future__ import annotations

import json
import os
import shlex
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import psutil
from filelock import FileLock, Timeout
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from digit_study.config.engine_config import ENGINE_KEYS
from digit_study.config.renamed_keys import key_of
from digit_study.config.run_config import Config
from digit_study.config.space import Params, fingerprint
from digit_study.config.study_config import StudyConfig, objectives_of
from digit_study.study._optuna import Database, JournalFile, stale_trial_ids
from digit_study.study.begun_study import DEFINITION, OVERRIDES, UID, words_of_begin
from digit_study.study.journal import check_is_file, journal_path
from digit_study.study.study_plan import address_of
from digit_study.study.trial_attributes import (
    EXCESS,
    REASON,
    REQUEUED,
    SUPERVISOR,
    WORKER,
    counted,
)
from digit_study.support import processes
from digit_study.support.errors import StudyError
from digit_study.support.redaction import without_password, without_secrets
from digit_study.support.rules import flatten
from digit_study.support.suggestions import nearest
from digit_study.support.workspace import Workspace
from digit_study.tracking import database

#: Where its digits lay then.
DATA_PATH = "data_path"
#: When it was created, in Unix seconds.
CREATED = "created"
#: Process that created it.
CREATOR = "creator"
#: Precedes the name of every process that supervised it.
SUPERVISED = "supervised by "

#: Seconds within which another machine completes a study that it has just created.
DEFINED_WITHIN_S = 10.0
#: Seconds within which another machine signs a trial that it has just asked for.
SIGNED_WITHIN_S = 60
#: Seconds between two heartbeats of a trial.
HEARTBEAT_S = 15
#: Changes at most that a refusal names.
MOST_CHANGES = 3

#: How the keys begin whose overrides do not describe the study: its name, where it is kept, and
#: what one command wants.
NOT_STORED = (
    "study",
    "data.path",
    "search.plan",
    "search.fresh",
    "search.confirm",
    "search.workers",
    "search.trials",
    "search.timeout",
    "search.start",
    "search.storage",
    "search.engine",
    "search.address",
    "search.resources",
    "search.paused",
    "search.outage_timeout",
    "confirm.",
)
#: Keys that may change between a study and its resumption: they do not decide its results.
FREE_KEYS = (
    "tracking.",
    "training.threads",
    "training.seed",
    "data.path",
    "data.source",
    "reproduce",
    "fresh",
    "patience",
    *ENGINE_KEYS,
)


@dataclass(frozen=True)
class StoredStudy:
    """An Optuna study and the storage that it was opened on."""

    study: Study
    storage: BaseStorage
    #: Numbers of trials by the fingerprint of their configuration.
    _by_configuration: dict[str, list[int]] = field(default_factory=dict, compare=False, repr=False)
    #: Numbers of the trials that are among them.
    _indexed: set[int] = field(default_factory=set, compare=False, repr=False)

    @property
    def database(self) -> RDBStorage | None:
        """Return the storage where other machines may share it; None for a journal."""
        if isinstance(self.storage, RDBStorage):
            return self.storage
        return None

    @property
    def uid(self) -> str:
        """Return what tells this study from others of its name."""
        return str(self.study.user_attrs[UID])

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in ``states``, or all."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def hosts(self) -> dict[int, str]:
        """Return the host of each trial's worker by the number of the trial, empty without one."""
        return {
            trial.number: str(trial.user_attrs.get(WORKER, "")).rsplit(":", 2)[0]
            for trial in self.trials()
        }

    def trial_id(self, number: int) -> int:
        """Return the id in the storage of a trial of the study."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def trial(self, number: int) -> FrozenTrial:
        """Return a trial as it is now."""
        return self.storage.get_trial(self.trial_id(number))

    def send_heartbeats(self, numbers: Iterable[int]) -> None:
        """Tell other machines, where there may be some, that these trials live."""
        if self.database is None:
            return
        for number in numbers:
            self.database.record_heartbeat(self.trial_id(number))

    def drop_excess(self, trial: Trial, total: int) -> bool:
        """End a trial in excess of the total: several machines may ask for the last at once.

        Returns:
            Whether the trial was in excess.
        """
        if self.database is None:
            return False
        before = [other for other in counted(self.trials()) if other.number <= trial.number]
        if len(before) <= total:
            return False
        trial.set_user_attr(REQUEUED, value=True)
        trial.set_user_attr(REASON, EXCESS)
        self.study.tell(trial.number, state=TrialState.FAIL)
        return True

    def same_configuration(self, number: int, params: Params) -> int | None:
        """Return the first trial that evaluated or evaluates ``params``, except ``number``."""
        trials = self.trials()
        # a trial that was only asked for may not have all its parameters yet
        for trial in trials:
            if trial.number not in self._indexed and trial.state.is_finished():
                self._index(trial.number, trial.params)
        self._index(number, params)
        alive = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        same = [
            other
            for other in self._by_configuration[fingerprint(params)]
            if other != number and trials[other].state in alive
        ]
        return min(same, default=None)

    def _index(self, number: int, params: Params) -> None:
        self._indexed.add(number)
        self._by_configuration.setdefault(fingerprint(params), []).append(number)


def study_lock(workspace: Workspace, study: str, purpose: str) -> FileLock:
    """Return the lock of this machine under which one process at a time does something."""
    return workspace.lock(f"studies/{study}.{purpose}")


def exclusive(
    workspace: Workspace, study: str, purpose: str, description: str
) -> AbstractContextManager[Any]:
    """Hold the lock of a study, without waiting for it.

    Args:
        workspace: Where the study is kept.
        study: Its name.
        purpose: What the lock is for.
        description: What another process does that holds it, as in "is being confirmed".

    Raises:
        StudyError: If another process of this machine holds it.
    """
    try:
        held: AbstractContextManager[Any] = study_lock(workspace, study, purpose).acquire(timeout=0)
    except Timeout:
        raise StudyError(
            f"study '{study}' {description} by another process: wait for it, or stop it"
        ) from None
    return held


def definition_of(study: StudyConfig, run: Config) -> dict[str, Any]:
    """Return what makes trials comparable: the baseline, the space, objectives and constraints."""
    definition: dict[str, Any] = {
        key: value for key, value in flatten(run).items() if not key.startswith(FREE_KEYS)
    }
    for key, entry in study.search.space.items():
        definition[f"search.space.{key}"] = entry
    definition["search.objectives"] = objectives_of(study.search)
    definition["search.constraints"] = study.search.constraints
    # as a storage returns it
    plain: dict[str, Any] = json.loads(json.dumps(definition))
    return plain


def open_study(
    study: StudyConfig, run: Config, overrides: Sequence[str], workspace: Workspace
) -> StoredStudy:
    """Create a study, or find it again.

    With ``search.fresh`` a study that exists is first put aside under a dated name.

    Args:
        study: The study as it is asked for.
        run: Its resolved baseline.
        overrides: The command line.
        workspace: Where studies of this machine are kept.

    Raises:
        StudyError: If it exists with another space, objective, data or precision; the message
            names the first differences.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with workspace.lock("studies/.create.lock"):
        storage = _open_storage(study, workspace)
        opened = _load(study, storage)
        if opened is not None and study.search.fresh and _is_older_than_this_command(opened):
            _put_aside(study, StoredStudy(opened, storage), workspace)
            opened = None
        if opened is None:
            opened = _create(study, storage)
        _check_first_records(opened)
        if DEFINITION not in opened.user_attrs:
            _define(opened, study, run, overrides)
    refuse_changes(opened, study, run)
    return StoredStudy(opened, storage)


def find_study(study: StudyConfig, workspace: Workspace) -> StoredStudy:
    """Open a study that exists.

    Raises:
        StudyError: If it does not; the message names those that do.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    uri = study.search.storage
    names: list[str] = []
    if uri is None:
        names = sorted(path.stem for path in workspace.studies.glob("*.journal"))
        # what is no file is refused when it is opened
        exists = os.path.lexists(journal_path(workspace, study.study))
    else:
        database.check_store(uri, "search.storage")
        exists = not database.is_missing(uri)
    if exists:
        with workspace.lock("studies/.create.lock"):
            storage = _open_storage(study, workspace)
        found = _load(study, storage)
        if found is not None and DEFINITION in found.user_attrs:
            _check_first_records(found)
            return StoredStudy(found, storage)
        known = optuna.get_all_study_names(storage)
        names = [name for name in known if name != study.study]
    raise StudyError(
        f"`study` must name a study that exists ({', '.join(names) or 'there is none yet'}), got "
        f"'{study.study}'{nearest(study.study, names)}; "
        f"search first with python sweeps/optuna_search.py {address_of(study)}"
    )


def _check_first_records(opened: Study) -> None:
    """Make sure that a study has what it was begun with; raises StudyError."""
    # the definition is written last
    if DEFINITION in opened.user_attrs and OVERRIDES not in opened.user_attrs:
        rule = f"study '{opened.study_name}' must have its first records, and lacks some"
        raise StudyError(
            f"{rule}: bring it back from a copy, or search again with search.fresh=true"
        )


def refuse_changes(opened: Study, study: StudyConfig, run: Config) -> None:
    """Refuse a study that is not as it was created.

    Raises:
        StudyError: If it is not; the message names the first changes, and the command that began
            the study.
    """
    was: Mapping[str, Any] = opened.user_attrs.get(DEFINITION, {})
    now = definition_of(study, run)
    # a key that did not exist then had what is its default now
    defaults = flatten(Config())
    changed = []
    for key in sorted({**was, **now}):
        if key.startswith(FREE_KEYS):
            continue
        if was.get(key, defaults.get(key)) != now.get(key):
            changed.append(f"`{key}` was {was.get(key)!r}, is now {now.get(key)!r}")
    if not changed:
        return
    if len(changed) > MOST_CHANGES:
        rest = len(changed) - MOST_CHANGES
        changed = [*changed[:MOST_CHANGES], f"and {rest} more"]
    words = [f"study={study.study}", *words_of_begin(opened.user_attrs)]
    begin = shlex.join(["python", "sweeps/optuna_search.py", *words])
    raise StudyError(
        f"a study is continued as it began, but in study '{study.study}' {'; '.join(changed)}: "
        f"change it back (it began with `{begin}`), take another name with "
        "study=<name>, or start it anew with search.fresh=true (the old one is kept)"
    )


def orphans(stored: StoredStudy) -> list[FrozenTrial]:
    """Return the RUNNING trials whose supervisor is dead on this host, or silent on another."""
    is_shared = stored.database is not None
    stale = stale_trial_ids(stored.storage, stored.study.study_name)
    this_process = processes.process_name()

    def is_orphan(trial: FrozenTrial) -> bool:
        supervisor = trial.user_attrs.get(SUPERVISOR)
        if stale and supervisor != this_process and stored.trial_id(trial.number) in stale:
            return True
        if supervisor is not None and is_shared:
            return not processes.is_alive(supervisor)
        if supervisor is not None:
            # a journal is of one machine, whatever its name was when the study was created
            return not processes.find_process(supervisor)
        # A trial that was asked for and not signed: this machine does both under a lock, on
        # another machine it may be going on at this moment.
        if not is_shared:
            return True
        started = trial.datetime_start or datetime.min
        return datetime.now() - started > timedelta(seconds=SIGNED_WITHIN_S)

    return [trial for trial in stored.trials(TrialState.RUNNING) if is_orphan(trial)]


def _open_storage(study: StudyConfig, workspace: Workspace) -> BaseStorage:
    """Open the storage, and create it where it is new; one process at a time."""
    uri = study.search.storage
    if uri is None:
        return _open_journal(journal_path(workspace, study.study))
    is_shared = study.search.is_shared
    database.create_sqlite(uri, lambda new: RDBStorage(new).engine.dispose())
    make: Any = RDBStorage
    if is_shared:
        make = partial(Database, outage_timeout=study.search.outage_timeout)
    open_storage = partial(make, uri, heartbeat_interval=HEARTBEAT_S, grace_period=4 * HEARTBEAT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage: BaseStorage = database.with_tables(open_storage, is_shared=is_shared)
    except Exception as fault:
        # SQLAlchemy's messages quote what they were given
        raise StudyError(
            "`search.storage` must be a database that Optuna can use, got "
            f"'{without_password(uri)}': {without_secrets(str(fault), uri)}"
        ) from None
    return storage


def _open_journal(path: Path) -> JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    check_is_file(path)
    return JournalStorage(JournalFile(path))


def _load(study: StudyConfig, storage: BaseStorage) -> Study | None:
    """Load a study, None if there is none of its name."""
    if study.study not in optuna.get_all_study_names(storage):
        return None
    found = optuna.load_study(study_name=study.study, storage=storage)
    _await_definition(study, found)
    return found


def _create(study: StudyConfig, storage: BaseStorage) -> Study:
    """Create a study, or load it if another machine, which shares no lock, was faster."""
    directions = [
        StudyDirection[direction.upper()] for direction in objectives_of(study.search).values()
    ]
    try:
        return optuna.create_study(study_name=study.study, storage=storage, directions=directions)
    except DuplicatedStudyError:
        opened = optuna.load_study(study_name=study.study, storage=storage)
        _await_definition(study, opened)
        return opened


def _await_definition(study: StudyConfig, found: Study) -> None:
    """Give another machine, which may be creating a study now, the time to complete it."""
    if not study.search.is_shared:
        return
    deadline = time.monotonic() + DEFINED_WITHIN_S
    while DEFINITION not in found.user_attrs and time.monotonic() < deadline:
        time.sleep(0.1)


def _is_older_than_this_command(opened: Study) -> bool:
    """Return whether a study was created before this command began.

    A younger study was created anew by a command that was typed at the same time: this command
    then joins it.
    """
    return float(opened.user_attrs.get(CREATED, 0.0)) <= psutil.Process().create_time()


def _define(created: Study, study: StudyConfig, run: Config, overrides: Sequence[str]) -> None:
    """Complete a study that was just created, here or by a process that was killed then."""
    # an override is kept if it describes the study and may be shown to all who can open it
    kept = [
        text
        for text in overrides
        if not key_of(text).startswith(NOT_STORED) and without_password(text) == text
    ]
    attributes = {
        UID: uuid.uuid4().hex,
        CREATOR: processes.process_name(),
        CREATED: time.time(),
        OVERRIDES: kept,
        DATA_PATH: run.data.path,
    }
    for key, value in attributes.items():
        created.set_user_attr(key, value)
    with warnings.catch_warnings():
        # the dashboard shows metric names; Optuna calls them experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        created.set_metric_names(list(objectives_of(study.search)))
    created.set_user_attr(DEFINITION, definition_of(study, run))


def _put_aside(study: StudyConfig, opened: StoredStudy, workspace: Workspace) -> None:
    """Rename a study that nobody works on; StudyError if somebody does."""
    supervisors = [
        key.removeprefix(SUPERVISED)
        for key in opened.study.user_attrs
        if key.startswith(SUPERVISED)
    ]
    working = {name for name in supervisors if processes.find_process(name)}
    abandoned = {trial.number for trial in orphans(opened)}
    for trial in opened.trials(TrialState.RUNNING):
        if trial.number not in abandoned:
            working.add(trial.user_attrs.get(SUPERVISOR, "another machine"))
    if working:
        raise StudyError(
            "search.fresh=true starts a study anew that nobody works on, but "
            f"'{study.study}' is being searched by {', '.join(sorted(working))}: stop that, or "
            "take another name with study=<name>"
        )
    date = time.strftime("%Y%m%d-%H%M%S")
    aside = f"{study.study}-until-{date}-{uuid.uuid4().hex[:4]}"
    target = opened.storage
    if study.search.storage is None:
        target = _open_journal(journal_path(workspace, aside))
    optuna.copy_study(
        from_study_name=study.study,
        from_storage=opened.storage,
        to_storage=target,
        to_study_name=aside,
    )
    optuna.delete_study(study_name=study.study, storage=opened.storage)
