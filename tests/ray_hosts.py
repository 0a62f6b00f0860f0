"""A Ray cluster of several hosts, each in namespaces of its own, and a study on it as a person types it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import mlflow
from cluster import MISSING, REASON, Host, hosts
from conftest import Command
from optuna.trial import FrozenTrial
from typed_study import PLAIN, SEARCH, SPACE, trials_of, wait_until

WHY = (
    REASON
    if MISSING
    else ""
    if find_spec("ray")
    else "the package ray is not installed: make cluster installs it"
)
WHY = WHY or ("Ray starts no Python in a path with a space" if " " in sys.executable else "")
BIN = Path(sys.executable).parent
PORT, SERVER_PORT = 6379, 5000
#: As the README has them: a node that is cut off is known in half a minute.
LIMITS = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000"}


class RayHosts:
    """Hosts of which the first is the head, has the tracking server, and types the commands."""

    def __init__(self, made: list[Host], digits: Path) -> None:
        self.hosts, self.head = made, made[0]
        self.uri = f"http://{self.head.address}:{SERVER_PORT}"
        self.digits = self.head.folder / "digits.npz"  # which the others do not have
        self.digits.write_bytes(digits.read_bytes())

    def serve(self) -> None:
        """Start the tracking server on the head."""
        line = [
            str(BIN / "mlflow"),
            "server",
            "--host",
            "0.0.0.0",
            "--port",
            str(SERVER_PORT),
            "--allowed-hosts",
            "*",
        ]
        self.head.start([*line, "--workers", "1"], MLFLOW_TRACKING_URI="")

    def await_server(self) -> None:
        """Wait until the tracking server answers."""
        ask = f"import urllib.request; urllib.request.urlopen('{self.uri}/health')"
        wait_until(
            lambda: self.head.run([sys.executable, "-c", ask]).code == 0,
            60,
            "the tracking server answers",
        )

    def join(self, host: Host, cores: int = 1, **environment: str) -> None:
        """Start Ray on a host: as the head on the first one."""
        where = [f"--address={self.head.address}:{PORT}"]
        if host is self.head:
            where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        size = [f"--num-cpus={cores}", "--object-store-memory=100000000"]
        line = [str(BIN / "ray"), "start", *where, f"--node-ip-address={host.address}", *size]
        done = host.run(line, RAY_USAGE_STATS_ENABLED="0", **LIMITS, **environment)
        assert done.code == 0, done.out + done.err

    def line(self, study: str, *words: str) -> list[str]:
        """A search on the cluster; later words win."""
        usual = [
            f"study={study}",
            f"data.path={self.digits}",
            "data.validation=100",
            "model=tiny",
            *PLAIN,
            SPACE,
        ]
        usual += [
            "training.epochs=3",
            "search.pruner=none",
            "search.engine=ray",
            "search.address=auto",
        ]
        return [sys.executable, SEARCH, *usual, *words]

    def search(self, study: str, *words: str, **environment: str) -> Command:
        """Start :meth:`line` on the head."""
        return self.head.start(
            self.line(study, *words), MLFLOW_TRACKING_URI=self.uri, **environment
        )

    def trials(self, study: str) -> list[FrozenTrial]:
        """All trials of a study, from the head's journal."""
        return trials_of(self.head.project, study)

    def runs(self, study: str) -> list[mlflow.entities.Run]:
        """All runs of a study, from the tracking server."""
        with self.head.network():
            client = mlflow.MlflowClient(self.uri)
            ids = [one.experiment_id for one in client.search_experiments()]
            return list(client.search_runs(ids, f"tags.study = '{study}'"))

    def state(self, what: str) -> str:
        """What Ray knows of all ``actors`` or ``jobs``; `ray list` tells the same, with the dashboard's packages."""
        ask = "import ray; from ray._private import state; ray.init('auto', log_to_driver=False, logging_level='ERROR'); "
        return self.head.run([sys.executable, "-c", f"{ask}print(state.{what}())"]).out

    def actors(self) -> list[str]:
        """States of the actors that are not dead."""
        return [
            state
            for state in re.findall(r"'State': '(\w+)'", self.state("actors"))
            if state != "DEAD"
        ]


@contextmanager
def ray_hosts(
    number: int, folder: Path, digits: Path, running: Sequence[int]
) -> Iterator[RayHosts]:
    """``number`` hosts, a tracking server, and Ray on the head and those hosts that ``running`` counts from 1."""
    with hosts(number, folder) as made:
        found = RayHosts(made, digits)
        found.serve()
        found.join(found.head, cores=0)
        with ThreadPoolExecutor() as pool:
            list(pool.map(found.join, (made[n - 1] for n in running)))
        found.await_server()
        yield found
