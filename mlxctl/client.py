"""The control connection as mlxctl uses it: a blocking socket, one request after the other.

Owns the words for everything that can be wrong between the two programs. Frames are `mlxd.protocol.framing`'s.
Must not import asyncio: it costs as much as the rest of the program.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxd import __version__
from mlxd.protocol import framing
from mlxd.protocol.errors import (
    EXIT_DENIED,
    EXIT_INVALID,
    EXIT_PROTOCOL,
    EXIT_UNREACHABLE,
    EXIT_WAIT_TIMEOUT,
    ControlError,
    ProtocolError,
)
from mlxd.protocol.paths import MAX_SOCKET_PATH_BYTES
from mlxd.protocol.units import format_duration

_RECEIVE_BYTES = 65536

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request: the result, and the generation of the settings it was made under."""

    result: dict[str, Any]
    generation: int | None
    ignored: tuple[str, ...] = ()


def not_running(path: Path) -> ControlError:
    """Return the error that says that nobody listens at *path*."""
    return ControlError(
        f"no daemon is running: there is no socket at {path}",
        exit_code=EXIT_UNREACHABLE,
        code="control.not_running",
        hint="mlxctl start",
    )


def is_running(path: Path, timeout_s: float) -> bool:
    """Tell whether a daemon says hello at *path*; errors that are about something else than its absence are raised."""
    try:
        with Client(path, timeout_s):
            return True
    except ControlError as error:
        if error.exit_code == EXIT_UNREACHABLE:
            return False
        raise


class Client:
    """One connection to the daemon, greeted."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        """Connect to the socket at *path* and exchange hellos.

        Args:
            path: the control socket.
            timeout_s: longest wait for the hello, and for each answer unless the request says otherwise.

        Raises:
            ControlError: there is no daemon, it may not be talked to, or it speaks another protocol.
        """
        self.path = path
        self.timeout_s = timeout_s
        self._decoder = framing.Decoder(framing.MAX_REPLY_BYTES)
        self._frames: deque[dict[str, Any]] = deque()
        self._last_id = 0
        self._socket = _connect(path, timeout_s)
        try:
            self.hello = self._greet()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; operations that it began go on."""
        self._socket.close()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return int(self.hello["pid"])

    @property
    def version(self) -> str:
        """The version of the running daemon."""
        return str(self.hello["version"])

    def request(
        self,
        operation: str,
        params: Mapping[str, Any] | None = None,
        *,
        dry: bool = False,
        if_generation: int | None = None,
        timeout_s: float | None = None,
        on_progress: Progress | None = None,
    ) -> Reply:
        """Ask for one operation and return its answer.

        Raises:
            ControlError: as the daemon answered, or no answer came in time (exit 7), or the connection ended (exit 3).
        """
        self._last_id += 1
        frame: dict[str, Any] = {"t": "req", "id": self._last_id, "m": operation, "p": dict(params or {})}
        if dry:
            frame["dry"] = True
        if if_generation is not None:
            frame["if_gen"] = if_generation
        wait_s = self.timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + wait_s
        self._send(frame)
        while True:
            try:
                answer = self._receive(deadline_s)
            except TimeoutError:
                raise self._no_answer(operation, wait_s) from None
            if answer.get("id") != self._last_id:
                continue
            if answer.get("t") == "prog" and on_progress is not None:
                on_progress(answer)
            elif answer.get("t") == "res":
                return _read_answer(answer)

    def wait_closed(self, timeout_s: float) -> bool:
        """Return True when the daemon has ended the connection; False when it has not within *timeout_s*."""
        deadline_s = time.monotonic() + timeout_s
        try:
            while True:
                self._receive(deadline_s)
        except TimeoutError:
            return False
        except ControlError:
            return True

    def _greet(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + self.timeout_s
        self._send(framing.make_hello(__version__))
        try:
            hello = self._receive(deadline_s)
        except TimeoutError:
            raise ControlError(
                f"the daemon took the connection at {self.path} and said nothing for {format_duration(self.timeout_s)}",
                exit_code=EXIT_UNREACHABLE,
                code="control.silent",
                hint="mlxctl status --timeout 60s, or end the process that holds the socket",
            ) from None
        if hello.get("t") == "reject":
            raise ControlError.from_wire(hello.get("e") or {})
        if hello.get("t") != "hello" or not isinstance(hello.get("pid"), int):
            raise self._foreign("its first frame is no hello")
        return hello

    def _send(self, frame: Mapping[str, Any]) -> None:
        data = framing.encode(frame, framing.MAX_REQUEST_BYTES)
        self._socket.settimeout(self.timeout_s)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise self._no_answer(str(frame.get("m", "hello")), self.timeout_s) from None
        except OSError:
            # The daemon may have said why before it hung up: the next receive reads that, or finds the end.
            return

    def _receive(self, deadline_s: float) -> dict[str, Any]:
        while not self._frames:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._socket.settimeout(left_s)
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                raise ControlError(
                    f"the daemon at {self.path} ended the connection without an answer",
                    exit_code=EXIT_UNREACHABLE,
                    code="control.closed",
                    hint="mlxctl status",
                )
            try:
                self._frames.extend(self._decoder.feed(data))
            except ProtocolError as error:
                raise self._foreign(str(error.data.get("spoken") or error.message)) from None
        return self._frames.popleft()

    def _foreign(self, reason: str) -> ControlError:
        return ControlError(
            f"whatever listens at {self.path} does not speak mlxd's control protocol ({reason})",
            exit_code=EXIT_PROTOCOL,
            code="protocol.foreign",
            hint="mlxctl --socket PATH, with the path that mlxd logged when it started",
        )

    def _no_answer(self, operation: str, wait_s: float) -> ControlError:
        return ControlError(
            f"no answer to {operation} within {format_duration(wait_s)}; what it began goes on",
            exit_code=EXIT_WAIT_TIMEOUT,
            code="control.timeout",
            hint="mlxctl status, or the same with a longer --timeout",
        )


def _read_answer(answer: Mapping[str, Any]) -> Reply:
    if not answer.get("ok"):
        raise ControlError.from_wire(answer.get("e") or {})
    return Reply(answer.get("r") or {}, answer.get("gen"), tuple(answer.get("ignored") or ()))


def _connect(path: Path, timeout_s: float) -> socket.socket:
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
