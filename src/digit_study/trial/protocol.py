"""What an engine is: five calls by which a supervisor lets trials run, wherever that is; and what a trial leaves.

Sampling, pruning and stores are the supervisor's. A new engine is a module and a line in :data:`ENGINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from digit_study.config.engine_config import EngineConfig, Node
from digit_study.config.run_config import Config
from digit_study.data.sources import DataConfig
from digit_study.support.messages import StudyError
from digit_study.support.progress import EpochProgress
from digit_study.support.signals import raise_if_interrupted

if TYPE_CHECKING:  # it needs pandas, which no plan waits for
    from digit_study.stats.metrics import Evaluation

Epoch = dict[str, float]
#: Why a trial died with its node or its slot: no fault of the trial, which runs again however often it happens.
LOST = LOST_NODE, LOST_SLOT = "its node went away", "its slot was killed"


class Pruned(Exception):
    """A trial was asked to end after an epoch, because others promise more."""


@dataclass(frozen=True)
class TrialResult:
    """What one finished trial leaves."""

    run_id: str
    metrics: dict[str, float]  # final metrics by name; ``val_*`` of the weights that were kept
    epochs: list[Epoch]  # one record an epoch
    evaluation: Evaluation  # its reading of the validation images
    weights_sha256: str  # of the trained weights
    machine: Mapping[str, str] = field(
        default_factory=dict
    )  # that trained it, see origin.machine_tags
    kept: Path | None = (
        None  # where the outcome lies on disk if the tracking store did not take all of it
    )
    fault: str | None = None  # what the store said then


@dataclass(frozen=True)
class EngineContext:
    """What an engine may use; None has no limit."""

    slots: int | None = (
        1  # trials at a time; None: as many as there is room for, also on nodes that join later
    )
    timeout: float | None = None  # seconds a trial may take
    memory: float | None = None  # GiB of resident memory a trial may use
    place: EngineConfig = field(
        default_factory=EngineConfig
    )  # which engine, where, and what a trial takes of it
    data: DataConfig = field(
        default_factory=DataConfig
    )  # resolved; an engine whose nodes do not have it hands it over
    uri: str = ""  # the tracking store, for nodes that cannot know it


@dataclass(frozen=True)
class Event:
    """News of a trial; done, pruned, failed, died (killed from outside), expired (over a limit), world free its slot.

    One that is ``done`` may still draw the figures of its run: until :meth:`Engine.stop` is through.

    ``world`` is a fault of the machine, not of the trial: no room, no memory, the server or the node killed.
    """

    key: int  # under which it was submitted
    kind: str  # steps, epoch (which waits for an answer), done, pruned, failed, died, expired or world
    content: Any  # in this order: (epoch, step, steps), (number, record), a TrialResult, and for the others why


class Engine(Protocol):
    """Where trials run."""

    @property
    def free(self) -> int:
        """How many more trials could start now."""

    def submit(self, key: int, config: Config, run_id: str) -> str | None:
        """Start a trial for the MLflow run ``run_id``; returns the name of its process, None if it did not start."""

    def answer(self, key: int, go_on: bool) -> None:
        """Reply to an ``epoch`` event: go on, or end there as pruned."""

    def events(self, timeout: float = 0.5) -> Iterator[Event]:
        """Yield what is new, after waiting at most ``timeout`` seconds for it."""

    def stop(self) -> None:
        """End all trials together, as KILLED, and wait for them."""


#: Engines by the name that ``search.engine`` gives them.
ENGINES: dict[str, Callable[[EngineContext], Engine]] = {
    "local": lambda context: resolve_name("digit_study.trial.local.pool:LocalEngine")(context),
    "ray": lambda context: resolve_name("digit_study.trial.ray.ray_engine:RayEngine")(context),
}
#: What each of them could use, of the resources that a trial asks for; raises StudyError if that is too little.
OFFERS: dict[str, Callable[[EngineConfig, str], list[Node]]] = {
    "local": lambda place, uri: resolve_name("digit_study.trial.local.pool:offer")(place, uri),
    "ray": lambda place, uri: resolve_name("digit_study.trial.ray.ray_engine:offer")(place, uri),
}


def run_to_end(engine: Engine, config: Config, run_id: str, progress: EpochProgress) -> TrialResult:
    """Run one trial on an engine that does nothing else, and show it; raises StudyError if it fails or dies.

    Its figures may still be drawn then, until the engine stops.
    """
    try:
        engine.submit(0, config, run_id)
        while True:
            raise_if_interrupted()
            for event in engine.events():
                if event.kind == "steps":
                    progress.steps(*event.content)
                elif event.kind == "epoch":
                    progress.epoch(*event.content)
                    engine.answer(event.key, True)
                elif event.kind != "done":
                    raise StudyError(str(event.content))
                else:
                    result: TrialResult = event.content
                    return result
    except BaseException:
        engine.stop()
        raise
