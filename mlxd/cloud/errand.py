"""What a client wants of an upstream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Errand:
    """What a client wants of an upstream."""

    protocol: str  # that the client speaks: openai or anthropic
    endpoint: str  # in that protocol: the path under /v1
    raw: bytes  # the body as it came
    body: Mapping[str, Any]  # the same, parsed
    hops: int  # how many mlxd the request will have passed, this one included

    @property
    def wants_stream(self) -> bool:
        """Whether a stream is asked for."""
        return self.body.get("stream") is True
