"""A folder for the temporary files of a process, which goes with it whatever ends it."""

import os
import shutil
import tempfile
from functools import cache
from multiprocessing.util import Finalize, get_temp_dir
from pathlib import Path

from filelock import FileLock, Timeout

from digit_study.support.workspace import Workspace


@cache
def use_scratch(workspace: Workspace) -> Path:
    """Let the temporary files of this process and its children lie in a folder under ``mlruns``.

    The folder is removed when the process ends; what a killed process left, the next one removes.

    Returns:
        The folder, which exists.
    """
    base = workspace.artifacts / ".scratch"
    base.mkdir(parents=True, exist_ok=True)
    with FileLock(base / ".lock"):
        _remove_abandoned(base)
        own = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=base))
        lock = FileLock(own / ".lock")
        lock.acquire()
    # multiprocessing removes its own folder in there before, with the priority -100
    Finalize(None, _remove, args=(own, lock), exitpriority=-200)
    # The kernel takes at most 107 bytes as the path of a socket, and multiprocessing puts sockets
    # there: this path is short wherever the project lies.
    if Path("/proc/self/fd").is_dir():
        tempfile.tempdir = f"/proc/self/fd/{os.open(own, os.O_RDONLY)}"
    get_temp_dir()
    tempfile.tempdir = str(own)
    os.environ["TMPDIR"] = str(own)
    return own


def _remove_abandoned(base: Path) -> None:
    """Remove the folders of processes that were killed: the kernel has freed their locks."""
    for folder in base.iterdir():
        if not folder.is_dir():
            continue
        try:
            FileLock(folder / ".lock").acquire(timeout=0).lock.release()
        except Timeout:
            continue
        shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove a folder whose lock is held until now."""
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
