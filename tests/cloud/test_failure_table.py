"""The table of failures: what an upstream does, what the client gets, how often who was asked, what headers say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import replace

from mlxd.protocol.errors import DoesNotFit
from tests.support.clock import FakeClock
from tests.support.http_server import Served
from tests.support.two_upstreams import two_upstreams
from tests.support.upstream import Upstream

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
REFUSAL = b'{"error": {"message": "no", "type": "t", "code": "c"}}'
QUICK = {"connect": "5s", "first_token": "80ms", "idle": "80ms", "total": "5s"}


@dataclass(frozen=True)
class Row:
    """One way to fail.

    Attributes:
        behaviour: of the upstream.
        stream: whether a stream is asked for.
        status: of a refusal.
        calls: requests that reach the first target.
        codes: of the attempts at it; None is an answer that was passed on.
        alone: status and code that the client gets when it is the only target.
    """

    behaviour: str
    stream: bool
    status: int
    calls: int
    codes: tuple[str | None, ...]
    alone: tuple[int, str | None]

    def __str__(self) -> str:
        return f"{self.behaviour}{self.status or ''}{'-stream' if self.stream else ''}"


UNREACHABLE, BROKE, ERROR = "upstream_unreachable", "upstream_broke", "upstream_error"
TIMEOUT, AUTH = "upstream_timeout", "auth_failed"


def _refused(status: int, code: str | None, ours: int) -> list[Row]:
    return [Row("refuse", stream, status, 1, (code,), (ours, code)) for stream in (False, True)]


ROWS = [
    *(Row("closed", stream, 0, 0, (UNREACHABLE,) * 2, (502, UNREACHABLE)) for stream in (False, True)),
    *_refused(400, None, 400), *_refused(413, None, 413), *_refused(422, None, 422),
    *_refused(401, AUTH, 502), *_refused(402, AUTH, 502), *_refused(403, AUTH, 502),
    *_refused(404, ERROR, 404), *_refused(409, ERROR, 409), *_refused(425, ERROR, 425),
    *_refused(408, ERROR, 408), *_refused(429, ERROR, 429),
    *_refused(500, ERROR, 500), *_refused(502, ERROR, 502), *_refused(503, ERROR, 503), *_refused(529, ERROR, 503),
    *_refused(599, ERROR, 599), *_refused(600, ERROR, 502), *_refused(999, ERROR, 502),
    *(Row("die", stream, 0, 1, (BROKE,), (502, BROKE)) for stream in (False, True)),
    *(Row("die_in_body", stream, 0, 1, (BROKE,), (502, BROKE)) for stream in (False, True)),
    *(Row("other_kind", stream, 0, 1, (ERROR,), (502, ERROR)) for stream in (False, True)),
    *(Row(empty, True, 0, 1, (ERROR,), (502, ERROR)) for empty in ("only_done", "no_events", "no_choices")),
    Row("die_empty", stream=True, status=0, calls=1, codes=(BROKE,), alone=(502, BROKE)),
    Row("garbage", stream=False, status=0, calls=1, codes=(ERROR,), alone=(502, ERROR)),
    Row("garbage", stream=True, status=0, calls=1, codes=(BROKE,), alone=(502, BROKE)),
    Row("hang", stream=True, status=0, calls=1, codes=(TIMEOUT,), alone=(504, TIMEOUT)),
    Row("hang_before_content", stream=True, status=0, calls=1, codes=(TIMEOUT,), alone=(504, TIMEOUT)),
    Row("die_after_content", stream=True, status=0, calls=1, codes=(None,), alone=(200, "stream_interrupted")),
    Row("hang_after_content", stream=True, status=0, calls=1, codes=(None,), alone=(200, "stream_interrupted")),
    Row("end_after_content", stream=True, status=0, calls=1, codes=(None,), alone=(200, "stream_interrupted")),
]  # fmt: skip
# Each way once: where nothing is sent, it does not matter what for.
WAYS = list({(row.behaviour, row.status): row for row in ROWS}.values())
TABLE = pytest.mark.parametrize("row", ROWS, ids=str)


def misbehave(far: Upstream, row: Row) -> None:
    """Have the upstream do what the row says."""
    far.behaviour, far.status, far.reply = row.behaviour, row.status, REFUSAL
    if row.behaviour == "closed":
        far.stop_listening()


async def ask(served: Served, row: Row, **headers: str) -> tuple[int, Any, bytes]:
    """Ask as the row says; return status, headers and body."""
    return await served.post(CHAT, BODY | {"stream": row.stream}, **headers)


@TABLE
async def test_a_second_target_answers_what_may_go_on(row: Row) -> None:
    """Where the failure was the first target's own and nothing was said yet; and each request runs at one at a time."""
    async with two_upstreams(mode="always", timeouts=QUICK) as (served, first, second):
        misbehave(first, row)
        status, headers, body = await ask(served, row)
        goes_on = row.codes[-1] is not None
        assert (len(first.seen), len(second.seen)) == (row.calls, int(goes_on))
        assert headers["x-mlxd-attempts"] == str(len(row.codes) + goes_on)
        assert headers["x-mlxd-target"] == ("two/b" if goes_on else "one/a")
        assert (first.open_requests, second.open_requests) == (0, 0) or row.behaviour.startswith("hang")
        if goes_on:
            assert status == 200
            assert (b"[DONE]" in body) is row.stream
            assert body.count(b"Hel") == 1


@TABLE
async def test_a_single_target_fails_in_the_open(row: Row) -> None:
    """The client gets the failure's own status and code, and the upstream's budget holds nothing afterwards."""
    async with two_upstreams(mode="always", to=["one/a"], timeouts=QUICK) as (served, first, second):
        misbehave(first, row)
        status, _, body = await ask(served, row)
        assert (len(first.seen), second.connections) == (row.calls, 0)
        assert status == row.alone[0]
        assert served.context.upstreams.budget.reserved == 0
        assert served.context.requests.list() == ()
        if row.alone[1] is None:
            assert body == REFUSAL
        else:
            assert f'"code":"{row.alone[1]}"'.encode() in body.replace(b'": "', b'":"')
            assert b"[DONE]" not in body


@TABLE
async def test_a_fallback_that_fails_tells_the_local_cause(row: Row) -> None:
    """With what was tried; a refusal of the request itself, or a stream that had begun, is the upstream's."""
    async with two_upstreams(on_lease=[DoesNotFit("needs 9 GB")], to=["one/a"], timeouts=QUICK) as (served, first, _):
        misbehave(first, row)
        status, headers, body = await ask(served, row)
        assert headers["x-mlxd-reason"] == "does_not_fit"
        if row.codes[-1] is None:
            assert status == row.alone[0]
            return
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (507, "does_not_fit")
        assert [attempt["code"] for attempt in error["attempts"]] == list(row.codes)
        assert headers["x-mlxd-attempts"] == str(len(row.codes))


@pytest.mark.parametrize("row", WAYS, ids=str)
async def test_nothing_is_sent_where_nothing_may_be(row: Row) -> None:
    """The cloud off, a never rule, or the client's own wish: not one connection, whatever the upstream would do."""
    never = {"n": {"match": "big", "mode": "never"}, "r": {"match": "big", "to": ["one/a"], "priority": 1000}}
    async with two_upstreams(on_lease=[DoesNotFit("x")] * 3, timeouts=QUICK) as (served, first, second):
        misbehave(first, row)
        current = served.store.current
        assert (await ask(served, row, x_mlxd_route="local"))[0] == 507
        served.store.current = replace(current, cloud=replace(current.cloud, enabled=False))
        assert (await ask(served, row))[0] == 507
        assert (first.connections, second.connections) == (0, 0)
    async with two_upstreams(on_lease=[DoesNotFit("x")], cloud={"rules": never}) as (served, first, second):
        misbehave(first, row)
        assert (await ask(served, row))[0] == 507
        assert (first.connections, second.connections) == (0, 0)


async def test_a_connection_that_stays_open_after_the_end_is_not_waited_for() -> None:
    """The stream is whole with its last event, and no error comes after it."""
    async with two_upstreams(mode="always", timeouts=QUICK) as (served, first, _):
        first.behaviour = "open_after_end"
        status, _, body = await served.post(CHAT, BODY | {"stream": True})
    assert (status, body.count(b"[DONE]"), b"stream_interrupted" in body) == (200, 1, False)


@pytest.mark.parametrize("behaviour", ["die", "die_in_body", "die_empty", "hang", "end_after_content"])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_may_have_been_answered_is_booked_whole(behaviour: str, stream: bool) -> None:
    """The upstream got the request once, and may charge for it."""
    if behaviour == "end_after_content" and not stream:
        behaviour = "die_in_body"
    prices = {"prices": {"one/a": {"input": 1, "output": 2}}}
    total = QUICK | {"total": "80ms"}
    async with two_upstreams(mode="always", to=["one/a"], timeouts=total, cloud=prices) as (served, first, _):
        budget = served.context.upstreams.budget
        first.behaviour = behaviour
        first.may_answer.clear()
        asking = asyncio.create_task(served.post(CHAT, BODY | {"stream": stream}))
        await first.arrived.wait()
        reserved = budget.reserved
        first.may_answer.set()
        await asking
        assert reserved > 0
        assert (len(first.seen), budget.today.requests, budget.today.spent) == (1, 1, reserved)


async def test_a_long_answer_of_a_probe_blocks_nobody() -> None:
    """Once it has begun, others are sent to the target too."""
    clock = FakeClock()
    async with two_upstreams(mode="always", to=["one/a"], clock=clock) as (served, first, _):
        first.behaviour, first.status = "refuse", 500
        for _ in range(5):
            await served.post(CHAT, BODY)
        assert (await served.post(CHAT, BODY))[0] == 503
        clock.move(30)
        first.behaviour = "hang_after_content"
        async with served.http.post(served.url + CHAT, json=BODY | {"stream": True}) as probe:
            await probe.content.readuntil(b"Hel")
            first.behaviour = "answer"
            assert (await served.post(CHAT, BODY))[0] == 200


async def test_connections_are_used_again() -> None:
    """After whole answers, streams and refusals alike: one connection serves them all."""
    async with two_upstreams(mode="always", to=["one/a"]) as (served, first, _):
        for stream in (False, True, False, True):
            await served.post(CHAT, BODY | {"stream": stream})
        first.behaviour, first.status, first.reply = "refuse", 400, REFUSAL
        await served.post(CHAT, BODY)
        first.behaviour = "answer"
        await served.post(CHAT, BODY | {"stream": True})
        assert (len(first.seen), first.connections) == (6, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_a_fallback_closes_the_upstreams_connection(stream: bool) -> None:
    """The disconnect travels all the way, and nobody else is asked for somebody who is gone."""
    async with two_upstreams(on_lease=[DoesNotFit("x")]) as (served, first, second):
        first.behaviour = "hang"
        asking = asyncio.create_task(served.post(CHAT, BODY | {"stream": stream}))
        await first.arrived.wait()
        asking.cancel()
        await first.gone.wait()
        assert (len(first.seen), second.connections) == (1, 0)
        assert served.context.upstreams.budget.reserved == 0


async def test_a_switch_that_is_turned_while_the_machine_tries_holds() -> None:
    """The rule had decided before; what leaves the machine is decided when it would leave."""
    loading, begun = asyncio.Event(), asyncio.Event()
    async with two_upstreams(on_lease=[begun.set, loading, DoesNotFit("x")]) as (served, first, second):
        asking = asyncio.create_task(served.post(CHAT, BODY))
        await begun.wait()
        current = served.store.current
        served.store.current = replace(current, cloud=replace(current.cloud, enabled=False))
        loading.set()
        status, _, body = await asking
        assert (status, json.loads(body)["error"]["attempts"][0]["code"]) == (507, "cloud_disabled")
        assert served.context.upstreams.budget.today.requests == 0
        assert (first.connections, second.connections) == (0, 0)


async def test_a_refusal_after_comments_is_told_in_the_upstreams_words() -> None:
    """A stream that was kept alive cannot become a 400 any more, but its last event says why."""
    clock, begun, loading = FakeClock(), asyncio.Event(), asyncio.Event()
    async with two_upstreams(on_lease=[begun.set, loading, DoesNotFit("x")], clock=clock) as (served, first, _):
        first.behaviour, first.status, first.reply = "refuse", 400, b'{"error": {"message": "too many tools"}}'
        asking = asyncio.create_task(served.http.post(served.url + CHAT, json=BODY | {"stream": True}))
        await begun.wait()
        clock.run_next()
        async with await asking as response:
            loading.set()
            body = await response.read()
    assert b"too many tools" in body
    assert b"[DONE]" not in body
