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
import time
from dataclasses import dataclass
from pathlib import Path

from mlxd.atomic_file import identify
from mlxd.protocol.errors import CommitFailed, InUse, InvalidRequest
from mlxd.protocol.paths import MAX_SOCKET_PATH_BYTES

_LOCK_ATTEMPTS = 20
_LOCK_PAUSE_S = 0.01
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
        self.path = path
        self._control_socket = control_socket
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = self._take()
        except OSError as error:
            raise CommitFailed(f"{path} cannot be made: {error.strerror}", hint="another MLXD_HOME") from None

    def _take(self) -> int:
        """Lock the file at the path, made if it is not there; return its descriptor."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock(descriptor):
            holder, *_ = os.read(descriptor, 32).decode(errors="replace").splitlines() or [""]
            os.close(descriptor)
            pid = f" (pid {holder})" if holder.isdigit() else ""
            raise InUse(f"another mlxd{pid} runs with {self.path.parent}", hint="mlxctl stop, or another MLXD_HOME")
        os.ftruncate(descriptor, 0)
        with contextlib.suppress(OSError):  # a full disk: the pid is for messages, the lock holds without it
            lines = [str(os.getpid()), *([] if self._control_socket is None else [str(self._control_socket)])]
            os.write(descriptor, os.fsencode("".join(f"{line}\n" for line in lines)))
        return descriptor

    def restore(self) -> None:
        """Lock the file at the path anew, if it is not the one that was locked: that one was deleted or moved away.

        Raises:
            InUse: another daemon has it by now.
            OSError: it cannot be made; its folder may be gone.
        """
        if identify(self.path) == identify(self._descriptor):
            return
        descriptor = self._take()
        os.close(self._descriptor)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock; the file stays, because removing it would race with the next daemon."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def _lock(descriptor: int) -> bool:
    """Lock the open file; False when another daemon has it. mlxctl has it for a moment when it looks who has it."""
    for _ in range(_LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_LOCK_PAUSE_S)
    return False


class ListeningSocket:
    """The bound control socket and its file, mode 0600."""

    def __init__(self, path: Path) -> None:
        """Bind; a stale file is replaced. The caller holds the lock. Until somebody listens, clients are refused.

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
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The mask is the process's, not the thread's: this runs before any other thread makes files.
            before = os.umask(0o177)
            try:
                self.socket = _bind(path)
            finally:
                os.umask(before)
        except OSError as error:
            raise CommitFailed(f"no control socket at {path}: {error.strerror}", hint="--socket PATH") from None
        self._identity = identify(path)

    def restore(self) -> bool:
        """Bind anew, if the file was deleted; tell whether `socket` is another one now, which does not listen yet.

        Raises:
            InvalidRequest, InUse: something else is there by now.
            OSError: the system refuses; its folder may be gone.
        """
        if identify(self.path) == self._identity:
            return False
        bound = _bind(self.path)
        self.path.chmod(0o600)  # no mask, which would hit what other threads make; nobody can connect before `listen`
        self.socket, self._identity = bound, identify(self.path)
        return True

    def close(self) -> None:
        """Close the socket and remove its file, unless another daemon has put its own there."""
        self.socket.close()
        with contextlib.suppress(OSError):
            if identify(self.path) == self._identity:
                self.path.unlink()


def _bind(path: Path) -> socket.socket:
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    return bound


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
