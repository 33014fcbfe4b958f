"""Chat messages → the maps that a chat template wants. No word of a user is ever changed or left out.

What clients add for their own accounting is removed (`mlxd/http/noise.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from mlxd.engine.tool import INVALID
from mlxd.http import field
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.openai.custom_tool import CUSTOM_INPUT
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.quote import shown

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
_RESULTS = frozenset({"tool", "function"})
_KNOWN = frozenset({"role", "content", "name"})
_TOOL_KNOWN = _KNOWN | {"tool_call_id"}
_FUNCTION_KNOWN = frozenset({"name", "arguments"})
_CUSTOM_KNOWN = frozenset({"name", "input"})
_CALL_KNOWN = frozenset({"id", "type", "function", "custom", "index"})
# What SDKs send back of an earlier answer.
_ASSISTANT_KNOWN = _KNOWN | {
    "reasoning_content",
    "reasoning",
    "refusal",
    "audio",
    "function_call",
    "tool_calls",
    "annotations",
}
_ASSISTANT_OMITTED = ("audio", "annotations")
_PART_KNOWN = frozenset({"type", "text", "prompt_cache_breakpoint"})
_REFUSAL_KNOWN = frozenset({"type", "refusal"})
_TEXTS = frozenset({"text", "input_text", "output_text"})
# Kinds of parts → what the note that takes their place calls them.
_MEDIA = {
    "image_url": "image",
    "input_image": "image",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
    "file": "file",
    "input_file": "file",
}


def parse_messages(messages: list[Any], omitted: Omissions, noise: NoiseFilter) -> tuple[Mapping[str, Any], ...]:
    """Return the messages with text content; `developer` becomes `system`, the arguments of calls become objects.

    Raises:
        UnsupportedParameter: calls of what is no function; images, audio and files where `http.media` refuses them.
        InvalidRequest: a message without a known role or without content, a result without its call's id.
    """
    parsed = (_parse_message(index, message, omitted, noise) for index, message in enumerate(messages))
    return tuple(message for message in parsed if message is not None)


def _parse_message(index: int, message: Any, omitted: Omissions, noise: NoiseFilter) -> Mapping[str, Any] | None:
    """Return a message; None where it was noise."""
    path = f"messages[{index}]"
    field.mapping(path, message)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise field.wrong(f"{path}.role", role, "system, developer, user, assistant or tool")
    if role == "assistant":
        parsed = _assistant(path, message, omitted)
    else:
        omitted.note(path, message, _TOOL_KNOWN if role == "tool" else _KNOWN)
        content = message.get("content")
        is_empty = role in _RESULTS and content in (None, [])  # many tools have nothing to say
        texts = [""] if is_empty else _texts(f"{path}.content", content, omitted)
        kept = noise.keep(_ROLES[role], texts, is_first=index == 0)
        if not kept:
            return None
        parsed = {"role": _ROLES[role], "content": "".join(kept)}
    if role == "tool":
        parsed["tool_call_id"] = field.text(f"{path}.tool_call_id", message.get("tool_call_id"))
    if role == "function":
        parsed["tool_call_id"] = _legacy_id(field.text(f"{path}.name", message.get("name")))
    if message.get("name") not in (None, ""):
        parsed["name"] = field.text(f"{path}.name", message["name"])
    return parsed


def _assistant(path: str, message: Mapping[str, Any], omitted: Omissions) -> dict[str, Any]:
    omitted.note(path, message, _ASSISTANT_KNOWN)
    for name in _ASSISTANT_OMITTED:
        if message.get(name) not in (None, [], ""):
            omitted.leave_out(f"{path}.{name}")
    calls = message.get("tool_calls") or []
    content, refusal = message.get("content"), message.get("refusal")
    parsed: dict[str, Any] = {"role": "assistant", "content": ""}
    if content not in (None, []):
        parsed["content"] = "".join(_texts(f"{path}.content", content, omitted))
    elif refusal is not None:
        parsed["content"] = field.string(f"{path}.refusal", refusal)
    if calls:
        listed = enumerate(field.sequence(f"{path}.tool_calls", calls))
        parsed["tool_calls"] = [_call(f"{path}.tool_calls[{place}]", call, omitted) for place, call in listed]
    elif message.get("function_call") is not None:
        parsed["tool_calls"] = [_legacy_call(f"{path}.function_call", message["function_call"], omitted)]
    for name in ("reasoning_content", "reasoning"):  # the latter as OpenRouter and vLLM call it
        if message.get(name) not in (None, ""):
            parsed["reasoning_content"] = field.text(f"{path}.{name}", message[name])
            break
    return parsed


def _call(path: str, call: Any, omitted: Omissions) -> dict[str, Any]:
    """Return a call that an earlier answer made, with its arguments as templates want them: an object."""
    omitted.note(path, field.mapping(path, call), _CALL_KNOWN)
    kind = call.get("type", "function")
    if kind not in ("function", "custom"):
        raise UnsupportedParameter(
            f"{path}.type {shown(kind)} is not supported, only 'function' and 'custom'", param=f"{path}.type"
        )
    if kind == "custom":
        custom = field.mapping(f"{path}.custom", call.get("custom"))
        omitted.note(f"{path}.custom", custom, _CUSTOM_KNOWN)
        function = {
            "name": field.text(f"{path}.custom.name", custom.get("name")),
            "arguments": {CUSTOM_INPUT: field.string(f"{path}.custom.input", custom.get("input"))},
        }
        return {"id": field.text(f"{path}.id", call.get("id")), "type": "function", "function": function}
    function = _function(f"{path}.function", call.get("function"), omitted)
    return {"id": field.text(f"{path}.id", call.get("id")), "type": "function", "function": function}


def _legacy_call(path: str, call: Any, omitted: Omissions) -> dict[str, Any]:
    """Return a call of the time before `tool_calls`, which had no id."""
    function = _function(path, call, omitted)
    return {"id": _legacy_id(function["name"]), "type": "function", "function": function}


def _legacy_id(name: str) -> str:
    return f"call_{name}"


def _function(path: str, given: Any, omitted: Omissions) -> dict[str, Any]:
    """Return the name and the arguments of a call."""
    function = field.mapping(path, given)
    omitted.note(path, function, _FUNCTION_KNOWN)
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str | dict):
        raise field.wrong(f"{path}.arguments", arguments, "a JSON object, or a text that holds one")
    name = field.text(f"{path}.name", function.get("name"))
    return {"name": name, "arguments": call_arguments(arguments) if isinstance(arguments, str) else arguments}


def call_arguments(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call as templates want them, an object.

    A model may have failed to write one: some templates refuse a text, and every later request with it.
    """
    try:
        value = orjson.loads(arguments) if arguments else {}
    except orjson.JSONDecodeError:
        return {INVALID: arguments}
    return value if isinstance(value, dict) else {INVALID: arguments}


def _texts(path: str, content: Any, omitted: Omissions) -> list[str]:
    """Return the texts of the parts. They are joined with nothing in between, as templates that take parts do."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not content:
        raise field.wrong(path, content, "a text or a list of text parts")
    return [_part(f"{path}[{index}]", part, omitted) for index, part in enumerate(content)]


def _part(path: str, part: Any, omitted: Omissions) -> str:
    kind = field.text(f"{path}.type", field.mapping(path, part).get("type"))
    if kind in _MEDIA:
        return omitted.leave_out_media(path, _MEDIA[kind])
    if kind == "refusal":
        omitted.note(path, part, _REFUSAL_KNOWN)
        return field.string(f"{path}.refusal", part.get("refusal"))
    if kind not in _TEXTS:
        message = f"{path}.type {shown(kind)} is not supported, only 'text'"
        raise UnsupportedParameter(message, param=f"{path}.type")
    omitted.note(path, part, _PART_KNOWN)
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{path}.text must be a text", param=f"{path}.text")
    return text
