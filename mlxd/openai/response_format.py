"""`response_format` of chats, `text.format` of responses: text, any JSON object, or a document of a schema."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec

from mlxd.engine.constraint import JsonConstraint
from mlxd.http.omissions import Omissions
from mlxd.http.schema import Habit, Object, Schema, Text, checked, dumped, read, read_by, wrong

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = Literal["text", "json_object", "json_schema"]


def _name(path: str, value: Any) -> Any:
    if not _NAME.fullmatch(checked(Text, path, value)):
        raise wrong(path, value, "1 to 64 letters, digits, underscores and dashes")
    return value


class _Plain(msgspec.Struct, kw_only=True):
    type: str


class _Schema(msgspec.Struct, kw_only=True):
    # For logs of OpenAI's; local servers do not ask for it.
    name: Annotated[Any, read_by(_name, "a text that is not empty", type="string")] = None
    description: Habit = None
    schema: Schema = None
    strict: bool = True  # enforced anyway


class _ChatFormat(_Plain, kw_only=True):
    json_schema: _Schema


class _TextFormat(_Schema, kw_only=True):
    type: str


def parse_response_format(given: Object, omissions: Omissions) -> JsonConstraint | None:
    """Return what binds the answer of a chat; None for plain text. A schema is enforced, be it `strict` or not.

    Raises:
        InvalidRequest: another type, or a malformed schema. What a schema asks for is checked when the model is known.
    """
    return _parse("response_format", given, omissions, _ChatFormat)


def parse_text_format(given: Object, omissions: Omissions) -> JsonConstraint | None:
    """Return what binds a response; raises as `parse_response_format`."""
    return _parse("text.format", given, omissions, _TextFormat)


def _parse(
    path: str, given: Object, omissions: Omissions, shape: type[_ChatFormat | _TextFormat]
) -> JsonConstraint | None:
    kind = checked(_KINDS, f"{path}.type", given.get("type"))
    if kind != "json_schema":
        read(_Plain, given, omissions, path)
        return None if kind == "text" else JsonConstraint(field=path)
    asked = read(shape, given, omissions, path)
    schema = asked.json_schema.schema if isinstance(asked, _ChatFormat) else asked.schema
    return JsonConstraint(None if schema is None else dumped(path, schema), path)
