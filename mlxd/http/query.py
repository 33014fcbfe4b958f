"""The query of an address, read by a table as bodies are; its words become what they stand for first."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mlxd.http import field
from mlxd.http.context import CONTEXT, EXCHANGE
from mlxd.http.omissions import Omissions
from mlxd.http.table import Habit, Refused, Table, Treatment, Works, read

_WORDS = {"true": True, "false": False}


def read_query(request: web.Request, table: Table) -> dict[str, Any]:
    """Return the checked values of the parameters that work; a list is a name given several times, as `name[]` too.

    Raises:
        UnsupportedParameter, InvalidRequest: as `read` of a body.
    """
    given: dict[str, Any] = {}
    for key, text in request.query.items():
        name = key.removesuffix("[]")
        kind = _kind(table.get(name, Habit()))
        if kind == "array":
            given.setdefault(name, []).append(text)
        else:
            given[name] = text if kind == "string" else _value(text)
    omitted = Omissions("", rejects_fields=request.app[CONTEXT].store.current.http.unknown_fields == "reject")
    values = read(table, given, omitted)
    request[EXCHANGE].ignored = omitted.names
    return values


def parameters(table: Table) -> list[dict[str, Any]]:
    """Return the parameters of *table* as OpenAPI describes them; one that can only be left out is not there."""
    described = []
    for name, treatment in table.items():
        if isinstance(treatment, Works) and isinstance(treatment.check, field.Described):
            shown: dict[str, Any] = dict(treatment.check.schema)
        elif isinstance(treatment, Refused) and treatment.neutral:
            shown = {"enum": list(treatment.neutral)}
        else:
            continue
        described.append({"name": name, "in": "query", "required": False, "schema": shown})
    return described


def _kind(treatment: Treatment) -> Any:
    if isinstance(treatment, Works) and isinstance(treatment.check, field.Described):
        return treatment.check.schema.get("type", "string")
    return None


def _value(text: str) -> Any:
    """Return the truth value or the number that *text* is; *text* itself where it is none."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    return _WORDS.get(text, text)
