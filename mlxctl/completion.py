"""One streamed chat completion over HTTP, as any OpenAI client would ask for it.

Owns the reading of server-sent events and the mapping of HTTP errors to exit statuses. The only user of `http.client`.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxd.protocol.errors import (
    EXIT_CAPACITY,
    EXIT_DENIED,
    EXIT_INVALID,
    EXIT_NOT_FOUND,
    EXIT_OTHER,
    EXIT_UNREACHABLE,
    ControlError,
    FileInvalid,
)

# The server writes a comment into a silent stream at least once a minute (http.keepalive).
_SILENCE_TIMEOUT_S = 120.0
_EXITS = {
    400: EXIT_INVALID,
    401: EXIT_DENIED,
    403: EXIT_DENIED,
    404: EXIT_NOT_FOUND,
    413: EXIT_INVALID,
    429: EXIT_CAPACITY,
    503: EXIT_CAPACITY,
    507: EXIT_CAPACITY,
}

OnText = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Server:
    """The daemon's HTTP server.

    Attributes:
        url: its address without `/v1`.
        token: lets us in where clients need API keys, from the hello of the control socket; older daemons have none.
    """

    url: str
    token: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}


@dataclass(slots=True)
class Answer:
    """What came back, as far as it has come."""

    model: str
    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    ttft_s: float | None = None
    duration_s: float = 0.0

    def take(self, chunk: Mapping[str, Any], elapsed_s: float) -> tuple[str, str]:
        """Add one chunk of the stream and return the content and the reasoning in it.

        Raises:
            ControlError: the chunk is an error.
        """
        if "error" in chunk:
            raise _envelope_error(EXIT_OTHER, chunk)
        self.model = chunk.get("model", self.model)
        self.usage = chunk.get("usage") or self.usage
        contents, reasonings = [], []
        for choice in chunk.get("choices", []):
            delta = choice.get("delta", {})
            contents.append(delta.get("content") or "")
            reasonings.append(delta.get("reasoning_content") or "")
            if choice.get("finish_reason") is not None:
                self.finish_reason, self.duration_s = choice["finish_reason"], elapsed_s
        content, reasoning = "".join(contents), "".join(reasonings)
        if self.ttft_s is None and (content or reasoning):
            self.ttft_s = elapsed_s
        self.content += content
        self.reasoning += reasoning
        return content, reasoning

    @property
    def tokens_per_s(self) -> float | None:
        """Speed of the decoding after the first token; None where there is nothing to measure."""
        n_tokens = self.usage.get("completion_tokens", 0)
        if self.ttft_s is None or n_tokens < 2 or self.duration_s <= self.ttft_s:
            return None
        return float((n_tokens - 1) / (self.duration_s - self.ttft_s))


def list_models(server: Server, timeout_s: float) -> list[dict[str, Any]]:
    """Return what `GET /v1/models` lists.

    Raises:
        ControlError: the HTTP server cannot be reached, or answers with an error.
    """
    connection, base = _connect(server.url, timeout_s)
    try:
        connection.request("GET", f"{base}/v1/models", headers=server.headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise _http_error(response.status, body)
        return list(json.loads(body)["data"])
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(server.url, error) from None
    finally:
        connection.close()


def stream_chat(
    server: Server,
    body: Mapping[str, Any],
    answer: Answer,
    *,
    on_content: OnText | None = None,
    on_reasoning: OnText | None = None,
) -> None:
    """Stream the answer to *body*; leaving early, by an exception too, ends it in the server as well.

    Args:
        server: which is asked.
        body: the request, with model and messages.
        answer: is filled as the answer comes.
        on_content: called with each piece of the answer.
        on_reasoning: called with each piece of what the model thinks aloud.

    Raises:
        ControlError: the server cannot be reached, refuses the request, or the answer breaks off.
    """
    connection, base = _connect(server.url, _SILENCE_TIMEOUT_S)
    payload = {**body, "stream": True, "stream_options": {"include_usage": True}}
    start_s = time.monotonic()
    try:
        connection.request(
            "POST",
            f"{base}/v1/chat/completions",
            json.dumps(payload),
            {"content-type": "application/json", **server.headers},
        )
        response = connection.getresponse()
        if response.status != 200:
            raise _http_error(response.status, response.read())
        for event in _read_events(response):
            if event == "[DONE]":
                return
            content, reasoning = answer.take(json.loads(event), time.monotonic() - start_s)
            if reasoning and on_reasoning is not None:
                on_reasoning(reasoning)
            if content and on_content is not None:
                on_content(content)
    except TimeoutError:
        raise ControlError(
            f"the server was silent for {_SILENCE_TIMEOUT_S:g} s", code="http.silent", hint="mlxctl ps"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(server.url, error) if not answer.content else _broken_off() from None
    finally:
        connection.close()
    raise _broken_off()


def _read_events(response: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the data of each server-sent event; comments are skipped."""
    lines: list[str] = []
    while raw := response.readline():
        line = raw.decode().rstrip("\r\n")
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            yield "\n".join(lines)
            lines = []


def _connect(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    parts = urllib.parse.urlsplit(url)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname)  # noqa: S104  (all addresses)
    return http.client.HTTPConnection(host or "127.0.0.1", parts.port, timeout=timeout_s), parts.path.rstrip("/")


def _http_error(status: int, body: bytes) -> ControlError:
    try:
        envelope = json.loads(body)
    except ValueError:
        envelope = {}
    if not isinstance(envelope, dict) or not isinstance(envelope.get("error"), dict):
        return ControlError(f"the server answered {status}", code="http.error", hint="mlxctl status")
    if envelope["error"].get("code") == FileInvalid.code:  # a 503, as the server cannot serve; the file is at fault
        return _envelope_error(FileInvalid.exit_code, envelope)
    return _envelope_error(_EXITS.get(status, EXIT_OTHER), envelope)


def _envelope_error(exit_code: int, envelope: Mapping[str, Any]) -> ControlError:
    error = envelope["error"]
    message, _, hint = str(error.get("message", "the server sent an error without a message")).partition(". Try: ")
    return ControlError(
        message,
        exit_code=exit_code,
        code=str(error.get("code") or error.get("type") or "error"),
        param=error.get("param"),
        hint=hint or None,
    )


def _unreachable(url: str, error: Exception) -> ControlError:
    return ControlError(
        f"the HTTP server at {url} cannot be reached: {str(error) or type(error).__name__}",
        exit_code=EXIT_UNREACHABLE,
        code="http.unreachable",
        hint="mlxctl status",
    )


def _broken_off() -> ControlError:
    return ControlError("the answer broke off before its end", code="http.broken_off", hint="mlxctl status")
