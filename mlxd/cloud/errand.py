"""What a client wants of an upstream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

# They are answered without a word of a model, and never as a stream.
SILENT = frozenset({"embeddings", "messages/count_tokens", "responses/input_tokens"})


@dataclass(frozen=True, slots=True)
class Errand:
    """What a client wants of an upstream."""

    protocol: str  # that the client speaks: openai or anthropic
    endpoint: str  # in that protocol: the path under /v1
    raw: bytes  # the body as it came
    wants_stream: bool
    hops: int  # how many mlxd the request will have passed, this one included

    def parse(self) -> dict[str, Any]:
        """Return the body parsed: anew at each call, for it may take many times its bytes, and an answer takes long."""
        body: dict[str, Any] = orjson.loads(self.raw)
        return body
