"""The prompt cache: beginnings found and shared, bounded in bytes, and what is worth the least makes room."""

from __future__ import annotations

import dataclasses
import gc
import random

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, QuantizedKVCache, RotatingKVCache

from mlxd.engine.kv import CacheMaker, leaves
from mlxd.engine.prompt_cache import PromptCache
from tests.engine.bench import WriteModel
from tests.support.clock import FakeClock
from tests.support.every_architecture import config_of, make_model
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.stored_kv import MIXED, PLAIN, STATE_BYTES, TOKEN_BYTES, kv, maker, read, snapshot, state


def test_longest_prefix_is_found(cache: PromptCache) -> None:
    """Of a longer prompt the known beginning comes back."""
    cache.store([1, 2, 3], [kv([1, 2, 3])])
    found = cache.fetch([1, 2, 3, 4, 5])
    assert (found.known, found.shared, read(found.cache)) == (3, 3, [1, 2, 3])
    assert cache.fetch([9, 1, 2, 3]).known == 0


def test_common_beginning_is_cut_out(cache: PromptCache) -> None:
    """A stored sequence that goes on differently serves as far as it agrees."""
    cache.store([1, 2, 3, 4, 5], [kv([1, 2, 3, 4, 5])])
    found = cache.fetch([1, 2, 3, 9])
    assert (found.known, read(found.cache)) == (3, [1, 2, 3])


@pytest.mark.parametrize("stored", [3, 5])
def test_one_token_is_left_over(cache: PromptCache, stored: int) -> None:
    """A prompt that is known to its end is cut by a token, which the model goes on from."""
    cache.store(list(range(stored)), [kv(list(range(stored)))])
    found = cache.fetch([0, 1, 2])
    assert (found.known, found.shared, read(found.cache)) == (2, 3, [0, 1])


def test_known_single_token_is_no_hit(cache: PromptCache) -> None:
    """Nothing would be left of it."""
    cache.store([1], [kv([1])])
    assert cache.fetch([1]).cache is None


def test_what_sequences_have_in_common_is_kept_once(cache: PromptCache) -> None:
    """Branches take the bytes of their own tokens only, wherever they part."""
    cache.store([1, 2, 3, 4], [kv([1, 2, 3, 4])])
    cache.store([1, 2, 9], [kv([1, 2, 9])])
    cache.store([1, 2, 3, 4, 5], [kv([1, 2, 3, 4, 5])])
    cache.store([1, 2, 9, 8], [kv([1, 2, 9, 8])])
    assert cache.stored_bytes == 7 * TOKEN_BYTES
    for tokens in ([1, 2, 3, 4, 5], [1, 2, 9, 8]):
        assert read(cache.fetch([*tokens, 0]).cache) == tokens


def test_a_state_serves_at_checkpoints_only(mixed: PromptCache) -> None:
    """A state cannot go back: what continues from another place begins anew, or at the checkpoint before."""
    tokens = [1, 2, 3, 4, 5, 6]
    mixed.store(tokens, [kv(tokens), state(tokens)], {2: snapshot([1, 2])})
    assert [mixed.fetch([*tokens[:end], 9, 9]).known for end in (1, 2, 3, 5, 6)] == [0, 2, 2, 2, 6]
    assert mixed.fetch(tokens).known == 2
    found = mixed.fetch([1, 2, 3, 9])
    assert found.shared == 3
    assert found.cache is not None
    assert read(found.cache) == [1, 2]
    assert found.cache[1].cache[0][0, 0].item() == 3


def test_checkpoints_of_known_tokens_are_added(mixed: PromptCache) -> None:
    """A sequence that parts from a stored one leaves its checkpoint in the part that both have."""
    mixed.store([1, 2, 3, 4], [kv([1, 2, 3, 4]), state([1, 2, 3, 4])])
    mixed.store([1, 2, 3, 5], [kv([1, 2, 3, 5]), state([1, 2, 3, 5])], {2: snapshot([1, 2])})
    assert mixed.fetch([1, 2, 7]).known == 2
    assert mixed.stored_bytes == 5 * TOKEN_BYTES + 3 * STATE_BYTES


def test_fetched_kv_is_a_copy(mixed: PromptCache) -> None:
    """What a row does to its KV does not reach the stored one."""
    mixed.store([1, 2, 3], [kv([1, 2, 3]), state([1, 2, 3])])
    found = mixed.fetch([1, 2, 3, 4]).cache
    assert found is not None
    found[0].keys[..., :] = 9.0
    found[0].update_and_fetch(mx.ones((1, 1, 1, 1)), mx.ones((1, 1, 1, 1)))
    found[1].cache[0][..., :] = 9.0
    again = mixed.fetch([1, 2, 3, 4]).cache
    assert read(again) == [1, 2, 3]
    assert again is not None
    assert again[1].cache[0][0, 0].item() == 6


def test_stored_kv_is_a_copy(mixed: PromptCache) -> None:
    """mlx-lm goes on with what it hands out."""
    tokens, layers = [1, 2, 3], [kv([1, 2, 3]), state([1, 2, 3])]
    mixed.store(tokens, layers)
    tokens.append(4)
    layers[0].keys[..., :] = 9.0
    layers[1].cache[0][..., :] = 9.0
    found = mixed.fetch([1, 2, 3, 4]).cache
    assert found is not None
    assert read(found) == [1, 2, 3]
    assert found[1].cache[0][0, 0].item() == 6


def test_what_is_too_large_is_counted_and_drives_nothing_out(cache: PromptCache) -> None:
    """An entry over the bound is not kept at all."""
    cache.store([1] * 10, [kv([1] * 10)])
    cache.store([4] * 21, [kv([4] * 21)])
    cache.store([1] * 10 + [4] * 11, [kv([1] * 10 + [4] * 11)])
    assert (cache.too_large, cache.stored_bytes) == (2, 10 * TOKEN_BYTES)
    cache.store([4] * 20, [kv([4] * 20)])
    assert (cache.too_large, cache.fetch([4] * 21).known) == (2, 20)


def test_nothing_is_kept_where_nothing_may_be(mixed: PromptCache) -> None:
    """0 is a bound."""
    mixed.set_limit(0)
    mixed.store([1], [kv([1]), state([1])])
    assert (mixed.stored_bytes, mixed.too_large) == (0, 0)


def test_an_empty_sequence_is_no_entry(cache: PromptCache) -> None:
    """A row that ends before its first step has no KV."""
    cache.store([], [KVCache()])
    assert cache.stored_bytes == 0


def test_a_window_keeps_what_it_looks_at(clock: FakeClock) -> None:
    """A kept window has gone round, has its last tokens in order, and goes on as the one it was taken from."""
    windows = maker(lambda: RotatingKVCache(max_size=4))
    cache = PromptCache(windows, 10**6, clock.now)
    window = RotatingKVCache(max_size=4)
    for chunk in ([0, 1, 2], [3, 4, 5, 6, 7, 8], [9], [10]):
        part = mx.array(chunk, dtype=mx.float32).reshape(1, 1, -1, 1)
        window.update_and_fetch(part, part)
    cache.store(list(range(11)), [window])
    assert cache.stored_bytes == 2 * 4 * 4 + 11 * 4
    found = cache.fetch(list(range(12))).cache
    assert found is not None
    assert found[0].keys.reshape(-1).tolist() == [7, 8, 9, 10]
    more = mx.full((1, 1, 1, 1), 11.0)
    kept, original = found[0].update_and_fetch(more, more)[0], window.update_and_fetch(more, more)[0]
    assert sorted(kept.reshape(-1).tolist()) == sorted(original.reshape(-1).tolist()) == [8, 9, 10, 11]
    assert found[0].offset == window.offset


def test_lists_of_caches_and_quantized_ones(clock: FakeClock) -> None:
    """Every kind of cache goes in and comes out as it was, whatever it is nested in."""
    kinds = maker(lambda: CacheList(KVCache(), ArraysCache(1)), lambda: QuantizedKVCache(group_size=32, bits=8))
    cache = PromptCache(kinds, 10**6, clock.now)
    tokens = [1, 2, 3, 4]
    quantized = QuantizedKVCache(group_size=32, bits=8)
    numbers = mx.random.normal((1, 1, 4, 32))
    quantized.update_and_fetch(numbers, numbers)
    layers = [CacheList(kv(tokens), state(tokens)), quantized]
    cache.store(tokens, layers)
    found = cache.fetch([*tokens, 5]).cache
    assert found is not None
    plain, still, packed = leaves(found)
    assert read([plain]) == tokens
    assert still.cache[0][0, 0].item() == 10
    assert packed.offset == 4
    for got, expected in zip(packed.keys, quantized.keys, strict=True):
        assert mx.array_equal(got, expected[..., :4, :])


def test_random_sequences_are_found_as_far_as_they_agree(clock: FakeClock) -> None:
    """Against a plain list of all that was stored: the longest common beginning, with the right KV in it."""
    rng = random.Random(1)
    for _ in range(60):
        cache = PromptCache(PLAIN, 10**6, clock.now)
        stored: list[list[int]] = []
        for _ in range(rng.randrange(1, 9)):
            tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
            cache.store(tokens, [kv(tokens)])
            stored.append(tokens)
        query = [rng.randrange(3) for _ in range(rng.randrange(2, 9))]
        found = cache.fetch(query)
        shared = max(agreement(query, tokens) for tokens in stored)
        assert (found.shared, found.known) == (shared, min(shared, len(query) - 1))
        if found.known:
            assert read(found.cache) == query[: found.known]


def agreement(one: list[int], other: list[int]) -> int:
    """Return how many tokens agree at the beginning."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def test_bytes_are_the_memory_held(clock: FakeClock) -> None:
    """Through random stores, hits and evictions the count equals what MLX holds, and is never over the bound."""
    rng = random.Random(2)
    gc.collect()
    mx.synchronize()
    limit_bytes = mx.set_cache_limit(0)  # a buffer that is used again may be larger than what it is used for
    mx.clear_cache()
    base_bytes = mx.get_active_memory()
    bound_bytes = 30 * STATE_BYTES
    cache = PromptCache(MIXED, bound_bytes, clock.now)
    for _ in range(200):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(2, 12))]
        ends = rng.sample(range(1, len(tokens)), rng.randrange(len(tokens)))
        cache.store(tokens, [kv(tokens), state(tokens)], {end: snapshot(tokens[:end]) for end in ends})
        found = cache.fetch([*tokens, 7])
        if found.cache is not None:
            assert read(found.cache) == tokens[: found.known]
            assert found.cache[1].cache[0][0, 0].item() == sum(tokens[: found.known])
        clock.move(rng.random())
        if rng.random() < 0.1:
            cache.trim(rng.randrange(bound_bytes))
        assert cache.stored_bytes <= bound_bytes
    del found
    gc.collect()
    mx.synchronize()
    held_bytes = mx.get_active_memory() - base_bytes
    assert held_bytes == pytest.approx(cache.stored_bytes, rel=0.05)  # the tokens are no arrays
    cache.trim(0)
    assert cache.stored_bytes == 0
    assert mx.get_active_memory() == base_bytes
    mx.set_cache_limit(limit_bytes)


def test_kept_states_do_not_hold_their_batch(write_model: WriteModel) -> None:
    """What rows leave behind as they end one by one takes the memory that it counts, states included."""
    model = make_model(config_of("qwen3_next"))
    mx.eval(model.parameters())
    kv_shape, vocab_size = CacheMaker(model).probe()
    tiny = load_now(write_model())
    facts = dataclasses.replace(tiny.facts, kv=kv_shape, vocab_size=vocab_size)
    stepped = SteppedModel(dataclasses.replace(tiny, model=model, facts=facts), prompt_cache_bytes=100_000_000)
    mx.synchronize()
    gc.collect()
    before_bytes = mx.get_active_memory()
    stepped.run(*(stepped.start(f"{number} of eight", max_tokens=4 + 3 * number) for number in range(8)))
    mx.synchronize()
    gc.collect()
    stored_bytes = stepped.model.prompts.stored_bytes
    assert 8 * kv_shape.fixed_bytes <= stored_bytes
    assert mx.get_active_memory() - before_bytes <= 1.2 * stored_bytes
