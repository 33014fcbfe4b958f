"""`engine.answer.generic`: tools for a model whose chat template has no format of calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlxd.engine.answer.generic import adapt
from mlxd.engine.answer.registry import tool_format
from mlxd.engine.base import ChatPrompt, GenerationRequest, SamplingParams
from mlxd.engine.constraint import ToolConstraint
from mlxd.engine.tool import ToolUse
from tests.engine.bench import WriteModel
from tests.support.calls import whole_calls
from tests.support.chunking import TOOLS, WEATHER, WEATHER_TOOL, Said, read_tokenizer, said_in_every_chunking
from tests.support.prompt import FACTS, prepare, renderer_of
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.templates import TEMPLATES

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
READ = ("call", "weather", '{"city": "Rome"}')
QUESTION = {"role": "user", "content": "Rain?"}
CALLED = {
    "role": "assistant",
    "content": "I look.",
    "tool_calls": [
        {"id": f"c{number}", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        for number, city in enumerate(["Rome", "Oslo"])
    ],
}
RESULTS = [
    {"role": "tool", "tool_call_id": f"c{number}", "content": text} for number, text in enumerate(["dry", "snow"])
]


@pytest.fixture(scope="module")
def tokenizer(write_model: WriteModel) -> Any:
    """One whose template knows no tools."""
    return read_tokenizer(write_model(template=TEMPLATES["plain"], all_bytes=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dry.", [("content", "Dry.")]),
        (CALL, [READ]),
        (f"I look.\n{CALL}\n{CALL}", [("content", "I look.\n"), READ, READ]),
        ("<tool_call>rain?</tool_call>", [("content", "<tool_call>rain?</tool_call>")]),
        (CALL[:30], [("content", CALL[:30])]),
        (
            '{"name": "weather"} a <tool> b',
            [("content", '{"name": "weather"} a <tool> b')],
        ),
    ],
)
def test_calls_are_read(tokenizer: Any, text: str, expected: list[Said]) -> None:
    """What stands between the tags is a call, and all else is text."""
    assert said_in_every_chunking(tokenizer, text) == expected


def test_tools_are_told_after_the_instructions(tokenizer: Any) -> None:
    """The template is given no tools; the system message says what there is and how to call it."""
    messages = [{"role": "system", "content": "Be brief."}, QUESTION]
    text = tokenizer.decode(prepare(renderer_of(tokenizer, FACTS), messages, tools=TOOLS).tokens)

    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Functions")
    assert json.dumps(WEATHER_TOOL["function"]) in text
    assert text.endswith("<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("use", [TOOLS, None], ids=["tools", "none"])
def test_history_is_text_in_turns(use: ToolUse | None) -> None:
    """Calls and results stand where they were made, also for a request without tools, and the roles alternate."""
    more = {"role": "user", "content": "And now?"}
    prompt = adapt(ChatPrompt((QUESTION, CALLED, *RESULTS, more), tools=use))

    messages = [message for message in prompt.messages if message["role"] != "system"]
    assert (prompt.tools, len(prompt.messages) - len(messages)) == (None, 0 if use is None else 1)
    assert messages == [
        QUESTION,
        {"role": "assistant", "content": f"I look.\n{CALL}\n{CALL.replace('Rome', 'Oslo')}"},
        {
            "role": "user",
            "content": "<tool_response>\ndry\n</tool_response>\n<tool_response>\nsnow\n</tool_response>\nAnd now?",
        },
    ]


def test_template_without_a_system_role_takes_tools(write_model: WriteModel) -> None:
    """What there is to call is told in the first question, and turns stay turns."""
    renderer = renderer_of(read_tokenizer(write_model(template=TEMPLATES["gemma"])), FACTS)
    prompt = prepare(renderer, [QUESTION, CALLED, *RESULTS, QUESTION], tools=TOOLS)
    text = renderer._tokenizer.decode(prompt.tokens)
    assert text.startswith("<start_of_turn>user\n# Functions")
    assert text.count("<start_of_turn>") == 4


def test_one_call_is_asked_for_where_one_is_allowed(tokenizer: Any) -> None:
    """The words follow `parallel_tool_calls`."""
    asked = [
        adapt(ChatPrompt((QUESTION,), tools=ToolUse((WEATHER_TOOL,), parallel=parallel))).messages[0]["content"]
        for parallel in (True, False)
    ]
    assert ["one or more of them" in text for text in asked] == [True, False]


def test_required_call_is_enforced(write_model: WriteModel) -> None:
    """A random model that never saw a tool calls one, with arguments of its schema."""
    stepped = SteppedModel(load_now(write_model(template=TEMPLATES["plain"])))
    constraint = ToolConstraint(json.dumps([WEATHER_TOOL["function"]]), is_required=True, parallel=False, field="tools")
    prompt = ChatPrompt((QUESTION,), tools=ToolUse((WEATHER_TOOL,), parallel=False))
    prepared = stepped.renderer.prepare(GenerationRequest(prompt, max_tokens=400, constraint=constraint))
    sequence = stepped.say(prepared, SamplingParams(temperature=1.3, seed=2))

    (call,) = whole_calls(call for delta in sequence.deltas for call in delta.calls)
    Draft202012Validator(WEATHER).validate(json.loads(call.arguments))
    assert (sequence.text(), stepped.loaded.facts.tool_format) == ("", "generic")


def test_formats_that_are_known_are_kept(write_model: WriteModel) -> None:
    """A model whose format mlx-lm knows is left alone."""
    assert tool_format(read_tokenizer(write_model(tools=True))) == "json_tools"
