"""The body of messages → the body of chat completions. THE table of what each of its fields is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.cloud.translate.reading import DROPPED, SAID, Reading, Refused, Table, boolean, listing, mapping, text, wrong
from mlxd.cloud.translate.to_openai.message import conversation
from mlxd.protocol.errors import InvalidRequest

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
    "metadata": SAID,
    "service_tier": SAID,
    "cache_control": DROPPED,
    "diagnostics": DROPPED,
    "user_profile_id": DROPPED,
    "workspace_id": DROPPED,
    "container": Refused(),
    "context_management": Refused(),
    "fallbacks": Refused(([],)),
    "inference_geo": Refused(),
    "mcp_servers": Refused(([],)),
    "speed": Refused(("standard",)),
}
_THINKING: Table = {
    "type": SAID,
    "budget_tokens": Refused((), "send thinking.type adaptive, and output_config.effort to bound it"),
    "display": Refused(("summarized",)),
}
_OUTPUT: Table = {"effort": SAID, "format": SAID}
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
    "allowed_callers": Refused((["direct"],)),
    "defer_loading": Refused((False,)),
    "input_examples": Refused(([],), "put them into the description"),
}
_CHOICE: Table = {"type": SAID, "name": SAID, "disable_parallel_tool_use": SAID}
_MODES = {"none": "none", "auto": "auto", "any": "required"}
_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_TIERS = {"auto": "auto", "standard_only": "default"}
_MOST_STOPS = 4
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
    stops = listing("stop_sequences", values.get("stop_sequences", []))
    if len(stops) > _MOST_STOPS:
        raise reading.refusal("stop_sequences", f"it holds {len(stops)} texts, and {_MOST_STOPS} are the most there")
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
        built["user"] = text("metadata.user_id", user)
    if "service_tier" in values:
        tier = values["service_tier"]
        if not isinstance(tier, str) or tier not in _TIERS:
            raise reading.refusal("service_tier", "send auto or standard_only", value=tier)
        built["service_tier"] = _TIERS[tier]
    return built


def _tools(values: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    tools = listing("tools", values.get("tools", []))
    choice = reading.read(_CHOICE, values.get("tool_choice", {}), "tool_choice")
    if not tools:
        if choice.get("type") not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice asks for a call, and there are no tools", param="tool_choice")
        return {}
    built: dict[str, Any] = {"tools": [_tool(f"tools[{at}]", tool, reading) for at, tool in enumerate(tools)]}
    if choice:
        built["tool_choice"] = _choice(choice)
        if boolean("tool_choice.disable_parallel_tool_use", choice.get("disable_parallel_tool_use", False)):
            built["parallel_tool_calls"] = False
    return built


def _tool(path: str, tool: Any, reading: Reading) -> dict[str, Any]:
    if mapping(path, tool).get("type") not in (None, "custom"):
        raise reading.refusal(f"{path}.type", "such tools run on Anthropic's servers", value=tool["type"])
    values = reading.read(_TOOL, tool, path)
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
    effort = output.get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise wrong("output_config.effort", effort, ", ".join(_EFFORTS[:-1]) + f" or {_EFFORTS[-1]}")
        built["reasoning_effort"] = effort
    if "thinking" in values:
        thinking = mapping("thinking", values["thinking"])
        kind = thinking.get("type")
        if kind not in ("enabled", "adaptive", "disabled"):
            raise reading.refusal("thinking.type", "send adaptive or disabled", value=kind)
        reading.read(_THINKING, thinking, "thinking")
        if kind == "disabled":
            if effort is not None:
                raise reading.refusal("output_config.effort", "without thinking leave it out")
            built["reasoning_effort"] = "none"
    if "format" in output:
        values_of_format = reading.read(_FORMAT, output["format"], "output_config.format")
        if values_of_format.get("type") != "json_schema":
            raise reading.refusal("output_config.format.type", "send json_schema")
        schema = mapping("output_config.format.schema", values_of_format.get("schema"))
        named = {"name": _SCHEMA_NAME, "schema": schema, "strict": True}
        built["response_format"] = {"type": "json_schema", "json_schema": named}
    return built
