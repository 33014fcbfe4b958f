"""Anthropic's messages of blocks → the maps that a chat template wants. No word of a user is changed or left out.

What clients add for their own accounting is removed (`mlxd/http/noise.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.http import field
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.sealed import opened
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.quote import shown

_MESSAGE_KNOWN = frozenset({"role", "content"})
_BLOCK_KNOWN = {
    "text": frozenset({"type", "text", "cache_control", "citations"}),
    "thinking": frozenset({"type", "thinking", "signature"}),
    "redacted_thinking": frozenset({"type", "data"}),
    "tool_use": frozenset({"type", "id", "name", "input", "cache_control", "caller"}),
    "tool_result": frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"}),
}
_OF_ROLE = {
    "user": frozenset({"text", "tool_result"}),
    "assistant": frozenset({"text", "thinking", "redacted_thinking", "tool_use"}),
    "system": frozenset({"text"}),
}

Message = Mapping[str, Any]


def parse_system(value: Any, omitted: Omissions, noise: NoiseFilter) -> tuple[Message, ...]:
    """Return the system message of a text or of text blocks; none where there is no text.

    Raises:
        UnsupportedParameter: a block that is no text.
        InvalidRequest: something else.
    """
    if value is None:
        return ()
    text = "\n\n".join(noise.keep("system", _texts("system", value, omitted), is_first=True))
    return ({"role": "system", "content": text},) if text else ()


def parse_messages(messages: list[Any], omitted: Omissions, noise: NoiseFilter) -> tuple[Message, ...]:
    """Return the messages; results of tools become messages of role `tool`, before the text that came with them.

    Raises:
        UnsupportedParameter: images, documents, and blocks of tools that Anthropic's servers run.
        InvalidRequest: a message without a known role or without content, or a malformed block.
    """
    parsed: list[Message] = []
    for place, message in enumerate(messages):
        path = f"messages[{place}]"
        role = field.mapping(path, message).get("role")
        if role not in ("user", "assistant", "system"):
            raise field.wrong(f"{path}.role", role, "'user' or 'assistant'")
        omitted.note(path, message, _MESSAGE_KNOWN)
        content = message.get("content")
        if role == "assistant":
            parsed.append(_assistant(f"{path}.content", content, omitted))
        elif role == "user":
            parsed += _user(f"{path}.content", content, omitted, noise)
        else:
            texts = _texts(f"{path}.content", content, omitted)
            kept = noise.keep("system", texts)
            if kept or not texts:
                parsed.append({"role": "system", "content": "".join(kept)})
    return tuple(parsed)


def _user(path: str, content: Any, omitted: Omissions, noise: NoiseFilter) -> list[Message]:
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Message] = []
    texts: list[str] = []
    for here, block in _blocks(path, content, "user", omitted):
        if block["type"] == "text":
            texts.append(field.string(f"{here}.text", block.get("text")))
        else:
            results.append(_result(here, block, omitted))
    kept = noise.keep("user", texts, others=len(results))
    return [*results, {"role": "user", "content": "".join(kept)}] if kept else results


def _result(path: str, block: Mapping[str, Any], omitted: Omissions) -> Message:
    content = block.get("content")
    text = "" if content is None else "".join(_texts(f"{path}.content", content, omitted))
    if block.get("is_error") is not None and field.boolean(f"{path}.is_error", block["is_error"]):
        text = f"Error: {text}"  # templates have no other place for it
    call_id = field.text(f"{path}.tool_use_id", block.get("tool_use_id"))
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _assistant(path: str, content: Any, omitted: Omissions) -> Message:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for here, block in _blocks(path, content, "assistant", omitted):
        match block["type"]:
            case "text":
                texts.append(field.string(f"{here}.text", block.get("text")))
            case "thinking":
                thoughts.append(_thought(here, block))
            case "tool_use":
                calls.append(_call(here, block))
    parsed: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        parsed["tool_calls"] = calls
    if any(thoughts):
        parsed["reasoning_content"] = "".join(thoughts)
    return parsed


def _thought(path: str, block: Mapping[str, Any]) -> str:
    """Return a thought: its text, or what is in our own signature; that of another server says nothing here."""
    shown_thought = field.string(f"{path}.thinking", block.get("thinking"))
    signature = block.get("signature")
    return shown_thought or (opened(signature) if isinstance(signature, str) else None) or ""


def _call(path: str, block: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": field.text(f"{path}.id", block.get("id")),
        "type": "function",
        "function": {
            "name": field.text(f"{path}.name", block.get("name")),
            "arguments": field.mapping(f"{path}.input", block.get("input")),
        },
    }


def _texts(path: str, content: Any, omitted: Omissions) -> list[str]:
    """Return the texts of content that has nothing else."""
    if isinstance(content, str):
        return [content]
    if content == []:
        return []
    blocks = _blocks(path, content, "system", omitted)
    return [field.string(f"{here}.text", block.get("text")) for here, block in blocks]


def _blocks(path: str, content: Any, role: str, omitted: Omissions) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the blocks with their paths, each of a kind that the role may have."""
    if not isinstance(content, list) or not content:
        raise field.wrong(path, content, "a text or a list of blocks")
    checked = []
    for place, block in enumerate(content):
        here = f"{path}[{place}]"
        kind = field.text(f"{here}.type", field.mapping(here, block).get("type"))
        if kind not in _OF_ROLE[role]:
            if kind in _BLOCK_KNOWN:
                raise InvalidRequest(
                    f"{here}.type {shown(kind)} has no place in a {role} message", param=f"{here}.type"
                )
            raise UnsupportedParameter(f"{here}.type {shown(kind)} is not supported", param=f"{here}.type")
        omitted.note(here, block, _BLOCK_KNOWN[kind])
        checked.append((here, block))
    return checked
