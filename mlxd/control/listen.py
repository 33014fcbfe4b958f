"""The single-instance lock, the control socket's file, and who is at its other end.

Only the holder of the lock may remove a socket that a killed daemon has left behind. Knows nothing of what is spoken.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from mlxd.protocol.errors import CommitFailed, InUse, InvalidRequest
from mlxd.protocol.paths import MAX_SOCKET_PATH_BYTES

_BACKLOG = 64
_UCRED = struct.Struct("3i")  # Linux: pid, uid, gid
# macOS, <sys/un.h> and <sys/ucred.h>: level, option, and u_int cr_version, uid_t cr_uid, short cr_ngroups, gid_t[16].
_SOL_LOCAL = 0
_LOCAL_PEERCRED = 1
_LOCAL_PEERPID = 2
_XUCRED = struct.Struct("IIh16I")
_XUCRED_VERSION = 0


class InstanceLock:
    """Held by the one daemon of a home; the system lets go of it when the process ends, however it ends."""

    def __init__(self, path: Path, control_socket: Path | None = None) -> None:
        """Take the lock, and leave this process's id and its *control_socket* in the file for those who find it held.

        Raises:
            InUse: another daemon has it; the message has its pid.
            CommitFailed: the file cannot be made.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CommitFailed(f"{path} cannot be made: {error.strerror}", hint="another MLXD_HOME") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder, *_ = os.read(self._descriptor, 32).decode(errors="replace").splitlines() or [""]
            os.close(self._descriptor)
            pid = f" (pid {holder})" if holder.isdigit() else ""
            raise InUse(
                f"another mlxd{pid} runs with {path.parent}", hint="mlxctl stop, or another MLXD_HOME"
            ) from None
        os.ftruncate(self._descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the pid is for messages, the lock holds without it
            lines = [str(os.getpid()), *([] if control_socket is None else [str(control_socket)])]
            os.write(self._descriptor, os.fsencode("".join(f"{line}\n" for line in lines)))

    def release(self) -> None:
        """Let go of the lock; the file stays, because removing it would race with the next daemon."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


class ListeningSocket:
    """The bound control socket and its file, mode 0600."""

    def __init__(self, path: Path) -> None:
        """Bind and listen; a stale file is replaced. The caller holds the lock.

        Raises:
            InvalidRequest: the path is too long for a socket, or something else is there.
            InUse: another process answers there.
            CommitFailed: the system refuses.
        """
        length_bytes = len(os.fsencode(path))
        if length_bytes > MAX_SOCKET_PATH_BYTES:
            raise InvalidRequest(
                f"the socket path has {length_bytes} bytes, a Unix socket's may have {MAX_SOCKET_PATH_BYTES}: {path}",
                hint="a shorter MLXD_HOME, or --socket PATH",
            )
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _remove_stale(path)
            # The mask is the process's, not the thread's: this runs before any other thread makes files.
            before = os.umask(0o177)
            try:
                self.socket.bind(str(path))
            finally:
                os.umask(before)
            self.socket.listen(_BACKLOG)
            self._inode = path.stat().st_ino
        except OSError as error:
            self.socket.close()
            raise CommitFailed(f"no control socket at {path}: {error.strerror}", hint="--socket PATH") from None
        except (InUse, InvalidRequest):
            self.socket.close()
            raise

    def close(self) -> None:
        """Close the socket and remove its file, unless another daemon has put its own there."""
        self.socket.close()
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidRequest(f"{path} is not a socket", hint="--socket PATH, or move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        refused = probe.connect_ex(str(path))
    # A full backlog (EAGAIN) is a process that is busy, not one that is gone.
    if refused not in {errno.ECONNREFUSED, errno.ENOENT}:
        raise InUse(f"another process listens at {path}", hint="--socket PATH")
    path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection, as the kernel says; None where it does not."""

    uid: int | None
    pid: int | None


NOBODY = Peer(None, None)


def find_peer(connection: socket.socket) -> Peer:
    """Return who is at the other end."""
    linux_option: int | None = getattr(socket, "SO_PEERCRED", None)
    try:
        if linux_option is None:
            uid = parse_xucred(connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size))
            pid = None
            with contextlib.suppress(OSError):  # who it is decides, which process it is is only noted
                pid = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID)
            return Peer(uid, pid)
        pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, linux_option, _UCRED.size))
        return Peer(uid, pid)
    except OSError:
        return NOBODY


def parse_xucred(raw: bytes) -> int | None:
    """Return the user in a macOS `struct xucred`; None when it is of another version."""
    if len(raw) < _XUCRED.size:
        return None
    version, uid, *_ = _XUCRED.unpack_from(raw)
    return int(uid) if version == _XUCRED_VERSION else None


def is_allowed(uid: int | None) -> bool:
    """Tell whether this user may steer the daemon: root, or whoever runs it."""
    return uid in {0, os.geteuid()}
