"""Clients that go away: the device stops, and nothing of them stays."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

from tests.support.daemon import RealDaemon

N_DROPS = 200


def _send(url: str, body: dict[str, object]) -> socket.socket:
    """Send a chat request on a raw connection and return the connection."""
    parts = urlsplit(url)
    payload = json.dumps(body).encode()
    connection = socket.create_connection((parts.hostname, parts.port))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    connection.sendall(head.encode() + payload)
    return connection


def test_dropped_requests_leave_no_lease_and_no_memory(daemon: RealDaemon) -> None:
    """200 drops, streaming and not, in any phase: then nothing runs, waits or is held, and the ledger is as before."""
    client = daemon.client()
    ask = {"model": "a", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
    client.chat.completions.create(**ask, max_tokens=4)  # type: ignore[call-overload]
    daemon.mlxctl("config", "set", "engine.prompt_cache=0B")
    before = _quiet(daemon)
    url = daemon.base_url

    for index in range(N_DROPS):
        connection = _send(url, {**ask, "max_tokens": 5000, "stream": index % 2 == 0})
        if index % 4 < 2 and index % 2 == 0:
            connection.recv(512)  # the first chunk: dropped while it decodes
        connection.close()

    after = _quiet(daemon)
    assert after == before
    client.chat.completions.create(**ask, max_tokens=4)  # type: ignore[call-overload]


def _quiet(daemon: RealDaemon) -> dict[str, int]:
    """Wait until nothing runs and return what the pool counts."""
    while True:
        ps = daemon.ask("ps")
        pool = daemon.ask("pool", "show")
        busy = sum(model["running"] + model["paused"] + model["waiting"] + model["leases"] for model in pool["models"])
        if not busy and not ps["requests"]:
            return {name: value for name, value in pool["memory"].items() if isinstance(value, int)}
