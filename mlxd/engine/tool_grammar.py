"""The formats in which models call tools, and the grammars of calls. Pure: text in, text out.

One function per format of mlx-lm's `tool_parsers` that can be enforced while decoding; what it writes is what that
parser reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlxd.engine import tool_notation
from mlxd.engine.answer.format import CallShape, format_of
from mlxd.engine.constraint import ToolConstraint
from mlxd.engine.lark import Lark, Unenforceable, call_schema, literal, loosened, parameters_of, regex
from mlxd.engine.tool_stream import JsonFormat, TaggedFormat

Functions = list[Mapping[str, Any]]
# Between calls and after the last one: a model that likes white space would fill the rest of its context with it.
_BLANK = "/\\s{1,8}/"


def shape_of(tokenizer: Any) -> CallShape | None:
    """Return how the model of mlx-lm's `TokenizerWrapper` calls; None where that is not known here."""
    own = format_of(tokenizer)
    if own is not None and own.shape is not None:
        return own.shape
    return FORMATS.get(getattr(tokenizer.tool_parser, "__module__", "").rpartition(".")[2])


def tool_lark(tokenizer: Any, constraint: ToolConstraint) -> str | None:
    """Return the grammar of *constraint* in llguidance's Lark for a model; None where its format is not enforceable.

    *tokenizer* is mlx-lm's `TokenizerWrapper`.

    Raises:
        Unenforceable: the format cannot write what a function's schema asks for, or cannot be held to it.
    """
    own, shape = format_of(tokenizer), shape_of(tokenizer)
    if shape is None:
        return None
    lark = Lark(tokenizer)
    opening = tokenizer.tool_call_start
    start, end = lark.tag(opening), lark.tag(tokenizer.tool_call_end or "")
    try:
        call = lark.rule(lark.choice(_call(shape, lark, function) for function in json.loads(constraint.functions)))
    except RecursionError:
        raise Unenforceable("it refers to itself, which this model's format of calls cannot write") from None
    if own is not None and own.frame is not None:
        document = None if constraint.is_required else _document(lark, constraint, own.free)
        return lark.text(own.frame(lark, document, call))
    if constraint.parallel and shape.separator is not None:
        call = f"{call} ({literal(shape.separator)} {call})*"
    rest = lark.rule(f"{lark.tag(shape.before)} {call} {lark.tag(shape.after)} {end}")
    alone = not constraint.parallel or shape.separator is not None
    blank = f"({_BLANK})?"
    more = lark.rule(blank if alone else f"({blank} {start} {rest})* {blank}")
    calls = f"{start} {rest} {more}"
    if constraint.is_required:
        return lark.text(calls)
    if constraint.schema is not None:
        return lark.text(f"{lark.json(json.loads(constraint.schema))} | {calls}")
    free = lark.terminal(f"/(?s:.*)/ & ~/(?s:.*){regex(opening)}(?s:.*)/")
    if lark.is_token(opening):
        return lark.text(f"{free} ({calls})?")
    # The tag begins with letters as the text before it does: one expression for both, which ends with them.
    letters = lark.letters(opening)
    begun = f"{lark.terminal(f'{free} {literal(letters)}')} {lark.tag(opening.removeprefix(letters))}"
    return lark.text(f"{free} | {begun} {rest} {more}")


def _document(lark: Lark, constraint: ToolConstraint, free: str) -> str:
    """Return what may stand in place of calls."""
    return lark.terminal(free) if constraint.schema is None else lark.json(json.loads(constraint.schema))


def _call(shape: CallShape, lark: Lark, function: Mapping[str, Any]) -> str:
    try:
        return shape.call(lark, function)
    except Unenforceable as error:
        raise Unenforceable(f"function {function['name']!r}: {error}") from None


def loosened_functions(functions: Functions) -> Functions:
    """Return *functions* with the schemas of those that are not strict cut down to names and types."""
    return [
        {**function, "parameters": loosened(function["parameters"])}
        if not function.get("strict") and function.get("parameters")
        else function
        for function in functions
    ]


def _json_tools(lark: Lark, function: Mapping[str, Any]) -> str:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""
    return f'"\\n" {lark.json(call_schema(function))} "\\n"'


def _mistral(lark: Lark, function: Mapping[str, Any]) -> str:
    """`[TOOL_CALLS]name[ARGS]{…}`."""
    return f"{literal(function['name'])} {lark.tag('[ARGS]')} {lark.json(parameters_of(function))}"


def _kimi_k2(lark: Lark, function: Mapping[str, Any]) -> str:
    """`<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>`."""
    begin, arguments, end = map(lark.tag, ("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"))
    name = literal(f"functions.{function['name']}:")
    return f"{begin} {name} /[0-9]/ {arguments} {lark.json(parameters_of(function))} {end}"


_NAMED = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_HEADED = r"([\w-]+)\s*\[ARGS\]\s*(?=\{)"
_NUMBERED = r"<\|tool_call_begin\|>\s*(?:functions\.)?([^<>]+?):\d+\s*<\|tool_call_argument_begin\|>\s*(?=\{)"
_INVOKED = r"<invoke name=[\"']?([^\"'<>]+)[\"']?>\s*(?=<parameter name=|</invoke>)"

FORMATS: Mapping[str, CallShape] = {
    "json_tools": CallShape(_json_tools, stream=JsonFormat(_NAMED)),
    "mistral": CallShape(_mistral, stream=JsonFormat(re.compile(r"\s*" + _HEADED), re.compile(_HEADED))),
    "kimi_k2": CallShape(_kimi_k2, "", stream=JsonFormat(re.compile(r"\s*" + _NUMBERED), re.compile(_NUMBERED))),
    "qwen3_coder": CallShape(
        tool_notation.qwen3_coder,
        stream=TaggedFormat(
            head=re.compile(r"\s*<function=\s*([^\s<>]+)>?\s*(?=<parameter=|</function>)"),
            opening="<parameter=",
            argument=re.compile(r"<parameter=\s*([^\s<>]+)(?:>|(?=[\s<]))"),
            end="</parameter>",
            last="</function>",
            is_line=True,
            call="<function={function}>\n<parameter={name}>{value}</parameter>\n</function>",
        ),
    ),
    "glm47": CallShape(
        tool_notation.glm47,
        stream=TaggedFormat(
            head=re.compile(r"\s*([^\s<>]+)\s*(?=<arg_key>)"),
            opening="<arg_key>",
            argument=re.compile(r"<arg_key>((?s:.*?))</arg_key>(?:\\n|\s)*<arg_value>"),
            end="</arg_value>",
            last=None,
            is_line=False,
            call="{function}<arg_key>{name}</arg_key><arg_value>{value}</arg_value>",
        ),
    ),
    "longcat": CallShape(tool_notation.longcat),
    "minimax_m2": CallShape(
        tool_notation.minimax_m2,
        "\n",
        "\n",
        "\n",
        TaggedFormat(
            head=re.compile(r"\s*" + _INVOKED),
            opening="<parameter name=",
            argument=re.compile(r"<parameter name=[\"']?([^\"'<>]+)[\"']?>"),
            end="</parameter>",
            last="</invoke>",
            is_line=False,
            call='<invoke name="{function}"><parameter name="{name}">{value}</parameter></invoke>',
            following=re.compile(_INVOKED),
        ),
    ),
    "minicpm5": CallShape(tool_notation.minicpm5),
    "muse_spark": CallShape(tool_notation.muse_spark, "\n", "\n", "\n"),
    "pythonic": CallShape(tool_notation.pythonic, ", ", "[", "]"),
    "function_gemma": CallShape(tool_notation.function_gemma),
    "gemma4": CallShape(tool_notation.gemma4),
}
