"""What every field, item and tool of a /v1/responses body does: works, is refused by name, or changes nothing."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from openai.types.responses import ResponseIncludable, input_token_count_params, response_create_params

from mlxd.engine.base import ChatPrompt, SamplingParams
from mlxd.engine.constraint import JsonConstraint
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import Sampling
from mlxd.http.schema import fields_of
from mlxd.openai.response_schema import InputCountBody, ResponseBody
from mlxd.protocol.errors import UnsupportedParameter
from tests.support.response_body import TOOL, left_out, refusal, response

FIELDS = fields_of(ResponseBody)


@pytest.mark.parametrize(
    ("shapes", "params"),
    [
        ((ResponseBody, Sampling), response_create_params.ResponseCreateParamsStreaming),
        ((InputCountBody,), input_token_count_params.InputTokenCountParams),
    ],
)
def test_every_field_of_the_official_client_is_known(shapes: tuple[type[msgspec.Struct], ...], params: type) -> None:
    """A field that OpenAI documents is never treated as unknown."""
    assert set(typing.get_type_hints(params)) <= {name for shape in shapes for name in fields_of(shape)}


@pytest.mark.parametrize("name", sorted(name for name, field in FIELDS.items() if field.here == "refused"))
def test_a_field_that_does_nothing_is_refused_by_name(name: str) -> None:
    """At a value that would change something; null and the neutral values are taken."""
    assert refusal(**{name: {"some": "thing"}}).param == name
    for value in (None, *FIELDS[name].neutral):
        assert left_out(**{name: value}) == []


@pytest.mark.parametrize("name", sorted(name for name, field in FIELDS.items() if field.here == "omitted"))
def test_a_field_that_the_rest_makes_sense_without_is_left_out(name: str) -> None:
    """It is named; null and the neutral values are nothing to name; strict clients are told."""
    assert left_out(**{name: {"some": "thing"}}) == [name]
    for value in (None, *FIELDS[name].neutral):
        assert left_out(**{name: value}) == []
    with pytest.raises(UnsupportedParameter) as error:
        response(Omissions("m", rejects_fields=True), **{name: {"some": "thing"}})
    assert error.value.param == name


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"text": {"verbosity": "low"}}, ["text.verbosity"]),
        ({"text": {"verbosity": "medium"}}, []),
        ({"reasoning": {"summary": "detailed"}}, ["reasoning.summary"]),
        ({"reasoning": {"summary": "auto"}}, []),
        ({"reasoning": {"effort": "ultra"}}, ["reasoning.effort"]),
        ({"reasoning": {"context": "all_turns"}}, ["reasoning.context"]),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
        ({"stream": False, "stream_options": {"include_obfuscation": True}}, []),
        ({"stream_options": {"include_usage": True}}, []),
        ({"truncation": "auto"}, []),
        ({"client_metadata": {"thread_id": "t"}, "prompt_cache_key": "k", "max_tool_calls": 3}, []),
        ({"include": ["reasoning.encrypted_content", "a.word"]}, ["include[1]"]),
    ],
)
def test_hints_are_no_errors(fields: dict[str, Any], names: list[str]) -> None:
    """What an answer is not about is left out, and named where it would have changed something."""
    assert left_out(**fields) == names


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
def test_every_effort_arrives(effort: str) -> None:
    """Which of them a model knows is told by its template; one that nobody knows is none."""
    assert response(reasoning={"effort": effort}).repeated["reasoning"]["effort"] == effort
    assert response(reasoning={"effort": "ultra"}).repeated["reasoning"]["effort"] is None


@pytest.mark.parametrize(("given", "bound"), [(-1, None), (0, None), (None, None), (7, 7)])
def test_no_bound_is_written_in_many_ways(given: int | None, bound: int | None) -> None:
    """As local servers are asked by habit."""
    assert response(max_output_tokens=given).request.max_tokens == bound


def test_truncation_is_repeated() -> None:
    """It does not shorten anything, and says what was asked for."""
    assert response(truncation="auto").repeated["truncation"] == "auto"


def test_defaults_are_neutral() -> None:
    """A body with nothing but a text asks for plain sampling up to the end of the context, and is stored."""
    parsed = response()
    assert parsed.request.prompt == ChatPrompt(({"role": "user", "content": "hi"},))
    assert (parsed.request.sampling, parsed.request.max_tokens) == (SamplingParams(), None)
    assert (parsed.stream, parsed.stores, parsed.previous_id) == (False, True, None)


def test_what_is_given_arrives() -> None:
    """Sampling, bounds, effort, template variables; the response repeats them."""
    parsed = response(
        temperature=0, top_p=0.5, seed=3, max_output_tokens=9, reasoning={"effort": "low", "summary": "auto"},
        chat_template_kwargs={"enable_thinking": False}, metadata={"a": "b"}, store=False, instructions="be brief",
    )  # fmt: skip
    request, prompt = parsed.request, parsed.request.prompt
    assert request.sampling == SamplingParams(temperature=0.0, top_p=0.5, seed=3)
    assert isinstance(prompt, ChatPrompt)
    assert (request.max_tokens, prompt.reasoning_effort) == (9, "low")
    assert prompt.template_kwargs == {"enable_thinking": False}
    shown = {name: parsed.repeated[name] for name in ("temperature", "top_p", "max_output_tokens", "metadata", "store")}
    assert shown == {
        "temperature": 0.0, "top_p": 0.5, "max_output_tokens": 9, "metadata": {"a": "b"}, "store": False,
    }  # fmt: skip
    assert parsed.repeated["reasoning"] == {"effort": "low", "summary": None}
    assert parsed.repeated["instructions"] == "be brief"


@pytest.mark.parametrize(
    ("fields", "top"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
        ({"include": ["reasoning.encrypted_content"]}, None),
    ],
)
def test_logprobs_are_asked_for_in_two_ways(fields: dict[str, Any], top: int | None) -> None:
    """By what is to be included, or by the number of alternatives."""
    assert response(**fields).request.logprobs == top


def test_all_that_can_be_included_is_known() -> None:
    """What is of tools that do not run here changes nothing."""
    assert left_out(include=list(typing.get_args(ResponseIncludable))) == []
    assert refusal(include=[3]).param == "include[0]"


@pytest.mark.parametrize(
    ("given", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonConstraint(field="text.format")),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": "d"},
            JsonConstraint('{"type":"object"}', "text.format"),
        ),
    ],
)
def test_a_format_binds_the_answer(given: dict[str, Any], constraint: JsonConstraint | None) -> None:
    """Formats are flat objects in this API."""
    parsed = response(text={"format": given, "verbosity": "medium"})
    assert parsed.request.constraint == constraint
    assert parsed.repeated["text"]["format"] == given
    assert left_out(text={"format": given, "verbosity": "medium"}) == []


def test_a_schema_too_deep_to_repeat_is_refused() -> None:
    """JSON can be read deeper than it can be written, and a response repeats its tools."""
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"not": schema}
    assert "too deep" in refusal(tools=[TOOL | {"parameters": schema}]).message
    namespace = {"type": "namespace", "name": "n", "tools": [TOOL | {"parameters": schema}]}
    assert "too deep" in refusal(tools=[namespace]).message
    deep = {"type": "json_schema", "name": "n", "schema": schema}
    assert "too deep" in refusal(text={"format": deep}).message


def test_fields_that_are_not_openais_are_named() -> None:
    """At the top, in items and in tools."""
    items = [{"role": "user", "content": "x", "mood": 1}]
    assert left_out(cheese=1, input=items, tools=[TOOL | {"colour": 2}]) == [
        "cheese",
        "tools[0].colour",
        "input[0].mood",
    ]
