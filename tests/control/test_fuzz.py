"""Random bytes, frames and params: each is answered, or its connection ends in words; nobody else is hurt.

The operations and their params come from the table, so a new row is tried as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxd.protocol import framing
from mlxd.protocol.key import format_path
from mlxd.protocol.operation import Operation, ParamType
from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.paths import Home
from mlxd.protocol.table import rows
from tests.support.control import Plane

TIMEOUT_S = 30.0
# No absolute paths: a daemon does as it is told, and would search the whole disk.
TEXT = st.text(max_size=12).map(lambda text: text.replace("/", "-"))
HUGE = st.sampled_from(["x" * 100_000, "\U000e0001" * 20_000, "[" * 5000, "\x00" * 2000])
WORDS = st.sampled_from(
    ["a", "b", "org/c", "p", "r", "op-1", "16MB", "50%", "auto", "never", "0s", "exact:a", "always"]
)
KEYS = st.sampled_from(sorted(format_path(path) for path, _ in rows())) | st.sampled_from(
    ["models.a.pin", "cloud.rules.r.mode", "cloud.providers.p.base_url", "models", 'models."', "."]
)
INTEGERS = st.integers(-3, 3) | st.sampled_from([2**31, 2**63 - 1, -(2**63), 2**64 - 1])
SCALARS = st.none() | st.booleans() | INTEGERS | st.floats() | TEXT | HUGE | WORDS | st.binary(max_size=8)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | KEYS, inner, max_size=4), max_leaves=8
)
TOML = st.sampled_from(
    ["", '[pool]\nmemory = "16MB"\n', "[pool", "x = [[1, {y = 1}]]\n", '[cloud.rules.r]\nmode = "x"\n']
)
OF_TYPE: dict[ParamType, st.SearchStrategy[Any]] = {
    ParamType.TEXT: WORDS | KEYS | TEXT | HUGE,
    ParamType.TOML: TOML | TEXT | HUGE,
    ParamType.COUNT: st.integers(0, 5) | INTEGERS,
    ParamType.INTEGER: INTEGERS,
    ParamType.BOOLEAN: st.booleans(),
    ParamType.TEXTS: st.lists(WORDS | TEXT, max_size=4),
    ParamType.CHANGES: st.dictionaries(KEYS | TEXT, ANYTHING, min_size=1, max_size=3),
}
FRAME_KEYS: dict[str, st.SearchStrategy[Any]] = {
    "dry": st.booleans() | ANYTHING,
    "persist": st.booleans() | ANYTHING,
    "if_gen": st.integers(0, 40) | ANYTHING,
    "idem": st.sampled_from(["k1", "k2"]) | ANYTHING,
    "deadline_ms": st.sampled_from([0, 1, 10_000, 2**63 - 1]) | ANYTHING,
}


def params_of(operation: Operation) -> st.SearchStrategy[dict[str, Any]]:
    """Return params that are mostly of their types."""
    values = {name: OF_TYPE[param.type] | ANYTHING for name, param in operation.params.items()}
    return st.fixed_dictionaries({}, optional=values) | st.fixed_dictionaries(values)


REQUESTS = st.sampled_from(sorted(OPERATIONS)).flatmap(
    lambda name: st.fixed_dictionaries(
        {"t": st.just("req"), "m": st.just(name), "p": params_of(OPERATIONS[name])}, optional=FRAME_KEYS
    )
)
SUBSCRIPTIONS = st.fixed_dictionaries(
    {"t": st.just("sub"), "topic": st.just("events") | ANYTHING},
    optional={"topics": st.lists(st.sampled_from(["op", "model"]), max_size=3) | ANYTHING, "model": WORDS | ANYTHING},
)
FRAMES = st.fixed_dictionaries(
    {"t": st.sampled_from(["req", "sub", "cancel", "hello", "ping", "res"]) | TEXT},
    optional={"id": ANYTHING, "m": st.sampled_from(sorted(OPERATIONS)) | ANYTHING, "p": ANYTHING, "topic": ANYTHING},
)
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
FUZZ = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


class Peer:
    """A client without manners."""

    def __init__(self, home: Home, *, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(home.socket))
        self.decoder = framing.FrameDecoder(framing.MAX_REPLY_BYTES)
        self.frames: list[dict[str, Any]] = []
        if greet:
            self.send(framing.make_hello("9.9"))
            assert self.receive()["t"] == "hello"

    def send(self, frame: Any) -> None:
        """Send anything that msgpack can."""
        body = msgpack.packb(frame)
        self.send_raw(len(body).to_bytes(4, "big") + body)

    def send_raw(self, data: bytes) -> None:
        """Send bytes; a daemon that has hung up is found out by the next receive."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def receive(self) -> dict[str, Any]:
        """Return the next frame; `{"t": "closed"}` when the daemon has hung up."""
        while not self.frames:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                return {"t": "closed"}
            self.frames += self.decoder.feed(data)
        return self.frames.pop(0)

    def receive_all(self) -> bytes:
        """Say that nothing more comes, and return every byte until the daemon hangs up."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(65536):
                received += data
        return received

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


@pytest.fixture
def plane(home: Home) -> Iterator[Plane]:
    """Return a control plane in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="plane")
    thread.start()

    async def start() -> Plane:
        plane = Plane(home)
        await plane.start()
        return plane

    running = asyncio.run_coroutine_threadsafe(start(), loop).result()
    yield running
    asyncio.run_coroutine_threadsafe(running.close(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def witness(plane: Plane) -> Iterator[Peer]:
    """Return a well-behaved client that was there before."""
    peer = Peer(plane.home)
    yield peer
    peer.close()


def check(witness: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """The witness is served, and nothing failed inside of the daemon."""
    witness.send({"t": "req", "id": 1, "m": "ping", "p": {}})
    assert witness.receive()["ok"]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def answer_to(peer: Peer, frame: dict[str, Any]) -> dict[str, Any]:
    """Send a frame and return what it comes to: its answer, or the reject before the end."""
    peer.send(frame)
    while (answer := peer.receive())["t"] not in {"res", "reject", "closed"}:
        pass
    return answer


@FUZZ
@given(st.lists(REQUESTS | SUBSCRIPTIONS, min_size=1, max_size=6))
def test_random_params_are_answered(
    plane: Plane, witness: Peer, caplog: pytest.LogCaptureFixture, frames: list[dict[str, Any]]
) -> None:
    """Whatever the params of an operation, it is done or refused by name; never an error of the daemon's own."""
    peer = Peer(plane.home)
    for number, frame in enumerate(frames):
        answer = answer_to(peer, {**frame, "id": number})
        assert (answer["t"], answer["id"]) == ("res", number), (frame, answer)
        if not answer["ok"]:
            assert answer["e"]["code"] != "internal_error", frame
            assert 0 < len(answer["e"]["msg"]) < 5000, frame
    peer.close()
    check(witness, caplog)


@FUZZ
@given(st.lists(FRAMES, min_size=1, max_size=6))
def test_random_frames_are_answered_or_end_in_words(
    plane: Plane, witness: Peer, caplog: pytest.LogCaptureFixture, frames: list[dict[str, Any]]
) -> None:
    """A frame that breaks the rules ends its connection with a reject; the others are answered."""
    peer = Peer(plane.home)
    for frame in frames:
        peer.send(frame)
    received = framing.FrameDecoder(framing.MAX_REPLY_BYTES).feed(peer.receive_all())
    assert {frame["t"] for frame in received} <= {"res", "prog", "evt", "end", "pong", "reject"}
    assert all(frame["e"]["msg"] for frame in received if frame["t"] == "reject")
    peer.close()
    check(witness, caplog)


@FUZZ
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_end_in_words(
    plane: Plane, witness: Peer, caplog: pytest.LogCaptureFixture, data: bytes, is_greeted: bool
) -> None:
    """What is no frame gets a reject, words for what else speaks, or nothing when it breaks off itself."""
    peer = Peer(plane.home, greet=is_greeted)
    peer.send_raw(data)
    received = peer.receive_all()
    if not received.startswith((b"HTTP/", b"This is mlxd's")):
        assert {frame["t"] for frame in framing.FrameDecoder(2**23).feed(received)} <= {"res", "pong", "reject"}
    peer.close()
    check(witness, caplog)
