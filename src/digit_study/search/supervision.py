"""Who looks after which trial: supervisors by name, whether they still live, and the trials of those that do not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta

import psutil
from filelock import FileLock, Timeout
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from digit_study.config import machine as hardware
from digit_study.terminal.errors import StudyError
from digit_study.tracking import stores

HEARTBEAT_S = 15
#: Attributes of a trial; ``superseded`` is set on a failed one whose configuration was enqueued again.
SUPERVISOR, WORKER, SUPERSEDED = "supervisor", "worker", "superseded"
#: Before an attribute of a study for every supervisor that it ever had.
SUPERVISED = "supervised by "
#: Seconds that a supervisor needs at most to sign a trial that it has begun.
SIGNED_WITHIN_S = 60
#: Seconds that a process left behind has to end itself; it was asked to when its supervisor died.
GRACE_S = 3.0


def turn(study: str) -> FileLock:
    """The lock under which supervisors of one study on one machine decide; the kernel frees it when one dies."""
    return lock(f"{study}.turn")


def lock(name: str) -> FileLock:
    """A lock beside the studies that the kernel frees when its owner dies."""
    folder = stores.ARTIFACTS / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / name)


@contextmanager
def alone(study: str, what: str, said: str) -> Iterator[None]:
    """Let only one process of this machine do ``what`` with a study.

    Raises:
        StudyError: another one does.
    """
    mine = lock(f"{study}.{what}")
    try:
        mine.acquire(timeout=0)
    except Timeout:
        raise StudyError(f"study '{study}' {said} by another process: wait for it, or stop it") from None
    try:
        yield
    finally:
        mine.release()


def process_name(pid: int) -> str:
    """A process, named so that another one can tell whether it is still there."""
    return f"{hardware.describe()['host']}:{pid}:{psutil.Process(pid).create_time():.2f}"


def supervisor() -> str:
    """The name of the process that asks."""
    return process_name(os.getpid())


def is_here(name: str) -> bool:
    """Whether the process ``name`` runs on this machine."""
    return _process(name) is not None


def is_alive(name: str) -> bool:
    """Whether the process ``name`` still runs; one on another host is taken to be alive while it has a heartbeat."""
    return _process(name) is not None or name.rsplit(":", 2)[0] != hardware.describe()["host"]


def end_process(name: str) -> None:
    """End the process ``name`` if it is on this machine and still there, as one that was stopped is."""
    process = _process(name)
    if process is None or process.pid == os.getpid():
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        deadline = time.monotonic() + GRACE_S
        while is_here(name) and time.monotonic() < deadline:  # psutil's own wait takes a zombie for alive
            time.sleep(0.02)


def end_worker(trial: FrozenTrial) -> None:
    """End the process that a trial runs in, if it is on this machine and still there."""
    if WORKER in trial.user_attrs:
        end_process(trial.user_attrs[WORKER])


def _process(name: str) -> psutil.Process | None:
    host, pid, created = name.rsplit(":", 2)
    if host != hardware.describe()["host"]:
        return None
    try:
        process = psutil.Process(int(pid))
        same = abs(process.create_time() - float(created)) < 0.5
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def heart(study: Study) -> BaseHeartbeat | None:
    """The study's storage where other machines may share it; None of a journal."""
    return study._storage if isinstance(study._storage, BaseHeartbeat) else None


def supervisors(study: Study) -> list[str]:
    """Every supervisor that ever joined."""
    return [key.removeprefix(SUPERVISED) for key in study.user_attrs if key.startswith(SUPERVISED)]


def orphans(study: Study) -> list[FrozenTrial]:
    """RUNNING trials whose supervisor is gone: dead on this host, or silent on another."""
    storage = heart(study)
    silent = set(storage._get_stale_trial_ids(study._study_id)) if storage is not None else set()
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if trial._trial_id in silent or _is_orphan(trial, storage is not None)]


def busy(study: Study) -> list[str]:
    """Supervisors that work on the study: those here, and those elsewhere whose trials have a heartbeat."""
    here = {name for name in supervisors(study) if is_here(name)}
    gone = {trial.number for trial in orphans(study)}
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return sorted(
        here | {one.user_attrs.get(SUPERVISOR, "another machine") for one in running if one.number not in gone}
    )


def _is_orphan(trial: FrozenTrial, shared: bool) -> bool:
    name = trial.user_attrs.get(SUPERVISOR)
    if name is not None:  # a journal is of one machine, whatever that was called when the study was begun
        return not (is_alive(name) if shared else is_here(name))
    # begun and not signed: on this machine that is done under a lock, on another it may just be going on
    begun = trial.datetime_start or datetime.min
    return not shared or datetime.now() - begun > timedelta(seconds=SIGNED_WITHIN_S)


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count towards the declared total: those begun, but for those that were put back to run again."""
    return [one for one in trials if one.state != TrialState.WAITING and not one.user_attrs.get(SUPERSEDED)]
