"""Reading keys: files that are none, disks and keychains that never answer, and what is said of them."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxd.cloud.key import Keys
from mlxd.cloud.secret import Secrets
from mlxd.protocol.errors import CommitFailed, SecretMissing
from tests.support.keychain import MemoryKeychain, memory_keychain


class StuckKeychain(MemoryKeychain):
    """Asks a person who is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Semaphore(0)
        self.may_answer = threading.Event()

    def _open(self) -> None:
        self.asked.release()
        self.may_answer.wait()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckKeychain]:
    """Have `keyring` use a keychain that does not answer until the end of the test."""
    monkeypatch.setattr("tests.support.keychain.MemoryKeychain", StuckKeychain)
    with memory_keychain() as keychain:
        assert isinstance(keychain, StuckKeychain)
        yield keychain
        keychain.may_answer.set()


KEYCHAIN = {"keychain": "mlxd/far"}


async def test_a_keychain_that_never_answers_costs_its_own_requests_only(stuck: StuckKeychain, tmp_path: Path) -> None:
    """Each ends after the limit; they wait for one read, on a thread that is none of the workers'."""
    secrets = Secrets({}, tmp_path, limit_s=0.02)
    threads = threading.active_count()
    asked = [secrets.read("far", KEYCHAIN) for _ in range(20)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert {str(error) for error in found} == {
        "the key of provider 'far' is not there: the keychain did not answer within 0.02 s"
    }
    assert all(isinstance(error, SecretMissing) for error in found)
    assert threading.active_count() == threads + 1
    stuck.entries["mlxd", "far"] = "sk-1"
    stuck.may_answer.set()
    assert await Secrets({}, tmp_path).read("far", KEYCHAIN) == "sk-1"


async def test_a_key_is_not_kept_by_a_keychain_that_never_answers(
    stuck: StuckKeychain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sets it learns that nobody knows, and the daemon's other work goes on."""
    monkeypatch.setattr("mlxd.cloud.key._LIMIT_S", 0.02)
    keys = Keys(tmp_path / "secrets")
    with pytest.raises(CommitFailed, match="whether the key 'far' is kept is not known"):
        await keys.keep("far", "sk-1")
    assert await keys.kept() == []


async def test_a_pipe_is_no_key(tmp_path: Path) -> None:
    """Nobody waits for a writer, and the words say what is there."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SecretMissing, match="pipe: it is no regular file"):
        await Secrets({}, tmp_path).read("far", {"file": f"{tmp_path}/pipe"})


async def test_the_mode_is_that_of_what_is_read(tmp_path: Path) -> None:
    """A key that others may read is not used."""
    key = tmp_path / "key"
    key.write_text("sk-1\n")
    key.chmod(0o640)
    with pytest.raises(SecretMissing, match=r"others may read .*key \(mode 0640\)"):
        await Secrets({}, tmp_path).read("far", {"file": str(key)})
    key.chmod(0o600)
    assert await Secrets({}, tmp_path).read("far", {"file": str(key)}) == "sk-1"


async def test_what_a_killed_daemon_left_of_a_key_is_in_nobodys_way(tmp_path: Path) -> None:
    """A half-written file is replaced, and is no key."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / ".far.tmp").write_text("sk-ha")
    keys = Keys(folder)
    assert await keys.kept() == []
    await keys.keep("far", "sk-1")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("far", "sk-1\n")]
