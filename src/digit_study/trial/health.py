"""Whether the world is well enough for trials to start; after a fault they wait, and only outage_timeout ends that.

A command is planned with it, so that it imports MLflow late.
"""

import os
import tempfile
import time
from pathlib import Path

import psutil

from digit_study.config.run_config import Config
from digit_study.support import console
from digit_study.support.messages import StudyError, first_line
from digit_study.tracking import database as stores

#: Seconds until the world is looked at again: at first, and at most; without a fault for longer than that it is well.
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
#: What there must be room for, on the disk and in memory, before a trial starts again.
ROOM, MEMORY = 8 * 2**20, 256 * 2**20
SQLITE = "sqlite:///"


class Health:
    """The disk, the stores and the memory that trials need.

    ``outage_timeout`` are the minutes for which they may be ill, and ``key`` is what sets them; ``storage`` is where a study
    keeps its trials if that is a database.
    """

    def __init__(
        self, uri: str, outage_timeout: float, key: str, storage: str | None = None
    ) -> None:
        self.uri, self.outage_timeout, self.key, self.storage = uri, outage_timeout, key, storage
        self.fault: str | None = None
        self.pause, self.since, self.hit_at, self.next_look = PAUSE_S, 0.0, float("-inf"), 0.0

    def hit(self, fault: str) -> None:
        """Let trials wait because of a fault; raises StudyError if that has gone on for longer than outage_timeout lasts."""
        now = time.monotonic()
        if now - self.hit_at > LONGEST_PAUSE_S + self.pause:  # it was well in between
            self.since, self.pause = now, PAUSE_S
        if self.fault is None:
            console.warn(f"{fault}: no trial is to blame, all wait and go on when that is well, within "
                         f"{self.outage_timeout:g} min ({self.key})")  # fmt: skip
            self.next_look = now + self.pause
        self.fault, self.hit_at = fault, now
        self._lose_patience(now)

    @property
    def was_hit(self) -> bool:
        """Whether there was any fault so far."""
        return self.hit_at > float("-inf")

    def create_run(self, config: Config, dataset: str, name: str, **tags: str) -> str | None:
        """The id of a new run, as :func:`digit_study.tracking.runs.create_run` says.

        None, and a fault is known, while its store is gone.
        """
        from digit_study.tracking import runs as run_log
        from digit_study.tracking import upload as delivery

        try:
            return run_log.create_run(config, self.uri, dataset, name, **tags)
        except delivery.StoreFault as fault:
            self.hit(first_line(fault))
            return None

    def is_well(self) -> bool:
        """Whether trials may start; looks again after a fault, with growing pauses; StudyError after outage_timeout."""
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
        if now - self.since > 60 * self.outage_timeout:
            raise StudyError(
                f"trials need a disk, memory and stores that work, but for {self.outage_timeout:g} min ({self.key}) "
                f"there was none: {self.fault}: mend that, then the same command goes on; no trial was used up"
            )

    def _problem(self) -> str | None:
        """What is wrong at this moment, found out by doing it."""
        databases = [
            uri.removeprefix(SQLITE)
            for uri in (self.uri, self.storage)
            if uri and uri.startswith(SQLITE)
        ]
        for place in {stores.ARTIFACTS, *(Path(database).parent for database in databases)}:
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
            stores.check_store(self.uri)
            if self.storage is not None:
                stores.check_store(self.storage, "search.storage")
        except StudyError as error:
            return first_line(error)
        return None
