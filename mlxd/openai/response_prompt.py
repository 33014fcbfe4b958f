"""Canonical items of /v1/responses → the messages that a chat template is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlxd.http.noise import NoiseFilter
from mlxd.openai.response_call import CALLS, called
from mlxd.openai.response_item import Item
from mlxd.openai.tool_name import ToolNames


def messages_of(
    items: Iterable[Item], instructions: str | None, noise: NoiseFilter, names: ToolNames
) -> tuple[Mapping[str, Any], ...]:
    """Return the messages of canonical items without noise, as chat templates want them.

    What an assistant thought, said and called in one turn is one message. *instructions* and system messages right
    after them are one, since many templates take only one and only as the first.
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
