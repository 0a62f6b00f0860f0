"""Facts about this machine, without TensorFlow: cores, bfloat16, who uses it, its load, its processes by name."""

import getpass
import os
import platform
import re
import signal
import subprocess
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

#: Seconds that a process left behind has to end itself before it is killed.
GRACE_S = 3.0
#: Compute capability of the first NVIDIA GPUs that multiply in bfloat16.
BFLOAT16_FROM = 8.0


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def gpus() -> tuple[float, ...]:
    """Compute capability of every GPU that this process may use, as NVIDIA's driver tells it; none without one."""
    told = ["nvidia-smi", "--query-gpu=index,uuid,compute_cap", "--format=csv,noheader"]
    try:
        lines = subprocess.check_output(
            told, stderr=subprocess.DEVNULL, text=True, timeout=20
        ).splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    known = [[word.strip() for word in line.split(",")] for line in lines if line.count(",") == 2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if visible is None else [name.strip() for name in visible.split(",")]
    return tuple(
        float(at) for index, name, at in known if names is None or {index, name} & set(names)
    )


@cache
def processor(listing: Path = Path("/proc/cpuinfo")) -> str:
    """What the processor is called, in ``listing`` as Linux has it; elsewhere its architecture."""
    found = (
        re.search(r"^model name\s*:\s*(.+)", listing.read_text(), re.MULTILINE)
        if listing.is_file()
        else None
    )
    return found[1].strip() if found else platform.processor() or platform.machine()


@cache
def resolve_precision(requested: str, listing: Path = Path("/proc/cpuinfo")) -> str:
    """``auto`` becomes mixed_bfloat16 where AMX or AVX512_BF16 multiply it, else float32: emulated, it is slow.

    With GPUs they decide: from compute capability 8.0 all can. ``listing`` names the instruction sets of the processor,
    as Linux has it; elsewhere there is none.
    """
    if requested != "auto":
        return requested
    if capabilities := gpus():
        return "mixed_bfloat16" if min(capabilities) >= BFLOAT16_FROM else "float32"
    found = (
        re.search(r"^flags.*?:(.*)", listing.read_text(), re.MULTILINE)
        if listing.is_file()
        else None
    )
    flags = set(found[1].split()) if found else set()
    return "mixed_bfloat16" if flags & {"amx_bf16", "avx512_bf16"} else "float32"


@cache
def user_name() -> str:
    """Who is logged in; ``unknown`` in a container without names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def process_name(pid: int | None = None) -> str:
    """``host:pid:time of creation`` of a process, of this one by default; it is never given to another process."""
    pid = pid or os.getpid()
    return f"{platform.node()}:{pid}:{psutil.Process(pid).create_time():.2f}"


def find_process(name: str) -> psutil.Process | None:
    """The process of that name, if it runs on this machine."""
    host, pid, created = name.rsplit(":", 2)
    if host != platform.node():
        return None
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(int(pid))
        if (
            abs(process.create_time() - float(created)) < 0.5
            and process.status() != psutil.STATUS_ZOMBIE
        ):
            return process
    return None


def is_alive(name: str) -> bool:
    """Whether the process of that name still runs; one on another host is taken to be alive."""
    return find_process(name) is not None or name.rsplit(":", 2)[0] != platform.node()


def end_process(name: str | None) -> None:
    """End the process of that name if it runs on this machine, even one that is suspended."""
    if name is None or (process := find_process(name)) is None or process.pid == os.getpid():
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
        deadline = time.monotonic() + GRACE_S
        while (
            find_process(name) and time.monotonic() < deadline
        ):  # psutil's own wait takes a zombie for alive
            time.sleep(0.02)
