"""Calls that a model is made to write, in each format: mlx-lm's own parser reads them back as calls of the schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mlxd.engine.base import ChatPrompt, GenerationRequest, SamplingParams
from mlxd.engine.constraint import ToolConstraint
from mlxd.engine.grammar import Grammar
from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.protocol.errors import InvalidRequest
from tests.engine.bench import WriteModel
from tests.support.calls import whole_calls
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.tiny_model import CALL_FORMATS, token_id

ENFORCED = sorted(set(CALL_FORMATS) - {"kimi_k3"})
# Without nested documents or quoted text in a union: what each format can write.
PLAIN = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "where", "minLength": 1, "maxLength": 12},
        "note": {"type": "string", "maxLength": 5},
        "days": {"type": "integer", "minimum": 0, "maximum": 30},
        "scale": {"enum": ["C", "F"], "type": "string"},
        "share": {"type": "number", "enum": [0.25, -3]},
        "wind": {"type": "boolean"},
    },
    "required": ["city", "days", "scale"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 3},
        "place": {"$ref": "#/$defs/place"},
        "left": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    },
    "required": ["tags", "left"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}, "named": {"type": "boolean"}},
            "required": ["x", "named"],
            "additionalProperties": False,
        }
    },
}
OPTIONAL = {
    "type": "object",
    "properties": {"word": {"anyOf": [{"type": "string", "maxLength": 6}, {"type": "null"}]}},
    "required": ["word"],
    "additionalProperties": False,
}
NO_REFERENCE = {**NESTED, "properties": {**NESTED["properties"], "place": NESTED["$defs"]["place"]}}  # type: ignore[index, dict-item]

# Formats that read a reference as text, and one that has no nested values at all.
REFUSED = {"minimax_m2", "minicpm5", "function_gemma"}


def tool(name: str, parameters: Any, *, strict: bool = True) -> dict[str, Any]:
    """Return a function as a request declares it."""
    return {"type": "function", "function": {"name": name, "parameters": parameters, "strict": strict}}


def answer(
    stepped: SteppedModel,
    tools: list[dict[str, Any]],
    seed: int,
    *,
    required: bool = True,
    parallel: bool = True,
    schema: dict[str, Any] | None = None,
    sampling: SamplingParams | None = None,
    max_tokens: int = 900,
) -> tuple[str, list[CallPiece], str]:
    """Return the text of an answer that is bound to calls, the calls in it, and why it ended."""
    functions = json.dumps([tool["function"] for tool in tools])
    constraint = ToolConstraint(functions, required, parallel, "tools", None if schema is None else json.dumps(schema))
    use = ToolUse(tuple(tools), parallel)
    prompt = ChatPrompt(({"role": "user", "content": "hi"},), {}, use)
    request = GenerationRequest(prompt, max_tokens=max_tokens, constraint=constraint)
    sequence = stepped.say(stepped.renderer.prepare(request), sampling or SamplingParams(temperature=1.3, seed=seed))
    return (
        sequence.text(),
        whole_calls(call for delta in sequence.deltas for call in delta.calls),
        sequence.reason.value,
    )


def check(calls: list[CallPiece], schemas: dict[str, Any]) -> None:
    """Hold each call against its schema."""
    assert calls
    for call in calls:
        assert call.name is not None
        Draft202012Validator(schemas[call.name]).validate(json.loads(call.arguments))


@pytest.fixture(scope="module", params=ENFORCED)
def stepped(request: pytest.FixtureRequest, write_model: WriteModel) -> SteppedModel:
    """A random model that calls tools in one of the formats; every byte is a token of it."""
    path = write_model(tools=True, call_format=request.param, all_bytes=True, context=4096)
    return SteppedModel(load_now(path))


def format_of(stepped: SteppedModel) -> str:
    """Return the format of a model's calls."""
    return str(stepped.loaded.tokenizer.tool_parser.__module__).rpartition(".")[2]


@pytest.mark.parametrize("seed", range(2))
def test_required_call_is_read_back(stepped: SteppedModel, seed: int) -> None:
    """Whatever the model would rather say, the answer is one call, and its arguments satisfy the schema."""
    text, calls, reason = answer(stepped, [tool("weather", PLAIN)], seed, parallel=False)

    assert (text, len(calls), reason) == ("", 1, "stop")
    check(calls, {"weather": PLAIN})


@pytest.mark.parametrize("parameters", [NESTED, OPTIONAL], ids=["nested", "optional"])
def test_a_schema_is_enforced_or_refused(stepped: SteppedModel, parameters: dict[str, Any]) -> None:
    """What a format cannot write, or what its parser would misread, is refused before anything is generated."""
    name = format_of(stepped)
    if parameters is NESTED and name in REFUSED:
        words = r"tools: the schema cannot be enforced: function 'f': property '\w+': "
        with pytest.raises(InvalidRequest, match=words) as refused:
            answer(stepped, [tool("f", parameters)], 1)
        assert refused.value.param == "tools"
        if name == "function_gemma":
            return
        parameters = NO_REFERENCE
    _, calls, _ = answer(stepped, [tool("f", parameters)], 1, parallel=False)
    check(calls, {"f": parameters})


def test_several_calls_and_one_without_arguments(stepped: SteppedModel) -> None:
    """Where several calls are allowed each is whole, whatever stands between them."""
    schemas = {"tick": {"type": "object", "properties": {}, "additionalProperties": False}, "say": OPTIONAL}
    tools = [tool(name, schema) for name, schema in schemas.items()]
    wrapper = stepped.loaded.tokenizer
    # A random model never ends by itself; in some formats all calls stand between one pair of tags.
    ends = wrapper.encode(wrapper.tool_call_end, add_special_tokens=False)[:1] or wrapper.eos_token_ids
    bias = SamplingParams(temperature=1, seed=5, logit_bias=tuple((token, 37.0) for token in ends))

    _, calls, _ = answer(stepped, tools, 5, max_tokens=140, sampling=bias)

    check(calls[:-1] or calls, schemas)  # the last one may have been cut off


def test_call_that_may_have_no_argument(stepped: SteppedModel) -> None:
    """Where every argument may be left out the call is read back with some and with none of them."""
    schema = {**OPTIONAL, "required": []}
    _, calls, _ = answer(stepped, [tool("f", schema)], 3, parallel=False)

    check(calls, {"f": schema})


def test_strict_call_that_the_model_chooses_to_make(stepped: SteppedModel) -> None:
    """With `auto` any text may come; from the tag of a call on the model is bound."""
    wrapper = stepped.loaded.tokenizer
    functions = json.dumps([tool("weather", PLAIN)["function"]])
    request = GenerationRequest(
        ChatPrompt(({"role": "user", "content": "hi"},), {}, ToolUse((tool("weather", PLAIN),))),
        max_tokens=9,
        constraint=ToolConstraint(functions, is_required=False, parallel=True, field="tools"),
    )
    grammar = stepped.renderer.prepare(request).grammar
    assert isinstance(grammar, Grammar)

    def take(text: str) -> None:
        grammar.processor(wrapper.encode(text, add_special_tokens=False), is_thinking=False)

    take("So {[<hi>]} it is")
    take(f"So {wrapper.tool_call_start}")
    with pytest.raises(InvalidRequest, match="cannot be bound any further"):
        take(f"So {wrapper.tool_call_start}~~no call~~")


def test_document_or_call(write_model: WriteModel) -> None:
    """With a response format and tools the answer is a document, or a call."""
    stepped = SteppedModel(load_now(write_model(tools=True)))
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    tools = [tool("weather", PLAIN)]
    text, calls, _ = answer(stepped, tools, 1, required=False, schema=schema)
    Draft202012Validator(schema).validate(json.loads(text))
    assert not calls

    bias = SamplingParams(temperature=1, seed=1, logit_bias=((token_id("<tool_call>", tools=True), 100.0),))
    text, calls, _ = answer(stepped, tools, 1, required=False, schema=schema, sampling=bias, parallel=False)
    assert text == ""
    check(calls, {"weather": PLAIN})


def test_schema_that_is_not_strict_is_held_to_its_types(stepped: SteppedModel) -> None:
    """A keyword that cannot be enforced costs a tool that is not strict that keyword, and not its types."""
    parameters = {
        "type": "object",
        "properties": {"word": {"type": "string", "not": {"const": "x"}}, "on": {"type": "boolean"}},
        "required": ["word", "on"],
    }
    functions = [tool("f", parameters, strict=False)]
    with pytest.raises(InvalidRequest, match=r"cannot be enforced: [^\n]*\bnot\b[^\n]*$"):
        answer(stepped, [tool("f", parameters)], 1)
    constraint = ToolConstraint(
        json.dumps([functions[0]["function"]]), is_required=True, parallel=False, field="tool_choice"
    )
    prompt = ChatPrompt(({"role": "user", "content": "hi"},), {}, ToolUse(tuple(functions), parallel=False))
    prepared = stepped.renderer.prepare(GenerationRequest(prompt, max_tokens=5, constraint=constraint))

    assert isinstance(prepared.grammar, Grammar)


def test_format_that_cannot_be_enforced(write_model: WriteModel) -> None:
    """A format without a grammar is refused with words that say what to send instead."""
    stepped = SteppedModel(load_now(write_model(tools=True, call_format="kimi_k3")))

    with pytest.raises(
        InvalidRequest, match="the format in which this model calls tools cannot be enforced"
    ) as refused:
        answer(stepped, [tool("f", PLAIN)], 1)
    assert refused.value.hint == 'send tool_choice "auto", and no tool with strict: true'


def test_blanks_after_a_call_are_few_and_may_be_followed_by_the_end(stepped: SteppedModel) -> None:
    """A model that would rather break the line forever ends soon after its call."""
    wrapper = stepped.loaded.tokenizer
    (line_break,) = wrapper.encode("\n", add_special_tokens=False)
    bias = ((line_break, 100.0), *((token, 50.0) for token in wrapper.eos_token_ids))
    tick = {"type": "object", "properties": {}, "additionalProperties": False}
    sampling = SamplingParams(seed=3, logit_bias=bias)
    parallel = format_of(stepped) not in {"minimax_m2", "muse_spark"}  # where a line break is followed by another call

    _, calls, reason = answer(stepped, [tool("tick", tick)], 3, parallel=parallel, sampling=sampling)

    assert (reason, calls) == ("stop", [CallPiece("tick", "{}", is_last=True)])
