"""Folders that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxd.download import staging
from mlxd.download.errors import DiskFull, NotAFolder

# Holds the lock and a half-made folder, and says so, until its stdin ends.
_MAKER = """
import sys
from pathlib import Path
from mlxd.download import staging
with staging.locked(Path(sys.argv[1]), "model", lambda: print("waits", flush=True)):
    with staging.partial(Path(sys.argv[1]), "model") as stage:
        (stage / "half").write_text("x")
        print("made", flush=True)
        sys.stdin.read()
"""


def start_maker(folder: Path) -> subprocess.Popen[str]:
    """Start a process that makes `model` in *folder* and stays in the middle of it."""
    command = [sys.executable, "-c", _MAKER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("inner", ["file", "file/home", "file/home/models"])
def test_file_in_the_way(tmp_path: Path, inner: str) -> None:
    """A file where a folder is to be is told with its path and what to change."""
    (tmp_path / "file").touch()
    with pytest.raises(NotAFolder, match=r"the folder .* cannot be made: .*file") as caught:
        staging.ensure_folder(tmp_path / inner)
    assert "MLXD_HOME" in str(caught.value.hint)


def test_partial_goes_with_its_failure(tmp_path: Path) -> None:
    """What is half-made is gone when the making fails."""

    def fail() -> None:
        with staging.partial(tmp_path, "model") as stage:
            (stage / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_publish_replaces_a_folder(tmp_path: Path) -> None:
    """A folder of the same name gives way as a whole."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("x")
    with staging.partial(tmp_path, "model") as stage:
        (stage / "made" / "deep").mkdir(parents=True)
        (stage / "made" / "deep" / "new").write_text("y")
        staging.publish(stage / "made", target)
    assert [path.relative_to(target).as_posix() for path in sorted(target.rglob("*"))] == ["deep", "deep/new"]
    assert list(tmp_path.iterdir()) == [target]


def test_publish_makes_every_file_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file and folder is synced before the rename, and the parent after it."""
    synced: list[tuple[str, bool]] = []
    target = tmp_path / "model"
    monkeypatch.setattr(staging, "_fsync", lambda path: synced.append((path.name, target.exists())))
    made = tmp_path / "made"
    made.mkdir()
    (made / "file").write_text("x")
    staging.publish(made, target)
    assert synced == [("file", False), ("made", False), (tmp_path.name, True)]


def test_sweep_leaves_living_makers_alone(tmp_path: Path) -> None:
    """Only what a dead process left is removed."""
    with start_maker(tmp_path) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "made\n"
        staging.sweep(tmp_path)
        assert len(list(tmp_path.glob(".model.*.partial"))) == 1
        maker.kill()
    assert len(list(tmp_path.glob(".model.*.partial"))) == 1
    staging.sweep(tmp_path)
    assert not list(tmp_path.glob(".model.*.partial"))


def test_second_maker_waits(tmp_path: Path) -> None:
    """A second process says that it waits, and goes on when the first one ends."""
    with start_maker(tmp_path) as first, start_maker(tmp_path) as second:
        assert first.stdout is not None
        assert second.stdout is not None
        lines = {first.stdout.readline(), second.stdout.readline()}
        assert lines == {"made\n", "waits\n"}
        for maker in (first, second):
            assert maker.stdin is not None
            maker.stdin.close()
        assert first.stdout.read() + second.stdout.read() == "made\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert not list(tmp_path.glob(".model.*.partial"))


def test_space_is_checked_beforehand(tmp_path: Path) -> None:
    """Too little room is refused with both numbers."""
    staging.check_space(tmp_path, 1)
    with pytest.raises(DiskFull, match=r"1000000\.0 GB .* are needed, .* are free") as caught:
        staging.check_space(tmp_path, 10**15)
    assert caught.value.data["needed_bytes"] == 10**15


def test_counted_file_counts_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A big write is counted piece by piece and arrives whole."""
    monkeypatch.setattr(staging, "_CHUNK_BYTES", 1 << 20)
    counted: list[int] = []
    content = os.urandom(5 << 20)
    with staging.open_counted(tmp_path / "file", counted.append) as file:
        file.write(content)
    assert (tmp_path / "file").read_bytes() == content
    assert (len(counted), sum(counted)) == (5, len(content))


def test_full_disk_reaches_the_caller() -> None:
    """The error of a full disk is the system's own, also when it comes at the close."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    file = staging.open_counted(Path("/dev/full"), lambda _: None)
    file.write(b"x")
    with pytest.raises(OSError, match="No space left") as caught:
        file.close()
    assert caught.value.errno == errno.ENOSPC
