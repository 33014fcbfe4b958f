"""A client's request to an upstream, as plain data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from mlxd.protocol.errors import InvalidRequest
from mlxd.renderer import Renderer

# They are answered without a word of a model, and never as a stream.
SILENT = frozenset({"embeddings", "messages/count_tokens", "responses/input_tokens"})
# What of a client's headers belongs to its body: an upstream of the same protocol reads the one by the other.
_PASSED = {"anthropic": ("anthropic-version", "anthropic-beta"), "openai": ()}
_HEADER_VALUE = re.compile(r"[A-Za-z0-9._:=, -]{1,2048}")


@dataclass(frozen=True, slots=True)
class Errand:
    """What a client wants of an upstream."""

    protocol: str  # that the client speaks: openai or anthropic
    endpoint: str  # in that protocol: the path under /v1
    raw: bytes  # the body as it came
    wants_stream: bool
    hops: int  # how many mlxd the request will have passed, this one included
    headers: Mapping[str, str] = field(default_factory=dict)  # for an upstream of the same protocol
    renderer: Callable[[str], Renderer] | None = None  # by the answer's id, for an upstream of another protocol

    def parse(self) -> dict[str, Any]:
        """Return the body parsed: anew at each call, for it may take many times its bytes, and an answer takes long."""
        body: dict[str, Any] = orjson.loads(self.raw)
        return body


def passed_headers(protocol: str, values: Callable[[str], Sequence[str]]) -> dict[str, str]:
    """Return what of a client's headers an upstream of the same protocol is sent.

    Args:
        protocol: that the client speaks.
        values: returns all values of a header by its name.

    Raises:
        InvalidRequest: one of them holds what no version and no list of betas has.
    """
    passed = {}
    for name in _PASSED[protocol]:
        value = ", ".join(values(name))
        if not value:
            continue
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidRequest(f"the header {name} must be up to 2048 letters, digits, dots and dashes", param=name)
        passed[name] = value
    return passed
