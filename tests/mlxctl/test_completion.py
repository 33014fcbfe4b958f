"""A streamed answer over HTTP: pieces, figures, errors before and in the stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mlxctl.completion import Answer, list_models, stream_chat
from mlxd.protocol.errors import ControlError

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


class FakeHTTP:
    """An OpenAI server with one canned answer."""

    def __init__(self) -> None:
        self.status = 200
        self.answer = b""
        self.bodies: list[Any] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply()

            def do_POST(self) -> None:
                fake.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.reply()

            def reply(self) -> None:
                self.send_response(fake.status)
                self.end_headers()
                self.wfile.write(fake.answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def http() -> Iterator[FakeHTTP]:
    """A server that runs."""
    fake = FakeHTTP()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


def sse(*chunks: object) -> bytes:
    """Return chunks as server-sent events, with a comment before each."""
    return b"".join(b": keep-alive\n\ndata: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def delta(finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
    """Return one chunk."""
    return {"model": "tiny", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


USAGE = {"model": "tiny", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
DONE = b"data: [DONE]\n\n"


def test_pieces_come_as_they_are_made(http: FakeHTTP) -> None:
    """Content and reasoning are handed on piece by piece; usage and the reason of the end are kept."""
    http.answer = (
        sse(delta(role="assistant"), delta(reasoning_content="hm"), delta(content="Pa"), delta(content="ris"))
        + sse(delta("stop"), USAGE)
        + DONE
    )
    contents: list[str] = []
    thoughts: list[str] = []
    answer = Answer("tiny")

    stream_chat(http.url, BODY, answer, on_content=contents.append, on_reasoning=thoughts.append)

    assert (contents, thoughts) == (["Pa", "ris"], ["hm"])
    assert (answer.content, answer.finish_reason, answer.usage) == ("Paris", "stop", USAGE["usage"])
    assert answer.ttft_s is not None
    assert http.bodies == [{**BODY, "stream": True, "stream_options": {"include_usage": True}}]


def test_speed_counts_from_the_first_token() -> None:
    """Tokens per second leave the first token and the time before it out; one token has no speed."""
    answer = Answer("tiny", usage={"completion_tokens": 11}, ttft_s=1.0, duration_s=3.0)
    assert answer.tokens_per_s == 5.0

    answer.usage = {"completion_tokens": 1}
    assert answer.tokens_per_s is None


@pytest.mark.parametrize(
    ("status", "exit_code"), [(404, 4), (400, 10), (429, 6), (503, 6), (507, 6), (403, 8), (500, 1)]
)
def test_refusal_before_the_stream(http: FakeHTTP, status: int, exit_code: int) -> None:
    """An HTTP error becomes its message, hint, code and an exit status of its class."""
    http.status = status
    error = {
        "message": "no such model. Try: mlxctl model list",
        "type": "x",
        "param": "model",
        "code": "model_not_found",
    }
    http.answer = json.dumps({"error": error}).encode()

    with pytest.raises(ControlError) as caught:
        stream_chat(http.url, BODY, Answer("tiny"))

    assert caught.value.to_wire() == {
        "code": "model_not_found",
        "msg": "no such model",
        "hint": "mlxctl model list",
        "field": "model",
        "exit": exit_code,
    }


def test_error_without_an_envelope(http: FakeHTTP) -> None:
    """An answer that is not OpenAI's is reported by its status."""
    http.status, http.answer = 502, b"<html>"

    with pytest.raises(ControlError, match="answered 502"):
        stream_chat(http.url, BODY, Answer("tiny"))


def test_error_in_the_stream(http: FakeHTTP) -> None:
    """What had come stays, and the error event is raised."""
    http.answer = sse(delta(content="Pa"), {"error": {"message": "cancelled by an operator", "code": "cancelled"}})
    answer = Answer("tiny")

    with pytest.raises(ControlError, match="cancelled by an operator"):
        stream_chat(http.url, BODY, answer)
    assert answer.content == "Pa"


def test_stream_that_breaks_off(http: FakeHTTP) -> None:
    """A stream without its end is no answer, whatever had come."""
    http.answer = sse(delta(content="Pa"))

    with pytest.raises(ControlError) as caught:
        stream_chat(http.url, BODY, Answer("tiny"))
    assert caught.value.code == "http.broken_off"


def test_nobody_listens(http: FakeHTTP) -> None:
    """A server that is not there exits 3 and names the address."""
    with pytest.raises(ControlError, match=r"http://127\.0\.0\.1:1 ") as caught:
        stream_chat("http://127.0.0.1:1", BODY, Answer("tiny"))
    assert caught.value.exit_code == 3


def test_list_models(http: FakeHTTP) -> None:
    """The models are those of the route."""
    http.answer = b'{"object": "list", "data": [{"id": "tiny", "state": "ready"}]}'

    assert list_models(http.url, 10.0) == [{"id": "tiny", "state": "ready"}]
