"""`audit.*`: rows of the request log in pages, and sums of them."""

from __future__ import annotations

import dataclasses

from mlxd.audit import ChangeRecord, Filter, RequestRecord
from mlxd.audit.record import Record
from mlxd.control.context import ControlContext, Reply, Request, handles
from mlxd.control.page import make_page
from mlxd.protocol.errors import InvalidRequest

# A row has about half a kilobyte, in the worst case some ten.
_MOST_ROWS = 1000
_ROWS = 100
_FILTERS = frozenset(item.name for item in dataclasses.fields(Filter))


@handles("audit.list")
async def list_requests(context: ControlContext, request: Request) -> Reply:
    """Return ended requests, the newest first."""
    return await _page(context, request, RequestRecord)


@handles("audit.changes")
async def list_changes(context: ControlContext, request: Request) -> Reply:
    """Return changes, the newest first."""
    return await _page(context, request, ChangeRecord)


@handles("audit.stats")
async def stats(context: ControlContext, request: Request) -> Reply:
    """Return sums and percentiles per model and route."""
    return {**await context.audit.read_stats(_filter(request)), "log": context.audit.status()}


async def _page(context: ControlContext, request: Request, kind: type[Record]) -> Reply:
    limit = request.params.get("limit", _ROWS)
    if not 1 <= limit <= _MOST_ROWS:
        raise InvalidRequest(f"limit must be from 1 to {_MOST_ROWS}", param="limit")
    page = await context.audit.read_page(
        kind,
        _filter(request),
        limit=limit,
        cursor=request.params.get("cursor"),
        oldest_first=bool(request.params.get("oldest_first", False)),
    )

    def place(index: int) -> str:
        return f"{page.rows[index]['started_ms']}-{page.rows[index]['id']}"

    shown = make_page({}, kind.table, page.rows, place)
    # Where not all fit into a reply, the next page begins with the first that did not.
    return shown if shown["next"] is not None else {**shown, "next": page.next}


def _filter(request: Request) -> Filter:
    return Filter(**{name: value for name, value in request.params.items() if name in _FILTERS})
