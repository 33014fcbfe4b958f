"""A process that is killed in the middle of a commit leaves the old settings file or the new one."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlxd.config import Edit, SettingsStore, Terms
from tests.support.settings import COMMIT_CALLS, RENAME

USABLE_BYTES = 32 * 10**9
OLD = "# mine\n[pool]\nmax_models = 1  # one\n" + "# filler\n" * 2000
NEW = OLD.replace("= 1", "= 2")

# For each system call of a commit: commits max_models = 2 in a process of its own, and kills that before, after or,
# where there is one, in the middle of the call; then starts on what is left. Prints a line for each:
# [number of the call, its name, before | middle | after, version of the file, generation after the start].
KILLED_AT_EACH_CALL = """
import asyncio, dataclasses, json, os, signal, sys
from pathlib import Path
from mlxd.config import Edit, SettingsStore, Terms
from mlxd.atomic_file import SystemCalls


base, old, new = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def start(home, **more):
    return SettingsStore(home / "config.toml", home / "history", 32 * 10**9, **more)

def commit(home, wanted, when):
    count = -1000  # the start has calls, too

    def watched(name, real):
        def call(*arguments):
            nonlocal count
            count += 1
            if count == wanted and when == "middle":
                os.write(arguments[0], arguments[1][:5000])
            if count == wanted and when == "after":
                real(*arguments)
            if count == wanted:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)
        return call

    names = [item.name for item in dataclasses.fields(SystemCalls)]
    calls = SystemCalls(**{name: watched(name, getattr(SystemCalls(), name)) for name in names})
    store = start(home, calls=calls)
    count = -1
    asyncio.run(store.commit([Edit(("pool", "max_models"), 2)], Terms("test")))

names = sys.argv[4].split()
for number, name in enumerate(names):
    for when in ["before", "after", *(["middle"] if name == "write" else [])]:
        home = base / f"{number}-{when}"
        home.mkdir()
        (home / "config.toml").write_text(old)
        child = os.fork()
        if child == 0:
            commit(home, number, when)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, (number, name, when)
        found = {old: "old", new: "new"}.get((home / "config.toml").read_text(), "mixed")
        store = start(home)
        assert store.problem is None
        left = [path.name for folder in (home, home / "history") for path in folder.iterdir() if path.name[0] == "."]
        assert left == [], left
        print(json.dumps([number, name, when, found, store.generation]))
"""

# Commits one value after the other, forever, and says each generation once it is committed.
COMMITS_FOR_EVER = """
import asyncio, itertools, sys
from pathlib import Path
from mlxd.config import Edit, SettingsStore, Terms


home = Path(sys.argv[1])
store = SettingsStore(home / "config.toml", home / "history", 32 * 10**9)

async def run():
    for number in itertools.cycle([2, 1]):
        result = await store.commit([Edit(("pool", "max_models"), number)], Terms("test"))
        print(result.generation, flush=True)

asyncio.run(run())
"""


def test_killed_at_each_system_call(tmp_path: Path) -> None:
    """Up to the rename the file is the old one, byte for byte, from then on the new one; a start fixes the rest."""
    child = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EACH_CALL, str(tmp_path), OLD, NEW, " ".join(COMMIT_CALLS)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in child.stdout.splitlines()]
    assert [name for number, name, when, *_ in lines if when == "before"] == COMMIT_CALLS
    for number, _, when, found, generation in lines:
        is_committed = number > RENAME or (number == RENAME and when == "after")
        assert (found, generation) == (("new", 2) if is_committed else ("old", 1)), (number, when)


@pytest.mark.parametrize("commits", [1, 2, 5])
def test_killed_from_outside(tmp_path: Path, commits: int) -> None:
    """A kill that comes at any moment leaves one of the two versions, and the settings can be changed again."""
    config = tmp_path / "config.toml"
    config.write_text(OLD)
    with subprocess.Popen([sys.executable, "-c", COMMITS_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(commits):
            child.stdout.readline()
        child.kill()
    assert config.read_text() in {OLD, NEW}
    store = assert_starts(tmp_path)
    before = store.generation
    asyncio.run(store.commit([Edit(("pool", "max_models"), 9)], Terms("test")))
    assert store.generation == before + 1
    assert config.read_text() == OLD.replace("= 1", "= 9")


def assert_starts(home: Path) -> SettingsStore:
    """Start a store on what is left, and check that it is whole and clean."""
    store = SettingsStore(home / "config.toml", home / "history", USABLE_BYTES)
    assert store.problem is None
    assert store.current.pool.max_models in {1, 2}
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []
    return store
