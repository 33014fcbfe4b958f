"""What a row of the table of routes is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp.typedefs import Handler

from mlxd.http.table import Table


@dataclass(frozen=True, slots=True)
class Body:
    """What a POST takes: the table that reads it, and the fields without which it is refused."""

    table: Table
    required: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """One route: `path` in aiohttp's notation. The first line of the handler's docstring says what it does."""

    method: str
    path: str
    handler: Handler
    body: Body | None = None
    query: Table = field(default_factory=dict)
