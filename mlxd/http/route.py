"""What a row of the table of routes is made of."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from aiohttp.typedefs import Handler

from mlxd.http.query import NoQuery


@dataclass(frozen=True, slots=True)
class Route:
    """One route: `path` in aiohttp's notation. The first line of the handler's docstring says what it does.

    Attributes:
        body: the structs that a POST is read into, each of them some of its fields.
        query: the struct of its parameters.
    """

    method: str
    path: str
    handler: Handler
    body: tuple[type[msgspec.Struct], ...] = ()
    query: type[msgspec.Struct] = NoQuery
