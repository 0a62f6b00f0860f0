"""Whether the world is well enough for trials to start; after a fault they wait, and only patience ends that."""

import os
import tempfile
import time
from pathlib import Path

import psutil
from mlflow.exceptions import MlflowException
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import OperationalError

from digit_study.search.plan import StudyPlan
from digit_study.terminal import console
from digit_study.terminal.faults import of_world
from digit_study.terminal.messages import StudyError, first_line
from digit_study.tracking import stores

#: Seconds until the world is looked at again: at first, and at most; without a fault for longer than that it is well.
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
#: What there must be room for, on the disk and in memory, before a trial starts again.
ROOM, MEMORY = 8 * 2**20, 256 * 2**20


def is_fault(error: Exception) -> bool:
    """Whether the world is to blame for what a supervisor met: a disk, a store, a database."""
    if isinstance(error, StudyError):  # whoever raises one has waited long enough
        return False
    return isinstance(error, MlflowException | StorageInternalError | OperationalError) or of_world(error)


def told(fault: BaseException) -> str:
    """What a fault was, in a line: Optuna's own says of every commit that something was wrong with it."""
    return first_line(fault.__cause__ or fault if isinstance(fault, StorageInternalError) else fault)


class World:
    """The disk, the stores and the memory that the trials of a study need."""

    def __init__(self, plan: StudyPlan) -> None:
        self.plan, self.patience = plan, plan.study.search.patience
        self.fault: str | None = None
        self.pause, self.since, self.hit_at, self.next_look = PAUSE_S, 0.0, float("-inf"), 0.0

    def hit(self, fault: str) -> None:
        """Let trials wait because of a fault; raises StudyError if that has gone on for longer than patience lasts."""
        now = time.monotonic()
        if now - self.hit_at > LONGEST_PAUSE_S + self.pause:  # it was well in between
            self.since, self.pause = now, PAUSE_S
        if self.fault is None:
            console.warn(f"{fault}: no trial is to blame, all wait and go on when that is well, within "
                         f"{self.patience:g} min (search.patience)")  # fmt: skip
            self.next_look = now + self.pause
        self.fault, self.hit_at = fault, now
        self._lose_patience(now)

    def is_well(self) -> bool:
        """Whether trials may start; looks again after a fault, with growing pauses; StudyError after patience."""
        if self.fault is None:
            return True
        now = time.monotonic()
        if now < self.next_look:
            return False
        self.pause = min(2 * self.pause, LONGEST_PAUSE_S)
        if (problem := self._problem()) is None:
            console.print_error("the machine is well again: trials go on", "")
            self.fault = None
            return True
        self.fault, self.hit_at, self.next_look = problem, now, now + self.pause
        self._lose_patience(now)
        return False

    def _lose_patience(self, now: float) -> None:
        if now - self.since > 60 * self.patience:
            raise StudyError(
                f"a study needs a disk, memory and stores that work, but for {self.patience:g} min (search.patience) "
                f"there was none: {self.fault}: mend that, then the same command goes on; no trial was used up"
            )

    def _problem(self) -> str | None:
        """What is wrong at this moment, found out by doing it."""
        storage = self.plan.study.search.storage
        for place in {stores.ARTIFACTS, *filter(None, map(_folder_of, (self.plan.uri, storage)))}:
            try:
                with tempfile.TemporaryFile(dir=place) as file:
                    file.write(bytes(ROOM))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                return f"there is no room for {ROOM // 2**20} MB in {place}: {error.strerror}"
        if psutil.virtual_memory().available < MEMORY:
            return f"less than {MEMORY // 2**20} MB of memory are left"
        try:
            stores.check_store(self.plan.uri)
            if storage is not None:
                stores.check_store(storage, "search.storage")
        except StudyError as error:
            return first_line(error)
        return None


def _folder_of(uri: str | None) -> Path | None:
    """Where a sqlite database lies."""
    return Path(uri.removeprefix("sqlite:///")).parent if uri and uri.startswith("sqlite:///") else None
