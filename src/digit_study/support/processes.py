"""Processes by names that are never given twice, and the user who runs them."""

import getpass
import os
import platform
import signal
import time
from contextlib import suppress
from functools import cache, lru_cache

import psutil

#: Seconds that a process has to end itself before it is killed.
GRACE_S = 3.0
#: Two times of creation that are nearer than this, in seconds, are of the same process.
SAME_CREATION_S = 0.5


@cache
def user_name() -> str:
    """Return who is logged in; ``unknown`` in a container without names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def process_name(pid: int | None = None) -> str:
    """Return the name of a process, which no other process ever has.

    Args:
        pid: Number of the process; this process by default.

    Returns:
        ``host:pid:time of creation``.
    """
    if pid is None:
        return _own_name(os.getpid())
    return _name_of(pid)


@lru_cache(maxsize=1)
def _own_name(pid: int) -> str:
    """Return the name of this process; a forked process has another number, and asks anew."""
    return _name_of(pid)


def _name_of(pid: int) -> str:
    return f"{platform.node()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def find_process(name: str) -> psutil.Process | None:
    """Return the process of a name if it runs on this machine; a zombie does not run."""
    host, pid, created = name.rsplit(":", 2)
    if host != platform.node():
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(pid))
        is_same = abs(process.create_time() - float(created)) < SAME_CREATION_S
        if is_same and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def is_alive(name: str) -> bool:
    """Return whether the process of a name still runs.

    A process on another host cannot be asked, and is taken to be alive.
    """
    host = name.rsplit(":", 2)[0]
    return host != platform.node() or find_process(name) is not None


def end_process(name: str | None, grace: float = GRACE_S) -> None:
    """End a process that runs on this machine, even a suspended one.

    Args:
        name: Name of the process. Nothing happens for None, for this process, and for a process
            that does not run here.
        grace: Seconds that it has to end itself, before it is killed.
    """
    if name is None:
        return
    process = find_process(name)
    if process is None or process.pid == os.getpid():
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        # psutil's own wait takes a zombie for alive
        deadline = time.monotonic() + grace
        while find_process(name) and time.monotonic() < deadline:
            time.sleep(0.02)
