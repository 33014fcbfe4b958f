"""Calls that come in pieces, as the official clients see them: piece by piece, and adding up to the whole answer."""

from __future__ import annotations

import json
from typing import Any

import anthropic

from mlxd.engine.base import Delta, FinishReason, Prefilling, TextKind
from mlxd.engine.tool import CallPiece
from tests.support.http_server import serving
from tests.support.official_client import openai_client
from tests.support.scripted_pool import ScriptedPool, Step, end, say

HI: Any = [{"role": "user", "content": "hi"}]
PIECES = ["", '{"a"', ': "x', 'y"}']
PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"name": "f", "parameters": PARAMETERS}
CHAT: Any = {"model": "m", "messages": HI, "tools": [{"type": "function", "function": TOOL}]}
RESPONSE: Any = {"model": "m", "input": "hi", "tools": [{"type": "function", **TOOL}]}
MESSAGE: Any = {
    "model": "m", "max_tokens": 9, "messages": HI, "tools": [{"name": "f", "input_schema": PARAMETERS}],
}  # fmt: skip


def call(pieces: list[str]) -> list[Step]:
    """Return the deltas of a call."""
    last = len(pieces) - 1
    return [
        Delta(1, "call", TextKind.TOOL, 3 + place, calls=(CallPiece(None if place else "f", piece, place == last),))
        for place, piece in enumerate(pieces)
    ]


def script(pieces: list[str], reason: FinishReason = FinishReason.STOP) -> list[Step]:
    """Return an answer that thinks, speaks, and calls twice."""
    said = [*say("hm", kind=TextKind.REASONING), *say("so")]
    return [Prefilling(1, 3, 7), *said, *call(['{"a": "1"}']), *call(pieces), *end(reason)]


async def test_a_chat_has_pieces_of_arguments() -> None:
    """The name comes first and alone, then the arguments as they are written."""
    async with serving(ScriptedPool(script(PIECES))) as served, openai_client(served) as client:
        whole = (await client.chat.completions.create(**CHAT)).choices[0].message
        async with client.chat.completions.stream(**CHAT) as stream:
            parts = [part for event in [event async for event in stream] if event.type == "chunk"
                     for part in event.chunk.choices[0].delta.tool_calls or ()]  # fmt: skip
            final = (await stream.get_final_completion()).choices[0].message
    pieces = [(part.index, part.function.name, part.function.arguments) for part in parts if part.function]
    assert pieces == [
        (0, "f", ""), (0, None, '{"a": "1"}'),
        (1, "f", ""), (1, None, '{"a"'), (1, None, ': "x'), (1, None, 'y"}'),
    ]  # fmt: skip
    for said in (whole, final):
        calls = [made.function for made in said.tool_calls or () if made.type == "function"]
        assert [(made.name, made.arguments) for made in calls] == [("f", '{"a": "1"}'), ("f", '{"a": "xy"}')]
    assert whole.content == final.content == "so"


async def test_a_response_has_pieces_of_arguments() -> None:
    """An item begins with the name, grows by deltas, and is done with all of it."""
    async with serving(ScriptedPool(script(PIECES))) as served, openai_client(served) as client:
        whole = await client.responses.create(**RESPONSE)
        async with client.responses.stream(**RESPONSE) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert deltas == ['{"a": "1"}', '{"a"', ': "x', 'y"}']
    outputs = [[item.to_dict() for item in response.output] for response in (whole, final)]
    for output in outputs:
        for item in output:
            for random in ("id", "call_id", "parsed_arguments"):
                item.pop(random, None)
            for part in item.get("content") or ():  # type: ignore[union-attr]
                part.pop("parsed", None)
    assert outputs[0] == outputs[1]
    assert [item["arguments"] for item in outputs[0][2:]] == ['{"a": "1"}', '{"a": "xy"}']


async def test_a_message_has_pieces_of_its_input() -> None:
    """A block begins with the name, and its input comes as pieces of JSON."""
    async with (
        serving(ScriptedPool(script(PIECES))) as served,
        anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0) as client,
    ):
        whole = await client.messages.create(**MESSAGE)
        async with client.messages.stream(**MESSAGE) as stream:
            pieces = [event.partial_json async for event in stream if event.type == "input_json"]
            final = await stream.get_final_message()
    assert pieces == ['{"a": "1"}', '{"a"', ': "x', 'y"}']
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    shown = [[{**block.to_dict(), "id": 0} for block in said.content] for said in (whole, final)]
    assert shown[0] == shown[1]
    assert (whole.stop_reason, final.stop_reason) == ("tool_use", "tool_use")


async def test_a_call_that_is_cut_off_is_no_object() -> None:
    """The reason says that it was cut off, and what was written of it is no whole JSON that a client could act upon."""
    pool = ScriptedPool(script(PIECES[:3], FinishReason.LENGTH))
    async with serving(pool) as served:
        chat = json.loads((await served.post("/v1/chat/completions", CHAT))[2])["choices"][0]
        response = json.loads((await served.post("/v1/responses", RESPONSE))[2])
        message = json.loads((await served.post("/v1/messages", MESSAGE))[2])
    assert (chat["finish_reason"], chat["message"]["tool_calls"][1]["function"]["arguments"]) == ("length", '{"a": "x')
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed"] * 3 + ["incomplete"]
    assert response["output"][3]["arguments"] == '{"a": "x'
    assert message["stop_reason"] == "max_tokens"
    assert message["content"][3]["input"] == {"INVALID_JSON": '{"a": "x'}
