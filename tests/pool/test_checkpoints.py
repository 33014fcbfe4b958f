"""Memory for checkpoints: reserved beside the KV, out of what is free or in prompt caches, and never at a cost."""

from __future__ import annotations

import pytest

from mlxd.engine.base import EngineFacts
from mlxd.pool.allocator import TRIMMED_CHECKPOINTS
from tests.support.pool_world import MB, STEP_KV_BYTES, World, facts, world

STATE_BYTES = 2 * MB
# Three near the end of a text that says nothing of its ends, and one where it parts from another.
CHECKPOINTS = 4
# 20 MB of weights and their margin, a sequence of 2,100 tokens and its state.
ROW_BYTES = 2100 * 1000 + STEP_KV_BYTES + STATE_BYTES
LOADED_BYTES = 20 * MB + 2**20


@pytest.fixture
def hybrid() -> EngineFacts:
    """A model with layers that cannot be cut."""
    return facts(20 * MB, state_bytes=STATE_BYTES)


def submitted_bytes(w: World) -> list[int]:
    """Return what the rows of the first engine may keep, oldest first."""
    return [row.submit.checkpoint_bytes for row in w.backend.engines[0]._rows.values()]


def kv_bytes(w: World) -> int:
    """Return what is reserved for rows."""
    model = w.model("a")
    assert model is not None
    return model.kv_bytes


async def test_checkpoints_are_reserved_and_end_in_the_prompt_cache(hybrid: EngineFacts) -> None:
    """A row's checkpoints are reserved with its KV, and the sum does not grow when both move into the cache."""
    async with world({"a": hybrid}) as w:
        stream = w.send("a", prompt="x" * 2000, tokens=100)
        await w.advance(1.1)
        assert submitted_bytes(w) == [CHECKPOINTS * STATE_BYTES]
        assert kv_bytes(w) == ROW_BYTES + CHECKPOINTS * STATE_BYTES
        reserved = w.pool.status().memory.reserved_bytes
        await w.run(stream.task)
        model = w.model("a")
        assert model is not None
        assert model.prompt_cache_bytes > CHECKPOINTS * STATE_BYTES
        assert w.pool.status().memory.reserved_bytes <= reserved


@pytest.mark.parametrize("document", [{"engine": {"prompt_cache": "0B"}}])
async def test_without_a_prompt_cache_there_are_none(hybrid: EngineFacts, document: dict[str, dict[str, str]]) -> None:
    """What is not kept is not reserved."""
    async with world({"a": hybrid}, document) as w:
        w.send("a", prompt="x" * 2000, tokens=100)
        await w.advance(1.1)
        assert submitted_bytes(w) == [0]


async def test_a_model_that_can_be_cut_has_none() -> None:
    """Its KV serves any beginning."""
    async with world({"a": 20}) as w:
        w.send("a", prompt="x" * 2000, tokens=100)
        await w.advance(1.1)
        assert submitted_bytes(w) == [0]


async def test_a_row_starts_with_what_is_left(hybrid: EngineFacts) -> None:
    """Where memory is short a row keeps less, and does not wait for more."""
    spare = 3 * MB
    async with world({"a": hybrid}, {"pool": {"memory": LOADED_BYTES + ROW_BYTES + spare}}) as w:
        w.send("a", prompt="x" * 2000, tokens=100)
        await w.advance(1.1)
        assert submitted_bytes(w) == [spare]


async def test_old_prompts_make_room_for_new_checkpoints(hybrid: EngineFacts) -> None:
    """A cache that fills the memory is trimmed for the checkpoints of the next row, and no model is unloaded."""
    limit = LOADED_BYTES + ROW_BYTES + CHECKPOINTS * STATE_BYTES
    async with world({"a": hybrid}, {"pool": {"memory": limit}}) as w:
        for letter in "xyz":
            stream = w.send("a", prompt=letter * 2000, tokens=100)
            while not (w.backend.engines and submitted_bytes(w)):
                await w.advance(0.01)
            assert submitted_bytes(w)[0] >= TRIMMED_CHECKPOINTS * STATE_BYTES
            await w.run(stream.task)
        assert not [event for event in w.events if event.kind == "model.unloaded"]


async def test_a_row_that_needs_no_memory_waits_for_no_checkpoints(hybrid: EngineFacts) -> None:
    """It starts at once with what is free for them, and no prompt cache of another model is trimmed first."""
    async with world({"a": hybrid, "b": 20}) as w:
        await w.load("a")
        await w.run(w.answer("b", prompt="x" * 8000))
        spare = 1 * MB
        w.change({"pool": {"memory": w.pool.status().memory.reserved_bytes + spare}})
        w.send("a", tokens=100)
        await w.settle()
        (sequence,) = w.pool._state.residents["a"].active.values()
        assert 0 < sequence.checkpoint_bytes <= spare
        assert w.pool._state.residents["b"].trim_target_bytes is None
