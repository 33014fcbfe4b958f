"""Every byte that is reserved stands somewhere in the status, once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.engine.base import BackendMemory
from mlxd.pool import report
from tests.support.pool_world import MB, World, facts, world

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from("abc"), st.sampled_from((20, 900, 3000))),
        st.tuples(st.just("advance"), st.just(""), st.sampled_from((0.3, 0.9, 6.0))),
    ),
    max_size=15,
)


async def account(history: list[tuple[Any, ...]]) -> None:
    """Bring a pool somewhere and add up what it says, after every step."""
    w = World({name: facts(size * MB, per_token=3000) for name, size in {"a": 20, "b": 30, "c": 45}.items()})
    w.backend.pass_tokens = 20
    await w.pool.start()
    try:
        for kind, model_id, value in history:
            if kind == "send":
                w.send(model_id, tokens=value)
            else:
                await w.advance(value)
            status = w.pool.status()
            memory = status.memory
            parts = (memory.weights_bytes, memory.kv_bytes, memory.prompt_cache_bytes, memory.margin_bytes)
            assert memory.reserved_bytes == sum(parts) + memory.loading_bytes
            assert memory.reserved_bytes == sum(model.reserved_bytes for model in status.models)
            for model in status.models:
                own = model.kv_bytes + model.prompt_cache_bytes + model.margin_bytes
                assert model.reserved_bytes in {0, model.weights_bytes + own}
            assert memory.limit_bytes - memory.reserved_bytes == memory.free_bytes or status.over_limit
            device = await w.pool.device()
            assert device is not None
            assert device.active_bytes + device.unused_bytes == device.reserved_bytes + device.unexplained_bytes
            assert (device.reserved_bytes, device.unexplained_bytes) == (memory.reserved_bytes, 0)
    finally:
        await w.close()


@settings(max_examples=40, deadline=None)
@given(steps)
def test_the_sums_are_exact(history: list[tuple[Any, ...]]) -> None:
    """Parts, models and the device's counters add up to what is reserved, to the byte, in any state."""
    asyncio.run(account(history))


async def test_what_the_device_holds_beyond_the_ledger_is_shown() -> None:
    """Active memory that nothing is reserved for is unexplained, and hides nowhere."""
    async with world({"a": 20}) as w:
        await w.load("a")
        held = w.pool.status().memory.reserved_bytes
        device = report.compare_device(w.pool._state, BackendMemory(held + 5, 7, held + 9))
        assert (device.unused_bytes, device.unexplained_bytes, device.free_buffers_bytes) == (0, 5, 7)


async def test_a_device_that_is_busy_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its counters are left out when it does not answer soon."""

    async def never() -> BackendMemory:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with world({"a": 20}) as w:
        monkeypatch.setattr(w.backend, "memory", never)
        monkeypatch.setattr("mlxd.pool.pool.DEVICE_PATIENCE_S", 0)
        assert await w.pool.device() is None
