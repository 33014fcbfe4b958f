"""Messages as chat templates want them that take less than the APIs allow. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


def one_call_each(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return *messages* with no more than one call in each, and the result of each call right after it."""
    split: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            split.append(message)
            continue
        results = []
        while place < len(messages) and messages[place].get("role") == "tool":
            results.append(messages[place])
            place += 1
        for number, call in enumerate(calls):
            first = message if number == 0 else {"role": message["role"], "content": ""}
            split.append({**first, "tool_calls": [call]})
            own = [result for result in results if result.get("tool_call_id") == call.get("id")]
            split += own
            results = [result for result in results if result not in own]
        split += results
    return tuple(split)
