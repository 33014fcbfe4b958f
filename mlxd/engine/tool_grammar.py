"""Grammars of tool calls, in each format that can be enforced while decoding. Pure: text in, text out.

One function per format of mlx-lm's `tool_parsers`; what it writes is what that parser reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from mlxd.engine.constraint import ToolConstraint

# A model that may choose writes white space without end; and refs lead to the root of a schema.
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}
_DEFINITIONS = ("$defs", "definitions")


def tool_lark(tokenizer: Any, constraint: ToolConstraint) -> str | None:
    """Return the grammar of *constraint* in llguidance's Lark for a model; None where its format is not enforceable.

    *tokenizer* is mlx-lm's `TokenizerWrapper`.
    """
    make = _FORMATS.get(tokenizer.tool_parser.__module__.rpartition(".")[2])
    if make is None:
        return None
    calls = make(tokenizer, json.loads(constraint.functions))
    several = "call (/\\s*/ call)*" if constraint.parallel else "call"
    if constraint.is_required:
        start = several
    elif constraint.schema is None:
        start = f"TEXT ({several})?\nTEXT: /(.|\\n)*/"
    else:
        start = f"answer | {several}\n{_json_rule('answer', json.loads(constraint.schema))}"
    return f"start: {start}\n{calls}"


def _json_tools(tokenizer: Any, functions: list[Mapping[str, Any]]) -> str:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""
    bodies = [_json_rule(f"f{number}", _call_schema(function)) for number, function in enumerate(functions)]
    start = _tag(tokenizer.tool_call_start, tokenizer.tool_call_start_tokens)
    end = _tag(tokenizer.tool_call_end, tokenizer.tool_call_end_tokens)
    return "\n".join([f'call: {start} "\\n" body "\\n" {end}', _choice("body", "f", functions), *bodies])


def _mistral(tokenizer: Any, functions: list[Mapping[str, Any]]) -> str:
    """`[TOOL_CALLS]name[ARGS]{…}`."""
    start = _tag(tokenizer.tool_call_start, tokenizer.tool_call_start_tokens)
    separator = _tag("[ARGS]", tuple(tokenizer.encode("[ARGS]", add_special_tokens=False)))
    rules = []
    for number, function in enumerate(functions):
        rules.append(f"f{number}: {json.dumps(function['name'])} {separator} a{number}")
        rules.append(_json_rule(f"a{number}", _parameters(function)))
    return "\n".join([f"call: {start} body", _choice("body", "f", functions), *rules])


_FORMATS: Mapping[str, Callable[[Any, list[Mapping[str, Any]]], str]] = {
    "json_tools": _json_tools,
    "mistral": _mistral,
}


def _tag(text: str, tokens: tuple[int, ...]) -> str:
    """Return a tag as the one token that it mostly is, else as text."""
    return f"<[{tokens[0]}]>" if len(tokens) == 1 else json.dumps(text)


def _choice(name: str, prefix: str, functions: list[Mapping[str, Any]]) -> str:
    return f"{name}: " + " | ".join(f"{prefix}{number}" for number in range(len(functions)))


def _json_rule(name: str, schema: Mapping[str, Any]) -> str:
    return f"{name}: %json {json.dumps({**schema, **_COMPACT})}"


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters")
    return dict(parameters) if parameters else {"type": "object", "properties": {}, "additionalProperties": False}


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _parameters(function)
    definitions = {key: parameters.pop(key) for key in _DEFINITIONS if key in parameters}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        **definitions,
    }
