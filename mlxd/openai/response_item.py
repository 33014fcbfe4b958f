"""Items of /v1/responses that have a place in an answer too: checked, made canonical, and the messages that they are.

Canonical items have an id, a status and lists of parts; the items of an answer are so by themselves. No word of a user
is changed or left out. What other tools did is a call and its result, where it holds words (`response_history.py`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.schema import Habit, Object, Text, dumped, omitted, read, wrong
from mlxd.http.sealed import opened
from mlxd.openai.content import texts
from mlxd.openai.response_call import CALLS, called, patch_operation, shell_action
from mlxd.openai.tool_name import ToolNames, named_space

Item = Mapping[str, Any]
Find = Callable[[str], Item | None]


class _Item(msgspec.Struct, kw_only=True):
    type: str = "message"
    id: Text | None = None
    status: Habit = None

    def canonical(self, prefix: str, **members: Any) -> Item:
        """Return it with an id of its own, or one that begins with *prefix*."""
        return {"id": self.id or new_id(prefix), "type": self.type, "status": "completed", **members}


class _Message(_Item, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: Any = None
    phase: Habit = None


class _Called(_Item, kw_only=True):
    call_id: Text
    name: Text
    namespace: Text | None = None
    # A program of OpenAI's servers made the call, or did not wait for it.
    caller: Annotated[Any, omitted({"type": "direct"})] = None
    is_async: Annotated[Any, omitted(False)] = msgspec.field(name="async", default=None)


class _Call(_Called, kw_only=True):
    arguments: str | Object


class _CustomCall(_Called, kw_only=True):
    input: str


class _Output(_Item, kw_only=True):
    call_id: Text | None = None
    output: Any = None
    name: Text | None = None
    namespace: Habit = None
    caller: Annotated[Any, omitted({"type": "direct"})] = None


class _ClientCall(_Item, kw_only=True):
    call_id: Text
    caller: Habit = None
    created_by: Habit = None


class _ShellCall(_ClientCall, kw_only=True):
    action: Any = None
    environment: Habit = None


class _PatchCall(_ClientCall, kw_only=True):
    operation: Any = None


class _Summary(msgspec.Struct, kw_only=True):
    type: Literal["summary_text"]
    text: str


class _Thought(msgspec.Struct, kw_only=True):
    type: Literal["reasoning_text", "text"]
    text: str


class _Reasoning(_Item, kw_only=True):
    summary: list[_Summary] = []
    content: list[_Thought] = []
    encrypted_content: str | None = None


def new_id(prefix: str) -> str:
    """Return an id that nothing else has."""
    return f"{prefix}_{uuid.uuid4().hex}"


def text_message(role: str, said: Iterable[str], item_id: str | None = None) -> Item:
    """Return the canonical message of these texts."""
    kind = "output_text" if role == "assistant" else "input_text"
    more: dict[str, Any] = {"annotations": []} if role == "assistant" else {}
    return {
        "id": item_id or new_id("msg"),
        "type": "message",
        "role": role,
        "status": "completed",
        "content": [{"type": kind, "text": text, **more} for text in said],
    }


def parse_item(path: str, given: Mapping[str, Any], omissions: Omissions) -> Item | None:
    """Return the canonical item of one whose type is in `READ`; None where it is left out."""
    match read(READ[given["type"]], given, omissions, path):
        case _Message() as message:
            return text_message(message.role, texts(f"{path}.content", message.content, omissions), message.id)
        case _Call() as call:
            arguments = (
                call.arguments if isinstance(call.arguments, str) else dumped(f"{path}.arguments", call.arguments)
            )
            return _call(call, "fc", arguments=arguments)
        case _CustomCall() as call:
            return _call(call, "ctc", input=call.input)
        case _Output() as output:
            return _output(path, output, omissions)
        case _ShellCall() as call:
            action = shell_action(call.action)
            if action is None:
                raise wrong(f"{path}.action", call.action, "an object with commands")
            return call.canonical("sh", call_id=call.call_id, action=action)
        case _PatchCall() as call:
            operation = patch_operation(call.operation)
            if operation is None:
                raise wrong(f"{path}.operation", call.operation, "an object with type, path and diff")
            return call.canonical("apc", call_id=call.call_id, operation=operation)
        case _Reasoning() as reasoning:
            return _reasoning(path, reasoning, omissions)
    return None


def _call(call: _Called, prefix: str, **what: Any) -> Item:
    namespace = None if call.namespace is None else named_space(call.namespace)
    where = {} if namespace is None else {"namespace": namespace}
    return call.canonical(prefix, call_id=call.call_id, name=call.name, **where, **what)


def _output(path: str, item: _Output, omissions: Omissions) -> Item:
    """Return a result; one that says nothing is empty, and one without a call's id may come from elsewhere."""
    output = item.output
    if not isinstance(output, str):
        output = [{"type": "input_text", "text": text} for text in texts(f"{path}.output", output, omissions)]
    named = {} if item.name is None else {"name": item.name}
    return item.canonical("fco", call_id=item.call_id or new_id("call"), output=output, **named)


def _reasoning(path: str, item: _Reasoning, omissions: Omissions) -> Item | None:
    """Return what was thought, or its summary; None where another server encrypted it."""
    content = [thought.text for thought in item.content]
    if not content and item.encrypted_content is not None:
        thought = opened(item.encrypted_content)
        if thought is not None:
            content = [thought]
        elif not item.summary:
            omissions.leave_out(f"{path}.encrypted_content", "cannot be read here")
            return None
    return item.canonical(
        "rs",
        summary=[{"type": "summary_text", "text": each.text} for each in item.summary],
        content=[{"type": "reasoning_text", "text": text} for text in content],
    )


READ: Mapping[str, type[_Item]] = {
    "message": _Message,
    "function_call": _Call,
    "custom_tool_call": _CustomCall,
    "function_call_output": _Output,
    "custom_tool_call_output": _Output,
    "shell_call": _ShellCall,
    "apply_patch_call": _PatchCall,
    "reasoning": _Reasoning,
}


def messages_of(
    items: Iterable[Item], instructions: str | None, noise: NoiseFilter, names: ToolNames
) -> tuple[Mapping[str, Any], ...]:
    """Return the messages of canonical items without noise, as chat templates want them.

    What an assistant thought, said and called in one turn is one message.
    """
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None  # the assistant's, while it goes on
    for item in items:
        if item["type"] == "reasoning" or item["type"] in CALLS or item.get("role") == "assistant":
            if turn is None or _begins_another(turn, item):
                turn = {"role": "assistant", "content": ""}
                messages.append(turn)
            _add(turn, item, names)
            continue
        turn = None
        if item["type"] == "message":
            role = "system" if item["role"] == "developer" else item["role"]
            said = [part["text"] for part in item["content"]]
            kept = noise.keep(role, said, is_first=instructions is None and not messages)
            if kept or not said:
                messages.append({"role": role, "content": "".join(kept)})
        else:
            output = item["output"]
            result = {"role": "tool", "tool_call_id": item["call_id"]}
            result["content"] = output if isinstance(output, str) else _text(output)
            messages.append(result | ({"name": item["name"]} if "name" in item else {}))
    leading = noise.keep("system", [] if instructions is None else [instructions], is_first=True)
    return (*({"role": "system", "content": text} for text in leading), *messages)


def _begins_another(turn: Mapping[str, Any], item: Item) -> bool:
    """Tell whether *item* comes after what *turn* has: one thinks, then speaks, then calls."""
    return item["type"] not in CALLS and (bool(turn["content"]) or "tool_calls" in turn)


def _add(turn: dict[str, Any], item: Item, names: ToolNames) -> None:
    if item["type"] == "reasoning":
        text = _text(item["content"] or item["summary"])
        if text:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + text
    elif item["type"] in CALLS:
        call = {"id": item["call_id"], "type": "function", "function": called(item, names)}
        turn.setdefault("tool_calls", []).append(call)
    else:
        turn["content"] = _text(item["content"])


def _text(parts: Iterable[Mapping[str, Any]]) -> str:
    # Joined with nothing in between, as chat templates that take parts do.
    return "".join(part["text"] for part in parts)
