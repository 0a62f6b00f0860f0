"""Several hosts on this machine: Linux namespaces, with links that can be cut, and power that can fail.

Each has a host name, an address, processes and files of its own, and the project in them. Of this machine it sees the
system's programs and the Python environment, both to read only. Nothing of it is outside: the hosts and the switch
between them are the namespaces of processes that the kernel kills together with the one that asked for them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import psutil
from conftest import ROOT, Command, Done, copy_project, typed

PROGRAMS = ("ip", "nsenter", "unshare", "setpriv", "pivot_root")
#: A process whose namespaces are its own and its children's; it ends with the thread that starts it, and they with it.
UNSHARED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child", "--pid", "--net")
HOST = (*UNSHARED, "--mount", "--uts", "--ipc")
#: PID 1 reaps what others leave, which the kernel does for one that ignores SIGCHLD.
INIT = "echo up; exec env --ignore-signal=CHLD sleep infinity"
#: A file system of what is named, its own folder the only place on a disk: ``name folder path...``.
BOOT = f"""set -eu
hostname "$1" && own=$2 new=$2/.root && shift 2
mkdir -p "$new" && mount -t tmpfs none "$new" && mkdir -p "$new$own" "$new/proc" "$new/run" "$new/tmp" "$new/var/tmp"
chmod 1777 "$new/tmp" "$new/var/tmp"
for path in /dev "$@"; do
    if [ -L "$path" ]; then cp -a "$path" "$new$path"; continue; fi
    mkdir -p "$new$path" && mount --rbind "$path" "$new$path" && mount -o remount,bind,ro "$new$path"
done
mount --bind "$own/.hosts" "$new/etc/hosts"
mount -t tmpfs none "$new/dev/shm" && mount --bind "$own" "$new$own" && mount -t proc proc "$new/proc"
cd "$new" && pivot_root . . && umount -l . && cd /
{INIT}"""
SYSTEM = ("/bin", "/sbin", "/lib", "/lib64", "/usr", "/etc", "/opt", "/sys")
CLONE_NEWNET = 0x40000000


def _why_missing() -> str:
    """Why there can be no hosts here; empty where there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "root on Linux"
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return ", ".join(absent)
    link = "mount -t tmpfs none /tmp && ip link add name br0 type bridge && ip link add name a type veth peer name b"
    tried = subprocess.run([*HOST, "sh", "-c", link], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"the right to make namespaces ({tried.stderr.strip()})"


MISSING = _why_missing()
REASON = f"no hosts can be made of namespaces: {MISSING} is missing"


class Machine:
    """A process that holds namespaces, and those of its processes that are in them."""

    def __init__(self, *line: str) -> None:
        quiet, pipe = subprocess.DEVNULL, subprocess.PIPE
        self.holder = subprocess.Popen(line, stdin=quiet, stdout=pipe, stderr=pipe, text=True)
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == "up\n", (
            f"not started: {line}: {self.holder.communicate()[1]}"
        )
        self.init = psutil.Process(self.holder.pid).children()[0].pid

    def ip(self, words: str) -> None:
        """Configure its network."""
        subprocess.run(
            ["nsenter", f"--net=/proc/{self.init}/ns/net", "ip", *words.split()], check=True
        )

    def end(self) -> None:
        """SIGKILL to all its processes, at once: the kernel ends those of a namespace with its first."""
        if self.holder.poll() is None:
            os.kill(self.init, signal.SIGKILL)
        self.holder.communicate()  # it ends when the kernel has ended them all


class Host:
    """A host that is up. Its ``folder`` has the same path inside and outside."""

    def __init__(
        self, name: str, address: str, folder: Path, switch: Machine, ports: Iterator[int]
    ) -> None:
        self.name, self.address, self.folder, self.switch, self.ports = (
            name,
            address,
            folder,
            switch,
            ports,
        )
        self.commands: list[Command] = []
        self.boot()

    @cached_property
    def project(self) -> Path:
        """Its copy of the project."""
        copy_project(self.folder / "project")
        return self.folder / "project"

    def boot(self) -> None:
        """Start it, after :meth:`kill_all` again: with its files as they were left, and its link."""
        seen = [path for path in (*SYSTEM, sys.base_prefix, sys.prefix) if Path(path).exists()]
        within = [path for path in seen if not any(Path(one) in Path(path).parents for one in seen)]
        self.machine = Machine(
            *HOST, "sh", "-c", BOOT, "sh", self.name, str(self.folder), *dict.fromkeys(within)
        )
        self.port = f"port{next(self.ports)}"
        card = f"name eth0 address 02:00:00:00:00:{int(self.address.split('.')[-1]):02x}"
        self.switch.ip(
            f"link add name {self.port} up type veth peer {card} netns {self.machine.init}"
        )
        for words in ("link set lo up", f"addr add {self.address}/24 dev eth0", "link set eth0 up"):
            self.machine.ip(words)
        self.restore()

    def start(self, words: Sequence[str], cwd: Path | None = None, **environment: str) -> Command:
        """Start a command in the project, or in ``cwd``."""
        # without PYTHONDONTWRITEBYTECODE imports are three times as fast from the second command on
        inherited = {
            name: os.environ[name]
            for name in os.environ
            if name not in ("TMPDIR", "PYTHONDONTWRITEBYTECODE")
        }
        own = {"HOME": str(self.folder), "KERAS_HOME": str(self.folder / ".keras")}
        enter = [
            "nsenter",
            f"--target={self.machine.init}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--",
        ]
        line = [*enter, "env", f"--chdir={cwd or self.project}", *words]
        self.commands.append(Command(typed(line, ROOT, {**inherited, **own, **environment})))
        return self.commands[-1]

    def run(
        self,
        words: Sequence[str],
        cwd: Path | None = None,
        timeout: float = 180,
        **environment: str,
    ) -> Done:
        """Run a command to its end."""
        return self.start(words, cwd, **environment).finish(timeout)

    def kill_all(self) -> None:
        """SIGKILL to all its processes; what they had open is closed by the kernel, so that others hear of it."""
        self.machine.end()
        for command in self.commands:
            command.finish()

    def cut(self) -> None:
        """Let all that is sent to it or by it get lost, in silence: its own card sees no difference."""
        self.switch.ip(f"link set {self.port} nomaster")

    def restore(self) -> None:
        """Undo :meth:`cut`."""
        self.switch.ip(f"link set {self.port} master br0")

    @contextmanager
    def network(self) -> Iterator[None]:
        """Let this thread open sockets as if it were on that host."""
        libc: Any = ctypes.CDLL(None, use_errno=True)
        with (
            open("/proc/thread-self/ns/net") as home,
            open(f"/proc/{self.machine.init}/ns/net") as there,
        ):
            _enter(libc, there.fileno())
            try:
                yield
            finally:
                _enter(libc, home.fileno())


def _enter(libc: Any, namespace: int) -> None:
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def hosts(number: int, folder: Path) -> Iterator[list[Host]]:
    """``number`` hosts with their files below ``folder``, called host1, host2, ...: all gone in the end."""
    names = {f"host{n}": f"10.0.0.{n}" for n in range(1, number + 1)}
    known = "".join(f"{address} {name}\n" for name, address in names.items())
    with ExitStack() as left:
        switch = Machine(*UNSHARED, "sh", "-c", INIT)
        left.callback(switch.end)
        switch.ip("link add name br0 up type bridge")
        made, ports = [], count()
        for name, address in names.items():
            (own := folder / name).mkdir(parents=True)
            (own / ".hosts").write_text(f"127.0.0.1 localhost\n{known}")
            made.append(Host(name, address, own, switch, ports))
            left.callback(made[-1].kill_all)
        yield made
