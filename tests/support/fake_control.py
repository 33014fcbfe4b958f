"""A daemon's control socket without a daemon: real framing, real sockets, threads, canned answers.

It refuses what the real one refuses: an operation or param that the table of operations does not have.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxd import __version__
from mlxd.protocol import framing
from mlxd.protocol.errors import MlxdError
from mlxd.protocol.operation import check_params
from mlxd.protocol.operations import find_operation

Answer = Mapping[str, Any] | MlxdError | Callable[[dict[str, Any]], Any]


class FakeControl:
    """Listens at *path* and answers each operation with what `answers` has for it.

    An answer is the result, an error to send, or a function of the request's frame that returns either (or a list of
    frames to send as they are, before the connection ends). For `sub` and `cancel` frames it is a function that returns
    the frames to send. `requests` has every frame but hellos in order of arrival.
    """

    def __init__(self, path: Path, answers: Mapping[str, Answer] | None = None, **hello: Any) -> None:
        """Listen; *hello* overrides keys of the daemon's hello, `version` and `t` among them."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path
        self.answers = dict(answers or {})
        self.requests: list[dict[str, Any]] = []
        self.hellos: list[dict[str, Any]] = []
        self.hello = {
            **framing.make_hello(__version__),
            "proto": framing.PROTOCOL_MAX,
            "boot_id": "boot",
            "pid": os.getpid(),
            "gen": 7,
            "http": "http://127.0.0.1:6593",
            **hello,
        }
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connections: list[socket.socket] = []
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="fake-control", daemon=True)
        self._servers: list[threading.Thread] = []
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def asked(self, operation: str) -> list[dict[str, Any]]:
        """Return the params of every request for *operation*."""
        return [frame["p"] for frame in self.requests if frame["m"] == operation]

    def close(self) -> None:
        """Take the socket away, hang up on everybody and end the threads."""
        if self._closing.is_set():
            return
        self._closing.set()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wake:
            wake.connect(str(self.path))
        self._acceptor.join()
        self._listener.close()
        self.path.unlink(missing_ok=True)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for server in self._servers:
            server.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # a test has closed it, as a daemon does that goes
                return
            if self._closing.is_set():
                connection.close()
                return
            self._connections.append(connection)
            server = threading.Thread(
                target=self._serve, args=(connection,), name="fake-control-connection", daemon=True
            )
            self._servers.append(server)
            server.start()

    def _serve(self, connection: socket.socket) -> None:
        decoder = framing.FrameDecoder(framing.MAX_REQUEST_BYTES)
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                for frame in decoder.feed(data):
                    if not self._take(connection, frame):
                        return

    def _take(self, connection: socket.socket, frame: dict[str, Any]) -> bool:
        """Answer one frame; False ends the connection."""
        if frame["t"] == "hello":
            self.hellos.append(frame)
            _send(connection, self.hello)
            return bool(self.hello["t"] == "hello")
        self.requests.append(frame)
        if frame["t"] in {"sub", "cancel"}:
            for raw in self.answers[frame["t"]](frame):  # type: ignore[operator]
                _send(connection, raw)
            return True
        try:
            answer = self._answer(frame)
        except MlxdError as error:
            answer = error
        if isinstance(answer, list):
            for raw in answer:
                _send(connection, raw)
            return False
        base = {"t": "res", "id": frame["id"], "gen": self.hello["gen"]}
        if isinstance(answer, MlxdError):
            _send(connection, {**base, "ok": False, "e": answer.to_wire()})
        else:
            _send(connection, {**base, "ok": True, "r": dict(answer)})
        return True

    def _answer(self, frame: dict[str, Any]) -> Any:
        operation = find_operation(frame["m"])
        _, unknown = check_params(operation, frame["p"])
        assert unknown == [], f"{operation.name} has no {unknown}"
        answer = self.answers[operation.name]
        return answer(frame) if callable(answer) else answer


def _send(connection: socket.socket, frame: Mapping[str, Any]) -> None:
    connection.sendall(framing.encode(frame, framing.MAX_REPLY_BYTES))
