"""Events of the device that cross the pool's commands."""

from __future__ import annotations

import pytest

from mlxd.engine.base import Finished, FinishReason, GenerationRequest, KvLow, Paused, TextPrompt, Usage
from mlxd.pool import ledger
from mlxd.pool.lease import Lease
from mlxd.pool.resident import Sequence, SequenceState
from tests.support.pool_world import MB, World, facts, world


async def running(w: World) -> Sequence:
    """Return a long stream that runs on "a"."""
    w.send("a", prompt="x" * 500, tokens=9000)
    await w.advance(2)
    (sequence,) = w.pool._state.residents["a"].active.values()
    return sequence


async def test_a_pausing_sequence_asks_for_nothing() -> None:
    """A `KvLow` that was posted before the pause arrived is out of date."""
    async with world({"a": 30}) as w:
        sequence = await running(w)
        executor = w.pool._scheduler.executor
        executor.pause(sequence)
        executor.take(sequence, KvLow(sequence.number, sequence.granted_tokens))

        assert sequence.wanted_tokens is None


async def test_a_kv_low_of_an_older_grant_is_ignored() -> None:
    """Only the grant in force can run low."""
    async with world({"a": 30}) as w:
        sequence = await running(w)
        w.pool._scheduler.executor.take(sequence, KvLow(sequence.number, sequence.granted_tokens - 1024))

        assert sequence.wanted_tokens is None


async def row_about_to_move(w: World) -> Sequence:
    """Return a row that was granted so much that it is to leave a short one, and has not yet."""
    w.send("a", prompt="x" * 6700, tokens=2000)
    await w.advance(2)
    w.send("a", prompt="x" * 20, tokens=3000)
    await w.advance(2)
    long = min(w.pool._state.residents["a"].active.values(), key=lambda sequence: sequence.age)
    while long.granted_tokens <= 8192:
        await w.advance(0.01)
    return long


async def test_the_rows_that_a_longer_one_leaves_stay_padded_until_it_has_moved() -> None:
    """While the device has not carried out a grant that moves a row, the pool holds what the device still does."""
    async with world({"a": 30}) as w:
        long = await row_about_to_move(w)
        resident = long.resident

        assert long.left_tokens > 0
        while long.left_tokens > 0:
            assert w.backend.active_bytes <= w.pool._state.held_bytes
            assert ledger.settled_bytes(resident) < ledger.held_bytes(resident)
            await w.advance(0.01)
        assert w.backend.active_bytes <= w.pool._state.held_bytes
        assert ledger.settled_bytes(resident) == ledger.held_bytes(resident)
        assert long.state is SequenceState.RUNNING


async def test_what_waits_for_memory_gets_it_when_a_longer_row_has_moved() -> None:
    """A request starts as soon as the rows beside it are not padded any more, without another event."""
    async with world({"a": 30}) as w:
        long = await row_about_to_move(w)
        w.change({"pool": {"memory": w.pool._state.held_bytes + 4 * MB}})
        waiting = w.send("a", prompt="x" * 900, tokens=5)
        await w.advance(0.5)
        assert long.left_tokens > 0
        assert not waiting.done
        while long.left_tokens > 0:
            await w.advance(0.01)
        await w.advance(0.2)
        assert waiting.done


async def test_a_row_that_paused_itself_while_it_was_told_to_pauses_once() -> None:
    """The pool's pause and the row's own cross: one `Paused` comes, and the stream goes on with one resume."""
    async with world({"a": 30}) as w:
        sequence = await running(w)
        executor = w.pool._scheduler.executor
        executor.pause(sequence)
        await w.advance(0.05)

        assert sequence.state is SequenceState.RUNNING
        assert [event.kind for event in w.events].count("sequence.paused") == 1
        assert [event.kind for event in w.events].count("sequence.resumed") == 1


async def test_a_drop_while_pausing_keeps_the_reservation_until_the_end() -> None:
    """Cancelled in the middle of a pause: `Paused` frees the bytes, the end forgets the sequence."""
    async with world({"a": 30}) as w:
        sequence = await running(w)
        executor = w.pool._scheduler.executor
        executor.pause(sequence)
        executor.drop(sequence)
        assert sequence.granted_tokens > 0

        executor.take(sequence, Paused(sequence.number, 700))
        assert (sequence.state, sequence.granted_tokens) == (SequenceState.ENDING, 0)
        executor.take(sequence, Finished(sequence.number, FinishReason.CANCELLED, Usage(500, 0, 200)))
        assert sequence.state is SequenceState.ENDED
        assert sequence.resident.active == {}


async def test_nothing_is_submitted_to_a_model_that_unloads() -> None:
    """A mistake in the order of decisions is an error here, not a command to a closed engine."""
    async with world({"a": 30}) as w:
        await w.load("a")
        w.task(w.pool.unload("a"))
        await w.settle()
        async with world({"a": 30}) as other:
            sequence = await running(other)
            sequence.ticket.resident = w.pool._state.residents["a"]
            with pytest.raises(RuntimeError, match="was unloaded under sequence"):
                w.pool._scheduler.executor.pause(sequence)
            sequence.ticket.resident = other.pool._state.residents["a"]


async def test_a_resumed_stream_shows_no_second_prefill() -> None:
    """Pauses are invisible: after the first delta a reader sees deltas only, until the end."""
    async with world({"a": facts(60 * MB)}, {"pool": {"memory": 69 * MB}}) as w:
        w.send("a", prompt="o" * 500, tokens=3000)
        await w.advance(1.2)
        request = GenerationRequest(TextPrompt("y" * 500), max_tokens=3000)

        async def read(lease: Lease) -> list[str]:
            prompt = await lease.prepare(request)
            return [type(event).__name__ async for event in lease.generate(request, prompt)]

        async with w.pool.lease("a", request_id="r") as lease:
            kinds = await w.run(read(lease))

        assert "sequence.resumed" in {event.kind for event in w.events}
        assert kinds == ["Prefilling", *["Delta"] * 3000, "Finished"]
