"""How the formats of tool calls write one argument: as raw text or as JSON, by what their parsers read back. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from mlxd.engine.lark import Lark, Unenforceable, regex

Schema = Mapping[str, Any]
TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id"}
)
# References lead to the root of a schema.
DEFINITIONS = ("$defs", "definitions")
_OF_TYPE = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
_OF_TEXT = frozenset({"type", "enum", "const", "minLength", "maxLength"})
# Without exponents, and short of what a float cannot hold: some parsers fail on infinity.
_INTEGER = "/-?(0|[1-9][0-9]{0,14})/"
_NUMBER = "/-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,15})?/"


class Property(NamedTuple):
    """One argument of a function."""

    name: str
    schema: Schema
    is_required: bool


def parameters_of(function: Schema) -> dict[str, Any]:
    """Return the schema of a function's arguments."""
    parameters = function.get("parameters")
    return dict(parameters) if parameters else {"type": "object", "properties": {}, "additionalProperties": False}


def call_schema(function: Schema, *, name: str = "name", arguments: str = "arguments") -> dict[str, Any]:
    """Return the schema of a call as a JSON object with a name and arguments, which may be called otherwise."""
    parameters = parameters_of(function)
    definitions = {key: parameters.pop(key) for key in DEFINITIONS if key in parameters}
    return {
        "type": "object",
        "properties": {name: {"const": function["name"]}, arguments: parameters},
        "required": [name, arguments],
        "additionalProperties": False,
        **definitions,
    }


def properties(parameters: Schema) -> list[Property]:
    """Return the arguments that a function's schema declares, each with the definitions that it may refer to.

    Raises:
        Unenforceable: the schema says more of them than their names, schemas, and which are required.
    """
    extra = beyond(parameters, {"type", "properties", "required", "additionalProperties"})
    if extra or parameters.get("type", "object") != "object":
        raise Unenforceable(f"{min(extra)!r} beside the properties" if extra else "parameters are no object")
    declared = parameters.get("properties") or {}
    required = parameters.get("required") or []
    lacking = [name for name in required if name not in declared]
    if lacking:
        raise Unenforceable(f"'required' names {lacking[0]!r}, which 'properties' lacks")
    found = []
    for name, schema in declared.items():
        schema = {} if schema is True else schema  # noqa: PLW2901  (JSON Schema's other spelling of "anything")
        if not isinstance(schema, dict):
            raise Unenforceable(f"the schema of {name!r} is {schema!r}")
        found.append(Property(name, with_definitions(schema, parameters), name in required))
    return found


def loosened(parameters: Schema) -> dict[str, Any]:
    """Return *parameters* with no more of each argument than its type: what every format can be held to."""
    declared = parameters.get("properties")
    loose: dict[str, Any] = {"type": "object"}
    if isinstance(declared, dict) and declared:
        loose["properties"] = {name: _type_only(schema) for name, schema in declared.items()}
        loose["required"] = [name for name in parameters.get("required") or [] if name in declared]
    return loose


def _type_only(schema: Any) -> dict[str, Any]:
    kind = schema.get("type") if isinstance(schema, dict) else None
    return {"type": kind} if kind in TYPES else {}


def branches(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Return the types that *schema* allows, each with the schema of its values; a reference is followed.

    Raises:
        Unenforceable: it is put together in a way that is not understood.
    """
    schema = _followed(schema)
    alternatives = schema.get("anyOf", schema.get("oneOf"))
    if alternatives is not None:
        extra = beyond(schema, {"anyOf", "oneOf"})
        if extra:
            raise Unenforceable(f"{min(extra)!r} beside 'anyOf'")
        for alternative in alternatives:
            yield from branches(with_definitions(alternative, schema))
        return
    declared = schema.get("type")
    if declared is None and ("enum" in schema or "const" in schema):
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        declared = list(dict.fromkeys(_OF_TYPE.get(type(value), "object") for value in values))
    for kind in TYPES if declared is None else [declared] if isinstance(declared, str) else declared:
        if kind not in TYPES:
            raise Unenforceable(f"unknown type {kind!r}")
        yield kind, _only(schema, kind)


def is_free(schema: Schema) -> bool:
    """Whether *schema* allows any value."""
    return not beyond(schema)


def with_definitions(schema: Schema, root: Schema) -> dict[str, Any]:
    """Return *schema* with the definitions of *root*, which it may refer to."""
    return {**schema, **{key: root[key] for key in DEFINITIONS if key in root}}


def beyond(schema: Schema, known: AbstractSet[str] = frozenset()) -> set[str]:
    """Return the keywords of *schema* that bind a value and are none of *known*."""
    return set(schema) - _ANNOTATIONS - set(DEFINITIONS) - known


def _followed(schema: Schema) -> Schema:
    seen = set()
    while "$ref" in schema:
        path = schema["$ref"]
        _, _, rest = path.partition("#/")
        section, _, name = rest.partition("/")
        target = schema.get(section, {}).get(name) if section in DEFINITIONS else None
        if path in seen or not isinstance(target, dict):
            raise Unenforceable(f"'$ref' to {path!r}")
        seen.add(path)
        schema = with_definitions(target, schema)
    return schema


def _only(schema: Schema, kind: str) -> Schema:
    """Return *schema* for values of one type."""
    narrowed = {**schema, "type": kind}
    if "enum" in schema:
        narrowed["enum"] = [v for v in schema["enum"] if kind in {"object", "array"} or _OF_TYPE.get(type(v)) == kind]
    return narrowed


def json_value(lark: Lark, kind: str, schema: Schema) -> str:
    """Return a value of a type that is no text, as JSON."""
    bare = not beyond(schema, {"type"})
    if bare and kind == "integer":
        return lark.terminal(_INTEGER)
    if bare and kind == "number":
        return lark.terminal(_NUMBER)
    return lark.json(schema)


def strings(schema: Schema) -> list[str] | None:
    """Return the texts that *schema* lists; None where it lists none."""
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else None


def raw_text(
    lark: Lark, schema: Schema, end: str, *, unlike: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> str:
    """Return a raw text of *schema*, and *end* after it.

    Args:
        lark: takes the rules.
        schema: of a string.
        end: the tag after it.
        unlike: regular expressions of whole texts that the parser takes for something else.
        without: texts that may not stand in it.

    Raises:
        Unenforceable: the schema has a keyword that raw text cannot be held to.
    """
    extra = beyond(schema, _OF_TEXT)
    if extra:
        raise Unenforceable(f"{min(extra)!r} of a string, which this model writes without quotes")
    listed = strings(schema)
    if listed is None:
        least, most = schema.get("minLength", 0), schema.get("maxLength", "")
        body = "/(?s:.*)/" if not least and most == "" else f"/(?s:.{{{least},{most}}})/"
    else:
        for text in listed:
            if end.strip() in text or any(part in text for part in without):
                raise Unenforceable(f"the value {text!r}, which holds a tag")
        body = f"/{'|'.join(map(_escaped, listed))}/"
    return lark.until(" & ".join([body, *(f"~/{pattern}/" for pattern in unlike)]), end, without=without)


def _escaped(text: str) -> str:
    return f"({regex(text)})"
