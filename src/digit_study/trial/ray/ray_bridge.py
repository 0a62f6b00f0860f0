"""The process that speaks to Ray for a supervisor, by numbered calls through a socket.

It is a process of its own for three reasons. Ray ends the process that is connected to it when the
head is gone. It shows that process's command line as the job's, where a person may have typed a
password. And it has threads and signal handlers.
"""

import importlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

from digit_study.config.engine_config import BYTES_A_GIB, Node, capacity
from digit_study.trial.events import LOST_REASONS, Decision, Failed, FailureCause
from digit_study.trial.ray.messages import (
    ActorSetup,
    News,
    NodeReport,
    NodeWarning,
    OpenedActor,
    Requirements,
    TrialPhase,
)
from digit_study.trial.ray.ray_actor import inspect_node

ROOT = Path(__file__).resolve().parents[4]
#: What a node needs of the project.
SENT = ("src", "conf")
#: How Ray says that a cluster which it started was not ready within half a minute, as happens on a
#: busy or cold machine; and how often a start is tried.
SLOW_START = "timed out during startup"
STARTS = 4
#: Seconds that an actor waits for events before it answers.
EXCHANGE_S = 1.0
#: Seconds between two looks at the nodes of the cluster.
INSPECT_EVERY_S = 2.0
#: Seconds that a node has to say what it is.
NODE_ANSWERS_S = 30.0
#: Seconds without any slot after which a supervisor gives up.
SLOT_WITHIN_S = 60.0
#: Seconds that trials have to end.
TRIALS_STOP_S = 9.5
#: Seconds after which a slot counts as lost to which the connection broke. Ray itself hears of a
#: node that was killed 15 to 65 s later.
RECONNECT_WITHIN_S = 8.0
#: Seconds between two calls of an actor that cannot be reached.
RETRY_PAUSE_S = 0.2


@dataclass(eq=False)
class SlotState:
    """An actor as the supervisor's side knows it."""

    actor: Any
    #: The call that is under way.
    pending: Any = None
    #: None until it is open.
    name: str | None = None
    node_kind: str = ""
    #: Key of the trial that it runs.
    key: int | None = None
    #: Keys of trials that are paused in it.
    paused: set[int] = field(default_factory=set)
    #: Keys of paused trials that were told to stop.
    stopping: set[int] = field(default_factory=set)
    #: Whether the trial that it runs is being paused.
    is_pausing: bool = False
    #: The command that it may not have yet.
    command: bytes | None = None
    #: Commands that follow it.
    waiting: deque[bytes] = field(default_factory=deque)
    number: int = 0
    acknowledged: int = 0
    #: When the connection to it broke, by the monotonic clock.
    broken_since: float | None = None

    @property
    def is_free(self) -> bool:
        """Return whether it could run a trial now."""
        return self.name is not None and self.key is None

    @property
    def keys(self) -> set[int]:
        """Return the keys of all trials in it, those that are paused included."""
        found = self.paused | self.stopping
        if self.key is not None:
            found.add(self.key)
        return found

    def decide_paused(self, key: int, decision: Decision) -> None:
        """Let a paused trial go on in this slot, or stop beside the trial that runs."""
        self.paused.discard(key)
        if decision is Decision.CONTINUE:
            self.key = key
        else:
            self.stopping.add(key)


class RayCluster:
    """The calls that a supervisor makes; the message of what they raise is for a person."""

    def __init__(self) -> None:
        self._slots: list[SlotState] = []
        self._news: list[News] = []
        #: Kinds of node on which trials ran before, by what trials have in common.
        self._affinities: dict[str, str] = {}
        #: Id of the node of this machine; None where Ray's client is used, which is on none.
        self._home: str | None = None

    def connect(self, address: str | None) -> None:
        """Connect to the cluster at ``address``; for ``local`` start a cluster here."""
        others = [f"/{name}" for name in os.listdir(ROOT) if name not in SENT]
        environment = {
            "working_dir": str(ROOT),
            "excludes": [*others, "__pycache__"],
            "env_vars": {"PYTHONPATH": "src"},
        }
        options: dict[str, Any] = {}
        if address == "local":
            options["include_dashboard"] = False
        for attempt in range(1, STARTS + 1):
            try:
                ray.init(
                    address,
                    runtime_env=environment,
                    log_to_driver=False,
                    configure_logging=False,
                    **options,
                )
                break
            except Exception as fault:  # Ray raises a bare Exception
                if address != "local" or SLOW_START not in str(fault) or attempt == STARTS:
                    raise
                ray.shutdown()
        if not str(address).startswith("ray:"):
            self._home = ray.get_runtime_context().get_node_id()

    def survey(self, requirements: Requirements, resources: Mapping[str, float]) -> list[Node]:
        """Return every node that is alive; where a trial fits, with what the node says of itself.

        Args:
            requirements: What a node must have.
            resources: What a trial takes: ``cpu``, ``gpu`` and ``memory`` (GiB).
        """
        found = []
        asked = []
        for node in alive_nodes():
            trials = capacity(node["Resources"], resources)
            if trials:
                asked.append((node, trials, self._inspect(node, requirements)))
            else:
                found.append(described(node, trials, NodeReport()))
        deadline = time.monotonic() + NODE_ANSWERS_S
        for node, trials, reference in asked:
            try:
                report = ray.get(reference, timeout=max(0.1, deadline - time.monotonic()))
            except (RayError, GetTimeoutError) as fault:
                host = node["NodeManagerHostname"]
                report = NodeReport(problem=f"node {host} runs nothing: {last_line(fault)}")
            found.append(described(node, trials, report))
        return found

    def open(
        self,
        wanted: int | None,
        resources: Mapping[str, float],
        setup: ActorSetup,
        images: Any,
        labels: Any,
        actor_class: str,
    ) -> None:
        """Ask for slots.

        Args:
            wanted: Their number; None is as many as fit at any time.
            resources: What each takes: ``cpu``, ``gpu`` and ``memory`` (GiB).
            setup: See :meth:`digit_study.trial.ray.ray_actor.TrialActor.open`.
            images: As there.
            labels: As there.
            actor_class: Name of the class of the actors, as ``module:class``.
        """
        module, _, name = actor_class.partition(":")
        if not module.startswith("digit_study."):  # it is a test's, which no node has
            ray.cloudpickle.register_pickle_by_value(importlib.import_module(module))
        self._setup = (setup, ray.put(images), ray.put(labels))
        self._actor = ray.remote(
            num_cpus=resources["cpu"],
            num_gpus=resources["gpu"],
            memory=resources["memory"] * 2**30,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )(getattr(importlib.import_module(module), name))
        self._wanted = wanted
        self._resources = resources
        self._inspected_at = 0.0
        self._last_slot_at = time.monotonic()
        self._ask_for_slots()

    def submit(self, key: int, command: bytes, affinities: Sequence[str]) -> str | None:
        """Hand a trial to a free slot.

        It prefers the kind of node that trials ran on with which this has something in common, so
        that their bits can be compared.

        Args:
            key: Of the trial.
            command: A pickled TrialRequest.
            affinities: What trials have in common, the first counts most.

        Returns:
            The name of the slot's process; None if no slot is free.
        """
        free = [slot for slot in self._slots if slot.is_free]
        if not free:
            return None
        kinds = [self._affinities[name] for name in affinities if name in self._affinities]

        def rank(slot: SlotState) -> int:
            return kinds.index(slot.node_kind) if slot.node_kind in kinds else len(kinds)

        slot = min(free, key=rank)
        self._affinities.update(dict.fromkeys(affinities, slot.node_kind))
        slot.key = key
        self._send(slot, command)
        return slot.name

    def answer(self, key: int, decision: Decision, command: bytes) -> int:
        """Hand a decision to the slot whose trial waits for it, or in which the trial is paused.

        A slot is free as soon as it has the PAUSE. CONTINUE takes the slot of a paused trial, which
        must be free. A paused trial stops whatever its slot does.

        Args:
            key: Of the trial.
            decision: The decision.
            command: The same as a pickled Answer.

        Returns:
            The number of free slots.
        """
        for slot in self._slots:
            if key in slot.paused:
                slot.decide_paused(key, decision)
            elif key == slot.key:
                slot.is_pausing = decision is Decision.PAUSE
            else:
                continue
            self._send(slot, command)
        return self._free

    def can_resume(self, key: int) -> bool:
        """Return whether the slot in which a trial is paused is free."""
        return any(key in slot.paused and slot.is_free for slot in self._slots)

    def events(self, timeout: float) -> tuple[list[News], int]:
        """Return what is new after at most ``timeout`` seconds, and the number of free slots."""
        if time.monotonic() - self._inspected_at > INSPECT_EVERY_S:
            self._ask_for_slots()
        waiting = {slot.pending: slot for slot in self._slots if slot.pending is not None}
        seconds = 0.0 if self._news else timeout
        if not waiting:
            time.sleep(seconds)
        elif ray.wait(list(waiting), timeout=seconds)[0]:
            for reference in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]:
                self._receive(waiting[reference], reference)
        self._give_up_unreachable()
        news = self._news
        self._news = []
        return news, self._free

    def stop(self) -> None:
        """End all trials, as KILLED, and then all slots."""
        ends = [slot.actor.stop.remote() for slot in self._slots if slot.keys]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=TRIALS_STOP_S)
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots = []
        ray.shutdown()

    @property
    def _free(self) -> int:
        """Return the number of slots that could run a trial now."""
        return sum(slot.is_free for slot in self._slots)

    def _inspect(self, node: Mapping[str, Any], requirements: Requirements) -> Any:
        """Ask a node for its report; return the reference of the answer."""
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0)(inspect_node)
        return task.options(scheduling_strategy=there).remote(requirements)

    def _ask_for_slots(self) -> None:
        """Find out which nodes there are, and ask for the slots that are missing."""
        self._inspected_at = time.monotonic()
        nodes = alive_nodes()
        if self._home is not None and self._home not in {node["NodeID"] for node in nodes}:
            raise ConnectionError("the node of this machine is gone")
        wanted = self._wanted
        if wanted is None:
            wanted = sum(capacity(node["Resources"], self._resources) for node in nodes)
        for _ in range(len(self._slots), wanted):
            slot = SlotState(self._actor.remote())
            slot.pending = slot.actor.open.remote(*self._setup)
            self._slots.append(slot)
        if any(slot.name is not None for slot in self._slots):
            self._last_slot_at = self._inspected_at
        elif self._inspected_at - self._last_slot_at > SLOT_WITHIN_S:
            raise ConnectionError(
                f"no slot has opened for {SLOT_WITHIN_S:.0f} s on the {len(nodes)} nodes there are"
            )

    def _send(self, slot: SlotState, command: bytes) -> None:
        """Give an actor a command, after those that it does not have yet."""
        slot.waiting.append(command)
        if slot.pending is None:
            self._send_next(slot)

    def _send_next(self, slot: SlotState) -> None:
        """Give an actor the next of its commands."""
        slot.command = slot.waiting.popleft()
        slot.number += 1
        self._exchange(slot)

    def _exchange(self, slot: SlotState) -> None:
        """Call an actor, with the command that it may not have yet."""
        slot.pending = slot.actor.exchange.remote(
            slot.number, slot.command, slot.acknowledged, EXCHANGE_S
        )

    def _receive(self, slot: SlotState, reference: Any) -> None:
        """Take what an actor answered, and call it again while its trial runs."""
        slot.pending = None
        try:
            answer = ray.get(reference)
        except ActorUnavailableError:  # the network, maybe
            self._call_again(slot)
        except RayActorError as fault:
            self._lose(slot, self._failure(slot, fault))
        except RayTaskError as fault:
            self._refuse(slot, fault)
        else:
            slot.broken_since = None
            if isinstance(answer, OpenedActor):
                slot.name = answer.name
                slot.node_kind = answer.node_kind
                self._last_slot_at = time.monotonic()
            else:
                self._receive_events(slot, answer)

    def _receive_events(self, slot: SlotState, events: Sequence[Any]) -> None:
        """Take the events of a slot's trials, and call its actor again where more will come."""
        slot.command = None
        phase = TrialPhase.RUNNING
        for event in events:
            slot.acknowledged = event.number
            self._news.append(event)
            if event.key == slot.key:
                phase = event.phase
            elif event.phase is TrialPhase.ENDED:
                slot.paused.discard(event.key)
                slot.stopping.discard(event.key)
        if slot.key is not None and phase is TrialPhase.ENDED:
            slot.key = None
        elif slot.key is not None and slot.is_pausing:
            slot.paused.add(slot.key)
            slot.key = None
        slot.is_pausing = False
        runs = slot.key is not None and phase is TrialPhase.RUNNING
        if slot.waiting:
            self._send_next(slot)
        elif runs or slot.stopping:
            self._exchange(slot)

    def _call_again(self, slot: SlotState) -> None:
        """Repeat the call of an actor to which the connection broke."""
        slot.broken_since = slot.broken_since or time.monotonic()
        time.sleep(RETRY_PAUSE_S)
        if slot.name is None:
            slot.pending = slot.actor.open.remote(*self._setup)
        else:
            self._exchange(slot)

    def _refuse(self, slot: SlotState, fault: RayTaskError) -> None:
        """Handle an actor that raised an error."""
        if slot.name is None:
            # It cannot open. It keeps its resources, so that no other actor tries it there.
            self._news.append(NodeWarning(last_line(fault)))
            return
        ray.kill(slot.actor)
        self._lose(slot, self._failure(slot, fault))

    def _give_up_unreachable(self) -> None:
        """Drop slots to which the connection has been broken for long."""
        now = time.monotonic()
        for slot in list(self._slots):
            if slot.broken_since is not None and now - slot.broken_since > RECONNECT_WITHIN_S:
                ray.kill(slot.actor)
                self._lose(slot, (FailureCause.NODE, LOST_REASONS[FailureCause.NODE]))

    def _failure(self, slot: SlotState, fault: Exception) -> tuple[FailureCause, str]:
        """Return why the trial of a slot that ended has no result."""
        host = (slot.name or ":").split(":")[0]
        # Ray ends the process that takes most of a node's memory. Were the trial never to blame for
        # that, it would run again for ever.
        if isinstance(fault, RayTaskError) or "low on memory" in str(fault):
            return FailureCause.PROCESS, f"its slot on {host} ended: {last_line(fault)[:300]}"
        hosts = {node["NodeManagerHostname"] for node in alive_nodes()}
        cause = FailureCause.SLOT if host in hosts else FailureCause.NODE
        return cause, LOST_REASONS[cause]

    def _lose(self, slot: SlotState, failure: tuple[FailureCause, str]) -> None:
        """Drop a slot, report its trials as failed, and ask for another slot soon."""
        self._slots.remove(slot)
        self._inspected_at = 0.0
        cause, reason = failure
        for key in sorted(slot.keys):
            self._news.append(Failed(key, cause, reason))


def alive_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def described(node: Mapping[str, Any], trials: int, report: NodeReport) -> Node:
    """Describe a node by what Ray knows of it and what it says of itself.

    Args:
        node: The node as Ray describes it.
        trials: How many trials fit on it.
        report: What it says of itself.
    """
    resources = node["Resources"]
    return Node(
        host=node["NodeManagerHostname"],
        cores=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        memory=resources.get("memory", 0.0) / BYTES_A_GIB,
        processor=report.processor,
        precision=report.precision,
        capacity=trials,
        problem=report.problem,
    )


def last_line(fault: BaseException) -> str:
    """Return what to say of what Ray raised: its texts begin with a traceback, or with ids."""
    lines = str(getattr(fault, "cause", None) or fault).strip().split("\n")
    return lines[-1].strip() or type(fault).__name__


def main(descriptor: int) -> None:
    """Answer (number, name, arguments) with (number, succeeded, result or message).

    It goes on until the socket closes.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides
    cluster = RayCluster()
    supervisor = Connection(descriptor)
    try:
        while True:
            number, name, arguments = supervisor.recv()
            try:
                result = getattr(cluster, name)(*arguments)
                answer = (number, True, result)
            except Exception as fault:  # whatever Ray raises
                message = " ".join(str(fault).split())[:600] or type(fault).__name__
                answer = (number, False, message)
            supervisor.send(answer)
    except (EOFError, OSError):  # it has ended, or was killed
        cluster.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]))
