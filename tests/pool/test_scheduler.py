"""A fault in planning for one model stays with that model: a round is everybody's."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from mlxd.engine.kv_shape import KvShape
from mlxd.pool.resident import Resident
from mlxd.protocol.errors import EngineError, LoadFailed, QueueTimeout
from tests.support.pool_invariants import WatchedWorld
from tests.support.pool_world import World, world

# A shape with which nothing can be computed.
BROKEN_KV = KvShape(groups=(("a lot", None),))  # type: ignore[arg-type]


def break_estimate(w: World, model_id: str) -> None:
    """Let nobody be able to say how much memory a model takes."""
    w.catalog.index[model_id] = dataclasses.replace(w.catalog.index[model_id], kv=BROKEN_KV)


async def test_a_load_that_cannot_be_planned_fails_its_own_requests() -> None:
    """They get an error, with a backoff like any failed load, and models that are asked for with it are loaded."""
    async with world({"a": 20, "b": 20, "c": 20}) as w:
        break_estimate(w, "b")
        clients = {model_id: w.send(model_id) for model_id in ("b", "a", "c")}
        await w.advance(2)

        assert isinstance(clients["b"].error, LoadFailed)
        assert "a fault of the server, whose log has the cause" in str(clients["b"].error)
        assert clients["a"].text
        assert clients["c"].text
        assert w.state("b") == "failed"
        again = w.send("b")
        await w.settle()
        assert "not tried again for" in str(again.error)


async def test_a_request_for_another_model_does_not_meet_the_fault() -> None:
    """Whoever comes while a model that cannot be planned for is waited for gets an answer."""
    async with world({"a": 20, "b": 60, "c": 60}) as w:
        await w.load("a")
        busy = w.send("c", tokens=3000)
        waiting = w.send("b")
        await w.advance(2)
        assert w.state("b") == "queued"
        w.pool._state.residents["b"].entry = dataclasses.replace(w.catalog.index["b"], kv=BROKEN_KV)
        assert await w.run(w.answer("a"))
        assert isinstance(waiting.error, LoadFailed)
        assert not busy.done


async def test_a_preload_that_cannot_be_planned_is_in_nobodys_way() -> None:
    """The rest of the list is loaded, and the daemon is ready; the model is tried again after its backoff."""
    async with world({"a": 20, "b": 20, "c": 20}) as w:
        break_estimate(w, "b")
        state = w.pool._state
        w.pool._state.settings = msgspec.structs.replace(
            state.settings, pool=msgspec.structs.replace(state.settings.pool, preload=("a", "b", "c"))
        )
        await w.advance(0)
        await w.load("a")
        await w.advance(3)
        assert [w.state(model_id) for model_id in "abc"] == ["ready", "failed", "ready"]
        assert w.pool.ready
        resident = state.residents["b"]
        assert resident.backoff.failures == 1
        await w.advance(5)
        assert resident.backoff.failures == 2


async def test_a_sequence_that_cannot_start_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds nothing afterwards; requests for other models, and later ones for this, are answered."""

    def refuse(*_: Any) -> None:
        raise ValueError("made to fail")

    async with world({"a": 20, "b": 20}) as w:
        await w.load("a", "b")
        with monkeypatch.context() as patch:
            patch.setattr(w.backend.engines[0], "submit", refuse)
            clients = [w.send(model_id) for model_id in ("a", "b")]
            await w.advance(1)
        assert isinstance(clients[0].error, EngineError)
        assert clients[1].text
        assert await w.run(w.answer("a"))
        assert not any(resident.held or resident.waiting for resident in w.pool._state.residents.values())


async def test_a_sequence_whose_growth_cannot_be_planned_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device ends it, and the other sequences grow and end whole."""
    async with world({"a": 20, "b": 20}) as w:
        clients = [w.send(model_id, tokens=1500) for model_id in ("a", "b")]
        await w.advance(2)
        grow = w.pool._scheduler._allocator._grow

        def fail(sequence: Any, claimed_bytes: int, *, is_oldest: bool) -> int:
            if sequence.resident.id == "a":
                raise ValueError("made to fail")
            return grow(sequence, claimed_bytes, is_oldest=is_oldest)

        monkeypatch.setattr(w.pool._scheduler._allocator, "_grow", fail)
        await w.advance(30)
        assert isinstance(clients[0].error, EngineError)
        assert len(clients[1].text) == 1500
        assert w.backend.running == 0


async def test_a_timeout_that_cannot_be_put_into_words_is_an_error_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody waits forever because the reason of his wait cannot be told; others get their own timeout."""
    async with world({"a": 60, "b": 60, "c": 60}, {"queue": {"timeout": "20s"}}) as w:
        w.send("a", tokens=9000)
        await w.advance(2)
        clients = {model_id: w.send(model_id) for model_id in ("b", "c")}
        await w.advance(1)
        timeout = w.pool._scheduler._timeout

        def fail(resident: Resident, reason: str) -> Exception:
            if resident.id == "b":
                raise ValueError("made to fail")
            return timeout(resident, reason)

        monkeypatch.setattr(w.pool._scheduler, "_timeout", fail)
        await w.advance(20)
        assert isinstance(clients["b"].error, LoadFailed)
        assert isinstance(clients["c"].error, QueueTimeout)


async def test_a_fault_is_seen_by_whoever_watches_the_promises() -> None:
    """What stays inside one model is still a fault: a random history that meets one fails."""
    w = WatchedWorld({"a": 20})
    break_estimate(w, "a")
    await w.pool.start()
    try:
        w.send("a")
        with pytest.raises(AssertionError, match="planning for a failed"):
            await w.advance(1)
    finally:
        await w.close()
