"""The interface of a wire protocol."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import orjson

from mlxd.cloud.sse import Event
from mlxd.engine.base import Usage


class Protocol(typing.Protocol):
    """One wire protocol; its methods take parsed JSON."""

    name: str

    def headers(self, secret: str | None) -> dict[str, str]:
        """Return what a request carries beside its content type: the key, and the protocol's version."""

    def has_content(self, event: Mapping[str, Any]) -> bool:
        """Tell whether an event of a stream says something; roles, pings and empty deltas do not."""

    def is_end(self, event: Event, parsed: Mapping[str, Any] | None) -> bool:
        """Tell whether an event, *parsed* where it holds JSON, is the last of a whole stream."""

    def unfinished(self, event: Mapping[str, Any], before: frozenset[int] | None) -> frozenset[int] | None:
        """Return which answers of a stream have begun and not ended after an event; None before any has.

        A stream that closes in good order while there is none is whole, though it lacks its last event.
        """

    def error_of(self, body: Any) -> str | None:
        """Return the message of a body or an event that is an error of the protocol; None for any other."""

    def usage_of(self, body: Mapping[str, Any], before: Usage | None) -> Usage | None:
        """Return what a whole answer, or an event after *before*, says was used."""


def parse(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object in *data*; None where there is none."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def name_of(event: Event, parsed: Mapping[str, Any] | None) -> str:
    """Return what an event is called: some servers leave the line with its name out, and its data has it too."""
    return event.name or ("" if parsed is None else word(parsed, "type"))


def whole(value: Any) -> int:
    """Return a count; 0 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def word(given: Mapping[str, Any], name: str) -> str:
    """Return a text of an answer; empty where there is none."""
    value = given.get(name)
    return value if isinstance(value, str) else ""


def part(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object of an answer; an empty one where there is none."""
    value = given.get(name)
    return value if isinstance(value, dict) else {}
