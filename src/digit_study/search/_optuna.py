"""Optuna's parts that are changed, and the private names that takes; tests fail should an upgrade move them."""

import fcntl
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._storage import JournalOperation
from optuna.study import Study
from optuna.trial import FrozenTrial


class Hyperband(optuna.pruners.HyperbandPruner):
    """Optuna draws brackets from the study's name too: two studies alike but for their names would differ."""

    def _get_bracket_id(self, study: Study, trial: FrozenTrial) -> int:
        return super()._get_bracket_id(cast(Study, SimpleNamespace(study_name="")), trial)


class TPE(optuna.samplers.TPESampler):
    """Optuna's own converts all params of all trials before every trial; here a finished one is converted once."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._rows: dict[tuple[int, tuple[str, ...]], list[float] | None] = {}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, np.ndarray]:
        keys, rows = tuple(search_space), []
        for trial in trials:
            if (trial.number, keys) in self._rows:
                row = self._rows[trial.number, keys]
            else:
                params = self._get_params(trial, study)
                whole = search_space.keys() <= params.keys()
                row = [one.to_internal_repr(params[key]) for key, one in search_space.items()] if whole else None
                if trial.state.is_finished():
                    self._rows[trial.number, keys] = row
            rows += [] if row is None else [row]
        columns = zip(*rows, strict=True) if rows else ([] for _ in keys)
        return {key: np.asarray(column) for key, column in zip(keys, columns, strict=True)}


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """A journal file to append to, whole and for this process alone; the kernel frees the lock of one that is killed.

    Optuna's own file locks outlive a killed process by 30 s; filelock's take 0.25 ms, a dozen times a trial.
    """
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read(1) not in (b"", b"\n"):  # a process was killed while it wrote
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        yield file


class JournalFile(JournalFileBackend):
    """A journal file, made where it is missing, without what a killed writer left behind its last whole line.

    Optuna's own waits for the disk after every line: milliseconds, a dozen times a trial.

    A killed process loses nothing that was handed to the kernel; only the end of a trial waits, for a power cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _locked(path):
            super().__init__(str(path))

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """What is new; to find nothing, as two of three calls do, the file is not opened."""
        if self._log_number_offset.get(log_number_from) != os.stat(self.path).st_size:
            yield from super().read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with _locked(self.path) as file:
            file.write(text.encode())
            if any(log.get("op_code") == JournalOperation.SET_TRIAL_STATE_VALUES for log in logs):
                file.flush()
                os.fsync(file.fileno())
