"""The responses that can be asked for again and gone on from, and the routes that do so.

They are in memory and bounded; the least recently used go first.

Owns them, and the list of streams of responses that run. Nothing is ever written to a disk.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import orjson
from aiohttp import web
from msgspec import Meta

from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE
from mlxd.http.query import NoQuery, read_query
from mlxd.http.schema import Text, refused
from mlxd.openai.response_item import Find, Item
from mlxd.protocol.errors import InUse, InvalidRequest, NotFound
from mlxd.protocol.settings import HttpSettings

_Key = tuple[str | None, str]  # owner and id
_DEFAULT_LIMIT = 20
_MAX_LIMIT = 100


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One response, with what it answers, as JSON: so their size is known."""

    id: str
    owner: str | None
    body: bytes
    input_items: bytes
    previous_id: str | None
    item_ids: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """What it counts for."""
        return len(self.body) + len(self.input_items) + sum(map(len, self.item_ids))

    def turn(self) -> list[Item]:
        """Return the items that it adds to its conversation: what was asked and what was answered."""
        items: list[Item] = orjson.loads(self.input_items) + orjson.loads(self.body)["output"]
        return items


@dataclass(slots=True)
class RunningResponse:
    """A response whose stream runs, from its first event on: no client knows its id before."""

    number: int  # of its request
    body: bytes | None  # None where it is not to be stored
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    final: bytes | None = None  # as it ended; None where its client went away


def owner_of(request: web.Request) -> str | None:
    """Return whose responses a request may know of: those of its API key, or of all who need none."""
    key = request[EXCHANGE].api_key
    return None if key is None else key.digest


class ResponseStore:
    """All stored and running responses; each is there for its owner alone."""

    def __init__(self, settings: Callable[[], HttpSettings]) -> None:
        """Take where the bounds are read from, at every use."""
        self._settings = settings
        self._stored: OrderedDict[_Key, StoredResponse] = OrderedDict()  # the least recently used first
        self._stored_bytes = 0
        self._holders: dict[_Key, _Key] = {}  # of each item, the latest response that has it
        self._running: dict[_Key, RunningResponse] = {}

    @property
    def is_open(self) -> bool:
        """Whether anything is stored at all."""
        return self._settings().stored_responses > 0

    def begin(self, owner: str | None, response_id: str, number: int, body: bytes | None) -> None:
        """Note that the stream of a response runs."""
        self._running[owner, response_id] = RunningResponse(number, body)

    def end(self, owner: str | None, response_id: str, final: bytes | None) -> None:
        """Note that it does not run any more; one that has ended, or has never begun, changes nothing."""
        running = self._running.pop((owner, response_id), None)
        if running is not None:
            running.final = final
            running.ended.set()

    def running(self, owner: str | None, response_id: str) -> RunningResponse | None:
        """Return it while it runs."""
        return self._running.get((owner, response_id))

    def add(self, response: StoredResponse) -> None:
        """Keep a response; others make room for it. One that is larger than all the room is not kept."""
        if response.size_bytes > self._settings().stored_responses_memory:
            return
        key = (response.owner, response.id)
        self._stored[key] = response
        self._stored_bytes += response.size_bytes
        self._holders |= {(response.owner, item_id): key for item_id in response.item_ids}
        self.trim()

    def get(self, owner: str | None, response_id: str) -> StoredResponse:
        """Return a response, which counts as its use.

        Raises:
            NotFound: it is not there.
        """
        self.trim()
        if (owner, response_id) not in self._stored:
            raise NotFound(
                f"there is no stored response {response_id[:100]!r}: it was never stored here, was deleted, or made "
                "room for later ones",
                param="response_id",
            )
        self._stored.move_to_end((owner, response_id))
        return self._stored[owner, response_id]

    def remove(self, owner: str | None, response_id: str) -> None:
        """Forget a response; raises as `get`."""
        self.get(owner, response_id)
        self._drop((owner, response_id))

    def conversation(self, owner: str | None, response_id: str) -> list[Item]:
        """Return all items from the first response of a conversation to this one, and count all of them as used.

        Raises:
            InvalidRequest: one of them is not there.
        """
        turns: list[list[Item]] = []
        next_id: str | None = response_id
        while next_id is not None:
            if (owner, next_id) in self._running:
                raise _not_found(response_id, "it is still being made")
            try:
                stored = self.get(owner, next_id)
            except NotFound:
                why = "it was never stored here, was deleted, or made room for later ones (http.stored_responses)"
                raise _not_found(
                    response_id, why if next_id == response_id else f"it goes on from {next_id!r}, and {why}"
                ) from None
            turns.append(stored.turn())
            next_id = stored.previous_id
        return [item for turn in reversed(turns) for item in turn]

    def finder(self, owner: str | None) -> Find:
        """Return what finds an item of a stored response by its id, each once: for the references of one input.

        An input of many short references to one long item would otherwise be larger than any memory.
        """
        self.trim()
        turns: dict[_Key, dict[str, Item]] = {}  # of the responses looked into so far

        def find(item_id: str) -> Item | None:
            key = self._holders.get((owner, item_id))
            if key is None or key not in self._stored:
                return None
            if key not in turns:
                turns[key] = {item["id"]: item for item in self._stored[key].turn()}
            return turns[key].pop(item_id, None)

        return find

    def trim(self) -> None:
        """Keep to the bounds. A change of settings calls it: what is over them shall not stay until the next use."""
        bounds = self._settings()
        while len(self._stored) > bounds.stored_responses or self._stored_bytes > bounds.stored_responses_memory:
            self._drop(next(iter(self._stored)))

    def _drop(self, key: _Key) -> None:
        response = self._stored.pop(key)
        self._stored_bytes -= response.size_bytes
        for item_id in response.item_ids:
            if self._holders.get((response.owner, item_id)) == key:
                del self._holders[response.owner, item_id]


def _not_found(response_id: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"previous_response_id {response_id[:100]!r} cannot be gone on from: {why}",
        param="previous_response_id",
        code="previous_response_not_found",
    )


RESPONSES = web.AppKey("mlxd_responses", ResponseStore)


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
