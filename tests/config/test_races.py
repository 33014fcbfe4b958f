"""Commits and edits by hand at the same time: the file is valid throughout, and what is live is file and overlay."""

import asyncio
import itertools
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.config import Edit, SettingsStore, Terms
from mlxd.config.document import parse
from mlxd.config.state import State
from mlxd.protocol.errors import Conflict, FileInvalid
from tests.support.settings import COMMIT_CALLS, RENAME, TEXT, USABLE_BYTES, Faults, turn

# A person who saves between the second look at the file and the rename, a few microseconds, is not seen.
SEEN_CALLS = [number for number in range(len(COMMIT_CALLS)) if not RENAME - 3 < number <= RENAME]


def write_in_place(path: Path, text: str) -> None:
    """Save as `cat >` and nano do: truncate and write."""
    path.write_text(text)


def write_and_rename(path: Path, text: str) -> None:
    """Save as vim does: a new file takes the old one's name."""
    other = path.with_name("config.toml~new")
    other.write_text(text)
    other.replace(path)


def move_and_write(path: Path, text: str) -> None:
    """Save as emacs does: the old file becomes the backup, a new one is written in its place."""
    path.replace(path.with_name("config.toml~"))
    path.write_text(text)


Save = Callable[[Path, str], None]
SAVES: list[Save] = [write_in_place, write_and_rename, move_and_write]
VALUES = st.one_of(
    st.tuples(st.just(("pool", "max_models")), st.integers(1, 5) | st.none()),
    st.tuples(st.just(("pool", "memory")), st.sampled_from(["1GB", "2GB", "60%", None])),
    st.tuples(st.just(("queue", "size")), st.integers(1, 3) | st.none()),
)
EDITS = st.lists(VALUES, min_size=1, max_size=2, unique_by=lambda item: item[0])
STEPS = st.one_of(
    st.tuples(st.just("commit"), EDITS, st.booleans(), st.none() | st.sampled_from(SEEN_CALLS), st.sampled_from(SAVES)),
    st.tuples(st.just("together"), EDITS, EDITS),
    st.tuples(st.just("hand"), st.sampled_from(SAVES)),
    st.tuples(st.just("broken"), st.sampled_from(SAVES), st.booleans()),
    st.tuples(st.just("rollback")),
)


class World:
    """A store, its file, and the person at it, whose every edit leaves a comment that nobody else may take away."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.toml"
        self.path.write_text(TEXT)
        self.faults = Faults()
        self.store = SettingsStore(self.path, folder / "history", USABLE_BYTES, calls=self.faults.calls, pause=turn)
        self.numbers = itertools.count()
        self.comments: set[str] = set()

    def edit_by_hand(self, save: Save) -> None:
        """Add a comment and change a value."""
        number = next(self.numbers)
        comment = f"# hand {number}\n"
        lines = [
            line for line in self.path.read_text().splitlines(keepends=True) if not line.startswith("load_timeout")
        ]
        at = lines.index("[pool]\n") + 1
        save(self.path, "".join([*lines[:at], f'load_timeout = "{number + 1}s"\n', comment, *lines[at:]]))
        self.comments.add(comment)

    async def take(self, step: Any) -> None:
        """Take one step, and let the watch look until all is quiet."""
        overlay = self.store.state.overlay
        match step:
            case ("commit", edits, persist, call, save):
                if call is not None:
                    self.faults.before(call, lambda: self.edit_by_hand(save))
                await self.commit(edits, persist=persist)
                self.faults.before(-1, lambda: None)
            case ("together", first, second):
                await asyncio.gather(self.commit(first), self.commit(second))
            case ("hand", save):
                self.edit_by_hand(save)
            case ("broken", save, is_rolled_back):
                await self.break_and_mend(save, is_rolled_back=is_rolled_back)
            case ("rollback",):
                kept = [record.generation for record in self.store.disk.history.records() if record.has_version]
                await self.store.rollback(kept[0], Terms("test"))
                self.comments = {comment for comment in self.comments if comment in self.path.read_text()}
        for _ in range(4):
            await self.store.poll()
        self.check()
        if step[0] == "hand":
            assert self.store.state.overlay.is_same_as(overlay)

    async def commit(self, edits: Any, *, persist: bool = True) -> None:
        listed = [Edit(path, value) for path, value in edits if persist or value is not None]
        async with self.store.turn:
            await self.store.commit(listed, Terms("test", persist=persist))

    async def break_and_mend(self, save: Save, *, is_rolled_back: bool) -> None:
        """Leave the file broken for a while: nothing may touch it, and what is live stays."""
        good, live = self.path.read_text(), self.store.current
        broken = good + "[[["
        save(self.path, broken)
        for _ in range(3):
            await self.store.poll()
        try:
            await self.commit([(("queue", "size"), 9)])
        except FileInvalid:
            assert (self.path.read_text(), self.store.current) == (broken, live)
        assert self.store.problem is not None
        if is_rolled_back:
            await self.take(("rollback",))
        else:
            save(self.path, good)

    def check(self) -> None:
        """Check what must hold whenever nobody is busy."""
        text = self.path.read_text()
        version = parse(text.encode(), "config.toml", USABLE_BYTES)
        assert self.store.problem is None
        assert self.store.current == State.of(version, self.store.state.overlay, USABLE_BYTES).settings
        assert self.store.state.version.text == text
        assert all(comment in text for comment in self.comments)
        assert [path.name for path in self.path.parent.iterdir() if path.name.startswith(".")] == []


@settings(max_examples=25, deadline=None)
@given(st.lists(STEPS, min_size=8, max_size=8))
def test_random_commits_between_edits_by_hand(steps: list[Any]) -> None:
    """200 random steps: whoever writes, and however, nobody's words are lost, and live is always file and overlay."""

    async def run(folder: Path) -> None:
        world = World(folder)
        for step in steps:
            await world.take(step)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def test_an_editor_that_saves_in_steps_is_waited_for(tmp_path: Path) -> None:
    """A commit that meets a half-written file takes up the whole edit, not the half that is valid by accident."""
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    rest = ["", '[pool]\nmemory = "50%"\n', '[pool]\nmemory = "50%"\nmax_models = 3\n']

    async def pause(seconds: float) -> None:
        if rest:
            path.write_text(rest.pop(0))

    store = SettingsStore(path, tmp_path / "history", USABLE_BYTES, pause=pause)
    path.write_text(rest.pop(0))
    result = await store.commit([Edit(("queue", "size"), 5)], Terms("test"))
    assert result.generation == 3
    assert tomllib.loads(path.read_text()) == {"pool": {"memory": "50%", "max_models": 3}, "queue": {"size": 5}}


async def test_a_file_that_never_rests_is_a_conflict(tmp_path: Path) -> None:
    """A program that writes on and on is not waited for without end, and not written over."""
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    count = itertools.count()

    async def pause(seconds: float) -> None:
        path.write_text(TEXT + f"# {next(count)}\n")

    store = SettingsStore(path, tmp_path / "history", USABLE_BYTES, pause=pause)
    await pause(0)
    with pytest.raises(Conflict, match="being written by another program"):
        await store.commit([Edit(("queue", "size"), 5)], Terms("test"))
    assert (store.generation, store.current.queue.size) == (1, 256)
    assert path.read_text().startswith(TEXT)


async def test_an_edit_in_the_same_tick_of_the_clock_is_found(tmp_path: Path) -> None:
    """An edit of the same length, right after a commit, may leave size and times as they were."""
    path = tmp_path / "config.toml"
    path.write_text(TEXT)
    store = SettingsStore(path, tmp_path / "history", USABLE_BYTES, pause=turn)
    await store.poll()
    await store.commit([Edit(("pool", "memory"), "2GB")], Terms("test"))
    path.write_text(path.read_text().replace("2GB", "3GB"))
    disk = store.disk
    disk._seen = disk._look()  # as if it had looked like that before
    await store.poll()
    assert store.current.pool.memory == 3 * 10**9


async def test_a_link_that_leads_elsewhere_meanwhile_is_followed(tmp_path: Path) -> None:
    """Whoever switches the link during a commit finds the change in the file that it leads to now."""
    first, second, link = tmp_path / "a.toml", tmp_path / "b.toml", tmp_path / "config.toml"
    for path in (first, second):
        path.write_text(TEXT)
    link.symlink_to(first)
    faults = Faults()
    store = SettingsStore(link, tmp_path / "history", USABLE_BYTES, calls=faults.calls, pause=turn)

    def switch() -> None:
        other = tmp_path / "new"
        other.symlink_to(second)
        other.replace(link)

    faults.before(COMMIT_CALLS.index("fsync"), switch)
    await store.commit([Edit(("queue", "size"), 5)], Terms("test"))
    assert first.read_text() == TEXT
    assert tomllib.loads(second.read_text())["queue"] == {"size": 5}
    assert link.is_symlink()
