"""Formats of tool calls that look like the calls of a programming language. Pure.

Each function writes what mlx-lm's parser of the format turns into values of the function's schema.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Mapping
from typing import Any

from mlxd.engine.lark import Lark, Unenforceable, literal
from mlxd.engine.tool_value import (
    Property,
    Schema,
    beyond,
    branches,
    is_free,
    json_value,
    properties,
    raw_text,
    with_definitions,
)

_WORD = re.compile(r"\w+", re.ASCII)
_ESCAPE = "<escape>"
_QUOTE = '<|"|>'
_OF_ARRAY = frozenset({"type", "items", "minItems", "maxItems"})


def pythonic(lark: Lark, function: Mapping[str, Any]) -> str:
    """`f(a="x", b=2)`, in a list; the values are Python, of which JSON is a part but for its three words."""
    _check_identifier(function["name"].split("."), "function")
    items = []
    for item in properties(function.get("parameters") or {}):
        _check_identifier([item.name], "property")
        items.append((f"{literal(item.name + '=')} {lark.json(item.schema)}", item.is_required))
    # The tags of the list are those of the calls.
    return f'{literal(function["name"] + "(")} {lark.members(items, literal(", "))} ")"'


def function_gemma(lark: Lark, function: Mapping[str, Any]) -> str:
    """`call:f{a:<escape>x<escape>,b:2}`: numbers, truth values and texts without a brace."""

    def value(kind: str, schema: Schema) -> str | None:
        if kind == "string":
            return f"{lark.tag(_ESCAPE)} {raw_text(lark, schema, _ESCAPE, without=('}',))}"
        return None if kind in {"object", "array"} else json_value(lark, kind, schema)

    return _braced(lark, function, value)


def gemma4(lark: Lark, function: Mapping[str, Any]) -> str:
    """`call:f{a:<|"|>x<|"|>,b:[{c:2}]}`."""

    def value(kind: str, schema: Schema) -> str | None:
        if kind == "string":
            return f"{lark.tag(_QUOTE)} {raw_text(lark, schema, _QUOTE, without=(chr(0), '<tool_call|>'))}"
        if kind == "array":
            return _array(lark, schema, value)
        if kind == "object":
            declared = properties(schema)
            if not declared:
                return None
            inner = lark.members([(_member(lark, item, value), item.is_required) for item in declared], '","')
            return f'"{{" {inner} "}}"'
        return json_value(lark, kind, schema)

    return _braced(lark, function, value)


def _braced(lark: Lark, function: Mapping[str, Any], value: Any) -> str:
    items = [(_member(lark, item, value), item.is_required) for item in properties(function.get("parameters") or {})]
    name = function["name"]
    if "." in name or "-" in name:
        raise Unenforceable(f"the function name {name!r}: this model's format of calls takes letters, digits and _")
    return f'{literal(f"call:{name}{{")} {lark.members(items, literal(","))} "}}"'


def _member(lark: Lark, item: Property, value: Any) -> str:
    if not _WORD.fullmatch(item.name):
        raise Unenforceable(f"the property name {item.name!r}, which this model's format of calls cannot write")
    try:
        return f"{literal(item.name + ':')} {_one_of(lark, item.schema, value)}"
    except Unenforceable as error:
        raise Unenforceable(f"property {item.name!r}: {error}") from None


def _one_of(lark: Lark, schema: Schema, value: Any) -> str:
    written = []
    for kind, narrowed in branches(schema):
        body = value(kind, narrowed)
        if body is not None:
            written.append(body)
        elif not is_free(schema):
            raise Unenforceable(f"type {kind!r}, which this model's format of calls cannot be held to")
    return lark.choice(written)


def _array(lark: Lark, schema: Schema, value: Any) -> str | None:
    extra = beyond(schema, _OF_ARRAY)
    if extra:
        raise Unenforceable(f"{min(extra)!r} of an array")
    if not isinstance(schema.get("items"), dict):
        return None
    item = lark.rule(_one_of(lark, with_definitions(schema["items"], schema), value))
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    times = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
    if most == 0:
        return '"[]"'
    filled = f'"[" {item} ("," {item}){times} "]"'
    return lark.rule(filled if least > 0 else f'"[]" | {filled}')


def _check_identifier(parts: list[str], what: str) -> None:
    for part in parts:
        if not part.isidentifier() or keyword.iskeyword(part):
            raise Unenforceable(f"the {what} name {json.dumps(part)}: this model writes calls as Python does")
