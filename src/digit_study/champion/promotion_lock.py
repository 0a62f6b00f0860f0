"""One promotion at a time: a file lock among the processes of a machine, a tag among machines."""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import psutil
from filelock import FileLock, Timeout
from mlflow.exceptions import MlflowException

from digit_study.champion.ledger import Ledger, new_id, now, who
from digit_study.terminal import console
from digit_study.terminal.errors import StudyError

TAG = "promotion.lock"
WAIT_S = 600.0
#: A tag older than this was left by a process that died: a promotion takes a minute.
STALE_S = 900.0


@contextmanager
def only_one(ledger: Ledger, run_id: str, patience: float = WAIT_S) -> Iterator[bool]:
    """Hold the registered model for this process alone; yields whether it had to wait for another one.

    Raises:
        StudyError: another one holds it for longer than ``patience`` seconds; the ledger notes the request.
    """
    ledger.path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(ledger.path.with_suffix(".lock"))
    waited = False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        console.warn(f"another promotion of {ledger.name} is under way: waiting for it")
        _acquire(lock, ledger, run_id, patience)
    try:
        with _claimed(ledger, run_id, patience):
            yield waited
    finally:
        lock.release()


@contextmanager
def if_idle(ledger: Ledger) -> Iterator[bool]:
    """Hold the registered model if nobody else does; yields whether that is so."""
    lock = FileLock(ledger.path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield not ledger.remote or _free(ledger)
    finally:
        lock.release()


def _free(ledger: Ledger) -> bool:
    holder = ledger.client.get_registered_model(ledger.name).tags.get(TAG)
    return holder is None or _stale(holder)


def _acquire(lock: FileLock, ledger: Ledger, run_id: str, patience: float) -> None:
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise _refused(ledger, run_id, patience) from None


def _refused(ledger: Ledger, run_id: str, patience: float) -> StudyError:
    note(ledger, run_id, f"refused: another promotion was under way for more than {patience:g} s")
    return StudyError(
        f"one promotion of {ledger.name} runs at a time, and another one has been at it for {patience:g} s: "
        "see history=true, end it if it hangs, then run the same command again"
    )


def note(ledger: Ledger, run_id: str, outcome: str) -> None:
    """Write down a request that met another promotion and came to nothing."""
    ledger.append({"id": new_id(), "event": "noted", "at": now(), "who": who(), "run_id": run_id, "outcome": outcome})


@contextmanager
def _claimed(ledger: Ledger, run_id: str, patience: float) -> Iterator[None]:
    """Among machines, best effort: MLflow's registry has no lock, so two that write in the same instant both look."""
    if not ledger.remote or not _exists(ledger.client, ledger.name):
        yield
        return
    mine = f"{time.time():.0f} {platform.node()} {os.getpid()} {uuid.uuid4().hex}"
    until = time.monotonic() + patience
    while not _claim(ledger, mine):
        if time.monotonic() > until:
            raise _refused(ledger, run_id, patience)
        time.sleep(2.0)
    try:
        yield
    finally:
        ledger.client.delete_registered_model_tag(ledger.name, TAG)


def _exists(client: mlflow.MlflowClient, name: str) -> bool:
    try:
        client.get_registered_model(name)
    except MlflowException:
        return False
    return True


def _claim(ledger: Ledger, mine: str) -> bool:
    if not _free(ledger):
        return False
    ledger.client.set_registered_model_tag(ledger.name, TAG, mine)
    time.sleep(0.3)  # whoever wrote in the same instant has written by now, and the last one holds it
    return bool(ledger.client.get_registered_model(ledger.name).tags.get(TAG) == mine)


def _stale(holder: str) -> bool:
    since, host, pid, _ = holder.split(" ")
    if host == platform.node() and not psutil.pid_exists(int(pid)):
        return True
    return bool(time.time() - float(since) > STALE_S)
