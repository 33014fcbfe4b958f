"""What every field, item and tool of a /v1/responses body does: works, is refused by name, or changes nothing."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from openai.types.responses import (
    ResponseIncludable,
    ResponseInputItemParam,
    ToolParam,
    input_token_count_params,
    response_create_params,
)

from mlxd.engine.base import ChatPrompt, SamplingParams
from mlxd.engine.constraint import JsonConstraint, ToolConstraint
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.table import Refused
from mlxd.openai.response_schema import INPUT_COUNT, RESPONSE, ParsedResponse, parse_response
from mlxd.openai.response_store import ResponseStore
from mlxd.protocol.errors import InvalidRequest, MlxdError, UnsupportedParameter
from tests.support.http_server import settings_of

TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}


def response(omitted: Omissions | None = None, **fields: Any) -> ParsedResponse:
    """Parse a body with these fields."""
    store = ResponseStore(lambda: settings_of().http)
    body = {"model": "m", "input": "hi"} | fields
    return parse_response(body, store, None, NoiseFilter(), omitted or Omissions("m"))


def left_out(**fields: Any) -> list[str]:
    """Parse a body with these fields; return what is left out of it."""
    omitted = Omissions("m")
    response(omitted, **fields)
    return list(omitted.names)


def refusal(**fields: Any) -> MlxdError:
    """Return the error of a body with these fields."""
    with pytest.raises(InvalidRequest) as error:
        response(**fields)
    return error.value


def messages(*items: Any, **fields: Any) -> Any:
    """Return what the template is shown of these items."""
    prompt = response(input=list(items), **fields).request.prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


def _types_of(union: Any) -> set[str]:
    """Return the values of `type` of all TypedDicts of a union."""
    found = set()
    for member in typing.get_args(union):
        hint = typing.get_type_hints(member).get("type")
        for part in (hint, *typing.get_args(hint)):
            if typing.get_origin(part) is typing.Literal:
                found |= {value for value in typing.get_args(part) if isinstance(value, str)}
            found |= {part} if isinstance(part, str) else set()
    return found


@pytest.mark.parametrize(
    ("table", "params"),
    [
        (RESPONSE, response_create_params.ResponseCreateParamsStreaming),
        (INPUT_COUNT, input_token_count_params.InputTokenCountParams),
    ],
)
def test_every_field_of_the_official_client_is_in_the_table(table: dict[str, Any], params: type) -> None:
    """A field that OpenAI documents is never treated as unknown."""
    assert set(typing.get_type_hints(params)) - set(table) == set()


@pytest.mark.parametrize("name", sorted(name for name, does in RESPONSE.items() if isinstance(does, Refused)))
def test_a_field_that_does_nothing_is_refused_by_name(name: str) -> None:
    """At a value that would change something; null and the neutral values are taken."""
    assert refusal(**{name: {"some": "thing"}}).param == name
    treatment = RESPONSE[name]
    assert isinstance(treatment, Refused)
    for value in (None, *treatment.neutral):
        assert left_out(**{name: value}) == []


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
    """What is of tools that do not run here changes nothing; other words are refused."""
    assert left_out(include=list(typing.get_args(ResponseIncludable))) == []
    assert refusal(include=["a.word"]).param == "include[0]"


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


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {}, "name": "a b"}}}, "text.format.name"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"previous_response_id": "resp_none"}, "previous_response_id"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "none"}}, "tool_choice.mode"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """The error names the field."""
    assert refusal(**fields).param == param


def test_a_schema_too_deep_to_repeat_is_refused() -> None:
    """JSON can be read deeper than it can be written, and a response repeats its tools."""
    schema: dict[str, Any] = {}
    for _ in range(400):
        schema = {"not": schema}
    assert "too deep" in refusal(tools=[TOOL | {"parameters": schema}]).message
    deep = {"type": "json_schema", "name": "n", "schema": schema}
    assert "too deep" in refusal(text={"format": deep}).message


@pytest.mark.parametrize("kind", sorted(_types_of(ToolParam) - {"function"}))
def test_every_other_tool_of_the_official_client_is_refused_by_name(kind: str) -> None:
    """No tool runs on this server."""
    with pytest.raises(UnsupportedParameter, match=kind) as error:
        response(tools=[{"type": kind}])
    assert error.value.param == "tools[0].type"


def test_tools_are_flat() -> None:
    """The template is shown them in the shape of chats; the response repeats them in this API's."""
    parsed = response(tools=[TOOL | {"description": "d", "strict": True, "allowed_callers": ["direct"]}])
    prompt, constraint = parsed.request.prompt, parsed.request.constraint
    assert isinstance(prompt, ChatPrompt)
    assert prompt.tools is not None
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert prompt.tools.tools == ({"type": "function", "function": function},)
    assert isinstance(constraint, ToolConstraint)
    assert parsed.repeated["tools"] == [{"type": "function", **function, "strict": True}]
    assert left_out(tools=[TOOL | {"description": "d", "strict": True, "allowed_callers": ["direct"]}]) == []


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "g"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
    ],
)
def test_a_choice_names_tools(choice: dict[str, Any]) -> None:
    """The answer is bound to a call of one of those."""
    constraint = response(tools=[TOOL, TOOL | {"name": "g"}], tool_choice=choice).request.constraint
    assert isinstance(constraint, ToolConstraint)
    assert (constraint.is_required, '"g"' in constraint.functions, '"f"' in constraint.functions) == (True, True, False)


def test_items_become_messages() -> None:
    """Parts are joined, developers are system, results are the tool's, an assistant's turn is one message."""
    assert messages(
        {"role": "developer", "content": "one"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "phase": "final_answer",
         "content": [{"type": "output_text", "text": "so", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "no json", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "x"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "y"}], "name": "f"},
        {"role": "assistant", "content": "done"},
        {"role": "assistant", "content": "really"},
    ) == (
        {"role": "system", "content": "one"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
            {"id": "c2", "type": "function", "function": {"name": "f", "arguments": {"INVALID_JSON": "no json"}}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
        {"role": "tool", "tool_call_id": "c2", "content": "y", "name": "f"},
        {"role": "assistant", "content": "done"},
        {"role": "assistant", "content": "really"},
    )  # fmt: skip


def test_instructions_and_leading_system_messages_are_one() -> None:
    """Many templates take one system message, and only as the first."""
    leading = [{"role": "developer", "content": "two"}, {"role": "system", "content": "three"}]
    assert messages(*leading, {"role": "user", "content": "hi"}, instructions="one") == (
        {"role": "system", "content": "one\n\ntwo\n\nthree"},
        {"role": "user", "content": "hi"},
    )


def test_a_summary_stands_for_reasoning_that_is_not_there() -> None:
    """What another server summarized is what the model is shown; what it encrypted is refused."""
    item: dict[str, Any] = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "in short"}],
    }
    (message,) = messages(item)
    assert message == {"role": "assistant", "content": "", "reasoning_content": "in short"}
    error = refusal(input=[item | {"summary": [], "encrypted_content": "xyz"}])
    assert error.param == "input[0].encrypted_content"


@pytest.mark.parametrize(
    "kind",
    sorted(
        _types_of(ResponseInputItemParam)
        - {"message", "function_call", "function_call_output", "reasoning", "item_reference"}
    ),
)
def test_every_other_item_of_the_official_client_is_refused_by_name(kind: str) -> None:
    """They are of tools that do not run here."""
    with pytest.raises(UnsupportedParameter, match=kind) as error:
        response(input=[{"type": kind}])
    assert error.value.param == "input[0].type"


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[0].content[0].text"),
        ({"role": "user"}, "input[0].content"),
        ({"role": "critic", "content": "x"}, "input[0].role"),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "input[0].arguments"),
        ({"type": "function_call_output", "output": "x"}, "input[0].call_id"),
        ({"type": "function_call_output", "call_id": "c", "output": "x", "namespace": "n"}, "input[0].namespace"),
        ({"type": "reasoning", "content": [{"type": "x"}]}, "input[0].content[0].type"),
        ({"role": "user", "content": "x", "id": 3}, "input[0].id"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "input[0].content[0].type"),
        ("text", "input[0]"),
    ],
)
def test_a_malformed_item_is_refused_by_name(item: Any, param: str) -> None:
    """The error says where."""
    assert refusal(input=[item]).param == param


def test_fields_that_are_not_openais_are_named() -> None:
    """At the top, in items and in tools."""
    items = [{"role": "user", "content": "x", "mood": 1}]
    assert left_out(cheese=1, input=items, tools=[TOOL | {"colour": 2}]) == [
        "cheese",
        "tools[0].colour",
        "input[0].mood",
    ]
