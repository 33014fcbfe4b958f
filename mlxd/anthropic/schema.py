"""Body → `GenerationRequest`, or an error that names the field. THE table of what each documented field does here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.anthropic.block import BlockReader
from mlxd.anthropic.message import MessageReader
from mlxd.anthropic.tool import Toolbox
from mlxd.engine.base import ChatPrompt, GenerationRequest
from mlxd.engine.constraint import JsonConstraint
from mlxd.http import field
from mlxd.http.noise import NoiseFilter, require_messages
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import SAMPLING, sampling_params
from mlxd.http.table import Habit, Omitted, Refused, Table, Works, read
from mlxd.protocol.errors import InvalidRequest

_MAX_TOKENS = 2**31 - 1
# Nothing is bound to a conversation here that `block_binding` could be about.
_THINKING = {
    "enabled": frozenset({"type", "budget_tokens", "display", "block_binding"}),
    "adaptive": frozenset({"type", "display", "block_binding"}),
    "between_tools": frozenset({"type"}),
    "disabled": frozenset({"type"}),
}

COUNT: Table = {
    "model": Works(field.text),
    "messages": Works(field.sequence),
    "system": Works(field.anything),
    "tools": Works(field.listing),
    "tool_choice": Works(field.mapping),
    "thinking": Works(field.mapping, mapped="a budget above max_tokens is reduced to it"),
    "output_config": Works(field.mapping, mapped="an effort becomes the nearest that the model knows"),
    "output_format": Works(field.mapping),  # the older name of output_config.format
    "betas": Omitted(([],)),
    "billing_policy": Habit(),
    "cache_control": Habit(),  # the prompt cache needs no marks
    "container": Omitted(),
    "context_management": Omitted(({}, {"edits": []})),
    "diagnostics": Habit(),
    "fallback_credit_token": Habit(),
    "fallbacks": Omitted(([],)),
    "inference_geo": Habit(),
    "mcp_servers": Omitted(([],)),
    "metadata": Habit(),
    "service_tier": Habit(),
    "speed": Omitted(("standard",)),
    "thread": Refused(),  # the rest of the conversation is with Anthropic
    "user_profile_id": Habit(),
    "workspace_id": Habit(),
}
MESSAGES: Table = {
    **COUNT,
    **SAMPLING,
    "max_tokens": Works(field.standing_for(field.integer(0, _MAX_TOKENS), {-1: _MAX_TOKENS}), "-1 is no bound"),
    "stop_sequences": Works(field.stop),
    "stream": Works(field.boolean),
    "compaction": Refused(),  # it asks for a summary, and for no answer
}
_FORMAT_KNOWN = frozenset({"type", "schema"})
_OUTPUT_CONFIG: Table = {
    "effort": Works(field.text, "each is the nearest that the model's template knows"),
    "format": Works(field.mapping),
    "task_budget": Omitted(),
}


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """A body that can be answered."""

    request: GenerationRequest
    stream: bool
    hides_thoughts: bool = False  # thinking blocks come without text
    answers: bool = True  # False for max_tokens 0: the prompt is read into the cache, and no more


def parse_message_body(body: Mapping[str, Any], noise: NoiseFilter, omitted: Omissions) -> ParsedBody:
    """Read the body of /v1/messages, without the noise in it.

    Raises:
        UnsupportedParameter: a documented field, block or tool that this server does not act upon.
        InvalidRequest: a value of the wrong type or out of its bounds, or an omission that is refused.
    """
    values = read(MESSAGES, body, omitted)
    for name in ("max_tokens", "messages"):
        if name not in values:
            raise InvalidRequest(f"{name} is required", param=name)
    request = _request(values, omitted, noise)
    hides_thoughts = values.get("thinking", {}).get("display") == "omitted"
    return ParsedBody(request, values.get("stream", False), hides_thoughts, answers=values["max_tokens"] > 0)


def parse_count_body(body: Mapping[str, Any], noise: NoiseFilter, omitted: Omissions) -> ParsedBody:
    """Read the body of /v1/messages/count_tokens; raises as `parse_message_body`."""
    values = read(COUNT, body, omitted)
    if "messages" not in values:
        raise InvalidRequest("messages is required", param="messages")
    return ParsedBody(_request(values, omitted, noise), stream=False)


def _request(values: Mapping[str, Any], omitted: Omissions, noise: NoiseFilter) -> GenerationRequest:
    output = read(_OUTPUT_CONFIG, values.get("output_config", {}), omitted, "output_config")
    answer = None
    if "format" in output:
        answer = _answer_format("output_config.format", output["format"], omitted)
    elif "output_format" in values:
        answer = _answer_format("output_format", values["output_format"], omitted)
    tools = Toolbox(values.get("tools", ()), omitted)
    reader = MessageReader(BlockReader(omitted, tools), omitted, noise)
    messages = (*reader.system(values.get("system")), *reader.messages(values["messages"]))
    require_messages(messages)
    rules = tools.rules(values.get("tool_choice"), answer)
    thinking, budget_tokens = _thinking(values, omitted)
    continues = values["messages"][-1]["role"] == messages[-1]["role"] == "assistant"
    prompt = ChatPrompt(messages, {}, rules.use, output.get("effort"), continues, thinking)
    return GenerationRequest(
        prompt,
        sampling_params(values),
        max(values["max_tokens"], 1) if "max_tokens" in values else None,
        values.get("stop_sequences", ()),
        constraint=answer if rules.constraint is None else rules.constraint,
        thinking_budget=budget_tokens,
    )


def _answer_format(path: str, value: Mapping[str, Any], omitted: Omissions) -> JsonConstraint:
    if value.get("type") != "json_schema":
        raise field.wrong(f"{path}.type", value.get("type"), "'json_schema'")
    omitted.note(path, value, _FORMAT_KNOWN)
    return JsonConstraint(field.schema(f"{path}.schema", value.get("schema")), path)


def _thinking(values: Mapping[str, Any], omitted: Omissions) -> tuple[bool | None, int | None]:
    """Return whether the model may think, and the budget. One that cannot think need not: it is a permission."""
    thinking = values.get("thinking")
    if thinking is None:
        return None, None
    kind = thinking.get("type")
    if not isinstance(kind, str) or kind not in _THINKING:
        raise field.wrong("thinking.type", kind, "'enabled', 'adaptive', 'between_tools' or 'disabled'")
    omitted.note("thinking", thinking, _THINKING[kind])
    if kind in ("enabled", "adaptive") and thinking.get("display") not in (None, "summarized", "omitted"):
        omitted.leave_out("thinking.display")
    budget_tokens = None
    if kind == "enabled" and thinking.get("budget_tokens") is not None:
        budget_tokens = field.integer(0, _MAX_TOKENS)("thinking.budget_tokens", thinking["budget_tokens"])
    # The least of all: thoughts about what tools have said, and none before that.
    is_off = kind == "disabled" or budget_tokens == 0 or (kind == "between_tools" and not _ends_with_results(values))
    if is_off or budget_tokens is None:
        return not is_off, None
    # As with max_tokens, a bound that is too large is reduced.
    return True, min(budget_tokens, max(values.get("max_tokens", _MAX_TOKENS) - 1, 1))


def _ends_with_results(values: Mapping[str, Any]) -> bool:
    """Tell whether the last turn of the user brings what tools have said."""
    turns = [message for message in values["messages"] if message["role"] != "system"]
    content = turns[-1].get("content") if turns else None
    return isinstance(content, list) and any(block["type"] == "tool_result" for block in content)
