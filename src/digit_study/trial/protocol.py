"""What an engine is: five calls by which trials are run, wherever that is; and what a trial leaves.

An engine only runs trials. What is trained, stopped and recorded is decided by its caller.
A new engine is a module, and a line in :data:`ENGINES` and in :data:`AVAILABLE_NODES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Protocol

from digit_study.config.engine_config import EngineConfig, Node
from digit_study.config.run_config import Config
from digit_study.data.sources import DataConfig
from digit_study.model.training_state import Epoch
from digit_study.support.workspace import Workspace
from digit_study.trial.events import Decision, Event

if TYPE_CHECKING:  # it needs pandas, which no plan waits for
    from digit_study.stats.metrics import Evaluation


class TrialStopped(Exception):
    """A trial ended after an epoch because :attr:`Decision.STOP` was the answer to it."""


@dataclass(frozen=True)
class TrialResult:
    """What a finished trial leaves."""

    run_id: str
    #: Final metrics by name. Those that begin with ``val_`` are of the weights that were kept.
    metrics: dict[str, float]
    #: One record an epoch, in order.
    epochs: list[Epoch]
    #: How the validation images were predicted.
    evaluation: Evaluation
    #: sha256 of the trained weights.
    weights_sha256: str
    #: Tags of the machine that trained it, see
    #: :func:`digit_study.tracking.provenance.machine_tags`.
    machine: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EngineContext:
    """What an engine needs to know, and the limits that it enforces."""

    #: Where runs are spooled, and where temporary files lie.
    workspace: Workspace
    #: URI of the tracking store.
    tracking_uri: str
    #: Trials at a time. None is as many as fit, also on nodes that join later.
    slots: int | None = 1
    #: Seconds that a trial may take. None has no limit.
    trial_timeout: float | None = None
    #: GiB of resident memory that a trial may use. None has no limit.
    trial_memory: float | None = None
    #: Which engine, where it is, and what a trial takes of a node.
    options: EngineConfig = field(default_factory=EngineConfig)
    #: The digits of most trials, resolved. An engine may load them in advance.
    data: DataConfig = field(default_factory=DataConfig)
    #: Folder of digits by their sha256, on a machine that was handed them by another.
    digits_folder: Path | None = None


@dataclass(frozen=True)
class TrialRequest:
    """A trial that an engine is asked to run."""

    #: What its events carry.
    key: int
    config: Config
    #: Id of the MLflow run that it writes.
    run_id: str


class Engine(Protocol):
    """Where trials run."""

    @property
    def free(self) -> int:
        """Number of trials that could start now."""

    def submit(self, key: int, config: Config, run_id: str) -> str | None:
        """Start a trial.

        Args:
            key: What its events will carry.
            config: What to train, resolved.
            run_id: Id of the MLflow run that it writes.

        Returns:
            The name of its process, ``host:pid:time of creation``. None if it did not start: then
            an event says why.
        """

    def answer(self, key: int, decision: Decision) -> None:
        """Answer an :class:`~digit_study.trial.events.EpochDone`: the trial waits for it.

        With PAUSE it goes on waiting, and its slot is free. It is answered again later: with
        CONTINUE where :meth:`can_resume` allows it, with STOP at any time.

        Args:
            key: Of the trial.
            decision: Whether it goes on. With STOP it ends as ``Stopped``.
        """

    def can_resume(self, key: int) -> bool:
        """Return whether a slot is free in which a paused trial could go on."""

    def events(self, timeout: float = 0.5) -> Iterator[Event]:
        """Yield what has happened.

        An outcome frees the slot of its trial. A trial that has finished may still draw the figures
        of its run, until :meth:`stop` returns.

        Args:
            timeout: Seconds to wait at most if nothing has happened yet.

        Returns:
            The events of all trials, those of a trial in order.

        Raises:
            OSError: In the end, if the disk of this machine did not take what a trial left. The
                event of that trial comes again.
        """

    def stop(self) -> None:
        """End all trials, their runs as KILLED, and wait for their processes."""


#: Engines by the name that the config key ``engine`` gives them.
ENGINES: dict[str, Callable[[EngineContext], Engine]] = {
    "local": lambda context: resolve_name("digit_study.trial.local.pool:LocalEngine")(context),
    "ray": lambda context: resolve_name("digit_study.trial.ray.ray_engine:RayEngine")(context),
}
#: Functions that return the nodes that trials may run on, by the name of the engine. They take the
#: engine's options and the URI of the tracking store, and raise StudyError if no trial fits.
AVAILABLE_NODES: dict[str, Callable[[EngineConfig, str, Workspace], list[Node]]] = {
    "local": lambda options, uri, workspace: resolve_name(
        "digit_study.trial.local.pool:available_nodes"
    )(options),
    "ray": lambda options, uri, workspace: resolve_name(
        "digit_study.trial.ray.ray_engine:available_nodes"
    )(options, uri, workspace),
}
