"""Samples of the system's memory: whether it is short, and what it can spare. Decides nothing.

`pool.memory` bounds what models take; this is about everything else on the machine. Must not import mlx.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SAMPLE_S = 2.0
# <sys/event.h>, NOTE_MEMORYSTATUS_PRESSURE_*: 1 normal, 2 warning, 4 critical.
_DARWIN_LEVEL = "kern.memorystatus_vm_pressure_level"
_DARWIN_CRITICAL = 4
# What `memory_pressure` prints as the free percentage: all that is neither wired nor compressed.
_DARWIN_AVAILABLE_PERCENT = "kern.memorystatus_level"
_DARWIN_TOTAL_BYTES = "hw.memsize"
_MEMINFO = Path("/proc/meminfo")
_STALLS = Path("/proc/pressure/memory")
# Linux has no such level. Shares of RAM that programs can still have, in percent: at the lesser the kernel is about to
# end one; at the greater it is critical only if programs have stood still for memory this much of the last 10 s.
_LEAST_PERCENT = 3.0
_LOW_PERCENT = 12.0
_MOST_STALLED_PERCENT = 10.0


@dataclass(frozen=True, slots=True)
class MemorySample:
    """The system's memory at one moment."""

    shortage: str | None = None  # why it is critically short, in words; None while it is not, or nobody can tell
    spare_bytes: int | None = None  # what programs can take before it is; None where nobody can tell


async def watch_memory_pressure(
    report: Callable[[MemorySample], None],
    *,
    read: Callable[[], MemorySample] | None = None,
    sample_s: float = SAMPLE_S,
) -> None:
    """Give *report* a sample every few seconds, until cancelled; *read* is `read_memory_pressure` but in tests."""
    read = read_memory_pressure if read is None else read
    while True:
        report(read())
        await asyncio.sleep(sample_s)


def read_memory_pressure() -> MemorySample:
    """Ask the system."""
    if sys.platform == "darwin":
        names = (_DARWIN_LEVEL, _DARWIN_AVAILABLE_PERCENT, _DARWIN_TOTAL_BYTES)
        return judge_darwin(*(_read_darwin(name) for name in names))
    try:
        stalls = _STALLS.read_text()
    except OSError:  # a kernel without pressure stall information
        stalls = ""
    try:
        return judge_linux(_MEMINFO.read_text(), stalls)
    except OSError:
        return MemorySample()


def judge_darwin(level: int | None, available_percent: int | None, total_bytes: int | None) -> MemorySample:
    """Return what a pressure level of macOS, and the share of its memory that is available, come to."""
    shortage = "macOS says that its memory is critically short" if level == _DARWIN_CRITICAL else None
    if available_percent is None or total_bytes is None:
        return MemorySample(shortage)
    return MemorySample(shortage, _spare_bytes(total_bytes * available_percent // 100, total_bytes))


def judge_linux(meminfo: str, stalls: str) -> MemorySample:
    """Return what /proc/meminfo and /proc/pressure/memory come to; the latter may be empty."""
    total, available = (
        re.search(rf"^{name}:\s+(\d+) kB", meminfo, re.MULTILINE) for name in ("MemTotal", "MemAvailable")
    )
    if total is None or available is None or int(total[1]) == 0:
        return MemorySample()
    available_bytes, total_bytes = 1024 * int(available[1]), 1024 * int(total[1])
    percent = 100 * available_bytes / total_bytes
    stalled = re.search(r"^full avg10=([\d.]+)", stalls, re.MULTILINE)
    stalled_percent = 0.0 if stalled is None else float(stalled[1])
    shortage = None
    if percent < _LEAST_PERCENT:
        shortage = f"the system has {percent:.1f} % of its memory left"
    elif percent < _LOW_PERCENT and stalled_percent >= _MOST_STALLED_PERCENT:
        shortage = (
            f"the system has {percent:.1f} % of its memory left, and stands still for memory {stalled_percent:.0f} %"
        )
    return MemorySample(shortage, _spare_bytes(available_bytes, total_bytes))


def _spare_bytes(available_bytes: int, total_bytes: int) -> int:
    return max(0, available_bytes - round(total_bytes * _LEAST_PERCENT / 100))


def _read_darwin(name: str) -> int | None:
    """Ask the kernel for a number of 4 or 8 bytes; no child process, since this runs every few seconds."""
    value, size = ctypes.c_uint64(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_uint64))
    libc = ctypes.CDLL(None)
    failed = libc.sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else value.value
