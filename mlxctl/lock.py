"""Who holds a home: what the daemon leaves in `mlxd.lock`, which tells of it when its socket does not."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

from mlxd.protocol.errors import EXIT_CONFLICT, ControlError
from mlxd.protocol.paths import Home


@dataclass(frozen=True, slots=True)
class Holder:
    """The daemon of a home, as it wrote itself down; what it could not write is None."""

    pid: int | None
    socket: Path | None


def is_held(lock: Path) -> bool:
    """Tell whether a daemon holds the single-instance lock; a process keeps it until it has ended."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def find_holder(home: Home) -> Holder | None:
    """Return who holds the home; None when nobody does."""
    if not is_held(home.lock):
        return None
    pid, socket, *_ = [*home.lock.read_text(errors="surrogateescape").splitlines(), "", ""]
    return Holder(int(pid) if pid.isdecimal() else None, Path(socket) if socket else None)


def find_elsewhere(home: Home, socket: Path) -> ControlError | None:
    """Return the error which says that the home's daemon listens on another socket than *socket*; None if it does not.

    A daemon was asked for at *socket*, and none is there.
    """
    holder = find_holder(home)
    if holder is None or holder.socket is None or holder.socket == socket.absolute():
        return None
    return ControlError(
        f"the daemon of {home.root} (pid {holder.pid}) listens on {holder.socket}, not on {socket}",
        exit_code=EXIT_CONFLICT,
        code="daemon.other_socket",
        hint=f"mlxctl --socket {holder.socket} status",
    )
