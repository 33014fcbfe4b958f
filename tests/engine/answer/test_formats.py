"""`engine.answer`: formats that are tags, and what stands between them: read, enforced, and written into templates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlxd.engine.answer.generic import GENERIC
from mlxd.engine.answer.registry import FORMATS, tool_format
from mlxd.engine.base import ChatPrompt, GenerationRequest, SamplingParams
from mlxd.engine.constraint import ToolConstraint
from mlxd.engine.grammar import Grammar
from mlxd.engine.tool import ToolUse
from mlxd.protocol.errors import InvalidRequest
from tests.engine.bench import WriteModel
from tests.support.calls import whole_calls
from tests.support.chunking import TOOLS, WEATHER, WEATHER_TOOL, Said, read_tokenizer, said_in_every_chunking
from tests.support.format_templates import DEEPSEEK_MARKUP, DSML, FORMAT_TEMPLATES
from tests.support.prompt import FACTS, prepare, renderer_of
from tests.support.stepped_model import SteppedModel, load_now

CALLING = sorted(set(FORMAT_TEMPLATES) - {"magistral"})
READ = ("call", "weather", '{"city": "Rome"}')
BEGIN, CALLS_END, CALL, SEPARATOR, CALL_END = DEEPSEEK_MARKUP[:5]
FENCED = f'{CALL}function{SEPARATOR}weather\n```json\n{{"city": "Rome"}}\n```{CALL_END}'
BARE = f'{CALL}weather{SEPARATOR}{{"city": "Rome"}}{CALL_END}'
INVOKED = (
    f'<{DSML}invoke name="weather">\n<{DSML}parameter name="city" string="true">Rome</{DSML}parameter>\n</{DSML}invoke>'
)
MARKED = f"<{DSML}function_calls>\n{{}}\n</{DSML}function_calls>"
WRITTEN = "<function=weather>\n<parameter=city>Rome</parameter>\n</function>"
SEED = f"<seed:tool_call>\n{WRITTEN}\n</seed:tool_call>"
LISTED = '[{"name": "weather", "arguments": {"city": "Rome"}}]'
TWICE = '[{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "weather", "arguments": {"city": "Rome"}}]'
ACTION = '[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Rome"}}\n]'

# One call, two calls, thoughts and text, a malformed call, one without an end, and what only looks like one.
GOLDEN: list[tuple[str, str, list[Said]]] = [
    ("deepseek_v3", f"{BEGIN}{FENCED}{CALLS_END}", [READ]),
    ("deepseek_v3", f"{BEGIN}{FENCED}\n{FENCED}{CALLS_END}", [READ, READ]),
    ("deepseek_v3", f"{BEGIN}{FENCED}", [READ]),
    ("deepseek_v3", f"<think>Hm.</think>I look.{BEGIN}{FENCED}", [("reasoning", "Hm."), ("content", "I look."), READ]),
    ("deepseek_v3", f"{BEGIN}{FENCED[:40]}", [("content", f"{BEGIN}{FENCED[:40]}")]),
    ("deepseek_v3", f"{BEGIN}{FENCED[:60]}", [("call", "weather", '{"cit')]),
    ("deepseek_v3", f"a < {CALL[:5]} b", [("content", f"a < {CALL[:5]} b")]),
    ("deepseek_v31", f"{BEGIN}{BARE}{BARE}{CALLS_END}", [READ, READ]),
    ("deepseek_v31", f"<think>Hm.</think>{BEGIN}{BARE}", [("reasoning", "Hm."), READ]),
    ("deepseek_v31", f"{BEGIN}{CALL}weather{SEPARATOR}no{CALL_END}{CALLS_END}", [
        ("content", f"{BEGIN}{CALL}weather{SEPARATOR}no{CALL_END}{CALLS_END}")
    ]),
    ("deepseek_v32", MARKED.format(INVOKED), [READ]),
    ("deepseek_v32", "I look.\n\n" + MARKED.format(f"{INVOKED}\n{INVOKED}"), [("content", "I look.\n\n"), READ, READ]),
    ("deepseek_v32", MARKED.format(INVOKED.replace('"true">Rome', '"false">["a"]')), [
        ("call", "weather", '{"city": ["a"]}')
    ]),
    ("deepseek_v32", MARKED.format("x"), [("content", MARKED.format("x"))]),
    ("deepseek_v32", MARKED.format(INVOKED)[:60], [("content", MARKED.format(INVOKED)[:60])]),
    ("seed", f"<seed:think>Hm.</seed:think>Dry.\n{SEED}\n{SEED}", [
        ("reasoning", "Hm."), ("content", "Dry.\n"), READ, READ
    ]),
    ("seed", "<seed:tool_call>x</seed:tool_call>", [("content", "<seed:tool_call>x</seed:tool_call>")]),
    ("seed", "<seed:think>Hm.", [("reasoning", "Hm.")]),
    ("phi4", f"<|tool_call|>{LISTED}<|/tool_call|>", [READ]),
    ("phi4", f"<|tool_call|>{LISTED[1:-1]}<|/tool_call|>", [READ]),
    ("phi4", f"Dry.<|tool_call|>{TWICE}<|/tool_call|>", [("content", "Dry."), READ, READ]),
    ("phi4", "<|tool_call|>[1]<|/tool_call|>", [("content", "<|tool_call|>[1]<|/tool_call|>")]),
    ("phi4", f"<|tool_call|>{LISTED}", [READ]),
    ("phi4", f"<|tool_call|>{LISTED[:12]}", [("content", f"<|tool_call|>{LISTED[:12]}")]),
    ("phi4", f"{LISTED} <|tool", [("content", f"{LISTED} <|tool")]),
    ("granite", f"<|tool_call|>{TWICE}", [READ, READ]),
    ("granite", "<|tool_call|>[", [("content", "<|tool_call|>[")]),
    ("nemotron", f"Dry.\n<TOOLCALL>{TWICE}</TOOLCALL>", [("content", "Dry.\n"), READ, READ]),
    ("nemotron", "<TOOLCALL>[]</TOOLCALL>", [("content", "<TOOLCALL>[]</TOOLCALL>")]),
    ("command", f"<|START_THINKING|>Hm.<|END_THINKING|><|START_ACTION|>{ACTION}<|END_ACTION|>", [
        ("reasoning", "Hm."), READ
    ]),
    ("command", "<|START_RESPONSE|>Dry.<|END_RESPONSE|>", [("content", "Dry.")]),
    ("command", "<|START_ACTION|>[]x<|END_ACTION|>", [("content", "<|START_ACTION|>[]x<|END_ACTION|>")]),
    ("magistral", "[THINK]Hm.[/THINK]Dry.", [("reasoning", "Hm."), ("content", "Dry.")]),
    ("magistral", "[THINK]Hm.", [("reasoning", "Hm.")]),
    ("magistral", "[THIN] [/THINK", [("content", "[THIN] [/THINK")]),
]  # fmt: skip


@pytest.fixture
def read(write_model: WriteModel) -> Any:
    """Return the tokenizer of a model with one of the templates."""

    def read(name: str) -> Any:
        template, markup = FORMAT_TEMPLATES[name]
        return read_tokenizer(write_model(template=template, markup=markup))

    return read


@pytest.mark.parametrize(("name", "text", "expected"), GOLDEN)
def test_answer_is_split(read: Any, name: str, text: str, expected: list[Said]) -> None:
    """Thoughts, texts and calls come apart; what is no call, or has no end, is text."""
    assert said_in_every_chunking(read(name), text) == expected


@pytest.mark.parametrize("name", CALLING)
def test_tag_without_a_call_is_text(read: Any, name: str) -> None:
    """One that is not followed by a call, and one that is not whole, are shown as they are."""
    tokenizer = read(name)
    tag = tokenizer.tool_call_start
    for text in (f"Dry. {tag}", f"{tag} is the tag", f"{tag[:-1]} is none", f'{tag}{{"name": "weather"'):
        assert said_in_every_chunking(tokenizer, text) == [("content", text)]


@pytest.mark.parametrize("name", CALLING)
def test_format_is_recognized(read: Any, name: str) -> None:
    """The template and the vocabulary of a model say how it calls."""
    assert tool_format(read(name)) == name


def test_every_format_is_tested() -> None:
    """One that is added without a template here would go unnoticed."""
    assert {known.name for known in (*FORMATS, GENERIC)} == {*FORMAT_TEMPLATES, "harmony", "llama", "generic"}


def test_magistral_calls_as_mistral_does_or_generically(read: Any) -> None:
    """Its thoughts are split either way."""
    tokenizer = read("magistral")
    assert (tokenizer.has_thinking, tool_format(tokenizer)) == (True, "generic")


def bound(stepped: SteppedModel, *, is_required: bool) -> Any:
    """Return a prompt whose answer is bound to calls."""
    functions = json.dumps([WEATHER_TOOL["function"]])
    constraint = ToolConstraint(functions, is_required=is_required, parallel=False, field="tools")
    prompt = ChatPrompt(({"role": "user", "content": "hi"},), tools=ToolUse((WEATHER_TOOL,), parallel=False))
    return stepped.renderer.prepare(GenerationRequest(prompt, max_tokens=500, constraint=constraint))


@pytest.mark.parametrize("name", CALLING)
def test_call_is_enforced(write_model: WriteModel, name: str) -> None:
    """A required call is read back with arguments of its schema, and a strict one cannot be begun otherwise."""
    template, markup = FORMAT_TEMPLATES[name]
    stepped = SteppedModel(load_now(write_model(template=template, markup=markup)))
    wrapper = stepped.loaded.tokenizer
    thoughtless = tuple((token, -100.0) for token in wrapper.think_start_tokens or ())
    sampling = SamplingParams(temperature=1.3, seed=2, logit_bias=thoughtless)
    sequence = stepped.say(bound(stepped, is_required=True), sampling)

    (call,) = whole_calls(call for delta in sequence.deltas for call in delta.calls)
    Draft202012Validator(WEATHER).validate(json.loads(call.arguments))
    assert sequence.text() == ""
    grammar = bound(stepped, is_required=False).grammar
    assert isinstance(grammar, Grammar)
    grammar.processor(wrapper.encode("Dry.", add_special_tokens=False), is_thinking=False)
    tokens = wrapper.encode(f"Dry.{wrapper.tool_call_start}~~no", add_special_tokens=False)
    with pytest.raises(InvalidRequest, match="cannot be bound any further"):
        grammar.processor(tokens, is_thinking=False)


def rendered(tokenizer: Any) -> str:
    """Return the prompt of a chat with a call and its result."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "dry"},
    ]
    return str(tokenizer.decode(prepare(renderer_of(tokenizer, FACTS), messages, tools=TOOLS).tokens))


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("deepseek_v3", f"I look.{BEGIN}{FENCED}{CALLS_END}"),
        ("deepseek_v31", f"I look.{BEGIN}{BARE}{CALLS_END}"),
        ("phi4", f"I look.<|tool_call|>{LISTED}<|/tool_call|>"),
        ("command", "<|START_THINKING|>Hm.\n\nI look.<|END_THINKING|>"),
    ],
)
def test_call_of_the_history_is_written(write_model: WriteModel, name: str, call: str) -> None:
    """Where the template would drop a call or what stands beside it, it is in the text."""
    template, markup = FORMAT_TEMPLATES[name]
    text = rendered(read_tokenizer(write_model(template=template, markup=markup, all_bytes=True)))
    assert call in text
    assert text.index(call) < text.index("dry")


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v31", "phi4"])
def test_tools_are_told_where_the_template_has_no_place_for_them(write_model: WriteModel, name: str) -> None:
    """Else the model would never know of them."""
    template, markup = FORMAT_TEMPLATES[name]
    text = rendered(read_tokenizer(write_model(template=template, markup=markup, all_bytes=True)))
    assert json.dumps(WEATHER_TOOL["function"]) in text
    assert text.index("Be brief.") < text.index("Say it.") < text.index("Rain?")
