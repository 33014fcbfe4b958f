"""The arithmetic of what models reserve."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from mlxd.engine.base import Decoding, Engine, GenerationRequest, LoadSpec, PreparedPrompt, TokenPrompt
from mlxd.engine.kv_shape import KvShape, length_class
from mlxd.pool import ledger
from mlxd.pool.lifecycle import ModelState
from mlxd.pool.resident import Resident, Sequence, SequenceState, Ticket
from tests.support.fake_engine import FakeEngine
from tests.support.pool_world import entry, facts

MB = 1_000_000
KB = 1000
SHORT_KB = 1280 + 255  # of KV


class CachedEngine(FakeEngine):
    """An engine whose prompt cache is said to hold so much."""

    cached_bytes = 0

    @property
    def prompt_cache_bytes(self) -> int:
        return self.cached_bytes


def resident(*, cached_bytes: int = 0) -> Resident:
    """Return a loaded model of 100 MB with 1 kB of KV per token."""
    measured = facts(100 * MB)
    made = Resident(entry("a", measured), state=ModelState.READY)
    spec = LoadSpec("a", made.entry.path, None, 0)
    engine = CachedEngine(spec, measured, measured.weights_bytes, lambda: None, _no_trim)
    engine.cached_bytes = cached_bytes
    made.engine = engine
    return made


async def _no_trim(engine: Engine, max_bytes: int) -> int:
    raise NotImplementedError


async def add(model: Resident, granted_tokens: int, state: SequenceState = SequenceState.RUNNING) -> Sequence:
    """Let a sequence with this grant run in the model."""
    ticket = Ticket(1, "r", model, 0.0, asyncio.get_running_loop().create_future(), 0.0)
    request = GenerationRequest(TokenPrompt((1,)))
    number = len(model.active)
    sequence = Sequence(number, ticket, request, PreparedPrompt((1,), 10**6), 1, 0.0)
    sequence.state = state
    sequence.granted_tokens = granted_tokens
    model.active[number] = sequence
    return sequence


@pytest.mark.parametrize(
    ("weights_bytes", "expected"),
    [(0, 2**20), (2 * MB, 2**20), (100 * MB, 5 * MB), (20_000 * MB, 512 * 2**20)],
)
def test_margin_is_five_percent_within_bounds(weights_bytes: int, expected: int) -> None:
    """The workspace is a twentieth of the weights, from 1 MiB to 512 MiB."""
    assert ledger.margin_bytes(weights_bytes) == expected


def test_a_batch_is_padded_to_its_longest_row() -> None:
    """Every row costs as much as the longest, which may be a step of the cache ahead."""
    assert KvShape(((10, None),)).batch_bytes([3000, 20, 20]) == 3 * (3000 + 255) * 10


def test_a_short_row_pays_for_no_long_one() -> None:
    """Rows of one length class are padded to its longest, and to none of another class; alone, to nothing."""
    shape = KvShape(((10, None),))
    lengths = [40_000, 8192, 20, 8193]
    assert shape.batch_bytes(lengths) == (40_255 + 2 * 8447 + 8448) * 10
    assert shape.batch_bytes(lengths, is_padded=False) == (40_255 + 8447 + 275 + 8448) * 10
    assert [length_class(tokens) for tokens in (1, 8192, 8193, 32_768, 32_769, 131_073)] == [0, 0, 1, 1, 2, 3]


def test_a_row_pads_those_that_it_leaves() -> None:
    """Until a row has moved to longer ones, the rows that stay are padded to it; where none stay, to nothing."""
    shape = KvShape(((10, None),))
    assert shape.batch_bytes([9000, 20, 30], left=[8000]) == (9255 + 2 * 8255) * 10
    assert shape.batch_bytes([9000], left=[8000]) == 9255 * 10
    assert shape.batch_bytes([9000, 20, 30], left=[8000], is_padded=False) == (9255 + 275 + 285) * 10


def test_rows_one_by_one_are_not_padded() -> None:
    """A model whose rows share no batch reserves for each what it holds itself."""
    one_by_one = dataclasses.replace(facts(100 * MB), decoding=Decoding.ONE_BY_ONE)
    assert not Resident(entry("a", one_by_one), facts=one_by_one).is_padded
    assert Resident(entry("a", facts(100 * MB)), facts=facts(100 * MB)).is_padded


def test_sliding_windows_do_not_grow_beyond_their_cap() -> None:
    """A capped cache kind costs no more tokens than its cap, and a step of the prompt while that is processed."""
    shape = KvShape(((10, None), (5, 512)), fixed_bytes=7)
    assert shape.batch_bytes([3000]) == 3255 * 10 + (512 + 1024) * 5 + 7
    assert shape.batch_bytes([600]) == 855 * 10 + 600 * 5 + 7


def test_only_so_many_prompts_are_processed_at_a_time() -> None:
    """The prompts' steps cost no more often than there are rows in a prefill."""
    assert KvShape(((5, 512),)).batch_bytes([3000] * 20) == 20 * 512 * 5 + 8 * 1024 * 5


def test_a_loaded_model_reserves_one_short_sequence() -> None:
    """Weights, margin and the KV of a short sequence are reserved although nothing runs."""
    footprint = ledger.footprint(resident())

    assert (footprint.weights_bytes, footprint.margin_bytes, footprint.kv_bytes) == (100 * MB, 5 * MB, SHORT_KB * KB)
    assert footprint.total_bytes == ledger.floor_bytes(resident())


def test_a_short_context_reserves_no_more_than_itself() -> None:
    """A model of 512 tokens of context needs no more than these."""
    small = Resident(entry("a", facts(100 * MB, context_length=512)))

    assert ledger.short_sequence_bytes(small) == (512 + 255) * KB


def test_an_unloaded_model_reserves_nothing() -> None:
    """The record of an unloaded model holds no bytes."""
    unloaded = Resident(entry("a", facts(100 * MB)))

    assert ledger.held_bytes(unloaded) == 0


async def test_a_sequence_within_the_least_needs_nothing_more() -> None:
    """The first short sequence of a loaded model starts without any free memory."""
    assert ledger.admission_bytes(resident(), 1280) == 0
    assert ledger.admission_bytes(resident(), 2048) == (2048 - 1280) * KB


async def test_a_second_row_pays_for_the_padding() -> None:
    """A short row beside a long one costs as much as the long one."""
    model = resident()
    await add(model, 4096)

    assert ledger.admission_bytes(model, 256) == (4096 + 255) * KB


async def test_growth_of_a_shorter_row_is_free() -> None:
    """A row that stays below the longest is padded already."""
    model = resident()
    await add(model, 4096)
    short = await add(model, 1024)

    assert ledger.growth_bytes(short, 2048) == 0
    assert ledger.growth_bytes(short, 5120) == 2 * 1024 * KB


async def test_a_finish_into_the_prompt_cache_does_not_grow_the_sum() -> None:
    """What a row moves into the prompt cache was reserved for it, also where the least is all that it had."""
    for granted_tokens in (256, 1280, 4096):
        model = resident()
        sequence = await add(model, granted_tokens)
        before = ledger.held_bytes(model)

        sequence.end()
        assert isinstance(model.engine, CachedEngine)
        model.engine.cached_bytes = granted_tokens * KB

        assert ledger.held_bytes(model) <= before


async def test_growth_into_a_longer_class_frees_nothing_yet() -> None:
    """What a row that moves to longer ones will free is settled at once, and held until the device has moved it."""
    model = resident()
    long = await add(model, 7680)
    await add(model, 1280)
    before = ledger.held_bytes(model)

    growth = ledger.growth_bytes(long, 8704)
    assert growth == (8704 - 7680) * KB

    long.left_tokens, long.granted_tokens = 7680, 8704
    assert ledger.held_bytes(model) == before + growth
    assert ledger.settled_bytes(model) == 105 * MB + (8704 + 255 + 1280 + 255) * KB


async def test_a_pausing_row_settles_to_nothing() -> None:
    """What will be free counts rows that have been told to go; what is held does not, until the device confirms."""
    model = resident()
    await add(model, 4096, SequenceState.PAUSING)

    assert ledger.held_bytes(model) == 105 * MB + (4096 + 255) * KB
    assert ledger.settled_bytes(model) == ledger.floor_bytes(model)


async def test_settled_without_a_sequence() -> None:
    """The gain of a pause is what is settled with and without the sequence."""
    model = resident()
    long = await add(model, 4096)
    await add(model, 2048)

    gain = ledger.settled_bytes(model) - ledger.settled_bytes(model, without=[long])

    assert gain == (2 * (4096 + 255) - (2048 + 255)) * KB


def test_an_unloading_model_settles_to_nothing() -> None:
    """While the device frees it, it is held; then it is gone."""
    model = resident()
    model.state = ModelState.UNLOADING

    assert ledger.held_bytes(model) == ledger.floor_bytes(model)
    assert ledger.settled_bytes(model) == 0


def test_the_prompt_cache_may_fill_the_least() -> None:
    """A cache within the KV of a short sequence costs nothing more, and emptying it frees nothing."""
    model = resident(cached_bytes=1000 * KB)

    assert ledger.held_bytes(model) == ledger.floor_bytes(model)
    assert ledger.trimmable_bytes(model) == 0
    assert ledger.trimmable_bytes(model, 1280) == 1000 * KB


def test_what_could_not_be_trimmed_is_not_promised_again() -> None:
    """After a trim that left 3 MB, only what is above them counts as trimmable."""
    model = resident(cached_bytes=10 * MB)
    model.untrimmable_bytes = 3 * MB

    assert ledger.trimmable_bytes(model) == 7 * MB


def test_a_trim_under_way_is_not_planned_twice() -> None:
    """While a trim runs, its result is in what is settled, and nothing more can be trimmed."""
    model = resident(cached_bytes=10 * MB)
    model.trim_target_bytes = 4 * MB

    assert ledger.trimmable_bytes(model) == 0
    assert ledger.settled_bytes(model) == 105 * MB + 4 * MB


def test_free_buffers_are_a_tenth_up_to_2_gib() -> None:
    """MLX may keep a tenth of the limit, at most 2 GiB."""
    assert ledger.free_buffers_bytes(100 * MB) == 10 * MB
    assert ledger.free_buffers_bytes(2**40) == 2 * 2**30
