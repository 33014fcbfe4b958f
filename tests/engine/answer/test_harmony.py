"""`engine.answer.harmony`: the channels of gpt-oss, calls in them, and the way back into its template."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlxd.engine.base import ChatPrompt, GenerationRequest, SamplingParams
from mlxd.engine.constraint import JsonConstraint, ToolConstraint
from mlxd.engine.tool import ToolUse
from mlxd.protocol.errors import InvalidRequest
from tests.engine.bench import WriteModel
from tests.support.calls import whole_calls
from tests.support.chat_template import HARMONY
from tests.support.chunking import TOOLS, WEATHER, WEATHER_TOOL, Said, read_tokenizer, said, said_in_every_chunking
from tests.support.prompt import FACTS, prepare, renderer_of
from tests.support.stepped_model import SteppedModel, load_now

MARKUP = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")
THOUGHT = "<|channel|>analysis<|message|>It rains.<|end|><|start|>assistant"
TO = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
CALL = ("call", "weather", '{"city": "Rome"}')


@pytest.fixture(scope="module")
def tokenizer(write_model: WriteModel) -> Any:
    """One with the tokens and the template of gpt-oss."""
    return read_tokenizer(write_model(template=HARMONY, markup=MARKUP, all_bytes=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{THOUGHT}<|channel|>final<|message|>Yes.<|return|>", [("reasoning", "It rains."), ("content", "Yes.")]),
        (
            f"{THOUGHT}{THOUGHT}<|channel|>final<|message|>Yes.",
            [("reasoning", "It rains.\n\nIt rains."), ("content", "Yes.")],
        ),
        (f'{THOUGHT}{TO}{{"city":"Rome"}}<|call|>', [("reasoning", "It rains."), CALL]),
        (f'{THOUGHT}{TO}{{"city":"Rome"}}', [("reasoning", "It rains."), CALL]),
        (' to=functions.weather<|channel|>commentary json<|message|>{"city":"Rome"}<|call|>', [CALL]),
        ('<|channel|>commentary to=functions.weather<|message|>{"city":"Rome"}', [CALL]),
        ('<|channel|>commentary to=functions.weather<|constrain|>json<|message|>{"city":"Rome"}', [CALL]),
        ('<|channel|>commentary to=weather json<|message|>{"city":"Rome"}', [CALL]),
        ('<|channel|>analysis to=functions.weather code<|message|>{"city":"Rome"}', [CALL]),
        (f'{TO}{{"city":"Rome"}}<|end|><|start|>assistant{TO}{{}}<|call|>', [CALL, ("call", "weather", "{}")]),
        (f"{TO}<|call|>", [("call", "weather", "{}")]),
        (f'{TO}{{"city":', [("call", "weather", '{"city":')]),
        (
            f'<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{TO}{{"city":"Rome"}}',
            [("content", "I look."), CALL],
        ),
        (
            "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            [("content", "I look.\n\nYes.")],
        ),
        ("<|channel|>final <|constrain|>json<|message|>{}", [("content", "{}")]),
    ],
)
def test_channels_are_split(tokenizer: Any, text: str, expected: list[Said]) -> None:
    """Thoughts, texts for the user and calls come apart, in whatever order a header is written."""
    assert said_in_every_chunking(tokenizer, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{TO}[1]<|call|>", [("content", f"{TO}[1]")]),
        (
            "<|channel|>analysis to=python code<|message|>1+1<|call|>",
            [("content", "<|channel|>analysis to=python code<|message|>1+1")],
        ),
        ("<|channel|>analysis<|message|>never ended", [("reasoning", "never ended")]),
        ("<|channel|>final<|message|>a < b <| c <|en", [("content", "a < b <| c <|en")]),
        ("<|channel|>final<|message|>x<|end|>\n", [("content", "x")]),
        ("<|channel|>final<|message|>x<|end|><|start|>assist", [("content", "x")]),
        ("No header at all", [("content", "No header at all")]),
        (" to Rome: assistants <b>", [("content", " to Rome: assistants <b>")]),
        ("assistant to the king", [("content", "assistant to the king")]),
        ("<|channel|>" + 300 * "a", [("content", "<|channel|>" + 300 * "a")]),
        ("", []),
    ],
)
def test_what_is_no_message_is_not_lost(tokenizer: Any, text: str, expected: list[Said]) -> None:
    """A malformed call, an open message and text without a header come out as text."""
    assert said_in_every_chunking(tokenizer, text) == expected


def test_without_tools_a_call_is_text(tokenizer: Any) -> None:
    """It is shown with its header, so that nobody wonders what the JSON means."""
    assert said_in_every_chunking(tokenizer, f"{TO}{{}}<|call|>", None) == [("content", f"{TO}{{}}")]


def test_text_is_not_held_back(tokenizer: Any) -> None:
    """Only what may be the beginning of markup waits for what follows."""
    assert said(tokenizer, ["<|channel|>final<|message|>", "a"]) == said(tokenizer, ["a"]) == [("content", "a")]


def test_tags_of_the_end_are_tokens_that_end(tokenizer: Any) -> None:
    """A call ends the answer even where the configuration names one end only."""
    assert set(tokenizer.convert_tokens_to_ids(["<|call|>", "<|return|>"])) < tokenizer.eos_token_ids


def rendered(tokenizer: Any, *messages: dict[str, Any], use: ToolUse | None = TOOLS) -> str:
    """Return the prompt of a chat as text, from the first question on."""
    prompt = prepare(renderer_of(tokenizer, FACTS), ({"role": "user", "content": "Rain?"}, *messages), tools=use)
    return str(tokenizer.decode(prompt.tokens)).partition("Rain?<|end|>")[2]


def call(number: int, city: str) -> dict[str, Any]:
    """Return a call of the history."""
    return {"id": f"c{number}", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


def result(number: int, text: str) -> dict[str, Any]:
    """Return the result of a call."""
    return {"role": "tool", "tool_call_id": f"c{number}", "content": text}


def test_thoughts_and_results_go_back_into_the_template(tokenizer: Any) -> None:
    """The thoughts before a call are kept in the channel that they came in, beside a text for the user too."""
    said = {"role": "assistant", "content": "I look.", "reasoning_content": "Hm.", "tool_calls": [call(1, "Rome")]}
    assert rendered(tokenizer, said, result(1, "dry")) == (
        "<|start|>assistant<|channel|>analysis<|message|>Hm.\n\nI look.<|end|>"
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"dry"<|end|><|start|>assistant'
    )


def test_results_stand_behind_their_calls(tokenizer: Any) -> None:
    """Two calls of one answer, which the template has no room for, are two messages, each with its own result."""
    said = {"role": "assistant", "content": "", "tool_calls": [call(1, "Rome"), call(2, "Oslo")]}
    text = rendered(tokenizer, said, result(2, "snow"), result(1, "dry"))
    assert [text.index(word) for word in ("Rome", "dry", "Oslo", "snow")] == sorted(
        text.index(word) for word in ("Rome", "dry", "Oslo", "snow")
    )


def test_answer_of_a_server_that_does_not_split_is_split(tokenizer: Any) -> None:
    """The template refuses channels in a content: they are taken apart, as they would have been."""
    raw = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Dry."
    text = rendered(tokenizer, {"role": "assistant", "content": raw}, {"role": "user", "content": "And now?"})
    assert text.startswith("<|start|>assistant<|channel|>final<|message|>Dry.<|end|><|start|>user")


@pytest.fixture(scope="module")
def stepped(write_model: WriteModel) -> SteppedModel:
    """A random model with the template of gpt-oss."""
    return SteppedModel(load_now(write_model(template=HARMONY, markup=MARKUP)))


def answer(
    stepped: SteppedModel, constraint: Any, use: ToolUse | None, budget: int | None = None, **bias: float
) -> Any:
    """Run a bound answer to its end; *bias* is of tokens, by the words in their tags."""
    prompt = ChatPrompt(({"role": "user", "content": "hi"},), {}, use)
    prepared = stepped.renderer.prepare(GenerationRequest(prompt, max_tokens=600, constraint=constraint))
    ids = stepped.loaded.tokenizer.convert_tokens_to_ids
    pairs = tuple((ids(f"<|{word}|>"), value) for word, value in bias.items())
    sampling = SamplingParams(temperature=1, seed=3, logit_bias=pairs)
    return stepped.say(prepared, sampling, thinking_budget=budget)


def functions() -> str:
    """Return the functions as a constraint has them."""
    return json.dumps([WEATHER_TOOL["function"]])


@pytest.mark.parametrize("bias", [{}, {"channel": 100.0, "end": 44.0}], ids=["plain", "thinking"])
def test_required_call_is_written_in_a_message(stepped: SteppedModel, bias: dict[str, float]) -> None:
    """The answer is a call, before which the model may think and may not answer."""
    constraint = ToolConstraint(functions(), is_required=True, parallel=True, field="tool_choice")
    sequence = answer(stepped, constraint, TOOLS, None, **bias)

    (made,) = whole_calls(call for delta in sequence.deltas for call in delta.calls)
    Draft202012Validator(WEATHER).validate(json.loads(made.arguments))
    assert sequence.reason.value == "stop"
    assert {delta.kind.value for delta in sequence.deltas if delta.text} <= {"tool", "reasoning"}


def test_document_is_written_in_the_last_channel(stepped: SteppedModel) -> None:
    """A format of the answer binds the text for the user and leaves the thoughts free."""
    schema = {"type": "object", "properties": {"n": {"enum": [1]}}, "required": ["n"], "additionalProperties": False}
    sequence = answer(stepped, JsonConstraint(json.dumps(schema)), None, channel=100.0, end=44.0)

    assert json.loads("".join(d.text for d in sequence.deltas if d.kind.value == "content")) == {"n": 1}


def test_budget_ends_a_thought(stepped: SteppedModel) -> None:
    """When a thought has its tokens, its message is ended, and the answer goes on in another."""
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    sequence = answer(stepped, JsonConstraint(json.dumps(schema)), None, 3, channel=100.0)

    thoughts = "".join(d.text for d in sequence.deltas if d.kind.value == "reasoning")
    assert [len(thought) for thought in thoughts.split("\n\n")] == [3] * (thoughts.count("\n\n") + 1)
    assert "".join(d.text for d in sequence.deltas if d.kind.value == "content") == "{}"


def test_strict_tool_leaves_the_text_free(stepped: SteppedModel) -> None:
    """With `auto` the model may answer instead of calling, and a call that it begins satisfies the schema."""
    constraint = ToolConstraint(functions(), is_required=False, parallel=True, field="tools")
    grammar = stepped.renderer.prepare(
        GenerationRequest(ChatPrompt(({"role": "user", "content": "hi"},), {}, TOOLS), constraint=constraint)
    ).grammar

    def take(text: str) -> None:
        grammar.processor(stepped.loaded.tokenizer.encode(text, add_special_tokens=False), is_thinking=False)  # type: ignore[attr-defined]

    take(f"{THOUGHT}<|channel|>final<|message|>Anything.")
    take(f'{THOUGHT}<|channel|>commentary<|message|>I look.<|end|><|start|>assistant{TO}{{"city":"Rome"}}')
    with pytest.raises(InvalidRequest, match="cannot be bound any further"):
        take(f"{TO}no call")


def test_model_is_known_to_call_tools_and_to_think(stepped: SteppedModel) -> None:
    """What was measured at the load says so."""
    assert (stepped.loaded.facts.has_thinking, stepped.loaded.facts.tool_format) == (True, "harmony")
