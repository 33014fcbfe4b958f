"""What an event stream does with a client that reads nothing."""

from __future__ import annotations

import asyncio
import json

import pytest

from mlxd.audit import RequestStatus
from tests.support.clock import FakeClock
from tests.support.control import until
from tests.support.http_server import serving
from tests.support.scripted_pool import ScriptedPool, end, say

# Over what sockets and buffers take for a client that does not read.
LONG = "x" * 50_000_000


@pytest.mark.parametrize(
    ("is_stream", "is_cancelled"),
    [(True, False), (True, True), (False, False)],
    ids=["a stream", "the error that ends it", "a whole answer"],
)
async def test_a_client_that_reads_nothing_is_cut_off(is_stream: bool, is_cancelled: bool) -> None:
    """Neither an answer nor the error after it waits for such a client forever: its connection goes."""
    clock = FakeClock()
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": is_stream}).encode()
    async with serving(ScriptedPool([*say("a", LONG), *end()]), socket_clock=clock) as served:
        host, _, port = served.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await reader.readuntil(b"\r\n\r\n")
        if is_cancelled:
            served.context.requests.cancel_all("enough")
        connections = served.server._runner.server
        assert connections is not None
        async with asyncio.timeout(20):
            while connections.connections:
                if clock.next_s is not None:
                    clock.run_next()
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # an aborted transport closes its socket a turn later
        writer.close()
        await writer.wait_closed()
        await until(lambda: served.rows != [])
    assert [(row.status, row.http_status) for row in served.rows] == [(RequestStatus.CANCELLED, 200)]


async def test_only_silence_is_kept_alive() -> None:
    """A comment comes when nothing has been sent for so long, not as long after the last one."""
    clock, gates, reached = FakeClock(), [asyncio.Event() for _ in range(2)], list[int]()
    script = [*say("a"), lambda: reached.append(1), gates[0], *say("b"), lambda: reached.append(2), gates[1], *end()]
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with serving(ScriptedPool(script), clock=clock, document={"http": {"keepalive": "10s"}}) as served:
        asking = asyncio.create_task(served.post("/v1/chat/completions", body))
        await until(lambda: reached == [1])
        clock.move(9)
        gates[0].set()
        await until(lambda: reached == [1, 2])
        clock.run_next()  # 10 s after the first piece, 1 s after the second
        assert clock.next_s == clock.now() + 9
        clock.run_next()
        for _ in range(20):
            await asyncio.sleep(0)  # the comment is written
        gates[1].set()
        _, _, answer = await asking
        await until(lambda: clock.next_s is None)  # nothing is written after the end
    assert answer.count(b": keep-alive\n\n") == 1
    assert answer.index(b'"b"') < answer.index(b": keep-alive")
