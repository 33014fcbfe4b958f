"""The body of chat completions → the body of messages. THE table of what each of its fields is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from mlxd.cloud.translate.to_anthropic.message import conversation
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.quote import kind_word

# Anthropic's protocol requires a bound; this is the largest that every model of theirs has taken.
DEFAULT_MAX_TOKENS = 4096
# OpenAI's temperatures go up to 2, Anthropic's to 1; between 0 and 1 they mean the same.
_MAX_TEMPERATURE = 1
_EFFORTS = {"minimal": "low"} | {word: word for word in ("low", "medium", "high", "xhigh", "max")}
_NO_BOUND = (-1, 0)

_CHAT: Table = {
    "model": SAID,
    "messages": SAID,
    "max_tokens": SAID,
    "max_completion_tokens": SAID,
    "stop": SAID,
    "stream": SAID,
    "stream_options": SAID,
    "temperature": SAID,
    "top_p": SAID,
    "top_k": SAID,
    "tools": SAID,
    "tool_choice": SAID,
    "parallel_tool_calls": SAID,
    "reasoning_effort": SAID,
    "response_format": SAID,
    "service_tier": SAID,
    "safety_identifier": SAID,
    "user": SAID,
    "metadata": DROPPED,
    "store": DROPPED,
    "prompt_cache_key": DROPPED,
    "prompt_cache_options": DROPPED,
    "prompt_cache_retention": DROPPED,
    "audio": Omitted(),
    "chat_template_kwargs": Refused(({},)),
    "frequency_penalty": Refused((0,)),
    "function_call": Refused(("none", "auto"), "use tools and tool_choice"),
    "functions": Refused(([],), "use tools"),
    "logit_bias": Refused(({},)),
    "logprobs": Refused((False,)),
    "min_p": Refused((0,)),
    "modalities": SAID,
    "moderation": Omitted(),
    "n": Refused((1,)),
    "prediction": Omitted(),
    "presence_penalty": Refused((0,)),
    "repetition_penalty": Refused((1,)),
    "seed": Refused(),
    "top_logprobs": Refused((0,)),
    "verbosity": Omitted(("medium",)),
    "web_search_options": Omitted(),
    "xtc_probability": Refused((0,)),
    "xtc_threshold": Refused(),  # without a probability it means nothing, and nobody sends it
}
_STREAM_OPTIONS: Table = {"include_usage": SAID, "include_obfuscation": DROPPED}
_TOOL: Table = {"type": SAID, "function": SAID}
_FUNCTION: Table = {"name": SAID, "description": SAID, "parameters": SAID, "strict": SAID}
_CHOICE: Table = {"type": SAID, "function": SAID, "allowed_tools": Refused((), "send only those tools")}
_CHOICE_FUNCTION: Table = {"name": SAID}
_FORMAT: Table = {"type": SAID, "json_schema": SAID}
# A name is for the client alone; a schema is enforced there, be it strict or not.
_SCHEMA: Table = {"name": DROPPED, "strict": DROPPED, "description": SAID, "schema": SAID}
_MODES = {"none": "none", "auto": "auto", "required": "any"}
_TIERS = {"auto": "auto", "default": "standard_only"}
_SAME = ("temperature", "top_p", "stream")


def messages_body(body: Mapping[str, Any], model: str, reading: Reading) -> dict[str, Any]:
    """Return the body for *model*.

    Raises:
        UnsupportedParameter: it says what Anthropic's protocol cannot.
        InvalidRequest: it is malformed, as far as that had to be looked at.
    """
    values = reading.read(_CHAT, body)
    if "messages" not in values:
        raise InvalidRequest("messages is required: a list of messages, the oldest first", param="messages")
    system, messages = conversation(values["messages"], reading)
    built: dict[str, Any] = {"model": model, "max_tokens": _max_tokens(values)}
    if system:
        built["system"] = system
    built["messages"] = messages
    temperature = values.get("temperature")
    if isinstance(temperature, int | float) and temperature > _MAX_TEMPERATURE:
        raise reading.refusal("temperature", f"send at most {_MAX_TEMPERATURE}", value=temperature)
    built |= {name: values[name] for name in _SAME if name in values}
    built |= {} if values.get("top_k", 0) in _NO_BOUND else {"top_k": values["top_k"]}
    if "stop" in values:
        stop = values["stop"]
        stops = [stop] if isinstance(stop, str) else listing("stop", stop)
        built["stop_sequences"] = [stop for stop in stops if stop != ""]
    built |= _tools(values, reading)
    built |= _output(values, reading)
    user = values.get("safety_identifier", values.get("user"))
    if user is not None:
        built["metadata"] = {"user_id": text("user", user)}
    if "service_tier" in values:
        tier = values["service_tier"]
        if isinstance(tier, str) and tier in _TIERS:
            built["service_tier"] = _TIERS[tier]
        else:
            reading.leave_out("service_tier")
    _leave_out_modalities(listing("modalities", values.get("modalities", [])), reading)
    if "stream_options" in values:
        reading.read(_STREAM_OPTIONS, values["stream_options"], "stream_options")
    return built


def _max_tokens(values: Mapping[str, Any]) -> Any:
    # The newer name wins: proxies add one of them.
    given = values.get("max_completion_tokens", values.get("max_tokens"))
    return DEFAULT_MAX_TOKENS if given is None or given in _NO_BOUND else given


def _leave_out_modalities(modalities: list[Any], reading: Reading) -> None:
    if modalities and "text" not in modalities:
        raise reading.refusal("modalities", 'leave it out or send ["text"]')
    for place, modality in enumerate(modalities):
        if modality != "text":
            reading.leave_out(f"modalities[{place}]")


def _tools(values: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    tools = listing("tools", values.get("tools", []))
    choice = values.get("tool_choice")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice asks for a call, and there are no tools", param="tool_choice")
        return {}
    given = (_tool(f"tools[{at}]", tool, reading) for at, tool in enumerate(tools))
    functions = [tool for tool in given if tool is not None]
    if not functions:
        if choice not in (None, "none", "auto"):
            raise reading.refusal("tool_choice", "it asks for a call of tools that are no functions")
        return {}
    built: dict[str, Any] = {"tools": functions}
    is_alone = not boolean("parallel_tool_calls", values.get("parallel_tool_calls", True))
    if choice is not None or is_alone:
        chosen: dict[str, Any] = {"type": "auto"} if choice is None else _choice(choice, reading)
        built["tool_choice"] = chosen
        if is_alone and chosen["type"] != "none":
            chosen["disable_parallel_tool_use"] = True
    return built


def _tool(path: str, tool: Any, reading: Reading) -> dict[str, Any] | None:
    """Return a tool; None for one that is no function."""
    kind = mapping(path, tool).get("type")
    if kind != "function":
        reading.leave_out(f"{path}.{kind_word(text(f'{path}.type', kind))}")
        return None
    function = reading.read(_FUNCTION, reading.read(_TOOL, tool, path).get("function"), f"{path}.function")
    built: dict[str, Any] = {"name": text(f"{path}.function.name", function.get("name"))}
    if "description" in function:
        built["description"] = function["description"]
    built["input_schema"] = function.get("parameters", {"type": "object", "properties": {}})
    if "strict" in function:
        built["strict"] = function["strict"]
    return built


def _choice(choice: Any, reading: Reading) -> dict[str, Any]:
    if isinstance(choice, str) and choice in _MODES:
        return {"type": _MODES[choice]}
    if not isinstance(choice, dict):
        raise wrong("tool_choice", choice, "'none', 'auto', 'required', or an object that names a function")
    values = reading.read(_CHOICE, choice, "tool_choice")
    if values.get("type") != "function":
        raise reading.refusal("tool_choice.type", "only 'function' can")
    function = reading.read(_CHOICE_FUNCTION, values.get("function"), "tool_choice.function")
    return {"type": "tool", "name": text("tool_choice.function.name", function.get("name"))}


def _output(values: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """Return what says how much to think, and what the answer is to look like."""
    built: dict[str, Any] = {}
    output: dict[str, Any] = {}
    effort = values.get("reasoning_effort")
    if effort == "none":
        built["thinking"] = {"type": "disabled"}
    elif isinstance(effort, str) and effort in _EFFORTS:
        built["thinking"] = {"type": "adaptive"}
        output["effort"] = _EFFORTS[effort]
    elif effort is not None:
        reading.leave_out("reasoning_effort")
    schema = _schema(values.get("response_format"), reading)
    if schema is not None:
        output["format"] = {"type": "json_schema", "schema": schema}
    return built | ({"output_config": output} if output else {})


def _schema(answer_format: Any, reading: Reading) -> dict[str, Any] | None:
    if answer_format is None:
        return None
    values = reading.read(_FORMAT, answer_format, "response_format")
    kind = values.get("type")
    if kind == "text":
        return None
    if kind != "json_schema":
        raise reading.refusal("response_format.type", "send json_schema with a schema", value=kind)
    path = "response_format.json_schema"
    named = reading.read(_SCHEMA, values.get("json_schema"), path)
    schema = mapping(f"{path}.schema", named.get("schema"))
    if "description" in named and "description" not in schema:
        return {**schema, "description": named["description"]}
    return schema
