"""GET and DELETE /v1/responses/{id}, its input items, and the cancel of one that runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import orjson
from aiohttp import web
from msgspec import Meta

from mlxd.http.context import CONTEXT
from mlxd.http.query import NoQuery, read_query
from mlxd.http.schema import Text, refused
from mlxd.openai.response_item import Item
from mlxd.openai.response_store import RESPONSES, ResponseStore, owner_of
from mlxd.protocol.errors import InUse, InvalidRequest

_DEFAULT_LIMIT = 20
_MAX_LIMIT = 100


class ResponseQuery(msgspec.Struct, kw_only=True):
    """The query of a stored response. Streams are not kept: it is given whole."""

    include: list[str] = []
    include_obfuscation: Annotated[Any, refused(False)] = None
    starting_after: Annotated[Any, refused()] = None
    stream: Annotated[Any, refused(False)] = None


class ItemsQuery(msgspec.Struct, kw_only=True):
    """The query of the items that a stored response answers."""

    after: Text | None = None
    include: list[str] = []
    limit: Annotated[int, Meta(ge=1, le=_MAX_LIMIT)] = _DEFAULT_LIMIT
    order: Literal["asc", "desc"] = "desc"


async def get_response(request: web.Request) -> web.Response:
    """Return a stored response, as far as it is."""
    read_query(request, ResponseQuery)
    store, owner, response_id = _asked(request)
    running = store.running(owner, response_id)
    if running is not None and running.body is not None:
        return _json(running.body)
    return _json(store.get(owner, response_id).body)


async def delete_response(request: web.Request) -> web.Response:
    """Forget a stored response.

    Raises:
        InUse: it is still being made.
    """
    read_query(request, NoQuery)
    store, owner, response_id = _asked(request)
    if store.running(owner, response_id) is not None:
        hint = f"POST /v1/responses/{response_id}/cancel"
        raise InUse(f"the response {response_id!r} is still being made", hint=hint, param="response_id")
    store.remove(owner, response_id)
    return _json(orjson.dumps({"id": response_id, "object": "response", "deleted": True}))


async def cancel_response(request: web.Request) -> web.Response:
    """End a response that is being made, and return it as it is then.

    Raises:
        InvalidRequest: it has ended already.
    """
    read_query(request, NoQuery)
    store, owner, response_id = _asked(request)
    running = store.running(owner, response_id)
    if running is None:
        status = orjson.loads(store.get(owner, response_id).body)["status"]
        raise InvalidRequest(
            f"the response {response_id!r} cannot be cancelled: its status is {status!r}", param="response_id"
        )
    request.app[CONTEXT].requests.cancel_number(running.number, "the response was cancelled")
    await running.ended.wait()
    if running.final is None:
        raise InvalidRequest(f"the client of the response {response_id!r} has gone just now", param="response_id")
    return _json(running.final)


async def get_input_items(request: web.Request) -> web.Response:
    """List what a stored response answers, without the responses before it; the newest first, unless asked otherwise.

    Raises:
        InvalidRequest: a page that cannot be.
    """
    query = read_query(request, ItemsQuery)
    store, owner, response_id = _asked(request)
    items: list[Item] = orjson.loads(store.get(owner, response_id).input_items)
    if query.order == "desc":
        items.reverse()
    after = query.after
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequest(f"after names no item of this response: {after[:100]!r}", param="after")
        items = items[places[0] + 1 :]
    page = items[: query.limit]
    ends: dict[str, Any] = {
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(page) < len(items),
    }
    return _json(orjson.dumps({"object": "list", "data": page, **ends}))


def _asked(request: web.Request) -> tuple[ResponseStore, str | None, str]:
    """Return the store, whose responses are asked for, and the id."""
    return request.app[RESPONSES], owner_of(request), request.match_info["id"]


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
