"""Who gets memory and slots first, and who gives way for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.pool_world import MB, Client, World, world

SIZES_MB = {"a": 30, "b": 40, "c": 5}


@asynccontextmanager
async def quick_world(document: dict[str, Any]) -> AsyncIterator[World]:
    """Run a world whose rows make 100 tokens a second, twenty at a time."""
    async with world(SIZES_MB, {"queue": {"timeout": "10m"}, **document}) as w:
        w.backend.step_s, w.backend.pass_tokens = 0.2, 20
        yield w


def send_long(w: World, model_id: str, seed: int) -> Client:
    """Send a request that takes 10.5 MB of KV at its end, and 30 s."""
    return w.send(model_id, prompt="x" * 7_500, tokens=3_000, seed=seed)


@pytest.mark.parametrize("kept", [{"pool": {"preload": ["a"]}}, {"models": {"a": {"pin": True}}}, {}])
async def test_a_stream_of_requests_does_not_keep_a_model_out_that_fits_beside(kept: dict[str, Any]) -> None:
    """After the patience a load gets the memory that sequences take; nothing is unloaded for it, and all end whole."""
    async with quick_world(kept) as w:
        stream = []
        for number in range(30):
            stream.append(send_long(w, "a", number))
            if number == 10:
                client = w.send("b")
            await w.advance(4)

        assert client.done
        assert client.error is None
        assert "evicting" not in w.kinds("a")
        await w.advance(600)
        assert all(request.done and request.error is None for request in stream)


async def test_only_younger_sequences_pause_for_a_load() -> None:
    """What is older than the load runs to its end; of what came later just enough pauses, and ends whole afterwards."""
    async with quick_world({"pool": {"preload": ["a"], "memory": 98 * MB, "evict_patience": "10s"}}) as w:
        await w.advance(2)
        older = [send_long(w, "a", number) for number in range(3)]
        await w.advance(5)
        client = w.send("b")
        younger = [send_long(w, "a", number) for number in range(3, 6)]
        await w.advance(20)
        assert "paused" not in " ".join(w.kinds("a"))

        await w.run(_end(older))
        await w.advance(2)
        assert w.kinds("a").count("sequence.paused") == 1
        assert client.done

        await w.run(_end(younger))


async def test_what_an_overdue_load_is_promised_goes_to_no_younger_request() -> None:
    """While older sequences keep a load waiting, a younger request gets only memory that its model holds anyway."""
    document = {"pool": {"preload": ["a", "b"], "memory": 90 * MB, "evict_patience": "0s"}}
    async with quick_world(document) as w:
        await w.advance(5)
        older = send_long(w, "b", 0)
        await w.advance(1)
        load = w.send("c")
        beside = w.send("b", prompt="hi", tokens=5)
        alone = w.send("a", prompt="hi", tokens=5)
        await w.advance(1)

        assert (load.done, beside.done, alone.done) == (False, False, True)
        await w.run(_end([older]))
        await w.advance(2)
        assert (load.done, beside.done) == (True, True)


async def _end(clients: list[Client]) -> None:
    for client in clients:
        await client.task
