"""Where runs are trained: the options that searches, confirmations and multiruns share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from digit_study.support.rules import between
from digit_study.support.suggestions import nearest

#: What a trial may require of its node, each with the unit in which it counts.
RESOURCES = {
    "cpu": "cores",
    "gpu": "GPUs, or as a share of one below 1",
    "memory": "GiB",
}
#: Amounts from here on are no resources of any node.
RESOURCE_LIMIT = 1e6
BYTES_A_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Say where runs are trained, and for how long faults of the infrastructure are waited for.

    Attributes:
        engine: Name of the engine.
        address: Address of a Ray cluster; None: the one on this machine.
        workers: Runs at a time; None: as many as fit.
        resources: What each run requires of its node, by a name in :data:`RESOURCES`.
        outage_timeout: Minutes for which a full disk, a lack of memory or a store that does not
            answer may last.
    """

    engine: str = "local"
    address: str | None = None
    workers: Annotated[int | None, between(1, 256)] = None
    resources: dict[str, Any] = field(default_factory=dict)
    outage_timeout: Annotated[float, between(0, 1e6)] = 10.0

    @property
    def engine_options(self) -> EngineConfig:
        """Return these options alone."""
        values = {key: getattr(self, key) for key in ENGINE_KEYS}
        return EngineConfig(**values)


#: Keys of a config that say where it is trained; they decide nothing of its outcome.
ENGINE_KEYS = tuple(entry.name for entry in fields(EngineConfig))


@dataclass(frozen=True)
class Node:
    """Describe a machine that an engine may use.

    Attributes:
        host: Its name.
        cores: Its cores.
        gpus: Its GPUs.
        memory: Its memory in GiB.
        processor: Name of its processor.
        precision: What the precision ``auto`` means on it.
        capacity: How many trials fit on it at a time.
        problem: Why no trial can run on it; None: trials can.
    """

    host: str
    cores: float
    gpus: float
    memory: float
    processor: str
    precision: str
    capacity: int
    problem: str | None = None


def relation_violations(config: EngineConfig, prefix: str = "") -> Iterator[str]:
    """Yield a sentence for everything that is wrong with resources and address.

    Args:
        config: The options.
        prefix: What their keys begin with in messages, such as ``search.``.
    """
    for name, amount in config.resources.items():
        problem = _resource_problem(name, amount)
        if problem:
            yield f"`{prefix}resources` {problem}"
    has_address = config.address is not None
    if has_address and config.engine == "local":
        got = f"got {config.address!r} with {prefix}engine=local"
        yield f"`{prefix}address` is of a cluster, {got}: set {prefix}engine=ray"


def _resource_problem(name: str, amount: Any) -> str | None:
    if name not in RESOURCES:
        known = ", ".join(RESOURCES)
        suggestion = nearest(str(name), RESOURCES)
        return f"may have {known}, got {name!r}{suggestion}"
    unit = RESOURCES[name]
    is_number = isinstance(amount, int | float) and not isinstance(amount, bool)
    if not is_number or not 0 <= amount < RESOURCE_LIMIT:
        return f"must give {name} as a number of {unit}, got {amount!r}"
    is_whole = amount == int(amount)
    is_bad_cpu = name == "cpu" and (amount < 1 or not is_whole)
    is_bad_gpu = name == "gpu" and amount > 1 and not is_whole
    if is_bad_cpu or is_bad_gpu:
        return f"must give {name} as a whole number of {unit}, got {amount!r}"
    return None


def capacity(available: Mapping[str, float], required: Mapping[str, float]) -> int:
    """Count the trials that fit on a node at a time.

    Args:
        available: Resources of the node as Ray names them: CPU, GPU, and memory in bytes.
        required: What each trial requires: ``cpu``, ``gpu`` and ``memory`` in GiB.

    Returns:
        How many fit, 0 or more.
    """
    cores = available.get("CPU", 0.0)
    memory = available.get("memory", 0.0)
    # a byte at least: a trial may require no memory
    required_memory = max(1.0, required["memory"] * BYTES_A_GIB)
    by_cpu = cores // required["cpu"]
    by_memory = memory // required_memory
    fitting = min(by_cpu, by_memory)
    gpus = available.get("GPU", 0.0)
    share = required["gpu"]
    if share >= 1:
        by_gpu = gpus // share
        fitting = min(fitting, by_gpu)
    elif share:
        # a share is of a single GPU
        # 1 // 0.2 is 4, since binary numbers have no exact 0.2
        trials_per_gpu = math.floor(round(1.0 / share, 6))
        fitting = min(fitting, gpus * trials_per_gpu)
    return int(fitting)


def with_defaults(options: EngineConfig, threads: int | None) -> EngineConfig:
    """Complete the resources that a trial on a cluster requires.

    Args:
        options: The options as typed.
        threads: Threads of a trial: its cores, where the options name none.

    Returns:
        The options with every resource named; as they are for the local engine.
    """
    if options.engine == "local":
        return options
    defaults = {"cpu": threads or 1, "gpu": 0, "memory": 0}
    resources = {**defaults, **options.resources}
    return replace(options, resources=resources)


def common_precision(nodes: Sequence[Node]) -> str:
    """Return what the precision ``auto`` means for trials that may run on any of the nodes.

    Args:
        nodes: The nodes of an engine; those on which no trial fits do not count.

    Returns:
        The precision that all share; float32 where they differ.
    """
    found = {node.precision for node in nodes if node.capacity}
    if len(found) == 1:
        return found.pop()
    return "float32"
