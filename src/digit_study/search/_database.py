"""Optuna's storage in a database that machines share, which waits for one that does not answer: PostgreSQL restarted,
a link that was cut. It knows the private calls of RDBStorage; tests fail should an upgrade move them.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError, SQLAlchemyError

from digit_study.terminal.console import warn
from digit_study.terminal.messages import StudyError, first_line, without_password, without_secrets
from digit_study.terminal.signals import is_stopping

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


def stale_trial_ids(storage: BaseStorage, study: str) -> set[int]:
    """Ids of the RUNNING trials in a database whose heartbeat has stopped.

    ``optuna.storages.fail_stale_trials`` fails them at once; here MLflow is asked first whether one has its result.
    """
    if not isinstance(storage, RDBStorage) or (isinstance(storage, Database) and storage.was_away()):
        return set()
    return set(storage._get_stale_trial_ids(storage.get_study_id_from_name(study)))


class Database(RDBStorage):
    """A storage that waits for a database which does not answer, ``patience`` minutes at most, and then goes on.

    Every call is a transaction: where the answer to a commit was lost, one that is repeated finds its work done.
    """

    def __init__(self, url: str, patience: float, **options: Any) -> None:
        self.patience = patience
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
        return self.answers_since is not None and time.monotonic() - self.answers_since < (self.grace_period or 0)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set both, as RDBStorage does; what is so already, done before a connection broke, is no fault."""
        try:
            return super().set_trial_state_values(trial_id, state, values)
        except UpdateFinishedTrialError:
            done = self.get_trial(trial_id)
            if (done.state, done.values) != (state, values and list(values)):
                raise
            return True

    def _patiently(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Make a call again and again while the database is away; raises StudyError when patience ends."""
        while True:
            try:
                answer = call(*arguments, **named)
            except (StorageInternalError, SQLAlchemyError) as fault:
                cause = fault.__cause__ if isinstance(fault, StorageInternalError) else fault
                # could not be asked at all: what it answers to a bad question is no such fault
                is_away = isinstance(cause, InterfaceError | OperationalError | PendingRollbackError)
                is_away = is_away or (isinstance(cause, DBAPIError) and cause.connection_invalidated)
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
            if self.patience and not is_stopping():
                warn(f"no answer from {shown}: this waits for it, at most {self.patience:g} min (search.patience)")
        if time.monotonic() - self.away_since >= 60 * self.patience or is_stopping():
            self.patience = 0.0  # what is still to be ended need not wait as long once more
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
