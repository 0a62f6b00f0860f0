"""What uploads the spool: a background uploader, and every command at its start.

The background uploader is a thread of the command that supervises: no trial waits for a store,
however slow that is. A run that nobody supervises is uploaded by its own process, see `writer`.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Self

from mlflow.exceptions import MlflowException

from digit_study.config.run_config import Config
from digit_study.support import console
from digit_study.support.errors import StudyError, first_line
from digit_study.support.files import file_lock
from digit_study.support.outage import Outage
from digit_study.support.signals import raise_if_interrupted
from digit_study.tracking.database import check_store
from digit_study.tracking.runs import Runs
from digit_study.tracking.spool import SpooledRun, spooled_runs
from digit_study.tracking.store import Store
from digit_study.tracking.upload import Call, fault_of, has_uploader, upload_run, uploader_lock

#: Runs, and half the files, that are uploaded to a server at a time: none waits for another.
AT_A_TIME = 8
#: Seconds between two rounds through the spool.
PAUSE_S = 0.5
#: Seconds between two rounds at most: the pause doubles while the store does not answer.
LONGEST_PAUSE_S = 8.0
#: Seconds that a signal, or an error while the store is gone, leaves for uploads.
HURRIED_S = 5.0
#: Seconds after which a person is told what is waited for.
QUIET_S = 3.0


def upload_left(store: Store) -> None:
    """Upload what commands that have ended could not, because they were killed or had no store.

    A run whose process is gone is ended. Where a background uploader runs, it does all this. The
    first fault of the store ends it, with a warning.

    Args:
        store: The store whose runs are uploaded.
    """
    spooled = spooled_runs(store.uri, store.workspace)
    left = [run for run in spooled if not run.is_open or run.is_abandoned]
    if not left or has_uploader(store.uri, store.workspace):
        return
    started = time.monotonic()
    is_announced = False
    for number, run in enumerate(left):
        count = len(left) - number
        if not is_announced and time.monotonic() - started > 3 * QUIET_S:
            console.print_error(f"uploading what earlier commands left: {count} runs more", "")
            is_announced = True
        run.close_abandoned()
        fault = upload_run(run, store)
        if fault is not None:
            kept = f"{count} runs of earlier commands are still kept in mlruns/.outbox"
            console.warn(f"{kept}: {first_line(fault)}")
            return


class _SequentialUploads:
    """Uploads to a database, which takes one writer at a time anyway."""

    is_idle = True

    def __init__(self, store: Store, *, is_log_only: bool) -> None:
        self._store = store
        self._is_log_only = is_log_only

    def upload(self, runs: Iterable[SpooledRun]) -> Iterator[Exception | None]:
        """Upload one run after the other; yield what the store raised for each."""
        for run in runs:
            yield upload_run(run, self._store, is_log_only=self._is_log_only)

    def close(self) -> None:
        """Do nothing."""


class _ConcurrentUploads:
    """Uploads to a server: several runs, and several files of each, at a time."""

    def __init__(self, store: Store, *, is_log_only: bool) -> None:
        self._store = store
        self._is_log_only = is_log_only
        self._runs = ThreadPoolExecutor(AT_A_TIME)
        self._files = ThreadPoolExecutor(2 * AT_A_TIME)
        self._run_ids: dict[Future[Exception | None], str] = {}

    @property
    def is_idle(self) -> bool:
        """Return whether no upload goes on."""
        return not self._run_ids

    def upload(self, runs: Iterable[SpooledRun]) -> Iterator[Exception | None]:
        """Begin with runs that are not being uploaded; yield of those that are done by now.

        Slower uploads go on.
        """
        for run in runs:
            if run.run_id not in self._run_ids.values():
                upload = self._runs.submit(
                    upload_run,
                    run,
                    self._store,
                    self._run_all,
                    is_log_only=self._is_log_only,
                )
                self._run_ids[upload] = run.run_id
        for done in wait(self._run_ids, PAUSE_S / 5, FIRST_COMPLETED).done:
            del self._run_ids[done]
            yield done.result()

    def _run_all(self, calls: Sequence[Call]) -> list[Exception]:
        return [fault for fault in self._files.map(fault_of, calls) if fault is not None]

    def close(self) -> None:
        """Shut the threads down; what they upload just now goes on."""
        self._runs.shutdown(wait=False, cancel_futures=True)
        self._files.shutdown(wait=False, cancel_futures=True)


class BackgroundUploader:
    """Uploads the spool to one store, in a thread, as long as the block lasts.

    Of several for the same store and workspace one uploads, and the others wait. The thread goes
    through the spool in rounds. Those that wait for uploads, or end the block, wake it by events.
    There are many attributes, because each thing that threads tell one another is an event.
    """

    def __init__(
        self,
        runs: Runs,
        outage_timeout: float,
        key: str,
        *,
        is_log_only: bool = False,
        longest_pause: float = LONGEST_PAUSE_S,
        quiet_time: float = QUIET_S,
    ) -> None:
        """Prepare; the thread begins with the block.

        Args:
            runs: The runs of the store.
            outage_timeout: Minutes in which a store that went away may come back.
            key: Config key that sets ``outage_timeout``, for messages.
            is_log_only: Whether to leave files, models and ends of runs to others.
            longest_pause: Seconds between two rounds at most.
            quiet_time: Seconds after which a person is told what is waited for.
        """
        self._store = runs
        self._longest_pause = longest_pause
        self._quiet_time = quiet_time
        self._key = key
        self._outage = Outage(outage_timeout, _announce_outage, _announce_end)
        self._rounds = 0
        kind: type[_SequentialUploads | _ConcurrentUploads] = _SequentialUploads
        if self._store.is_server:
            kind = _ConcurrentUploads
        self._uploads = kind(self._store, is_log_only=is_log_only)
        self._creators = ThreadPoolExecutor(AT_A_TIME)
        self._has_news = threading.Event()
        self._has_begun = threading.Event()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._has_begun.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        seconds = None
        if kind is not None and (self.fault is not None or not issubclass(kind, Exception)):
            seconds = HURRIED_S
        try:
            self.wait(seconds)
        except BaseException as error:  # a signal ends the waiting alone
            self._stop(type(error))
            raise
        self._stop(kind)

    def _stop(self, kind: type[BaseException] | None) -> None:
        """End all uploads, and say what stays spooled.

        Args:
            kind: What is raised already, in which case this only warns.

        Raises:
            StudyError: If something stays spooled.
        """
        left = self._ended_runs()
        self._is_stopping.set()
        self._creators.shutdown(wait=False, cancel_futures=True)
        self._uploads.close()
        self._has_news.set()
        self._thread.join(HURRIED_S)
        if not left:
            return
        folder = self._store.workspace.spool
        if len(left) == 1:
            folder = left[0].folder
        kept = (
            f"the tracking store must take every result, but it has not taken {len(left)} runs "
            f"({self.fault or 'there was no time'}): they are kept in {folder}, and uploaded by "
            "the next command of any kind once it answers"
        )
        if kind is None:
            raise StudyError(kept)
        console.warn(kept)

    @property
    def fault(self) -> str | None:
        """Return what is wrong with the store at this moment, None where nothing is."""
        return self._outage.reason

    def request_run(self, config: Config, dataset: str, name: str, **tags: str) -> Future[str]:
        """Create a RUNNING run, as `Runs.create_run` does, without waiting for a server's answer.

        A database is asked at once. The store then knows where the run is, so that its upload need
        not ask.

        Args:
            config: The resolved config of the run.
            dataset: Name of the digits.
            name: Name of the run, unless the config has one.
            **tags: More tags.

        Returns:
            A future of the run's id.
        """
        if self._store.is_server:
            return self._creators.submit(self._store.create_run, config, dataset, name, **tags)
        return self._store.request_run(config, dataset, name, **tags)

    # ------------------------------------------------------------------------------- waited for

    def wait(self, seconds: float | None = None) -> int:
        """Wait until all runs that have ended are uploaded.

        Args:
            seconds: How long to wait at most; None waits until an outage has lasted too long.

        Returns:
            The number of runs that are left.
        """
        started = time.monotonic()
        rounds = self._rounds
        is_announced = False
        has_waited = False
        self._has_news.set()
        while left := self._ended_runs():
            has_waited = True
            waited = time.monotonic() - started
            if self.fault is None:
                self._has_news.set()
            # what came last is tried once, however late it is
            is_late = self._outage.is_too_long and self._rounds > rounds + 1
            if is_late or (seconds is not None and waited > seconds):
                break
            if not is_announced and waited > self._quiet_time:
                console.print_error(self._what_is_waited_for(len(left)), "")
                is_announced = True
            if seconds is None:
                raise_if_interrupted()
            time.sleep(0.05)
        if not left and has_waited:  # so the store takes results
            self._outage.note_success()
        return len(left)

    def _ended_runs(self) -> list[SpooledRun]:
        """Return the runs that have ended and are not uploaded whole."""
        spooled = spooled_runs(self._store.uri, self._store.workspace)
        return [run for run in spooled if not run.is_open]

    def _what_is_waited_for(self, left: int) -> str:
        why = "which is slow"
        if self.fault is not None:
            limit = f"at most {self._outage.timeout:g} min ({self._key})"
            why = f"which does not take them ({self.fault}), {limit}"
        return f"waiting for the tracking store, {why}: {left} runs to upload"

    # ------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        """Upload in rounds whenever no other uploader has the lock."""
        lock = uploader_lock(self._store.uri, self._store.workspace)
        while not self._is_stopping.is_set():
            with file_lock(lock, wait=False) as is_ours:
                pause = PAUSE_S
                while is_ours and not self._is_stopping.is_set():
                    self._has_begun.set()
                    has_taken_all = self._round()
                    pause = min(2 * pause, self._longest_pause)
                    if has_taken_all:
                        pause = PAUSE_S
                    self._has_news.wait(pause)
                    self._has_news.clear()
            self._has_begun.set()
            self._is_stopping.wait(PAUSE_S / 5)

    def _round(self) -> bool:
        """Upload up to the first fault of the store; return whether it took everything."""
        fault: Exception | None = None
        is_any_done = False
        try:
            if self.fault is not None:
                check_store(self._store.uri)
            runs = spooled_runs(self._store.uri, self._store.workspace)
            for found in self._uploads.upload(runs):
                is_any_done = True
                fault = fault or found
                if isinstance(found, MlflowException) or self._is_stopping.is_set():
                    break
        except Exception as error:  # whatever it is, it is reported, and nothing is lost meanwhile
            fault = fault or error
        if fault is not None:
            self._outage.note_fault(self._reason(fault))
        elif is_any_done or self._uploads.is_idle:
            self._outage.note_success()
        if fault is not None or self._uploads.is_idle:
            self._rounds += 1
        return fault is None

    def _reason(self, fault: Exception) -> str:
        """Say what is wrong in plain words; MLflow's own are those of its HTTP library."""
        if isinstance(fault, StudyError):
            return first_line(fault)
        try:
            check_store(self._store.uri)
        except StudyError as problem:
            return first_line(problem)
        return first_line(fault)


def _announce_outage(reason: str) -> None:
    console.warn(
        f"the tracking store does not take results now ({reason}): what it misses is kept in "
        "mlruns/.outbox, and uploaded as soon as it does"
    )


def _announce_end() -> None:
    console.print_error("the tracking store takes results again", "")
