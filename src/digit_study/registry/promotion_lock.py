"""The lock of a registered model: a promotion at a time, on all machines that share its store."""

import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import mlflow
import psutil
from filelock import FileLock, Timeout

from digit_study.registry.ledger import Ledger
from digit_study.support import console

#: Tag of the registered model that locks it for other machines: ``time host pid unique``.
LOCK_TAG = "promotion.lock"
#: Seconds for which a promotion waits for another.
WAIT_S = 600.0
#: Seconds after which a lock tag was left by a process that died: a promotion takes a minute.
STALE_S = 900.0
#: Seconds after which any other claim is written too, and the last of them counts.
CLAIM_SETTLES_S = 0.3
#: Seconds between two looks at a lock tag that somebody holds.
POLL_S = 2.0


class PromotionLock:
    """A file lock against other processes and, for a remote store, a tag against other machines.

    The tag is best effort: MLflow has no lock, so two machines may write it in the same instant.
    """

    def __init__(
        self, client: mlflow.MlflowClient, ledger: Ledger, name: str, wait_s: float = WAIT_S
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._name = name
        self._file = FileLock(ledger.path.with_suffix(".lock"))
        #: Seconds for which :meth:`hold` waits.
        self.wait_s = wait_s

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Hold the lock inside the block.

        Yields:
            Whether it had to wait for another process of this machine.

        Raises:
            TimeoutError: If another promotion holds it for longer than :attr:`wait_s`.
        """
        with ExitStack() as stack:
            waited = self._acquire_file()
            stack.callback(self._file.release)
            if self._ledger.is_remote and self._ledger.model() is not None:
                self._acquire_tag()
                stack.callback(self._client.delete_registered_model_tag, self._name, LOCK_TAG)
            yield waited

    @contextmanager
    def hold_if_free(self) -> Iterator[bool]:
        """Hold the file lock inside the block if nobody holds any lock; yield whether it does."""
        with ExitStack() as stack:
            is_free = False
            with suppress(Timeout):
                self._file.acquire(timeout=0)
                stack.callback(self._file.release)
                is_free = not self._ledger.is_remote or self._is_unclaimed()
            yield is_free

    def _acquire_file(self) -> bool:
        """Acquire the file lock; return whether that took waiting."""
        with suppress(Timeout):
            self._file.acquire(timeout=0)
            return False
        console.warn(f"another promotion of {self._name} is under way: waiting for it")
        self._file.acquire(timeout=self.wait_s)
        return True

    def _acquire_tag(self) -> None:
        own = f"{time.time():.0f} {platform.node()} {os.getpid()} {uuid.uuid4().hex}"
        deadline = time.monotonic() + self.wait_s
        while True:
            if self._is_unclaimed():
                self._client.set_registered_model_tag(self._name, LOCK_TAG, own)
                time.sleep(CLAIM_SETTLES_S)
                if self._holder() == own:
                    return
            elif time.monotonic() > deadline:
                raise TimeoutError(f"another machine promotes {self._name}")
            else:
                time.sleep(POLL_S)

    def _holder(self) -> str | None:
        """Return the value of the lock tag."""
        tags: dict[str, str] = self._client.get_registered_model(self._name).tags
        return tags.get(LOCK_TAG)

    def _is_unclaimed(self) -> bool:
        """Return whether no living process on any machine holds the lock tag."""
        holder = self._holder()
        if holder is None:
            return True
        since, host, pid, _ = holder.split(" ")
        if time.time() - float(since) > STALE_S:
            return True
        return host == platform.node() and not psutil.pid_exists(int(pid))
