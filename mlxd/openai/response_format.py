"""`response_format`: text, any JSON object, or a document of a schema."""

from __future__ import annotations

import re
from typing import Any

from mlxd.engine.constraint import JsonConstraint
from mlxd.http import field
from mlxd.http.omissions import Omissions

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KNOWN = {
    "text": frozenset({"type"}),
    "json_object": frozenset({"type"}),
    "json_schema": frozenset({"type", "json_schema"}),
}
_SCHEMA_KNOWN = frozenset({"name", "description", "schema", "strict"})


def parse_response_format(value: Any, omitted: Omissions) -> JsonConstraint | None:
    """Return what binds the answer; None for plain text. A schema is enforced, be it `strict` or not.

    Raises:
        InvalidRequest: another type, or a malformed schema. What a schema asks for is checked when the model is known.
    """
    kind = field.text("response_format.type", field.mapping("response_format", value).get("type"))
    if kind not in _KNOWN:
        raise field.wrong("response_format.type", kind, "'text', 'json_object' or 'json_schema'")
    omitted.note("response_format", value, _KNOWN[kind])
    if kind == "text":
        return None
    if kind == "json_object":
        return JsonConstraint()
    return parse_schema("response_format.json_schema", value.get("json_schema"), omitted)


def parse_schema(path: str, value: Any, omitted: Omissions) -> JsonConstraint:
    """Return the constraint of an object with `name`, `schema` and `strict`."""
    omitted.note(path, field.mapping(path, value), _SCHEMA_KNOWN)
    name = value.get("name")  # for logs of OpenAI's; local servers do not ask for it
    if name is not None and not _NAME.fullmatch(field.text(f"{path}.name", name)):
        raise field.wrong(f"{path}.name", name, "1 to 64 letters, digits, underscores and dashes")
    if value.get("strict") is not None:
        field.boolean(f"{path}.strict", value["strict"])
    schema = value.get("schema")
    if schema is None:
        return JsonConstraint()
    return JsonConstraint(field.schema(f"{path}.schema", schema))
