"""The client of the daemon's HTTP server: streams a chat completion, prints it, maps HTTP errors to exit statuses.

Asks as any OpenAI client would. The only user of `http.client`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import time
import urllib.parse
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from mlxctl import output
from mlxctl.call import Call
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
# What a terminal would act upon instead of showing it; line ends and tabs are text.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True, slots=True)
class Server:
    """The daemon's HTTP server.

    Attributes:
        url: its address without `/v1`.
        token: lets us in where clients need API keys, from the hello of the control socket; older daemons have none.
    """

    url: str
    token: str | None = field(default=None, repr=False)

    @contextlib.contextmanager
    def open(
        self, method: str, path: str, timeout_s: float, body: Mapping[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and yield the response; leaving closes the connection, which ends the request.

        Raises:
            ControlError: the server answers with an error.
            OSError, http.client.HTTPException: it cannot be reached, or the connection breaks.
        """
        parts = urllib.parse.urlsplit(self.url)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts.hostname or "", parts.hostname)  # noqa: S104  (all addresses)
        connection = http.client.HTTPConnection(host or "127.0.0.1", parts.port, timeout=timeout_s)
        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        if body is not None:
            headers["content-type"] = "application/json"
        try:
            payload = None if body is None else json.dumps(body)
            connection.request(method, parts.path.rstrip("/") + path, payload, headers)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise _http_error(response.status, response.read())
            yield response
        finally:
            connection.close()


@dataclass(slots=True)
class Answer:
    """An answer, as far as it has come."""

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
        content = reasoning = ""
        for choice in chunk.get("choices", []):
            delta = choice.get("delta", {})
            content += delta.get("content") or ""
            reasoning += delta.get("reasoning_content") or ""
            if choice.get("finish_reason") is not None:
                self.finish_reason, self.duration_s = choice["finish_reason"], elapsed_s
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
    try:
        with server.open("GET", "/v1/models", timeout_s) as response:
            return list(json.loads(response.read())["data"])
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(server.url, error) from None


def stream_chat(server: Server, body: Mapping[str, Any], answer: Answer) -> Generator[tuple[str, str], None, None]:
    """Yield the content and the reasoning of each piece of the answer to *body*, and fill *answer*.

    Closing the iterator ends the answer in the server as well.

    Raises:
        ControlError: the server cannot be reached, refuses the request, or the answer breaks off.
    """
    payload = {**body, "stream": True, "stream_options": {"include_usage": True}}
    start_s = time.monotonic()
    try:
        with server.open("POST", "/v1/chat/completions", _SILENCE_TIMEOUT_S, payload) as response:
            for event in _read_events(response):
                if event == "[DONE]":
                    return
                yield answer.take(json.loads(event), time.monotonic() - start_s)
    except TimeoutError:
        raise ControlError(
            f"the server was silent for {_SILENCE_TIMEOUT_S:g} s", code="http.silent", hint="mlxctl ps"
        ) from None
    except (OSError, http.client.HTTPException) as error:
        if not answer.content:
            raise _unreachable(server.url, error) from None
    raise ControlError("the answer broke off before its end", code="http.broken_off", hint="mlxctl status")


def print_answer(call: Call, server: Server, body: Mapping[str, Any], answer: Answer) -> None:
    """Ask, print the content to stdout and thoughts to stderr as they come, and fill *answer*; the figures follow.

    Raises:
        ControlError: as `stream_chat`; what had come is printed, and is in *answer*.
    """
    with contextlib.closing(stream_chat(server, body, answer)) as pieces:
        if call.options.json:
            for _ in pieces:
                pass
            return
        _print_pieces(pieces, shows_thoughts=not call.options.quiet)
    call.note(format_figures(answer))


def _print_pieces(pieces: Iterator[tuple[str, str]], *, shows_thoughts: bool) -> None:
    """Print the pieces, thoughts and content on lines of their own."""
    is_terminal = sys.stdout.isatty()
    is_thinking = has_content = False
    try:
        for content, reasoning in pieces:
            if reasoning and shows_thoughts:
                if not is_thinking:
                    _write(sys.stderr, "\n[thinking]\n" if has_content else "[thinking]\n")
                is_thinking = True
                _write(sys.stderr, reasoning.translate(_CONTROLS))
            if content:
                if is_thinking:
                    _write(sys.stderr, "\n[end of thinking]\n")
                is_thinking, has_content = False, True
                _write(sys.stdout, content.translate(_CONTROLS) if is_terminal else content)
    finally:
        if is_thinking:
            _write(sys.stderr, "\n[end of thinking]\n")
        if has_content:
            output.print_text("")


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def format_figures(answer: Answer) -> str:
    """Return usage and times: `[tiny: 36 prompt tokens (0 cached), 8 tokens, stop; first after 0.31 s, 9 tokens/s]`."""
    usage = answer.usage
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    text = f"{answer.model}: {usage.get('prompt_tokens', '?')} prompt tokens ({cached} cached)"
    text += f", {usage.get('completion_tokens', '?')} tokens, {answer.finish_reason}"
    if answer.ttft_s is not None:
        text += f"; first after {answer.ttft_s:.2f} s"
    if answer.tokens_per_s is not None:
        text += f", {answer.tokens_per_s:.1f} tokens/s"
    return f"[{text}]"


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
