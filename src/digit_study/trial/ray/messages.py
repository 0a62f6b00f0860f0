"""What the supervisor, the process that speaks to Ray, and the actors on the nodes send each other.

It imports only the standard library, like :mod:`digit_study.trial.ray.ray_actor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from digit_study.trial.events import Decision, Failed


@dataclass(frozen=True)
class Requirements:
    """What a node must have to run trials."""

    #: Versions of the supervisor's packages by name. A node may have others.
    versions: Mapping[str, str]
    #: Host and port of the tracking store, if it is on the network.
    server: tuple[str, int] | None = None
    #: Name of the only host that has the tracking store, if it is a file.
    only_host: str | None = None


@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself."""

    #: Versions of its packages by name, None of those that are missing.
    versions: Mapping[str, str | None] = field(default_factory=dict)
    #: Why it can run no trial, None if it can.
    problem: str | None = None
    cores: int = 0
    processor: str = "?"
    #: What the precision ``auto`` means there.
    precision: str = "float32"


@dataclass(frozen=True)
class ActorSetup:
    """What an actor needs to run trials, besides the digits."""

    requirements: Requirements
    #: The supervisor's environment as far as trials depend on it, passwords included.
    environment: Mapping[str, str]
    #: A pickled EngineContext.
    context: bytes
    #: Digest of the digits.
    sha256: str


@dataclass(frozen=True)
class OpenedActor:
    """An actor that can run trials."""

    #: ``host:pid:time of creation`` of its process.
    name: str
    #: Processor, cores and versions of its node: trials on the same have the same bits.
    node_kind: str


@dataclass(frozen=True)
class Answer:
    """The decision about an epoch, as an actor receives it."""

    key: int
    decision: Decision


class TrialPhase(StrEnum):
    """What a trial does after an event."""

    RUNNING = "running"
    #: It waits for the decision about an epoch, or is paused.
    WAITING = "waiting"
    ENDED = "ended"


@dataclass(frozen=True)
class ActorEvent:
    """An event of a trial, numbered by its actor."""

    number: int
    #: Key of the trial.
    key: int
    phase: TrialPhase
    #: The pickled event, and the run that it left packed, or None.
    content: bytes


@dataclass(frozen=True)
class NodeWarning:
    """A node that runs no trial, and why."""

    text: str


#: What the process that speaks to Ray has for the supervisor. Failed is a trial whose slot is gone.
News = ActorEvent | Failed | NodeWarning
