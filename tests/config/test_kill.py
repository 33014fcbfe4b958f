"""A process that is killed in the middle of a commit leaves the old settings file or the new one."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxd.config import Edit, SettingsStore
from mlxd.protocol.kind import Machine

MACHINE = Machine(usable_bytes=32 * 10**9)
OLD = "# mine\n[pool]\nmax_models = 1  # one\n" + "# filler\n" * 2000
NEW = OLD.replace("= 1", "= 2")

# Commits max_models = 2 and kills itself at one system call: before it, in the middle of it, or after it.
KILLED_AT_A_CALL = """
import asyncio, dataclasses, os, signal, sys
from pathlib import Path
from mlxd.config import Edit, SettingsStore
from mlxd.config.file import SystemCalls
from mlxd.protocol.kind import Machine

home, name, when = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
real = getattr(SystemCalls(), name)

def deadly(*arguments):
    if when == "middle":
        os.write(arguments[0], arguments[1][:5000])
    if when == "after":
        real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)

calls = dataclasses.replace(SystemCalls(), **{name: deadly})
store = SettingsStore(home / "config.toml", home / "history", Machine(32 * 10**9), calls=calls)
asyncio.run(store.commit([Edit(("pool", "max_models"), 2)], source="test"))
"""

# Commits one value after the other, for ever, and says each generation once it is committed.
COMMITS_FOR_EVER = """
import asyncio, itertools, sys
from pathlib import Path
from mlxd.config import Edit, SettingsStore
from mlxd.protocol.kind import Machine

home = Path(sys.argv[1])
store = SettingsStore(home / "config.toml", home / "history", Machine(32 * 10**9))

async def run():
    for number in itertools.cycle([2, 1]):
        result = await store.commit([Edit(("pool", "max_models"), number)], source="test")
        print(result.generation, flush=True)

asyncio.run(run())
"""


@pytest.mark.parametrize(
    ("name", "when", "wanted"),
    [
        ("open", "before", OLD),
        ("open", "after", OLD),
        ("fchmod", "after", OLD),
        ("write", "before", OLD),
        ("write", "middle", OLD),
        ("write", "after", OLD),
        ("fsync", "after", OLD),
        ("replace", "before", OLD),
        ("replace", "after", NEW),
    ],
)
def test_killed_at_a_system_call(tmp_path: Path, name: str, when: str, wanted: str) -> None:
    """Up to the rename the file is the old one, byte for byte, from then on the new one; a start mends the rest."""
    config = tmp_path / "config.toml"
    config.write_text(OLD)
    child = subprocess.run([sys.executable, "-c", KILLED_AT_A_CALL, str(tmp_path), name, when], check=False)
    assert child.returncode == -signal.SIGKILL
    assert config.read_text() == wanted
    assert_starts(tmp_path)


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
    asyncio.run(store.commit([Edit(("pool", "max_models"), 9)], source="test"))
    assert store.generation == before + 1
    assert config.read_text() == OLD.replace("= 1", "= 9")


def assert_starts(home: Path) -> SettingsStore:
    """Start a store on what is left, and check that it is whole and clean."""
    store = SettingsStore(home / "config.toml", home / "history", MACHINE)
    assert store.problem is None
    assert store.current.pool.max_models in {1, 2}
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []
    return store
