"""A database that does not answer for a while, without one: what a supervisor's calls of its storage do meanwhile."""

from __future__ import annotations

import inspect
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import RDBStorage, _cached_storage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from digit_study.study import _optuna
from digit_study.study._optuna import CALLS, Database, stale_trial_ids
from digit_study.support.errors import StudyError
from digit_study.support.signals import Interrupted, deferred_signals, interruptible

GONE = OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly"))


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setattr(_optuna, "PAUSE_S", 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        made = Database(f"sqlite:///{tmp_path}/o.db", 10.0, heartbeat_interval=15, grace_period=60)
    made.create_new_study([StudyDirection.MAXIMIZE], "s")
    return made


def away(monkeypatch: pytest.MonkeyPatch, name: str, times: int, after: bool = False) -> list[int]:
    """Let a call of Optuna's storage fail so often, before it does its work or after; counts what it is asked."""
    asked: list[int] = []
    works: Callable[..., Any] = getattr(RDBStorage, name)

    def call(*arguments: Any, **named: Any) -> Any:
        asked.append(len(asked))
        answer = works(*arguments, **named) if after or len(asked) > times else None
        if len(asked) <= times:
            raise GONE
        return answer

    monkeypatch.setattr(RDBStorage, name, call)
    return asked


def test_every_call_that_optuna_makes_of_its_storage_waits() -> None:
    within = set(re.findall(r"self\._backend\.(\w+)\(", inspect.getsource(_cached_storage)))
    local = {"get_heartbeat_interval", "get_heartbeat_stale_trial_callback"}
    assert within - local <= CALLS, "Optuna's cache asks its database by a call that does not wait"
    assert all(hasattr(RDBStorage, name) for name in CALLS), "Optuna has renamed a call that waits"


@pytest.mark.slow
def test_a_call_is_made_again_until_the_database_answers(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not database.was_away()
    asked = away(monkeypatch, "get_all_studies", 3)
    assert [one.study_name for one in database.get_all_studies()] == ["s"]
    assert len(asked) == 4
    told = capsys.readouterr().err
    assert (
        told.count("no answer from") == told.count("answers again") == 1
        and "search.outage_timeout" in told
    )
    # whoever else was out of reach has had no time to show that it lives
    assert database.was_away() and stale_trial_ids(database, "s") == set()
    monkeypatch.setattr(_optuna.time, "monotonic", lambda: float("inf"))
    assert not database.was_away()


def test_what_a_database_answers_is_no_reason_to_wait(database: Database) -> None:
    with pytest.raises(KeyError):
        database.get_study_id_from_name("none")


def test_after_patience_every_call_says_so_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.outage_timeout, database.url = 1e-9, "postgresql://me:hush@h/d"
    asked = away(monkeypatch, "get_all_studies", 9)
    for number in (1, 2):
        with pytest.raises(StudyError, match="the same command goes on") as caught:
            database.get_all_studies()
        assert "hush" not in str(caught.value) and len(asked) <= 2 * number


def test_a_signal_ends_the_waiting(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    away(monkeypatch, "get_all_studies", 10**9)
    with pytest.raises(Interrupted), interruptible(), deferred_signals():
        signal.raise_signal(signal.SIGTERM)
        database.get_all_studies()


@pytest.mark.slow
def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = database.create_new_trial(1)
    away(monkeypatch, "set_trial_state_values", 1, after=True)
    assert database.set_trial_state_values(trial, TrialState.COMPLETE, [0.5])
    assert database.get_trial(trial).values == [0.5]
    with pytest.raises(UpdateFinishedTrialError):
        database.set_trial_state_values(trial, TrialState.COMPLETE, [0.6])
