"""Measure this machine: the memory that models may count on, and how many files may be open.

Must not import mlx; the caller passes what Metal says.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

# What macOS allows at most (OPEN_MAX); far over what the sockets' own bounds let in.
_OPEN_FILES = 10240
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def usable_memory_bytes(
    device_bytes: int | None = None, *, cgroups: Path = _CGROUPS, own_cgroup: Path = _OWN_CGROUP
) -> int:
    """Return the least of RAM, the cgroup limits (v1 and v2) and what the device recommends.

    Args:
        device_bytes: Metal's recommended working set; None where there is no such figure.
        cgroups: where the cgroup file systems are mounted.
        own_cgroup: the file that names this process's groups.
    """
    ram_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [ram_bytes, *_cgroup_limits_bytes(cgroups, own_cgroup)]
    if device_bytes is not None:
        limits.append(device_bytes)
    return min(limits)


def _cgroup_limits_bytes(cgroups: Path, own_cgroup: Path) -> Iterator[int]:
    """Yield the limits of this process's memory groups and of all groups around them."""
    try:
        lines = own_cgroup.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _limits_upwards(cgroups, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits_upwards(cgroups / "memory", path, "memory.limit_in_bytes")


def _limits_upwards(root: Path, path: str, name: str) -> Iterator[int]:
    """Yield the limit of the group and of each group above it; a container may see only the root."""
    group = root / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        try:
            text = (folder / name).read_text().strip()
        except OSError:
            continue
        # v2 says `max` for no limit; v1 says a number near 2^63, which RAM is always below.
        if text.isdigit():
            yield int(text)


def raise_open_files(least: int = _OPEN_FILES) -> None:
    """Let this process have *least* files open, or as many as the system allows it.

    launchd begins with 256, and every connection is one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = least if hard == resource.RLIM_INFINITY else min(least, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
