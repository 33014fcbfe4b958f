"""Streams against whole answers, through HTTP: the same text, reasoning and calls, in both dialects."""

from __future__ import annotations

import json
import random
from typing import Any, cast

import anthropic
import openai
import pytest
from mlx_lm.utils import load_tokenizer

from mlxd.engine.base import Delta, Prefilling, PreparedPrompt, TextKind
from mlxd.engine.output import Markup
from mlxd.engine.tool import ToolUse
from tests.support.cut import cut, random_answer
from tests.support.http_server import Served, serving
from tests.support.scripted_pool import ScriptedPool, Step, end
from tests.support.tiny_model import write_tiny_model

FUNCTION: dict[str, Any] = {"name": "f", "parameters": {"type": "object"}}
HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def markup(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tags of a model that thinks and calls."""
    path = write_tiny_model(tmp_path_factory.mktemp("model"), all_bytes=True, thinking=True, tools=True)
    return load_tokenizer(path)


def script(tokenizer: Any, text: str, seed: int, kind: TextKind) -> list[Step]:
    """Return the deltas of an answer whose tokens end anywhere in it."""
    use = ToolUse(({"type": "function", "function": FUNCTION},))
    out = Markup(tokenizer).output(PreparedPrompt((1,), 1, kind, is_continuation=True, tools=use), ())
    steps: list[Step] = []
    number = 0
    for piece in cut(text, seed):
        for token in tokenizer.encode(piece, add_special_tokens=False):
            number += 1
            steps += [Delta(1, said.text, said.kind, number, (), said.calls) for said in out.push(token)]
    steps += [Delta(1, said.text, said.kind, number, (), said.calls) for said in out.finish()]
    return [Prefilling(1, 0, 7), *steps, *end()]


async def by_openai(served: Served) -> list[Any]:
    """Return what two equal answers say, whole and streamed: text, reasoning, calls, and the reason for the end."""
    asked: Any = {"model": "m", "messages": HI, "tools": [{"type": "function", "function": FUNCTION}]}
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-", max_retries=0) as client:
        whole = (await client.chat.completions.create(**asked)).choices[0]
        async with client.chat.completions.stream(**asked) as stream:
            streamed = (await stream.get_final_completion()).choices[0]
    return [
        (
            choice.message.content or "",
            getattr(choice.message, "reasoning_content", None) or "",
            [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []],
            choice.finish_reason,
        )
        for choice in (whole, streamed)
    ]


async def by_anthropic(served: Served) -> list[Any]:
    """Return the blocks of two equal answers, whole and streamed, without ids, and the reason for the end."""
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    asked: Any = {"model": "m", "messages": HI, "tools": tools, "max_tokens": 99}
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key="-", max_retries=0) as client:
        whole = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
    return [
        ([{**block.to_dict(), "id": None} for block in message.content], message.stop_reason)
        for message in (whole, streamed)
    ]


async def test_streams_say_what_whole_answers_say(markup: Any) -> None:
    """Broken tags, calls, thinking and any script, cut anywhere: both clients read the same from either."""
    places = random.Random(20)
    texts = [random_answer(places) for _ in range(20)]
    kinds = [places.choice([TextKind.CONTENT, TextKind.REASONING]) for _ in texts]
    scripts = [script(markup, text, seed, kind) for seed, (text, kind) in enumerate(zip(texts, kinds, strict=True))]
    async with serving(ScriptedPool(*(each for each in scripts for _ in range(4)))) as served:
        for text in texts:
            whole, streamed = await by_openai(served)
            assert whole == streamed, text
            blocks, streamed_blocks = await by_anthropic(served)
            assert blocks == streamed_blocks, text
            content, reasoning, calls, _ = whole
            parts = cast("list[dict[str, Any]]", blocks[0])
            assert "".join(part.get("text", "") for part in parts) == content
            assert "".join(part.get("thinking", "") for part in parts) == reasoning
            assert [(part["name"], part["input"]) for part in parts if part["type"] == "tool_use"] == calls


async def test_arguments_of_any_size_are_sent_as_they_are(markup: Any) -> None:
    """A number that no 64 bits hold is the same number in every answer."""
    text = '<tool_call>{"name": "f", "arguments": {"a": 123456789012345678901234567890}}</tool_call>'
    async with serving(ScriptedPool(script(markup, text, 1, TextKind.CONTENT))) as served:
        (_, _, calls, _), streamed = await by_openai(served)
        blocks, streamed_blocks = await by_anthropic(served)

    assert streamed[2] == calls == [("f", {"a": 123456789012345678901234567890})]
    assert blocks == streamed_blocks
    assert blocks[0][0]["input"] == calls[0][1]
