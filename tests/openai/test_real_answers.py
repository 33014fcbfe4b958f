"""Calls, documents, logprobs and several answers, from MLX through HTTP to the official client."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.support.official_client import client_of
from tests.support.served_models import ServeModels

pytestmark = pytest.mark.parametrize("serve_models", ["device"], indirect=True)

HI: Any = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


class City(BaseModel):
    """What `.parse` reads an answer into."""

    name: str
    people: int


async def test_a_required_call_is_made(serve_models: ServeModels) -> None:
    """A model that would talk nonsense calls one of the tools, with arguments of its schema."""
    async with client_of(serve_models) as client:
        answer = await client.chat.completions.create(
            model="caller", messages=HI, tools=[WEATHER, CLOCK], tool_choice="required", seed=1, max_tokens=300,
            parallel_tool_calls=False,
        )  # fmt: skip
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls or []
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert call.type == "function"
    assert call.id.startswith("call_")
    if call.function.name == "weather":
        assert set(json.loads(call.function.arguments)) == {"city", "days"}
    else:
        assert (call.function.name, call.function.arguments) == ("clock", "{}")


async def test_a_named_call_is_made_and_its_result_goes_back(serve_models: ServeModels) -> None:
    """The call streams as deltas that add up, and a second turn with its result is rendered by the template."""
    named: Any = {"type": "function", "function": {"name": "weather"}}
    asked: dict[str, Any] = {
        "model": "caller", "messages": HI, "tools": [WEATHER, CLOCK], "tool_choice": named, "seed": 2,
        "max_tokens": 300, "parallel_tool_calls": False,
    }  # fmt: skip
    async with client_of(serve_models) as client:
        whole = (await client.chat.completions.create(**asked)).choices[0].message
        async with client.chat.completions.stream(**asked) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_completion()
        assert whole.tool_calls is not None
        second = await client.chat.completions.create(
            model="caller", max_tokens=5, tools=[WEATHER],
            messages=[*HI, whole.to_dict(), {"role": "tool", "tool_call_id": whole.tool_calls[0].id, "content": "sun"}],
        )  # fmt: skip
    (streamed,) = final.choices[0].message.tool_calls or []
    assert whole.tool_calls[0].type == "function"
    assert streamed.function.arguments == whole.tool_calls[0].function.arguments
    assert any(event.type == "tool_calls.function.arguments.done" for event in events)
    assert final.choices[0].finish_reason == "tool_calls"
    assert second.choices[0].finish_reason == "length"


async def test_a_client_of_functions_is_called_as_it_was_before_there_were_tools(serve_models: ServeModels) -> None:
    """`functions` get a `function_call`, streamed or whole, and its result comes back as role function."""
    asked: dict[str, Any] = {
        "model": "caller", "messages": HI, "functions": [WEATHER["function"]], "function_call": {"name": "weather"},
        "seed": 2, "max_tokens": 300,
    }  # fmt: skip
    async with client_of(serve_models) as client:
        (whole,) = (await client.chat.completions.create(**asked)).choices
        deltas = [chunk.choices[0] async for chunk in await client.chat.completions.create(**asked, stream=True)]
        second = await client.chat.completions.create(
            model="caller", max_tokens=5,
            messages=[*HI, whole.message.to_dict(), {"role": "function", "name": "weather", "content": "sun"}],
        )  # fmt: skip
    called = whole.message.function_call
    assert called is not None
    assert (called.name, set(json.loads(called.arguments))) == ("weather", {"city", "days"})
    assert (whole.finish_reason, whole.message.tool_calls) == ("function_call", None)
    pieces = [choice.delta.function_call for choice in deltas if choice.delta.function_call is not None]
    assert pieces[0].name == "weather"
    assert "".join(piece.arguments or "" for piece in pieces) == called.arguments
    assert deltas[-1].finish_reason == "function_call"
    assert second.choices[0].finish_reason == "length"


async def test_a_custom_tool_gets_one_text(serve_models: ServeModels) -> None:
    """Its call streams as one input that is the whole answer's, and goes back into the next prompt."""
    tool: Any = {"type": "custom", "custom": {"name": "note", "description": "Keep a note", "format": {
        "type": "grammar", "grammar": {"syntax": "regex", "definition": "[a-c]{3}"}}}}  # fmt: skip
    asked: dict[str, Any] = {
        "model": "caller", "messages": HI, "tools": [tool, CLOCK], "seed": 2, "max_tokens": 300,
        "tool_choice": {"type": "custom", "custom": {"name": "note"}}, "parallel_tool_calls": False,
    }  # fmt: skip
    async with client_of(serve_models) as client:
        (whole,) = (await client.chat.completions.create(**asked)).choices
        deltas = [chunk.choices[0].delta async for chunk in await client.chat.completions.create(**asked, stream=True)]
        (call,) = whole.message.tool_calls or []
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "kept"}
        second = await client.chat.completions.create(
            model="caller", max_tokens=5, tools=[tool], messages=[*HI, whole.message.to_dict(), result]
        )
    assert call.type == "custom"
    assert (call.custom.name, whole.finish_reason) == ("note", "tool_calls")
    assert re.fullmatch("[a-c]{3}", call.custom.input)
    pieces = [piece.to_dict() for delta in deltas for piece in delta.tool_calls or []]
    assert [piece["custom"] for piece in pieces] == [{"name": "note", "input": ""}, {"input": call.custom.input}]
    assert second.choices[0].finish_reason == "length"


async def test_parsed_answers_are_of_their_class(serve_models: ServeModels) -> None:
    """`.parse` with a pydantic class gets an object of it, whatever the model would rather say."""
    async with client_of(serve_models) as client:
        for seed in range(3):
            parsed = await client.chat.completions.parse(
                model="tiny", messages=HI, response_format=City, seed=seed, max_tokens=1500
            )
            if parsed.choices[0].finish_reason == "stop":
                assert isinstance(parsed.choices[0].message.parsed, City)


async def test_a_schema_that_cannot_be_enforced_is_a_400(serve_models: ServeModels) -> None:
    """The message says which keyword."""
    bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}}}
    async with client_of(serve_models) as client:
        with pytest.raises(openai.BadRequestError, match="not") as refused:
            await client.chat.completions.create(model="tiny", messages=HI, response_format=bad)
    assert refused.value.param == "response_format"


async def test_model_without_a_format_of_calls_calls_in_the_generic_one(serve_models: ServeModels) -> None:
    """The answer says so in a header; one without tools has none."""
    called: Any = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 300}
    async with client_of(serve_models) as client:
        create = client.chat.completions.with_raw_response.create
        answer = await create(model="tiny", messages=HI, seed=1, **called)
        plain = await create(model="tiny", messages=HI, max_tokens=2)
    assert answer.headers["x-mlxd-tool-format"] == "generic"
    assert "x-mlxd-tool-format" not in plain.headers
    assert [call.function.name for call in answer.parse().choices[0].message.tool_calls] == ["weather"]


async def test_reasoning_effort_none_turns_thinking_off(serve_models: ServeModels) -> None:
    """The template is told; with an effort the model thinks."""
    async with client_of(serve_models) as client:
        efforts: tuple[Any, ...] = ("none", "high")
        off, on = [
            (await client.chat.completions.create(model="thinker", messages=HI, max_tokens=8, reasoning_effort=effort))
            for effort in efforts
        ]
    assert off.choices[0].message.content
    assert not on.choices[0].message.content
    assert on.usage is not None
    assert on.usage.completion_tokens_details is not None
    assert on.usage.completion_tokens_details.reasoning_tokens == 8


async def test_several_answers_have_an_index_and_a_seed_each(serve_models: ServeModels) -> None:
    """N answers differ, the first is the one that comes alone, and the prompt is counted once."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "seed": 7, "max_tokens": 12, "temperature": 1}
    async with client_of(serve_models) as client:
        alone = await client.chat.completions.create(**asked)
        several = await client.chat.completions.create(**asked, n=3)
        stream = await client.chat.completions.create(**asked, n=3, stream=True, stream_options={"include_usage": True})
        texts, usage = ["", "", ""], None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    contents = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert contents[0] == alone.choices[0].message.content
    assert len(set(contents)) == 3
    assert texts == contents
    assert several.usage is not None
    assert alone.usage is not None
    assert several.usage.prompt_tokens == alone.usage.prompt_tokens
    assert several.usage.completion_tokens == 36
    assert usage is not None
    assert usage.prompt_tokens == alone.usage.prompt_tokens


async def test_logprobs_have_openais_shape(serve_models: ServeModels) -> None:
    """Token, bytes, logprob and the likeliest others, streamed and whole alike."""
    asked: dict[str, Any] = {
        "model": "tiny", "messages": HI, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    async with client_of(serve_models) as client:
        whole = (await client.chat.completions.create(**asked)).choices[0]
        stream = await client.chat.completions.create(**asked, stream=True)
        streamed = [
            entry async for chunk in stream for choice in chunk.choices if choice.logprobs
            for entry in choice.logprobs.content or []
        ]  # fmt: skip
    assert whole.logprobs is not None
    entries = whole.logprobs.content or []
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    assert "".join(entry.token for entry in entries) == whole.message.content
    for entry in entries:
        assert bytes(entry.bytes or []).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy
        assert entry.logprob <= 0


async def test_an_evaluation_harness_scores_a_prompt(serve_models: ServeModels) -> None:
    """`echo` with `logprobs` and `max_tokens` 0: every token of the prompt has its logprob and its place."""
    async with client_of(serve_models) as client:
        answer = await client.completions.create(
            model="tiny", prompt="Once upon", max_tokens=0, echo=True, logprobs=1, temperature=0
        )
        tokens = await client.completions.create(
            model="tiny", prompt=[10, 11, 12, 13], max_tokens=1, echo=True, logprobs=2, temperature=0
        )
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("Once upon", "length")
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or []) == "Once upon"
    assert choice.logprobs.text_offset == list(range(9))
    values = choice.logprobs.token_logprobs or []
    assert [value is None for value in values] == [True] + [False] * 8
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    assert tokens.choices[0].logprobs is not None
    assert len(tokens.choices[0].logprobs.tokens or []) == 5
    assert len(tokens.choices[0].text) == 5


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_puts_the_prompt_before_each_answer(serve_models: ServeModels, stream: bool) -> None:
    """Texts and tokens alike, one by one and with n."""
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 4, "temperature": 0, "n": 2}
    async with client_of(serve_models) as client:
        bare = await client.completions.create(**asked, prompt="Once")
        ids = [ord(letter) - 32 for letter in "Once"]
        if stream:
            texts = ["", "", "", ""]
            echoed = await client.completions.create(**asked, prompt=[ids, ids], echo=True, stream=True)
            async for chunk in echoed:
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
        else:
            whole = await client.completions.create(**asked, prompt=["Once", "Once"], echo=True)
            texts = [choice.text for choice in whole.choices]
    assert texts == ["Once" + bare.choices[0].text] * 4
