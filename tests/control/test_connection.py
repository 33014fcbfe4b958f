"""The control socket: hello, frames, limits, slow and broken clients."""

import asyncio
import os
import socket
import struct
from typing import Any

import msgpack
import pytest

from mlxd.control import server
from mlxd.control.connection import MAX_IN_FLIGHT
from mlxd.control.server import MAX_CONNECTIONS
from mlxd.protocol import framing
from mlxd.protocol.paths import Home
from tests.support.control import Client, Plane, running_plane, until


async def test_hello(plane: Plane) -> None:
    """The daemon says who it is, what it can, where HTTP is, and how much a client may send."""
    async with await plane.connect() as client:
        hello = client.hello
    assert hello["t"] == "hello"
    assert hello["proto"] == framing.PROTOCOL_MAX
    assert (hello["version"], hello["boot_id"], hello["gen"]) == ("1.2.3", "boot-1", 1)
    assert isinstance(hello["pid"], int)
    assert hello["http"] == "http://127.0.0.1:6593"
    assert hello["caps"] == ["apikey", "deadline", "dry", "events", "idem", "if_gen", "ops", "persist", "topics"]
    assert hello["limits"] == {"request_bytes": 2**20, "in_flight": MAX_IN_FLIGHT}


async def test_no_common_protocol_is_answered_with_both_versions(plane: Plane) -> None:
    """Neither side guesses: the client is told both versions and the command that fixes it."""
    async with await plane.connect(greet=False) as client:
        await client.send({"t": "hello", "min": 99, "max": 100, "version": "9.9"})
        reject = await client.receive()
        assert reject["t"] == "reject"
        assert reject["version"] == "1.2.3"
        assert (reject["min"], reject["max"]) == (framing.PROTOCOL_MIN, framing.PROTOCOL_MAX)
        assert reject["e"]["code"] == "protocol.version"
        assert "mlxctl 9.9" in reject["e"]["msg"]
        assert "mlxd 1.2.3" in reject["e"]["msg"]
        assert reject["e"]["hint"] == "mlxctl restart"
        assert reject["e"]["exit"] == 9
        with pytest.raises(EOFError):
            await client.receive()


async def test_a_client_that_says_nothing_is_not_waited_for(home: Home) -> None:
    """Without a hello the connection ends, in words."""
    async with running_plane(home, hello_timeout_s=0.05) as plane, await plane.connect(greet=False) as client:
        reject = await client.receive()
        assert "no hello came" in reject["e"]["msg"]


async def raw(plane: Plane, data: bytes) -> bytes:
    """Send bytes and return all that comes back before the end."""
    reader, writer = await asyncio.open_unix_connection(str(plane.home.socket))
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def test_http_is_answered_in_http(plane: Plane) -> None:
    """Whoever points curl or a browser at the socket reads what it is."""
    answer = await raw(plane, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"mlxd's control socket" in answer


async def test_tls_is_answered_in_words(plane: Plane) -> None:
    """A TLS client gets text instead of a hang."""
    assert b"mlxd's control socket" in await raw(plane, b"\x16\x03\x01\x00\x80" + bytes(128))


@pytest.mark.parametrize(
    "data",
    [
        bytes(4),
        struct.pack(">I", 2**20 + 1),
        struct.pack(">I", 1) + b"\xc1",
        struct.pack(">I", 7) + msgpack.packb("no map"),
        struct.pack(">I", 6) + msgpack.packb({1: 2}) + b"more",
    ],
    ids=["empty", "oversize", "garbage", "no-map", "number-key"],
)
async def test_garbage_is_answered_in_words(plane: Plane, data: bytes) -> None:
    """Whatever is no frame ends the connection with a reason, and harms nobody else."""
    frames = framing.FrameDecoder(framing.MAX_REPLY_BYTES).feed(await raw(plane, data))
    assert [frame["t"] for frame in frames] == ["reject"]
    async with await plane.connect() as client:
        await client.ask("ping")


async def test_garbage_after_the_hello_ends_the_connection(plane: Plane, client: Client) -> None:
    """A stream that is broken once cannot be read on."""
    client.writer.write(struct.pack(">I", 3) + b"abc")
    assert (await client.receive())["t"] == "reject"
    with pytest.raises(EOFError):
        await client.receive()


async def test_unknown_keys_are_ignored_and_unknown_params_named(client: Client) -> None:
    """A newer client's extras break nothing, and it can tell which of its params had no effect."""
    answer = await client.request("ping", {"idem": "k", "later": 1}, extra=1)
    assert answer["ok"]
    assert answer["ignored"] == ["extra"]


async def test_every_reply_has_the_generation(client: Client) -> None:
    """Good or bad, a reply says which settings it is about."""
    assert (await client.request("ping"))["gen"] == 1
    assert (await client.request("pool.shwo"))["gen"] == 1


@pytest.mark.parametrize(
    ("frame", "code", "words"),
    [
        ({"m": "pool.shwo"}, "not_found", "nearest is 'pool.show'"),
        ({"m": None}, "not_found", "no operation None"),
        ({"m": "model.show", "p": {}}, "invalid_request", "needs 'model'"),
        ({"m": "model.show", "p": []}, "invalid_request", "must be a map"),
        (
            {"m": "settings.set", "p": {"changes": {"pool.memory": "1GB"}}, "dry": "yes"},
            "invalid_request",
            "dry must be",
        ),
        (
            {"m": "settings.set", "p": {"changes": {"pool.memory": "1GB"}}, "if_gen": "1"},
            "invalid_request",
            "if_gen must",
        ),
        ({"m": "catalog.rescan", "dry": True}, "invalid_request", "has no dry run"),
        ({"m": "ping", "if_gen": 1}, "invalid_request", "takes no if_gen"),
        ({"m": "catalog.rescan", "if_gen": 9}, "config.conflict", "at generation 1, not 9"),
        ({"m": "catalog.rescan", "idem": ""}, "invalid_request", "idem must be a text of 1 to 128"),
        ({"m": "catalog.rescan", "idem": "x" * 129}, "invalid_request", "idem must be a text of 1 to 128"),
        ({"m": "ping", "deadline_ms": -1}, "invalid_request", "deadline_ms must be"),
    ],
)
async def test_bad_requests_are_answered_and_the_connection_lives(
    client: Client, frame: dict[str, Any], code: str, words: str
) -> None:
    """A request at fault gets its error by its id; the next one is served."""
    await client.send({"t": "req", "id": 77, "p": {}, **frame})
    answer = await client.receive()
    assert (answer["t"], answer["id"], answer["ok"]) == ("res", 77, False)
    assert answer["e"]["code"] == code
    assert words in answer["e"]["msg"]
    assert await client.ask("ping")


async def test_an_unknown_frame_is_answered(client: Client) -> None:
    """A newer client's frame types are refused by name."""
    await client.send({"t": "later", "id": 5})
    assert "no frame of type 'later'" in (await client.receive())["e"]["msg"]


@pytest.mark.parametrize("frame", [{"t": "req"}, {"t": "req", "id": "1"}, {"t": "req", "id": True}, {}])
async def test_a_frame_without_an_id_breaks_the_rules(client: Client, frame: dict[str, Any]) -> None:
    """What cannot be answered ends the connection."""
    await client.send(frame)
    assert "whole number as its id" in (await client.receive())["e"]["msg"]


async def test_ping_frames(client: Client) -> None:
    """A connection can be tried without an operation."""
    await client.send({"t": "ping"})
    assert await client.receive() == {"t": "pong"}


async def test_answers_come_out_of_order(plane: Plane, client: Client) -> None:
    """A request that waits keeps no other from being answered."""
    plane.backend.hold_loads(hold=True)
    op = (await client.ask("model.load", model="a"))["op"]
    await client.send({"t": "req", "id": 100, "m": "op.wait", "p": {"op": op}})
    assert (await client.request("ping"))["ok"]
    plane.backend.hold_loads(hold=False)
    while (answer := await client.receive_of("res"))["id"] != 100:
        pass
    assert answer["r"]["state"] == "done"


async def test_too_many_requests_in_flight_are_refused(plane: Plane, client: Client) -> None:
    """The bound is per connection; those in flight are not harmed."""
    plane.backend.hold_loads(hold=True)
    op = (await client.ask("model.load", model="a"))["op"]
    for number in range(MAX_IN_FLIGHT):
        await client.send({"t": "req", "id": 100 + number, "m": "op.wait", "p": {"op": op}})
    error = await client.refused("ping")
    assert "32 requests are in flight" in error["msg"]
    plane.backend.hold_loads(hold=False)
    answers = [await client.receive_of("res") for _ in range(MAX_IN_FLIGHT)]
    assert all(answer["r"]["state"] == "done" for answer in answers)


async def test_an_id_in_use_breaks_the_rules(plane: Plane, client: Client) -> None:
    """Two answers with one id could not be told apart."""
    plane.backend.hold_loads(hold=True)
    op = (await client.ask("model.load", model="a"))["op"]
    for _ in range(2):
        await client.send({"t": "req", "id": 100, "m": "op.wait", "p": {"op": op}})
    assert "id 100 is in use" in (await client.receive_of("reject"))["e"]["msg"]
    plane.backend.hold_loads(hold=False)


async def test_the_longest_idle_connection_makes_room(plane: Plane) -> None:
    """Nobody is locked out by connections that ask nothing: a further client takes the place of the first of them."""
    clients = [await plane.connect() for _ in range(MAX_CONNECTIONS)]
    await clients[0].ask("ping")  # so that the second is idle longest
    surplus = [await plane.connect() for _ in range(3)]
    for client in surplus:
        assert client.hello["t"] == "hello"
        assert (await client.ask("ping"))["boot_id"] == "boot-1"
    for gone in clients[1:4]:
        with pytest.raises((EOFError, ConnectionError)):
            await gone.receive()
    for kept in (clients[0], clients[4], clients[-1]):
        assert (await kept.ask("ping"))["boot_id"] == "boot-1"
    for client in clients + surplus:
        await client.close()


async def test_connections_of_use_are_kept_and_who_finds_none_idle_is_told(plane: Plane) -> None:
    """A subscription or a request in flight keeps its place; the refusal says what to end, and how to end mlxd."""
    clients = [await plane.connect() for _ in range(MAX_CONNECTIONS)]
    for client in clients:
        await client.send({"t": "sub", "id": 1, "topic": "events"})
        await client.receive_of("res")
    async with await plane.connect(greet=False) as surplus:
        error = (await surplus.receive())["e"]
    assert error["code"] == "control.too_many_connections"
    assert "all 64 control connections have requests or subscriptions in flight" in error["msg"]
    assert f"kill {os.getpid()}, which ends the daemon" in error["hint"]
    await clients[5].send({"t": "cancel", "id": 1})
    await clients[5].receive_of("end")
    async with await plane.connect() as late:
        assert late.hello["t"] == "hello"
    with pytest.raises((EOFError, ConnectionError)):
        await clients[5].receive()
    for client in clients:
        await client.close()


async def test_a_request_can_be_given_up(plane: Plane, client: Client) -> None:
    """A cancelled wait is answered as cancelled; what it waited for goes on."""
    plane.backend.hold_loads(hold=True)
    op = (await client.ask("model.load", model="a"))["op"]
    await client.send({"t": "req", "id": 100, "m": "op.wait", "p": {"op": op}})
    await client.receive_of("prog")
    await client.send({"t": "cancel", "id": 100})
    answer = await client.receive_of("res")
    assert (answer["id"], answer["e"]["code"]) == (100, "cancelled")
    await client.send({"t": "cancel", "id": 100})  # it is not there any more: nothing to answer
    plane.backend.hold_loads(hold=False)
    assert (await client.wait(op))["state"] == "done"


async def test_a_deadline_ends_a_wait(plane: Plane, client: Client) -> None:
    """Exit 7 tells it from a failure."""
    plane.backend.hold_loads(hold=True)
    op = (await client.ask("model.load", model="a"))["op"]
    error = await client.refused("op.wait", {"deadline_ms": 10}, op=op)
    assert (error["code"], error["exit"]) == ("wait_ended", 7)
    plane.backend.hold_loads(hold=False)


async def test_a_deadline_keeps_a_change_from_beginning_too_late(plane: Plane, client: Client) -> None:
    """A change whose turn does not come in time is not made; one that has begun is finished."""
    await plane.server.dispatcher.mutations._turn.acquire()
    error = await client.refused("settings.set", {"deadline_ms": 10}, changes={"pool.max_models": 3})
    assert error["code"] == "wait_ended"
    plane.server.dispatcher.mutations._turn.release()
    assert plane.store.generation == 1
    assert (await client.ask("settings.set", {"deadline_ms": 10_000}, changes={"pool.max_models": 3}))["gen"] == 2


async def test_a_change_survives_its_client(plane: Plane) -> None:
    """Hanging up right after asking loses nothing."""
    mutations = plane.server.dispatcher.mutations
    client = await plane.connect()
    await plane.server.dispatcher.mutations._turn.acquire()
    await client.send({"t": "req", "id": 1, "m": "settings.set", "p": {"changes": {"pool.max_models": 3}}})
    await client.send({"t": "ping"})
    await client.receive()
    plane.server.dispatcher.mutations._turn.release()
    await until(lambda: mutations._begun)
    await client.close()
    await asyncio.gather(*mutations._begun)
    assert plane.store.current.pool.max_models == 3


async def test_a_bug_is_told_without_detail(plane: Plane, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """The client learns that it failed inside, the log learns why, and the next request is served."""

    def broken() -> Any:
        raise ZeroDivisionError("a secret")

    plane.pool.status = broken  # type: ignore[method-assign]
    error = await client.refused("pool.show")
    assert (error["code"], "secret" in error["msg"]) == ("internal_error", False)
    assert "a secret" in caplog.text
    assert await client.ask("ping")


async def test_a_reply_too_long_is_an_error(plane: Plane, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into a frame is answered in words, and the connection lives."""
    monkeypatch.setattr(framing, "MAX_REPLY_BYTES", 400)
    assert (await client.refused("settings.list"))["code"] == "protocol.too_large"
    assert await client.ask("ping")


async def test_a_client_that_does_not_read_is_disconnected(home: Home) -> None:
    """Its connection ends, the daemon never waits for it, and others are served meanwhile."""
    async with running_plane(home, stall_timeout_s=0.1) as plane:
        lazy = socket.socket(socket.AF_UNIX)
        lazy.setblocking(False)
        lazy.connect(str(home.socket))
        sub = framing.encode({"t": "sub", "id": 1, "topic": "events"}, framing.MAX_REQUEST_BYTES)
        lazy.send(framing.encode(framing.make_hello("9.9"), framing.MAX_REQUEST_BYTES) + sub)
        async with await plane.connect() as client:
            while not plane.bus._subscriptions:
                await client.ask("ping")
            while plane.bus._subscriptions:
                plane.bus.publish("noise", {"text": "x" * 100_000})
                await client.ask("ping")
            assert len(plane.server._connections) <= 2
        lazy.close()


# Subscriptions.


async def test_a_subscription_begins_with_a_snapshot(plane: Plane, client: Client) -> None:
    """What the snapshot lacks comes as an event: numbers go on where the snapshot stands."""
    plane.bus.publish("before", {})
    await client.send({"t": "sub", "id": 9, "topic": "events"})
    answer = await client.receive()
    assert (answer["ok"], answer["r"]["sub"], answer["r"]["seq"]) == (True, 9, plane.bus.seq)
    assert answer["r"]["snapshot"]["gen"] == 1
    plane.bus.publish("after", {"n": 1})
    event = await client.receive()
    assert event == {"t": "evt", "sub": 9, "seq": answer["r"]["seq"] + 1, "k": "after", "d": {"n": 1}}


async def test_changes_of_settings_and_of_models_are_events(plane: Plane, client: Client) -> None:
    """A subscriber follows a commit and the load that it begins."""
    await client.send({"t": "sub", "id": 9, "topic": "events"})
    await client.receive()
    async with await plane.connect() as other:
        await other.wait((await other.ask("preload.set", models=["a"]))["op"])
    kinds = []
    while "op.ended" not in kinds:
        kinds.append((await client.receive())["k"])
    assert {"config.changed", "model.loading", "model.load_progress", "model.loaded", "op.started"} <= set(kinds)


async def test_a_subscription_can_be_ended(plane: Plane, client: Client) -> None:
    """Its end is told, and nothing comes after it."""
    await client.send({"t": "sub", "id": 9, "topic": "events"})
    await client.receive()
    await client.send({"t": "cancel", "id": 9})
    assert await client.receive() == {"t": "end", "sub": 9, "reason": "cancelled"}
    plane.bus.publish("after", {})
    assert await client.ask("ping")
    assert not plane.bus._subscriptions


async def test_an_unknown_topic_is_refused(client: Client) -> None:
    """There is one topic."""
    await client.send({"t": "sub", "id": 9, "topic": "weather"})
    assert "no topic 'weather'" in (await client.receive())["e"]["msg"]


async def test_a_slow_subscriber_gets_a_gap(plane: Plane, client: Client) -> None:
    """Numbers that were dropped are named; then it goes on."""
    await client.send({"t": "sub", "id": 9, "topic": "events"})
    await client.receive()
    for _ in range(1030):
        plane.bus.publish("noise", {})
    gap = await client.receive_of("gap")
    assert (gap["from"], gap["to"]) == (1025, 1030)
    plane.bus.publish("after", {})
    assert (await client.receive())["seq"] == 1031


async def test_the_end_of_the_daemon_ends_subscriptions_and_connections(home: Home) -> None:
    """A watcher learns why nothing more comes."""
    async with running_plane(home) as plane:
        client = await plane.connect()
        await client.send({"t": "sub", "id": 9, "topic": "events"})
        await client.receive()
        await plane.server.close()
        assert (await client.receive_of("end"))["reason"] == "the daemon ends"
        with pytest.raises(EOFError):
            await client.receive()
        await client.close()


async def test_closing_a_connection_ends_its_subscriptions_only(plane: Plane) -> None:
    """What it began goes on."""
    plane.backend.hold_loads(hold=True)
    client = await plane.connect()
    await client.send({"t": "sub", "id": 9, "topic": "events"})
    await client.receive()
    op = (await client.ask("model.load", model="a"))["op"]
    await client.close()
    await until(lambda: not plane.bus._subscriptions)
    plane.backend.hold_loads(hold=False)
    async with await plane.connect() as other:
        assert (await other.wait(op))["state"] == "done"


async def test_a_subscription_chooses_topics_and_model(plane: Plane, client: Client) -> None:
    """Only what was asked for comes, under the numbers that it has for all."""
    await client.send({"t": "sub", "id": 9, "topic": "events", "topics": ["op", "model"], "model": "a"})
    seq = (await client.receive())["r"]["seq"]
    for kind, data in (
        ("config.changed", {"model": "a"}),
        ("model.loaded", {"model": "b"}),
        ("model.loaded", {"model": "a"}),
        ("op.ended", {"models": ["b", "a"]}),
        ("op.ended", {"models": []}),
    ):
        plane.bus.publish(kind, data)
    events = [await client.receive() for _ in range(2)]
    assert [(event["seq"], event["k"]) for event in events] == [(seq + 3, "model.loaded"), (seq + 4, "op.ended")]
    assert await client.ask("ping")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"topics": []}, "topics must be a list of apikey, "),
        ({"topics": "model"}, "topics must be a list of apikey, "),
        ({"topics": ["modle"]}, "no topic 'modle'; the nearest is 'model'"),
        ({"topics": ["model", 7]}, "no topic 7; there are apikey, "),
        ({"model": ""}, "model must be a text"),
    ],
)
async def test_a_choice_that_is_none_is_refused(client: Client, keys: dict[str, Any], words: str) -> None:
    """What cannot be chosen is answered by name, and the connection lives."""
    await client.send({"t": "sub", "id": 9, "topic": "events", **keys})
    answer = await client.receive()
    assert (answer["ok"], answer["e"]["code"]) == (False, "invalid_request")
    assert words in answer["e"]["msg"]
    assert await client.ask("ping")


async def test_subscriptions_count_as_in_flight(client: Client) -> None:
    """A connection cannot open queues without bound."""
    for number in range(MAX_IN_FLIGHT):
        await client.send({"t": "sub", "id": 100 + number, "topic": "events"})
        assert (await client.receive())["ok"]
    assert "in flight" in (await client.refused("ping"))["msg"]


async def test_a_snapshot_that_fails_is_told_and_harms_nothing(
    plane: Plane, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the snapshot is answered as any other, and the connection lives."""

    def broken() -> Any:
        raise ZeroDivisionError("a secret")

    plane.pool.status = broken  # type: ignore[method-assign]
    await client.send({"t": "sub", "id": 9, "topic": "events"})
    assert (await client.receive())["e"]["code"] == "internal_error"
    assert "a secret" in caplog.text
    assert await client.ask("ping")
    assert not plane.bus._subscriptions


async def test_an_event_that_is_too_long_ends_the_subscription_in_words(
    plane: Plane, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be sent is not left out silently."""
    await client.send({"t": "sub", "id": 9, "topic": "events"})
    await client.receive()
    monkeypatch.setattr(framing, "MAX_REPLY_BYTES", 400)
    plane.bus.publish("noise", {"text": "x" * 500})
    end = await client.receive()
    assert (end["t"], end["sub"]) == ("end", 9)
    assert "over the limit of 400 bytes" in end["reason"]
    assert await client.ask("ping")


async def test_a_waiter_learns_that_the_daemon_ends(home: Home) -> None:
    """A request in flight is answered before the connection ends, also one that waits for something else."""
    async with running_plane(home) as plane:
        client = await plane.connect()
        plane.backend.hold_loads(hold=True)
        op = (await client.ask("model.load", model="a"))["op"]
        await client.send({"t": "req", "id": 100, "m": "op.wait", "p": {"op": op}})
        await client.receive_of("prog")
        await plane.server.close()
        error = (await client.receive_of("res"))["e"]
        assert (error["code"], error["msg"], error["hint"]) == ("draining", "the daemon ends", "mlxctl start")
        with pytest.raises(EOFError):
            await client.receive()
        await client.close()
        plane.backend.hold_loads(hold=False)


async def test_a_client_that_does_not_read_does_not_hold_up_the_end(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last words are not waited for beyond their time."""
    monkeypatch.setattr(server, "_FAREWELL_S", 0.05)
    async with running_plane(home, stall_timeout_s=60) as plane:
        lazy = socket.socket(socket.AF_UNIX)
        lazy.connect(str(home.socket))
        sub = framing.encode({"t": "sub", "id": 1, "topic": "events"}, framing.MAX_REQUEST_BYTES)
        lazy.send(framing.encode(framing.make_hello("9.9"), framing.MAX_REQUEST_BYTES) + sub)
        await until(lambda: plane.bus._subscriptions)
        plane.bus.publish("noise", {"text": "x" * 4_000_000})
        async with asyncio.timeout(30):
            await plane.server.close()
        lazy.close()


async def test_a_client_that_asks_without_reading_is_not_read(home: Home) -> None:
    """What it sends beyond its bounds stays in its own socket: nothing piles up in the daemon."""
    async with running_plane(home) as plane:
        lazy = socket.socket(socket.AF_UNIX)
        lazy.setblocking(False)
        lazy.connect(str(home.socket))
        lazy.send(framing.encode(framing.make_hello("9.9"), framing.MAX_REQUEST_BYTES))
        frame = framing.encode({"t": "later", "id": 1, "x": "x" * 1000}, framing.MAX_REQUEST_BYTES)
        async with await plane.connect() as client:
            refused = 0
            while refused < 50:
                try:
                    lazy.send(frame)
                    refused = 0
                except BlockingIOError:
                    refused += 1
                await client.ask("ping")
        lazy.close()
