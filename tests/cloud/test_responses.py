"""/v1/responses by way of the cloud: passed on as it is, failed over to, and its errors before any word."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from mlxd.protocol.errors import QueueTimeout
from tests.support.http_server import serving
from tests.support.scripted_pool import ScriptedPool, Step, end, say
from tests.support.upstream import KEY, PIECES, Upstream, upstream

TEXT = "".join(PIECES)


@asynccontextmanager
async def _cloudy(*script: Step, **rule: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, Upstream, ScriptedPool]]:
    pool = ScriptedPool(script)
    async with upstream() as far:
        cloud = {
            "enabled": True,
            "providers": {"far": {"base_url": far.url, "auth": {"env": "FAR_KEY"}}},
            "rules": {"big": {"match": "glob:*", "to": ["far/org/model"], **rule}},
        }
        async with (
            serving(pool, document={"cloud": cloud}, environ={"FAR_KEY": KEY}) as served,
            openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0) as client,
        ):
            yield client, far, pool


async def test_a_response_of_an_upstream_passes() -> None:
    """Whole and by the stream helper; tools that run there are the upstream's business; nothing is stored here."""
    async with _cloudy() as (client, far, pool):
        raw = await client.responses.with_raw_response.create(
            model="big-1", input="hi", tools=[{"type": "web_search"}], previous_response_id="resp_there"
        )
        async with client.responses.stream(model="big-1", input="hi") as stream:
            final = await stream.get_final_response()
        with pytest.raises(openai.NotFoundError, match="never stored here"):
            await client.responses.retrieve("resp_up")
    whole = raw.parse()
    assert whole.output_text == final.output_text == TEXT
    assert whole.model == final.model == "big-1"
    assert (raw.headers["x-mlxd-route"], raw.headers["x-mlxd-target"]) == ("cloud", "far/org/model")
    assert [seen.path for seen in far.seen] == ["/v1/responses"] * 2
    assert far.seen[0].json == {
        "model": "org/model", "input": "hi", "tools": [{"type": "web_search"}], "previous_response_id": "resp_there",
    }  # fmt: skip
    assert pool.leased == []


@pytest.mark.parametrize("stream", [False, True])
async def test_the_cloud_answers_after_a_local_failure(stream: bool) -> None:
    """As long as no word was sent: the stream is the upstream's from its first event on."""
    rule = {"mode": "fallback", "on": ["queue_timeout"]}
    async with _cloudy(QueueTimeout("waited 120 s"), **rule) as (client, _, pool):
        pool.on_lease = [QueueTimeout("waited 120 s")]
        answer = await client.responses.create(model="m", input="hi", stream=stream)
        if isinstance(answer, openai.AsyncStream):
            events = [event async for event in answer]
            text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            assert events[0].type == "response.created"
            assert events[0].response.id == "resp_up"
        else:
            text = answer.output_text
    assert text == TEXT


async def test_a_failure_after_the_first_word_stays_here() -> None:
    """The client raises; no upstream is asked."""
    rule = {"mode": "fallback", "on": ["queue_timeout"]}
    async with _cloudy(*say("a"), QueueTimeout("waited 120 s"), **rule) as (client, far, _):
        with pytest.raises(openai.APIError, match="waited 120 s"):
            async for _ in await client.responses.create(model="m", input="hi", stream=True):
                pass
    assert far.seen == []


@pytest.mark.parametrize(("behaviour", "words"), [("error_event", "overloaded"), ("die_empty", "connection broke")])
async def test_an_upstream_that_fails_before_its_first_word_is_an_error(behaviour: str, words: str) -> None:
    """With a status, and the upstream's words where it has any."""
    async with _cloudy(*say("local"), *end()) as (client, far, _):
        far.behaviour = behaviour
        with pytest.raises(openai.APIStatusError, match=words):
            await client.responses.create(model="m", input="hi", stream=True)
