"""What goes first when the prompt cache is full: what is worth the least, known without a look at everything."""

from __future__ import annotations

import random
from typing import Any

import mlx.core as mx
import pytest

from mlxd.engine.kv import CacheMaker, arrays_of
from mlxd.engine.prompt_cache import PromptCache
from mlxd.engine.worth import Heat, Order
from tests.support.clock import FakeClock
from tests.support.stored_kv import MIXED, PLAIN, STATE_BYTES, TOKEN_BYTES, kv, layers, snapshot, state


def test_oldest_makes_room(cache: PromptCache, clock: FakeClock) -> None:
    """The bound is in bytes; of what was used as often, the oldest goes."""
    for token in (1, 2):
        cache.store([token] * 10, [kv([token] * 10)])
        clock.move(1)
    cache.store([3] * 5, [kv([3] * 5)])
    assert cache.stored_bytes == 15 * TOKEN_BYTES
    assert [cache.fetch([token] * 11).known for token in (1, 2, 3)] == [0, 10, 5]


def test_a_hit_keeps(cache: PromptCache, clock: FakeClock) -> None:
    """What was used lately stays, though it was stored first."""
    for token in (1, 2):
        cache.store([token] * 10, [kv([token] * 10)])
        clock.move(1)
    cache.fetch([1] * 11)
    cache.store([3] * 5, [kv([3] * 5)])
    assert [cache.fetch([token] * 11).known for token in (1, 2, 3)] == [10, 0, 5]


def test_tails_go_before_the_head_that_they_share(cache: PromptCache, clock: FakeClock) -> None:
    """However old it is, what other sequences begin with stays as long as one of them does."""
    cache.store([1] * 5, [kv([1] * 5)])
    for token in range(2, 8):
        clock.move(100_000)
        tokens = [1] * 5 + [token] * 5
        cache.store(tokens, [kv(tokens)])
    assert cache.stored_bytes == 20 * TOKEN_BYTES
    assert [cache.fetch([1] * 5 + [token] * 6).known for token in range(2, 8)] == [5, 5, 5, 10, 10, 10]


def test_a_shared_checkpoint_outlives_those_of_one_conversation(mixed: PromptCache, clock: FakeClock) -> None:
    """A short head that several conversations begin with stays when long and fresh conversations pass by."""
    head = [1, 2]
    for question in (3, 4, 5):
        tokens = [*head, question]
        mixed.store(tokens, [kv(tokens), state(tokens)], {2: snapshot(head)})
        assert mixed.fetch([*head, 9]).known == 2
    clock.move(60)
    for number in range(6):
        tokens = [20 + number] * 12
        mixed.store(tokens, [kv(tokens), state(tokens)])
        clock.move(60)
    assert mixed.fetch([*head, 9]).known == 2
    clock.move(86_400)  # another day, other heads
    for number in range(6):
        tokens = [40 + number] * 12
        mixed.store(tokens, [kv(tokens), state(tokens)])
        clock.move(60)
    assert mixed.fetch([*head, 9]).known == 0


def test_limit_shrinks_at_once_and_trim_does_not_bind(cache: PromptCache, clock: FakeClock) -> None:
    """`trim` is for once, `set_limit` from now on."""
    for token in (1, 2):
        cache.store([token] * 10, [kv([token] * 10)])
        clock.move(1)
    cache.trim(10 * TOKEN_BYTES)
    assert cache.stored_bytes == 10 * TOKEN_BYTES
    cache.store([3] * 10, [kv([3] * 10)])
    assert cache.stored_bytes == 20 * TOKEN_BYTES
    cache.set_limit(5 * TOKEN_BYTES)
    cache.store([4] * 6, [kv([4] * 6)])
    assert (cache.stored_bytes, cache.too_large) == (0, 1)


def test_long_sequences_are_cut_back_piece_by_piece(clock: FakeClock) -> None:
    """When room is needed, a long sequence loses its end and keeps its beginning."""
    cache = PromptCache(PLAIN, 10_000 * TOKEN_BYTES, clock.now)
    tokens = [number % 7 for number in range(10_000)]
    cache.store(tokens, [kv(tokens)])
    clock.move(1)
    cache.store([9] * 100, [kv([9] * 100)])
    known = cache.fetch(tokens).known
    assert 7_000 < known < 10_000
    assert cache.fetch([9] * 101).known == 100
    assert cache.stored_bytes == (known + 100) * TOKEN_BYTES


def test_a_sequence_that_there_is_no_memory_for_changes_nothing(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory ends in the middle of a copy, nothing of the sequence is kept, and the count is what is held."""
    cache = PromptCache(PLAIN, 10**9, clock.now)
    tokens = [number % 100 for number in range(3 * 2048)]
    left = [1]

    def evaluate(item: Any) -> None:
        copied = sum(1 for _ in arrays_of(item)) // 2
        left[0] -= copied
        if left[0] < 0:
            raise RuntimeError("out of memory")

    monkeypatch.setattr("mlxd.engine.prompt_cache.mx.eval", evaluate)
    with pytest.raises(RuntimeError, match="out of memory"):
        cache.store(tokens, [kv(tokens)])
    assert (cache.fetch(tokens).known, cache.stored_bytes) == (0, 0)


@pytest.mark.parametrize("caches", [PLAIN, MIXED], ids=["plain", "states"])
def test_what_a_failed_copy_was_to_go_on_from_can_still_go(
    caches: CacheMaker, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory ends after others have made room, nothing stays that is never evicted."""
    cache = PromptCache(caches, 2 * STATE_BYTES + 10 * TOKEN_BYTES, clock.now)
    known, other = [1, 2, 3], [9, 9]
    longer = [*known, *range(10, 14 if caches is MIXED else 80)]
    for tokens in (known, other):
        cache.store(tokens, layers(caches, tokens))
    clock.move(60)
    cache.fetch([*other, 0])  # of a model with states, what was known goes first now

    def evaluate(item: Any) -> None:
        if item and not isinstance(item[0], mx.array):  # what was copied of the runs
            raise RuntimeError("out of memory")

    kept = layers(caches, longer)
    monkeypatch.setattr("mlxd.engine.prompt_cache.mx.eval", evaluate)
    with pytest.raises(RuntimeError, match="out of memory"):
        cache.store(longer, kept)
    assert cache.fetch([*longer, 0]).known == (0 if caches is MIXED else len(known))
    cache.trim(0)
    assert cache.stored_bytes == 0


def test_a_store_looks_at_few_of_many(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """To make room in a cache of a thousand checkpoints, the worth of those that change is counted, and no other."""
    head = [1, 2]
    cache = PromptCache(MIXED, 10**9, clock.now)
    cache.store(head, layers(MIXED, head))
    for number in range(1000):
        tokens = [*head, 3 + number]
        cache.store(tokens, layers(MIXED, tokens))
        clock.move(1)
    cache.max_bytes = cache.stored_bytes
    counted = []
    worth = Heat.worth

    def count(heat: Heat, saved: int, n_bytes: int, *, may_be_shared: bool) -> float:
        counted.append(heat)
        return worth(heat, saved, n_bytes, may_be_shared=may_be_shared)

    monkeypatch.setattr(Heat, "worth", count)
    for number in range(10):
        cache.store([*head, 2000 + number], layers(MIXED, [*head, 2000 + number]))
        assert cache.fetch([*head, 2000 + number, 0]).known == 3
        clock.move(1)
    assert cache.fetch([*head, 3 + 10, 0]).known == 3
    assert [cache.fetch([*head, 3 + number, 0]).known for number in range(10)] == [2] * 10
    assert len(counted) <= 10 * 2 + 11


@pytest.mark.parametrize("caches", [PLAIN, MIXED], ids=["plain", "states"])
def test_the_least_worth_is_known_at_any_time(caches: CacheMaker, clock: FakeClock) -> None:
    """Through random stores, hits and evictions, each item has the place that a fresh count of all gives it."""
    rng = random.Random(4)
    cache = PromptCache(caches, 20 * STATE_BYTES, clock.now)
    for _ in range(300):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(2, 12))]
        ends = rng.sample(range(1, len(tokens)), rng.randrange(len(tokens))) if caches is MIXED else []
        cache.store(tokens, layers(caches, tokens), {end: snapshot(tokens[:end]) for end in ends})
        cache.fetch([*tokens[: rng.randrange(1, 12)], 7])
        clock.move(rng.random() * 600)
        if rng.random() < 0.1:
            cache.trim(rng.randrange(20 * STATE_BYTES))
        kept = {id(item): worth for worth, _, item in cache._order._sorted}
        items = evictable(cache, caches)
        assert len(items) > 0 or cache.stored_bytes == 0
        assert kept.keys() == {id(item) for item in items}
        for item in items:
            cache._rank(item)
        assert kept == {id(item): worth for worth, _, item in cache._order._sorted}
    cache.trim(0)
    assert cache.stored_bytes == 0


def evictable(cache: PromptCache, caches: CacheMaker) -> list[Any]:
    """Return what may go next, by a walk over all that is kept."""
    items: list[Any] = []
    below = list(cache._root.children.values())
    while below:
        run = below.pop()
        below += run.children.values()
        items += run.checkpoints.values() if caches is MIXED else [run] * (not run.children)
    return items


def test_order_changes_with_what_items_are_worth() -> None:
    """The least is first; of equals, the one that was put first."""
    order: Order[str] = Order()
    for item, worth in [("a", 2.0), ("b", 1.0), ("c", 1.0), ("d", 0.5)]:
        order.put(item, worth)
    order.put("a", 0.1)
    order.put("d", 3.0)
    gone = []
    while (least := order.least()) is not None:
        gone.append(least)
        order.discard(least)
        order.discard(least)
        assert least not in order
    assert gone == ["a", "b", "c", "d"]


def test_uses_fade_and_shared_ones_count_more() -> None:
    """A use counts half after half an hour; what several began with within that time is worth far more."""
    once, old = Heat(1, 3600), Heat(1, 0)
    assert once.worth(10, 10, may_be_shared=False) - old.worth(10, 10, may_be_shared=False) == 2
    old.add(1800)
    assert old.uses == 1.5
    twice, shared = Heat(1, 0), Heat(1, 0)
    for heat, uses in [(twice, 1), (shared, 2)]:
        for _ in range(uses):
            heat.add(60)
    assert shared.worth(1, 1000, may_be_shared=True) > twice.worth(50_000, 1000, may_be_shared=True)
