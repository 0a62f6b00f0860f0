"""Who sends the outbox: one uploader where several runs go on together, and every command what earlier ones had kept.

A uploader is a thread of the command that supervises: no trial waits for a store, however slow that is. A run that
nobody supervises is sent by its own process, see :class:`digit_study.tracking.runs.RunLog`.
"""

import fcntl
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Self

from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from digit_study.config.run_config import Config
from digit_study.support import console, machine
from digit_study.support.messages import StudyError, first_line
from digit_study.support.signals import raise_if_interrupted
from digit_study.tracking import database as stores
from digit_study.tracking import provenance as origin
from digit_study.tracking import runs as run_log
from digit_study.tracking.spool import SpooledRun, file_lock, spooled_runs
from digit_study.tracking.upload import Call, StoreFault, fault_of, is_served, send, uploader_lock

#: Runs, and half the files, that are sent to a server at a time: each waits for it, and none for another.
AT_A_TIME = 8
#: Seconds between two looks at the outbox, at least and while the store does not answer; and that a signal leaves.
PAUSE_S, LONGEST_PAUSE_S, HURRIED_S = 0.5, 8.0, 5.0
#: Seconds after which a person is told what is waited for.
QUIET_S = 3.0
#: Seconds that a server needs for an answer from which on runs are created before they are asked for.
SLOW_S = 1.0
#: What the tag ``kind`` says of a run that waits for its trial, and the tag that says which process keeps it.
SPARE, KEEPER = "spare", f"{origin.TECHNICAL}keeper"


def deliver(uri: str) -> None:
    """Send what commands that have ended could not: killed, or without a store. A store that is gone again is told."""
    left = [spooled for spooled in spooled_runs(uri) if not spooled.is_open or spooled.is_abandoned]
    if not left or is_served(uri):
        return
    started, is_told = time.monotonic(), False
    for number, spooled in enumerate(left):
        if not is_told and time.monotonic() - started > 3 * QUIET_S:
            console.print_error(
                f"sending what earlier commands had kept: {len(left) - number} runs more", ""
            )
            is_told = True
        spooled.close_abandoned()
        if (fault := send(spooled, run_log.client_of(uri))) is not None:
            console.warn(f"{len(left) - number} runs of earlier commands are still kept in mlruns/.outbox: "
                         f"{first_line(fault)}")  # fmt: skip
            return


class BackgroundUploader:
    """Delivers the outbox for one store, in a thread, as long as the block lasts; with another uploader it only waits.

    ``outage_timeout`` are the minutes in which a store that went away may come back; ``key`` is what sets them. One
    ``is_log_only`` leaves to others what a run has to tell when it has ended.
    """

    def __init__(
        self,
        uri: str,
        outage_timeout: float,
        key: str = "search.outage_timeout",
        is_log_only: bool = False,
    ) -> None:
        self.is_log_only = is_log_only
        self.uri, self.outage_timeout, self.client = uri, outage_timeout, run_log.client_of(uri)
        self.fault: str | None = None
        self.since, self.rounds, self.key = 0.0, 0, key
        self.lock = threading.Lock()
        self.news, self.has_begun, self.stopping = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        # a database takes one writer at a time anyway
        self.is_wide = uri.startswith(stores.SERVERS)
        self.creators, self.senders = ThreadPoolExecutor(AT_A_TIME), ThreadPoolExecutor(AT_A_TIME)
        self.files = ThreadPoolExecutor(2 * AT_A_TIME)
        self.sending: dict[Future[Exception | None], str] = {}
        self.spares, self.answer_s = deque[Future[str]](), 0.0

    def __enter__(self) -> Self:
        self.thread.start()
        self.has_begun.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_hurried = kind is not None and (
            self.fault is not None or not issubclass(kind, Exception)
        )
        dropped = [self.creators.submit(self._drop, spare) for spare in self.spares]
        left = self.wait(HURRIED_S if is_hurried else None)
        wait(dropped, HURRIED_S)
        self.stopping.set()
        for pool in (self.creators, self.senders, self.files):
            pool.shutdown(wait=False, cancel_futures=True)
        self.news.set()
        self.thread.join(HURRIED_S)
        if left:
            kept = f"the tracking store must take every result, but it has not taken {left} runs"
            kept += f" ({self.fault or 'there was no time'}): they are kept in {stores.OUTBOX}, "
            kept += "and sent by the next command of any kind once it answers"
            if kind is None:
                raise StudyError(kept)
            console.warn(kept)

    def waiting(self) -> list[SpooledRun]:
        """Runs that have ended and are not sent whole."""
        return [spooled for spooled in spooled_runs(self.uri) if not spooled.is_open]

    def create_run(
        self, config: Config, dataset: str, name: str, ahead: int = 0, **tags: str
    ) -> Future[str]:
        """Create a RUNNING run, as :func:`run_log.create_run` does; nobody need wait for a server's answer.

        ``ahead`` more will be asked for, so that a slow server makes one of them now. MLflow takes that for its start.
        """
        asked = config, dataset, name, tags
        if not self.is_wide:
            made: Future[str] = Future()
            made.set_result(self._create(*asked))
            return made
        spare = self.spares.popleft() if self.spares else None
        made = (
            self.creators.submit(self._use, spare, *asked)
            if spare
            else self.creators.submit(self._create, *asked)
        )
        if self.answer_s > SLOW_S and len(self.spares) < ahead:
            marks = {"kind": SPARE, KEEPER: machine.process_name()}
            self.spares.append(
                self.creators.submit(self._create, config, dataset, "waits for its trial", marks)
            )
        return made

    def _create(self, config: Config, dataset: str, name: str, tags: Mapping[str, str]) -> str:
        run_log.experiment_id(
            self.uri, stores.experiment_name(config, dataset)
        )  # is asked for once
        started = time.monotonic()
        run_id = run_log.create_run(config, self.uri, dataset, name, **tags)
        self.answer_s = time.monotonic() - started
        return run_id

    def _use(
        self, spare: Future[str], config: Config, dataset: str, name: str, tags: Mapping[str, str]
    ) -> str:
        """Let the run that was made ahead be this one."""
        try:
            run_id = spare.result()
        except StoreFault:  # the store was away at that moment
            return self._create(config, dataset, name, tags)
        run_log.tag_run(
            self.uri, run_id, {MLFLOW_RUN_NAME: name, **run_log.run_tags(config, dataset, **tags)}
        )
        return run_id

    def _drop(self, spare: Future[str]) -> None:
        """Delete a run that no trial came for; where the store is away the next command does."""
        with suppress(*StoreFault):
            run_log.delete_run(self.uri, spare.result())

    def wait(self, seconds: float | None = None) -> int:
        """Wait until all that has ended is sent, or for as long as outage_timeout lasts; returns how many runs are left."""
        started, rounds, is_told, has_waited = time.monotonic(), self.rounds, False, False
        self.news.set()
        while left := self.waiting():
            now, has_waited = time.monotonic(), True
            if self.fault is None:
                self.news.set()
            # what came last is tried once, however late it is
            is_late = (
                self.fault is not None
                and now - self.since > 60 * self.outage_timeout
                and self.rounds > rounds + 1
            )
            if is_late or (seconds is not None and now - started > seconds):
                break
            if not is_told and now - started > QUIET_S:
                why = f"which does not take them ({self.fault}), at most " if self.fault else ""
                limit = (
                    f"{self.outage_timeout:g} min ({self.key})" if self.fault else "which is slow"
                )
                console.print_error(
                    f"waiting for the tracking store, {why}{limit}: {len(left)} runs to send", ""
                )
                is_told = True
            if seconds is None:
                raise_if_interrupted()
            time.sleep(0.05)
        if not left and has_waited:  # so the store takes results
            self._tell([])
        return len(left)

    def _run(self) -> None:
        while not self.stopping.is_set():
            with file_lock(uploader_lock(self.uri), fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
                pause = PAUSE_S
                while is_ours and not self.stopping.is_set():
                    self.has_begun.set()
                    faults = self._round()
                    pause = min(2 * pause, LONGEST_PAUSE_S) if faults else PAUSE_S
                    self.news.wait(pause)
                    self.news.clear()
            self.has_begun.set()
            self.stopping.wait(PAUSE_S / 5)

    def _round(self) -> list[Exception]:
        """Send what every run has to tell; the first fault of the store ends it."""
        faults, is_any_through = list[Exception](), False
        try:
            if self.fault is not None:
                stores.check_store(self.uri)
            in_turn = (send(spooled, self.client) for spooled in spooled_runs(self.uri))
            for fault in self._sent_together() if self.is_wide else in_turn:
                faults += [] if fault is None else [fault]
                is_any_through = True
                if isinstance(fault, MlflowException) or self.stopping.is_set():
                    break
        except (
            Exception
        ) as fault:  # whatever it is, it is told, and tried again: nothing is lost meanwhile
            faults.append(fault)
        if faults or is_any_through or not self.sending:
            self._tell(faults)
        self.rounds += bool(faults) or not self.sending
        return faults

    def _sent_together(self) -> Iterator[Exception | None]:
        """What the store raised for the runs that are through, while slower ones go on being sent."""
        for spooled in spooled_runs(self.uri):
            if spooled.run_id not in self.sending.values():
                sending = self.senders.submit(
                    send, spooled, self.client, self._together, self.is_log_only
                )
                self.sending[sending] = spooled.run_id
        for done in wait(self.sending, PAUSE_S / 5, FIRST_COMPLETED).done:
            del self.sending[done]
            yield done.result()

    def _tell(self, faults: Sequence[Exception]) -> None:
        """Say once that the store has gone away, and that it is back."""
        now = self._reason(faults[0]) if faults else None
        with self.lock:
            before, self.fault = self.fault, now
            if now is not None and before is None:
                self.since = time.monotonic()
        if now is not None and before is None:
            console.warn(f"the tracking store does not take results now ({now}): what it misses is kept in "
                         "mlruns/.outbox, and sent as soon as it does")  # fmt: skip
        elif now is None and before is not None:
            console.print_error("the tracking store takes results again", "")

    def _reason(self, fault: Exception) -> str:
        """What is wrong in plain words, if that can be found out; MLflow's own are those of its HTTP library."""
        try:
            if not isinstance(fault, StudyError):
                stores.check_store(self.uri)
        except StudyError as problem:
            return first_line(problem)
        return first_line(fault)

    def _together(self, calls: Sequence[Call]) -> list[Exception]:
        return [fault for fault in self.files.map(fault_of, calls) if fault is not None]
