"""The official Anthropic client against the real server, on MLX and on the fake device."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest

from mlxd.http.sealed import opened
from tests.support.served_models import ServeModels
from tests.support.tiny_model import token_id

HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 5}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
LONG: Any = [{"role": "user", "content": "x" * 9000}]
on_device = pytest.mark.parametrize("serve_models", ["device"], indirect=True)


@asynccontextmanager
async def client_of(serve_models: ServeModels) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Serve the tiny models and return a client of them."""
    async with (
        serve_models() as served,
        anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0) as client,
    ):
        yield client


async def test_a_message_and_its_stream_are_the_same(serve_models: ServeModels) -> None:
    """Text, stop reason and usage; the prompt's tokens are told at the start of the stream."""
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "messages": HI, "extra_body": {"temperature": 0}}
    async with client_of(serve_models) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_message()
        counted = await client.messages.count_tokens(model="tiny", messages=HI)
    assert whole.content[0].type == "text"
    assert final.content[0].to_dict() == whole.content[0].to_dict()
    assert (whole.stop_reason, final.stop_reason, whole.type, whole.role) == ("max_tokens",) * 2 + (
        "message",
        "assistant",
    )
    start = events[0]
    assert start.type == "message_start"
    for usage in (whole.usage, final.usage, start.message.usage):
        cached = usage.cache_read_input_tokens or 0
        assert usage.input_tokens + cached == counted.input_tokens
    assert (whole.usage.output_tokens, final.usage.output_tokens) == (12, 12)


async def test_a_stop_sequence_is_named(serve_models: ServeModels) -> None:
    """The reason says that one was met, and which."""
    async with client_of(serve_models) as client:
        asked: dict[str, Any] = {"model": "tiny", "max_tokens": 20, "messages": HI, "extra_body": {"temperature": 0}}
        text = (await client.messages.create(**asked)).content[0].to_dict()["text"]
        assert isinstance(text, str)
        cut = await client.messages.create(**asked, stop_sequences=["\x7f", text[4:7]])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", text[4:7])
    assert cut.content[0].to_dict()["text"] == text[: text.index(text[4:7])]


@on_device
@pytest.mark.parametrize("stream", [False, True])
async def test_no_tokens_at_all_warm_the_prompt_cache(serve_models: ServeModels, stream: bool) -> None:
    """A max_tokens of 0 is answered without content, and the next request finds its prompt read."""
    asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello " * 20}]}
    async with client_of(serve_models) as client:
        if stream:
            async with client.messages.stream(**asked, max_tokens=0) as events:
                warmed = await events.get_final_message()
        else:
            warmed = await client.messages.create(**asked, max_tokens=0)
        after = await client.messages.create(**asked, max_tokens=1)
    assert (warmed.content, warmed.stop_reason, warmed.usage.output_tokens) == ([], "max_tokens", 0)
    assert (warmed.usage.cache_read_input_tokens, after.usage.output_tokens) == (0, 1)
    assert (after.usage.cache_read_input_tokens or 0) > 120


@on_device
async def test_a_tool_is_used_and_its_result_goes_back(serve_models: ServeModels) -> None:
    """The input streams as JSON; a second turn with the result is answered."""
    asked: dict[str, Any] = {
        "model": "caller", "max_tokens": 200, "messages": HI, "tools": [WEATHER],
        "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    async with client_of(serve_models) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            pieces = [event.partial_json async for event in stream if event.type == "input_json"]
            final = await stream.get_final_message()
        use = whole.content[0]
        assert use.type == "tool_use"
        results: Any = [{"type": "tool_result", "tool_use_id": use.id, "content": "sun"}]
        turns: Any = [*HI, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
        second = await client.messages.create(model="caller", max_tokens=4, messages=turns, tools=[WEATHER])
    assert whole.stop_reason == final.stop_reason == "tool_use"
    assert set(use.input) == {"city"}
    streamed = final.content[0]
    assert streamed.type == "tool_use"
    assert streamed.input == use.input == json.loads("".join(pieces))
    assert second.stop_reason == "max_tokens"


@on_device
async def test_thinking_is_a_block(serve_models: ServeModels) -> None:
    """Thinking comes apart from text, and can be turned off."""
    asked: dict[str, Any] = {
        "model": "thinker", "max_tokens": 40, "messages": HI, "thinking": {"type": "adaptive"},
        "extra_body": {"temperature": 0},
    }  # fmt: skip
    async with client_of(serve_models) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            final = await stream.get_final_message()
        off = await client.messages.create(**(asked | {"thinking": {"type": "disabled"}, "max_tokens": 5}))
    assert [block.type for block in whole.content] == ["thinking"]
    assert [block.to_dict() for block in whole.content] == [block.to_dict() for block in final.content]
    assert whole.usage.output_tokens_details is not None
    assert whole.usage.output_tokens_details.thinking_tokens == 40
    assert [block.type for block in off.content] == ["text"]


@on_device
async def test_an_omitted_thought_is_in_the_signature(serve_models: ServeModels) -> None:
    """Blocks of thinking have no text then, streamed or not; sent back, they are what the shown ones are."""
    asked: dict[str, Any] = {
        "model": "thinker", "max_tokens": 40, "messages": HI, "extra_body": {"temperature": 0},
    }  # fmt: skip
    hidden: Any = {"type": "adaptive", "display": "omitted"}
    async with client_of(serve_models) as client:
        shown = await client.messages.create(**asked, thinking={"type": "adaptive"})
        whole = await client.messages.create(**asked, thinking=hidden)
        async with client.messages.stream(**asked, thinking=hidden) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
        assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
        counts = []
        for answer in (shown, whole):
            turns: Any = [*HI, {"role": "assistant", "content": answer.content}]
            counted = await client.messages.count_tokens(model="thinker", messages=turns)
            counts.append(counted.input_tokens)
    thought, empty = shown.content[0], whole.content[0]
    assert thought.type == empty.type == "thinking"
    assert (empty.thinking, opened(empty.signature)) == ("", thought.thinking)
    assert "thinking" not in kinds
    assert kinds.count("signature") == 1
    assert counts[0] == counts[1]


@on_device
async def test_the_last_answer_is_gone_on_with(serve_models: ServeModels) -> None:
    """A conversation that ends with the assistant's words is continued and not answered anew."""
    async with client_of(serve_models) as client:
        bare = await client.messages.count_tokens(model="tiny", messages=HI)
        begun: Any = [*HI, {"role": "assistant", "content": "So"}]
        counted = await client.messages.count_tokens(model="tiny", messages=begun)
    assert counted.input_tokens == bare.input_tokens + 2


async def test_errors_are_of_the_clients_classes(serve_models: ServeModels) -> None:
    """Anthropic's envelope, with a type that its client knows."""
    async with client_of(serve_models) as client:
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.messages.create(model="tinny", max_tokens=1, messages=HI)
        with pytest.raises(anthropic.BadRequestError) as bad:
            await client.messages.create(model="tiny", max_tokens=1, messages=LONG)
        with pytest.raises(anthropic.NotFoundError):
            async with client.messages.stream(model="tinny", max_tokens=1, messages=HI) as stream:
                await stream.get_final_message()
    for refused, kind in ((missing, "not_found_error"), (bad, "invalid_request_error")):
        body: Any = refused.value.body
        assert (body["type"], body["error"]["type"]) == ("error", kind)
        assert body["request_id"] == refused.value.response.headers["request-id"]


async def test_only_a_prompt_that_does_not_fit_is_refused_in_words_that_are_known(serve_models: ServeModels) -> None:
    """Claude Code asks for 32000 tokens of every model, and compacts a conversation when it reads these words.

    A prompt that is too long can still be counted.
    """
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 32_000, "timeout": 60}
    async with (
        serve_models(models={"tiny": {"context_length": 60}}) as served,
        anthropic.AsyncAnthropic(base_url=served.url, api_key="unused", max_retries=0) as client,
    ):
        answer = await client.messages.create(messages=HI, **asked)
        counted = await client.messages.count_tokens(model="tiny", messages=HI)
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(messages=LONG, **asked)
        too_many = await client.messages.count_tokens(model="tiny", messages=LONG)
    assert too_many.input_tokens > 60
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 60 - counted.input_tokens)
    assert re.search(r"prompt is too long: \d+ tokens > 60 maximum", refused.value.message)


async def test_models_are_listed_in_both_shapes(serve_models: ServeModels) -> None:
    """The one path that both APIs have answers each client in its own."""
    async with client_of(serve_models) as client:
        listed = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("org/other")
    assert "org/other" in listed
    assert (one.type, one.id) == ("model", "org/other")


def test_thinking_tags_are_tokens() -> None:
    """The tiny thinker's tags are single tokens, as those of real models are."""
    assert token_id("</think>", thinking=True) == token_id("<think>", thinking=True) + 1
