"""Whether the infrastructure works that trials need: disk, memory, databases, tracking server.

After a fault no trial starts until it works again, and only the outage time-out ends the command.
A command is planned with this module, so that it imports no MLflow.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from digit_study.support import console
from digit_study.support.errors import StudyError, first_line
from digit_study.support.outage import Outage
from digit_study.support.sqlite import SQLITE, sqlite_path
from digit_study.support.workspace import Workspace
from digit_study.tracking.database import check_store

#: Seconds until the infrastructure is probed again after a fault; the pause doubles each time.
FIRST_PAUSE_S = 1.0
#: Seconds that the pause is at most. A fault within twice that after the last continues its outage.
LONGEST_PAUSE_S = 60.0
#: Bytes that must fit on a disk before a trial starts again.
DISK_BYTES = 8 * 2**20
#: Bytes of memory that must be available before a trial starts again.
MEMORY_BYTES = 256 * 2**20


class Health:
    """Knows whether trials may start.

    It has many attributes: what is probed, and when to probe it again.
    """

    def __init__(
        self,
        uri: str,
        workspace: Workspace,
        outage_timeout: float,
        key: str,
        storage: str | None = None,
        *,
        first_pause: float = FIRST_PAUSE_S,
        memory: int = MEMORY_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe what trials need.

        Args:
            uri: URI of the tracking store.
            workspace: Where runs are spooled.
            outage_timeout: Minutes that an outage may last.
            key: Config key that sets ``outage_timeout``, for messages.
            storage: URI of the database that keeps a study's trials, if it is in a database.
            first_pause: Seconds until the first probe after a fault.
            memory: Bytes of memory that must be available.
            clock: Returns seconds that only grow.
        """
        self._uri = uri
        self._workspace = workspace
        self._storage = storage
        self._memory = memory
        self._key = key
        self._outage = Outage(
            outage_timeout,
            on_begin=self._begin,
            on_end=_announce_end,
            relapse_s=2 * LONGEST_PAUSE_S,
            clock=clock,
        )
        self._first_pause = first_pause
        self._pause = first_pause
        self._clock = clock
        self._next_probe = 0.0
        #: Whether there was any fault so far.
        self.had_fault = False

    def report_fault(self, fault: str) -> None:
        """Let trials wait because of a fault of the infrastructure.

        Args:
            fault: What a trial or its supervisor met, in a line.

        Raises:
            StudyError: If the outage has lasted longer than its time-out.
        """
        self._outage.note_fault(fault)
        self._raise_after_timeout()

    def is_ok(self) -> bool:
        """Return whether trials may start; after a fault, probe again with growing pauses.

        Raises:
            StudyError: If the outage has lasted longer than its time-out.
        """
        if self._outage.reason is None:
            return True
        if self._clock() < self._next_probe:
            return False
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        problem = self.problem()
        if problem is None:
            self._outage.note_success()
            return True
        self._outage.note_fault(problem)
        self._next_probe = self._clock() + self._pause
        self._raise_after_timeout()
        return False

    def problem(self) -> str | None:
        """Return what does not work at this moment, found out by using it; None if all works."""
        for folder in self._folders():
            error = _write_error(folder)
            if error is not None:
                return f"there is no room for {DISK_BYTES // 2**20} MB in {folder}: {error}"
        if psutil.virtual_memory().available < self._memory:
            return f"less than {self._memory // 2**20} MB of memory are left"
        try:
            check_store(self._uri)
            if self._storage is not None:
                check_store(self._storage, "search.storage")
        except StudyError as error:
            return first_line(error)
        return None

    def _begin(self, fault: str) -> None:
        """Announce an outage; when it only goes on after a moment, its pauses go on growing."""
        self.had_fault = True
        if self._outage.seconds < self._first_pause:
            self._pause = self._first_pause
        self._next_probe = self._clock() + self._pause
        console.warn(
            f"{fault}: no trial is to blame, all wait and go on when that is well, within "
            f"{self._outage.timeout:g} min ({self._key})"
        )

    def _raise_after_timeout(self) -> None:
        if self._outage.is_too_long:
            raise StudyError(
                "trials need a disk, memory and stores that work, but for "
                f"{self._outage.timeout:g} min ({self._key}) there was none: "
                f"{self._outage.reason}: mend that, then the same command goes on; "
                "no trial was used up"
            )

    def _folders(self) -> set[Path]:
        """Return the folders that are written to while trials run."""
        folders = {self._workspace.artifacts}
        for uri in (self._uri, self._storage):
            if uri is not None and uri.startswith(SQLITE):
                folders.add(sqlite_path(uri).parent)
        return folders


def _announce_end() -> None:
    console.print_error("the machine is well again: trials go on", "")


def _write_error(folder: Path) -> str | None:
    """Return why a file of :data:`DISK_BYTES` cannot be written into a folder; None if it can."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(DISK_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return str(error.strerror)
    return None
