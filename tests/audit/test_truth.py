"""Each request has one row, made at its end, that says what really happened: here, in the cloud, and in streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from mlxd.audit import RequestRecord, RequestStatus
from mlxd.engine.base import Prefilling
from mlxd.protocol.errors import DoesNotFit, GenerationFailed, LoadFailed, QueueFull, QueueTimeout
from tests.support.clock import FakeClock
from tests.support.control import until
from tests.support.http_server import CREATED_S, Served, serving
from tests.support.scripted_pool import ScriptedPool, Step, end, say
from tests.support.two_upstreams import two_upstreams

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "a secret of mine"}]}
OVERLOADED = b'{"error": {"message": "overloaded"}}'
OK, ERROR, CANCELLED, TIMEOUT = RequestStatus
Refusal = tuple[str, int]  # behaviour of an upstream, and its status


async def rows_of(served: Served, number: int = 1) -> list[RequestRecord]:
    """Return the rows once there are as many; a stream's is made right after its last byte."""
    await until(lambda: len(served.rows) >= number)
    return served.rows


def tried(*attempts: tuple[str, int | None, str | None]) -> list[Any]:
    """Return attempts as rows are compared."""
    return list(attempts)


LOCAL: dict[str, Any] = {"route": "local", "model": "big", "target": None, "rule": None, "reason": None}
ONE: dict[str, Any] = {"route": "cloud", "model": "a", "target": "one/a", "rule": "r"}
TWO: dict[str, Any] = {"route": "cloud", "model": "b", "target": "two/b", "rule": "r"}
ANSWERED = {"status": OK, "code": None, "http_status": 200}
GOOD_ONE, GOOD_TWO = ("one/a", 200, None), ("two/b", 200, None)


def after(status: int, code: str = "upstream_error") -> list[Any]:
    """Return the attempts of a first target that refused and a second that answered."""
    return tried(("one/a", status, code), GOOD_TWO)


# What the local machine does, what the first and the second upstream do, and what the row has to say.
TABLE: dict[str, tuple[dict[str, Any], Refusal | None, Refusal | None, Mapping[str, Any]]] = {
    "local": ({}, None, None, {**LOCAL, **ANSWERED, "attempts": []}),
    "does not fit": (
        {"on_lease": [DoesNotFit("x")]},
        None,
        None,
        {**ONE, **ANSWERED, "reason": "does_not_fit", "attempts": tried(GOOD_ONE)},
    ),
    "queue full": (
        {"on_lease": [QueueFull("x")]},
        None,
        None,
        {**ONE, **ANSWERED, "reason": "queue_full", "attempts": tried(GOOD_ONE)},
    ),
    "load failed": (
        {"on_lease": [LoadFailed("x")]},
        None,
        None,
        {**ONE, **ANSWERED, "reason": "load_failed", "attempts": tried(GOOD_ONE)},
    ),
    "no content": (
        {"script": [Prefilling(1, 0, 9), GenerationFailed("boom")]},
        None,
        None,
        {**ONE, **ANSWERED, "reason": "error", "attempts": tried(GOOD_ONE)},
    ),
    "404": ({"mode": "always"}, ("refuse", 404), None, {**TWO, **ANSWERED, "attempts": after(404)}),
    "408": ({"mode": "always"}, ("refuse", 408), None, {**TWO, **ANSWERED, "attempts": after(408)}),
    "429": ({"mode": "always"}, ("refuse", 429), None, {**TWO, **ANSWERED, "attempts": after(429)}),
    "500": ({"mode": "always"}, ("refuse", 500), None, {**TWO, **ANSWERED, "attempts": after(500)}),
    "401": ({"mode": "always"}, ("refuse", 401), None, {**TWO, **ANSWERED, "attempts": after(401, "auth_failed")}),
    "402": ({"mode": "always"}, ("refuse", 402), None, {**TWO, **ANSWERED, "attempts": after(402, "auth_failed")}),
    "dies": (
        {"mode": "always"},
        ("die", 0),
        None,
        {**TWO, **ANSWERED, "attempts": tried(("one/a", None, "upstream_broke"), GOOD_TWO)},
    ),
    "400": (
        {"mode": "always"},
        ("refuse", 400),
        None,
        {**ONE, "status": ERROR, "code": "upstream_error", "http_status": 400, "attempts": tried(("one/a", 400, None))},
    ),
    "all fail, with a local cause": (
        {"on_lease": [DoesNotFit("x")]},
        ("refuse", 503),
        ("refuse", 500),
        {
            "route": "cloud",
            "reason": "does_not_fit",
            "status": ERROR,
            "code": "does_not_fit",
            "http_status": 507,
            "attempts": tried(("one/a", 503, "upstream_error"), ("two/b", 500, "upstream_error")),
        },
    ),
    "no rule for it": (
        {"on_lease": [QueueTimeout("x")], "on": ["does_not_fit"]},
        None,
        None,
        {"route": "local", "status": TIMEOUT, "code": "queue_timeout", "http_status": 503, "attempts": []},
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", TABLE)
async def test_each_way_of_failing_has_its_row(name: str, stream: bool) -> None:
    """One row for each request, with who answered after all, everything that was tried, and the reason."""
    world, first_does, second_does, expected = TABLE[name]
    async with two_upstreams(world.get("script", ()), **{k: v for k, v in world.items() if k != "script"}) as (
        served,
        first,
        second,
    ):
        for far, does in ((first, first_does), (second, second_does)):
            if does is not None:
                far.behaviour, far.status, far.reply = *does, OVERLOADED
        status, headers, _ = await served.post(CHAT, BODY | {"stream": stream})
        (row,) = await rows_of(served)
    attempts = [(attempt["target"], attempt["status"], attempt["code"]) for attempt in row.attempts or ()]
    shown = {name: getattr(row, name) for name in expected} | {"attempts": attempts}
    assert shown == dict(expected)
    assert (row.request, row.http_status) == (headers["x-request-id"], status)
    assert (row.asked, row.endpoint, row.started_ms) == ("big", "chat/completions", CREATED_S * 1000)
    assert "secret" not in json.dumps(row.describe())


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        ("die_after_content", (ERROR, "stream_interrupted", 200)),
        ("error_event", (ERROR, "upstream_error", 200)),
        ("answer", (OK, None, 200)),
    ],
)
async def test_a_cloud_stream_says_how_it_ended(behaviour: str, expected: object) -> None:
    """An error within a stream is the row's, although HTTP has said 200."""
    async with two_upstreams(mode="always") as (served, first, _):
        first.behaviour = behaviour
        await served.post(CHAT, BODY | {"stream": True})
        (row,) = await rows_of(served)
    assert (row.status, row.code, row.http_status) == expected
    assert (row.target, row.rule) == ("one/a", "r")


async def test_a_whole_cloud_answer_has_the_upstreams_tokens_and_its_cost() -> None:
    """Usage is the upstream's, the cost that of its price; when its first token came nobody knows."""
    async with two_upstreams(mode="always", cloud={"prices": {"one/a": {"input": 2, "output": 5}}}) as (served, _, _):
        await served.post(CHAT, BODY)
        (row,) = await rows_of(served)
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.cost_micro_usd) == (1, 0, 4, 22)
    assert (row.ttft_ms, row.tokens_per_s) == (None, None)


SCRIPT: Sequence[Step] = [Prefilling(1, 3, 7), *say("a", "b"), *end()]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_local_answer_has_the_tokens_that_were_made(stream: bool) -> None:
    """Prompt, cached and made tokens are the engine's; several answers share their prompt."""
    async with serving(ScriptedPool(SCRIPT)) as served:
        await served.post(CHAT, BODY | {"stream": stream})
        await served.post(CHAT, BODY | {"stream": stream, "n": 3})
        one, three = await rows_of(served, 2)
    assert (one.prompt_tokens, one.cached_tokens, one.completion_tokens) == (1, 3, 2)
    assert (three.prompt_tokens, three.cached_tokens, three.completion_tokens) == (1, 3, 6)
    assert one.status is OK


async def test_an_error_in_a_local_stream_is_the_rows() -> None:
    """A generation that fails after content is an error with its code, and with the tokens until then."""
    async with serving(ScriptedPool([*say("Hel", "lo"), GenerationFailed("boom")])) as served:
        await served.post(CHAT, BODY | {"stream": True})
        (row,) = await rows_of(served)
    assert (row.status, row.code, row.http_status, row.completion_tokens) == (ERROR, "error", 200, 2)


async def test_times_are_those_of_the_clock() -> None:
    """First token and duration count from the start; speed is that after the first token."""
    clock = FakeClock()
    script: list[Step] = [lambda: clock.move(2), *say("a", "b"), lambda: clock.move(0.5), *end()]
    async with serving(ScriptedPool(script), clock=clock) as served:
        await served.post(CHAT, BODY)
        (row,) = await rows_of(served)
    assert (row.ttft_ms, row.duration_ms, row.tokens_per_s) == (2000, 2500, 2.0)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_a_client_that_goes_away_has_cancelled(has_begun: bool) -> None:
    """Its row comes when it is gone, with what was made until then."""
    reached, never = asyncio.Event(), asyncio.Event()
    script: list[Step] = [*(say("a", "b") if has_begun else []), reached.set, never, *end()]
    async with serving(ScriptedPool(script)) as served:
        response = asyncio.ensure_future(served.http.post(served.url + CHAT, json=BODY | {"stream": True}))
        await reached.wait()
        assert served.rows == []
        if has_begun:
            (await response).close()
        else:
            response.cancel()
        (row,) = await rows_of(served)
    assert (row.status, row.code) == (CANCELLED, None)
    assert (row.http_status, row.completion_tokens) == ((200, 2) if has_begun else (None, 0))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_during_a_failover_leaves_its_attempts(stream: bool) -> None:
    """The one that failed, and the one that was under way."""
    async with two_upstreams(mode="always") as (served, first, second):
        first.behaviour, first.status, second.behaviour = "refuse", 503, "hang"
        response = asyncio.ensure_future(served.http.post(served.url + CHAT, json=BODY | {"stream": stream}))
        await second.arrived.wait()
        response.cancel()
        (row,) = await rows_of(served)
        attempts = [(attempt["target"], attempt["status"], attempt["code"]) for attempt in row.attempts or ()]
    assert (row.status, row.code, row.route) == (CANCELLED, None, "cloud")
    assert attempts == [("one/a", 503, "upstream_error"), ("two/b", None, "cancelled")]


async def test_an_operators_cancel_is_no_error() -> None:
    """Its status is cancelled, with the code that the client got."""
    reached, never = asyncio.Event(), asyncio.Event()
    async with serving(ScriptedPool([*say("a"), reached.set, never])) as served:
        asking = asyncio.ensure_future(served.post(CHAT, BODY))
        await reached.wait()
        served.context.requests.cancel_all("enough")
        status, _, _ = await asking
        (row,) = await rows_of(served)
    assert (row.status, row.code, row.http_status, row.completion_tokens) == (CANCELLED, "cancelled", status, 1)


@pytest.mark.parametrize(
    ("path", "body", "endpoint"),
    [
        ("/v1/completions", {"prompt": "x"}, "completions"),
        ("/v1/messages", {"messages": BODY["messages"], "max_tokens": 9}, "messages"),
        ("/v1/messages/count_tokens", {"messages": BODY["messages"]}, "messages/count_tokens"),
        ("/v1/embeddings", {"input": ""}, "embeddings"),
        ("/v1/responses", {"input": "x"}, "responses"),
    ],
)
async def test_every_route_that_a_model_answers_has_rows(path: str, body: dict[str, Any], endpoint: str) -> None:
    """Answered or refused; other routes have none."""
    async with serving(ScriptedPool(SCRIPT)) as served:
        status, _, _ = await served.post(path, {"model": "m", **body})
        await served.get("/v1/models")
        await served.get("/health")
        (row,) = await rows_of(served)
    assert (row.endpoint, row.asked, row.http_status) == (endpoint, "m", status)
    assert row.status is (OK if status == 200 else ERROR)


async def test_a_body_that_is_none_has_a_row_without_a_model() -> None:
    """What cannot be read was a request all the same."""
    async with serving(ScriptedPool(SCRIPT)) as served:
        await served.post(CHAT, [])
        (row,) = await rows_of(served)
    assert (row.asked, row.model, row.route, row.status, row.http_status) == (None, None, None, ERROR, 400)
