"""A format of calls for models whose chat template has none: told in the system message, and written as text.

    <tool_call>
    {"name": "f", "arguments": {"a": 1}}
    </tool_call>

It is the one that most models have seen, whatever they were trained for. Calls and results of the history are rendered
in the same words; results come from the user, as there may be no role for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlxd.engine.answer.format import AnswerFormat
from mlxd.engine.answer.history import Message
from mlxd.engine.base import ChatPrompt
from mlxd.engine.tool import ToolUse

_START, _END = "<tool_call>", "</tool_call>"
_INTRODUCTION = """\
# Functions

You can call functions. These are the ones there are, with the JSON Schemas of their parameters:

<tools>
{functions}
</tools>

To call {how_many}, write {each} exactly like this, in place of an answer or after it:

{start}
{{"name": "the name of a function", "arguments": {{"the name of a parameter": "its value"}}}}
{end}

Then stop. The user's next message holds the result, between <tool_response> and </tool_response>. Do not make results
up, and call no function that is not listed. If none is needed, answer without a call."""


def adapt(prompt: ChatPrompt) -> ChatPrompt:
    """Return the prompt without tools for the template: they are told, and calls and results are text."""
    messages = _as_text(prompt.messages)
    if prompt.tools is not None:
        messages = _told(messages, _introduction(prompt.tools))
    return replace(prompt, messages=tuple(messages), tools=None)


def _introduction(use: ToolUse) -> str:
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in use.shown)
    how_many, each = ("one or more of them", "each call") if use.parallel else ("one of them", "the call")
    return _INTRODUCTION.format(functions=functions, how_many=how_many, each=each, start=_START, end=_END)


def _told(messages: Sequence[Message], text: str) -> list[Message]:
    if messages and messages[0].get("role") == "system":
        instructions = messages[0].get("content") or ""
        return [{**messages[0], "content": f"{instructions}\n\n{text}" if instructions else text}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _as_text(messages: Sequence[Message]) -> list[Message]:
    """Return *messages* with calls and results as text; neighboring results, and what the user says then, are one."""
    written: list[Message] = []
    has_results = False  # the last one of *written*
    for message in messages:
        role, content = message.get("role"), message.get("content") or ""
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
        elif message.get("tool_calls"):
            calls = "\n".join(_called(call["function"]) for call in message["tool_calls"])
            kept = {name: value for name, value in message.items() if name != "tool_calls"}
            written.append({**kept, "content": f"{content}\n{calls}" if content else calls})
            has_results = False
            continue
        if has_results and role in {"tool", "user"}:
            written[-1] = {**written[-1], "content": f"{written[-1]['content']}\n{content}"}
        else:
            written.append({"role": "user", "content": content} if role == "tool" else message)
        has_results = role == "tool"
    return written


def _called(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": function["arguments"]}
    return f"{_START}\n{json.dumps(call, ensure_ascii=False)}\n{_END}"


GENERIC = AnswerFormat(
    name="generic",
    is_of=lambda _template, _vocabulary: True,
    tags=(_START, _END),
    parser="json_tools",
    adapt=adapt,
)
