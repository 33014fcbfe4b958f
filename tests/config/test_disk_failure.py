"""When the disk fails, old settings stay live and the old file stays on the disk."""

import dataclasses
import errno
import os
import stat
import tomllib
from pathlib import Path

import pytest

from mlxd.config import draft
from mlxd.config.edit import CannotEditError
from mlxd.config.file import SystemCalls
from mlxd.protocol.errors import (
    CommitFailed,
    Conflict,
)
from tests.support.settings import TEXT, MakeStore, assert_untouched, failing


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EBUSY, errno.EIO])
@pytest.mark.parametrize("name", ["open", "write", "fsync", "fchmod", "replace"])
async def test_a_failing_system_call_leaves_the_file_byte_identical(make: MakeStore, name: str, code: int) -> None:
    """Whatever fails before the rename: old settings live, old file on disk, no temp file, and words for it."""
    fixture = make(TEXT, calls=failing(name, code))
    with pytest.raises(CommitFailed, match=r"could not be written: .*; nothing was changed") as caught:
        await fixture.set("pool.memory", "1GB")
    assert caught.value.hint
    assert_untouched(fixture)


async def test_a_disk_that_fills_up_in_the_middle_leaves_the_file_byte_identical(make: MakeStore) -> None:
    """A write that is taken in part and then fails is undone."""

    def write_some(descriptor: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data[:10])

    fixture = make(TEXT, calls=dataclasses.replace(SystemCalls(), write=write_some))
    with pytest.raises(CommitFailed) as caught:
        await fixture.set("pool.memory", "1GB")
    assert caught.value.hint == "free some disk space"
    assert_untouched(fixture)


async def test_a_short_write_is_continued(make: MakeStore) -> None:
    """The system may take a few bytes at a time."""
    fixture = make(TEXT, calls=dataclasses.replace(SystemCalls(), write=lambda fd, data: os.write(fd, data[:7])))
    await fixture.set("pool.memory", "1GB")
    assert fixture.path.read_text() == TEXT.replace("60%", "1GB")


async def test_a_folder_that_cannot_be_synced_is_a_warning(make: MakeStore) -> None:
    """After the rename the change is live: a failure then is told, and nothing is taken back."""

    def fail_on_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    fixture = make(TEXT, calls=dataclasses.replace(SystemCalls(), fsync=fail_on_folders))
    result = await fixture.set("pool.memory", "1GB")
    assert [warning.partition(":")[0] for warning in result.warnings] == ["not_durable"]
    assert fixture.store.current.pool.memory == 10**9


async def test_a_history_that_cannot_be_written_is_a_warning(make: MakeStore, tmp_path: Path) -> None:
    """Without a history the settings still change."""
    fixture = make(TEXT)
    history = tmp_path / "history"
    (history / "1.toml").unlink()
    history.rmdir()
    history.write_text("in the way")
    result = await fixture.set("pool.memory", "1GB")
    assert [warning.partition(":")[0] for warning in result.warnings] == ["no_history"]
    assert fixture.store.current.pool.memory == 10**9
    assert fixture.store.generation == 2


async def test_the_history_keeps_the_last_fifty(make: MakeStore, tmp_path: Path) -> None:
    """Old versions go, so that the folder stays small."""
    fixture = make(TEXT)
    for number in range(1, 56):
        await fixture.set("pool.max_models", number)
    kept = sorted(int(path.stem) for path in (tmp_path / "history").iterdir())
    assert kept == list(range(7, 57))


async def test_mode_and_symlink_survive(make: MakeStore, tmp_path: Path) -> None:
    """A linked file stays linked, what it leads to is replaced in its own folder, with its mode."""
    elsewhere = tmp_path / "dotfiles"
    elsewhere.mkdir()
    real = elsewhere / "mlxd.toml"
    real.write_text(TEXT)
    real.chmod(0o640)
    (tmp_path / "config.toml").symlink_to(real)
    fixture = make()
    await fixture.set("pool.memory", "1GB")
    assert fixture.path.is_symlink()
    assert real.read_text() == TEXT.replace("60%", "1GB")
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert [path.name for path in elsewhere.iterdir()] == ["mlxd.toml"]


async def test_leftovers_of_a_killed_process_are_removed(make: MakeStore, tmp_path: Path) -> None:
    """A temp file that nobody will rename any more goes at the next start."""
    leftover = tmp_path / ".config.toml.1234abcd.tmp"
    leftover.write_text("half")
    make(TEXT)
    assert not leftover.exists()


async def test_an_edit_by_hand_during_the_write_is_not_lost(make: MakeStore) -> None:
    """An edit that lands between reading and renaming is taken up first, and both survive."""
    edits = [TEXT + "max_models = 3\n"]
    path: list[Path] = []

    def fsync(descriptor: int) -> None:
        if edits:
            path[0].write_text(edits.pop())

    fixture = make(TEXT, calls=dataclasses.replace(SystemCalls(), fsync=fsync))
    path.append(fixture.path)
    result = await fixture.set("pool.memory", "1GB")
    assert result.generation == 3
    assert tomllib.loads(fixture.path.read_text()) == {"pool": {"memory": "1GB", "max_models": 3}}


async def test_a_file_edited_again_and_again_is_left_to_the_editor(make: MakeStore) -> None:
    """After a few tries the commit gives up, with the last edit by hand in force."""
    count = iter(range(1, 100))
    path: list[Path] = []

    def fsync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            path[0].write_text(TEXT + f"max_models = {next(count)}\n")

    fixture = make(TEXT, calls=dataclasses.replace(SystemCalls(), fsync=fsync))
    path.append(fixture.path)
    with pytest.raises(Conflict, match="again and again"):
        await fixture.set("pool.memory", "1GB")
    assert 'memory = "60%"' in fixture.path.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_the_owner_survives(make: MakeStore) -> None:
    """A daemon that runs as root does not take a user's file from them."""
    fixture = make(TEXT)
    os.chown(fixture.path, 65534, 65534)
    await fixture.set("pool.memory", "1GB")
    assert (fixture.path.stat().st_uid, fixture.path.stat().st_gid) == (65534, 65534)


async def test_an_edit_that_would_do_damage_is_refused(make: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a guard holds an edit back, the file is as it was, and a person is asked to edit it by hand."""

    def damage(text: str, changes: object) -> str:
        raise CannotEditError("a comment would be lost")

    monkeypatch.setattr(draft, "edit", damage)
    fixture = make(TEXT)
    with pytest.raises(CommitFailed, match="cannot be edited safely: a comment would be lost") as caught:
        await fixture.set("pool.memory", "1GB")
    assert caught.value.hint == "edit it by hand"
    assert_untouched(fixture)
