"""The process that speaks to Ray for a supervisor, by numbered calls through a socket, of which it is the other end.

A process of its own: Ray ends the process that is connected to it when the head is gone, shows its command line as the
job's (where a person typed a password, that one has it), and has threads and signal handlers.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from digit_study.config.engine import fitting
from digit_study.trial.ray import ray_actor as on_node

ROOT = Path(__file__).resolve().parents[4]
#: What a node needs of the project.
SENT = ("src", "conf")
#: Seconds: a slot's wait for news, between two looks at the cluster, that a node has to say what it is.
PATIENCE_S, LOOK_EVERY_S, NODE_ANSWERS_S = 1.0, 2.0, 30.0
#: Seconds without any slot after which a supervisor gives up, those that trials have to end, and those after which a
#: slot is lost to which the connection broke: a node that was killed, of which Ray itself hears 15 to 65 s later.
SLOT_WITHIN_S, STOP_S, BACK_WITHIN_S = 60.0, 9.5, 8.0
#: News for a supervisor: (event, key, pickled), (lost, key, node, slot or why) or (warning, text, None).
News = tuple[str, Any, Any]


@dataclass(eq=False)
class Slot:
    """An actor: starting until it has a name, then free or running the trial ``key``; refused where it cannot open."""

    actor: Any
    pending: Any = None  # the call that is under way
    name: str | None = None
    kind: str = ""  # of its node
    key: int | None = None
    command: bytes | None = None
    number: int = 0
    acknowledged: int = 0
    broken_since: float | None = None
    is_refused: bool = False


class Cluster:
    """The calls that a supervisor makes; the message of what they raise is for a person."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.news: list[News] = []
        self.kinds: dict[str, str] = {}

    def connect(self, address: str | None) -> None:
        """Connect to the cluster at ``address``, or start one on this machine for ``local``."""
        others = [f"/{name}" for name in os.listdir(ROOT) if name not in SENT]
        environment = {
            "working_dir": str(ROOT),
            "excludes": [*others, "__pycache__"],
            "env_vars": {"PYTHONPATH": "src"},
        }
        options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
        ray.init(
            address,
            runtime_env=environment,
            log_to_driver=False,
            configure_logging=False,
            **options,
        )
        self.home = (
            None if str(address).startswith("ray:") else ray.get_runtime_context().get_node_id()
        )

    def survey(self, needs: on_node.Needs, resources: Mapping[str, float]) -> list[dict[str, Any]]:
        """Every node that is alive: what Ray knows of it, and what it says itself where a trial fits."""
        asked, told = [], []
        for node in alive():
            if not fitting(node["Resources"], resources):
                told.append({"host": node["NodeManagerHostname"], "resources": node["Resources"]})
                continue
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, max_retries=0)(on_node.look).options(
                scheduling_strategy=here
            )
            asked.append((node, task.remote(needs)))
        deadline = time.monotonic() + NODE_ANSWERS_S
        for node, reference in asked:
            host = node["NodeManagerHostname"]
            try:
                facts = ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))
            except (RayError, GetTimeoutError) as fault:
                facts = {"problem": f"node {host} runs nothing: {last_line(fault)}"}
            told.append({"host": host, "resources": node["Resources"], **facts})
        return told

    def open(
        self, wanted: int | None, resources: Mapping[str, float], what: tuple[Any, ...], kind: str
    ) -> None:
        """Ask for slots of ``resources`` each; without their number, for as many as fit at any time.

        ``what`` are the arguments of :meth:`digit_study.trial.ray.ray_actor.Slot.open`, ``kind`` names the actors' class.
        """
        module, _, name = kind.partition(":")
        if not module.startswith("digit_study."):  # of a test
            ray.cloudpickle.register_pickle_by_value(importlib.import_module(module))
        actor = getattr(importlib.import_module(module), name)
        *first, images, labels = what
        self.what = (*first, ray.put(images), ray.put(labels))
        asked = {
            "num_cpus": resources["cpu"],
            "num_gpus": resources["gpu"],
            "memory": resources["memory"] * 2**30,
        }
        self.actor = ray.remote(**asked, max_restarts=0, scheduling_strategy="SPREAD")(actor)
        self.wanted, self.resources = wanted, resources
        self.looked, self.last_slot = 0.0, time.monotonic()
        self._look()

    def submit(self, key: int, command: bytes, alike: Sequence[str]) -> str | None:
        """Hand a trial to a free slot, where there is one of the kind of node that trials like it were on before.

        They are those with which it shares a name in ``alike``, the first of which counts most.
        Returns the name of the slot's process; None if there is no slot.
        """
        free = [slot for slot in self.slots if is_free(slot)]
        if not free:
            return None
        kinds = [self.kinds[name] for name in alike if name in self.kinds]
        slot = min(free, key=lambda one: kinds.index(one.kind) if one.kind in kinds else len(kinds))
        self.kinds.update(dict.fromkeys(alike, slot.kind))
        slot.key, slot.command, slot.number = key, command, slot.number + 1
        self._turn(slot)
        return slot.name

    def answer(self, key: int, command: bytes) -> None:
        """Hand the answer to an epoch to the slot whose trial waits for it."""
        for slot in self.slots:
            if slot.key == key:
                slot.command, slot.number = command, slot.number + 1
                self._turn(slot)

    def events(self, timeout: float) -> tuple[list[News], int]:
        """What is new after at most ``timeout`` seconds, and how many slots are free then."""
        if time.monotonic() - self.looked > LOOK_EVERY_S:
            self._look()
        waiting = {slot.pending: slot for slot in self.slots if slot.pending is not None}
        if not waiting:
            time.sleep(0.0 if self.news else timeout)
        elif ray.wait(list(waiting), timeout=0.0 if self.news else timeout)[0]:
            for reference in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]:
                self._take(waiting[reference], reference)
        now = time.monotonic()
        for slot in [one for one in self.slots if now - (one.broken_since or now) > BACK_WITHIN_S]:
            ray.kill(slot.actor)
            self._lose(slot, "node")
        news, self.news = self.news, []
        return news, sum(map(is_free, self.slots))

    def stop(self) -> None:
        """End all trials, as KILLED, and then all slots."""
        ends = [slot.actor.stop.remote() for slot in self.slots if slot.key is not None]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=STOP_S)
        for slot in self.slots:
            ray.kill(slot.actor)
        self.slots = []
        ray.shutdown()

    def _look(self) -> None:
        """Look which nodes there are, and ask for the slots that are missing."""
        self.looked = time.monotonic()
        nodes = alive()
        if self.home is not None and self.home not in {node["NodeID"] for node in nodes}:
            raise ConnectionError("the node of this machine is gone")
        room = sum(fitting(node["Resources"], self.resources) for node in nodes)
        for _ in range(len(self.slots), room if self.wanted is None else self.wanted):
            slot = Slot(self.actor.remote())
            slot.pending = slot.actor.open.remote(*self.what)
            self.slots.append(slot)
        if any(slot.name is not None for slot in self.slots):
            self.last_slot = self.looked
        elif self.looked - self.last_slot > SLOT_WITHIN_S:
            raise ConnectionError(
                f"no slot has opened for {SLOT_WITHIN_S:.0f} s on the {len(nodes)} nodes there are"
            )

    def _turn(self, slot: Slot) -> None:
        slot.pending = slot.actor.turn.remote(
            slot.number, slot.command, slot.acknowledged, PATIENCE_S
        )

    def _take(self, slot: Slot, reference: Any) -> None:
        """Take what a slot answered, and call it again while its trial runs."""
        slot.pending = None
        try:
            answer = ray.get(reference)
        except ActorUnavailableError:  # the network, maybe
            slot.broken_since = slot.broken_since or time.monotonic()
            time.sleep(0.2)
            if slot.name is not None:
                return self._turn(slot)
            slot.pending = slot.actor.open.remote(*self.what)
            return None
        except RayActorError as fault:
            return self._lose(slot, self._why(slot, fault))
        except RayTaskError as fault:
            if slot.name is None:  # it holds its place, so that no other opens there
                slot.is_refused = True
                return self.news.append(("warning", last_line(fault), None))
            ray.kill(slot.actor)
            return self._lose(slot, self._why(slot, fault))
        slot.broken_since = None
        if slot.name is None:
            slot.name, slot.kind = answer
            self.last_slot = time.monotonic()
            return None
        slot.command = None
        for slot.acknowledged, _, event in answer:
            self.news.append(("event", slot.key, event))
        last = answer[-1][1] if answer else ""
        if last in on_node.FINAL_KINDS:
            slot.key = None
        elif last != "epoch":  # which waits for an answer
            self._turn(slot)
        return None

    def _why(self, slot: Slot, fault: Exception) -> str:
        """Of what a slot ended: with its node or alone, or in words."""
        host = (slot.name or ":").split(":")[0]
        # Ray ends who takes most of a node's memory: were that no fault of the trial, it would run for ever
        if isinstance(fault, RayTaskError) or "low on memory" in str(fault):
            return f"its slot on {host} ended: {last_line(fault)[:300]}"
        return "slot" if any(node["NodeManagerHostname"] == host for node in alive()) else "node"

    def _lose(self, slot: Slot, why: str) -> None:
        """Tell that the trial of a slot is gone; the next look asks for another slot."""
        self.slots.remove(slot)
        self.looked = 0.0
        if slot.key is not None:
            self.news.append(("lost", slot.key, why))


def alive() -> list[dict[str, Any]]:
    """The nodes that are alive, as Ray tells of them."""
    return [node for node in ray.nodes() if node["Alive"]]


def is_free(slot: Slot) -> bool:
    """Whether it could run a trial now."""
    return slot.name is not None and slot.key is None


def last_line(fault: BaseException) -> str:
    """What to say of what Ray raised: its texts begin with a traceback, or with ids."""
    lines = str(getattr(fault, "cause", None) or fault).strip().split("\n")
    return lines[-1].strip() or type(fault).__name__


def main(descriptor: int) -> None:
    """Answer (number, name, arguments) with (number, whether it is well, result or message) until the socket closes."""
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)  # the supervisor decides
    cluster, supervisor = Cluster(), Connection(descriptor)
    try:
        while True:
            number, name, arguments = supervisor.recv()
            try:
                answer = True, getattr(cluster, name)(*arguments)
            except Exception as fault:  # whatever Ray raises
                answer = False, " ".join(str(fault).split())[:600] or type(fault).__name__
            supervisor.send((number, *answer))
    except (EOFError, OSError):  # it has ended, or was killed
        cluster.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]))
