"""What a client wants of an upstream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# They are answered without a word of a model, and never as a stream.
SILENT = frozenset({"embeddings", "messages/count_tokens", "responses/input_tokens"})


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
        return self.endpoint not in SILENT and self.body.get("stream") is True
