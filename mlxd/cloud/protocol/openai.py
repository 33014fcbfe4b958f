"""OpenAI's protocol: chat completions, completions, embeddings and responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.cloud.protocol.base import name_of, whole
from mlxd.cloud.sse import Event
from mlxd.engine.base import Usage

_SAYING = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call", "audio")
# Events of /v1/responses before anything is said.
_PRELUDE = frozenset({"response.created", "response.in_progress", "response.queued"})
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})


class OpenAI:
    """See `base.Protocol`."""

    name = "openai"

    def headers(self, secret: str | None) -> dict[str, str]:
        """A bearer token, if there is one."""
        return {} if secret is None else {"Authorization": f"Bearer {secret}"}

    def has_content(self, event: Mapping[str, Any]) -> bool:
        """A delta with a word in it, or the reason why there will be none."""
        kind = event.get("type")
        if isinstance(kind, str):
            return kind not in _PRELUDE
        choices = event.get("choices")
        return isinstance(choices, list) and any(_says(choice) for choice in choices if isinstance(choice, dict))

    def is_end(self, event: Event, parsed: Mapping[str, Any] | None) -> bool:
        """`[DONE]`, the last event of a response, or an error."""
        return event.data == b"[DONE]" or name_of(event, parsed) in _LAST or self.error_of(parsed) is not None

    def unfinished(self, event: Mapping[str, Any], before: frozenset[int] | None) -> frozenset[int] | None:
        """Each choice of a chat or a completion tells the reason of its end; some servers send no `[DONE]`."""
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                index = whole(choice.get("index"))
                others = (before or frozenset()) - {index}
                before = others if choice.get("finish_reason") is not None else others | {index}
        return before

    def error_of(self, body: Any) -> str | None:
        """The message in `error`, which a failed response and an error among its events have elsewhere."""
        error = body.get("error") if isinstance(body, dict) else None
        if error is None and isinstance(body, dict):
            match body.get("type"):
                case "error":
                    error = body
                case "response.failed" if isinstance(body.get("response"), dict):
                    error = body["response"].get("error")
        if isinstance(error, dict):
            return str(error.get("message", ""))
        return error if isinstance(error, str) else None

    def usage_of(self, body: Mapping[str, Any], before: Usage | None) -> Usage | None:
        """The whole of it stands in one place."""
        response = body.get("response")
        usage = (response if isinstance(response, dict) else body).get("usage")
        if not isinstance(usage, dict):
            return before
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        return Usage(
            whole(usage.get("prompt_tokens", usage.get("input_tokens"))),
            whole(details.get("cached_tokens")) if isinstance(details, dict) else 0,
            whole(usage.get("completion_tokens", usage.get("output_tokens"))),
        )


def _says(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta")
    if choice.get("finish_reason") is not None or choice.get("text"):
        return True
    return isinstance(delta, dict) and any(delta.get(name) for name in _SAYING)
