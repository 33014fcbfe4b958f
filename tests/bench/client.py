"""The load: one process, closed loop. Reads one JSON command per line on stdin and answers each with one JSON line.

Speaks HTTP by hand, a new connection per request, so that what is measured is the server and not a client library.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import string
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

_CONTENT = re.compile(rb'"content": ?"[^"]')
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_PROMPT_CHARACTERS = 48

Answer = dict[str, Any]


def make_prompts(seed: int) -> Iterator[str]:
    """Yield endless prompts that share no beginning, so that no prompt cache helps."""
    rng = random.Random(seed)
    while True:
        yield f"{rng.randrange(10**6):06d} {''.join(rng.choices(string.ascii_letters, k=_PROMPT_CHARACTERS))}"


class Target:
    """One server and model."""

    def __init__(self, host: str, port: int, model: str, seed: int, extra: Mapping[str, Any] | None = None) -> None:
        """Take the address, and what every body has beside the usual; nothing is opened yet."""
        self._host = host
        self._port = port
        self._model = model
        self._prompts = make_prompts(seed)
        self._extra = extra or {}

    async def chat(self, max_tokens: int, *, stream: bool, on_content: Callable[[], None] = lambda: None) -> int:
        """Send one request, read its answer and return its tokens; *on_content* is called when text arrives."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": next(self._prompts)}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": stream,
            **self._extra,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        payload = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head.encode() + payload)
            received = bytearray()
            while data := await reader.read(65536):
                received += data
                if stream and _CONTENT.search(data):
                    on_content()
        finally:
            writer.close()
        tokens = _COMPLETION_TOKENS.findall(received)
        if not received.split(b"\r\n", 1)[0].endswith(b"200 OK") or not tokens or int(tokens[-1]) != max_tokens:
            raise RuntimeError(f"not {max_tokens} tokens but: {bytes(received[:300])!r} ... {bytes(received[-300:])!r}")
        return max_tokens

    async def loop(self, requests: int, max_tokens: int) -> int:
        """Send *requests*, one after the other, streaming; return their tokens."""
        return sum([await self.chat(max_tokens, stream=True) for _ in range(requests)])


async def measure_throughput(target: Target, streams: int, requests: int, max_tokens: int) -> Answer:
    """Return tokens per second over *streams* loops of *requests* each."""
    start_s = time.perf_counter()
    tokens = await asyncio.gather(*(target.loop(requests, max_tokens) for _ in range(streams)))
    return {"tokens_per_s": sum(tokens) / (time.perf_counter() - start_s)}


async def measure_ttft(target: Target, count: int) -> Answer:
    """Return the milliseconds to the first text of *count* streams, one after the other."""
    times_ms = []
    for _ in range(count):
        arrivals_s: list[float] = []
        start_s = time.perf_counter()
        await target.chat(8, stream=True, on_content=lambda seen=arrivals_s: seen.append(time.perf_counter()))  # type: ignore[misc]
        times_ms.append((arrivals_s[0] - start_s) * 1000)
    return {"ms": times_ms}


async def measure_latency(target: Target, count: int, max_tokens: int) -> Answer:
    """Return the milliseconds of *count* whole answers that are not streamed, one after the other."""
    times_ms = []
    for _ in range(count):
        start_s = time.perf_counter()
        await target.chat(max_tokens, stream=False)
        times_ms.append((time.perf_counter() - start_s) * 1000)
    return {"ms": times_ms}


async def measure_gaps(target: Target, max_tokens: int) -> Answer:
    """Stream one answer; say when it began, and return the milliseconds between arrivals of text."""
    arrivals_s: list[float] = []

    def note() -> None:
        arrivals_s.append(time.perf_counter())
        if len(arrivals_s) == 1:
            print(json.dumps({"began": True}), flush=True)

    await target.chat(max_tokens, stream=True, on_content=note)
    return {"ms": [(after - before) * 1000 for before, after in itertools.pairwise(arrivals_s)]}


async def hold(target: Target, streams: int, max_tokens: int) -> Answer:
    """Keep *streams* loops running until the next line on stdin; say when all have begun."""
    begun: set[int] = set()

    async def run(index: int) -> None:
        def note() -> None:
            if len(begun) < streams:
                begun.add(index)
                if len(begun) == streams:
                    print(json.dumps({"began": True}), flush=True)

        while True:
            await target.chat(max_tokens, stream=True, on_content=note)

    tasks = [asyncio.create_task(run(index)) for index in range(streams)]
    await asyncio.to_thread(sys.stdin.readline)
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends), f"a held stream ended: {ends}"
    return {}


_MEASURES: dict[str, Callable[..., Coroutine[Any, Any, Answer]]] = {
    "throughput": measure_throughput,
    "ttft": measure_ttft,
    "latency": measure_latency,
    "gaps": measure_gaps,
    "hold": hold,
}


def main() -> None:
    """Answer commands until stdin ends."""
    for seed, line in enumerate(iter(sys.stdin.readline, "")):
        command = json.loads(line)
        measure = _MEASURES[command.pop("measure")]
        address = (command.pop("host"), command.pop("port"), command.pop("model"))
        target = Target(*address, seed, command.pop("extra", None))
        print(json.dumps(asyncio.run(measure(target, **command))), flush=True)


if __name__ == "__main__":
    main()
