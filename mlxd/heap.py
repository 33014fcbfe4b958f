"""The heap of the process: what is freed goes back to the system. macOS does so by itself; glibc is told here.

With glibc's defaults a daemon whose heap held 25 MB grew from 140 to 290 MB in four minutes of loads, huge schemas and
huge bodies. There are up to eight arenas for each core. Once a large buffer was freed, buffers of its size are taken
from an arena as well, and an arena keeps twice as much at its end; `malloc_trim` looks there in the first arena only.

Must not import mlx.
"""

from __future__ import annotations

import ctypes
import functools
import platform

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
# One for the event loop, one for the device and all workers: what is called most holds the GIL anyway.
_ARENAS = 2
# A buffer from this size on has pages of its own; weights and bodies are such.
_OWN_PAGES_BYTES = 2**20
# Kept at the end of an arena, so that not every call asks the system.
_KEPT_BYTES = 2**22


def bound_heap() -> None:
    """Let the heap keep little of what is freed. To be called before there are other threads."""
    glibc = _glibc()
    if glibc is not None:
        glibc.mallopt(_M_ARENA_MAX, _ARENAS)
        # Each of these two also ends the thresholds' growth with what is freed.
        glibc.mallopt(_M_MMAP_THRESHOLD, _OWN_PAGES_BYTES)
        glibc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim_heap() -> None:
    """Give back the pages between what is still used."""
    glibc = _glibc()
    if glibc is not None:
        glibc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library where it is glibc; musl has neither of the functions."""
    if platform.system() != "Linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
