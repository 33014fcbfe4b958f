"""Requests for vectors at the pool: they load, wait, take memory, pause and end as generations do."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest

from mlxd.engine.vector import EmbeddingRequest
from mlxd.protocol.errors import DoesNotFit, QueueFull, RequestCancelled
from tests.support.pool_world import MB, World, facts, world


async def vectors(made: World, model_id: str, *texts: str) -> list[float]:
    """Make a request and return the sums of its vectors."""
    async with made.pool.lease(model_id, request_id=texts[0][:8]) as lease:
        prepared = await lease.prepare_inputs(EmbeddingRequest(texts))
        return [float(np.frombuffer(vector, "<f4").sum()) for vector in await lease.embed(prepared)]


async def test_vectors_load_their_model_and_use_it() -> None:
    """The model is loaded for them, in the kind that the catalog says, kept for its keep_alive, and unloaded."""
    async with world({"a": 10, "b": 10}, {"pool": {"keep_alive": "1m"}}) as made:
        made.catalog.index["b"] = dataclasses.replace(made.catalog.index["b"], kind="embedding")
        both = await made.run(vectors(made, "a", "one", "two"))
        assert both == [*await made.run(vectors(made, "a", "one")), *await made.run(vectors(made, "a", "two"))]
        await made.run(vectors(made, "b", "one"))
        assert [(spec.model_id, spec.is_encoder) for spec in made.backend.specs] == [("a", False), ("b", True)]
        assert made.pool._state.prompt_tokens == 15
        await made.advance(55)
        assert made.state("a") == "ready"
        await made.advance(6)
        assert (made.state("a"), made.state("b")) == ("unloaded", "unloaded")


async def test_a_busy_model_is_no_victim() -> None:
    """What makes vectors is not unloaded for another model's load."""
    async with world({"a": 60, "b": 60}) as made:
        long = made.task(vectors(made, "a", *["text"] * 200))
        await made.advance(1.1)
        other = made.send("b")
        await made.advance(0.5)
        assert (made.state("a"), made.state("b")) == ("ready", "queued")
        await made.run(long)
        assert await made.run(asyncio.wait_for(other.task, None))


async def test_a_request_is_one_ticket_whatever_its_texts() -> None:
    """The queue counts requests, and its bound answers the one too many."""
    document = {"queue": {"per_model": 1}, "engine": {"max_sequences": 1}}
    async with world({"a": 10}, document) as made:
        await made.load("a")
        running = made.task(vectors(made, "a", *["text"] * 100))
        await made.settle()
        waiting = made.task(vectors(made, "a", *["text"] * 100))
        await made.settle()
        assert made.pool.queue_length == 1
        with pytest.raises(QueueFull):
            await vectors(made, "a", "text")
        await made.run(running)
        await made.run(waiting)


async def test_texts_that_can_never_fit_are_refused() -> None:
    """A text whose memory is over the limit is a 507 at once, and the model stays."""
    async with world({"a": facts(90 * MB, context_length=100_000)}) as made:
        await made.load("a")
        with pytest.raises(DoesNotFit, match="9000 tokens"):
            await made.run(vectors(made, "a", "x" * 9000))
        assert made.state("a") == "ready"


async def test_a_lowered_limit_pauses_and_loses_nothing() -> None:
    """Under a limit that holds one of two requests the younger pauses, resumes, and makes the same vectors."""
    texts = [letter * 6000 for letter in "abcdefgh"]
    async with world({"a": facts(20 * MB)}) as made:
        unhurried = await made.run(vectors(made, "a", *texts))
        older = made.task(vectors(made, "a", *texts))
        younger = made.task(vectors(made, "a", *texts))
        await made.settle()
        made.change({"pool": {"memory": 30 * MB}})
        assert await made.run(older) == unhurried
        assert await made.run(younger) == unhurried
        assert [event.kind for event in made.events if event.kind.startswith("sequence.")] == [
            "sequence.paused",
            "sequence.resumed",
        ]


async def test_a_client_that_goes_away_ends_its_request() -> None:
    """The device drops it within a pass, and an operator's unload by force is told as an error."""
    async with world({"a": 10}) as made:
        await made.load("a")
        gone = made.task(vectors(made, "a", *["text"] * 1000))
        await made.advance(0.05)
        gone.cancel()
        await made.advance(0.05)
        assert [engine.sequences for engine in made.backend.engines] == [0]
        aborted = made.task(vectors(made, "a", *["text"] * 1000))
        await made.advance(0.05)
        await made.run(made.pool.unload("a", force=True))
        with pytest.raises(RequestCancelled):
            await aborted
