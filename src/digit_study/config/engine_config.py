"""Where runs are trained: the options that searches, confirmations and multiruns share, and their rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from digit_study.support.messages import Rule, between, nearest

#: What a trial may ask of its node, each with what it counts.
RESOURCES = {"cpu": "cores", "gpu": "GPUs, or as a share of one below 1", "memory": "GiB"}
#: Keys of a config that say where it runs; they decide nothing of its outcome.
PLACE_KEYS = ("engine", "address", "workers", "resources", "outage_timeout")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where runs are trained, how many at a time, what each takes of its node, and how long a fault is waited for.

    ``outage_timeout`` are minutes that a full disk, a lack of memory, or a store that is gone may last.
    """

    engine: str = "local"
    address: str | None = None
    workers: int | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    outage_timeout: float = 10.0

    @property
    def place(self) -> EngineConfig:
        """These options alone."""
        return EngineConfig(**{key: getattr(self, key) for key in PLACE_KEYS})


@dataclass(frozen=True)
class Node:
    """A machine that an engine may use."""

    host: str
    cores: float
    gpus: float
    memory: float  # GiB
    processor: str
    precision: str  # what ``auto`` means there
    room: int  # how many trials fit at a time
    problem: str | None = None  # why none can run there


def rules(prefix: str = "") -> dict[str, Rule]:
    """The rules of single values, for keys that begin with ``prefix``."""
    return {f"{prefix}workers": between(1, 256), f"{prefix}outage_timeout": between(0, 1e6)}


def relation_violations(config: EngineConfig, prefix: str = "") -> Iterator[str]:
    """Yield what is wrong with the resources and the address, one sentence each."""
    for key, value in config.resources.items():
        if key not in RESOURCES:
            named = ", ".join(RESOURCES)
            yield f"`{prefix}resources` may have {named}, got {key!r}{nearest(str(key), RESOURCES)}"
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
            yield f"`{prefix}resources` must give {key} as a number of {RESOURCES[key]}, got {value!r}"
        elif (key == "cpu" and (value < 1 or value != int(value))) or (
            key == "gpu" and value > 1 and value != int(value)
        ):
            yield f"`{prefix}resources` must give {key} as a whole number of {RESOURCES[key]}, got {value!r}"
    if config.address is not None and config.engine == "local":
        wrong = (
            f"`{prefix}address` is of a cluster, got {config.address!r} with {prefix}engine=local"
        )
        yield f"{wrong}: set {prefix}engine=ray"


def fitting(has: Mapping[str, float], asked: Mapping[str, float]) -> int:
    """How many trials that ask for ``cpu``, ``gpu`` and ``memory`` (GiB) each fit on a node with CPU, GPU and memory.

    Those of the node are as Ray tells them: its memory in bytes.
    """
    room = [
        has.get("CPU", 0.0) // asked["cpu"],
        has.get("memory", 0.0) // max(1.0, asked["memory"] * 2**30),
    ]
    if asked["gpu"]:  # a share is of one of them
        gpus = has.get("GPU", 0.0)
        room.append(gpus * (1.0 // asked["gpu"]) if asked["gpu"] < 1 else gpus // asked["gpu"])
    return int(min(room))


def settle(place: EngineConfig, threads: int | None) -> EngineConfig:
    """What a trial asks for, in full: on a cluster its cores are its threads, where it does not say."""
    if place.engine == "local":
        return place
    return replace(place, resources={"cpu": threads or 1, "gpu": 0, "memory": 0, **place.resources})


def common_precision(nodes: Sequence[Node]) -> str:
    """What the precision ``auto`` means on all nodes alike that trials fit on; float32 where they differ."""
    found = {node.precision for node in nodes if node.room}
    return found.pop() if len(found) == 1 else "float32"
