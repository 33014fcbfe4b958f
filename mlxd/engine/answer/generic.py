"""A format of calls for models whose chat template has none: told in the system message, and written as text.

    <tool_call>
    {"name": "f", "arguments": {"a": 1}}
    </tool_call>

It is the one that most models have seen, whatever they were trained for. Calls and results of the history are rendered
in the same words; results come from the user, as there may be no role for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlxd.engine.answer.format import AnswerFormat
from mlxd.engine.answer.history import Message, as_json, calls_as_text, tools_told
from mlxd.engine.base import ChatPrompt

_START, _END = "<tool_call>", "</tool_call>"
_EXAMPLE = f"""\
{_START}
{{"name": "the name of a function", "arguments": {{"the name of a parameter": "its value"}}}}
{_END}"""
_RESULTS = "The user's next message holds the result, between <tool_response> and </tool_response>."


def adapt(prompt: ChatPrompt) -> ChatPrompt:
    """Return the prompt without tools for the template: they are told, and calls and results are text."""
    written = calls_as_text(prompt.messages, lambda functions: "\n" + "\n".join(map(_called, functions)))
    messages = [
        {**message, "content": message["content"].lstrip("\n")}
        if before.get("tool_calls") and not before.get("content")
        else message
        for message, before in zip(written, prompt.messages, strict=True)
    ]
    return replace(
        prompt, messages=tuple(tools_told(_results_as_text(messages), prompt.tools, _EXAMPLE, _RESULTS)), tools=None
    )


def _results_as_text(messages: Sequence[Message]) -> list[Message]:
    """Return *messages* with results as text; neighboring ones, and what the user says then, are one message."""
    written: list[Message] = []
    has_results = False  # the last one of *written*
    for message in messages:
        role, content = message.get("role"), message.get("content") or ""
        if role == "tool":
            content = f"<tool_response>\n{content}\n</tool_response>"
        if has_results and role in {"tool", "user"}:
            written[-1] = {**written[-1], "content": f"{written[-1]['content']}\n{content}"}
        else:
            written.append({"role": "user", "content": content} if role == "tool" else message)
        has_results = role == "tool"
    return written


def _called(function: Mapping[str, Any]) -> str:
    return f"{_START}\n{as_json({'name': function['name'], 'arguments': function['arguments']})}\n{_END}"


GENERIC = AnswerFormat(
    name="generic",
    is_of=lambda _template, _vocabulary: True,
    tags=(_START, _END),
    parser="json_tools",
    adapt=adapt,
)
