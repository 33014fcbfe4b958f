"""The control connection: what is asked, what is answered, and the words for everything that can be wrong."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxctl.client import Client, Terms, is_running
from mlxd.protocol import framing
from mlxd.protocol.errors import ControlError, InvalidValue
from tests.support.fake_control import FakeControl

TIMEOUT_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket is or is not."""
    return tmp_path / "s"


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    """A socket that somebody else listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        yield server


def fail(path: Path, timeout_s: float = TIMEOUT_S) -> ControlError:
    """Return the error of a connection that does not come about."""
    with pytest.raises(ControlError) as caught:
        Client(path, timeout_s)
    return caught.value


def test_request_and_answer(path: Path) -> None:
    """A request carries operation, params, generation and dry flag; its answer the result and the generation."""
    with FakeControl(path, {"settings.set": {"changed": []}}) as fake, Client(path, TIMEOUT_S) as daemon:
        reply = daemon.request("settings.set", {"changes": {"a": "b"}}, Terms(dry=True, if_generation=3))

    assert (reply.result, reply.generation, daemon.pid) == ({"changed": []}, 7, os.getpid())
    assert fake.requests == [
        {"t": "req", "id": 1, "m": "settings.set", "p": {"changes": {"a": "b"}}, "dry": True, "if_gen": 3}
    ]


def test_refusal_comes_as_it_was_sent(path: Path) -> None:
    """An error keeps its message, code, exit status, hint and field."""
    refusal = InvalidValue("-5GB is out of bounds", hint="write 1MB or more", param="pool.memory")
    with (
        FakeControl(path, {"settings.set": refusal}),
        Client(path, TIMEOUT_S) as daemon,
        pytest.raises(ControlError) as caught,
    ):
        daemon.request("settings.set", {"changes": {"pool.memory": "-5GB"}})

    assert caught.value.to_wire() == refusal.to_wire()


def test_progress_is_told_and_other_frames_are_passed_over(path: Path) -> None:
    """Progress frames of the request reach the caller; frames of other requests and unknown types do not."""

    def answer(frame: dict[str, Any]) -> list[dict[str, Any]]:
        own = {"id": frame["id"], "op": "op-1"}
        return [
            {"t": "prog", **own, "phase": "loading", "done": 1, "total": 2},
            {"t": "res", "id": 99, "ok": True, "r": {"wrong": True}},
            {"t": "novelty", **own},
            {"t": "res", **own, "ok": True, "r": {"state": "done"}},
        ]

    seen: list[Any] = []
    with FakeControl(path, {"op.wait": answer}), Client(path, TIMEOUT_S) as daemon:
        reply = daemon.request("op.wait", {"op": "op-1"}, on_progress=seen.append)

    assert reply.result == {"state": "done"}
    assert [(frame["phase"], frame["done"]) for frame in seen] == [("loading", 1)]


def test_no_socket(path: Path) -> None:
    """Without a daemon the error names the socket and the command that starts one, and exits 3."""
    error = fail(path)

    assert (error.exit_code, error.code, error.hint) == (3, "control.not_running", "mlxctl start")
    assert str(path) in error.message
    assert not is_running(path, TIMEOUT_S)


def test_stale_socket(path: Path, listener: socket.socket) -> None:
    """A socket that a dead daemon left behind is called that."""
    listener.close()

    error = fail(path)
    assert (error.exit_code, error.code) == (3, "control.stale_socket")
    assert "left its socket behind" in error.message


def test_plain_file(path: Path) -> None:
    """A path that leads to something else than a socket is a wrong value."""
    path.write_text("")

    error = fail(path)
    assert (error.exit_code, error.code) == (10, "control.not_a_socket")


def test_path_too_long(tmp_path: Path) -> None:
    """A path over the limit of Unix sockets is named with both numbers before anything is tried."""
    error = fail(tmp_path / ("x" * 120))

    assert error.exit_code == 10
    assert "103" in error.message
    assert error.hint == "a shorter MLXD_HOME"


def test_permission_denied(path: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket of another account exits 8 and says who may steer it."""

    class Denied(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mlxctl.connect.socket.socket", Denied)

    error = fail(path)
    assert (error.exit_code, error.code) == (8, "control.denied")
    assert "only its owner and root" in error.message


def test_daemon_refuses_the_peer(path: Path) -> None:
    """What the daemon says instead of a hello is passed on: here that this account may not."""
    refusal = {"code": "forbidden", "msg": "uid 501 may not steer a daemon of uid 0", "exit": 8}
    with FakeControl(path, t="reject", e=refusal):
        error = fail(path)

    assert (error.exit_code, error.message) == (8, "uid 501 may not steer a daemon of uid 0")


def test_no_common_protocol(path: Path) -> None:
    """Both versions and the command that fixes it come through."""
    refusal = {
        "code": "protocol.version",
        "msg": "mlxctl 9 speaks control protocol 3, mlxd 1 speaks 1",
        "exit": 9,
        "hint": "mlxctl restart",
    }
    with FakeControl(path, t="reject", e=refusal):
        error = fail(path)

    assert (error.exit_code, error.hint) == (9, "mlxctl restart")


@pytest.mark.parametrize("spoken", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x01\xc3", b"\xff" * 64])
def test_foreign_server(path: Path, listener: socket.socket, spoken: bytes) -> None:
    """Whatever else listens there is told apart from a daemon, exit 9."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(spoken)

    thread = threading.Thread(target=serve)
    thread.start()
    error = fail(path)
    thread.join()

    assert (error.exit_code, error.code) == (9, "protocol.foreign")


def test_hello_that_is_none(path: Path) -> None:
    """A first frame of another type is no daemon's."""
    with FakeControl(path, t="res"):
        assert fail(path).code == "protocol.foreign"


def test_silent_daemon(path: Path, listener: socket.socket) -> None:
    """A daemon that takes the connection and says nothing is not waited for forever."""
    error = fail(path, timeout_s=0.05)

    assert (error.exit_code, error.code) == (3, "control.silent")
    assert "50ms" in error.message


def test_no_answer_in_time(path: Path) -> None:
    """A request that gets no answer in time exits 7 and says that it may go on."""
    release = threading.Event()

    def stall(frame: dict[str, Any]) -> dict[str, Any]:
        release.wait(TIMEOUT_S)
        return {}

    with FakeControl(path, {"ping": stall}), Client(path, TIMEOUT_S) as daemon:
        with pytest.raises(ControlError) as caught:
            daemon.request("ping", timeout_s=0.05)
        release.set()

    assert (caught.value.exit_code, caught.value.code) == (7, "control.timeout")
    assert "ping within 50ms" in caught.value.message


def test_connection_that_ends(path: Path) -> None:
    """A daemon that goes away in the middle of a request is reported as that."""
    with (
        FakeControl(path, {"ping": lambda _: []}),
        Client(path, TIMEOUT_S) as daemon,
        pytest.raises(ControlError) as caught,
    ):
        daemon.request("ping")

    assert (caught.value.exit_code, caught.value.code) == (3, "control.closed")


def test_wait_closed(path: Path) -> None:
    """The end of the daemon is seen as the end of the connection, and only then."""
    fake = FakeControl(path)
    with Client(path, TIMEOUT_S) as daemon:
        assert not daemon.wait_closed(0.01)
        fake.close()
        assert daemon.wait_closed(TIMEOUT_S)


def test_oversized_request_is_not_sent(path: Path) -> None:
    """A request over the limit of the protocol is refused here, with both numbers."""
    with FakeControl(path) as fake, Client(path, TIMEOUT_S) as daemon:
        with pytest.raises(Exception, match=str(framing.MAX_REQUEST_BYTES)):
            daemon.request("settings.validate", {"text": "x" * framing.MAX_REQUEST_BYTES})
        assert fake.requests == []


def breaking(answers: list[Any]) -> Any:
    """Return an answer that hangs up where the list has None."""
    rest = iter(answers)

    def answer(frame: dict[str, Any]) -> Any:
        taken = next(rest)
        return [] if taken is None else taken

    return answer


def test_a_change_is_asked_again_with_its_key(path: Path) -> None:
    """A connection that breaks before the answer is made anew, and the same request goes out under the same key."""
    with (
        FakeControl(path, {"model.load": breaking([None, {"op": "op-1"}])}, caps=["idem"]) as fake,
        Client(path, TIMEOUT_S) as daemon,
    ):
        assert daemon.request("model.load", {"model": "m"}, Terms(key="k")).result == {"op": "op-1"}

    first, second = fake.requests
    assert (first["idem"], first["p"]) == (second["idem"], second["p"]) == ("k", {"model": "m"})


@pytest.mark.parametrize(("caps", "key"), [(["idem"], None), ([], "k")], ids=["no-key", "older-daemon"])
def test_a_change_is_not_asked_twice_without_a_key(path: Path, caps: list[str], key: str | None) -> None:
    """Where the daemon could make it twice, the broken connection is told instead."""
    with (
        FakeControl(path, {"model.load": breaking([None, {}])}, caps=caps) as fake,
        Client(path, TIMEOUT_S) as daemon,
        pytest.raises(ControlError) as caught,
    ):
        daemon.request("model.load", {"model": "m"}, Terms(key=key))

    assert (caught.value.code, len(fake.requests)) == ("control.closed", 1)


def test_a_question_is_asked_again(path: Path) -> None:
    """Questions change nothing, so they need no key."""
    with FakeControl(path, {"ping": breaking([None, {}])}) as fake, Client(path, TIMEOUT_S) as daemon:
        assert daemon.request("ping", is_question=True).result == {}

    assert len(fake.requests) == 2


def test_a_change_is_not_asked_of_another_daemon(path: Path) -> None:
    """A daemon that was restarted does not know the key: the person is told that it may have been done."""
    with FakeControl(path, {"model.load": breaking([None, {}])}, caps=["idem"]) as fake:

        def restart(frame: dict[str, Any]) -> Any:
            fake.hello["boot_id"] = "another"
            return []

        fake.answers["model.load"] = restart
        with Client(path, TIMEOUT_S) as daemon, pytest.raises(ControlError) as caught:
            daemon.request("model.load", {"model": "m"}, Terms(key="k"))

    assert (caught.value.exit_code, caught.value.code) == (3, "control.restarted")
    assert len(fake.requests) == 1
