"""Formats of tool calls that are no JSON: arguments between tags of their own, and calls as of a programming language.

mlx-lm's parsers turn such a text into values by what the function's schema declares; each function here writes what its
parser turns into values of the schema. Pure.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any

from mlxd.engine.lark import (
    Lark,
    Property,
    Schema,
    Unenforceable,
    beyond,
    branches,
    is_free,
    json_value,
    literal,
    properties,
    raw_text,
    strings,
    with_definitions,
)

# Arguments between tags

Write = Callable[[Lark, Property], str]

_NULL = "(?i:null)"
_NULLS = "(?i:null|none|nil)"
# What some parsers take for a number, a truth value or nothing although a text is wanted: all but words.
_NO_WORD = ("([^a-zA-Z](?s:.*))?", "(?i:true|false|yes|no|on|off|null|none|nil|nan|inf|infinity)")
# The parser strips white space around a text.
_AROUND = ("[\\s\\x00-\\x20\\x7f-\\xa0](?s:.*)", "(?s:.*)[\\s\\x00-\\x20\\x7f-\\xa0]")
_NAME = re.compile(r"[^\s<>\"'=/]+")


def _arguments(lark: Lark, function: Mapping[str, Any], write: Write) -> str:
    items = []
    for item in properties(function.get("parameters") or {}):
        if not _NAME.fullmatch(item.name):
            raise Unenforceable(f"the property name {item.name!r}, which this model's format of calls cannot write")
        try:
            items.append((write(lark, item), item.is_required))
        except Unenforceable as error:
            raise Unenforceable(f"property {item.name!r}: {error}") from None
    return lark.members(items, "")


def _alternatives(lark: Lark, schema: Schema, write: Callable[[str, Schema], str | None]) -> str:
    """Return one of the types of *schema*; *write* returns None for one that the parser would misread."""
    written = []
    for kind, narrowed in branches(schema):
        body = write(kind, narrowed)
        if body is not None:
            written.append(body)
        elif not is_free(schema):
            raise Unenforceable(f"type {kind!r}, which this model's format of calls has no sure way to write here")
    return lark.choice(written)


def qwen3_coder(lark: Lark, function: Mapping[str, Any]) -> str:
    """`<function=name>`, `<parameter=a>`, a value on lines of its own, `</parameter>`, `</function>`."""
    end = "\n</parameter>\n"

    def write(lark: Lark, item: Property) -> str:
        declared = item.schema.get("type")

        def value(kind: str, schema: Schema) -> str | None:
            if kind == "null":
                return literal("null" + end)
            if kind == "string" and not isinstance(declared, list):
                unlike = (_NULL,) if declared else (_NULL, "\\s*[\\[{](?s:.*)")
                return raw_text(lark, schema, end, unlike=unlike, without=("</tool_call>",))
            if declared is None and kind not in {"object", "array"}:
                return None
            if isinstance(declared, list) and kind in {"boolean", "object", "array"}:
                return None
            return f"{json_value(lark, kind, schema)} {literal(end)}"

        start = literal(f"<parameter={item.name}>\n")
        return f"{start} {_alternatives(lark, item.schema, value)}"

    start, end_of_call = literal(f"\n<function={function['name']}>\n"), literal("</function>\n")
    return f"{start} {_arguments(lark, function, write)} {end_of_call}"


def glm47(lark: Lark, function: Mapping[str, Any]) -> str:
    """`name`, `<arg_key>a</arg_key><arg_value>…</arg_value>`."""
    return f"{literal(function['name'])} {_keyed(lark, function, 'arg', '</tool_call>')}"


def longcat(lark: Lark, function: Mapping[str, Any]) -> str:
    """As `glm47` with other tags; JSON where there may be no argument at all."""
    parameters = function.get("parameters") or {}
    if any(item.is_required for item in properties(parameters)):
        return f"{literal(function['name'])} {_keyed(lark, function, 'longcat_arg', '</longcat_tool_call>')}"
    # The parser finds no name where no argument follows it.
    arguments = lark.json(parameters) if parameters.get("properties") else literal("{}")
    start = literal(f'{{"name": "{function["name"]}", "arguments": ')
    return f'{start} {arguments} "}}"'


def _keyed(lark: Lark, function: Mapping[str, Any], prefix: str, close: str) -> str:
    end = f"</{prefix}_value>"

    def write(lark: Lark, item: Property) -> str:
        if item.schema.get("type") == "string":
            value = raw_text(lark, item.schema, end, unlike=_AROUND, without=(close,))
        else:
            value = f"{json_value(lark, str(item.schema.get('type')), item.schema)} {lark.tag(end)}"
        start = lark.tag(f"<{prefix}_key>{item.name}</{prefix}_key><{prefix}_value>")
        return f"{start} {value}"

    return _arguments(lark, function, write)


def minimax_m2(lark: Lark, function: Mapping[str, Any]) -> str:
    """`<invoke name="f">`, `<parameter name="a">…</parameter>`, `</invoke>`."""

    def write(lark: Lark, item: Property) -> str:
        value = _converted(lark, item, "</parameter>\n", ("</invoke>", "</minimax:tool_call>"))
        start = literal(f'<parameter name="{item.name}">')
        return f"{start} {value}"

    arguments = _arguments(lark, function, write)
    start = literal(f'<invoke name="{function["name"]}">\n')
    return f"{start} {arguments} {literal('</invoke>')}"


def minicpm5(lark: Lark, function: Mapping[str, Any]) -> str:
    """`<function name="f"><param name="a">…</param></function>`."""

    def write(lark: Lark, item: Property) -> str:
        value = _converted(lark, item, "</param>", ("<", "&", "\n"))
        start = literal(f'<param name="{item.name}">')
        return f"{start} {value}"

    start = literal(f'"{function["name"]}">')
    return f"{start} {_arguments(lark, function, write)}"


def _converted(lark: Lark, item: Property, end: str, without: tuple[str, ...]) -> str:
    """Return a value that is converted to the first of its declared types that fits it."""
    if "$ref" in str(item.schema.get("anyOf", "")) or "$ref" in item.schema:
        raise Unenforceable("'$ref', which this model's format of calls reads as text")
    # What declares no type at all is read as text.
    kinds = ["string"] if is_free(item.schema) else [kind for kind, _ in branches(item.schema)]

    def value(kind: str, schema: Schema) -> str | None:
        if kind not in kinds:
            return None
        if kind == "string":
            plain = set(kinds) <= {"string", "null"}
            unlike = (_NULLS if "null" in kinds else _NULL,) if plain else _NO_WORD
            return raw_text(lark, schema, end, unlike=(*unlike, *_AROUND), without=without)
        if kind == "null":
            return literal("null" + end)
        return f"{json_value(lark, kind, schema)} {literal(end)}"

    return _alternatives(lark, item.schema, value)


def muse_spark(lark: Lark, function: Mapping[str, Any]) -> str:
    """`<atem:invoke name="f">`, `<atem:parameter name="a">…</atem:parameter>`, `</atem:invoke>`."""
    end = "</atem:parameter>\n"

    def write(lark: Lark, item: Property) -> str:
        quoted = f"{lark.json(item.schema)} {literal(end)}"
        is_plain = item.schema.get("type") == "string" and strings(item.schema) is None
        if is_plain and not set(item.schema) & {"pattern", "format"}:
            # A text that is JSON by itself would be read as such: quotes are for those.
            unlike = (*_NO_WORD, *_AROUND)
            raw = raw_text(lark, item.schema, end, unlike=unlike, without=("</atem:invoke>", "</atem:function_calls>"))
            quoted = lark.choice([raw, quoted])
        start = literal(f'<atem:parameter name="{item.name}">')
        return f"{start} {quoted}"

    arguments = _arguments(lark, function, write)
    start = literal(f'<atem:invoke name="{function["name"]}">\n')
    return f"{start} {arguments} {literal('</atem:invoke>')}"


# Calls of a programming language

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
