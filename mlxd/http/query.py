"""Reads the query of an address into a struct, as bodies are read; words become numbers and truth values first."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import inspect

from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE
from mlxd.http.omissions import Omissions
from mlxd.http.schema import fields_of, read

_S = TypeVar("_S", bound=msgspec.Struct)
_WORDS = {"true": True, "false": False}


class NoQuery(msgspec.Struct):
    """A route that takes no parameters."""


def read_query(request: web.Request, shape: type[_S]) -> _S:
    """Return the parameters of a request; a list is a name given several times, as `name[]` too.

    Raises:
        UnsupportedParameter, InvalidRequest: as `read` of a body.
    """
    given: dict[str, Any] = {}
    fields = fields_of(shape)
    for key, text in request.query.items():
        name = key.removesuffix("[]")
        kind = fields[name].members[0] if name in fields else None
        if isinstance(kind, inspect.ListType):
            given.setdefault(name, []).append(text)
        else:
            given[name] = text if isinstance(kind, inspect.StrType | inspect.LiteralType) else _value(text)
    omissions = Omissions("", rejects_fields=request.app[CONTEXT].store.current.http.unknown_fields == "reject")
    query = read(shape, given, omissions)
    request[EXCHANGE].ignored = omissions.names
    return query


def _value(text: str) -> Any:
    """Return the truth value or the number that *text* is; *text* itself where it is none."""
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    return _WORDS.get(text, text)
