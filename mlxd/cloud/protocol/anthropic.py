"""Anthropic's protocol: messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.cloud.protocol.base import name_of, whole
from mlxd.cloud.sse import Event
from mlxd.engine.base import Usage

_VERSION = "2023-06-01"
_SAYING = frozenset({"content_block_delta", "message_delta", "message_stop"})


class Anthropic:
    """See `base.Protocol`."""

    name = "anthropic"

    def headers(self, secret: str | None) -> dict[str, str]:
        """The key in a header of its own, and the version that translated bodies are of."""
        key = {} if secret is None else {"x-api-key": secret}
        return {**key, "anthropic-version": _VERSION}

    def has_content(self, event: Mapping[str, Any]) -> bool:
        """A delta, a block of a tool's call, or the end."""
        block = event.get("content_block")
        if event.get("type") == "content_block_start" and isinstance(block, dict):
            return block.get("type") not in {"text", "thinking"}
        return event.get("type") in _SAYING

    def is_end(self, event: Event, parsed: Mapping[str, Any] | None) -> bool:
        """`message_stop`, or an error."""
        return name_of(event, parsed) in {"message_stop", "error"}

    def unfinished(self, event: Mapping[str, Any], before: frozenset[int] | None) -> frozenset[int] | None:  # noqa: ARG002
        """Nothing but the last event tells the end."""
        return before

    def error_of(self, body: Any) -> str | None:
        """The message in `error` of a body of type error."""
        if not isinstance(body, dict) or body.get("type") != "error":
            return None
        error = body.get("error")
        return str(error.get("message", "")) if isinstance(error, dict) else ""

    def usage_of(self, body: Mapping[str, Any], before: Usage | None) -> Usage | None:
        """The prompt's at the start of a stream, the answer's at its end."""
        message = body.get("message")
        usage = (message if isinstance(message, dict) else body).get("usage")
        if not isinstance(usage, dict):
            return before
        if before is not None and "input_tokens" not in usage:
            return Usage(before.prompt_tokens, before.cached_tokens, whole(usage.get("output_tokens")))
        cached = whole(usage.get("cache_read_input_tokens"))
        made = whole(usage.get("cache_creation_input_tokens"))
        return Usage(whole(usage.get("input_tokens")) + cached + made, cached, whole(usage.get("output_tokens")))
