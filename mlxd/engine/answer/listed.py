"""Formats whose calls are a JSON list between tags: of Phi 4 mini, Granite, Nemotron and Command. Pure.

<|tool_call|>[{"name": "f", "arguments": {"a": 1}}]<|/tool_call|>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlxd.engine.answer.format import AnswerFormat, CallShape
from mlxd.engine.answer.history import Message, as_json, calls_as_text, with_instructions
from mlxd.engine.base import ChatPrompt
from mlxd.engine.lark import Lark, call_schema
from mlxd.engine.tool_stream import JsonFormat

_PHI = ("<|tool_call|>", "<|/tool_call|>")
_COMMAND = ("<|START_ACTION|>", "<|END_ACTION|>")


def parse(text: str, _: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls of a list, or of one object.

    Raises:
        ValueError, LookupError, TypeError: it is none.
    """
    value = json.loads(text.strip().removeprefix("functools"))
    return [_call(item) for item in (value if isinstance(value, list) else [value])]


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    name = item["tool_name"] if "tool_name" in item else item["name"]
    return {"name": name, "arguments": item["parameters"] if "parameters" in item else item["arguments"]}


def _named(lark: Lark, function: Mapping[str, Any]) -> str:
    return lark.json(call_schema(function))


def _numbered(lark: Lark, function: Mapping[str, Any]) -> str:
    schema = call_schema(function, name="tool_name", arguments="parameters")
    number = {"tool_call_id": {"type": "string", "pattern": "^[0-9]{1,2}$"}}
    return lark.json(
        {**schema, "properties": {**number, **schema["properties"]}, "required": ["tool_call_id", *schema["required"]]}
    )


def _adapt_phi(prompt: ChatPrompt) -> ChatPrompt:
    """Return the prompt as the template of Phi 4 mini writes it, which knows no calls and takes tools as text."""

    def write(functions: Sequence[Mapping[str, Any]]) -> str:
        calls = [{"name": function["name"], "arguments": function["arguments"]} for function in functions]
        return _PHI[0] + as_json(calls) + _PHI[1]

    messages: list[Message] = [
        {**message, "role": "tool_response"} if message.get("role") == "tool" else message
        for message in calls_as_text(prompt.messages, write)
    ]
    if prompt.tools is not None:
        functions = as_json([tool["function"] for tool in prompt.tools.shown])
        messages = with_instructions(messages, f"<|tool|>{functions}<|/tool|>", "")
    return replace(prompt, messages=tuple(messages), tools=None)


def _adapt_command(prompt: ChatPrompt) -> ChatPrompt:
    """Return the prompt with what the template writes before calls under the names that it may have there."""
    messages = []
    for message in prompt.messages:
        if message.get("tool_calls"):
            plan = "\n\n".join(filter(None, [message.get("reasoning_content"), message.get("content")]))
            messages.append({**message, "reasoning_content": plan, "tool_plan": plan})
        else:
            messages.append(dict(message))
    return replace(prompt, messages=tuple(messages))


_HEAD = (
    r'\{\s*(?:"tool_call_id"\s*:\s*"[^"\\]*"\s*,\s*)?"(?:tool_)?name"\s*:\s*"([^"\\]+)"'
    r'\s*,\s*"(?:parameters|arguments)"\s*:\s*(?=\{)'
)
_STREAM = JsonFormat(re.compile(r"\s*(?:functools)?\s*\[?\s*" + _HEAD), re.compile(_HEAD))
_SHAPE = CallShape(_named, ", ", "[", "]", _STREAM)
LISTED = (
    AnswerFormat(
        name="phi4",
        is_of=lambda template, vocabulary: set(_PHI) <= vocabulary.keys() and _PHI[0] in template,
        tags=_PHI,
        parse=parse,
        shape=_SHAPE,
    ),
    AnswerFormat(
        name="phi4",
        is_of=lambda template, vocabulary: set(_PHI) <= vocabulary.keys() and "<|tool|>" in template,
        tags=_PHI,
        parse=parse,
        shape=_SHAPE,
        adapt=_adapt_phi,
    ),
    AnswerFormat(
        name="granite",
        is_of=lambda template, vocabulary: _PHI[0] in vocabulary and "<|start_of_role|>" in template,
        tags=(_PHI[0], ""),
        parse=parse,
        shape=_SHAPE,
    ),
    AnswerFormat(
        name="nemotron",
        is_of=lambda template, _: "<TOOLCALL>" in template,
        tags=("<TOOLCALL>", "</TOOLCALL>"),
        parse=parse,
        shape=_SHAPE,
    ),
    AnswerFormat(
        name="command",
        is_of=lambda template, vocabulary: set(_COMMAND) <= vocabulary.keys() and _COMMAND[0] in template,
        thinking=("<|START_THINKING|>", "<|END_THINKING|>"),
        tags=_COMMAND,
        parse=parse,
        markers=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
        shape=CallShape(_numbered, ", ", "[", "]", _STREAM),
        adapt=_adapt_command,
    ),
)
