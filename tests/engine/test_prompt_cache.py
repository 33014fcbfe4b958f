"""`engine.prompt_cache`: prefixes found, bounded, with a search that is mlx-lm's in less time."""

from __future__ import annotations

import copy
import dataclasses
import gc
import random

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, PromptTrie, RotatingKVCache

from mlxd.engine.kv import CacheMaker
from mlxd.engine.prompt_cache import PromptCache, _Trie
from tests.engine.bench import WriteModel
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.tiny_architecture import ARCHITECTURES, make_model

TOKEN_BYTES = 2 * 4  # one head of size 1, float32


def kv(tokens: int) -> list[KVCache]:
    """Return the KV of so many tokens, exactly as large."""
    cache = KVCache()
    cache.keys = cache.values = mx.zeros((1, 1, tokens, 1))
    cache.offset = tokens
    return [cache]


@pytest.fixture
def cache() -> PromptCache:
    """Room for 20 tokens."""
    return PromptCache(20 * TOKEN_BYTES)


def test_longest_prefix_is_found(cache: PromptCache) -> None:
    """Of a longer prompt the known beginning comes back."""
    cache.store([1, 2, 3], kv(3))
    found, known = cache.fetch([1, 2, 3, 4, 5])
    assert known == 3
    assert found is not None
    assert found[0].offset == 3
    assert cache.fetch([9, 1, 2, 3]) == (None, 0)


def test_common_beginning_is_cut_out(cache: PromptCache) -> None:
    """A stored sequence that goes on differently serves as far as it agrees."""
    cache.store([1, 2, 3, 4, 5], kv(5))
    found, known = cache.fetch([1, 2, 3, 9])
    assert known == 3
    assert found is not None
    assert found[0].offset == 3


@pytest.mark.parametrize("stored", [3, 5])
def test_one_token_is_left_over(cache: PromptCache, stored: int) -> None:
    """A prompt that is known to its end is cut by a token, which the model goes on from."""
    cache.store(list(range(stored)), kv(stored))
    found, known = cache.fetch([0, 1, 2])
    assert known == 2
    assert found is not None
    assert found[0].offset == 2


def test_known_single_token_is_no_hit(cache: PromptCache) -> None:
    """Nothing would be left of it."""
    cache.store([1], kv(1))
    assert cache.fetch([1]) == (None, 0)


def test_cache_that_cannot_be_cut_serves_whole_prefixes_only() -> None:
    """A window that has gone round cannot go back: exact hits and diverging ones are none."""
    cache = PromptCache(10**6)
    window = RotatingKVCache(max_size=2)
    window.update_and_fetch(mx.zeros((1, 1, 3, 1)), mx.zeros((1, 1, 3, 1)))
    cache.store([1, 2, 3], [window])
    assert cache.fetch([1, 2, 3]) == (None, 0)
    assert cache.fetch([1, 2, 9]) == (None, 0)
    assert cache.fetch([1, 2, 3, 4])[1] == 3


def test_fetched_kv_is_a_copy(cache: PromptCache) -> None:
    """What a row does to its KV does not reach the stored one."""
    cache.store([1, 2, 3], kv(3))
    found, _ = cache.fetch([1, 2, 3, 4])
    assert found is not None
    found[0].trim(3)
    again, known = cache.fetch([1, 2, 3, 4])
    assert again is not None
    assert (again[0].offset, known) == (3, 3)


def test_oldest_makes_room(cache: PromptCache) -> None:
    """The bound is in bytes, and an entry over it is not kept at all."""
    cache.store([1] * 10, kv(10))
    cache.store([2] * 10, kv(10))
    cache.store([3] * 5, kv(5))
    assert cache.stored_bytes == 15 * TOKEN_BYTES
    assert [cache.fetch([token] * 11)[1] for token in (1, 2, 3)] == [0, 10, 5]
    cache.store([4] * 21, kv(21))
    assert cache.stored_bytes == 15 * TOKEN_BYTES


def test_stored_tokens_are_a_copy(cache: PromptCache) -> None:
    """mlx-lm goes on with the lists it hands out."""
    tokens = [1, 2, 3]
    cache.store(tokens, kv(3))
    tokens.append(4)
    cache.set_limit(0)
    assert cache.stored_bytes == 0


def test_extended_sequence_replaces_its_beginning(cache: PromptCache) -> None:
    """A conversation has one entry, not one per turn."""
    cache.store([1, 2, 3], kv(3))
    cache.store([1, 2, 3, 4], kv(4))
    assert cache.stored_bytes == 4 * TOKEN_BYTES


def test_limit_shrinks_at_once_and_trim_does_not_bind(cache: PromptCache) -> None:
    """`trim` is for once, `set_limit` from now on."""
    cache.store([1] * 10, kv(10))
    cache.store([2] * 10, kv(10))
    cache.trim(10 * TOKEN_BYTES)
    assert cache.stored_bytes == 10 * TOKEN_BYTES
    cache.store([3] * 10, kv(10))
    assert cache.stored_bytes == 20 * TOKEN_BYTES
    cache.set_limit(5 * TOKEN_BYTES)
    cache.store([4] * 6, kv(6))
    assert cache.stored_bytes == 0


def test_stored_view_lets_its_batch_go() -> None:
    """KV cut out of a batch does not keep the batch in memory."""
    before = mx.get_active_memory()
    batch = mx.zeros((1, 1, 1_000_000, 1))
    mx.eval(batch)
    entry = KVCache()
    entry.keys = entry.values = mx.contiguous(batch[:, :, :100])
    entry.offset = 100
    cache = PromptCache(10**6)
    cache.store(list(range(100)), [entry])
    del batch
    assert mx.get_active_memory() - before < 10_000


def test_search_agrees_with_mlx_lm() -> None:
    """On random sequences the linear search finds what the original finds."""
    rng = random.Random(1)
    for _ in range(300):
        ours, theirs = _Trie(), PromptTrie()
        for _ in range(rng.randrange(6)):
            tokens = [rng.randrange(3) for _ in range(rng.randrange(2, 8))]
            ours.add(0, tokens, "value")
            theirs.add(0, tokens, "value")
        query = [rng.randrange(3) for _ in range(rng.randrange(2, 8))]
        got, expected = ours.search(0, query), theirs.search(0, copy.copy(query))
        assert (got.exact, got.common_prefix) == (expected.exact, expected.common_prefix)
        assert got.shorter == expected.shorter
        assert got.longer is None or len(got.longer) == len(expected.longer)
        assert (got.longer is None) == (expected.longer is None)


def test_kept_states_do_not_hold_their_batch(write_model: WriteModel) -> None:
    """What rows leave behind as they end one by one takes the memory that it counts, states included."""
    model = make_model(ARCHITECTURES["qwen3_next"])
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
