"""Calls of DeepSeek: of V3 and R1, of V3.1, and of V3.2.

    <|tool▁calls▁begin|><|tool▁call▁begin|>function<|tool▁sep|>f
    ```json
    {"a": 1}
    ```<|tool▁call▁end|><|tool▁calls▁end|>

V3.1 writes the name in place of the word `function`, and the arguments as they are. The end of all calls may be
missing. V3.2 writes each argument between tags. The bars are U+FF5C:

    <|DSML|function_calls>
    <|DSML|invoke name="f">
    <|DSML|parameter name="a" string="false">1</|DSML|parameter>
    </|DSML|invoke>
    </|DSML|function_calls>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlxd.engine.answer.format import AnswerFormat, CallShape
from mlxd.engine.answer.history import arguments_of, calls_as_text, tools_told
from mlxd.engine.base import ChatPrompt
from mlxd.engine.lark import Lark, Property, Unenforceable, json_value, literal, parameters_of, properties, raw_text
from mlxd.engine.tool_stream import JsonFormat

_BEGIN, _CALLS_END = "<\uff5ctool▁calls▁begin\uff5c>", "<\uff5ctool▁calls▁end\uff5c>"
_CALL, _SEPARATOR, _CALL_END = "<\uff5ctool▁call▁begin\uff5c>", "<\uff5ctool▁sep\uff5c>", "<\uff5ctool▁call▁end\uff5c>"
_WRITTEN = re.compile(f"{_CALL}(.*?){_SEPARATOR}(.*?)(?:{_CALL_END}|{_CALLS_END}|$)", re.DOTALL)
_FENCED = re.compile(r"\s*(\S+)\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
_FENCE = "```json"
_HEAD = (
    "<\uff5ctool▁call▁begin\uff5c>(?:function<\uff5ctool▁sep\uff5c>)?([\\w.-]+)\\s*"
    "(?:<\uff5ctool▁sep\uff5c>|```(?:json)?)\\s*(?=\\{)"
)
_STREAM = JsonFormat(re.compile(r"\s*" + _HEAD), re.compile(_HEAD))
_RESULTS = "You are given the results then."
_SHOWS_TOOLS = re.compile(r"\b(?:if|in) tools\b")


def parse(text: str, _: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls.

    Raises:
        ValueError: there are none, or their arguments are no JSON.
    """
    calls = []
    for before, after in _WRITTEN.findall(text):
        fenced = _FENCED.fullmatch(after)
        name, arguments = fenced.groups() if fenced else (before.strip(), after)
        calls.append({"name": name, "arguments": json.loads(arguments)})
    if not calls:
        raise ValueError("no call")
    return calls


def _fenced_call(lark: Lark, function: Mapping[str, Any]) -> str:
    head = f"{lark.tag(_CALL)} {literal('function')} {lark.tag(_SEPARATOR)}"
    name = literal(f"{function['name']}\n{_FENCE}\n")
    return f"{head} {name} {lark.json(parameters_of(function))} {literal(chr(10) + '```')} {lark.tag(_CALL_END)}"


def _bare_call(lark: Lark, function: Mapping[str, Any]) -> str:
    head = f"{lark.tag(_CALL)} {literal(function['name'])} {lark.tag(_SEPARATOR)}"
    return f"{head} {lark.json(parameters_of(function))} {lark.tag(_CALL_END)}"


def _fenced(functions: Sequence[Mapping[str, Any]]) -> str:
    calls = (
        f"{_CALL}function{_SEPARATOR}{function['name']}\n{_FENCE}\n{arguments_of(function)}\n```{_CALL_END}"
        for function in functions
    )
    return _BEGIN + "\n".join(calls) + _CALLS_END


def _bare(functions: Sequence[Mapping[str, Any]]) -> str:
    calls = (f"{_CALL}{function['name']}{_SEPARATOR}{arguments_of(function)}{_CALL_END}" for function in functions)
    return _BEGIN + "".join(calls) + _CALLS_END


def _format(*, is_fenced: bool, shows_tools: bool) -> AnswerFormat:
    """Return the format of V3 and R1 or of V3.1, whose template shows tools to the model, or does not.

    The templates that came with the models do not, and write calls of the history only where there is no content.
    """
    write = _fenced if is_fenced else _bare
    example = write([{"name": "NAME", "arguments": '{"PARAMETER": "VALUE"}'}])

    def adapt(prompt: ChatPrompt) -> ChatPrompt:
        messages = calls_as_text(prompt.messages, write)
        if shows_tools:
            return replace(prompt, messages=tuple(messages))
        return replace(prompt, messages=tuple(tools_told(messages, prompt.tools, example, _RESULTS)), tools=None)

    def is_of(template: str, _: Mapping[str, int]) -> bool:
        return (
            _BEGIN in template
            and (_FENCE in template) is is_fenced
            and (_SHOWS_TOOLS.search(template) is not None) is shows_tools
        )

    return AnswerFormat(
        name="deepseek_v3" if is_fenced else "deepseek_v31",
        is_of=is_of,
        tags=(_BEGIN, ""),
        parse=parse,
        shape=CallShape(_fenced_call if is_fenced else _bare_call, "\n" if is_fenced else "", "", _CALLS_END, _STREAM),
        adapt=adapt,
    )


_MARK = "\uff5cDSML\uff5c"
_PARAMETER_END = f"</{_MARK}parameter>"
_INVOKED = re.compile(rf'\s*<{_MARK}invoke name="([^"]*)">(.*?)</{_MARK}invoke>\s*', re.DOTALL)
_PARAMETER = re.compile(
    rf'\s*<{_MARK}parameter name="([^"]*)" string="(true|false)">(.*?){_PARAMETER_END}\s*', re.DOTALL
)


def parse_marked(text: str, _: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls of V3.2; raises as `parse`."""
    calls = [
        {
            "name": name,
            "arguments": {
                argument: value if is_string == "true" else json.loads(value)
                for argument, is_string, value in _PARAMETER.findall(body)
            },
        }
        for name, body in _INVOKED.findall(text)
        if not _PARAMETER.sub("", body).strip()
    ]
    if not calls or _INVOKED.sub("", text).strip():
        raise ValueError("no call")
    return calls


def _marked_call(lark: Lark, function: Mapping[str, Any]) -> str:
    """Return one call; what the schema does not say is a text is written as JSON."""

    def write(item: Property) -> str:
        if '"' in item.name:
            raise Unenforceable(f"the property name {item.name!r}, which this model's format of calls cannot write")
        is_string = item.schema.get("type") == "string"
        start = lark.tag(f'<{_MARK}parameter name="{item.name}" string="{str(is_string).lower()}">')
        if is_string:
            return f"{start} {raw_text(lark, item.schema, _PARAMETER_END)} {literal(chr(10))}"
        value = json_value(lark, str(item.schema.get("type")), item.schema)
        return f"{start} {value} {lark.tag(_PARAMETER_END)} {literal(chr(10))}"

    items = [(write(item), item.is_required) for item in properties(function.get("parameters") or {})]
    start = lark.tag(f'<{_MARK}invoke name="{function["name"]}">\n')
    return f"{start} {lark.members(items, '')} {lark.tag(f'</{_MARK}invoke>')}"


def _adapt_marked(prompt: ChatPrompt) -> ChatPrompt:
    """Return the prompt with arguments as the renderer of mlx-lm wants them, as JSON."""

    def written(call: Mapping[str, Any]) -> dict[str, Any]:
        function = {**call["function"], "arguments": arguments_of(call["function"])}
        return {**call, "function": function}

    messages = (
        {**message, "tool_calls": [written(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in prompt.messages
    )
    return replace(prompt, messages=tuple(messages))


DEEPSEEK = (
    *(
        _format(is_fenced=is_fenced, shows_tools=shows_tools)
        for is_fenced in (True, False)
        for shows_tools in (True, False)
    ),
    AnswerFormat(
        name="deepseek_v32",
        is_of=lambda _, vocabulary: _MARK in vocabulary,
        tags=(f"<{_MARK}function_calls>", f"</{_MARK}function_calls>"),
        parse=parse_marked,
        shape=CallShape(_marked_call, "\n", "\n", "\n"),
        adapt=_adapt_marked,
    ),
)
