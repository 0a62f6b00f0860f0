"""Optuna's samplers, pruners and storages, with what is changed in them and the private names that takes.

Tests fail should an upgrade move those.
"""

import fcntl
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

from digit_study.config.study_config import SearchConfig, pruner_of
from digit_study.support.console import warn
from digit_study.support.messages import StudyError, first_line, without_password, without_secrets
from digit_study.support.signals import is_stopping

#: Calls of a storage that ask its database: Optuna's own, and those that its cache makes past them.
CALLS = {name for name in vars(BaseStorage) if not name.startswith("_")} | {
    "record_heartbeat", "_create_new_trial", "_set_trial_param", "_get_best_trial_id", "_get_trials",
    "_get_stale_trial_ids",
}  # fmt: skip
#: Seconds between two attempts to reach a database.
PAUSE_S = 2.0
#: For PostgreSQL: a link that was cut in silence is noticed within half a minute. The client's side, as libpq reads it
#: (seconds, but for the milliseconds of tcp_user_timeout), and the server's, which would keep what is locked for hours.
LINK = {
    "connect_timeout": 5, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}  # fmt: skip
SESSION = ("idle_in_transaction_session_timeout = '20s'", "tcp_keepalives_idle = 10", "tcp_keepalives_interval = 5",
           "tcp_keepalives_count = 2")  # fmt: skip


class Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna draws brackets from the study's name too: two studies alike but for their names would differ."""

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        return super()._get_bracket_id(cast(Study, SimpleNamespace(study_name="")), trial)


class TPE(optuna.samplers.TPESampler):
    """Optuna's own converts all params of all trials before every trial; here a finished one is converted once."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._rows: dict[tuple[int, tuple[str, ...]], list[float] | None] = {}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray]:
        keys, rows = tuple(search_space), []
        for trial in trials:
            if (trial.number, keys) in self._rows:
                row = self._rows[trial.number, keys]
            else:
                params = self._get_params(trial, study)
                whole = search_space.keys() <= params.keys()
                row = (
                    [one.to_internal_repr(params[key]) for key, one in search_space.items()]
                    if whole
                    else None
                )
                if trial.state.is_finished():
                    self._rows[trial.number, keys] = row
            rows += [] if row is None else [row]
        columns = zip(*rows, strict=True) if rows else ([] for _ in keys)
        return {key: np.asarray(column) for key, column in zip(keys, columns, strict=True)}


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": TPE,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(
        seed=seed, scramble=True, warn_asynchronous_seeding=False, warn_independent_sampling=False
    ),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    # every grid point is enqueued; what is asked for beyond them is drawn at random
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
}
#: After one epoch, instead of two, Hyperband stops a fifth of the best configurations, see bench_search.py.
GRACE_EPOCHS = 2
PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    "hyperband": lambda epochs: Hyperband(
        min_resource=min(GRACE_EPOCHS, epochs), max_resource=epochs
    ),
    "successive_halving": lambda epochs: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=GRACE_EPOCHS
    ),
    "median": lambda epochs: optuna.pruners.MedianPruner(n_startup_trials=5),
    "percentile": lambda epochs: optuna.pruners.PercentilePruner(25.0, n_startup_trials=5),
    "patient": lambda epochs: optuna.pruners.PatientPruner(
        optuna.pruners.MedianPruner(), patience=1
    ),
    "none": lambda epochs: optuna.pruners.NopPruner(),
}


def make_sampler_and_pruner(
    search: SearchConfig, epochs: int, started_before: int
) -> tuple[BaseSampler, BasePruner]:
    """Build both for trials of at most ``epochs`` epochs.

    A supervisor that joins or resumes a study after others draws other start-up trials than they did.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        seed = search.seed + 7919 * started_before
        return SAMPLERS[search.sampler](seed), PRUNERS[pruner_of(search)](epochs)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """A journal file to append to, whole and for this process alone; the kernel frees the lock of one that is killed.

    Optuna's own file locks outlive a killed process by 30 s; filelock's take 0.25 ms, a dozen times a trial.
    """
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):  # a process was killed while it wrote
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        yield file


class JournalFile(JournalFileBackend):
    """A journal file, made where it is missing, without what a killed writer left behind its last whole line.

    Optuna's own waits for the disk after every line: milliseconds, a dozen times a trial.

    A killed process loses nothing that was handed to the kernel; only the end of a trial waits, for a power cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _locked(path):
            super().__init__(str(path))

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """What is new; to find nothing, as two of three calls do, the file is not opened."""
        if self._log_number_offset.get(log_number_from) != os.stat(self.path).st_size:
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with _locked(self.path) as file:
            file.write(text.encode())
            if any(log.get("op_code") == JournalOperation.SET_TRIAL_STATE_VALUES for log in logs):
                file.flush()
                os.fsync(file.fileno())


def stale_trial_ids(storage: BaseStorage, study: str) -> set[int]:
    """Ids of the RUNNING trials in a database whose heartbeat has stopped.

    ``optuna.storages.fail_stale_trials`` fails them at once; here MLflow is asked first whether one has its result.
    """
    if not isinstance(storage, RDBStorage) or (
        isinstance(storage, Database) and storage.was_away()
    ):
        return set()
    return set(storage._get_stale_trial_ids(storage.get_study_id_from_name(study)))


class Database(RDBStorage):
    """A storage that waits for a database which does not answer, ``outage_timeout`` minutes at most, and then goes on.

    Every call is a transaction: where the answer to a commit was lost, one that is repeated finds its work done.
    """

    def __init__(self, url: str, outage_timeout: float, **options: Any) -> None:
        self.outage_timeout = outage_timeout
        self.away_since: float | None = None
        self.answers_since: float | None = None
        # Optuna's own guess at the cause, which says what is said below
        logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
        is_postgresql = url.startswith("postgresql")
        super().__init__(url, {"connect_args": LINK} if is_postgresql else None, **options)
        if is_postgresql:
            event.listen(self.engine, "connect", _settle_session)
            self.engine.dispose()  # the connection that looked for the tables was made before

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return partial(self._patiently, found) if name in CALLS else found

    def was_away(self) -> bool:
        """Whether it did not answer just now: then others' heartbeats could not arrive either, and may be late."""
        return self.answers_since is not None and time.monotonic() - self.answers_since < (
            self.grace_period or 0
        )

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set both, as RDBStorage does; what is so already, done before a connection broke, is no fault."""
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            done = self.get_trial(trial_id)
            if (done.state, done.values) != (state, values and list(values)):
                raise
            return True

    def _patiently(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a call again and again while the database is away; raises StudyError when outage_timeout ends."""
        while True:
            try:
                answer = call(*arguments, **named)
            except (StorageInternalError, SQLAlchemyError) as fault:
                cause = fault.__cause__ if isinstance(fault, StorageInternalError) else fault
                # could not be asked at all: what it answers to a bad question is no such fault
                is_away = isinstance(
                    cause, InterfaceError | OperationalError | PendingRollbackError
                )
                is_away = is_away or (
                    isinstance(cause, DBAPIError) and cause.connection_invalidated
                )
                if cause is None or not is_away:
                    raise
                self._wait(cause)
            except Exception:  # it answers, that this cannot be done
                self._note_answer()
                raise
            else:
                self._note_answer()
                return answer

    def _wait(self, fault: BaseException) -> None:
        shown = f"{without_password(self.url)} ({without_secrets(first_line(fault), self.url)})"
        if self.away_since is None:
            self.away_since = time.monotonic()
            if self.outage_timeout and not is_stopping():
                warn(
                    f"no answer from {shown}: this waits for it, at most {self.outage_timeout:g} min (search.outage_timeout)"
                )
        if time.monotonic() - self.away_since >= 60 * self.outage_timeout or is_stopping():
            self.outage_timeout = 0.0  # what is still to be ended need not wait as long once more
            raise StudyError(
                f"`search.storage` must be a database that answers, got no answer from {shown}: "
                "when it does, the same command goes on"
            ) from None
        time.sleep(PAUSE_S)

    def _note_answer(self) -> None:
        if self.away_since is not None:
            self.away_since, self.answers_since = None, time.monotonic()
            warn("the database answers again")


def _settle_session(connection: Any, _: Any) -> None:
    with closing(connection.cursor()) as cursor:
        for setting in SESSION:
            cursor.execute(f"SET {setting}")
    connection.commit()
