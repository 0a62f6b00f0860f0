"""A study that is begun, found again, put aside or refused: by one process or by several at the same moment."""

from __future__ import annotations

import json
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import psutil
from filelock import FileLock
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection

from digit_study.config.run import Config, flatten
from digit_study.config.study import StudyConfig, objectives_of
from digit_study.search import supervision
from digit_study.search.storage import check_storage, folder, is_shared, journal_path, open_journal, open_storage
from digit_study.terminal.errors import StudyError
from digit_study.terminal.naming import nearest
from digit_study.terminal.redaction import without_password
from digit_study.tracking import stores

#: Attributes of a study; the definition is set last.
DEFINITION, UID, OVERRIDES, DATA_PATH, CREATED = "definition", "uid", "overrides", "data_path", "created"
CREATOR = "creator"
#: Seconds within which another machine that has just begun a study has it whole.
WHOLE_WITHIN_S = 10.0
#: Overrides that do not describe the study: its name, its place, and what one call of the command wants.
NOT_STORED = (
    "study=", "data.path=", "search.plan", "search.fresh", "search.confirm", "search.workers", "search.trials",
    "search.storage=", "confirm.",
)  # fmt: skip
#: Keys that may change between a study and its resumption: where results go, and what does not decide them.
FREE_KEYS = ("tracking.", "training.threads", "training.seed", "data.path", "data.source", "reproduce")


def _creating() -> FileLock:
    return supervision.lock(".create.lock")


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
        storage = open_storage(study)
        opened = _load(study, storage)
        if opened is not None:
            _await_whole(study, opened)
        if opened is not None and study.search.fresh and not _is_of_this_moment(opened):
            _put_aside(study, opened)
            opened = None
        if opened is None:
            opened = _begin(study, storage)
        if DEFINITION not in opened.user_attrs:
            _define(opened, study, run, overrides)
    refuse_changes(opened, study, run)
    return opened


def _await_whole(study: StudyConfig, found: Study) -> None:
    """Give a study that another machine has begun this moment the time to become whole."""
    deadline = time.monotonic() + (WHOLE_WITHIN_S if is_shared(study) else 0.0)
    while DEFINITION not in found.user_attrs and time.monotonic() < deadline:
        time.sleep(0.1)


def _load(study: StudyConfig, storage: BaseStorage) -> Study | None:
    known = optuna.get_all_study_summaries(storage, include_best_trial=False)
    if study.study not in {summary.study_name for summary in known}:
        return None
    return optuna.load_study(study_name=study.study, storage=storage)


def _begin(study: StudyConfig, storage: BaseStorage) -> Study:
    """Begin the study, or join another machine, with which no lock is shared, that has just done so."""
    directions = [StudyDirection[name.upper()] for name in objectives_of(study.search).values()]
    try:
        return optuna.create_study(study_name=study.study, storage=storage, directions=directions)
    except DuplicatedStudyError:
        begun = optuna.load_study(study_name=study.study, storage=storage)
        _await_whole(study, begun)
        return begun


def _define(created: Study, study: StudyConfig, run: Config, overrides: Sequence[str]) -> None:
    """Make a study whole that was just begun, here or by a process that was killed then."""
    created.set_user_attr(UID, uuid.uuid4().hex)
    created.set_user_attr(CREATOR, supervision.supervisor())
    created.set_user_attr(CREATED, time.time())
    created.set_user_attr(OVERRIDES, [text for text in overrides if _is_kept(text)])
    created.set_user_attr(DATA_PATH, run.data.path)
    with warnings.catch_warnings():  # the dashboard shows them; Optuna calls them experimental
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        created.set_metric_names(list(objectives_of(study.search)))
    created.set_user_attr(DEFINITION, definition_of(study, run))


def _is_kept(override: str) -> bool:
    """Whether an override describes the study, and may be shown to all who can open it."""
    return not override.startswith(NOT_STORED) and without_password(override) == override


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
    busy = supervision.busy(opened)
    if busy:
        raise StudyError(
            f"search.fresh=true starts a study anew that nobody works on, but '{study.study}' is being searched by "
            f"{', '.join(busy)}: stop that, or take another name with study=<name>"
        )
    aside = f"{study.study}-until-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    to = open_journal(journal_path(aside)) if study.search.storage is None else opened._storage
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
