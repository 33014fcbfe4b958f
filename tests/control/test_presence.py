"""Lock and socket stay where mlxctl looks for them."""

import logging
import stat
from pathlib import Path

import pytest

from mlxd.control.listen import InstanceLock
from mlxd.control.presence import Presence
from mlxd.protocol.errors import InUse
from mlxd.protocol.paths import Home
from tests.support.control import Plane, running_plane


class Present:
    """A control plane with its lock, and what looks after both."""

    def __init__(self, plane: Plane, lock: InstanceLock) -> None:
        self.ends: list[str] = []
        self.presence = Presence(lock, plane.listening, plane.server, lambda: self.ends.append("asked"))


async def test_a_deleted_socket_is_made_anew(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """Clients find the daemon again at the next look, and connections from before go on."""
    lock = InstanceLock(home.lock, home.socket)
    async with running_plane(home) as plane, await plane.connect() as before:
        present = Present(plane, lock)
        assert await present.presence.look()
        for _ in range(2):
            home.socket.unlink()
            assert await present.presence.look()
            assert stat.S_IMODE(home.socket.stat().st_mode) == 0o600
            async with await plane.connect() as after:
                assert (await after.ask("ping"))["boot_id"] == "boot-1"
        assert (await before.ask("ping"))["boot_id"] == "boot-1"
        inode = home.socket.stat().st_ino
        assert await present.presence.look()
        assert home.socket.stat().st_ino == inode
    assert not home.socket.exists()
    assert caplog.text.count("was deleted and is made anew") == 2
    lock.release()


async def test_a_deleted_lock_is_held_again(home: Home) -> None:
    """No second daemon comes up beside this one, and the file says who holds it."""
    lock = InstanceLock(home.lock, home.socket)
    held = home.lock.read_text()
    async with running_plane(home) as plane:
        home.lock.unlink()
        assert await Present(plane, lock).presence.look()
        assert home.lock.read_text() == held
        with pytest.raises(InUse):
            InstanceLock(home.lock)
    lock.release()
    InstanceLock(home.lock).release()


async def test_a_folder_that_is_gone_is_not_made(home: Home, tmp_path: Path) -> None:
    """No new home grows in its place; back again it has the socket that it always had."""
    lock = InstanceLock(home.lock, home.socket)
    async with running_plane(home) as plane:
        present = Present(plane, lock)
        away = home.root.with_name(f"{home.root.name}-away")
        home.root.rename(away)
        assert await present.presence.look()
        assert not home.root.exists()
        away.rename(home.root)
        assert await present.presence.look()
        async with await plane.connect() as client:
            assert (await client.ask("ping"))["boot_id"] == "boot-1"
        assert present.ends == []
    lock.release()


async def test_a_home_that_another_daemon_has_taken_over_is_left_to_it(home: Home) -> None:
    """Who lost the lock and the socket can be steered by nobody: it ends, and touches neither."""
    lock = InstanceLock(home.lock, home.socket)
    async with running_plane(home) as plane:
        present = Present(plane, lock)
        home.lock.unlink()
        home.socket.unlink()
        other = InstanceLock(home.lock, home.socket)
        sleeps: list[float] = []

        async def sleep(seconds: float) -> None:
            sleeps.append(seconds)

        await present.presence.watch(sleep)
        assert (present.ends, sleeps) == (["asked"], [2.0])
        assert not home.socket.exists()
        other.release()
    lock.release()


async def test_something_else_in_the_sockets_place_is_told_once(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """What a person has put there is not deleted, and the log does not fill with it; later all is well again."""
    lock = InstanceLock(home.lock, home.socket)
    async with running_plane(home) as plane:
        present = Present(plane, lock)
        home.socket.unlink()
        home.socket.write_text("precious")
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                assert await present.presence.look()
        assert caplog.text.count("cannot be made anew") == 1
        home.socket.unlink()
        assert await present.presence.look()
        async with await plane.connect() as client:
            assert client.hello["t"] == "hello"
    lock.release()
