"""The body of messages → the body of chat completions. THE table of what each of its fields is there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from mlxd.client_tool import client_tool
from mlxd.cloud.protocol.base import whole
from mlxd.cloud.translate.reading import (
    DROPPED,
    SAID,
    Omitted,
    Reading,
    Refused,
    Table,
    boolean,
    listing,
    mapping,
    text,
    wrong,
)
from mlxd.cloud.translate.to_openai.message import conversation
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.quote import kind_word

# Sampling params that are not Anthropic's, or not OpenAI's, but that this server's messages route takes and that most
# servers that speak OpenAI's protocol know; the others refuse them by name.
_EXTRAS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "xtc_probability",
    "xtc_threshold",
    "logit_bias",
    "seed",
)
_MESSAGES: Table = {
    "model": SAID,
    "messages": SAID,
    "system": SAID,
    "max_tokens": SAID,
    "stop_sequences": SAID,
    "stream": SAID,
    "temperature": SAID,
    "top_p": SAID,
    **dict.fromkeys(_EXTRAS, SAID),
    "tools": SAID,
    "tool_choice": SAID,
    "thinking": SAID,
    "output_config": SAID,
    "output_format": SAID,  # the older name of output_config.format
    "metadata": SAID,
    "service_tier": SAID,
    "cache_control": DROPPED,
    "billing_policy": DROPPED,
    "diagnostics": DROPPED,
    "fallback_credit_token": DROPPED,
    "user_profile_id": DROPPED,
    "workspace_id": DROPPED,
    "betas": Omitted(([],)),
    "container": Omitted(),
    "context_management": Omitted(({}, {"edits": []})),
    "fallbacks": Omitted(([],)),
    "mcp_servers": Omitted(([],)),
    "speed": Omitted(("standard",)),
    "compaction": Refused(),  # it asks for a summary, and for no answer
    "inference_geo": Refused(),  # a promise of where the answer is made
    "thread": Refused(),  # the rest of the conversation is with Anthropic
}
_THINKING: Table = {
    "type": SAID,
    "budget_tokens": SAID,
    "display": Omitted(("summarized",)),
    "block_binding": DROPPED,
}
_OUTPUT: Table = {"effort": SAID, "format": SAID, "task_budget": Omitted()}
_FORMAT: Table = {"type": SAID, "schema": SAID}
_METADATA: Table = {"user_id": SAID}
_TOOL: Table = {
    "type": SAID,
    "name": SAID,
    "description": SAID,
    "input_schema": SAID,
    "strict": SAID,
    "cache_control": DROPPED,
    "eager_input_streaming": DROPPED,
    "allowed_callers": Omitted((["direct"],)),
    "defer_loading": Omitted((False,)),  # the tool is there from the start
    "input_examples": Omitted(([],)),
    "max_characters": Omitted(),
}
_CHOICE: Table = {"type": SAID, "name": SAID, "disable_parallel_tool_use": SAID}
_MODES = {"none": "none", "auto": "auto", "any": "required"}
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_TIERS = {"auto": "auto", "standard_only": "default"}
# Budgets of thoughts up to so many tokens → the effort that thinks about as much.
_BUDGETS = ((0, "none"), (4096, "low"), (16384, "medium"))
_SAME = ("temperature", "top_p", *_EXTRAS)
# OpenAI wants a name for every schema, and shows it to nobody.
_SCHEMA_NAME = "answer"


def chat_body(body: Mapping[str, Any], model: str, reading: Reading) -> dict[str, Any]:
    """Return the body for *model*.

    Raises:
        UnsupportedParameter: it says what OpenAI's protocol cannot.
        InvalidRequest: it is malformed, as far as that had to be looked at.
    """
    values = reading.read(_MESSAGES, body)
    for name in ("max_tokens", "messages"):
        if name not in values:
            raise InvalidRequest(f"{name} is required", param=name)
    built: dict[str, Any] = {
        "model": model,
        "messages": conversation(values.get("system"), values["messages"], reading),
        "max_completion_tokens": values["max_tokens"],
    }
    built |= {name: values[name] for name in _SAME if name in values}
    # OpenAI takes 4, others more: how many it can do with is the upstream's to say.
    stops = [stop for stop in listing("stop_sequences", values.get("stop_sequences", [])) if stop != ""]
    if stops:
        built["stop"] = stops
    if "stream" in values:
        built["stream"] = values["stream"]
        if boolean("stream", values["stream"]):
            built["stream_options"] = {"include_usage": True}  # a message always tells its usage
    built |= _tools(values, reading)
    built |= _output(values, reading)
    user = reading.read(_METADATA, values.get("metadata", {}), "metadata").get("user_id")
    if user is not None:
        # Claude Code's holds ids of device and account, and is longer than the 64 characters that OpenAI takes.
        built["user"] = hashlib.sha256(text("metadata.user_id", user).encode(errors="replace")).hexdigest()
    if "service_tier" in values:
        tier = values["service_tier"]
        if isinstance(tier, str) and tier in _TIERS:
            built["service_tier"] = _TIERS[tier]
        else:
            reading.leave_out("service_tier")
    return built


def _tools(values: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    tools = listing("tools", values.get("tools", []))
    choice = reading.read(_CHOICE, values.get("tool_choice", {}), "tool_choice")
    given = (_tool(f"tools[{at}]", tool, reading) for at, tool in enumerate(tools))
    functions = [tool for tool in given if tool is not None]
    mode = choice.get("type")
    if not functions and mode not in (None, "none", "auto"):
        if tools:
            raise reading.refusal("tool_choice", "it asks for a call of tools that run on Anthropic's servers")
        raise InvalidRequest("tool_choice asks for a call, and there are no tools", param="tool_choice")
    if not functions:
        return {}
    if mode == "tool" and len(functions) < len(tools):
        name = choice.get("name")
        if all(function["function"]["name"] != name for function in functions):
            raise reading.refusal("tool_choice.name", "such tools run on Anthropic's servers", value=name)
    built: dict[str, Any] = {"tools": functions}
    if choice:
        built["tool_choice"] = _choice(choice)
        if boolean("tool_choice.disable_parallel_tool_use", choice.get("disable_parallel_tool_use", False)):
            built["parallel_tool_calls"] = False
    return built


def _tool(path: str, tool: Any, reading: Reading) -> dict[str, Any] | None:
    """Return a function; None for a tool that runs on Anthropic's servers."""
    kind = mapping(path, tool).get("type")
    defined = None
    if kind not in (None, "custom"):
        defined = client_tool(text(f"{path}.type", kind))
        if defined is None:
            reading.leave_out(f"{path}.{kind_word(kind)}")
            return None
    values = (defined or {}) | reading.read(_TOOL, tool, path)
    function: dict[str, Any] = {"name": text(f"{path}.name", values.get("name"))}
    if "description" in values:
        function["description"] = values["description"]
    function["parameters"] = mapping(f"{path}.input_schema", values.get("input_schema"))
    if "strict" in values:
        function["strict"] = values["strict"]
    return {"type": "function", "function": function}


def _choice(choice: Mapping[str, Any]) -> str | dict[str, Any]:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": text("tool_choice.name", choice.get("name"))}}
    if not isinstance(kind, str) or kind not in _MODES:
        raise wrong("tool_choice.type", kind, "'auto', 'any', 'tool' or 'none'")
    return _MODES[kind]


def _output(values: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Return what says how much to think, and what the answer is to look like.

    Thinking is a permission: where no effort is asked for, the upstream thinks as it does.
    """
    built: dict[str, Any] = {}
    output = reading.read(_OUTPUT, values.get("output_config", {}), "output_config")
    effort = _effort(output.get("effort"), values.get("thinking"), reading)
    if effort is not None:
        built["reasoning_effort"] = effort
    path, answer_format = "output_config.format", output.get("format")
    if answer_format is None:
        path, answer_format = "output_format", values.get("output_format")
    if answer_format is not None:
        values_of_format = reading.read(_FORMAT, answer_format, path)
        if values_of_format.get("type") != "json_schema":
            raise reading.refusal(f"{path}.type", "send json_schema")
        schema = mapping(f"{path}.schema", values_of_format.get("schema"))
        named = {"name": _SCHEMA_NAME, "schema": schema, "strict": True}
        built["response_format"] = {"type": "json_schema", "json_schema": named}
    return built


def _effort(asked: Any, thinking: Any, reading: Reading) -> str | None:
    """Return OpenAI's word for how much to think: the one that is asked for, or the one next to a budget of tokens."""
    effort = asked if isinstance(asked, str) and asked in _EFFORTS else None
    if asked is not None and effort is None:
        reading.leave_out("output_config.effort")
    if thinking is None:
        return effort
    given = reading.read(_THINKING, thinking, "thinking")
    match given.get("type"):
        case "disabled":
            if effort is not None:
                reading.leave_out("output_config.effort")
            return "none"
        case "enabled" if effort is None and "budget_tokens" in given:
            budget_tokens = whole(given["budget_tokens"])
            return next((word for most, word in _BUDGETS if budget_tokens <= most), "high")
        case "enabled" | "adaptive":
            return effort
        case "between_tools":
            reading.leave_out("thinking.type")
            return effort
    raise wrong("thinking.type", given.get("type"), "'enabled', 'adaptive', 'between_tools' or 'disabled'")
