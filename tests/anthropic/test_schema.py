"""What every body field of /v1/messages does: works, is refused by name, or changes nothing and is accepted."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from anthropic.types import message_count_tokens_params, message_create_params

from mlxd.anthropic.schema import CountBody, MessagesBody, parse_count_body, parse_message_body
from mlxd.engine.base import ChatPrompt, GenerationRequest, SamplingParams
from mlxd.engine.constraint import JsonConstraint, ToolConstraint
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import Sampling
from mlxd.http.schema import fields_of
from mlxd.http.sealed import sealed
from mlxd.protocol.errors import UnsupportedParameter

HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}
FUNCTION = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


def parse(**fields: Any) -> GenerationRequest:
    """Parse a body with these fields."""
    body = {"model": "m", "max_tokens": 2000, "messages": HI} | fields
    return parse_message_body(body, NoiseFilter(), Omissions("m")).request


def prompt(**fields: Any) -> ChatPrompt:
    """Return the prompt of a body with these fields."""
    asked = parse(**fields).prompt
    assert isinstance(asked, ChatPrompt)
    return asked


@pytest.mark.parametrize(
    ("shapes", "params"),
    [
        ((MessagesBody, Sampling), message_create_params.MessageCreateParamsStreaming),
        ((CountBody,), message_count_tokens_params.MessageCountTokensParams),
    ],
)
def test_every_field_of_the_official_client_is_known(shapes: tuple[type[msgspec.Struct], ...], params: type) -> None:
    """A field that Anthropic documents is never treated as unknown."""
    assert set(typing.get_type_hints(params)) <= {name for shape in shapes for name in fields_of(shape)}


def test_plain_body() -> None:
    """Nothing but messages asks for plain sampling."""
    assert parse() == GenerationRequest(ChatPrompt(({"role": "user", "content": "hi"},)), max_tokens=2000)


def test_sampling_and_stops_arrive() -> None:
    """0 is a value."""
    asked = parse(temperature=0, top_p=0.5, top_k=7, stop_sequences=["a", "b"], metadata={"user_id": "x"})
    assert asked.sampling == SamplingParams(temperature=0, top_p=0.5, top_k=7)
    assert asked.stop == ("a", "b")


def test_system_text_and_blocks_come_first() -> None:
    """Blocks are paragraphs of one system message; marks for a prompt cache are taken and not needed."""
    for system in (
        "a\n\nb",
        [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
    ):
        assert prompt(system=system).messages[0] == {"role": "system", "content": "a\n\nb"}
    assert prompt(system="").messages == prompt().messages


def test_results_of_tools_become_messages_of_their_own() -> None:
    """Before the text that came with them, each with the id of its call; an error is marked as one."""
    content = [
        {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "sun"}]},
        {"type": "tool_result", "tool_use_id": "2", "content": "no", "is_error": True},
        {"type": "text", "text": "and?"},
    ]
    assert prompt(messages=[{"role": "user", "content": content}]).messages == (
        {"role": "tool", "tool_call_id": "1", "content": "sun"},
        {"role": "tool", "tool_call_id": "2", "content": "Error: no"},
        {"role": "user", "content": "and?"},
    )


def test_an_answer_goes_back_with_thinking_and_calls() -> None:
    """Text, thinking and calls are apart, and arguments are objects; a last answer is gone on with."""
    content = [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
    ]
    asked = prompt(messages=[*HI, {"role": "assistant", "content": content}])
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert asked.messages[-1] == {
        "role": "assistant", "content": "so", "tool_calls": [call], "reasoning_content": "hm",
    }  # fmt: skip
    assert asked.continues
    assert not prompt().continues


def test_tools_and_choices() -> None:
    """Auto binds nothing, any and tool bind, none hides the tools."""
    free = parse(tools=[TOOL])
    assert isinstance(free.prompt, ChatPrompt)
    assert free.prompt.tools is not None
    assert (free.prompt.tools.tools, free.constraint) == ((FUNCTION,), None)
    bound = parse(tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True}).constraint
    assert isinstance(bound, ToolConstraint)
    assert (bound.is_required, bound.parallel) == (True, False)
    assert isinstance(parse(tools=[TOOL], tool_choice={"type": "tool", "name": "f"}).constraint, ToolConstraint)
    assert prompt(tools=[TOOL], tool_choice={"type": "none"}).tools is None


def test_output_may_be_bound_to_a_schema() -> None:
    """`output_config.format` is enforced, and so is `output_format`, its older name."""
    schema = {"type": "object"}
    older = parse(output_format={"type": "json_schema", "schema": schema})
    assert older.constraint == JsonConstraint('{"type":"object"}', "output_format")
    asked = parse(output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "low"})
    assert asked.constraint == JsonConstraint('{"type":"object"}', "output_config.format")


@pytest.mark.parametrize(
    ("thinking", "may_think", "budget"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, True, 1024),
        ({"type": "enabled", "budget_tokens": 31999, "display": "omitted"}, True, 1999),
        ({"type": "enabled", "budget_tokens": 5}, True, 5),
        ({"type": "enabled", "budget_tokens": 0}, False, None),
        ({"type": "enabled"}, True, None),
        ({"type": "disabled"}, False, None),
        ({"type": "between_tools"}, False, None),
        ({"type": "adaptive", "display": "updates"}, True, None),
        ({"type": "adaptive"}, True, None),
    ],
)
def test_thinking_is_told_to_the_template_and_bounded(thinking: Any, may_think: bool, budget: int | None) -> None:
    """The budget is enforced while decoding; one that is too large is reduced, and 0 is no thinking."""
    asked = parse(thinking=thinking, output_config={"effort": "max"})
    assert isinstance(asked.prompt, ChatPrompt)
    assert (asked.prompt.thinking, asked.thinking_budget) == (may_think, budget)
    assert (asked.prompt.reasoning_effort, asked.prompt.template_kwargs) == ("max", {})


def test_unknown_fields_are_named() -> None:
    """Fields of other servers are ignored in the open."""
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi", "id": 1}], "top_a": 1}
    omitted = Omissions("m")
    parse_message_body(body, NoiseFilter(), omitted)
    assert list(omitted.names) == ["top_a", "messages[0].id"]


@pytest.mark.parametrize(
    "field",
    [
        {"container": "x"},
        {"speed": "fast"},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"mcp_servers": [{"type": "url", "url": "https://x.example", "name": "x"}]},
        {"betas": ["x-2026-01-01"]},
        {"fallbacks": "default"},
        {"output_config": {"task_budget": {"type": "tokens", "total": 9000}}},
    ],
)
def test_what_only_anthropic_serves_is_left_out(field: dict[str, Any]) -> None:
    """The rest of the request makes sense without it; it is named, or refused where omissions are."""
    body = {"model": "m", "max_tokens": 2000, "messages": HI, **field}
    omitted = Omissions("m")
    assert parse_message_body(body, NoiseFilter(), omitted).request == parse()
    ((name, value),) = field.items()
    assert list(omitted.names) == [f"{name}.task_budget" if name == "output_config" else name]
    with pytest.raises(UnsupportedParameter):
        parse_message_body(body, NoiseFilter(), Omissions("m", rejects_fields=True))
    neutral: dict[str, Any] = {
        "container": None,
        "speed": "standard",
        "context_management": {"edits": []},
        "fallbacks": [],
    }
    quiet = Omissions("m", rejects_fields=True)
    parse_message_body({**body, name: neutral.get(name, type(value)())}, NoiseFilter(), quiet)
    assert list(quiet.names) == []


def test_a_max_tokens_of_minus_one_is_all_the_room() -> None:
    """It is larger than any context, and reduced to what there is."""
    parsed = parse(max_tokens=-1)
    assert parsed.max_tokens == 2**31 - 1


def test_counting_needs_no_max_tokens() -> None:
    """It takes what bears on the prompt."""
    counted = parse_count_body(
        {"model": "m", "messages": HI, "tools": [TOOL]}, NoiseFilter(), Omissions("m", rejects_fields=True)
    ).request
    assert counted.max_tokens is None
    omitted = Omissions("m")
    body = {"model": "m", "messages": HI, "speed": "fast", "max_tokens": 9, "stream": True, "temperature": 0}
    assert parse_count_body(body, NoiseFilter(), omitted).request == GenerationRequest(ChatPrompt((*HI,)))
    assert list(omitted.names) == ["max_tokens", "stream", "temperature", "speed"]


def test_between_tools_thinks_about_what_tools_have_said() -> None:
    """It is on where the last turn brings results, whatever the system says after it."""
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "x"}
    turns = [*HI, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    for messages in (turns, [*turns, {"role": "system", "content": "note"}]):
        asked = prompt(messages=messages, thinking={"type": "between_tools"})
        assert asked.thinking is True


def test_a_display_that_is_not_known_is_left_out() -> None:
    """Thoughts are shown then."""
    omitted = Omissions("m")
    body = {"model": "m", "max_tokens": 1, "messages": HI, "thinking": {"type": "adaptive", "display": "updates"}}
    assert not parse_message_body(body, NoiseFilter(), omitted).hides_thoughts
    assert list(omitted.names) == ["thinking.display"]


@pytest.mark.parametrize(
    ("thinking", "signature", "thought"),
    [
        ("", sealed("hm ü"), "hm ü"),
        ("shown", sealed("hm"), "shown"),
        ("", "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pk", None),
        ("", "mlxd1.no base64", None),
        ("", None, None),
    ],
)
def test_a_thought_comes_back_out_of_its_signature(thinking: str, signature: str | None, thought: str | None) -> None:
    """Where the block has no text, and the signature is ours."""
    block = {"type": "thinking", "thinking": thinking, "signature": signature}
    content = [block, {"type": "text", "text": "so"}]
    asked = prompt(messages=[*HI, {"role": "assistant", "content": content}])
    assert asked.messages[-1].get("reasoning_content") == thought
