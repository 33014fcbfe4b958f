"""No word of a prompt is left behind: not in the log, the events, the history, the state, nor in any error."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlxd.http.schema import fields_of
from mlxd.routes import ROUTES
from tests.end_to_end.conftest import CONFIG
from tests.support.daemon import running_daemon

SECRET = "XQZZY7"
PROMPT = f"the vault opens at {SECRET} tonight"
WHOLE = {
    "model": "a",
    "messages": [{"role": "user", "content": PROMPT}],
    "prompt": PROMPT,
    "input": PROMPT,
    "max_tokens": 1,
}
# These are names, which errors have to name.
NAMES = frozenset({"model", "previous_response_id"})
WRONG: tuple[Any, ...] = (PROMPT, [PROMPT], {"type": PROMPT}, [{"role": PROMPT, "content": PROMPT, "type": PROMPT}])


def bodies() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what can be sent to which route: whole, streamed, and with each field wrong in a few ways."""
    for route in ROUTES:
        fields = {name: field for shape in route.body for name, field in fields_of(shape).items()}
        if not fields:
            continue
        whole = {name: WHOLE[name] for name, field in fields.items() if field.is_required}
        whole |= {name: 1 for name in ("max_tokens", "max_output_tokens") if name in fields}
        yield route.path, whole
        yield route.path, {**whole, "stream": True}
        yield route.path, json.loads(json.dumps(whole).replace(PROMPT, PROMPT * 2000))  # over the context
        yield route.path, {**whole, "model": "not-there"}
        for name in fields.keys() - NAMES:
            for value in WRONG:
                yield route.path, {**whole, name: value}


def send(address: str, path: str, body: bytes) -> tuple[int, bytes]:
    """Return status and answer."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_prompt_is_nowhere_afterwards(home: Path) -> None:
    """Whatever became of its request; the log is at its most talkative."""
    config = CONFIG + '[daemon]\nlog_level = "debug"\n'
    seen, told = set[int](), set[str]()
    with running_daemon(home, config) as daemon, (home / "events").open("wb") as events:
        address = urllib.parse.urlsplit(daemon.base_url).netloc
        follower = subprocess.Popen(
            [sys.executable, "-m", "mlxctl", "events", "--json"], env=daemon.environment, stdout=events, stderr=events
        )
        while (home / "events").stat().st_size == 0:  # its first line says that it listens
            with contextlib.suppress(subprocess.TimeoutExpired):
                follower.wait(0.05)
        try:
            for path, body in bodies():
                status, answer = send(address, path, json.dumps(body).encode())
                seen.add(status)
                if status >= 400 and SECRET.encode() in answer:
                    told.add(answer.decode())
            for broken in (f'{{"prompt": "{PROMPT}"', f'"{PROMPT}"', f"{PROMPT}"):
                status, answer = send(address, "/v1/completions", broken.encode())
                assert (status, SECRET.encode() in answer) == (400, False)
            with socket.create_connection((address.partition(":")[0], int(address.partition(":")[2]))) as gone:
                body = {**WHOLE, "stream": True, "max_tokens": 4000}
                data = json.dumps({name: body[name] for name in ("model", "messages", "stream", "max_tokens")})
                head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
                gone.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n{data}".encode())
                assert gone.recv(100).startswith(b"HTTP/1.1 200 ")
            daemon.mlxctl("model", "unload", "a", "--wait")
        finally:
            follower.terminate()
            follower.wait(30)
    assert told == set()
    assert {200, 400, 404} <= seen
    assert max(seen) < 500, daemon.log()
    assert '"model.loaded"' in (home / "events").read_text()
    left = [path for path in home.rglob("*") if path.is_file() and (home / "models") not in path.parents]
    assert {"daemon.stderr", "events", "config.toml"} <= {path.name for path in left}
    assert [path for path in left if SECRET.encode() in path.read_bytes()] == []
