"""An OpenAI server with one canned answer, for clients that are tested without a daemon."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DONE = b"data: [DONE]\n\n"


class FakeHTTP:
    """Answers every POST with `answer`, every GET with `models`; keeps the bodies it got."""

    def __init__(self) -> None:
        self.status = 200
        self.answer = b""
        self.models: list[dict[str, Any]] = []
        self.bodies: list[Any] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(json.dumps({"object": "list", "data": fake.models}).encode())

            def do_POST(self) -> None:
                fake.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.reply(fake.answer)

            def reply(self, body: bytes) -> None:
                self.send_response(fake.status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextlib.contextmanager
def running_openai() -> Iterator[FakeHTTP]:
    """Run a server for the time of a test."""
    fake = FakeHTTP()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.server.shutdown()
        thread.join()
        fake.server.server_close()


def sse(*chunks: object) -> bytes:
    """Return chunks as server-sent events, with a comment before each."""
    return b"".join(b": keep-alive\n\ndata: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks)


def delta(finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
    """Return one chunk."""
    return {"model": "tiny", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
