"""Clients that dribble, stall or are too many, on real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.http_server import Served, serving
from tests.support.scripted_pool import ScriptedPool, end, say

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


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
