"""How much memory models may count on."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from mlxd.machine import raise_open_files, usable_memory_bytes

RAM_BYTES = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def usable(folder: Path, own_cgroup: str, files: dict[str, str], device_bytes: int | None = None) -> int:
    """Return the answer for a made-up cgroup tree."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own_cgroup)
    return usable_memory_bytes(device_bytes, cgroups=folder / "cgroup", own_cgroup=folder / "own")


def test_without_cgroups_it_is_ram(tmp_path: Path) -> None:
    """Where no cgroup file exists (macOS), RAM is the answer."""
    actual = usable_memory_bytes(cgroups=tmp_path / "none", own_cgroup=tmp_path / "none either")

    assert actual == RAM_BYTES


def test_the_device_may_be_the_least(tmp_path: Path) -> None:
    """Metal's recommended working set counts when it is below RAM."""
    assert usable(tmp_path, "", {}, device_bytes=12345) == 12345


def test_v2_limit_of_the_own_group(tmp_path: Path) -> None:
    """The limit of a v2 group is found by its path."""
    assert usable(tmp_path, "0::/a/b\n", {"a/b/memory.max": "4096000\n", "a/memory.max": "max\n"}) == 4096000


def test_v2_limit_of_a_group_above(tmp_path: Path) -> None:
    """A tighter limit higher up counts for all below it."""
    assert usable(tmp_path, "0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "1000000\n"}) == 1000000


def test_v2_limit_in_a_container_that_sees_only_the_root(tmp_path: Path) -> None:
    """When the own path does not exist below the mount, the root's limit counts."""
    assert usable(tmp_path, "0::/../../somewhere\n", {"memory.max": "2000000\n"}) == 2000000


def test_v1_limit(tmp_path: Path) -> None:
    """The v1 memory controller has its own mount and file name."""
    files = {"memory/docker/x/memory.limit_in_bytes": "3000000\n"}

    assert usable(tmp_path, "12:cpu:/docker/x\n5:memory:/docker/x\n", files) == 3000000


def test_v1_without_a_limit_is_ram(tmp_path: Path) -> None:
    """The huge number that v1 writes for no limit is above RAM and does not matter."""
    files = {"memory/memory.limit_in_bytes": "9223372036854771712\n"}

    assert usable(tmp_path, "5:memory:/\n", files) == RAM_BYTES


def test_open_files_are_raised_and_never_lowered() -> None:
    """A process that begins with few, as under launchd, gets what is asked for or all that is allowed."""
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        raise_open_files(300)
        raise_open_files(200)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        most = 10**6 if hard == resource.RLIM_INFINITY else hard + 1
        raise_open_files(most)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(soft, 300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
