"""The hosts that other tests are about: each on its own, linked, and gone in the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cluster import MISSING, REASON, Host, hosts
from conftest import ROOT
from typed_study import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(MISSING), reason=REASON)]
#: Answers every connection with the name of its host.
SERVER = """
import socket
server = socket.create_server(("", 80))
print("listening", flush=True)
while True:
    with server.accept()[0] as connection:
        connection.send(socket.gethostname().encode())
"""
HELD = """
import signal, sys, time, pathlib
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
sys.path[:0] = ["tests", "src"]
from cluster import hosts
with hosts(2, pathlib.Path(sys.argv[1])) as made:
    made[0].start(["setsid", "sleep", "100"])
    print(*(pid for host in made for pid in (host.machine.holder.pid, host.machine.init)), flush=True)
    if sys.argv[2] == "fails":
        raise RuntimeError
    time.sleep(100)
"""


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Host]]:
    with hosts(3, tmp_path) as made:
        yield made


def asked(one: Host, address: str, seconds: float = 1.0) -> str:
    """What a server answers to a host, or why it does not."""
    try:
        with one.network(), socket.create_connection((address, 80), seconds) as connection:
            return connection.recv(100).decode()
    except OSError as fault:
        return type(fault).__name__


def serve(*those: Host) -> None:
    for one in those:
        one.start([sys.executable, "-c", SERVER]).wait_for("listening")


def test_hosts_have_nothing_in_common_but_the_link(three: list[Host]) -> None:
    for n, host in enumerate(three, start=1):
        (host.folder / "mine").write_text(f"of {host.name}\n")
        seen = host.run(
            ["sh", "-c", "hostname; hostname -i; cat mine; ls -m ..; cd /proc; ls -dm [0-9]*"],
            host.folder,
        )
        name, address, mine, beside, pids = seen.out.splitlines()
        assert (name, address, mine, beside) == (
            host.name,
            f"10.0.0.{n}",
            f"of {host.name}",
            host.name,
        )
        assert pids.startswith("1, ") and pids.count(",") < 5
        told = host.run(
            ["sh", "-c", 'ls src/digit_study/study; touch "$0/new" /usr/new', sys.prefix]
        )
        assert "search.py" in told.out and told.err.count("Read-only file system") == 2
    serve(*three)
    assert [asked(one, f"10.0.0.{n}") for one in three for n in (1, 2, 3)] == [
        "host1",
        "host2",
        "host3",
    ] * 3
    assert [asked(one, "127.0.0.1") for one in three] == ["host1", "host2", "host3"]
    assert "default" not in three[0].run(["ip", "route"]).out


def test_a_link_that_is_cut_loses_everything_in_silence_until_it_is_restored(
    three: list[Host],
) -> None:
    one, two, third = three
    serve(one, two)
    for cut in (one, two):
        cut.cut()
        assert asked(two, one.address) == asked(one, two.address) == "TimeoutError"
        assert asked(one, "127.0.0.1") == "host1"
        reached = {host.name: asked(third, host.address) for host in (one, two)}
        assert [name for name, answer in reached.items() if answer != name] == [cut.name]
        cut.restore()
        wait_until(lambda: asked(two, one.address) == "host1", 5, "they meet again")


def test_a_host_that_is_killed_takes_all_its_processes_along_and_boots_with_its_files(
    three: list[Host],
) -> None:
    one, two, _ = three
    serve(one, two)
    command = one.start(
        ["sh", "-c", "setsid sleep 100 & echo begun > /tmp/lost; echo begun > kept; exec sleep 100"]
    )
    kept = one.project / "kept"
    home = namespace_of(one.machine.init)
    wait_until(
        lambda: [name_of(pid) for pid in pids_in(home)].count("sleep") == 3,
        5,
        "PID 1 and both have begun",
    )
    one.kill_all()
    assert not pids_in(home)
    assert command.finish(5).code == -signal.SIGKILL
    assert asked(two, one.address) != "host1" and asked(two, two.address) == "host2"
    one.boot()
    assert kept.read_text() == "begun\n" and one.run(["cat", "/tmp/lost"]).code != 0
    serve(one)
    assert asked(two, one.address) == "host1"


def name_of(pid: int) -> str:
    """Name of a process; empty if it has ended."""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else process.name()
    except psutil.NoSuchProcess:
        return ""


def pids_in(namespace: str | None) -> list[int]:
    return [pid for pid in psutil.pids() if name_of(pid) and namespace_of(pid) == namespace]


def namespace_of(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


@pytest.mark.parametrize("end", ["fails", "SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_whatever_ends_a_test(end: str, tmp_path: Path) -> None:
    links = subprocess.check_output(["ip", "-oneline", "link"])
    line = [sys.executable, "-c", HELD, str(tmp_path), end]
    with subprocess.Popen(
        line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as test:
        assert test.stdout is not None
        told = test.stdout.readline()
        assert told, test.communicate()[1]
        if end != "fails":
            test.send_signal(signal.Signals[end])
        assert test.wait(10) != 0
    wait_until(lambda: not any(name_of(int(pid)) for pid in told.split()), 5, "no process is left")
    # a namespace that no process is in is there only where it is mounted
    mounts = Path("/proc/self/mounts").read_text()
    assert "nsfs" not in mounts and str(tmp_path) not in mounts
    assert subprocess.check_output(["ip", "-oneline", "link"]) == links
