"""Facts about this machine, found without TensorFlow: cores, GPUs, precision, processor."""

import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

#: Compute capability of the first NVIDIA GPUs that multiply in bfloat16.
BFLOAT16_FROM = 8.0
#: Flags of processors that multiply in bfloat16.
BFLOAT16_FLAGS = {"amx_bf16", "avx512_bf16"}
#: Where Linux describes the processor.
CPUINFO = Path("/proc/cpuinfo")
#: Asks NVIDIA's driver for its GPUs, a line each.
GPU_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,compute_cap", "--format=csv,noheader")
#: Seconds that the driver may take to answer.
GPU_QUERY_TIMEOUT_S = 20


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def gpus() -> tuple[float, ...]:
    """Return the compute capability of every GPU that this process may use.

    Returns:
        What NVIDIA's driver reports, in its order, and 0 where it does not know; empty without a
        driver or a GPU. ``CUDA_VISIBLE_DEVICES`` hides the GPUs that it does not name.
    """
    try:
        answer = subprocess.check_output(
            GPU_QUERY, stderr=subprocess.DEVNULL, text=True, timeout=GPU_QUERY_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None
    if visible is not None:
        names = {name.strip() for name in visible.split(",")}
    capabilities = []
    for line in answer.splitlines():
        if line.count(",") != 2:
            continue
        index, uuid, capability = (word.strip() for word in line.split(","))
        if names is None or {index, uuid} & names:
            capabilities.append(_number(capability))
    return tuple(capabilities)


def _number(capability: str) -> float:
    """Return a compute capability as a number; the driver may say ``[N/A]``."""
    try:
        return float(capability)
    except ValueError:
        return 0.0


@cache
def processor() -> str:
    """Return the model name of the processor; without Linux's description, its architecture."""
    name = _entry(CPUINFO, r"^model name\s*:\s*(.+)")
    if name is not None:
        return name.strip()
    return platform.processor() or platform.machine()


@cache
def resolve_precision(requested: str, listing: Path = CPUINFO) -> str:
    """Replace the precision ``auto`` by the one that suits this machine.

    Args:
        requested: ``auto``, or a dtype policy of Keras, which is returned as it is.
        listing: Description of the processor as Linux writes it.

    Returns:
        ``mixed_bfloat16`` where all GPUs multiply in it or, without a GPU, the processor does (AMX
        or AVX512_BF16). Else ``float32``, since emulated bfloat16 is slow.
    """
    if requested != "auto":
        return requested
    capabilities = gpus()
    if capabilities:
        has_bfloat16 = min(capabilities) >= BFLOAT16_FROM
    else:
        flags = _entry(listing, r"^flags.*?:(.*)") or ""
        has_bfloat16 = bool(BFLOAT16_FLAGS & set(flags.split()))
    if has_bfloat16:
        return "mixed_bfloat16"
    return "float32"


def _entry(listing: Path, pattern: str) -> str | None:
    """Return the first group of the first match in a file, if there is a file and a match."""
    if not listing.is_file():
        return None
    found = re.search(pattern, listing.read_text(), re.MULTILINE)
    if found is None:
        return None
    return found[1]
