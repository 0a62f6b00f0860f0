"""What this machine offers, read without TensorFlow: cores and bfloat16."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def processor_flags() -> frozenset[str]:
    """Instruction-set flags as Linux lists them; empty elsewhere."""
    listing = Path("/proc/cpuinfo")
    if not listing.is_file():
        return frozenset()
    lines = (line for line in listing.read_text().splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").partition(":")[2].split())


def resolve_precision(requested: str) -> str:
    """``auto`` becomes mixed_bfloat16 on a processor that multiplies in bfloat16 (AMX, AVX512_BF16), else float32.

    Without such instructions bfloat16 is emulated and slower than float32.
    """
    if requested != "auto":
        return requested
    return "mixed_bfloat16" if processor_flags() & {"amx_bf16", "avx512_bf16"} else "float32"


def describe() -> dict[str, str]:
    """Host name, operating system and processor, for a run's tags."""
    return {
        "host": platform.node(),
        "os": platform.platform(),
        "processor": platform.processor() or platform.machine(),
    }
