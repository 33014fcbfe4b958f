"""Reaching the control socket, and the words for everything that can be wrong with it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from mlxd.protocol.errors import (
    EXIT_DENIED,
    EXIT_INVALID,
    EXIT_PROTOCOL,
    EXIT_UNREACHABLE,
    EXIT_WAIT_TIMEOUT,
    ControlError,
)
from mlxd.protocol.paths import MAX_SOCKET_PATH_BYTES

CLOSED = "control.closed"
# Nobody listens there.
ABSENT = frozenset({"control.not_running", "control.stale_socket"})

# code → exit status, message, and the next command.
_ERRORS = {
    "control.not_running": (EXIT_UNREACHABLE, "no daemon is running: there is no socket at {path}", "mlxctl start"),
    "control.stale_socket": (
        EXIT_UNREACHABLE,
        "no daemon is running: the one that made {path} is gone and left its socket behind",
        "mlxctl start, which replaces it",
    ),
    "control.path_too_long": (
        EXIT_INVALID,
        "the socket path has {length} bytes and a Unix socket's may have {most}: {path}",
        "a shorter MLXD_HOME",
    ),
    "control.not_a_socket": (
        EXIT_INVALID,
        "{path} is not a socket",
        "mlxctl --socket PATH, with the path that mlxd logged when it started",
    ),
    "control.denied": (
        EXIT_DENIED,
        "{path} belongs to another account: only its owner and root may steer that daemon",
        "MLXD_HOME=~/.mlxd mlxctl start, for a daemon of your own",
    ),
    "control.unreachable": (EXIT_UNREACHABLE, "the daemon at {path} cannot be reached: {reason}", "mlxctl restart"),
    "control.silent": (
        EXIT_UNREACHABLE,
        "the daemon took the connection at {path} and said nothing for {duration}",
        "mlxctl status --timeout 60s, or end the process that holds the socket",
    ),
    "protocol.foreign": (
        EXIT_PROTOCOL,
        "whatever listens at {path} does not speak mlxd's control protocol ({reason})",
        "mlxctl --socket PATH, with the path that mlxd logged when it started",
    ),
    "protocol.version": (
        EXIT_PROTOCOL,
        "the running mlxd {version} would save it: it knows no --runtime-only",
        "mlxctl restart",
    ),
    CLOSED: (EXIT_UNREACHABLE, "the daemon at {path} ended the connection without an answer", "mlxctl status"),
    "control.restarted": (
        EXIT_UNREACHABLE,
        "the daemon was restarted before it answered {operation}; it may have been done",
        "mlxctl status",
    ),
    "control.timeout": (
        EXIT_WAIT_TIMEOUT,
        "no answer to {operation} within {duration}; what it began goes on",
        "mlxctl status, or the same with a longer --timeout",
    ),
    "control.ended": (EXIT_UNREACHABLE, "there will be no more events: {reason}", "mlxctl status"),
}


def connection_error(code: str, **words: object) -> ControlError:
    """Return the error of this code, with *words* in the places of its message."""
    exit_code, message, hint = _ERRORS[code]
    return ControlError(message.format(**words), exit_code=exit_code, code=code, hint=hint)


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Return a connection to the socket at *path*.

    Raises:
        ControlError: nobody listens there, it may not be talked to, or it is no socket.
    """
    raw = os.fsencode(path)
    if len(raw) > MAX_SOCKET_PATH_BYTES:
        raise connection_error("control.path_too_long", path=path, length=len(raw), most=MAX_SOCKET_PATH_BYTES)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(raw)
    except OSError as error:
        connection.close()
        raise connection_error(_code_of(path, error), path=path, reason=_reason_of(error)) from None
    return connection


def _code_of(path: Path, error: OSError) -> str:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "control.not_running"
        case PermissionError():
            return "control.denied"
        case ConnectionRefusedError():
            return "control.stale_socket" if _is_socket(path) else "control.not_a_socket"
        case OSError(errno=errno.ENOTSOCK):
            return "control.not_a_socket"
        case _:
            return "control.unreachable"


def _reason_of(error: OSError) -> str:
    if isinstance(error, TimeoutError | BlockingIOError):
        return "it is busy with other connections"
    return error.strerror or str(error)


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False
