"""Where a single run stands, on disk: the same command goes on from there if it is interrupted.

A run has one file, ``mlruns/.checkpoints/<network>-<digits>-<fingerprint>-<store>.npz``, which is
replaced after an epoch and removed at the end of the run. The fingerprint is of everything that
decides the bits: what is trained on which digits, code, versions of libraries, and processor.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from digit_study.config.run_config import Config
from digit_study.model.training_state import Array, Epoch, TrainingState
from digit_study.support import hardware
from digit_study.support.files import replacing
from digit_study.support.processes import is_alive, process_name
from digit_study.support.workspace import Workspace

#: A file is written at most so often that it takes this share of the time.
LARGEST_SHARE = 0.05
#: Days after which a file is removed that no command has gone on from.
KEPT_DAYS = 30
#: Libraries that decide bits.
LIBRARIES = ("keras", "numpy", "tensorflow")
#: Name of the entry that holds what is no array.
ABOUT = "about"
#: How the names of the other entries begin, before a number.
MEMBER = "member"
MODEL = "model"
OPTIMIZER = "optimizer"
BEST = "best"


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two epochs."""

    #: Id of the run that was trained so far.
    run_id: str
    #: The command that trained it, as :func:`process_name` names processes.
    command: str
    #: Seconds that the run has taken so far.
    seconds: float
    #: Weights of the members of an ensemble that are trained.
    members: Sequence[Sequence[Array]]
    #: Epochs of these members.
    member_epochs: Sequence[Epoch]
    #: The network that is being trained.
    training: TrainingState

    @property
    def epochs(self) -> list[Epoch]:
        """Return the records of all epochs so far, those of all members."""
        return [*self.member_epochs, *self.training.epochs]


@dataclass
class Checkpoint:
    """The file of one run."""

    config: Config
    workspace: Workspace
    #: URI of the tracking store: a run goes on in the store that has its beginning.
    uri: str = ""
    #: Returns seconds; tests set it.
    clock: Callable[[], float] = time.monotonic
    _written_at: float | None = field(default=None, init=False)
    _last_cost: float = field(default=0.0, init=False)

    @cached_property
    def path(self) -> Path:
        """File of the run."""
        digits = self.config.data.source
        if self.config.data.path is not None:
            digits = Path(self.config.data.path).stem
        store = hashlib.sha256(self.uri.encode()).hexdigest()[:8]
        name = f"{self.config.model.name}-{digits}-{fingerprint(self.config)}-{store}.npz"
        return self.workspace.artifacts / ".checkpoints" / name

    @property
    def is_kept(self) -> bool:
        """Return whether the run keeps a file: a single run does, where it is supervised."""
        return self.config.tracking.parent_run_id is None and self.config.engine == "local"

    def read(self) -> RunState | None:
        """Return where an interrupted run stands; None if training starts from the beginning.

        A run that another command is training right now was not interrupted.
        """
        if not self.is_kept or self.config.fresh:
            return None
        try:
            with self.path.open("rb") as file, np.load(file) as packed:
                state = _unpacked(packed)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        if is_alive(state.command) and state.command != this_command():
            return None
        return state

    def write(self, state: Callable[[], RunState]) -> None:
        """Keep a state, unless that would take more than a small share of the time.

        Args:
            state: Returns the state.
        """
        if not self.is_kept or not self._is_due:
            return
        path = self.path
        started = self.clock()
        with suppress(OSError):  # a disk that is full stops the run elsewhere, or has room again
            self._replace(path, _packed(state()))
        self._written_at = self.clock()
        self._last_cost = self._written_at - started

    def remove(self) -> None:
        """Remove the file: the run has ended."""
        if self.is_kept:
            self.path.unlink(missing_ok=True)

    def _replace(self, path: Path, packed: Mapping[str, Any]) -> None:
        """Write the file anew."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._written_at is None:
            _remove_old(path.parent)
        with replacing(path) as new, new.open("wb") as file:
            np.savez(file, **packed)

    @property
    def _is_due(self) -> bool:
        if self._written_at is None:
            return True
        return self._last_cost <= LARGEST_SHARE * (self.clock() - self._written_at)


def _remove_old(folder: Path) -> None:
    """Remove files that nobody has gone on from for long."""
    oldest = time.time() - KEPT_DAYS * 24 * 3600
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another command removes it at this moment
            if path.stat().st_mtime < oldest:
                path.unlink()


def this_command() -> str:
    """Return the name of the command that trains here: a worker belongs to its supervisor."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return process_name()
    return process_name(parent.pid)


def fingerprint(config: Config) -> str:
    """Return a digest of everything that decides the bits of a run.

    Args:
        config: What is trained, resolved.
    """
    decides = {
        "data": asdict(replace(config.data, path=None)),
        "model": asdict(config.model),
        "training": asdict(config.training),
        "code": _code_digest(),
        "versions": [version(name) for name in LIBRARIES],
        "processor": hardware.processor(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
    }
    text = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code_digest() -> str:
    """Return a digest of the project's code."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _packed(state: RunState) -> dict[str, Array]:
    """Return a state as arrays by name."""
    about = {
        "run_id": state.run_id,
        "command": state.command,
        "seconds": state.seconds,
        "member_epochs": state.member_epochs,
        "epochs": state.training.epochs,
        "members": len(state.members),
    }
    packed = {ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}
    for number, weights in enumerate(state.members):
        packed |= _numbered(f"{MEMBER}{number}", weights)
    packed |= _numbered(MODEL, state.training.model)
    packed |= _numbered(OPTIMIZER, state.training.optimizer)
    packed |= _numbered(BEST, state.training.best_weights)
    return packed


def _unpacked(file: Mapping[str, Array]) -> RunState:
    """Return the state that :func:`_packed` was given."""
    about: dict[str, Any] = json.loads(file[ABOUT].tobytes())
    training = TrainingState(
        epochs=about["epochs"],
        model=_arrays(file, MODEL),
        optimizer=_arrays(file, OPTIMIZER),
        best_weights=_arrays(file, BEST),
    )
    return RunState(
        run_id=about["run_id"],
        command=about["command"],
        seconds=about["seconds"],
        members=[_arrays(file, f"{MEMBER}{number}") for number in range(about["members"])],
        member_epochs=about["member_epochs"],
        training=training,
    )


def _numbered(name: str, arrays: Sequence[Array]) -> dict[str, Array]:
    return {f"{name}/{number}": array for number, array in enumerate(arrays)}


def _arrays(file: Mapping[str, Array], name: str) -> list[Array]:
    """Return the arrays of a name in their order."""
    count = sum(key.startswith(f"{name}/") for key in file)
    return [file[f"{name}/{number}"] for number in range(count)]
