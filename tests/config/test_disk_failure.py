"""When the disk fails, old settings stay live and the old file stays on the disk."""

import dataclasses
import errno
import fcntl
import os
import shutil
import stat
import tomllib
from pathlib import Path

import pytest

from mlxd import atomic_file
from mlxd.atomic_file import AtomicFile, SystemCalls
from mlxd.config import Terms, state
from mlxd.config.edit import CannotEditError
from mlxd.protocol.errors import (
    CommitFailed,
    Conflict,
    FileInvalid,
)
from tests.support.settings import (
    COMMIT_CALLS,
    FIRST_OF_HISTORY,
    FIRST_OF_WRITING,
    RENAME,
    TEXT,
    Faults,
    MakeStore,
    assert_untouched,
)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EBUSY, errno.EIO])
@pytest.mark.parametrize("number", range(len(COMMIT_CALLS)), ids=lambda number: f"{number}-{COMMIT_CALLS[number]}")
async def test_a_failing_system_call_leaves_old_or_new_never_both(make: MakeStore, number: int, code: int) -> None:
    """Up to the rename, which counts: old settings live, the file byte-identical; after it: new, with a warning."""
    faults = Faults()
    fixture = make(TEXT, calls=faults.calls)
    faults.fail(number, code)
    if number > RENAME:
        result = await fixture.set("pool.memory", "1GB")
        assert fixture.path.read_text() == TEXT.replace("60%", "1GB")
        assert fixture.store.current.pool.memory == 10**9
        kind = "not_durable" if number < FIRST_OF_HISTORY else "no_history"
        assert list((fixture.path.parent / "history").glob(".*")) == []
        assert [warning.partition(":")[0] for warning in result.warnings] == [kind]
    else:
        refusal = FileInvalid if number < FIRST_OF_WRITING else CommitFailed
        with pytest.raises(refusal, match=os.strerror(code)) as caught:
            await fixture.set("pool.memory", "1GB")
        assert caught.value.hint
        assert_untouched(fixture)
    assert (await fixture.set("pool.max_models", 2)).warnings == []
    assert tomllib.loads(fixture.path.read_text())["pool"]["max_models"] == 2
    assert not fixture.problem


def test_a_file_that_cannot_take_the_place_of_another_is_removed(tmp_path: Path) -> None:
    """The folder is as it was."""

    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EACCES, f"{source} to {target}")

    path = tmp_path / "apikeys.json"
    path.write_bytes(b"old")
    with pytest.raises(PermissionError):
        AtomicFile(path, SystemCalls(replace=refuse)).replace(b"new")
    assert {kept.name: kept.read_bytes() for kept in tmp_path.iterdir()} == {"apikeys.json": b"old"}


def test_a_disk_with_a_cache_of_its_own_is_asked_to_empty_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has a call for that: `fsync` alone leaves the data in the disk's cache."""
    asked: list[int] = []
    monkeypatch.setattr(atomic_file, "_FULL_FSYNC", 51)
    monkeypatch.setattr(fcntl, "fcntl", lambda _, command: asked.append(command))
    AtomicFile(tmp_path / "apikeys.json").replace(b"new")
    assert asked == [51, 51]  # the file and its folder


async def test_the_system_calls_of_a_commit_are_those_of_the_table(make: MakeStore) -> None:
    """The table that the failures go through leaves no call out."""
    faults = Faults()
    fixture = make(TEXT, calls=faults.calls)
    faults.seen.clear()
    await fixture.set("pool.memory", "1GB")
    assert faults.seen == COMMIT_CALLS


async def test_what_failed_is_told_with_its_remedy(make: MakeStore) -> None:
    """A full disk, a read-only one and a mount point are told apart; what needs no disk is offered."""
    faults = Faults()
    fixture = make(TEXT, calls=faults.calls)
    for code, words in [(errno.ENOSPC, "free some"), (errno.EROFS, "it is read-only"), (errno.EBUSY, "mount point")]:
        faults.fail(RENAME, code)
        with pytest.raises(CommitFailed, match=r"could not be written: .*; nothing was changed") as caught:
            await fixture.set("pool.memory", "1GB")
        assert words in str(caught.value.hint)
        assert "--runtime-only" in str(caught.value.hint)


async def test_runtime_only_needs_no_disk(make: MakeStore) -> None:
    """Where nothing can be written, not even the history, a runtime-only value is taken without a word of warning."""
    faults = Faults()
    fixture = make(TEXT, calls=faults.calls)
    faults.fail_always(errno.EROFS, "write", "replace", "fsync", "fchmod")
    result = await fixture.set("pool.memory", "1GB", persist=False)
    assert (result.warnings, result.is_runtime_only) == ([], True)
    assert fixture.store.current.pool.memory == 10**9
    assert fixture.path.read_text() == TEXT


async def test_a_disk_that_fills_up_in_the_middle_leaves_the_file_byte_identical(make: MakeStore) -> None:
    """A write that is taken in part and then fails is undone."""
    room = [10_000]

    def write_some(descriptor: int, data: memoryview) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = os.write(descriptor, data[: min(10, room[0])])
        room[0] -= taken
        return taken

    fixture = make(TEXT, calls=dataclasses.replace(SystemCalls(), write=write_some))
    room[0] = 25
    with pytest.raises(CommitFailed, match="No space left"):
        await fixture.set("pool.memory", "1GB")
    assert_untouched(fixture)


async def test_a_file_that_grows_beyond_what_can_be_read_is_not_written(make: MakeStore) -> None:
    """The largest file that can be read is also the largest that is written."""
    text = TEXT + "# " + "x" * 522_000 + "\n"
    fixture = make(text)
    with pytest.raises(CommitFailed, match="and it may have 524288"):
        await fixture.set("catalog.paths", ["x" * 3000])
    assert fixture.path.read_text() == text


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
    shutil.rmtree(history)
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
    for suffix in ("toml", "json"):
        kept = sorted(int(path.stem) for path in (tmp_path / "history").glob(f"*.{suffix}"))
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
        if edits and path:
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
        if path and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
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

    monkeypatch.setattr(state, "edit", damage)
    fixture = make(TEXT)
    with pytest.raises(CommitFailed, match="cannot be edited safely: a comment would be lost") as caught:
        await fixture.set("pool.memory", "1GB")
    assert "mlxctl config edit" in str(caught.value.hint)
    assert_untouched(fixture)


@pytest.mark.parametrize(
    ("text", "persist", "next_start"), [(TEXT, True, 3), (TEXT, False, 3), (None, True, 3), (None, False, 2)]
)
async def test_a_generation_whose_history_is_lost_keeps_its_number(
    make: MakeStore, text: str | None, next_start: int, *, persist: bool
) -> None:
    """Where the history takes no new file, the number is still noted in place: no later start gives it away again."""
    first = make(text)
    begun, history = first.store.generation, first.path.parent / "history"

    def open_old_ones(path: str, flags: int, mode: int) -> int:
        if Path(path).parent == history and not Path(path).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.open(path, flags, mode)

    synced: list[int] = []
    calls = SystemCalls(open=open_old_ones, fsync=lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    fixture = make(calls=calls)
    for memory in ("1GB", "60%"):  # and back: the file is what the history has last
        await fixture.set("pool.memory", memory, persist=persist)
    assert fixture.store.generation == begun + 2
    assert synced[-1] == (history / "last-generation").stat().st_ino
    assert [path.name for path in history.glob(f"[{begun + 1}{begun + 2}].*")] == []
    assert make().store.generation == next_start


async def test_a_rejected_file_is_on_the_disk_before_it_is_replaced(make: MakeStore) -> None:
    """The folder of the history is synced before the rename: a power cut leaves the person's file somewhere."""
    faults = Faults()
    fixture = make(TEXT, calls=faults.calls)
    fixture.path.write_text("[pool\n")
    faults.seen.clear()
    await fixture.store.rollback(1, Terms("test"))
    renames = [number for number, name in enumerate(faults.seen) if name == "replace"]
    aside, committed = renames[:2]
    between = faults.seen[aside + 1 : committed]
    assert between[:2] == ["open", "fsync"]
