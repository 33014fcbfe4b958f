"""A table of body fields: what each does here. A body is read by such a table, and nothing in it is dropped in silence.

A field works; or is refused at any value that would change the answer; or is left out visibly, as is a field that is in
no table (`mlxd/http/omissions.py`); or changes nothing anywhere and is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import as_json


@dataclass(frozen=True, slots=True)
class Works:
    """Acted upon; the check returns the typed value.

    Attributes:
        check: of its value.
        mapped: which values it takes for others, in words for the table of fields; empty where it takes each as it is.
    """

    check: field.Check
    mapped: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Documented and not acted upon: accepted only at values that change nothing. Null always is one."""

    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Omitted:
    """Documented, and the rest of a request makes sense without it: left out visibly, but for *neutral* values."""

    neutral: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Habit:
    """Changes nothing on a local server, and SDKs and apps send it by habit: accepted at any value."""


Treatment = Works | Refused | Omitted | Habit
Table = Mapping[str, Treatment]


def read(table: Table, body: Mapping[str, Any], omitted: Omissions, path: str = "") -> dict[str, Any]:
    """Return the checked values of the fields that work and are not null.

    Raises:
        UnsupportedParameter: a documented field at a value that this server does not act upon.
        InvalidRequest: a value of the wrong type or out of its bounds, or an omission that is refused.
    """
    omitted.note(path, body, table)
    values = {}
    for key, value in body.items():
        treatment = table.get(key)
        if value is None or treatment is None or isinstance(treatment, Habit):
            continue
        name = f"{path}.{key}" if path else key
        if isinstance(treatment, Works):
            values[key] = treatment.check(name, value)
        elif any(type(value) is type(neutral) and value == neutral for neutral in treatment.neutral):
            continue
        elif isinstance(treatment, Omitted):
            omitted.leave_out(name)
        else:
            raise UnsupportedParameter(f"{name} is not supported; {_remedy(treatment)}", param=name)
    return values


def _remedy(refused: Refused) -> str:
    if not refused.neutral:
        return "leave it out"
    return "leave it out or send " + " or ".join(as_json(value) for value in refused.neutral)


def schema(table: Table, required: Sequence[str]) -> dict[str, Any]:
    """Return the JSON Schema of the bodies that *table* reads; null is as good as nothing but for *required* fields."""
    properties = {name: _field_schema(treatment, is_required=name in required) for name, treatment in table.items()}
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": True}


def _field_schema(treatment: Treatment, *, is_required: bool) -> dict[str, Any]:
    match treatment:
        case Works(field.Described() as check):
            return (
                dict(check.schema) if is_required or not check.schema else {"anyOf": [check.schema, {"type": "null"}]}
            )
        case Refused():
            neutral = [None, *treatment.neutral]
            return {"enum": neutral, "description": "Not acted upon: a value that changes nothing, or none."}
        case Omitted():
            return {"description": "Left out and named in the header x-mlxd-ignored-fields."}
        case Habit():
            return {"description": "Accepted at any value; changes nothing here."}
        case _:
            return {}
