"""Who holds a home: what the daemon leaves in `mlxd.lock`, which tells of it when its socket does not."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

from mlxd.protocol.errors import EXIT_CONFLICT, EXIT_UNREACHABLE, ControlError
from mlxd.protocol.paths import Home


@dataclass(frozen=True, slots=True)
class Holder:
    """The daemon of a home, as it wrote itself down; what it could not write is None."""

    pid: int | None
    socket: Path | None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """A daemon that runs and cannot be talked to; its home may be gone, and with it the lock."""

    pid: int | None
    error: ControlError
    is_homeless: bool = False


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


def find_unreachable(home: Home, socket: Path, *, is_usual_socket: bool = True) -> Unreachable | None:
    """Return the daemon that runs although none answers at *socket*, with the words for that; None when none runs.

    Args:
        home: whose daemon was asked for.
        socket: where none is.
        is_usual_socket: the socket was not chosen by the user; who chose another one may mean a daemon without a home.
    """
    holder = find_holder(home)
    if holder is not None:
        is_elsewhere = holder.socket is not None and holder.socket != socket.absolute()
        if is_elsewhere and not is_usual_socket:
            return None
        describe = _elsewhere if is_elsewhere else _deaf
        return Unreachable(holder.pid, describe(home, socket, holder))
    if not is_usual_socket or home.lock.exists():
        return None
    from mlxctl.orphan import find_orphan  # late: it looks through all processes

    pid = find_orphan(home)
    return None if pid is None else Unreachable(pid, _homeless(home, pid), is_homeless=True)


def _elsewhere(home: Home, socket: Path, holder: Holder) -> ControlError:
    return ControlError(
        f"the daemon of {home.root} (pid {holder.pid}) listens on {holder.socket}, not on {socket}",
        exit_code=EXIT_CONFLICT,
        code="daemon.other_socket",
        hint=f"mlxctl --socket {holder.socket} status",
    )


def _deaf(home: Home, socket: Path, holder: Holder) -> ControlError:
    who = "a daemon" if holder.pid is None else f"the daemon (pid {holder.pid})"
    return ControlError(
        f"{who} of {home.root} runs, and does not listen at {socket}\nit is starting or ending, or its socket was"
        " deleted: it makes a new one within seconds",
        exit_code=EXIT_UNREACHABLE,
        code="daemon.no_socket",
        hint="the same again in some seconds\nmlxctl stop, which ends that process",
    )


def _homeless(home: Home, pid: int) -> ControlError:
    return ControlError(
        f"a daemon (pid {pid}) runs whose home {home.root} is gone: moved away, deleted or unmounted",
        exit_code=EXIT_UNREACHABLE,
        code="daemon.home_gone",
        hint=f"put {home.root} back, and it continues\nmlxctl stop, which ends that process",
    )
