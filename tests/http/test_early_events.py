"""What a stream says before its first content, and in its silences: events, as some clients count nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import pytest

from mlxd.audit import RequestStatus
from mlxd.engine.base import Delta, Prefilling, TextKind
from mlxd.engine.tool import CallPiece
from mlxd.protocol.errors import GenerationFailed
from tests.support.clock import FakeClock
from tests.support.control import until
from tests.support.http_server import serving
from tests.support.official_client import openai_client
from tests.support.scripted_pool import ScriptedPool, Step, end, say
from tests.support.two_upstreams import two_upstreams

HI: Any = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "big", "stream": True, "messages": HI},
    "/v1/messages": {"model": "big", "stream": True, "messages": HI, "max_tokens": 9},
    "/v1/responses": {"model": "big", "stream": True, "input": "hi"},
}
FIRST = {
    "/v1/chat/completions": ["chat.completion.chunk"],
    "/v1/messages": ["message_start"],
    "/v1/responses": ["response.created", "response.in_progress"],
}
paths = pytest.mark.parametrize("path", BODIES)


def events_of(body: bytes) -> list[dict[str, Any]]:
    """Return the data of all events but [DONE]."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def kinds_of(body: bytes) -> list[str]:
    """Return the types of all events."""
    return [event.get("type") or event.get("object") or "error" for event in events_of(body)]


@paths
async def test_first_events_come_when_the_prompt_is_admitted(path: str) -> None:
    """They do not wait for the first word, which may take minutes."""
    gate = asyncio.Event()
    async with (
        serving(ScriptedPool([Prefilling(1, 3, 7), gate, *say("hi"), *end()])) as served,
        served.http.post(served.url + path, json=BODIES[path]) as response,
    ):
        seen = b""
        while kinds_of(seen) != FIRST[path]:
            seen += await response.content.readany()
        gate.set()
        rest = await response.read()
    assert set(kinds_of(rest)) & {FIRST[path][0]} == ({FIRST[path][0]} if "chat" in path else set())
    if "messages" in path:
        usage = events_of(seen)[0]["message"]["usage"]
        assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (4, 3)
    if "chat" in path:
        assert events_of(seen)[0]["choices"][0]["delta"]["role"] == "assistant"
        assert all("role" not in event["choices"][0]["delta"] for event in events_of(rest))


@paths
@pytest.mark.parametrize("fails", [True, False])
async def test_nothing_is_said_before_the_content_where_the_cloud_may_take_over(path: str, fails: bool) -> None:
    """One answer comes, from its first event on, of this machine or of an upstream."""
    script: list[Step] = [Prefilling(1, 3, 7), *([GenerationFailed("x")] if fails else [*say("local"), *end()])]
    async with two_upstreams(script) as (served, first, second):
        status, headers, body = await served.post(path, BODIES[path])
    assert (status, headers["x-mlxd-route"]) == (200, "cloud" if fails else "local")
    assert (len(first.seen), len(second.seen)) == (int(fails), 0)
    assert kinds_of(body)[0] == FIRST[path][0]
    assert (b"local" in body) != fails
    if "chat" not in path:
        assert kinds_of(body).count(FIRST[path][0]) == 1


@paths
async def test_an_error_after_the_first_events_is_the_last_one(path: str) -> None:
    """The status is sent by then; the request log says how it ended."""
    async with serving(ScriptedPool([Prefilling(1, 3, 7), GenerationFailed("the device is gone")])) as served:
        status, _, body = await served.post(path, BODIES[path])
        await until(lambda: served.rows != [])
    last = {"/v1/chat/completions": "error", "/v1/messages": "error", "/v1/responses": "response.failed"}[path]
    assert (status, kinds_of(body)) == (200, [*FIRST[path], last])
    assert "the device is gone" in events_of(body)[-1]["error"]["message"]
    assert [(row.status, row.code) for row in served.rows] == [(RequestStatus.ERROR, "error")]


class Silences:
    """A script with a silence before its first event, and one after each part of the answer."""

    def __init__(self, *parts: list[Step]) -> None:
        """Take the parts."""
        self.clock = FakeClock()
        self._gates = [asyncio.Event() for _ in range(len(parts) + 1)]
        self._reached = 0
        steps = [*self._pause(0), *(step for n, part in enumerate(parts, 1) for step in (*part, *self._pause(n)))]
        self.pool = ScriptedPool([*steps, *end()])

    def _pause(self, place: int) -> list[Step]:
        return [self._reach, self._gates[place]]

    def _reach(self) -> None:
        self._reached += 1

    async def pass_by(self) -> None:
        """Let one keep-alive be sent in each silence."""
        for place, gate in enumerate(self._gates, 1):
            await until(lambda place=place: self._reached == place)  # type: ignore[misc]
            self.clock.run_next()
            for _ in range(20):
                await asyncio.sleep(0)  # it is written
            gate.set()


def answer() -> list[list[Step]]:
    """Return an answer in parts: the prompt, a thought, a word, half a call, the other half."""
    begun, ended = CallPiece("f", '{"a":', is_last=False), CallPiece(None, "1}", is_last=True)
    return [
        [Prefilling(1, 3, 7)],
        say("hm", kind=TextKind.REASONING),
        say("so"),
        [Delta(1, "c", TextKind.TOOL, 3, calls=(begun,))],
        [Delta(1, "c", TextKind.TOOL, 4, calls=(ended,))],
    ]


async def test_messages_are_kept_alive_by_pings() -> None:
    """Anthropic's event comes before the first one too, and its client takes it."""
    silences = Silences(*answer())
    tools: Any = [{"name": "f", "input_schema": {"type": "object"}}]
    async with (
        serving(silences.pool, clock=silences.clock) as served,
        anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0) as client,
    ):
        passing = asyncio.create_task(silences.pass_by())
        async with client.messages.stream(model="m", max_tokens=9, messages=HI, tools=tools) as stream:
            final = await stream.get_final_message()
        await passing
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]


@paths
async def test_every_silence_has_an_event_where_there_is_one(path: str) -> None:
    """Pings on messages; on responses the state again, once it has begun; comments where clients have no event."""
    silences = Silences(*answer())
    async with serving(silences.pool, clock=silences.clock) as served:
        passing = asyncio.create_task(silences.pass_by())
        _, _, body = await served.post(path, BODIES[path])
        await passing
    kinds = kinds_of(body)
    pings, states = kinds.count("ping"), kinds.count("response.in_progress")
    assert (pings, states, body.count(b": keep-alive")) == {
        "/v1/chat/completions": (0, 0, 6), "/v1/messages": (6, 0, 0), "/v1/responses": (0, 6, 1),
    }[path]  # fmt: skip
    if path == "/v1/messages":
        assert body.startswith(b'event: ping\ndata: {"type":"ping"}\n\n')
    if path == "/v1/responses":
        events = events_of(body)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        *_, last = [event["response"]["output"] for event in events if event["type"] == "response.in_progress"]
        halves = [event["response"]["output"] for event in events if event["type"] == "response.in_progress"][-2]
        assert last == events[-1]["response"]["output"]
        assert (halves[-1]["arguments"], halves[1]["content"][0]["text"]) == ('{"a":', "so")


async def test_responses_that_are_kept_alive_are_put_together_by_the_client() -> None:
    """A state that is told again changes nothing in what the official client has collected."""
    silences = Silences(*answer())
    async with serving(silences.pool, clock=silences.clock) as served, openai_client(served) as client:
        passing = asyncio.create_task(silences.pass_by())
        tools: Any = [{"type": "function", "name": "f", "parameters": {"type": "object"}}]
        async with client.responses.stream(model="m", input="hi", tools=tools) as stream:
            final = await stream.get_final_response()
        await passing
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert (final.output_text, final.output[2].to_dict()["arguments"]) == ("so", '{"a":1}')
