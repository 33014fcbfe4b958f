"""The daemon's process: start it detached and wait until it answers, stop it and wait until it is gone.

Owns the words for a start that fails. Knows no terminal and no launchd.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlxd
from mlxctl.client import Client
from mlxctl.connect import ABSENT, CLOSED
from mlxctl.lock import Unreachable, find_holder, find_unreachable, is_held
from mlxd.protocol.errors import EXIT_CONFLICT, EXIT_OTHER, EXIT_WAIT_TIMEOUT, ControlError
from mlxd.protocol.paths import Home
from mlxd.protocol.units import format_duration

# It listens in well under a second; a machine that has just booted, or is swapping, is slower.
START_TIMEOUT_S = 30.0
# Over daemon.drain_timeout, which is 50 s at most.
STOP_TIMEOUT_S = 70.0

# What a daemon that comes up, goes down or is not there at all looks like from outside.
_NOT_THERE = ABSENT | {CLOSED}
_POLL_S = 0.05
_OPENING_TIMEOUT_S = 5.0
_END_TIMEOUT_S = 5.0
# A daemon makes a deleted socket anew within 2 s, and one that ends takes its requests' time.
_HOLDER_TIMEOUT_S = STOP_TIMEOUT_S
_LOG_LINES = 15


@dataclass(frozen=True, slots=True)
class Address:
    """The address without `/v1`, or why there is none."""

    url: str | None
    problem: str | None


def find_address(daemon: Client) -> Address:
    """Return the address, or the problem, as soon as the daemon has one of them."""
    url = daemon.hello.get("http")
    if isinstance(url, str):
        return Address(url, None)
    deadline_s = time.monotonic() + _OPENING_TIMEOUT_S
    while True:
        http = daemon.request("status").result["http"]
        if http["url"] is not None or http["problem"] is not None:
            return Address(http["url"], http["problem"])
        if time.monotonic() >= deadline_s:
            return Address(None, "it is still being opened")
        time.sleep(_POLL_S)


def find_daemon(socket: Path, timeout_s: float) -> Client | None:
    """Return a connection to the daemon at *socket*; None when none runs."""
    try:
        return Client(socket, timeout_s)
    except ControlError as error:
        if error.code in _NOT_THERE:
            return None
        raise


def start_detached(home: Home, socket: Path, timeout_s: float) -> Client:
    """Start a daemon that outlives this process and return a connection to it.

    Another one that is being started for the same home is as good.

    Raises:
        ControlError: its home cannot be used, or has a daemon with another socket; it ended, or did not answer in time,
            and the message has the last lines of its log.
    """
    daemon = await_holder(home, socket, timeout_s)
    if daemon is not None:
        return daemon
    try:
        home.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ControlError(
            f"{home.logs} cannot be made: {error.strerror}", code="home.unusable", hint="another MLXD_HOME"
        ) from None
    log_start = home.log.stat().st_size if home.log.exists() else 0
    child = _spawn(home, socket)
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        status = child.poll()
        daemon = find_daemon(socket, timeout_s)
        if daemon is not None:
            if daemon.pid != child.pid:
                _end(child)  # too late, or it would come up as soon as the other one is stopped
            return daemon
        if status == EXIT_CONFLICT:  # another holds the lock: it is coming up, or about to end
            child = _spawn(home, socket)
        elif status is not None:
            raise _start_failed(home, f"the daemon ended with status {status} before it answered", log_start)
        time.sleep(_POLL_S)
    _end(child)  # a command that failed leaves nothing behind
    raise _start_failed(home, f"the daemon did not answer within {format_duration(timeout_s)}", log_start)


def await_holder(home: Home, socket: Path, timeout_s: float) -> Client | None:
    """Return a connection to the daemon that has the home and does not answer yet; None when there is none any more.

    It may be coming up, about to end, or about to make a deleted socket anew.

    Raises:
        ControlError: it listens elsewhere, its home is gone, or it does not answer in time.
    """
    deadline_s = time.monotonic() + min(timeout_s, _HOLDER_TIMEOUT_S)
    while (found := find_unreachable(home, socket)) is not None:
        daemon = find_daemon(socket, timeout_s)
        if daemon is not None:
            return daemon
        if found.error.code != "daemon.no_socket" or time.monotonic() >= deadline_s:
            raise found.error
        time.sleep(_POLL_S)
    return None


def stop(daemon: Client, home: Home, *, now: bool, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ask the daemon to end and return when it has.

    Raises:
        ControlError: running requests keep it longer than *timeout_s*.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        daemon.request("daemon.stop", {"now": now})
    except ControlError as error:
        if error.code != "control.closed":  # it may be gone before its answer
            raise
    if not wait_ended(daemon, home, deadline_s - time.monotonic()):
        raise not_ended(daemon.pid, timeout_s)


def wait_ended(daemon: Client, home: Home, timeout_s: float) -> bool:
    """Return True when the daemon, which is about to end, has ended; False when it has not within *timeout_s*."""
    deadline_s = time.monotonic() + timeout_s
    has_ended = daemon.wait_closed(timeout_s)
    while has_ended and is_held(home.lock):
        has_ended = time.monotonic() < deadline_s
        time.sleep(_POLL_S)
    return has_ended


def end_unreachable(home: Home, found: Unreachable, *, now: bool, timeout_s: float = STOP_TIMEOUT_S) -> int:
    """End a daemon that cannot be asked to, by SIGTERM, and return its pid when it has ended.

    With *now* running requests are cancelled by a second SIGTERM, and SIGKILL ends what does nothing. Nothing is lost
    by that: settings are in the file or not at all.

    Raises:
        ControlError: its pid is not known, or it has not ended within *timeout_s*.
    """
    if found.pid is None:
        raise found.error
    signals = [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL] if now else [signal.SIGTERM]
    for number in signals:
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.pid, number)
        deadline_s = time.monotonic() + (_END_TIMEOUT_S if now else timeout_s)
        while _runs(home, found):
            if time.monotonic() >= deadline_s:
                break
            time.sleep(_POLL_S)
        else:
            return found.pid
    raise not_ended(found.pid, timeout_s)


def _runs(home: Home, found: Unreachable) -> bool:
    """Tell whether it has not ended: a lock is held to the last moment, and without one there is the process."""
    if not found.is_homeless:
        holder = find_holder(home)
        return holder is not None and holder.pid == found.pid
    try:
        os.kill(found.pid or 0, 0)
    except ProcessLookupError:
        return False
    return True


def not_ended(pid: int, timeout_s: float) -> ControlError:
    """Return the error which says that the daemon was asked to end and runs still."""
    return ControlError(
        f"the daemon (pid {pid}) has not ended within {format_duration(timeout_s)}; it is still about to",
        exit_code=EXIT_WAIT_TIMEOUT,
        code="daemon.stop_timeout",
        hint="mlxctl stop --now, which cancels the running requests",
    )


def last_lines(path: Path, start: int = 0, count: int = _LOG_LINES) -> list[str]:
    """Return the last *count* lines that stand in the file from byte *start* on; none when there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def daemon_command(home: Home, socket: Path) -> list[str]:
    """Return the command line that runs the daemon in the foreground of its process."""
    command = [sys.executable, "-m", "mlxd", "--log-file", str(home.log)]
    return command if socket == home.socket else [*command, "--socket", str(socket.absolute())]


def _spawn(home: Home, socket: Path) -> subprocess.Popen[bytes]:
    # -m puts the working folder first on the path: there lies this very mlxd, and nothing of the user's.
    folder = Path(mlxd.__file__).parent.parent
    with home.log.open("ab") as log:  # what it says before it has a log, and why it could not start
        home.log.chmod(0o600)
        return subprocess.Popen(
            daemon_command(home, socket),
            cwd=folder,
            env={**os.environ, "MLXD_HOME": str(home.root)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _start_failed(home: Home, what: str, log_start: int) -> ControlError:
    lines = last_lines(home.log, log_start)
    said = [f"the last lines of {home.log}:", *(f"  {line}" for line in lines)] if lines else []
    return ControlError(
        "\n".join([what, *said]),
        exit_code=EXIT_OTHER,
        code="daemon.start_failed",
        hint=f"mlxd, which runs it in the foreground, or read {home.log}",
    )
