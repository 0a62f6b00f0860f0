"""Several machines on one study in PostgreSQL and an MLflow server, all really started, while hosts and links fail."""

from __future__ import annotations

import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
from cluster import MISSING, REASON, Host, hosts
from conftest import Command
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy import NullPool
from typed_study import SEARCH, TypedStudy, assert_whole, wait_until

from digit_study.study.trial_attributes import EXCESS

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/lib/postgresql"))
NO_DATABASE = not (BINARIES / "initdb").exists() or find_spec("psycopg") is None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.skipif(bool(MISSING), reason=REASON),
    pytest.mark.skipif(
        NO_DATABASE, reason="PostgreSQL's server (Debian: postgresql) or psycopg is not installed"
    ),
]
PASSWORD, TRIALS = "hush-hush", 6
#: PostgreSQL does not run as root.
AS_POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
SETTINGS = "-c listen_addresses=* -c unix_socket_directories= -c fsync=off"


#: Locks a study as Optuna does while it makes a trial, and keeps it.
HOLD = """
import sys, time
sys.path.insert(0, "src")
from sqlalchemy import text
from digit_study.study._optuna import Database
with Database(sys.argv[1], 0.0).engine.connect() as connection:
    connection.execute(text("SELECT * FROM studies WHERE study_name = :name FOR UPDATE"), {"name": sys.argv[2]}).all()
    print("held", flush=True)
    time.sleep(1000)
"""


class Site:
    """A head with both servers, and the machines that search."""

    def __init__(self, made: list[Host], store: Path, digits: Path) -> None:
        self.head, *self.machines = made
        for host in self.machines:
            shutil.copy(digits, host.folder / "small.npz")
        self.data = self.head.folder / "postgresql"
        self.data.mkdir()
        shutil.chown(self.data, "postgres", "postgres")
        (self.head.folder / "password").write_text(PASSWORD)
        words = f"-A scram-sha-256 -U me --pwfile={self.head.folder}/password --no-sync --locale=C -E UTF8"
        self.postgres("initdb", *words.split())
        with (self.data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all 10.0.0.0/24 scram-sha-256\n")
        self.start_postgresql()
        shutil.copy(store, self.head.folder / "mlflow.db")
        self.start_mlflow()
        self.uri = f"http://{self.head.address}:5000"
        self.storage = f"postgresql://me:{PASSWORD}@{self.head.address}/postgres"

    @cached_property
    def database(self) -> RDBStorage:
        """For this process to look at; no connection is kept, which a restart would break."""
        return RDBStorage(self.storage, {"poolclass": NullPool})

    def postgres(self, program: str, *words: str) -> None:
        done = self.head.run(
            [*AS_POSTGRES, str(BINARIES / program), "-D", str(self.data), *words], cwd=self.data
        )
        assert done.code == 0, done

    def start_postgresql(self) -> None:
        self.postgres("pg_ctl", "-w", "-l", str(self.data / "log"), "-o", SETTINGS, "start")

    def stop_postgresql(self) -> None:
        """As a crash does: connections are cut off, and what was not committed is gone."""
        self.postgres("pg_ctl", "-w", "-m", "immediate", "stop")

    def start_mlflow(self) -> None:
        folder = self.head.folder
        places = [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            f"{folder}/artifacts",
        ]
        reached = ["--host", "0.0.0.0", "--port", "5000", "--allowed-hosts", "*", "--workers", "1"]
        line = [sys.executable, "-m", "mlflow", "server", *places, *reached]
        self.mlflow = self.head.start(line, cwd=folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        wait_until(lambda: self.answers(self.head), 120, "MLflow answers")

    def stop_mlflow(self) -> None:
        self.head.run(["pkill", "-KILL", "-f", "mlflow|uvicorn"], cwd=self.head.folder)
        self.mlflow.finish(20)

    def answers(self, host: Host) -> bool:
        """Whether MLflow answers that host."""
        try:
            with host.network():
                return bool(
                    urllib.request.urlopen(
                        f"http://{self.head.address}:5000/health", timeout=2
                    ).status
                    == 200
                )
        except OSError:
            return False


class Shared(TypedStudy):
    """A study that several machines search."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name, self.uri, self.small = site, name, site.uri, Path("../small.npz")

    def begin(self, host: Host, *words: str) -> Command:
        """The same command on every host."""
        usual = [
            "search.workers=1",
            f"search.trials={TRIALS}",
            "training.epochs=30",
            f"tracking.uri={self.uri}",
        ]
        line = self.line(
            *usual,
            f"search.storage={self.site.storage}",
            f"data.path={host.folder}/small.npz",
            *words,
        )
        return host.start([sys.executable, SEARCH, *line])

    def trials(self) -> list[FrozenTrial]:
        try:
            with self.site.head.network():
                return optuna.load_study(
                    study_name=self.name, storage=self.site.database
                ).get_trials()
        except KeyError:
            return []

    def runs(self) -> list[Any]:
        with self.site.head.network():
            return super().runs()

    def in_mid_trial(self, *machines: Host) -> bool:
        """Whether each has a trial that has finished an epoch."""
        time.sleep(0.2)  # to ask takes time from those who are asked about
        running = [
            one for one in self.trials() if one.state.name == "RUNNING" and one.intermediate_values
        ]
        names = {one.user_attrs["supervisor"].split(":")[0] for one in running}
        return {host.name for host in machines} <= names

    def results_of(self, *machines: Host) -> dict[int, float | None]:
        complete = [one for one in self.trials() if one.state.name == "COMPLETE"]
        names = {host.name for host in machines}
        return {
            one.number: one.value
            for one in complete
            if one.user_attrs["supervisor"].split(":")[0] in names
        }

    def assert_whole(self, total: int = TRIALS) -> None:
        assert_whole(self, total)
        values = {run.info.run_id: run.data.metrics for run in self.runs()}
        complete = [one for one in self.trials() if one.state.name == "COMPLETE"]
        assert all(
            values[one.user_attrs["run_id"]]["val_accuracy"] == one.value for one in complete
        )


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, migrated: Path, small_npz: Path
) -> Iterator[Site]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with hosts(6, tmp_path_factory.mktemp("cluster")) as made:
        yield Site(made, migrated, small_npz)


@pytest.fixture
def shared(site: Site, request: pytest.FixtureRequest) -> Shared:
    return Shared(site, request.node.name[-60:].strip("[]").replace("[", "-"))


def told(command: Command, code: int) -> str:
    """What a command said, which ended with ``code``."""
    done = command.finish(400)  # on two cores each host waits for the others
    assert done.code == code, done
    assert "Traceback" not in done.err and PASSWORD not in done.out + done.err, done
    return done.out + done.err


def test_hosts_that_die_or_are_cut_off_are_replaced(shared: Shared) -> None:
    killed, cut, away, left, done = machines = shared.site.machines
    # long enough that none has ended its trial, and begun another, when the hosts die
    words, patience = ("search.trials=7", "training.epochs=400"), {cut: "search.outage_timeout=0.3"}
    commands = {
        host: shared.begin(host, *words, patience.get(host, "search.outage_timeout=10"))
        for host in machines
    }
    wait_until(lambda: shared.in_mid_trial(*machines), 180, "all are in mid-trial")
    # the server would keep for hours what one had locked whose link was cut
    cut.start([sys.executable, "-c", HOLD, shared.site.storage, shared.name]).wait_for("held")
    cut.cut()
    away.cut()
    killed.kill_all()
    # a result that Optuna has is in MLflow too, even if the host dies at this moment
    wait_until(lambda: shared.results_of(done), 120, "a result")
    done.kill_all()
    results = shared.results_of(*machines)
    told(commands[left], 0)
    shared.assert_whole(7)
    assert results.items() <= shared.results_of(*machines).items()
    trials = shared.trials()
    failed = [one.user_attrs["reason"] for one in trials if one.state.name == "FAIL"]
    taken_over = [
        reason for reason in failed if reason != EXCESS
    ]  # two may have asked for the last one
    assert len(taken_over) in (3, 4) and set(taken_over) == {"its supervisor ended before it"}
    message = told(commands[cut], 1)
    assert "search.storage" in message and "the same command goes on" in message
    away.restore()
    assert "the database answers again" in told(commands[away], 0)
    # the others come back, and find everything done
    cut.restore()
    killed.boot()
    wait_until(
        lambda: shared.site.answers(killed) and shared.site.answers(cut), 60, "their links are up"
    )
    for command in [shared.begin(host, *words) for host in (killed, cut)]:
        told(command, 0)
    assert len(shared.trials()) == len(trials)
    shared.assert_whole(7)


def stop_postgresql(shared: Shared) -> None:
    shared.site.stop_postgresql()
    time.sleep(5)
    shared.site.start_postgresql()


def stop_mlflow(shared: Shared) -> None:
    running = {one.number for one in shared.trials() if one.state.name == "RUNNING"}
    shared.site.stop_mlflow()
    deadline = (
        time.monotonic() + 20
    )  # by then a machine has ended a trial, and wants to create the next one's run
    while (
        running & {one.number for one in shared.trials() if one.state.name == "RUNNING"}
        and time.monotonic() < deadline
    ):
        time.sleep(0.5)
    time.sleep(3)
    shared.site.start_mlflow()


def cut_a_link(shared: Shared) -> None:
    shared.site.machines[0].cut()
    time.sleep(30)
    shared.site.machines[0].restore()


@pytest.mark.parametrize("fault", [stop_postgresql, stop_mlflow, cut_a_link])
def test_a_fault_that_ends_costs_no_trial(fault: Any, shared: Shared) -> None:
    one, two, *_ = shared.site.machines
    commands = [shared.begin(host) for host in (one, two)]
    wait_until(lambda: shared.in_mid_trial(one, two), 120, "both are in mid-trial")
    begun = {trial.number for trial in shared.trials() if trial.intermediate_values}
    fault(shared)
    for command in commands:
        told(command, 0)
    shared.assert_whole()
    # what could not begin came again; what had begun went on
    failed = [
        one
        for one in shared.trials()
        if one.state.name == "FAIL" and one.user_attrs["reason"] != EXCESS
    ]
    assert not begun & {trial.number for trial in failed}
    assert all(trial.user_attrs["reason"].startswith("no fault of the trial") for trial in failed)
    assert not any(trial.intermediate_values for trial in failed)
