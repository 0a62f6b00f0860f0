"""Optuna's samplers, pruners and storages, as the project changes them.

It is the only file that uses private names of Optuna; a test fails if an upgrade moves them.
"""

import fcntl
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Container, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from functools import cached_property, partial
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

from digit_study.config.study_config import ASHA, SearchConfig, pruner_of
from digit_study.study.journal import check_journal, is_record
from digit_study.study.trial_attributes import paused_after
from digit_study.support.console import warn
from digit_study.support.errors import StudyError, first_line
from digit_study.support.files import drop_torn_line
from digit_study.support.redaction import without_password, without_secrets
from digit_study.support.signals import is_stopping

#: Calls of a storage that ask its database: Optuna's own, and those that its cache makes past them.
CALLS = {name for name in vars(BaseStorage) if not name.startswith("_")} | {
    "record_heartbeat",
    "_create_new_trial",
    "_set_trial_param",
    "_get_best_trial_id",
    "_get_trials",
    "_get_stale_trial_ids",
}
#: Seconds between two attempts to reach a database.
PAUSE_S = 2.0
#: How the client of a PostgreSQL database notices within half a minute that a link was cut. In
#: seconds as libpq reads them, but for the milliseconds of tcp_user_timeout.
CLIENT_LINK = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
#: How its server notices; else it would keep for hours what a client had locked.
SERVER_LINK = (
    "idle_in_transaction_session_timeout = '20s'",
    "tcp_keepalives_idle = 10",
    "tcp_keepalives_interval = 5",
    "tcp_keepalives_count = 2",
)
#: Epochs before a trial may be pruned. After one epoch Hyperband would stop a fifth of the best
#: configurations, see bench_search.py.
GRACE_EPOCHS = 2
#: Trials that run to their end before median and percentile prune.
STARTUP_TRIALS = 5
#: A prime: supervisors that join a study draw different start-up trials.
SEED_STEP = 7919


class Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna's Hyperband, whose brackets do not depend on the name of the study."""

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        return super()._get_bracket_id(cast(Study, SimpleNamespace(study_name="")), trial)


class _PausedAsPruned:
    """A study in which paused trials look like pruned trials: both say what they have reached."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(
        self,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials in ``states``, or all, as Optuna's study does."""
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 Optuna's signature
        states: Container[TrialState] | None = None,
        use_cache: bool = False,  # noqa: FBT001, FBT002 Optuna's signature
    ) -> list[FrozenTrial]:
        shown = []
        for trial in self._study._get_trials(deepcopy, None, use_cache):
            if paused_after(trial) is not None:
                trial = copy(trial)
                trial.state = TrialState.PRUNED
            if states is None or trial.state in states:
                shown.append(trial)
        return shown


def with_paused(study: Study) -> Study:
    """Return a study as a sampler should see it."""
    return cast(Study, _PausedAsPruned(study))


class TPE(optuna.samplers.TPESampler):
    """Optuna's TPE, which sees paused trials, and converts the parameters of a trial once.

    Optuna's own takes paused trials for trials that run, of which nothing is known. It converts the
    parameters of all trials before every trial.
    """

    @cached_property
    def _rows(self) -> dict[tuple[int, tuple[str, ...]], list[float] | None]:
        """Hold parameters by the number of a trial and their keys; None where it lacks a key."""
        # an __init__ would hide the signature from which optuna_arguments reads what there is
        return {}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(with_paused(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(with_paused(study), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return super().sample_independent(with_paused(study), trial, param_name, param_distribution)

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray]:
        rows = [self._row(trial, search_space, study) for trial in trials]
        columns: list[list[float]] = [[] for _ in search_space]
        for row in rows:
            if row is None:
                continue
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        return {key: np.asarray(column) for key, column in zip(search_space, columns, strict=True)}

    def _row(
        self, trial: FrozenTrial, search_space: dict[str, BaseDistribution], study: Study
    ) -> list[float] | None:
        """Return the parameters of a trial as Optuna computes with them."""
        known = (trial.number, tuple(search_space))
        if known in self._rows:
            return self._rows[known]
        params = self._get_params(trial, study)
        row = None
        if search_space.keys() <= params.keys():
            row = [
                distribution.to_internal_repr(params[key])
                for key, distribution in search_space.items()
            ]
        if trial.state.is_finished():
            self._rows[known] = row
        return row


#: Makes a sampler from a seed and Optuna's own arguments, by the name that ``search.sampler`` gives
#: it.
SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": TPE,
    "random": optuna.samplers.RandomSampler,
    "qmc": partial(
        optuna.samplers.QMCSampler,
        scramble=True,
        warn_asynchronous_seeding=False,
        warn_independent_sampling=False,
    ),
    "cmaes": partial(optuna.samplers.CmaEsSampler, warn_independent_sampling=False),
    # every point of the grid is enqueued; what is asked for beyond them is drawn at random
    "grid": optuna.samplers.RandomSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
    "gp": partial(optuna.samplers.GPSampler, warn_independent_sampling=False),
}


#: Makes a pruner from Optuna's own arguments, by the name that ``search.pruner`` gives it.
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "hyperband": Hyperband,
    "successive_halving": partial(
        optuna.pruners.SuccessiveHalvingPruner, min_resource=GRACE_EPOCHS
    ),
    "median": partial(optuna.pruners.MedianPruner, n_startup_trials=STARTUP_TRIALS),
    "percentile": partial(
        optuna.pruners.PercentilePruner, percentile=25.0, n_startup_trials=STARTUP_TRIALS
    ),
    "patient": partial(optuna.pruners.PatientPruner, optuna.pruners.MedianPruner(), patience=1),
    # trials are paused and resumed by digit_study.study.halving
    ASHA: optuna.pruners.NopPruner,
    "none": optuna.pruners.NopPruner,
}


def make_sampler_and_pruner(
    search: SearchConfig, epochs: int, started_before: int
) -> tuple[BaseSampler, BasePruner]:
    """Build the sampler and the pruner of a study.

    Args:
        search: How it is searched.
        epochs: Epochs that a trial has at most.
        started_before: How many supervisors joined the study before: each draws other start-up
            trials than they did.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # of arguments that a later version of Optuna will no longer take
        warnings.simplefilter("ignore", FutureWarning)
        seed = search.seed + SEED_STEP * started_before
        sampler = SAMPLERS[search.sampler](seed=seed, **search.sampler_args)
        name = pruner_of(search)
        arguments = search.pruner_args
        if name == "hyperband":
            usual = {"min_resource": min(GRACE_EPOCHS, epochs), "max_resource": epochs}
            arguments = {**usual, **arguments}
        pruner = PRUNERS[name](**arguments)
        return sampler, pruner


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a journal file to append to, whole, and for this process alone.

    The kernel frees the lock of a process that is killed. Optuna's own file locks outlive it by
    30 s, and filelock's take 0.25 ms, a dozen times a trial.
    """
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        # a process may have been killed while it wrote a line
        drop_torn_line(file)
        yield file


class JournalFile(JournalFileBackend):
    """Optuna's journal file, which waits for the disk at the end of a trial alone.

    Optuna's own waits after every line: milliseconds, a dozen times a trial. A killed process
    loses nothing that was handed to the kernel; waiting is for a power cut.
    """

    def __init__(self, path: Path) -> None:
        """Open a journal, or create it, without what a killed writer left behind its last line."""
        self._path = path
        with _locked(path):
            super().__init__(str(path))

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield the records from a number on; the file is not opened where there is none."""
        size = os.stat(self._path).st_size
        if self._log_number_offset.get(log_number_from) != size:
            try:
                for log in super().read_logs(log_number_from):
                    if not is_record(log):
                        raise ValueError("not a record of a study")
                    yield log
            except ValueError:
                check_journal(self._path)
                rule = f"{self._path} cannot be read"
                raise StudyError(f"{rule}: bring it back from a copy") from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        ends_trial = any(
            log.get("op_code") == JournalOperation.SET_TRIAL_STATE_VALUES for log in logs
        )
        with _locked(self._path) as file:
            file.write(text.encode())
            if ends_trial:
                file.flush()
                os.fsync(file.fileno())


def stale_trial_ids(storage: BaseStorage, study: str) -> set[int]:
    """Return the ids of RUNNING trials in a database whose heartbeat has stopped.

    ``optuna.storages.fail_stale_trials`` fails them at once; here MLflow is first asked whether it
    has their result.
    """
    if not isinstance(storage, RDBStorage):
        return set()
    if isinstance(storage, Database) and storage.was_away():
        return set()
    return set(storage._get_stale_trial_ids(storage.get_study_id_from_name(study)))


class Database(RDBStorage):
    """A storage that waits for a database which does not answer, and then goes on.

    Every call is a transaction: where the answer to a commit was lost, the call is made again and
    finds its work done.
    """

    def __init__(
        self, url: str, outage_timeout: float, *, pause: float = PAUSE_S, **options: Any
    ) -> None:
        """Open a database.

        Args:
            url: Its URL.
            outage_timeout: Minutes that an outage may last.
            pause: Seconds between two attempts to reach it.
            options: Further arguments of Optuna's storage.
        """
        self.outage_timeout = outage_timeout
        self._pause = pause
        self.away_since: float | None = None
        self.answers_since: float | None = None
        # Optuna's own guess at the cause of a fault
        logging.getLogger("optuna.storages._rdb.storage").setLevel(logging.ERROR)
        is_postgresql = url.startswith("postgresql")
        engine_options = None
        if is_postgresql:
            engine_options = {"connect_args": CLIENT_LINK}
        super().__init__(url, engine_options, **options)
        if is_postgresql:
            event.listen(self.engine, "connect", _configure_session)
            # the connection that looked for the tables was made before
            self.engine.dispose()

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name in CALLS:
            return partial(self._repeat_while_away, found)
        return found

    def was_away(self) -> bool:
        """Return whether the database did not answer a moment ago.

        The heartbeats of other machines could not arrive then either, and may be late.
        """
        if self.answers_since is None:
            return False
        return time.monotonic() - self.answers_since < (self.grace_period or 0)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Set state and values of a trial.

        It is no fault if they are set already: that was done before a connection broke.
        """
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            done = self.get_trial(trial_id)
            if (done.state, done.values) != (state, values and list(values)):
                raise
            return True

    def _repeat_while_away(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a call again and again while the database is away.

        Raises:
            StudyError: When the outage time-out is over.
        """
        while True:
            try:
                answer = call(*arguments, **named)
            except (StorageInternalError, SQLAlchemyError) as fault:
                cause = _cause_of_absence(fault)
                if cause is None:
                    raise
                self._wait(cause)
            except Exception:
                # it answers: that this cannot be done
                self._note_answer()
                raise
            else:
                self._note_answer()
                return answer

    def _wait(self, fault: BaseException) -> None:
        """Wait for the database; StudyError when the outage time-out is over."""
        secret_free = without_secrets(first_line(fault), self.url)
        shown = f"{without_password(self.url)} ({secret_free})"
        if self.away_since is None:
            self.away_since = time.monotonic()
            if self.outage_timeout and not is_stopping():
                warn(
                    f"no answer from {shown}: this waits for it, at most "
                    f"{self.outage_timeout:g} min (search.outage_timeout)"
                )
        is_over = time.monotonic() - self.away_since >= 60 * self.outage_timeout
        if is_over or is_stopping():
            # what is still to be ended need not wait as long once more
            self.outage_timeout = 0.0
            raise StudyError(
                f"`search.storage` must be a database that answers, got no answer from {shown}: "
                "when it does, the same command goes on"
            ) from None
        time.sleep(self._pause)

    def _note_answer(self) -> None:
        """Note that the database answers, and say so if it did not before."""
        if self.away_since is not None:
            self.away_since = None
            self.answers_since = time.monotonic()
            warn("the database answers again")


def _cause_of_absence(fault: Exception) -> BaseException | None:
    """Return why a database could not be asked at all; None if it answered a bad question."""
    cause: BaseException | None = fault
    if isinstance(fault, StorageInternalError):
        cause = fault.__cause__
    if isinstance(cause, InterfaceError | OperationalError | PendingRollbackError):
        return cause
    if isinstance(cause, DBAPIError) and cause.connection_invalidated:
        return cause
    return None


def _configure_session(connection: Any, _: Any) -> None:
    """Set what a new connection to PostgreSQL needs."""
    with closing(connection.cursor()) as cursor:
        for setting in SERVER_LINK:
            cursor.execute(f"SET {setting}")
    connection.commit()
