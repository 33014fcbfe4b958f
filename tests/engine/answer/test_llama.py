"""`engine.answer.llama`: bare JSON is a call where it names a tool, and an answer otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlxd.engine.base import ChatPrompt, GenerationRequest, SamplingParams
from mlxd.engine.constraint import ToolConstraint
from mlxd.engine.grammar import Grammar
from mlxd.engine.tool import ToolUse
from mlxd.protocol.errors import InvalidRequest
from tests.engine.bench import WriteModel
from tests.support.calls import whole_calls
from tests.support.chunking import (
    TOOLS,
    WEATHER,
    WEATHER_TOOL,
    Said,
    read_tokenizer,
    said,
    said_in_every_chunking,
)
from tests.support.prompt import FACTS, prepare, renderer_of
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.templates import TEMPLATES

MARKUP = ("<|python_tag|>", "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
CALL = '{"name": "weather", "parameters": {"city": "Rome"}}'
READ = ("call", "weather", '{"city": "Rome"}')


@pytest.fixture(scope="module")
def tokenizer(write_model: WriteModel) -> Any:
    """One with the tokens and the template of Llama 3."""
    return read_tokenizer(write_model(template=TEMPLATES["llama"], markup=MARKUP, all_bytes=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALL, [READ]),
        (f"\n\n{CALL}\n", [READ]),
        (f"<|python_tag|>{CALL}", [READ]),
        (f"I look.<|python_tag|>{CALL}", [("content", "I look."), READ]),
        ('{"type": "function", "name": "weather", "parameters": {"city": "Rome"}}', [READ]),
        ('{ "name" : "weather", "arguments": {"city": "Rome"}}', [READ]),
        (f"{CALL}; {CALL}", [READ, READ]),
        (f"{CALL}\n{CALL}", [READ, READ]),
        (
            '{"name": "weather", "parameters": {"city": "a } \\" \\\\"}} done',
            [("call", "weather", '{"city": "a } \\" \\\\"}'), ("content", " done")],
        ),
    ],
)
def test_calls_are_read(tokenizer: Any, text: str, expected: list[Said]) -> None:
    """With and without the tag, one and several."""
    assert said_in_every_chunking(tokenizer, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Bob", "parameters": {}}',
        '{"name": "weather2", "parameters": {}}',
        '{"city": "Rome"}',
        '{"name": "weather", "rain": true}',
        '{"name": "weather", "parameters": [1]}',
        CALL[:25],
        f"Say {CALL} to call it.",
        f"```json\n{CALL}\n```",
        '<|python_tag|>print("hi")',
        "a < b <|python",
        "Plain words.",
        " ",
    ],
)
def test_other_json_is_text(tokenizer: Any, text: str) -> None:
    """JSON that names no tool, a malformed call and one that stands in a text are shown as they are."""
    assert said_in_every_chunking(tokenizer, text) == [("content", text)]


def test_without_tools_all_is_text_at_once(tokenizer: Any) -> None:
    """Nobody waits for a call that cannot be."""
    assert said_in_every_chunking(tokenizer, CALL, None) == [("content", CALL)]


def test_json_is_text_as_soon_as_it_names_no_tool(tokenizer: Any) -> None:
    """An answer in JSON is streamed from its first words on, which the reader is asked for before the answer ends."""
    splitter = tokenizer.answer_format.splitter(TOOLS)
    assert splitter.split('{"name": "B') == [("normal", '{"name": "B')]


def test_ends_are_tokens_that_end(tokenizer: Any) -> None:
    """A call ends with its own tag, which configurations leave out."""
    assert set(tokenizer.convert_tokens_to_ids(["<|eom_id|>", "<|eot_id|>"])) < tokenizer.eos_token_ids


def test_several_calls_of_the_history_are_rendered(tokenizer: Any) -> None:
    """The template raises at two calls in a message, and drops the text beside one."""
    calls = [
        {"id": f"c{city}", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        for city in ("Rome", "Oslo")
    ]
    results = [{"role": "tool", "tool_call_id": f"c{city}", "content": f"{city} is dry"} for city in ("Rome", "Oslo")]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        *results,
    ]
    text = tokenizer.decode(prepare(renderer_of(tokenizer, FACTS), messages, tools=TOOLS).tokens)
    words = ["I look.", '{"city": "Rome"}', "Rome is dry", '{"city": "Oslo"}', "Oslo is dry"]
    assert [text.index(word) for word in words] == sorted(text.index(word) for word in words)


def test_llama_that_thinks_keeps_its_tags(write_model: WriteModel) -> None:
    """Its thoughts are split, and its calls are those of the generic format."""
    folder = write_model(template=TEMPLATES["llama"], markup=MARKUP, thinking=True)
    text = f"<think>Hm.</think><tool_call>{CALL.replace('parameters', 'arguments')}</tool_call>"
    assert said_in_every_chunking(read_tokenizer(folder), text) == [("reasoning", "Hm."), READ]


@pytest.fixture(scope="module")
def stepped(write_model: WriteModel) -> SteppedModel:
    """A random model with the template of Llama 3."""
    return SteppedModel(load_now(write_model(template=TEMPLATES["llama"], markup=MARKUP)))


def bound(stepped: SteppedModel, *, is_required: bool) -> Any:
    """Return a prompt whose answer is bound to calls."""
    functions = json.dumps([WEATHER_TOOL["function"]])
    constraint = ToolConstraint(functions, is_required=is_required, parallel=True, field="tools")
    prompt = ChatPrompt(({"role": "user", "content": "hi"},), tools=ToolUse((WEATHER_TOOL,)))
    return stepped.renderer.prepare(GenerationRequest(prompt, max_tokens=400, constraint=constraint))


def test_required_call_is_enforced(stepped: SteppedModel) -> None:
    """The answer is a call, with arguments of its schema."""
    sequence = stepped.say(bound(stepped, is_required=True), SamplingParams(temperature=1.3, seed=2))

    (call,) = whole_calls(call for delta in sequence.deltas for call in delta.calls)
    Draft202012Validator(WEATHER).validate(json.loads(call.arguments))
    assert (sequence.text(), stepped.loaded.facts.tool_format) == ("", "llama")


def test_strict_tool_leaves_other_text_free(stepped: SteppedModel) -> None:
    """With `auto` an answer may be anything that does not begin like a call; a call satisfies the schema."""
    grammar = bound(stepped, is_required=False).grammar
    assert isinstance(grammar, Grammar)

    def take(text: str) -> None:
        grammar.processor(stepped.loaded.tokenizer.encode(text, add_special_tokens=False), is_thinking=False)

    take("It is dry.")
    take('{"rain": false}')
    with pytest.raises(InvalidRequest, match="cannot be bound any further"):
        take('{"name": "weather", "parameters": {"rain"')


def test_chunks_that_end_in_an_escape(tokenizer: Any) -> None:
    """A quote that is escaped ends no string, wherever the text is cut."""
    text = '{"name": "weather", "parameters": {"city": "\\""}}'
    assert said(tokenizer, [text[:-5], text[-5:]]) == [("call", "weather", '{"city": "\\""}')]
