# ruff: noqa: D102  the calls of an engine are described in protocol.Engine
"""The engine of a Ray cluster, as a supervisor has it: every call goes to the process that speaks to Ray."""

import atexit
import os
import pickle
import platform
import re
import secrets
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from socket import create_connection, socketpair
from tempfile import TemporaryDirectory
from typing import Any

from digit_study.config import engine
from digit_study.config.engine import EngineConfig, Node
from digit_study.config.run import Config
from digit_study.data import sources
from digit_study.support.console import warn
from digit_study.support.messages import StudyError, listed
from digit_study.support.signals import deferred_signals
from digit_study.tracking import database as stores
from digit_study.tracking.spool import SpooledRun
from digit_study.trial.protocol import LOST_NODE, LOST_SLOT, EngineContext, Event
from digit_study.trial.ray.ray_actor import Needs

#: Seconds that a cluster has to answer whom connects to it, and that a call takes beyond what it was given.
CONNECT_S, CALL_S, STOP_S = 20.0, 60.0, 15.0
#: Packages that a node must have; of other versions they are recorded, and told where they are compared.
PACKAGES = (
    "tensorflow", "keras", "numpy", "mlflow", "hydra-core", "omegaconf", "pandas", "matplotlib", "seaborn",
    "scikit-learn", "scipy", "statsmodels", "psutil", "filelock", "rich", "optuna",
)  # fmt: skip
#: What of this process's environment trials are run by; with credentials in it, it is in no argument that shows.
HANDED = re.compile(r"(MLFLOW|DATABRICKS|AWS|AZURE|GOOGLE|TF|KERAS|XLA|CUDA_CACHE)_\w+")
#: Seconds without its head after which Ray ends a process that is connected.
HEAD_BACK_WITHIN_S = "8"
#: What Ray waits for in silence.
NO_NODE = (
    "is this machine a node of it (`ray start --address=…`)? If not, take ray://host:10001; else "
)
#: Where servers and databases listen whose URI does not say it.
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Bridge:
    """The process that speaks to Ray, and the socket to it."""

    def __init__(self, address: str | None) -> None:
        self.address, self.number = address or "auto", 0
        ours, theirs = socketpair()
        source = str(Path(__file__).parents[3])
        paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
        self.complaints = (stores.use_scratch() / f"ray-{theirs.fileno()}.log").open("w+b")
        # a cluster that it starts has sockets in the folder of temporary files, and paths of at most 107 bytes
        inherited = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
        # of a session of its own: a Ctrl-C is the supervisor's, who ends the trials first
        self.process = subprocess.Popen(
            [sys.executable, "-m", "digit_study.trial.ray.ray_bridge", str(theirs.fileno())],
            env={**settings(self.address), **inherited, "PYTHONPATH": paths},
            pass_fds=[theirs.fileno()], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self.complaints, stderr=self.complaints,
        )  # fmt: skip
        theirs.close()
        self.socket = Connection(ours.detach())
        atexit.register(self.close)

    def call(self, name: str, *arguments: Any, timeout: float = CALL_S) -> Any:
        """What a call of :class:`digit_study.trial.ray.ray_bridge.Cluster` returns; StudyError with what it raises."""
        self.number += 1
        try:
            with deferred_signals():  # one between two pieces of a message would leave half of it
                self.socket.send((self.number, name, arguments))
            deadline, number = time.monotonic() + timeout, 0
            while number != self.number:  # of a call that a signal cut short the answer comes first
                while not self.socket.poll(0.2):
                    if time.monotonic() > deadline:
                        wrong = f"{self._named()} does not answer within {timeout:.0f} s ({self._said()})"
                        raise StudyError(
                            f"{wrong}: {'' if name != 'connect' else NO_NODE}start it, or wait for it"
                        )
                with deferred_signals():
                    number, is_well, answer = self.socket.recv()
        except (EOFError, OSError):
            self.process.wait()
            gone = f"{self._named()} is gone ({self._said()})"
            raise StudyError(f"{gone}: start it again; the same command then goes on") from None
        if not is_well:
            raise StudyError(f"{self._named()}: {answer}")
        return answer

    def close(self) -> None:
        """End it, and with it the cluster if it started that."""
        atexit.unregister(self.close)
        self.socket.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.complaints.close()

    def _named(self) -> str:
        return f"the Ray cluster at address={self.address}"

    def _said(self) -> str:
        """What Ray wrote last, without time and place in its source."""
        self.complaints.seek(0)
        lines = [
            line
            for line in self.complaints.read().decode(errors="replace").splitlines()
            if line.strip()
        ]
        return re.sub(r"^\[.*?\] \S+: ", "", lines[-1])[:300] if lines else "Ray says nothing"


def settings(address: str) -> dict[str, str]:
    """Settings of the process that speaks to Ray, for what the user did not set: telemetry, timeout, authentication.

    A head that is gone is known in seconds, not in a minute. Ray's token is sent where there is one, which Ray itself
    does for ``auto`` alone; a cluster of this command's own has its own, else Ray makes one for all that follow.
    """
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": HEAD_BACK_WITHIN_S,
    }
    if "RAY_AUTH_MODE" in os.environ:
        return chosen
    if address == "local":
        return {**chosen, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    is_there = (Path.home() / ".ray" / "auth_token").is_file() or {
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    } & {*os.environ}
    return {**chosen, "RAY_AUTH_MODE": "token"} if is_there else chosen


@cache
def connect(address: str | None) -> Bridge:
    """The connection of this command to a cluster; raises StudyError if there is none that answers."""
    if find_spec("ray") is None:
        raise StudyError(
            "engine=ray needs the package ray, which is not installed: pip install -e '.[ray]'"
        )
    if (place := re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", address or "")) is not None:
        try:  # Ray itself tries for minutes
            create_connection((place[1], int(place[2])), 5.0).close()
        except OSError as fault:
            wrong = f"`address` must be of a Ray cluster that answers, got '{address}' ({fault})"
            raise StudyError(
                f"{wrong}: start it there with `ray start --head`, or take address=local"
            ) from None
    if " " in sys.executable and not str(address).startswith(
        "ray:"
    ):  # Ray splits the line by which it starts Python
        wrong = f"engine=ray needs an environment whose path has no space, got '{sys.executable}'"
        raise StudyError(
            f"{wrong}: make one elsewhere, python -m venv ~/ray && ~/ray/bin/pip install -e '.[ray]'"
        )
    bridge = Bridge(address)
    try:
        bridge.call("connect", bridge.address, timeout=CONNECT_S)
    except StudyError:
        bridge.process.kill()  # it may try on
        bridge.close()
        raise
    return bridge


def needs(uri: str) -> Needs:
    """What a node must have so that trials which write to the tracking store ``uri`` can run there."""
    server = re.match(r"(\w+)[^:]*://(?:.*@)?(?:\[([^\]]+)\]|([^:/?]+))(?::(\d+))?", uri)
    is_server = server is not None and server[1] in PORTS
    where = (
        (server[2] or server[3], int(server[4] or PORTS[server[1]]))
        if server and is_server
        else None
    )
    only_host = platform.node() if uri.startswith(("sqlite:", "file:")) else None
    return Needs({name: version(name) for name in PACKAGES}, where, only_host)


def offer(place: EngineConfig, uri: str) -> list[Node]:
    """The nodes of a cluster; raises StudyError if one could run nothing, or they are too few for ``place``."""
    resources, nodes = place.resources, []
    for one in connect(place.address).call("survey", needs(uri), resources):
        has, room = one["resources"], engine.fitting(one["resources"], resources)
        given = has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0) / 2**30
        told = one.get("processor", "?"), one.get("precision", "float32")
        nodes.append(Node(one["host"], *given, *told, room, one.get("problem")))
    if problems := [str(node.problem) for node in nodes if node.problem]:
        raise StudyError("\n".join(dict.fromkeys(problems)))
    room, of = sum(node.room for node in nodes), listed(resources)
    if room == 0:
        there = "; ".join(
            f"{one.host} {one.cores:g}, {one.gpus:g} and {one.memory:.1f} GiB" for one in nodes
        )
        wrong = f"a trial asks for {of}, which no node has: cores, GPUs and memory are {there or 'none'}"
        raise StudyError(f"{wrong}: ask for less with resources=, or start nodes that have it")
    if place.workers is not None and place.workers > room:
        wrong = f"`workers` is at most the {room} trials of {of} that fit on {len(nodes)} nodes, got {place.workers}"
        raise StudyError(
            f"{wrong}: lower it, start more nodes, or leave it null for as many as fit at any time"
        )
    return nodes


class RayEngine:
    """An :class:`Engine` on a cluster; ``kind`` is the class of its actors, one for every slot."""

    def __init__(
        self, context: EngineContext, kind: str = "digit_study.trial.ray.ray_actor:Slot"
    ) -> None:
        self.store = context.uri or stores.tracking_uri(None)
        uri = absolute(self.store)
        self.bridge, self.uri, self.free = connect(context.place.address), uri, 0
        self.untold = list[tuple[str, Any, Any]]()  # news that no event was made of yet
        environment = {name: value for name, value in os.environ.items() if HANDED.fullmatch(name)}
        environment["MLFLOW_TRACKING_URI"] = uri
        images, labels = sources.read_part(context.data, "train")
        here = pickle.dumps(EngineContext(1, context.timeout, context.memory, data=context.data))
        what = needs(uri), environment, here, sources.digest(images[..., 0], labels), images, labels
        self.bridge.call("open", context.slots, context.place.resources, what, kind)

    def submit(self, key: int, config: Config, run_id: str) -> str | None:
        if config.tracking.uri is not None:
            config = replace(config, tracking=replace(config.tracking, uri=self.uri))
        command = pickle.dumps(("submit", (key, config, run_id)))
        recipe = replace(config.training, seed=0)
        alike = f"seed {config.training.seed}", f"configuration {config.model} {recipe}"
        name: str | None = self.bridge.call("submit", key, command, alike)
        self.free -= 1
        if name is None:  # the last free slot has just gone
            self.untold.append(("lost", key, "slot"))
        return name

    def answer(self, key: int, go_on: bool) -> None:
        self.bridge.call("answer", key, pickle.dumps(("answer", (key, go_on))))

    def events(self, timeout: float = 0.5) -> Iterator[Event]:
        news, self.free = self.bridge.call("events", timeout)
        news, self.untold = [*self.untold, *news], []
        for what, about, content in news:
            if what == "warning":
                warn(f"{about}: no trial runs there")
            elif what == "lost":
                yield Event(
                    about, "died", {"node": LOST_NODE, "slot": LOST_SLOT}.get(content, content)
                )
            else:
                kind, told, unsent = pickle.loads(content)
                try:
                    if unsent is not None:
                        keep_here(self.store, unsent)
                except OSError:  # this disk is full too: the result waits here
                    self.untold.append((what, about, content))
                    continue
                yield Event(about, kind, told)

    def stop(self) -> None:
        connect.cache_clear()
        try:
            self.bridge.call("stop", timeout=STOP_S)
        except StudyError:  # the cluster is gone, and its trials with it
            self.bridge.process.kill()
        self.bridge.close()


def absolute(uri: str) -> str:
    """A store's URI as it is found from another working directory."""
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{Path(path).absolute()}"


def keep_here(uri: str, unsent: bytes) -> None:
    """Put what a run on a node did not tell the store at ``uri`` into the outbox of this machine."""
    with TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(unsent)) as archive:
            archive.extractall(folder, filter="data")
        for one in Path(folder).iterdir():
            SpooledRun(one.name).merge(uri, SpooledRun(one.name, spool=Path(folder)))
