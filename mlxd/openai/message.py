"""Chat messages → the maps that a chat template wants. No word of a user is ever changed or left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.openai import field
from mlxd.openai.unknown import UnknownFields
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOOL_ROLES = frozenset({"tool", "function"})
_KNOWN = frozenset({"role", "content", "name"})
# What SDKs send back of an earlier answer.
_ASSISTANT_KNOWN = _KNOWN | {"reasoning_content", "refusal", "audio", "function_call", "tool_calls", "annotations"}
_ASSISTANT_REFUSED = ("refusal", "audio", "function_call", "tool_calls", "annotations")
_PART_KNOWN = frozenset({"type", "text", "prompt_cache_breakpoint"})


def parse_messages(messages: list[Any], unknown: UnknownFields) -> tuple[Mapping[str, Any], ...]:
    """Return the messages with text content; `developer` becomes `system`.

    Raises:
        UnsupportedParameter: tool messages, tool calls, images, audio, files.
        InvalidRequest: a message without a known role or without content.
    """
    return tuple(_parse_message(f"messages[{index}]", message, unknown) for index, message in enumerate(messages))


def _parse_message(path: str, message: Any, unknown: UnknownFields) -> Mapping[str, Any]:
    field.mapping(path, message)
    role = message.get("role")
    if isinstance(role, str) and role in _TOOL_ROLES:
        raise UnsupportedParameter(f"{path}.role {role!r} is not supported: tools are not", param=f"{path}.role")
    if not isinstance(role, str) or role not in _ROLES:
        raise field.wrong(f"{path}.role", role, "system, developer, user or assistant")
    is_assistant = role == "assistant"
    unknown.note(path, message, _ASSISTANT_KNOWN if is_assistant else _KNOWN)
    content = _content(f"{path}.content", message.get("content"), unknown)
    parsed: dict[str, Any] = {"role": _ROLES[role], "content": content}
    if message.get("name") is not None:
        parsed["name"] = field.text(f"{path}.name", message["name"])
    if is_assistant:
        for name in _ASSISTANT_REFUSED:
            if message.get(name) not in (None, [], ""):
                raise UnsupportedParameter(f"{path}.{name} is not supported; leave it out", param=f"{path}.{name}")
        if message.get("reasoning_content") not in (None, ""):
            parsed["reasoning_content"] = field.text(f"{path}.reasoning_content", message["reasoning_content"])
    return parsed


def _content(path: str, content: Any, unknown: UnknownFields) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise field.wrong(path, content, "a text or a list of text parts")
    # Joined with nothing in between, as chat templates that take parts do.
    return "".join(_part(f"{path}[{index}]", part, unknown) for index, part in enumerate(content))


def _part(path: str, part: Any, unknown: UnknownFields) -> str:
    kind = field.text(f"{path}.type", field.mapping(path, part).get("type"))
    if kind != "text":
        message = f"{path}.type {field.shown(kind)} is not supported, only 'text'"
        raise UnsupportedParameter(message, param=f"{path}.type")
    unknown.note(path, part, _PART_KNOWN)
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{path}.text must be a text", param=f"{path}.text")
    return text
