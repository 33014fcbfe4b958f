"""Items of /v1/responses: a client's input checked and made canonical, and what a chat template is shown of them.

Canonical items have an id, a status and lists of parts; the items of an answer are so by themselves. No word of a user
is changed or left out.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlxd.http import field
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.openai.message import call_arguments
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter
from mlxd.protocol.quote import shown

Item = Mapping[str, Any]
Find = Callable[[str], Item | None]

_ROLES = ("user", "assistant", "system", "developer")
_PARTS = {
    "input_text": frozenset({"type", "text", "prompt_cache_breakpoint"}),
    "output_text": frozenset({"type", "text", "annotations", "logprobs"}),
}
_MESSAGE_KNOWN = frozenset({"type", "id", "role", "content", "status", "phase"})
_CALL_KNOWN = frozenset({"type", "id", "call_id", "name", "arguments", "status", "async", "caller", "namespace"})
_OUTPUT_KNOWN = frozenset({"type", "id", "call_id", "output", "status", "name", "caller", "namespace"})
_REASONING_KNOWN = frozenset({"type", "id", "summary", "content", "encrypted_content", "status"})
_REFERENCE_KNOWN = frozenset({"type", "id"})


def new_id(prefix: str) -> str:
    """Return an id that nothing else has."""
    return f"{prefix}_{uuid.uuid4().hex}"


def parse_input(value: Any, omitted: Omissions, find: Find) -> tuple[Item, ...]:
    """Return the canonical items of `input`.

    Args:
        value: a text, which is a user's message, or a list of items.
        omitted: collects what is left out.
        find: returns a stored item by its id, for `item_reference`.

    Raises:
        UnsupportedParameter: images, files, and items of tools that run on OpenAI's servers.
        InvalidRequest: a malformed item, or a reference to one that is not stored.
    """
    if isinstance(value, str):
        return (_message("user", [{"type": "input_text", "text": value}]),)
    if not isinstance(value, list):
        raise field.wrong("input", value, "a text or a list of items")
    return tuple(_parse_item(f"input[{place}]", item, omitted, find) for place, item in enumerate(value))


def messages_of(items: Iterable[Item], instructions: str | None, noise: NoiseFilter) -> tuple[Mapping[str, Any], ...]:
    """Return the messages of canonical items without noise, as chat templates want them.

    What an assistant thought, said and called in one turn is one message. *instructions* and system messages right
    after them are one, since many templates take only one and only as the first.
    """
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None  # the assistant's, while it goes on
    for item in items:
        if item["type"] in {"reasoning", "function_call"} or item.get("role") == "assistant":
            if turn is None or _begins_another(turn, item):
                turn = {"role": "assistant", "content": ""}
                messages.append(turn)
            _add(turn, item)
            continue
        turn = None
        if item["type"] == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            texts = [part["text"] for part in item["content"]]
            kept = noise.keep(role, texts, is_first=instructions is None and not messages)
            if kept or not texts:
                messages.append({"role": role, "content": "".join(kept)})
        else:
            output = item["output"]
            result = {"role": "tool", "tool_call_id": item["call_id"]}
            result["content"] = output if isinstance(output, str) else _text(output)
            messages.append(result | ({"name": item["name"]} if "name" in item else {}))
    leading = noise.keep("system", [] if instructions is None else [instructions], is_first=True)
    if not leading:
        return tuple(messages)
    while messages and messages[0]["role"] == "system":
        leading.append(messages.pop(0)["content"])
    return ({"role": "system", "content": "\n\n".join(leading)}, *messages)


def _begins_another(turn: Mapping[str, Any], item: Item) -> bool:
    """Tell whether *item* comes after what *turn* has: one thinks, then speaks, then calls."""
    return item["type"] != "function_call" and (bool(turn["content"]) or "tool_calls" in turn)


def _add(turn: dict[str, Any], item: Item) -> None:
    if item["type"] == "reasoning":
        text = _text(item["content"] or item["summary"])
        if text:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text
    elif item["type"] == "function_call":
        function = {"name": item["name"], "arguments": call_arguments(item["arguments"])}
        turn.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})
    else:
        turn["content"] = _text(item["content"])


def _text(parts: Iterable[Mapping[str, Any]]) -> str:
    # Joined with nothing in between, as chat templates that take parts do.
    return "".join(part["text"] for part in parts)


def _message(role: str, parts: list[dict[str, Any]], item_id: str | None = None) -> Item:
    return {
        "id": new_id("msg") if item_id is None else item_id,
        "type": "message",
        "role": role,
        "status": "completed",
        "content": parts,
    }


def _parse_item(path: str, item: Any, omitted: Omissions, find: Find) -> Item:
    kind = field.mapping(path, item).get("type")
    if kind is None:
        kind = "message" if "role" in item else "item_reference"
    match kind:
        case "message":
            return _parse_message(path, item, omitted)
        case "function_call":
            return _parse_call(path, item, omitted)
        case "function_call_output":
            return _parse_output(path, item, omitted)
        case "reasoning":
            return _parse_reasoning(path, item, omitted)
        case "item_reference":
            omitted.note(path, item, _REFERENCE_KNOWN)
            found = find(field.text(f"{path}.id", item.get("id")))
            if found is None:
                raise InvalidRequest(
                    f"{path}.id names an item that is not stored, or once more; send the item itself", param=path
                )
            return found
    raise UnsupportedParameter(
        f"{path}.type {shown(kind)} is not supported, only 'message', 'function_call', 'function_call_output', "
        "'reasoning' and 'item_reference'",
        param=f"{path}.type",
    )


def _parse_message(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    omitted.note(path, item, _MESSAGE_KNOWN)
    role = field.word(*_ROLES)(f"{path}.role", item.get("role"))
    kind = "output_text" if role == "assistant" else "input_text"
    content = item.get("content")
    texts = [content] if isinstance(content, str) else _parts(f"{path}.content", content, omitted)
    more: dict[str, Any] = {"annotations": []} if role == "assistant" else {}
    return _message(role, [{"type": kind, "text": text, **more} for text in texts], _id(path, item))


def _parts(path: str, content: Any, omitted: Omissions) -> list[str]:
    """Return the texts of a list of parts."""
    if not isinstance(content, list):
        raise field.wrong(path, content, "a text or a list of text parts")
    texts = []
    for place, part in enumerate(content):
        here = f"{path}[{place}]"
        kind = field.text(f"{here}.type", field.mapping(here, part).get("type"))
        if kind not in _PARTS:
            message = f"{here}.type {shown(kind)} is not supported, only 'input_text' and 'output_text'"
            raise UnsupportedParameter(message, param=f"{here}.type")
        omitted.note(here, part, _PARTS[kind])
        if part.get("annotations") not in (None, []):
            raise UnsupportedParameter(
                f"{here}.annotations is not supported; leave it out", param=f"{here}.annotations"
            )
        texts.append(field.string(f"{here}.text", part.get("text")))
    return texts


def _parse_call(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    omitted.note(path, item, _CALL_KNOWN)
    _refuse_programs(path, item)
    return {
        "id": _id(path, item) or new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "call_id": field.text(f"{path}.call_id", item.get("call_id")),
        "name": field.text(f"{path}.name", item.get("name")),
        "arguments": field.string(f"{path}.arguments", item.get("arguments")),
    }


def _parse_output(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    omitted.note(path, item, _OUTPUT_KNOWN)
    _refuse_programs(path, item)
    output = item.get("output")
    if not isinstance(output, str):
        output = [{"type": "input_text", "text": text} for text in _parts(f"{path}.output", output, omitted)]
    parsed = {
        "id": _id(path, item) or new_id("fco"),
        "type": "function_call_output",
        "status": "completed",
        "call_id": field.text(f"{path}.call_id", item.get("call_id")),
        "output": output,
    }
    if item.get("name") is not None:
        parsed["name"] = field.text(f"{path}.name", item["name"])
    return parsed


def _parse_reasoning(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    omitted.note(path, item, _REASONING_KNOWN)
    content = _thoughts(f"{path}.content", item.get("content"), "reasoning_text")
    summary = _thoughts(f"{path}.summary", item.get("summary"), "summary_text")
    if not content and not summary and item.get("encrypted_content") is not None:
        name = f"{path}.encrypted_content"
        raise UnsupportedParameter(f"{name} cannot be read here; leave the item out", param=name)
    return {
        "id": _id(path, item) or new_id("rs"),
        "type": "reasoning",
        "status": "completed",
        "summary": summary,
        "content": content,
    }


def _thoughts(path: str, parts: Any, kind: str) -> list[dict[str, str]]:
    parsed = []
    for place, part in enumerate(field.listing(path, [] if parts is None else parts)):
        here = f"{path}[{place}]"
        given = field.mapping(here, part).get("type")
        if given != kind:
            raise field.wrong(f"{here}.type", given, repr(kind))
        parsed.append({"type": kind, "text": field.string(f"{here}.text", part.get("text"))})
    return parsed


def _refuse_programs(path: str, item: Mapping[str, Any]) -> None:
    """Refuse calls that programs or namespaces of OpenAI's servers have to do with."""
    neutral: dict[str, tuple[Any, ...]] = {
        "namespace": (None,),
        "caller": (None, {"type": "direct"}),
        "async": (None, False),
    }
    for name, values in neutral.items():
        if item.get(name) not in values:
            raise UnsupportedParameter(f"{path}.{name} is not supported; leave it out", param=f"{path}.{name}")


def _id(path: str, item: Mapping[str, Any]) -> str | None:
    return None if item.get("id") is None else field.text(f"{path}.id", item["id"])
