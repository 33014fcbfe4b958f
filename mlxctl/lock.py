"""The daemon of a home that does not answer: found by its lock, or by its process when the home is gone."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mlxctl.supervisor import is_mac
from mlxd.protocol.errors import EXIT_CONFLICT, EXIT_UNREACHABLE, ControlError
from mlxd.protocol.paths import Home

_COMMAND = re.compile(r"(?:^|/)mlxd$")
_PROCESSES = Path("/proc")


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


def find_orphan(home: Home, processes: Path = _PROCESSES) -> int | None:
    """Return the process id of an mlxd that was started with *home*; None when there is none, or nobody can tell."""
    words = _list_darwin() if is_mac() else _list_linux(processes)
    return next((pid for pid, said in words if is_daemon_of(home, said)), None)


def is_daemon_of(home: Home, words: list[str]) -> bool:
    """Tell whether a process is mlxd with this home, by the *words* of its command line and its environment."""
    command, environment = _split(words)
    is_module = any(first == "-m" and second == "mlxd" for first, second in pairwise(command))
    if not is_module and not any(_COMMAND.search(word) for word in command[:2]):
        return False
    given = dict(word.split("=", 1) for word in environment)
    root = given.get("MLXD_HOME") or f"{given.get('HOME', '')}/.mlxd"
    return Path(root) == home.root


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the command line and the environment, which begins with the first word that sets a variable."""
    variables = [number for number, word in enumerate(words) if re.match(r"[A-Za-z_][A-Za-z0-9_]*=", word)]
    start = variables[0] if variables else len(words)
    return words[:start], [words[number] for number in variables]


def _list_linux(processes: Path) -> Iterator[tuple[int, list[str]]]:
    for folder in processes.glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.geteuid():
                raw = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                yield int(folder.name), os.fsdecode(raw).split("\0")
        except OSError:  # it has ended meanwhile, or is of another account
            continue


def _list_darwin() -> Iterator[tuple[int, list[str]]]:
    # -E shows the environment after the command line.
    try:
        done = subprocess.run(
            ["/bin/ps", "-xww", "-E", "-o", "pid=,command="], capture_output=True, text=True, check=False
        )
    except OSError:
        return
    for line in done.stdout.splitlines():
        pid, *words = line.split()
        yield int(pid), words
