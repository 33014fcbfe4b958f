"""The official client's `responses` against the real server, on MLX and on the fake device."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.support.official_client import client_of
from tests.support.served_models import ServeModels
from tests.support.tiny_model import token_id

on_device = pytest.mark.parametrize("serve_models", ["device"], indirect=True)
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 5}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class City(BaseModel):
    """What `.parse` reads an answer into."""

    name: str
    people: int


async def test_a_response_and_its_stream_are_the_same(serve_models: ServeModels) -> None:
    """Text, status and usage, by the plain client and by its helper; and so is what is stored of it."""
    asked: dict[str, Any] = {"model": "tiny", "input": "hi", "max_output_tokens": 12, "temperature": 0}
    async with client_of(serve_models) as client:
        whole = await client.responses.create(**asked)
        events = [event async for event in await client.responses.create(**asked, stream=True)]
        async with client.responses.stream(**asked) as stream:
            snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        stored = await client.responses.retrieve(whole.id)
        chat = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=12, temperature=0
        )
    assert whole.output_text == chat.choices[0].message.content == snapshots[-1]
    assert stored == whole
    last = events[-1]
    assert last.type == "response.incomplete"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert last.response.output_text == whole.output_text
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    for usage in (whole.usage, last.response.usage):
        assert usage is not None
        assert (usage.output_tokens, usage.total_tokens) == (12, usage.input_tokens + 12)


@on_device
async def test_an_answer_is_parsed_into_a_model(serve_models: ServeModels) -> None:
    """By `parse`, and from a stream by the helper; what was cut off is cut off."""
    async with client_of(serve_models) as client:
        asked: dict[str, Any] = {"model": "tiny", "input": "a city", "text_format": City, "max_output_tokens": 1500}
        for seed in range(20):
            parsed = await client.responses.parse(**asked, extra_body={"seed": seed})
            if parsed.status == "completed":
                break
        async with client.responses.stream(**asked, extra_body={"seed": seed}) as stream:
            final = await stream.get_final_response()
    assert isinstance(parsed.output_parsed, City)
    assert final.output_parsed == parsed.output_parsed
    assert final.output_text == parsed.output_text


@on_device
async def test_a_tool_is_called_and_its_result_goes_back(serve_models: ServeModels) -> None:
    """Arguments stream; the result goes back with the items, and by the id of the response, from the prompt cache."""
    asked: dict[str, Any] = {
        "model": "caller", "input": "hi", "tools": [WEATHER], "parallel_tool_calls": False, "temperature": 0,
        "tool_choice": {"type": "function", "name": "weather"}, "max_output_tokens": 200,
    }  # fmt: skip
    async with client_of(serve_models) as client:
        whole = await client.responses.create(**asked)
        async with client.responses.stream(**asked) as stream:
            pieces = [event.delta async for event in stream if event.type == "response.function_call_arguments.delta"]
            final = await stream.get_final_response()
        call = whole.output[-1]
        assert call.type == "function_call"
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
        more: dict[str, Any] = {"model": "caller", "tools": [WEATHER], "temperature": 0, "max_output_tokens": 4}
        turns: Any = [{"role": "user", "content": "hi"}, *[item.to_dict() for item in whole.output], result]
        by_items = await client.responses.create(input=turns, **more)
        by_id = await client.responses.create(input=[result], previous_response_id=whole.id, **more)
    assert whole.status == final.status == "completed"
    streamed = final.output[-1]
    assert streamed.type == "function_call"
    assert call.arguments == streamed.arguments == "".join(pieces)
    assert set(json.loads(call.arguments)) == {"city"}
    assert by_items.output_text == by_id.output_text
    assert by_items.usage is not None
    assert by_id.usage is not None
    assert by_items.usage.input_tokens == by_id.usage.input_tokens
    assert by_id.usage.input_tokens_details.cached_tokens > 0


@on_device
async def test_thinking_is_an_item(serve_models: ServeModels) -> None:
    """Reasoning comes before the message, streamed and whole alike, and is counted."""
    close = {str(token_id("</think>", thinking=True)): 34}  # now and then
    asked: dict[str, Any] = {
        "model": "thinker", "input": "Hello, you there", "max_output_tokens": 60,
        "extra_body": {"seed": 3, "logit_bias": close},
    }  # fmt: skip
    async with client_of(serve_models) as client:
        whole = await client.responses.create(**asked)
        events = [event async for event in await client.responses.create(**asked, stream=True)]
    thought, said = whole.output[:2]
    assert thought.type == "reasoning"
    assert thought.content is not None
    text = thought.content[0].text
    assert text
    assert text == "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert said.type == "message"
    assert whole.output_text == "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert whole.usage is not None
    assert 0 < whole.usage.output_tokens_details.reasoning_tokens < 60


@on_device
async def test_logprobs_stand_beside_the_text(serve_models: ServeModels) -> None:
    """In the part and in the deltas, with alternatives where they are asked for."""
    asked: dict[str, Any] = {
        "model": "tiny", "input": "hi", "max_output_tokens": 5, "temperature": 0, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"],
    }  # fmt: skip
    async with client_of(serve_models) as client:
        whole = (await client.responses.create(**asked)).to_dict()
        events = [event async for event in await client.responses.create(**asked, stream=True)]
    item: Any = whole["output"]
    logprobs = item[0]["content"][0]["logprobs"]
    assert "".join(entry["token"] for entry in logprobs) == item[0]["content"][0]["text"]
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [2] * 5
    streamed = [entry for event in events if event.type == "response.output_text.delta" for entry in event.logprobs]
    assert [entry.token for entry in streamed] == [entry["token"] for entry in logprobs]


async def test_a_conversation_goes_on_and_is_deleted(serve_models: ServeModels) -> None:
    """The second turn's prompt holds the first, and can be counted; what is deleted is gone."""
    asked: dict[str, Any] = {"model": "tiny", "max_output_tokens": 8, "temperature": 0}
    async with client_of(serve_models) as client:
        first = await client.responses.create(input="Hello, you there", **asked)
        second = await client.responses.create(input="more", previous_response_id=first.id, **asked)
        counted = await client.responses.input_tokens.count(model="tiny", input="more", previous_response_id=first.id)
        items = [item async for item in client.responses.input_items.list(second.id)]
        with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
            await client.responses.cancel(second.id)
        await client.responses.delete(second.id)
        for refused in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                await refused(second.id)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.usage.input_tokens == counted.input_tokens
    assert second.previous_response_id == first.id
    assert [item.to_dict()["content"] for item in items] == [[{"type": "input_text", "text": "more"}]]


async def test_errors_are_of_the_clients_classes(serve_models: ServeModels) -> None:
    """Before a stream's first word they have a status, as without a stream."""
    async with client_of(serve_models) as client:
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as missing:
                await client.responses.create(model="tinny", input="hi", stream=stream)
            with pytest.raises(openai.BadRequestError) as hosted:
                await client.responses.create(model="tiny", input="hi", stream=stream, background=True)
            with pytest.raises(openai.BadRequestError) as long:
                await client.responses.create(model="tiny", input="x" * 9000, stream=stream)
            codes = [refused.value.code for refused in (missing, hosted, long)]
            assert codes == ["model_not_found", "unsupported_parameter", "context_length_exceeded"]
            assert long.value.param == "input"
