"""How mlxctl reaches the control socket, and the words for everything that can be wrong on the way."""

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
from mlxd.protocol.units import format_duration

CLOSED = "control.closed"
# Nobody listens there.
ABSENT = frozenset({"control.not_running", "control.stale_socket"})


def connect(path: Path, timeout_s: float) -> socket.socket:
    """Return a connection to the socket at *path*.

    Raises:
        ControlError: nobody listens there, it may not be talked to, or it is no socket.
    """
    raw = os.fsencode(path)
    if len(raw) > MAX_SOCKET_PATH_BYTES:
        raise ControlError(
            f"the socket path has {len(raw)} bytes and a Unix socket's may have {MAX_SOCKET_PATH_BYTES}: {path}",
            exit_code=EXIT_INVALID,
            code="control.path_too_long",
            hint="a shorter MLXD_HOME",
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(raw)
    except OSError as error:
        connection.close()
        raise _unreachable(path, error) from None
    return connection


def _unreachable(path: Path, error: OSError) -> ControlError:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return not_running(path)
        case PermissionError():
            return ControlError(
                f"{path} belongs to another account: only its owner and root may steer that daemon",
                exit_code=EXIT_DENIED,
                code="control.denied",
                hint="MLXD_HOME=~/.mlxd mlxctl start, for a daemon of your own",
            )
        case ConnectionRefusedError() if _is_socket(path):
            return ControlError(
                f"no daemon is running: the one that made {path} is gone and left its socket behind",
                exit_code=EXIT_UNREACHABLE,
                code="control.stale_socket",
                hint="mlxctl start, which replaces it",
            )
        case ConnectionRefusedError() | OSError(errno=errno.ENOTSOCK):
            return ControlError(
                f"{path} is not a socket",
                exit_code=EXIT_INVALID,
                code="control.not_a_socket",
                hint="mlxctl --socket PATH, with the path that mlxd logged when it started",
            )
        case TimeoutError() | BlockingIOError():
            reason = "it is busy with other connections"
        case _:
            reason = error.strerror or str(error)
    return ControlError(
        f"the daemon at {path} cannot be reached: {reason}",
        exit_code=EXIT_UNREACHABLE,
        code="control.unreachable",
        hint="mlxctl restart",
    )


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def not_running(path: Path) -> ControlError:
    """Return the error that says that nobody listens at *path*."""
    return ControlError(
        f"no daemon is running: there is no socket at {path}",
        exit_code=EXIT_UNREACHABLE,
        code="control.not_running",
        hint="mlxctl start",
    )


def silent(path: Path, timeout_s: float) -> ControlError:
    """Return the error that says that the connection was taken and no hello came."""
    return ControlError(
        f"the daemon took the connection at {path} and said nothing for {format_duration(timeout_s)}",
        exit_code=EXIT_UNREACHABLE,
        code="control.silent",
        hint="mlxctl status --timeout 60s, or end the process that holds the socket",
    )


def foreign(path: Path, reason: str) -> ControlError:
    """Return the error that says that something else listens there."""
    return ControlError(
        f"whatever listens at {path} does not speak mlxd's control protocol ({reason})",
        exit_code=EXIT_PROTOCOL,
        code="protocol.foreign",
        hint="mlxctl --socket PATH, with the path that mlxd logged when it started",
    )


def closed(path: Path) -> ControlError:
    """Return the error that says that the connection ended before an answer."""
    return ControlError(
        f"the daemon at {path} ended the connection without an answer",
        exit_code=EXIT_UNREACHABLE,
        code=CLOSED,
        hint="mlxctl status",
    )


def restarted(operation: str) -> ControlError:
    """Return the error that says that another daemon runs now, which cannot know what was done."""
    return ControlError(
        f"the daemon was restarted before it answered {operation}; it may have been done",
        exit_code=EXIT_UNREACHABLE,
        code="control.restarted",
        hint="mlxctl status",
    )


def no_answer(operation: str, wait_s: float) -> ControlError:
    """Return the error that says that an answer did not come in time."""
    return ControlError(
        f"no answer to {operation} within {format_duration(wait_s)}; what it began goes on",
        exit_code=EXIT_WAIT_TIMEOUT,
        code="control.timeout",
        hint="mlxctl status, or the same with a longer --timeout",
    )
