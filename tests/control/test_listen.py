"""The lock, the socket's file, and who is at its other end."""

import asyncio
import errno
import fcntl
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxd.control.listen import InstanceLock, ListeningSocket, Peer, find_peer, is_allowed, parse_xucred
from mlxd.protocol.errors import CommitFailed, InUse, InvalidRequest
from mlxd.protocol.paths import Home
from tests.support.control import running_plane

HOLDER = """
import sys
from pathlib import Path
from mlxd.control.listen import InstanceLock
lock = InstanceLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_only_one_daemon_holds_the_lock(home: Home) -> None:
    """A second one is refused and told the pid of the first; the lock can be had again after its release."""
    first = InstanceLock(home.lock)
    with pytest.raises(InUse, match=rf"another mlxd \(pid {os.getpid()}\)") as caught:
        InstanceLock(home.lock)
    assert caught.value.exit_code == 5
    first.release()
    InstanceLock(home.lock).release()


def test_the_lock_says_where_its_daemon_listens(home: Home) -> None:
    """The file has the pid and the control socket, and nothing after the release."""
    lock = InstanceLock(home.lock, home.root / "other.sock")
    assert home.lock.read_text().splitlines() == [str(os.getpid()), f"{home.root}/other.sock"]
    with pytest.raises(InUse, match=rf"another mlxd \(pid {os.getpid()}\)"):
        InstanceLock(home.lock)
    lock.release()
    assert home.lock.read_text() == ""


def test_a_full_disk_takes_the_pid_and_not_the_lock(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for the pid the daemon comes up all the same, and keeps a second one out."""

    def write(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        first = InstanceLock(home.lock)
    with pytest.raises(InUse, match=r"another mlxd runs with"):
        InstanceLock(home.lock)
    first.release()


def test_a_killed_daemon_holds_no_lock(home: Home) -> None:
    """The system lets go of the lock of a process that was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(InUse):
            InstanceLock(home.lock)
        child.kill()
    InstanceLock(home.lock).release()


def test_a_look_at_the_lock_does_not_keep_a_daemon_from_coming_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mlxctl shares the lock for a moment to see whether it is held; who comes up then tries again."""
    home.lock.touch()
    with home.lock.open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr("mlxd.control.listen.time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
        InstanceLock(home.lock).release()


def test_a_home_that_cannot_be_made_is_said_in_words(home: Home) -> None:
    """A file in the folder's place is no crash."""
    (home.root / "file").write_text("")
    with pytest.raises(CommitFailed, match="cannot be made"):
        InstanceLock(home.root / "file" / "mlxd.lock")


def test_the_sockets_file_is_private_and_goes_with_it(home: Home) -> None:
    """Mode 0600 from its first moment, whatever the mask; no file is left after the end."""
    before = os.umask(0)
    listening = ListeningSocket(home.socket)
    after = os.umask(before)
    assert stat.S_IMODE(home.socket.stat().st_mode) == 0o600
    assert after == 0
    listening.close()
    assert not home.socket.exists()


def test_a_stale_socket_is_replaced(home: Home) -> None:
    """What a killed daemon has left behind does not keep the next from coming up."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home.socket))
    listening = ListeningSocket(home.socket)
    listening.socket.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(home.socket))
    listening.close()


def test_a_socket_that_answers_is_left_alone(home: Home) -> None:
    """Another daemon's socket is not taken away from it."""
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(home.socket))
        alive.listen()
        with pytest.raises(InUse, match="another process listens"):
            ListeningSocket(home.socket)
        assert home.socket.exists()


def test_a_file_in_the_sockets_place_is_left_alone(home: Home) -> None:
    """Nothing that is not a socket is deleted."""
    home.socket.write_text("precious")
    with pytest.raises(InvalidRequest, match="is not a socket"):
        ListeningSocket(home.socket)
    assert home.socket.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_said_with_both_numbers(home: Home) -> None:
    """The limit is the smallest of all systems, so that a home works everywhere."""
    path = home.root / ("x" * 120)
    with pytest.raises(InvalidRequest, match=rf"has {len(str(path))} bytes, .* may have 103"):
        ListeningSocket(path)


def test_the_next_daemons_socket_is_not_removed(home: Home) -> None:
    """A daemon that ends late leaves the file of its successor alone."""
    late = ListeningSocket(home.socket)
    home.socket.rename(home.root / "old")
    successor = ListeningSocket(home.socket)
    late.close()
    assert home.socket.exists()
    successor.close()


def test_the_kernel_says_who_is_there() -> None:
    """The user of the other end is ours, in a pair that we made."""
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert find_peer(left) == Peer(os.geteuid(), os.getpid())
    with socket.socket(socket.AF_INET) as foreign:
        assert find_peer(foreign).uid in {None, 0xFFFFFFFF, -1}


def test_the_structure_of_macos_is_read() -> None:
    """Its user is the second field, valid only in the version that we know."""
    raw = struct.pack("IIh16I", 0, 501, 1, *[20] * 16)
    assert len(raw) == 76
    assert parse_xucred(raw) == 501
    assert parse_xucred(struct.pack("IIh16I", 1, 501, 1, *[20] * 16)) is None
    assert parse_xucred(b"short") is None


def test_only_root_and_the_own_user_are_allowed() -> None:
    """A user that the kernel does not name is a stranger."""
    assert is_allowed(os.geteuid())
    assert is_allowed(0)
    assert not is_allowed(os.geteuid() + 12345)
    assert not is_allowed(None)


@pytest.fixture
def open_home() -> Iterator[Home]:
    """Return a home that strangers may enter."""
    with tempfile.TemporaryDirectory(prefix="mlxd-") as folder:
        Path(folder).chmod(0o755)
        yield Home(Path(folder))


STRANGER = """
import os, socket, sys
os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
while data := client.recv(65536):
    sys.stdout.buffer.write(data)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_a_stranger_is_refused_in_words(open_home: Home) -> None:
    """A foreign user who gets as far as the socket is told why there is no hello."""
    async with running_plane(open_home) as plane:
        plane.home.socket.chmod(0o666)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", STRANGER, str(plane.home.socket), stdout=asyncio.subprocess.PIPE
        )
        answer, _ = await child.communicate()
    assert b"forbidden" in answer
    assert b"only the user who runs mlxd" in answer
