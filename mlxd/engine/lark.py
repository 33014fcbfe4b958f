"""Writes grammars in llguidance's dialect of Lark: rules, tags and values of a JSON Schema. Pure: text in, text out.

How an argument of a call is written, as raw text or as JSON, follows from what the parsers of the formats read back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

# A model that may choose writes white space without end.
_COMPACT = {"x-guidance": {"whitespace_flexible": False}}
EMPTY = '""'
_SIGNS = re.compile(r"[!#$%&()*+,\-./;?@\[\\\]^`{|}~]")  # those that may be escaped


class Unenforceable(ValueError):
    """What a grammar cannot bind an answer to; the message says what and why."""


class Lark:
    """Collects rules. What its methods return stands in the body of another rule."""

    def __init__(self, tokenizer: Any) -> None:
        """Take mlx-lm's `TokenizerWrapper`: a tag that is one token in it is one in the grammar."""
        self._added: dict[str, int] = dict(tokenizer.get_added_vocab())
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._rules: list[str] = []

    def text(self, start: str) -> str:
        """Return the grammar whose first rule has the body *start*."""
        return "\n".join([f"start: {start}", *self._rules])

    def rule(self, body: str) -> str:
        """Return the name of a rule."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def terminal(self, body: str) -> str:
        """Return the name of a terminal: one regular expression, of literals, expressions and other terminals."""
        name = f"T{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return a document of *schema*."""
        return self.rule(f"%json {json.dumps({**schema, **_COMPACT})}")

    def choice(self, bodies: Iterable[str]) -> str:
        """Return one of *bodies*."""
        return f"({' | '.join(bodies)})"

    def tag(self, text: str) -> str:
        """Return *text*, the tokens in it that were added for tags as tokens."""
        parts = [part for part in (self._split.split(text) if self._split else [text]) if part]
        return " ".join(f"<[{self._added[part]}]>" if part in self._added else literal(part) for part in parts) or EMPTY

    def is_token(self, text: str) -> bool:
        """Whether *text* begins with a token that was added for a tag; free text never holds one."""
        return any(text.startswith(token) for token in self._added)

    def letters(self, text: str) -> str:
        """Return the beginning of *text* up to the first token in it that was added for a tag."""
        return self._split.split(text, maxsplit=1)[0] if self._split else text

    def until(self, body: str, end: str, *, without: Sequence[str] = ()) -> str:
        """Return a text of the regular expression *body* that holds neither *end* nor *without*, and *end* after it."""
        # The white space around a tag may stand in the text too.
        free = " & ".join([body, *(f"~/(?s:.*){regex(text)}(?s:.*)/" for text in (end.strip(), *without) if text)])
        before, _, after = end.partition(end.strip())
        if self.is_token(end.strip()):
            terminal = self.terminal(f"({free}) {literal(before)}" if before else free)
            return f"{terminal} {self.tag(end.strip())}" + (f" {literal(after)}" if after else "")
        return self.terminal(f"({free}) {literal(end)}")

    def members(self, items: Sequence[tuple[str, bool]], separator: str) -> str:
        """Return the bodies in *items* in their order, *separator* between them; False: it may be left out."""
        following = first = EMPTY
        for body, is_required in reversed(items):
            here = f"{body} {following}"
            apart = f"{separator} {here}" if separator else here
            following, first = (
                self.rule(apart if is_required else f"{apart} | {following}"),
                self.rule(here if is_required else f"{here} | {first}"),
            )
        return first


def literal(text: str) -> str:
    """Return *text* as a literal."""
    return json.dumps(text)


def regex(text: str) -> str:
    """Return *text* as the part of a regular expression that matches it."""
    return _SIGNS.sub(r"\\\g<0>", text).replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


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
