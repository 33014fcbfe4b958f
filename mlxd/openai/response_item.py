"""Items of /v1/responses: a client's input checked and made canonical.

Canonical items have an id, a status and lists of parts; the items of an answer are so by themselves. No word of a user
is changed or left out. What other tools did is a call and its result, where it holds words (`response_history.py`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.http.sealed import opened
from mlxd.openai.response_call import patch_operation, shell_action
from mlxd.openai.response_part import part_texts
from mlxd.openai.tool_name import named_space
from mlxd.protocol.errors import InvalidRequest

Item = Mapping[str, Any]
Find = Callable[[str], Item | None]

_ROLES = ("user", "assistant", "system", "developer")
_MESSAGE_KNOWN = frozenset({"type", "id", "role", "content", "status", "phase"})
_CALL_KNOWN = frozenset({"type", "id", "call_id", "name", "arguments", "status", "async", "caller", "namespace"})
_CUSTOM_KNOWN = _CALL_KNOWN - {"arguments"} | {"input"}
_OUTPUT_KNOWN = frozenset({"type", "id", "call_id", "output", "status", "name", "caller", "namespace"})
_REASONING_KNOWN = frozenset({"type", "id", "summary", "content", "encrypted_content", "status"})
_REFERENCE_KNOWN = frozenset({"type", "id"})
_SHELL_KNOWN = frozenset({"type", "id", "call_id", "action", "status", "caller", "environment", "created_by"})
_PATCH_KNOWN = frozenset({"type", "id", "call_id", "operation", "status", "caller", "created_by"})


def new_id(prefix: str) -> str:
    """Return an id that nothing else has."""
    return f"{prefix}_{uuid.uuid4().hex}"


def text_message(role: str, parts: list[dict[str, Any]], item_id: str | None = None) -> Item:
    """Return the canonical message of these parts."""
    return {
        "id": new_id("msg") if item_id is None else item_id,
        "type": "message",
        "role": role,
        "status": "completed",
        "content": parts,
    }


def parse_message(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    """Return a message, each of its parts as text."""
    omitted.note(path, item, _MESSAGE_KNOWN)
    role = field.word(*_ROLES)(f"{path}.role", item.get("role"))
    kind = "output_text" if role == "assistant" else "input_text"
    more: dict[str, Any] = {"annotations": []} if role == "assistant" else {}
    texts = part_texts(f"{path}.content", item.get("content"), omitted)
    return text_message(role, [{"type": kind, "text": text, **more} for text in texts], item_id(path, item))


def parse_call(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    """Return a call of a function, or of a custom tool."""
    is_custom = item["type"] == "custom_tool_call"
    omitted.note(path, item, _CUSTOM_KNOWN if is_custom else _CALL_KNOWN)
    _leave_out_callers(path, item, omitted)
    parsed = {
        "id": item_id(path, item) or new_id("ctc" if is_custom else "fc"),
        "type": item["type"],
        "call_id": field.text(f"{path}.call_id", item.get("call_id")),
        "name": field.text(f"{path}.name", item.get("name")),
    }
    if item.get("namespace") is not None:
        namespace = named_space(field.text(f"{path}.namespace", item["namespace"]))
        parsed |= {} if namespace is None else {"namespace": namespace}
    if is_custom:
        return {**parsed, "input": field.string(f"{path}.input", item.get("input"))}
    arguments = item.get("arguments")
    if isinstance(arguments, dict):
        arguments = field.schema(f"{path}.arguments", arguments)
    return {**parsed, "status": "completed", "arguments": field.string(f"{path}.arguments", arguments)}


def parse_output(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    """Return the result of a function, or of a custom tool; one that says nothing is empty."""
    omitted.note(path, item, _OUTPUT_KNOWN)
    _leave_out_callers(path, item, omitted)
    output = item.get("output")
    if not isinstance(output, str):
        output = [{"type": "input_text", "text": text} for text in part_texts(f"{path}.output", output, omitted)]
    parsed = {
        "id": item_id(path, item) or new_id("fco"),
        "type": item["type"],
        "status": "completed",
        # Of nothing that the model called here: a result may come from elsewhere.
        "call_id": new_id("call") if item.get("call_id") is None else field.text(f"{path}.call_id", item["call_id"]),
        "output": output,
    }
    if item.get("name") is not None:
        parsed["name"] = field.text(f"{path}.name", item["name"])
    return parsed


def parse_shell_call(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    """Return a call of a shell that the client runs."""
    omitted.note(path, item, _SHELL_KNOWN)
    action = shell_action(item.get("action"))
    if action is None:
        raise field.wrong(f"{path}.action", item.get("action"), "an object with commands")
    return _typed_call(path, item, "sh", {"action": action})


def parse_patch_call(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item:
    """Return a call that patches one file."""
    omitted.note(path, item, _PATCH_KNOWN)
    operation = patch_operation(item.get("operation"))
    if operation is None:
        raise field.wrong(f"{path}.operation", item.get("operation"), "an object with type, path and diff")
    return _typed_call(path, item, "apc", {"operation": operation})


def parse_reasoning(path: str, item: Mapping[str, Any], omitted: Omissions) -> Item | None:
    """Return what was thought, or its summary; None where another server encrypted it."""
    omitted.note(path, item, _REASONING_KNOWN)
    content = _thoughts(f"{path}.content", item.get("content"), "reasoning_text", "text")
    summary = _thoughts(f"{path}.summary", item.get("summary"), "summary_text")
    if not content and item.get("encrypted_content") is not None:
        thought = opened(field.string(f"{path}.encrypted_content", item["encrypted_content"]))
        if thought is not None:
            content = [{"type": "reasoning_text", "text": thought}]
        elif not summary:
            omitted.leave_out(f"{path}.encrypted_content", "cannot be read here")
            return None
    return {
        "id": item_id(path, item) or new_id("rs"),
        "type": "reasoning",
        "status": "completed",
        "summary": summary,
        "content": content,
    }


def parse_reference(path: str, item: Mapping[str, Any], omitted: Omissions, find: Find) -> Item:
    """Return the stored item that is meant.

    Raises:
        InvalidRequest: it is not there.
    """
    omitted.note(path, item, _REFERENCE_KNOWN)
    found = find(field.text(f"{path}.id", item.get("id")))
    if found is None:
        raise InvalidRequest(
            f"{path}.id names an item that is not stored, or once more; send the item itself", param=path
        )
    return found


def item_id(path: str, item: Mapping[str, Any]) -> str | None:
    """Return the id that a client gave an item."""
    return None if item.get("id") is None else field.text(f"{path}.id", item["id"])


def _typed_call(path: str, item: Mapping[str, Any], prefix: str, what: Mapping[str, Any]) -> Item:
    return {
        "id": item_id(path, item) or new_id(prefix),
        "type": item["type"],
        "status": "completed",
        "call_id": field.text(f"{path}.call_id", item.get("call_id")),
        **what,
    }


def _thoughts(path: str, parts: Any, kind: str, *others: str) -> list[dict[str, str]]:
    parsed = []
    for place, part in enumerate(field.listing(path, [] if parts is None else parts)):
        here = f"{path}[{place}]"
        given = field.mapping(here, part).get("type")
        if given not in (kind, *others):
            raise field.wrong(f"{here}.type", given, repr(kind))
        parsed.append({"type": kind, "text": field.string(f"{here}.text", part.get("text"))})
    return parsed


def _leave_out_callers(path: str, item: Mapping[str, Any], omitted: Omissions) -> None:
    """Leave out that a program of OpenAI's servers made a call, or did not wait for it."""
    if item.get("caller") not in (None, {"type": "direct"}):
        omitted.leave_out(f"{path}.caller")
    if item.get("async") not in (None, False):
        omitted.leave_out(f"{path}.async")
