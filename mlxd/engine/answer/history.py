"""Messages as chat templates want them that take less than the APIs allow. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlxd.engine.tool import ToolUse

Message = Mapping[str, Any]
_TOLD = """\
# Functions

You can call functions. These are the ones there are, with the JSON Schemas of their parameters:

<tools>
{functions}
</tools>

To call {how_many}, write {each} exactly like this, in place of an answer or after it:

{example}

Then stop. {results} Do not make results up, and call no function that is not listed. If none is needed, answer without
a call."""


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


def calls_as_text(messages: Sequence[Message], write: Callable[[Sequence[Message]], str]) -> list[Message]:
    """Return *messages* with calls in the text of their messages, as *write* writes the functions called."""
    return [
        {
            **{name: value for name, value in message.items() if name != "tool_calls"},
            "content": (message.get("content") or "") + write([call["function"] for call in message["tool_calls"]]),
        }
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def tools_told(messages: Sequence[Message], use: ToolUse | None, example: str, results: str) -> list[Message]:
    """Return *messages* with a system message that tells what there is to call, by an example, and where results are.

    For templates that have no place for tools.
    """
    if use is None:
        return list(messages)
    functions = "\n".join(as_json(tool["function"]) for tool in use.shown)
    how_many, each = ("one or more of them", "each call") if use.parallel else ("one of them", "the call")
    text = _TOLD.format(functions=functions, how_many=how_many, each=each, example=example, results=results)
    return with_instructions(messages, text, "\n\n")


def with_instructions(messages: Sequence[Message], text: str, separator: str) -> list[Message]:
    """Return *messages* with *text* at the end of the first system message, which is added where there is none."""
    if messages and messages[0].get("role") == "system":
        instructions = messages[0].get("content") or ""
        return [{**messages[0], "content": f"{instructions}{separator}{text}" if instructions else text}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def arguments_of(function: Mapping[str, Any]) -> str:
    """Return the arguments of a call as JSON; those that hold none are the text that they are."""
    arguments = function["arguments"]
    return arguments if isinstance(arguments, str) else as_json(arguments)


def as_json(value: Any) -> str:
    """Return *value* as JSON in which every character is itself."""
    return json.dumps(value, ensure_ascii=False)
