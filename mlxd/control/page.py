"""Pages: how a list that can grow is answered in replies that stay within the bound of a frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack

from mlxd.control.context import Reply
from mlxd.protocol import framing
from mlxd.protocol.errors import InvalidRequest

# Half of a frame: what else a reply holds, and one item more, fit into the other half.
MAX_PAGE_BYTES = framing.MAX_REPLY_BYTES // 2
_LONGEST_CURSOR = 1024


def make_page(
    params: Mapping[str, Any],
    name: str,
    items: Sequence[dict[str, Any]],
    place: Callable[[int], str],
    *,
    most: int | None = None,
) -> Reply:
    """Return `{name: [...], next}`: items from `cursor` on, at most `limit`, and where the next page begins.

    `next` is null on the last page. The cursor is the place of the first item that is still to come, so that a list
    that changes meanwhile gives what is there then, and no item twice.

    Args:
        params: may hold `limit` and `cursor`.
        name: what the list is called in the reply.
        items: all of them, in ascending order of their places.
        place: of the item with this index; places are compared as texts.
        most: the limit where the request has none; None is as many as fit.

    Raises:
        InvalidRequest: limit or cursor are none.
    """
    cursor, limit = params.get("cursor"), params.get("limit", most)
    if limit == 0:
        raise InvalidRequest("limit must be at least 1", param="limit")
    if cursor is not None and len(cursor) > _LONGEST_CURSOR:
        raise InvalidRequest("this is no cursor of an earlier answer", param="cursor")
    start = 0
    while cursor is not None and start < len(items) and place(start) < cursor:
        start += 1
    end, n_bytes = start, 0
    while end < len(items) and (limit is None or end - start < limit):
        n_bytes += len(msgpack.packb(items[end]))
        if n_bytes > MAX_PAGE_BYTES and end > start:
            break
        end += 1
    return {name: list(items[start:end]), "next": None if end == len(items) else place(end)}


def place_of_number(number: int) -> str:
    """Return the place of something that is numbered in the order of the list."""
    return f"{number:016d}"
