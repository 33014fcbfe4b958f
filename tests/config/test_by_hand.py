"""Edits by hand are taken up, and never overwritten."""

import asyncio
import os
from pathlib import Path

import pytest

from mlxd.config import Edit, Terms
from mlxd.protocol.errors import (
    CommitFailed,
    Conflict,
    FileInvalid,
    InsufficientCapacity,
    InvalidValue,
)
from mlxd.protocol.settings import MAX_FILE_BYTES, Settings
from tests.support.settings import TEXT, Faults, MakeStore, Owner, assert_untouched


async def test_an_edit_by_hand_is_committed_first(make: MakeStore) -> None:
    """A valid edit that nobody has taken up yet becomes a generation of its own; comments and values survive."""
    fixture = make(TEXT)
    fixture.path.write_text(TEXT + "max_models = 3  # by hand\n")
    result = await fixture.set("pool.memory", "1GB")
    assert result.generation == 3
    assert fixture.store.current.pool.max_models == 3
    assert "# by hand" in fixture.path.read_text()
    assert [event.data["source"] for event in fixture.events] == ["file", "test"]


async def test_an_edit_that_depends_on_what_it_changes_sees_the_edit_by_hand(make: MakeStore) -> None:
    """An element that is added to a list keeps those that a person has added a moment ago."""
    fixture = make(TEXT)
    fixture.path.write_text(TEXT + 'preload = ["a"]\n')
    await fixture.store.commit(lambda current: [Edit(("pool", "preload"), [*current.pool.preload, "b"])], Terms("test"))
    assert fixture.store.current.pool.preload == ("a", "b")


async def test_an_edit_by_hand_conflicts_with_if_gen(make: MakeStore) -> None:
    """Who asked for a generation did not know of the edit."""
    fixture = make(TEXT)
    fixture.path.write_text(TEXT + "max_models = 3\n")
    with pytest.raises(Conflict, match="at generation 2, not 1"):
        await fixture.set("pool.memory", "1GB", if_gen=1)
    assert fixture.store.current.pool.max_models == 3


async def test_a_bad_edit_by_hand_is_never_overwritten(make: MakeStore) -> None:
    """Commits are refused with the place of the mistake until the file is fixed; the settings in force stay."""
    fixture = make(TEXT)
    broken = TEXT + "max_models = 0\n"
    fixture.path.write_text(broken)
    with pytest.raises(FileInvalid, match=r"config.toml:4:1: pool.max_models"):
        await fixture.set("pool.memory", "1GB")
    assert fixture.path.read_text() == broken
    assert fixture.problem
    assert not fixture.store.has_booted_invalid
    assert fixture.store.current.pool.memory == 192 * 10**8
    fixture.path.write_text(TEXT)
    assert (await fixture.set("pool.memory", "1GB")).generation == 2
    assert not fixture.problem
    assert [event.kind for event in fixture.events] == ["config.file_invalid", "config.file_mended", "config.changed"]


async def test_an_edit_by_hand_that_an_owner_refuses_names_its_line(make: MakeStore) -> None:
    """What cannot even be forced counts as a mistake in the file."""
    fixture = make(TEXT)

    def refuse(new: Settings, *, force: bool) -> list[str]:
        raise InvalidValue("no such model", param="pool.preload")

    fixture.owner.check = refuse  # type: ignore[method-assign]
    fixture.path.write_text(TEXT + 'preload = ["gone"]\n')
    with pytest.raises(FileInvalid, match=r"config.toml:4:1: no such model"):
        await fixture.store.reload(Terms("test"))


async def test_an_edit_by_hand_passes_what_could_be_forced(make: MakeStore) -> None:
    """The file is the truth already, as it would be after a restart: a forcible refusal is a warning."""
    fixture = make(TEXT)
    fixture.owner.refusal = InsufficientCapacity("below the pinned models")
    fixture.path.write_text(TEXT.replace("60%", "1GB"))
    result = await fixture.store.reload(Terms("test"))
    assert result.warnings == ["forced"]
    assert fixture.store.current.pool.memory == 10**9


async def test_the_file_is_read_when_it_has_settled(make: MakeStore) -> None:
    """A change is taken up at the second look that sees the same, without anybody asking; then it is not read again."""
    fixture = make(TEXT)
    fixture.path.write_text(TEXT.replace("60%", "50%"))
    await fixture.store.poll()
    assert fixture.store.generation == 1
    await fixture.store.poll()
    assert fixture.store.current.pool.memory == 16 * 10**9
    for _ in range(3):
        await fixture.store.poll()
    assert fixture.store.generation == 2
    assert [event.data["source"] for event in fixture.events] == ["file"]


async def test_a_file_that_keeps_changing_is_left_alone(make: MakeStore) -> None:
    """While an editor writes, no half-written file is taken up."""
    fixture = make(TEXT)
    for size in range(1, 6):
        fixture.path.write_text("# " + "x" * size + "\n[pool]\nmax_mod")
        await fixture.store.poll()
    assert not fixture.problem
    assert fixture.events == []


async def test_a_bad_file_is_told_once_and_its_mending_is_noticed(make: MakeStore) -> None:
    """The watcher says what is wrong, once, and takes the fixed file up by itself."""
    fixture = make(TEXT)
    fixture.path.write_text("[pool\n")
    for _ in range(4):
        await fixture.store.poll()
    assert fixture.problem
    assert [event.kind for event in fixture.events] == ["config.file_invalid"]
    fixture.path.write_text(TEXT.replace("60%", "50%"))
    for _ in range(4):
        await fixture.store.poll()
    assert not fixture.problem
    assert fixture.store.current.pool.memory == 16 * 10**9


@pytest.mark.parametrize("text", [TEXT, "[pool\n"])
async def test_a_file_that_stays_as_it_is_is_not_read_again(make: MakeStore, text: str) -> None:
    """Valid or not, the watch asks for its times and size, and leaves the disk alone."""
    faults = Faults()
    fixture = make(TEXT, calls=faults.calls)
    fixture.path.write_text(text)
    for _ in range(4):
        await fixture.store.poll()
    faults.seen.clear()
    for _ in range(4):
        await fixture.store.poll()
    assert faults.seen == []


async def test_our_own_writing_is_no_edit_by_hand(make: MakeStore) -> None:
    """After a commit the watcher finds nothing new."""
    fixture = make(TEXT)
    await fixture.set("pool.memory", "1GB")
    for _ in range(4):
        await fixture.store.poll()
    assert fixture.store.generation == 2
    assert len(fixture.events) == 1


async def test_watch_polls_between_sleeps(make: MakeStore) -> None:
    """The watcher looks after each pause, with the pause it was given."""
    fixture = make(TEXT)
    fixture.path.write_text(TEXT.replace("60%", "50%"))
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await fixture.store.watch(sleep)
    assert pauses == [2.0] * 4
    assert fixture.store.current.pool.memory == 16 * 10**9


async def test_a_removed_file_means_the_defaults(make: MakeStore) -> None:
    """Deleting the file is an edit like any other, and the next commit explains everything again."""
    fixture = make(TEXT)
    fixture.path.unlink()
    await fixture.store.reload(Terms("test"))
    assert fixture.store.current.pool.memory == 24 * 10**9
    await fixture.set("pool.max_models", 2)
    assert "# Settings of mlxd." in fixture.path.read_text()


@pytest.mark.parametrize("text", ["[pool\n", "[pool]\nmemory = 5\n", "[poool]\n"])
async def test_a_bad_file_at_the_start_keeps_nothing_from_coming_up(make: MakeStore, text: str) -> None:
    """The defaults are in force, the problem is set, commits are refused, and fixing is taken up."""
    fixture = make(text)
    assert (fixture.problem != "", fixture.store.has_booted_invalid) == (True, True)
    assert fixture.store.current.pool.memory == 24 * 10**9
    with pytest.raises(FileInvalid, match=r"config.toml:\d"):
        await fixture.set("pool.memory", "1GB")
    assert fixture.path.read_text() == text
    fixture.path.write_text(TEXT)
    await fixture.store.reload(Terms("test"))
    assert (fixture.problem != "", fixture.store.has_booted_invalid) == (False, False)
    assert fixture.owner.calls[-1] == "apply"


async def test_a_file_that_cannot_be_read_is_a_problem_and_no_crash(make: MakeStore, tmp_path: Path) -> None:
    """A folder in the file's place, or a file too large, is said in words."""
    (tmp_path / "config.toml").mkdir()
    assert "cannot be read" in str(make().store.problem)
    (tmp_path / "config.toml").rmdir()
    os.mkfifo(tmp_path / "config.toml")
    assert "is no regular file" in str(make().store.problem)
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.toml").write_bytes(b"#" * (2**19 + 1))
    assert "over 524288 bytes" in str(make().store.problem)


async def test_the_largest_file_that_may_be_is_read_and_written(make: MakeStore) -> None:
    """The bound itself is within bounds, in both directions, and one byte more is not."""
    text = TEXT + "#" * (MAX_FILE_BYTES - len(TEXT) - 1) + "\n"
    fixture = make(text)
    assert fixture.problem == ""
    await fixture.set("pool.memory", "61%")
    assert fixture.path.stat().st_size == MAX_FILE_BYTES
    with pytest.raises(
        CommitFailed, match=f"it would have {MAX_FILE_BYTES + 1} bytes, and it may have {MAX_FILE_BYTES}"
    ):
        await fixture.set("pool.memory", "100%")


async def test_what_no_daemon_can_start_with_is_refused_at_boot_and_in_commits(make: MakeStore) -> None:
    """A check of the snapshot alone makes a bad file of it, with the line, and refuses an edit."""

    def validate(settings: Settings) -> None:
        if settings.pool.max_models == 7:
            raise InvalidValue("seven is unlucky", param="pool.max_models")

    fixture = make(TEXT + "max_models = 7\n", validate=validate)
    assert "config.toml:4:1: seven is unlucky" in str(fixture.store.problem)
    fixture.path.write_text(TEXT)
    with pytest.raises(InvalidValue, match="seven is unlucky"):
        await fixture.set("pool.max_models", 7)
    assert fixture.path.read_text() == TEXT


async def test_a_file_edited_while_nobody_ran_is_the_next_generation(make: MakeStore) -> None:
    """The number tells the versions apart, also over a restart."""
    make(TEXT)
    assert make().store.generation == 1
    assert make(TEXT + "max_models = 3\n").store.generation == 2
    assert make().store.generation == 2


async def test_a_check_of_a_text_finds_the_place_and_changes_nothing(make: MakeStore) -> None:
    """A candidate file is judged like the real one."""
    fixture = make(TEXT)
    assert fixture.store.check_text("[pool]\nmax_models = 3\n") == []
    assert fixture.store.check_text(None) == []
    with pytest.raises(FileInvalid, match=r"^the text:1:7"):
        fixture.store.check_text("[pool]]\n")
    with pytest.raises(FileInvalid, match=r"^mine.toml:1:7"):
        fixture.store.check_text("[pool]]\n", "mine.toml")
    assert_untouched(fixture)


async def test_an_owner_that_fails_keeps_nobody_from_following(make: MakeStore) -> None:
    """A mistake in one owner is told, the others follow, and it gets the next edit."""
    fixture = make(TEXT)
    seen: list[int] = []

    def fail(new: Settings) -> None:
        seen.append(new.pool.memory // 10**9)
        if len(seen) == 1:
            raise ZeroDivisionError

    other = Owner()
    fixture.owner.apply = fail  # type: ignore[method-assign]
    fixture.attach("other", other)
    fixture.path.write_text(TEXT.replace("60%", "2GB"))
    for _ in range(2):
        await fixture.store.poll()
    assert fixture.store.current.pool.memory == 2 * 10**9
    assert other.calls[-1] == "apply"
    assert [line.partition(" has not applied")[0] for line in fixture.store.participants.unapplied] == ["owner"]
    assert fixture.events[0].data["warnings"] == fixture.store.participants.unapplied
    result = await fixture.set("pool.memory", "3GB")
    assert (seen, fixture.store.participants.unapplied, result.warnings) == ([2, 3], [], [])


async def test_what_nobody_has_foreseen_does_not_end_the_following(make: MakeStore) -> None:
    """An edit that a check of ours fails on is a problem in words, and the next edit is applied."""
    fixture = make(TEXT)
    check = fixture.owner.check

    def fail(new: Settings, *, force: bool) -> list[str]:
        raise ZeroDivisionError

    fixture.owner.check = fail  # type: ignore[method-assign]
    fixture.path.write_text(TEXT.replace("60%", "2GB"))
    for _ in range(2):
        await fixture.store.poll()
    assert fixture.problem == (
        "config.toml cannot be applied: this failed inside of mlxd (ZeroDivisionError), and its log has the details"
    )
    fixture.owner.check = check  # type: ignore[method-assign]
    fixture.path.write_text(TEXT.replace("60%", "1GB"))
    for _ in range(2):
        await fixture.store.poll()
    assert (fixture.problem, fixture.store.current.pool.memory) == ("", 10**9)
