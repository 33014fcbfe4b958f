"""`python -m tests.bench.bodies`: twenty request bodies of the largest size at once, next to a stream on one daemon.

For each kind of body: how they were answered, the most memory, and the longest gap of the stream, which should stay
below three times the longest one without them. The memory that is added should stay below twice the bytes.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.process import read_rss_bytes
from tests.support.daemon import RealDaemon, running_daemon
from tests.support.tiny_model import write_tiny_model

BODIES = 20
SIZE = 20 * 2**20
_ALONE_S = 5.0
_SAMPLE_S = 0.1
_CONFIG = '[http]\nport = 0\n[pool]\nmemory = "2GB"\n[catalog]\npaths = ["models"]\n[models.a]\nmax_tokens = 8\n'
_HEAD = b'{"model":"a","max_tokens":1,"messages":[{"role":"user","content":"hi"}],'
_CODE = json.dumps('{"name": "x", "items": [1, 2, {"path": "a\\\\b", "ok": true}]},\n')[1:-1].encode()
_KINDS: dict[str, Callable[[], bytes]] = {
    "text of one message": lambda: _message(b"some words of text "),
    "text and one emoji": lambda: _message(b"some words of text ", "\U0001f600".encode()),
    "JSON within a string": lambda: _message(_CODE),
    "an unknown field of text": lambda: _HEAD + b'"image":"' + b"A" * (SIZE - 90) + b'"}',
    "an unknown field of {}": lambda: _HEAD + b'"x":[' + b"{}," * ((SIZE - 90) // 3) + b"{}]}",
    "an unknown field of numbers": lambda: _HEAD + b'"x":[' + b"12345," * ((SIZE - 90) // 6) + b"1]}",
    "messages of {}": lambda: b'{"model":"a","messages":[' + b"{}," * ((SIZE - 90) // 3) + b"{}]}",
}


def main() -> None:
    """Print a line for each kind."""
    for name, make in _KINDS.items():
        with TemporaryDirectory(prefix="mlxd-bench-") as folder:
            write_tiny_model(Path(folder) / "models" / "a", context=8192)
            with running_daemon(Path(folder), _CONFIG) as daemon:
                host = daemon.base_url.removeprefix("http://").removesuffix("/v1")
                send(host, _HEAD[:-1] + b"}", Counter())
                print(f"{name:<30} {measure(daemon, host, make())}", flush=True)


def measure(daemon: RealDaemon, host: str, body: bytes) -> str:
    """Return what twenty bodies of one kind did. Memory is sampled rarely: to ask for it takes time of its own."""
    assert daemon.process is not None
    answers = Counter[str]()
    before_bytes = read_rss_bytes(daemon.process.pid)
    with stream(host) as gaps:
        time.sleep(_ALONE_S)
        alone_s = max(gaps)
        gaps.clear()
        began_s = time.monotonic()
        with peak(daemon.process.pid) as samples:
            senders = [threading.Thread(target=send, args=(host, body, answers)) for _ in range(BODIES)]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()
        took_s = time.monotonic() - began_s
        time.sleep(_SAMPLE_S)  # the last gap is read
        beside_s = max(gaps)
    more = max(samples) - before_bytes
    return (
        f"{dict(answers)} in {took_s:.1f} s; RSS +{more / 2**20:.0f} MiB for {BODIES * len(body) / 2**20:.0f} MiB;"
        f" longest gap {1e3 * beside_s:.0f} ms, alone {1e3 * alone_s:.0f} ms"
    )


def send(host: str, body: bytes, answers: Counter[str]) -> None:
    """Post a body, and count how it was answered."""
    connection = http.client.HTTPConnection(host, timeout=120)
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        said = json.loads(response.read())
        answers[f"{response.status} {said.get('error', {}).get('code', 'ok')}"] += 1
    except OSError as error:
        answers[type(error).__name__] += 1
    finally:
        connection.close()


@contextmanager
def stream(host: str) -> Iterator[list[float]]:
    """Keep reading streams in a process of its own; yield the list of their gaps, which has begun to grow."""
    reader = subprocess.Popen([sys.executable, "-m", __spec__.name, "--read", host], stdout=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    lines, gaps = reader.stdout, list[float]()
    thread = threading.Thread(target=lambda: gaps.extend(map(float, lines)))
    thread.start()
    try:
        while not gaps and reader.poll() is None:
            time.sleep(_SAMPLE_S)
        yield gaps
    finally:
        reader.kill()
        thread.join()
        reader.wait()
        lines.close()


def read(host: str) -> None:
    """Read streams until the end of the process, and print their gaps."""
    body = json.dumps({"model": "a", "stream": True, "max_tokens": 8000, "prompt": "hi", "logit_bias": {"0": -100}})
    while True:
        connection = http.client.HTTPConnection(host, timeout=120)
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        last_s = None
        while line := response.readline():
            if line.startswith(b"data: {"):
                now_s = time.monotonic()
                if last_s is not None:
                    print(now_s - last_s, flush=True)
                last_s = now_s
        connection.close()


@contextmanager
def peak(pid: int) -> Iterator[list[int]]:
    """Sample the memory of a process."""
    samples = [read_rss_bytes(pid)]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            samples.append(read_rss_bytes(pid))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def _message(words: bytes, first: bytes = b"") -> bytes:
    head = b'{"model":"a","max_tokens":1,"messages":[{"role":"user","content":"' + first
    return head + words * ((SIZE - 90) // len(words)) + b'"}]}'


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read(sys.argv[2])
    else:
        main()
