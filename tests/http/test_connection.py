"""Clients that dribble, stall, are too many or send no HTTP, on real sockets.

Whatever they send is answered in the envelope, with HTTP/1.1, and without a traceback in the log.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.control import until
from tests.support.http_server import Served, serving
from tests.support.scripted_pool import ScriptedPool, end, say

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
JSON = b"Content-Type: application/json\r\n"


async def connected(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a bare connection to the server."""
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def everything(reader: asyncio.StreamReader) -> bytes:
    """Return what comes until the server closes."""
    async with asyncio.timeout(20):
        return await reader.read()


async def turn() -> None:
    """Let what was sent arrive."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until_timed(clock: FakeClock, number: int) -> None:
    """Let the loop turn until the server has set so many timers."""
    async with asyncio.timeout(20):
        while sum(timer.callback is not None for timer in clock._timers) != number:  # noqa: ASYNC110  (it has no event)
            await asyncio.sleep(0)


async def said(served: Served, sent: bytes) -> tuple[bytes, dict[str, Any]]:
    """Send bytes; return the head and the JSON of what comes until the server closes."""
    reader, writer = await connected(served)
    writer.write(sent)
    head, _, body = (await everything(reader)).partition(b"\r\n\r\n")
    writer.close()
    return head, json.loads(body)


def post(headers: bytes, body: bytes = b"", path: str = CHAT) -> bytes:
    """Return a request of these headers."""
    return b"POST " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\n" + JSON + headers + b"\r\n" + body


REFUSED = [
    ("no HTTP", b"\x16\x03\x01 private\r\n\r\n", 400, ""),
    ("request line", b"GET / private HTTP/1.1\r\n\r\n", 400, ""),
    ("no Host", b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
    ("two Hosts", b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: a\r\n\r\n", 400, "Host"),
    ("HTTP/0.9", b"GET /health\r\n\r\n", 505, "HTTP/0.9 is not served, only HTTP/1.1"),
    ("HTTP/2.0", b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n", 505, "HTTP/2.0 is not served"),
    ("Content-Length", post(b"Content-Length: -1\r\n"), 400, "Content-Length"),
    ("many headers", post(b"".join(b"X-%d: private\r\n" % number for number in range(200))), 431, "Too many headers"),
    ("long header", post(b"X: " + b"private" * 2000 + b"\r\n"), 431, "8190 bytes"),
    ("long path", b"GET /" + b"private" * 2000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "8190 bytes"),
    ("br", post(b"Content-Encoding: br\r\nContent-Length: 3\r\n", b"abc"), 415, "gzip or deflate"),
    ("zstd", post(b"Content-Encoding: zstd\r\nContent-Length: 3\r\n", b"abc"), 415, "gzip or deflate"),
    ("Expect", post(b"Expect: private\r\nContent-Length: 2\r\n", b"{}"), 417, "Expect"),
]


@pytest.mark.parametrize(("sent", "status", "words"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_what_is_no_request_is_answered_in_the_envelope(
    sent: bytes, status: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the status that says why; the connection is closed, and nothing of what came is in the log."""
    caplog.set_level("DEBUG")
    async with serving(ScriptedPool(end())) as served:
        head, body = await said(served, sent)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close" in head
    assert (body["error"]["type"], body["error"]["code"]) == ("invalid_request_error", "malformed_request")
    assert words in body["error"]["message"]
    assert "private" not in caplog.text
    assert "Traceback" not in caplog.text


MESSAGES = "/v1/messages"


@pytest.mark.parametrize(
    "sent",
    [
        post(b"Content-Length: x\r\n", path=MESSAGES),
        post(b"Expect: x\r\nContent-Length: 0\r\n", path=MESSAGES),
        b"GET /v1/messages HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET /v1/messages\xff\r\n\r\n",
    ],
)
async def test_the_envelope_is_that_of_the_path(sent: bytes) -> None:
    """Also where only the first line, or a part of it, could be read."""
    async with serving(ScriptedPool(end())) as served:
        _, body = await said(served, sent)
    assert (body["type"], body["error"]["code"]) == ("error", "malformed_request")


@pytest.mark.parametrize("encoding", [b"deflate", b"gzip"])
async def test_a_body_that_does_not_unpack_is_no_traceback(encoding: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A line, however it is broken: any client could fill the log otherwise."""
    sent = post(b"Content-Encoding: " + encoding + b"\r\nContent-Length: 9\r\n", b"\x00\x01garbage")
    async with serving(ScriptedPool(end())) as served:
        head, body = await said(served, sent)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert body["error"]["code"] == "invalid_request"
    assert "Traceback" not in caplog.text
    assert [record.levelname for record in caplog.records if record.exc_info] == []


async def half_closed(served: Served, sent: bytes) -> bytes:
    """Send a request and that there will be no more; return all that comes."""
    reader, writer = await connected(served)
    writer.write(sent)
    writer.write_eof()
    answer = await everything(reader)
    writer.close()
    return answer


def chat(**more: Any) -> bytes:
    """Return a whole chat request."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}).encode()
    return post(b"Content-Length: %d\r\n" % len(body), body)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_has_closed_its_side_gets_its_answer(stream: bool) -> None:
    """However long it takes, whole or streamed; then the connection is closed."""
    gate = asyncio.Event()
    pool = ScriptedPool([gate, *say("hello"), *end()])
    async with serving(pool) as served:
        asking = asyncio.create_task(half_closed(served, chat(stream=stream)))
        await until(lambda: pool.active_generations == 1)
        gate.set()
        answer = await asking
    assert b"HTTP/1.1 200 OK" in answer
    assert b"hello" in answer
    assert (b"[DONE]" in answer) == stream


async def test_so_does_one_that_closes_its_side_while_it_waits() -> None:
    """It is asked whether it is still there, and told."""
    gate = asyncio.Event()
    pool = ScriptedPool([gate, *say("hello"), *end()])
    async with serving(pool) as served:
        reader, writer = await connected(served)
        writer.write(chat())
        await until(lambda: pool.active_generations == 1)
        writer.write_eof()
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        gate.set()
        answer = await everything(reader)
        writer.close()
    assert b"HTTP/1.1 200 OK" in answer
    assert b"hello" in answer


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
        (b"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (post(b"Content-Length: 1\r\n", b"{"), b"400"),
        (post(b"Content-Encoding: gzip\r\nContent-Length: 1\r\n", b"{"), b"400"),
    ],
)
async def test_so_does_one_whose_answer_is_short(sent: bytes, status: bytes) -> None:
    """The answer is there before anybody asks whether the client is."""
    async with serving(ScriptedPool(end())) as served:
        answer = await half_closed(served, sent)
    assert b"HTTP/1.1 " + status in answer


@pytest.mark.parametrize("is_get", [True, False])
async def test_one_that_speaks_http_1_0_cannot_be_asked(is_get: bool) -> None:
    """It gets what takes no time; a model would go on for one that has gone."""
    pool = ScriptedPool([asyncio.Event()])
    sent = b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n" if is_get else chat().replace(b"HTTP/1.1", b"HTTP/1.0")
    async with serving(pool) as served:
        answer = await half_closed(served, sent)
        await until(lambda: pool.active_generations == 0)
    assert answer.startswith(b"HTTP/1.0 200 OK") if is_get else answer == b""


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_has_gone_is_cancelled(stream: bool) -> None:
    """It looks the same until it is sent something."""
    pool = ScriptedPool([asyncio.Event()])
    async with serving(pool) as served:
        _, writer = await connected(served)
        writer.write(chat(stream=stream))
        await until(lambda: pool.active_generations == 1)
        writer.close()
        await until(lambda: pool.active_generations == 0)


@pytest.mark.parametrize("sent", [b"GET /health HT", post(b"Content-Length: 9\r\n", b"{")], ids=["head", "body"])
async def test_half_a_request_is_closed(sent: bytes) -> None:
    """It will never be whole; its head has a second to turn out to be."""
    clock = FakeClock()
    async with serving(ScriptedPool(end()), socket_clock=clock) as served:
        reader, writer = await connected(served)
        writer.write(sent)
        writer.write_eof()
        if sent.startswith(b"GET"):
            await until(lambda: clock.next_s == clock.now() + 1)
            clock.run_next()
        assert await everything(reader) == b""
        writer.close()


async def test_headers_that_dribble_are_cut_off() -> None:
    """However often another one comes: the clock is of all of them."""
    clock = FakeClock()
    async with serving(ScriptedPool(end()), socket_clock=clock) as served:
        reader, writer = await connected(served)
        await until_timed(clock, 1)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        await turn()
        clock.move(10)
        writer.write(b"X-One: more\r\n")
        await turn()
        clock.run_next()
        answer = await everything(reader)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


async def test_a_connection_that_says_nothing_is_closed() -> None:
    """Without a word, as nothing was asked."""
    clock = FakeClock()
    async with serving(ScriptedPool(end()), socket_clock=clock) as served:
        reader, writer = await connected(served)
        await until_timed(clock, 1)
        clock.run_next()
        assert await everything(reader) == b""
        writer.close()


async def test_the_clock_of_headers_does_not_run_while_a_request_is_answered() -> None:
    """And begins again with the next request on the connection."""
    clock = FakeClock()
    async with serving(ScriptedPool(end()), socket_clock=clock) as served:
        reader, writer = await connected(served)
        for _ in range(2):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(len(b'{"status":"ok"}'))
        writer.write(b"GET /health")
        await turn()
        clock.run_next()
        assert (await everything(reader)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_body_that_does_not_come_is_cut_off() -> None:
    """After the time of the setting, with nothing loaded."""
    pool = ScriptedPool(end())
    async with serving(pool, document={"http": {"body_timeout": "100ms"}}) as served:
        reader, writer = await connected(served)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        )
        writer.write(head.encode() + b'{"mod')
        answer = await everything(reader)
        writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body took longer than 0.1 s to come" in answer
    assert pool.leased == []


async def test_a_connection_too_many_is_told_so() -> None:
    """And is let in when another has gone."""
    async with serving(ScriptedPool(end()), document={"http": {"max_connections": 1}}) as served:
        _, first = await connected(served)
        reader, second = await connected(served)
        answer = await everything(reader)
        second.close()
        first.close()
        async with asyncio.timeout(20):
            while True:
                reader, third = await connected(served)
                third.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                last = await everything(reader)
                third.close()
                if last.startswith(b"HTTP/1.1 200 "):
                    break
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1\r\n" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"


@pytest.mark.parametrize(
    ("path", "name"), [(CHAT, "messages"), ("/v1/responses", "input"), ("/v1/responses/input_tokens", "input")]
)
@pytest.mark.parametrize(("messages", "status"), [(2, 200), (3, 400)])
async def test_messages_have_a_bound(path: str, name: str, messages: int, status: int) -> None:
    """The error has both numbers."""
    pool = ScriptedPool([*say("hello"), *end()])
    async with serving(pool, document={"http": {"max_messages": 2}}) as served:
        got, _, text = await served.post(path, {"model": "m", name: BODY["messages"] * messages})
    assert got == status
    assert status == 200 or "3 messages, and a request may have 2" in json.loads(text)["error"]["message"]
