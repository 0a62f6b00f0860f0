"""What a promotion leaves behind when something breaks, dies or comes at the same time."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import recorded_store as rs
from filelock import FileLock

from digit_study.config.promote_config import PromoteConfig
from digit_study.registry.ledger import Ledger, ledger_path
from digit_study.registry.promotion_lock import LOCK_TAG
from digit_study.registry.registry import Registry
from digit_study.support.errors import StudyError
from digit_study.support.workspace import Workspace


@pytest.fixture
def store(migrated: Path, tmp_path: Path) -> rs.Store:
    return rs.make_store(migrated, tmp_path)


@pytest.mark.slow
def test_a_fault_while_reading_counts_as_an_opening(store: rs.Store) -> None:
    def fail(networks: Any, source: Any, record: Callable[[], None], threshold: Any) -> None:
        record()
        raise StudyError("x_test is garbage")

    with pytest.raises(StudyError, match="garbage"):
        store.promote(store.ask(rs.add_run(store)), evaluate=fail)
    (entry,) = store.registry.ledger.entries()
    assert entry.end["outcome"] == "interrupted"
    assert "garbage" in entry.end["reason"]
    assert store.registry.ledger.openings() == 1


@pytest.mark.slow
def test_a_torn_line_loses_only_itself(store: rs.Store) -> None:
    store.promote(store.ask(rs.add_run(store, range(40))))
    path = store.registry.ledger.path
    with path.open("a") as file:
        file.write('{"id": "torn", "ev')
    store.promote(store.ask(rs.add_run(store)))
    assert [entry.end["outcome"] for entry in store.registry.ledger.entries()] == [
        "promoted",
        "promoted",
    ]
    lines = [line for line in path.read_text().splitlines() if not line.startswith('{"id": "torn')]
    assert all(json.loads(line) for line in lines)


@pytest.mark.slow
def test_ledger_file_and_tags_heal_each_other(store: rs.Store) -> None:
    store.promote(store.ask(rs.add_run(store, range(40))))
    ledger = store.registry.ledger
    whole = ledger.entries()
    ledger.path.unlink()
    assert Ledger(store.tracker, rs.NAME).entries() == whole
    ledger.sync()
    assert len(ledger.path.read_text().splitlines()) == 2
    store.client.delete_registered_model(rs.NAME)
    assert ledger.entries() == whole
    ledger.sync()
    assert store.client.get_registered_model(rs.NAME).tags["test_set.opened"] == "1"


def test_ledgers_lie_in_mlruns(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    local = ledger_path("sqlite:////a/mlflow.db", "m", workspace)
    assert local == Path("/a/mlruns/ledger.mlflow.m.jsonl")
    remote = ledger_path("http://user:secret@host:5000/x", "m", workspace)
    assert remote.parent == tmp_path / "mlruns"
    assert "secret" not in remote.name


@pytest.mark.slow
def test_a_second_promotion_is_refused_after_a_while(store: rs.Store) -> None:
    run_id = rs.add_run(store)
    store.promote(store.ask(run_id))
    with (
        FileLock(store.registry.ledger.path.with_suffix(".lock")),
        pytest.raises(StudyError, match="one promotion"),
    ):
        store.promote(store.ask(rs.add_run(store)), lock_wait_s=0.1)
    (noted,) = store.registry.ledger.events("noted")
    assert "refused" in noted["outcome"]


@pytest.mark.slow
def test_a_rollback_that_is_refused_stands_in_the_history_as_one(
    store: rs.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (40, 5):
        store.promote(store.ask(rs.add_run(store, range(wrong))))
    lock = FileLock(store.registry.ledger.path.with_suffix(".lock"))
    with lock, pytest.raises(StudyError, match="one promotion"):
        store.promote(store.ask(rollback=True), lock_wait_s=0.1)
    capsys.readouterr()
    store.promote(store.ask(history=True))
    assert "UTC  rollback: refused: another promotion" in capsys.readouterr().out


def lock_tag(store: rs.Store) -> str:
    return str(store.client.get_registered_model(rs.NAME).tags.get(LOCK_TAG, ""))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("age", "host", "pid", "is_free"),
    [
        (0, "elsewhere", 1, False),
        (1_000, "elsewhere", 1, True),  # too long ago
        (0, platform.node(), 2**31 - 1, True),  # no such process
    ],
)
def test_a_tag_locks_a_store_that_machines_share(
    store: rs.Store, age: int, host: str, pid: int, is_free: bool
) -> None:
    holder = f"{time.time() - age:.0f} {host} {pid} x"
    store.promote(store.ask(rs.add_run(store)))
    shared = Registry(store.tracker, rs.NAME, lock_wait_s=0.1)
    shared.ledger.is_remote = True
    store.client.set_registered_model_tag(rs.NAME, LOCK_TAG, holder)
    if is_free:
        with shared.lock("x") as waited:
            assert not waited and f" {os.getpid()} " in lock_tag(store)
        assert lock_tag(store) == ""
    else:
        with pytest.raises(StudyError, match="one promotion"), shared.lock("x"):
            pass
        assert lock_tag(store) == holder
        assert [note["run_id"] for note in shared.ledger.events("noted")] == ["x"]


@pytest.mark.slow
def test_two_promotions_at_once_take_turns(store: rs.Store) -> None:
    runs = rs.add_run(store, range(30)), rs.add_run(store)
    threads = [threading.Thread(target=store.promote, args=(store.ask(run),)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = store.registry.ledger.entries()
    assert {entry.start["run_id"] for entry in entries} == set(runs)
    assert all(entry.end for entry in entries)


# ---------------------------------------------------------------------------------- kill -9


WRITES = (
    "create_registered_model",
    "set_registered_model_tag",
    "create_model_version",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "update_registered_model",
)


def dying_at(moment: int, store: rs.Store, config: PromoteConfig) -> bool:
    """Promote in a fork that gets SIGKILL just before its ``moment``-th write; return whether it did."""
    pid = os.fork()
    if pid == 0:
        try:
            _arm(moment)
            store.promote(config)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def _arm(moment: int) -> None:
    left = moment

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*args, **more)

        return call

    for name in WRITES:
        setattr(mlflow.MlflowClient, name, counted(getattr(mlflow.MlflowClient, name)))
    Ledger._write = counted(Ledger._write)  # type: ignore[method-assign]


def moments(store: rs.Store, folder: Path, config: PromoteConfig) -> Iterator[tuple[rs.Store, int]]:
    """Yield the store after a death at every write, until the command lives to its end."""
    for moment in range(1, 40):
        copy = rs.open_copy(store, folder / str(moment))
        died = dying_at(moment, copy, replace(config, tracking=rs.StoreConfig(copy.uri)))
        mlflow.set_tracking_uri(copy.uri)
        yield copy, moment
        if not died:
            return
    raise AssertionError("it never ends")


SLOW = pytest.mark.slow


@pytest.mark.reliability
@pytest.mark.parametrize(
    "kind", ["promoted", *(pytest.param(one, marks=SLOW) for one in ("kept", "first", "rollback"))]
)
def test_kill_9_at_any_write(store: rs.Store, tmp_path: Path, kind: str) -> None:
    if kind != "first":
        store.promote(store.ask(rs.add_run(store, range(40))))
        store.promote(store.ask(rs.add_run(store, range(20))))
    asked = (
        store.ask(rollback=True)
        if kind == "rollback"
        else store.ask(rs.add_run(store, range(45), 2_000))
    )
    if kind == "promoted":
        asked = store.ask(rs.add_run(store))
    before = store.registry.aliases()
    after: dict[str, dict[str, str]] = {
        "promoted": {"champion": "3", "previous": "2"},
        "kept": {**before, "challenger": "3"},
        "first": {"champion": "1"},
        "rollback": {"champion": "1"},
    }
    for copy, moment in moments(store, tmp_path / kind, asked):
        left = copy.registry.aliases().get("champion")
        assert left in (before.get("champion"), after[kind].get("champion")), moment
        assert left is None or left in copy.registry.versions(), moment
        store.promote(copy.ask(history=True))
        check_clean(copy, left, (before, after[kind]))
    assert copy.registry.aliases() == after[kind]
    assert moment > 8


def check_clean(
    store: rs.Store, champion: str | None, allowed: tuple[dict[str, str], dict[str, str]]
) -> None:
    """Nothing is unfinished, and recovery did not move the champion."""
    registry = store.registry
    assert registry.aliases() in allowed
    assert registry.aliases().get("champion") == champion
    entries = registry.ledger.entries()
    assert all(entry.end for entry in entries)
    registered = [entry for entry in entries if entry.end["outcome"] in ("promoted", "kept")]
    assert {entry.end["version"] for entry in registered} == set(registry.versions())
    lines = registry.ledger.path.read_text().splitlines() if registry.ledger.path.exists() else []
    if lines:
        model = store.client.get_registered_model(rs.NAME)
        assert model.tags["test_set.opened"] == str(registry.ledger.openings())
        assert len([tag for tag in model.tags if tag.startswith("ledger.")]) == len(lines)
