"""Whether the system as a whole is short of memory: macOS's own word, or what Linux counts. Decides nothing.

`pool.memory` bounds what models take; this is about everything else on the machine. Must not import mlx.
"""

from __future__ import annotations

import asyncio
import ctypes
import re
import sys
from collections.abc import Callable
from pathlib import Path

SAMPLE_S = 2.0
# <sys/event.h>, NOTE_MEMORYSTATUS_PRESSURE_*: 1 normal, 2 warning, 4 critical.
_DARWIN_LEVEL = b"kern.memorystatus_vm_pressure_level"
_DARWIN_CRITICAL = 4
_MEMINFO = Path("/proc/meminfo")
_STALLS = Path("/proc/pressure/memory")
# Linux has no such level. Shares of RAM that programs can still have, in percent: at the lesser the kernel is about to
# end one; at the greater it is critical only if programs have stood still for memory this much of the last 10 s.
_LEAST_PERCENT = 3.0
_LOW_PERCENT = 12.0
_MOST_STALLED_PERCENT = 10.0


async def watch_memory_pressure(
    report: Callable[[str | None], None],
    *,
    read: Callable[[], str | None] | None = None,
    sample_s: float = SAMPLE_S,
) -> None:
    """Give *report* a sample every few seconds, until cancelled; *read* is `read_memory_pressure` but in tests."""
    read = read_memory_pressure if read is None else read
    while True:
        report(read())
        await asyncio.sleep(sample_s)


def read_memory_pressure() -> str | None:
    """Return why the system's memory is critically short, in words; None while it is not, or nobody can tell."""
    if sys.platform == "darwin":
        return judge_darwin(_read_darwin_level())
    try:
        stalls = _STALLS.read_text()
    except OSError:  # a kernel without pressure stall information
        stalls = ""
    try:
        return judge_linux(_MEMINFO.read_text(), stalls)
    except OSError:
        return None


def judge_darwin(level: int | None) -> str | None:
    """Return the words for a pressure level of macOS."""
    return "macOS says that its memory is critically short" if level == _DARWIN_CRITICAL else None


def judge_linux(meminfo: str, stalls: str) -> str | None:
    """Return the words for the contents of /proc/meminfo and /proc/pressure/memory; the latter may be empty."""
    total, available = (
        re.search(rf"^{name}:\s+(\d+) kB", meminfo, re.MULTILINE) for name in ("MemTotal", "MemAvailable")
    )
    if total is None or available is None or int(total[1]) == 0:
        return None
    percent = 100 * int(available[1]) / int(total[1])
    stalled = re.search(r"^full avg10=([\d.]+)", stalls, re.MULTILINE)
    stalled_percent = 0.0 if stalled is None else float(stalled[1])
    if percent < _LEAST_PERCENT:
        return f"the system has {percent:.1f} % of its memory left"
    if percent < _LOW_PERCENT and stalled_percent >= _MOST_STALLED_PERCENT:
        return f"the system has {percent:.1f} % of its memory left, and stands still for memory {stalled_percent:.0f} %"
    return None


def _read_darwin_level() -> int | None:
    """Ask the kernel; no child process, since this runs every few seconds."""
    level, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    libc = ctypes.CDLL(None)
    failed = libc.sysctlbyname(_DARWIN_LEVEL, ctypes.byref(level), ctypes.byref(size), None, ctypes.c_size_t(0))
    return None if failed else level.value
