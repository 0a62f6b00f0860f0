"""The engine of a Ray cluster: every call goes to the process that speaks to Ray."""

import atexit
import os
import pickle
import platform
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from socket import create_connection, socketpair
from typing import Any

import psutil

from digit_study.config.engine_config import EngineConfig, Node
from digit_study.config.run_config import Config
from digit_study.data import sources
from digit_study.support.console import print_error, warn
from digit_study.support.errors import StudyError
from digit_study.support.formatting import listed
from digit_study.support.scratch import use_scratch
from digit_study.support.signals import deferred_signals
from digit_study.support.sqlite import SQLITE, sqlite_path, sqlite_uri
from digit_study.support.workspace import Workspace
from digit_study.tracking.session import Tracker
from digit_study.trial.events import LOST_REASONS, Decision, Event, Failed, FailureCause
from digit_study.trial.protocol import EngineContext, TrialRequest
from digit_study.trial.ray.messages import (
    ActorEvent,
    ActorSetup,
    Answer,
    News,
    NodeWarning,
    Requirements,
)

#: Seconds that a cluster has to answer whoever connects to it.
CONNECT_S = 20.0
#: Seconds after which, and from then on between, messages that a cluster is still being started.
NOTICE_S = 10.0
#: Seconds that a call may take beyond the time that it was given.
CALL_S = 60.0
#: Seconds that the process that speaks to Ray has to end.
BRIDGE_STOP_S = 15.0
#: Seconds that a Ray cluster's port has to answer. Ray itself tries for minutes.
PORT_S = 5.0
#: Packages that a node must have. Their versions are recorded, and named where they differ.
PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "mlflow",
    "hydra-core",
    "omegaconf",
    "pandas",
    "matplotlib",
    "seaborn",
    "scikit-learn",
    "scipy",
    "psutil",
    "filelock",
    "rich",
    "optuna",
)
#: What of this process's environment trials depend on. It may hold credentials, so that it is in no
#: argument that Ray shows.
SHARED_ENVIRONMENT = re.compile(r"(MLFLOW|DATABRICKS|AWS|AZURE|GOOGLE|TF|KERAS|XLA|CUDA_CACHE)_\w+")
#: Seconds without its head after which Ray ends a process that is connected.
HEAD_BACK_WITHIN_S = "8"
#: What a person may have missed when a cluster does not answer a new connection.
NO_NODE = (
    "is this machine a node of it (`ray start --address=…`)? If not, take ray://host:10001; else "
)
#: Ports of servers and databases whose URI does not name them.
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
#: A URI's scheme without its driver, host in brackets, host, and port.
SERVER = re.compile(r"(\w+)[^:]*://(?:.*@)?(?:\[([^\]]+)\]|([^:/?]+))(?::(\d+))?")
#: A Ray cluster's host and port.
ADDRESS = re.compile(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)")


class RayConnection:
    """The process that speaks to Ray, and the socket to it."""

    def __init__(self, address: str | None, workspace: Workspace) -> None:
        """Start the process.

        Args:
            address: Of the cluster.
            workspace: Where the process writes what Ray complains of.
        """
        self._address = address or "auto"
        self._calls = 0
        ours, theirs = socketpair()
        log = use_scratch(workspace) / f"ray-{theirs.fileno()}.log"
        self._log = log.open("w+b")
        # A cluster that it starts puts sockets into the folder of temporary files, and their paths
        # have at most 107 bytes.
        inherited = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
        source = str(Path(__file__).parents[3])
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "digit_study.trial.ray.ray_bridge", str(theirs.fileno())],
            env={
                **ray_settings(self._address),
                **inherited,
                "PYTHONPATH": os.pathsep.join(paths),
            },
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a Ctrl-C is the supervisor's, who ends the trials first
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        theirs.close()
        self._socket = Connection(ours.detach())
        atexit.register(self.close)

    def connect(self) -> None:
        """Let the process connect to the cluster; StudyError if there is none that answers."""
        try:
            self.call("connect", self._address, timeout=CONNECT_S)
        except StudyError:
            self.kill()  # else it may go on trying
            self.close()
            raise

    def call(self, name: str, *arguments: Any, timeout: float = CALL_S) -> Any:
        """Call a method of :class:`digit_study.trial.ray.ray_bridge.RayCluster`.

        Args:
            name: Of the method.
            arguments: Of the call.
            timeout: Seconds that it may take.

        Returns:
            What the method returns.

        Raises:
            StudyError: With what the method raises, or if the cluster is gone or does not answer.
        """
        self._calls += 1
        try:
            with (
                deferred_signals()
            ):  # a signal between two pieces of a message would leave half of it
                self._socket.send((self._calls, name, arguments))
            succeeded, answer = self._await_answer(name, timeout)
        except (EOFError, OSError):
            self._process.wait()
            raise StudyError(
                f"{self._description} is gone ({self._last_complaint()}): start it again; the same "
                "command then goes on"
            ) from None
        if not succeeded:
            raise StudyError(f"{self._description}: {answer}")
        return answer

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and with it the cluster if it started that."""
        atexit.unregister(self.close)
        self._socket.close()
        try:
            self._process.wait(BRIDGE_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _await_answer(self, name: str, timeout: float) -> tuple[bool, Any]:
        """Return whether the last call succeeded, and its result or message."""
        began = time.monotonic()
        deadline = began + timeout
        next_notice = began + NOTICE_S
        while True:
            while not self._socket.poll(0.2):
                is_starting = name == "connect" and self._is_starting()
                if is_starting and time.monotonic() > next_notice:
                    seconds = time.monotonic() - began
                    print_error(f"Ray is starting on this machine ({seconds:.0f} s)", "yellow")
                    next_notice += NOTICE_S
                if time.monotonic() > deadline and not is_starting:
                    remedy = "start it, or wait for it"
                    if name == "connect":
                        remedy = NO_NODE + remedy
                    raise StudyError(
                        f"{self._description} does not answer within {timeout:.0f} s "
                        f"({self._last_complaint()}): {remedy}"
                    )
            with deferred_signals():
                number, succeeded, answer = self._socket.recv()
            if number == self._calls:  # the answer to a call that a signal cut short comes before
                return succeeded, answer

    def _is_starting(self) -> bool:
        """Return whether a cluster of this command's own starts: its processes live.

        How long that takes says nothing about it: a busy or cold machine needs minutes.
        """
        if self._address != "local":
            return False
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self._process.pid).children()
            return any(child.status() != psutil.STATUS_ZOMBIE for child in children)
        return False

    @property
    def _description(self) -> str:
        return f"the Ray cluster at address={self._address}"

    def _last_complaint(self) -> str:
        """Return what Ray wrote last, without time and place in its source."""
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            return "Ray says nothing"
        return re.sub(r"^\[.*?\] \S+: ", "", lines[-1])[:300]


def ray_settings(address: str) -> dict[str, str]:
    """Return settings of the process that speaks to Ray, which hold where the user set none.

    There is no telemetry, and a head that is gone is known in seconds, not in a minute. Ray's token
    is sent where there is a token, which Ray itself does for ``auto`` alone. A cluster of this
    command has a token of its own: else Ray makes one for all clusters that follow.
    """
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": HEAD_BACK_WITHIN_S,
    }
    if "RAY_AUTH_MODE" in os.environ:
        return chosen
    if address == "local":
        return {**chosen, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    has_file = (Path.home() / ".ray" / "auth_token").is_file()
    if has_file or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        return {**chosen, "RAY_AUTH_MODE": "token"}
    return chosen


@cache
def connect(address: str | None, workspace: Workspace) -> RayConnection:
    """Return this command's connection to a cluster, which its plan and its engine share.

    Args:
        address: Of the cluster, ``local`` for a cluster of this command's own.
        workspace: Where the connection writes what Ray complains of.

    Raises:
        StudyError: If there is none that answers.
    """
    if find_spec("ray") is None:
        raise StudyError(
            "engine=ray needs the package ray, which is not installed: pip install -e '.[ray]'"
        )
    _require_port(address)
    if " " in sys.executable and not str(address).startswith("ray:"):
        # Ray splits the line by which it starts Python
        raise StudyError(
            "engine=ray needs an environment whose path has no space, got "
            f"'{sys.executable}': make one elsewhere, python -m venv ~/ray && "
            "~/ray/bin/pip install -e '.[ray]'"
        )
    connection = RayConnection(address, workspace)
    connection.connect()
    return connection


def _require_port(address: str | None) -> None:
    """Raise StudyError if nobody answers at the port of an address that names a host."""
    found = ADDRESS.fullmatch(address or "")
    if found is None:
        return
    try:
        create_connection((found[1], int(found[2])), PORT_S).close()
    except OSError as fault:
        raise StudyError(
            f"`address` must be of a Ray cluster that answers, got '{address}' ({fault}): start it "
            "there with `ray start --head`, or take address=local"
        ) from None


def requirements_for(uri: str) -> Requirements:
    """Return what a node must have so that trials there can write to the tracking store ``uri``."""
    versions = {name: version(name) for name in PACKAGES}
    if uri.startswith(("sqlite:", "file:")):
        return Requirements(versions, only_host=platform.node())
    found = SERVER.match(uri)
    if found is None or found[1] not in PORTS:
        return Requirements(versions)
    return Requirements(versions, (found[2] or found[3], int(found[4] or PORTS[found[1]])))


def available_nodes(options: EngineConfig, uri: str, workspace: Workspace) -> list[Node]:
    """Return the nodes of a cluster.

    Args:
        options: Which cluster, and what a trial takes of a node.
        uri: URI of the tracking store.
        workspace: Where the connection writes what Ray complains of.

    Raises:
        StudyError: If a node that a trial fits on could run none, or if they are too few.
    """
    connection = connect(options.address, workspace)
    nodes: list[Node] = connection.call("survey", requirements_for(uri), options.resources)
    problems = [str(node.problem) for node in nodes if node.problem]
    if problems:
        raise StudyError("\n".join(dict.fromkeys(problems)))
    _require_capacity(nodes, options)
    return nodes


def _require_capacity(nodes: Sequence[Node], options: EngineConfig) -> None:
    """Raise StudyError unless the trials that are asked for fit on the nodes."""
    trials = sum(node.capacity for node in nodes)
    asked = listed(options.resources)
    if trials == 0:
        offered = "; ".join(
            f"{node.host} {node.cores:g}, {node.gpus:g} and {node.memory:.1f} GiB" for node in nodes
        )
        raise StudyError(
            f"a trial asks for {asked}, which no node has: cores, GPUs and memory are "
            f"{offered or 'none'}: ask for less with resources=, or start nodes that have it"
        )
    if options.workers is not None and options.workers > trials:
        raise StudyError(
            f"`workers` is at most the {trials} trials of {asked} that fit on "
            f"{len(nodes)} nodes, got {options.workers}: lower it, start more nodes, or leave it "
            "null for as many as fit at any time"
        )


class RayEngine:
    """An :class:`~digit_study.trial.protocol.Engine` on a cluster, with an actor for every slot."""

    def __init__(
        self,
        context: EngineContext,
        actor_class: str = "digit_study.trial.ray.ray_actor:TrialActor",
    ) -> None:
        """Ask the cluster for slots.

        Args:
            context: Limits, and what trials need.
            actor_class: Name of the class of the actors, as ``module:class``.

        Raises:
            StudyError: If the digits have changed since they were resolved.
        """
        #: URI of the tracking store as nodes find it.
        self._uri = absolute_uri(context.tracking_uri)
        self._tracker = Tracker(context.tracking_uri, context.workspace)
        #: Number of slots that could run a trial now.
        self.free = 0
        #: News of which no event was made yet.
        self._news: list[News] = []
        self._connection = connect(context.options.address, context.workspace)
        environment = {
            name: value for name, value in os.environ.items() if SHARED_ENVIRONMENT.fullmatch(name)
        }
        environment["MLFLOW_TRACKING_URI"] = self._uri
        images, labels = sources.read_part(context.data, "train", context.digits_folder)
        sha256 = sources.digest(images[..., 0], labels)
        # trials look for the digits by the digest that was planned with
        sources.require_digest(context.data, sources.dataset_name(context.data), sha256)
        setup = ActorSetup(
            requirements_for(self._uri),
            environment,
            pickle.dumps(replace(context, slots=1, tracking_uri=self._uri)),
            sha256,
        )
        resources = context.options.resources
        self._connection.call("open", context.slots, resources, setup, images, labels, actor_class)

    def submit(self, key: int, config: Config, run_id: str) -> str | None:
        """Start a trial, see :meth:`digit_study.trial.protocol.Engine.submit`."""
        if config.tracking.uri is not None:
            config = replace(config, tracking=replace(config.tracking, uri=self._uri))
        command = pickle.dumps(TrialRequest(key, config, run_id))
        recipe = replace(config.training, seed=0)
        affinities = (
            f"seed {config.training.seed}",
            f"configuration {config.model} {recipe}",
        )
        name: str | None = self._connection.call("submit", key, command, affinities)
        self.free -= 1
        if name is None:  # the last free slot has just gone
            self._news.append(Failed(key, FailureCause.SLOT, LOST_REASONS[FailureCause.SLOT]))
        return name

    def answer(self, key: int, decision: Decision) -> None:
        """Answer an epoch, see :meth:`digit_study.trial.protocol.Engine.answer`."""
        command = pickle.dumps(Answer(key, decision))
        self.free = self._connection.call("answer", key, decision, command)

    def can_resume(self, key: int) -> bool:
        """Return whether the slot of a paused trial is free: it goes on where it waits."""
        resumable: bool = self._connection.call("can_resume", key)
        return resumable

    def events(self, timeout: float = 0.5) -> Iterator[Event]:
        """Yield what has happened, see :meth:`digit_study.trial.protocol.Engine.events`."""
        news, self.free = self._connection.call("events", timeout)
        news = [*self._news, *news]
        self._news = []
        disk_fault: OSError | None = None
        for item in news:
            match item:
                case NodeWarning(text=text):
                    warn(f"{text}: no trial runs there")
                case Failed():
                    yield item
                case ActorEvent():
                    try:
                        event = self._unpacked(item)
                    except OSError as fault:
                        self._news.append(item)
                        disk_fault = fault
                        continue
                    yield event
        if disk_fault is not None:
            raise disk_fault

    def stop(self) -> None:
        """End all trials, see :meth:`digit_study.trial.protocol.Engine.stop`."""
        connect.cache_clear()
        try:
            self._connection.call("stop", timeout=BRIDGE_STOP_S)
        except StudyError:  # the cluster is gone, and its trials with it
            self._connection.kill()
        self._connection.close()

    def _unpacked(self, item: ActorEvent) -> Event:
        """Return the event of a trial once this machine has what the run left."""
        event: Event
        event, packed = pickle.loads(item.content)
        if packed is not None:
            self._tracker.unpack(packed)
        return event


def absolute_uri(uri: str) -> str:
    """Return a store's URI as it is found from another working directory."""
    if not uri.startswith(SQLITE):
        return uri
    return sqlite_uri(sqlite_path(uri).absolute())
