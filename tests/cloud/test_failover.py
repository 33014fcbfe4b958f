"""This machine, then the targets in order: what the client gets, how often who was asked, what the headers say."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from mlxd.engine.base import Prefilling
from mlxd.protocol.errors import (
    ContextLengthExceeded,
    DoesNotFit,
    GenerationFailed,
    LoadFailed,
    MlxdError,
    ModelNotFound,
    OutOfMemory,
    QueueFull,
)
from tests.support.clock import FakeClock
from tests.support.http_server import serving
from tests.support.scripted_pool import ScriptedPool, Step, end, say
from tests.support.two_upstreams import two_upstreams
from tests.support.upstream import KEY, PIECES, upstream

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
TEXT = "".join(PIECES)
OVERLOADED = b'{"error": {"message": "overloaded"}}'


def routed(headers: Any) -> dict[str, str | None]:
    """Return what the headers say of the way."""
    return {name: headers.get(f"x-mlxd-{name}") for name in ("route", "target", "reason", "attempts")}


async def test_a_local_answer_asks_nobody() -> None:
    """A fallback rule is silent while this machine answers."""
    async with two_upstreams() as (served, first, second):
        status, headers, _ = await served.post(CHAT, BODY)
    assert (status, routed(headers)["route"], first.seen, second.seen) == (200, "local", [], [])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [DoesNotFit, QueueFull, LoadFailed, OutOfMemory])
async def test_a_failure_that_a_rule_is_for_goes_on_in_the_open(error: type[MlxdError], stream: bool) -> None:
    """The first target answers; the headers say whose answer it is and why."""
    async with two_upstreams(on_lease=[error("x")]) as (served, first, second):
        status, headers, body = await served.post(CHAT, BODY | {"stream": stream})
    assert status == 200
    assert b"far" in body
    assert routed(headers) == {"route": "cloud", "target": "one/a", "reason": error.code, "attempts": "1"}
    assert (len(first.seen), len(second.seen), first.seen[0].json["model"]) == (1, 0, "a")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generation_that_fails_before_content_goes_on(stream: bool) -> None:
    """Prefill is no content: nothing has been said yet."""
    script: list[Step] = [Prefilling(1, 0, 9), GenerationFailed("boom")]
    async with two_upstreams(script) as (served, first, _):
        status, headers, _ = await served.post(CHAT, BODY | {"stream": stream})
    assert (status, routed(headers)["reason"], len(first.seen)) == (200, "error", 1)


async def test_after_content_there_is_no_way_back() -> None:
    """A stream that has begun ends with one error event, and nobody else is asked."""
    async with two_upstreams([*say("Hel"), GenerationFailed("boom")]) as (served, first, _):
        status, headers, body = await served.post(CHAT, BODY | {"stream": True})
    assert (status, routed(headers)["route"], first.seen) == (200, "local", [])
    assert b"boom" in body
    assert b"[DONE]" not in body


@pytest.mark.parametrize("error", [ModelNotFound, ContextLengthExceeded])
async def test_a_typo_does_not_spend_money(error: type[MlxdError]) -> None:
    """Some failures are asked for by name, or stay here."""
    async with two_upstreams(on_lease=[error("x")]) as (served, first, _):
        status, _, _ = await served.post(CHAT, BODY)
        assert (status, first.seen) == (error.http_status, [])
    async with two_upstreams(on_lease=[error("x")], on=[error.code]) as (served, first, _):
        status, _, _ = await served.post(CHAT, BODY)
        assert (status, len(first.seen)) == (200, 1)


async def test_a_clients_own_mistake_stays_here() -> None:
    """An invalid request is nobody's failure."""
    async with two_upstreams() as (served, first, _):
        status, _, _ = await served.post(CHAT, BODY | {"temperature": "hot"})
    assert (status, first.seen) == (400, [])


async def test_a_slow_first_token_may_be_a_reason() -> None:
    """Where a rule says so, the machine has as long as the first target would have; the local answer is given up."""
    script: list[Step] = [asyncio.Event()]
    async with two_upstreams(script, on=["first_token_timeout"], timeouts={"first_token": "50ms"}) as (
        served,
        first,
        _,
    ):
        status, headers, _ = await served.post(CHAT, BODY)
        assert (status, routed(headers)["reason"], len(first.seen)) == (200, "first_token_timeout", 1)
        assert served.context.requests.list() == ()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "status", "asked"),
    [
        ("refuse", 404, 1), ("refuse", 408, 1), ("refuse", 429, 1), ("refuse", 500, 1), ("refuse", 503, 1),
        ("refuse", 401, 1), ("refuse", 402, 1), ("refuse", 403, 1), ("die", 0, 1),
        ("die_empty", 0, 1), ("garbage", 0, 1),
    ],
)  # fmt: skip
async def test_the_next_target_is_asked(behaviour: str, status: int, asked: int, stream: bool) -> None:
    """After a failure before content; what was sent is not sent to the same target again."""
    async with two_upstreams(mode="always") as (served, first, second):
        first.behaviour, first.status, first.reply = behaviour, status, OVERLOADED
        got, headers, body = await served.post(CHAT, BODY | {"stream": stream})
    assert got == 200
    assert b"far" in body
    assert body.count(b"Hel") == 1
    assert (len(first.seen), len(second.seen)) == (asked, 1)
    assert routed(headers) == {"route": "cloud", "target": "two/b", "reason": None, "attempts": str(asked + 1)}


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_is_not_taken_elsewhere(status: int) -> None:
    """It goes back as it is."""
    async with two_upstreams(mode="always") as (served, first, second):
        first.behaviour, first.status, first.reply = "refuse", status, OVERLOADED
        got, _, body = await served.post(CHAT, BODY)
    assert (got, body, second.seen) == (status, OVERLOADED, [])


async def test_a_short_retry_after_is_waited_for() -> None:
    """A 429 that asks for a moment is asked once more; a longer one is left."""
    for seconds, asked in (("0", 2), ("1", 2), ("3", 1)):
        async with two_upstreams(mode="always") as (served, first, second):
            first.behaviour, first.status, first.reply = "refuse", 429, OVERLOADED
            first.reply_headers = {"Retry-After": seconds}
            await served.post(CHAT, BODY)
        assert (len(first.seen), len(second.seen)) == (asked, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_when_all_fail_the_local_cause_is_told_with_the_attempts(stream: bool) -> None:
    """The client learns what it can fix, and what was tried."""
    async with two_upstreams(on_lease=[DoesNotFit("needs 9 GB")]) as (served, first, second):
        for far, status in ((first, 503), (second, 500)):
            far.behaviour, far.status, far.reply = "refuse", status, OVERLOADED
        got, headers, body = await served.post(CHAT, BODY | {"stream": stream})
    error = json.loads(body)["error"]
    assert (got, error["code"]) == (507, "does_not_fit")
    assert "needs 9 GB" in error["message"]
    assert [(attempt["target"], attempt["status"]) for attempt in error["attempts"]] == [("one/a", 503), ("two/b", 500)]
    assert headers["x-mlxd-attempts"] == "2"


async def test_a_stream_that_breaks_after_content_is_not_gone_on_with_elsewhere() -> None:
    """No text is ever said twice."""
    async with two_upstreams(mode="always") as (served, first, second):
        first.behaviour = "die_after_content"
        _, _, body = await served.post(CHAT, BODY | {"stream": True})
    assert b"stream_interrupted" in body
    assert second.seen == []


async def test_a_refused_key_is_not_tried_again_until_something_changes() -> None:
    """The provider is left alone; a changed key lifts it."""
    environ = {"KEY": KEY}
    async with upstream() as far:
        rules = {"r": {"match": "big", "to": ["one/a"]}}
        providers = {"one": {"base_url": far.url, "auth": {"env": "KEY"}}}
        document = {"cloud": {"enabled": True, "providers": providers, "rules": rules}}
        async with serving(ScriptedPool(end()), document=document, environ=environ) as served:
            far.behaviour, far.status = "refuse", 401
            codes = [json.loads((await served.post(CHAT, BODY))[2])["error"]["code"] for _ in range(2)]
            assert (codes, len(far.seen)) == (["auth_failed"] * 2, 1)
            assert served.context.upstreams.refused == ("one",)
            environ["KEY"], far.behaviour = "sk-another", "answer"
            status, _, _ = await served.post(CHAT, BODY)
            assert (status, len(served.context.upstreams.refused)) == (200, 0)


async def test_a_target_that_keeps_failing_is_left_alone() -> None:
    """The breaker opens after five failures; after half a minute one request may try, and success closes it."""
    clock = FakeClock()
    async with two_upstreams(mode="always", clock=clock) as (served, first, second):
        first.behaviour, first.status, first.reply = "refuse", 500, OVERLOADED
        for _ in range(7):
            await served.post(CHAT, BODY)
        assert (len(first.seen), len(second.seen)) == (5, 7)
        first.behaviour = "answer"
        clock.move(30)
        await served.post(CHAT, BODY)
        await served.post(CHAT, BODY)
        assert (len(first.seen), len(second.seen)) == (7, 7)


async def test_a_budget_of_requests_is_kept() -> None:
    """The day's last request is the last one; the local cause is told."""
    async with two_upstreams(on_lease=[DoesNotFit("x")]) as (served, first, _):
        current = served.store.current
        cloud = replace(current.cloud, budget=replace(current.cloud.budget, requests_per_day=2))
        served.store.current = replace(current, cloud=cloud)
        statuses = [(await served.post(CHAT, BODY))[0] for _ in range(3)]
    assert (statuses, len(first.seen)) == ([200, 200, 507], 2)


async def test_keep_alive_comments_are_no_content() -> None:
    """A stream that was kept alive while the model loaded still goes on to the cloud, and says so in a comment."""
    clock = FakeClock()
    begun, loading = asyncio.Event(), asyncio.Event()
    async with two_upstreams(on_lease=[begun.set, loading, LoadFailed("x")], clock=clock) as (served, _, _):
        asking = asyncio.create_task(served.http.post(served.url + CHAT, json=BODY | {"stream": True}))
        await begun.wait()
        clock.run_next()
        async with await asking as response:
            loading.set()
            body = await response.read()
    assert body.startswith(b": keep-alive\n\n: x-mlxd-route: cloud, x-mlxd-target: one/a\n\n")
    assert body.endswith(b"data: [DONE]\n\n")
