"""The Optuna study: created, found again, put aside or refused, by one process or several; and who works on it."""

import json
import time
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import optuna
import psutil
from filelock import FileLock, Timeout
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from digit_study.config.engine_config import ENGINE_KEYS
from digit_study.config.run_config import Config
from digit_study.config.space import Params, fingerprint
from digit_study.config.study_config import StudyConfig, objectives_of
from digit_study.study._optuna import Database, JournalFile, stale_trial_ids
from digit_study.study.study_plan import journal_path, studies_folder
from digit_study.support import machine
from digit_study.support.messages import StudyError, nearest, without_password, without_secrets
from digit_study.support.rules import flatten
from digit_study.tracking import database as stores

#: Attributes of a study; the definition is set last. ``supervised by`` precedes the name of every supervisor it had.
DEFINITION, UID, OVERRIDES, DATA_PATH, CREATED = (
    "definition",
    "uid",
    "overrides",
    "data_path",
    "created",
)
CREATOR, SUPERVISED = "creator", "supervised by "
#: Attributes of a trial; ``superseded`` is set on a failed one that does not count: its configuration runs again, or is
#: one too many.
SUPERVISOR, WORKER, REASON, SUPERSEDED = "supervisor", "worker", "reason", "superseded"
SURPLUS = "one too many: another machine had begun the last one"
#: Seconds within which another machine has a study whole that it has just created, and has signed a trial.
WHOLE_WITHIN_S, SIGNED_WITHIN_S, HEARTBEAT_S = 10.0, 60, 15
#: Overrides that do not describe the study: its name, its place, and what one call of the command wants.
NOT_STORED = (
    "study=", "data.path=", "search.plan", "search.fresh", "search.confirm", "search.workers", "search.trials",
    "search.storage=", "search.engine", "search.address", "search.resources", "search.watch", "search.outage_timeout", "search.patience",
    "confirm.", "confirm=",
)  # fmt: skip
#: Keys that may change between a study and its resumption: where results go, and what does not decide them.
FREE_KEYS = (
    "tracking.", "training.threads", "training.seed", "data.path", "data.source", "reproduce", *ENGINE_KEYS,
)  # fmt: skip


@dataclass(frozen=True)
class StoredStudy:
    """An Optuna study and the storage it was opened on."""

    study: Study
    storage: BaseStorage
    # trials by the fingerprint of their configuration, and those that are among them
    _alike: dict[str, list[int]] = field(default_factory=dict, compare=False, repr=False)
    _indexed: set[int] = field(default_factory=set, compare=False, repr=False)

    @property
    def database(self) -> RDBStorage | None:
        """The storage where other machines may share it; None for a journal."""
        return self.storage if isinstance(self.storage, RDBStorage) else None

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in ``states``, or all."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def hosts(self) -> dict[int, str]:
        """The host of each trial's worker by the trial's number, empty where it had none."""
        return {
            one.number: str(one.user_attrs.get(WORKER, "")).rsplit(":", 2)[0]
            for one in self.trials()
        }

    def trial_id(self, number: int) -> int:
        """Id in the storage of a trial of the study."""
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        return self.storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def trial(self, number: int) -> FrozenTrial:
        """A trial as it is now."""
        return self.storage.get_trial(self.trial_id(number))

    def send_heartbeats(self, numbers: Iterable[int]) -> None:
        """Tell other machines, where there may be some, that these trials live."""
        if self.database is not None:
            for number in numbers:
                self.database.record_heartbeat(self.trial_id(number))

    def drop_surplus(self, trial: Trial, total: int) -> bool:
        """End a trial that is one too many, as machines may ask for the last at once; says whether it was."""
        if self.database is None:
            return False
        is_surplus = sum(one.number <= trial.number for one in counted(self.trials())) > total
        if is_surplus:
            trial.set_user_attr(SUPERSEDED, True)
            trial.set_user_attr(REASON, SURPLUS)
            self.study.tell(trial.number, state=TrialState.FAIL)
        return is_surplus

    def same_configuration(self, number: int, params: Params) -> int | None:
        """The first trial of the configuration ``params`` that was or is being evaluated, except ``number``."""
        trials = self.trials()
        # each is looked at once; one that was only asked for may not have all its params yet
        new = [one for one in trials if one.number not in self._indexed and one.state.is_finished()]
        for known, chosen in [*((one.number, one.params) for one in new), (number, params)]:
            self._indexed.add(known)
            self._alike.setdefault(fingerprint(chosen), []).append(known)
        alive = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        same = self._alike[fingerprint(params)]
        return min(
            (one for one in same if one != number and trials[one].state in alive), default=None
        )


def lock(name: str) -> FileLock:
    """A lock of this machine beside the studies, which the kernel frees when its owner dies."""
    studies_folder().mkdir(parents=True, exist_ok=True)
    return FileLock(studies_folder() / name)


def exclusive(study: str, what: str, description: str) -> AbstractContextManager[Any]:
    """Let only one process of this machine do ``what`` with a study; raises StudyError if another one does."""
    try:
        held: AbstractContextManager[Any] = lock(f"{study}.{what}").acquire(timeout=0)
        return held
    except Timeout:
        raise StudyError(
            f"study '{study}' {description} by another process: wait for it, or stop it"
        ) from None


def definition_of(study: StudyConfig, run: Config) -> dict[str, Any]:
    """What makes trials comparable: the resolved baseline, the space, objectives and constraints."""
    kept = {key: value for key, value in flatten(run).items() if not key.startswith(FREE_KEYS)}
    space = {f"search.space.{key}": entry for key, entry in study.search.space.items()}
    rest = {
        "search.objectives": objectives_of(study.search),
        "search.constraints": study.search.constraints,
    }
    found: dict[str, Any] = json.loads(json.dumps({**kept, **space, **rest}))
    return found


def open_study(study: StudyConfig, run: Config, overrides: Sequence[str]) -> StoredStudy:
    """Create the study, or find it again; with ``search.fresh`` the old one is first put aside under a dated name.

    Raises a StudyError that names every difference if it exists with another space, objective, data or precision.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with lock(".create.lock"):
        storage = _open_storage(study)
        opened = _load(study, storage)
        # a younger one was created anew by another command that was typed at the same time: this one then joins it
        is_older = (
            opened and float(opened.user_attrs.get(CREATED, 0.0)) <= psutil.Process().create_time()
        )
        if opened is not None and study.search.fresh and is_older:
            _put_aside(study, StoredStudy(opened, storage))
            opened = None
        if opened is None:
            directions = [
                StudyDirection[name.upper()] for name in objectives_of(study.search).values()
            ]
            try:
                opened = optuna.create_study(
                    study_name=study.study, storage=storage, directions=directions
                )
            except (
                DuplicatedStudyError
            ):  # another machine, with which no lock is shared, was faster
                opened = optuna.load_study(study_name=study.study, storage=storage)
                _await_whole(study, opened)
        if DEFINITION not in opened.user_attrs:
            _define(opened, study, run, overrides)
    refuse_changes(opened, study, run)
    return StoredStudy(opened, storage)


def find_study(study: StudyConfig) -> StoredStudy:
    """Open a study that exists, to build on its trials; raises a StudyError that names those there are."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    uri, names = study.search.storage, []
    if uri is None:
        names = sorted(path.stem for path in studies_folder().glob("*.journal"))
        exists = journal_path(study.study).exists()
    else:
        stores.check_store(uri, "search.storage")
        exists = not stores.is_missing(uri)
    if exists:
        with lock(".create.lock"):
            storage = _open_storage(study)
        found = _load(study, storage)
        if found is not None and DEFINITION in found.user_attrs:
            return StoredStudy(found, storage)
        known = optuna.get_all_study_summaries(storage, include_best_trial=False)
        names = [one.study_name for one in known if one.study_name != study.study]
    raise StudyError(
        f"`study` must name a study that exists, got '{study.study}'{nearest(study.study, names)}; "
        f"there are: {', '.join(names) or 'none'}: "
        f"search first with python sweeps/optuna_search.py study={study.study}"
    )


def _open_storage(study: StudyConfig) -> BaseStorage:
    """Open the storage, creating it first where it is new; on this machine for one process at a time."""
    uri, shared = study.search.storage, study.search.is_shared
    if uri is None:
        return JournalStorage(JournalFile(journal_path(study.study)))
    stores.create_sqlite(uri, lambda new: RDBStorage(new).engine.dispose())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            make = (
                partial(Database, outage_timeout=study.search.outage_timeout)
                if shared
                else RDBStorage
            )
            open_it = partial(
                make, uri, heartbeat_interval=HEARTBEAT_S, grace_period=4 * HEARTBEAT_S
            )
            return stores.with_tables(open_it, shared)
    except Exception as fault:  # SQLAlchemy's messages quote what they were given
        raise StudyError(
            f"`search.storage` must be a database that Optuna can use, got '{without_password(uri)}': "
            f"{without_secrets(str(fault), uri)}"
        ) from None


def _load(study: StudyConfig, storage: BaseStorage) -> Study | None:
    known = optuna.get_all_study_summaries(storage, include_best_trial=False)
    if study.study not in {summary.study_name for summary in known}:
        return None
    found = optuna.load_study(study_name=study.study, storage=storage)
    _await_whole(study, found)
    return found


def _await_whole(study: StudyConfig, found: Study) -> None:
    """Give a study that another machine is creating at this moment the time to become whole."""
    deadline = time.monotonic() + (WHOLE_WITHIN_S if study.search.is_shared else 0.0)
    while DEFINITION not in found.user_attrs and time.monotonic() < deadline:
        time.sleep(0.1)


def _define(created: Study, study: StudyConfig, run: Config, overrides: Sequence[str]) -> None:
    """Make a study whole that was just created, here or by a process that was killed then."""
    # an override is kept if it describes the study and may be shown to all who can open it
    kept = [
        text
        for text in overrides
        if not text.startswith(NOT_STORED) and without_password(text) == text
    ]
    attributes = {UID: uuid.uuid4().hex, CREATOR: machine.process_name(), CREATED: time.time()}
    for key, value in {**attributes, OVERRIDES: kept, DATA_PATH: run.data.path}.items():
        created.set_user_attr(key, value)
    with warnings.catch_warnings():  # the dashboard shows them; Optuna calls them experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        created.set_metric_names(list(objectives_of(study.search)))
    created.set_user_attr(DEFINITION, definition_of(study, run))


def _put_aside(study: StudyConfig, opened: StoredStudy) -> None:
    joined = [
        key.removeprefix(SUPERVISED)
        for key in opened.study.user_attrs
        if key.startswith(SUPERVISED)
    ]
    here = {name for name in joined if machine.find_process(name)}
    gone = {trial.number for trial in orphans(opened)}
    running = [trial for trial in opened.trials(TrialState.RUNNING) if trial.number not in gone]
    if working := sorted(
        here | {trial.user_attrs.get(SUPERVISOR, "another machine") for trial in running}
    ):
        raise StudyError(
            f"search.fresh=true starts a study anew that nobody works on, but '{study.study}' is being searched by "
            f"{', '.join(working)}: stop that, or take another name with study=<name>"
        )
    aside = f"{study.study}-until-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    to = (
        JournalStorage(JournalFile(journal_path(aside)))
        if study.search.storage is None
        else opened.storage
    )
    optuna.copy_study(
        from_study_name=study.study, from_storage=opened.storage, to_storage=to, to_study_name=aside
    )
    optuna.delete_study(study_name=study.study, storage=opened.storage)


def refuse_changes(opened: Study, study: StudyConfig, run: Config) -> None:
    """Raise a StudyError that names every difference unless ``opened`` was created as it is asked for now."""
    was: Mapping[str, Any] = opened.user_attrs.get(DEFINITION, {})
    now = definition_of(study, run)
    usual = flatten(Config())  # a key that there was not yet had what is its default now
    changed = sorted(key for key in {**was, **now} if was.get(key, usual.get(key)) != now.get(key))
    if changed:
        differences = "; ".join(
            f"`{key}` was {was.get(key)!r}, is now {now.get(key)!r}" for key in changed
        )
        raise StudyError(
            f"a study is continued as it began, but in study '{study.study}' {differences}: change it back, "
            "take another name with study=<name>, or start it anew with search.fresh=true (the old one is kept)"
        )


def orphans(stored: StoredStudy) -> list[FrozenTrial]:
    """RUNNING trials whose supervisor is gone: dead on this host, or silent on another."""
    shared = stored.database is not None
    stale, me = stale_trial_ids(stored.storage, stored.study.study_name), machine.process_name()

    def is_orphan(trial: FrozenTrial) -> bool:
        name = trial.user_attrs.get(SUPERVISOR)
        if stale and name != me and stored.trial_id(trial.number) in stale:
            return True
        if (
            name is not None
        ):  # a journal is of one machine, whatever that was called when the study was created
            return not (machine.is_alive(name) if shared else machine.find_process(name))
        # asked for and not signed: on this machine that is done under a lock, on another it may just be going on
        started = trial.datetime_start or datetime.min
        return not shared or datetime.now() - started > timedelta(seconds=SIGNED_WITHIN_S)

    return [trial for trial in stored.trials(TrialState.RUNNING) if is_orphan(trial)]


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count towards the declared total: all that were started, but for those put back to run again."""
    return [
        one
        for one in trials
        if one.state != TrialState.WAITING and not one.user_attrs.get(SUPERSEDED)
    ]
