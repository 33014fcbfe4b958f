"""KV and states that tell which tokens they are of, for a prompt cache to keep."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, KVCache

from mlxd.engine.kv import CacheMaker, Snapshot

# One head of size 1, float32, and the token itself.
TOKEN_BYTES = 2 * 4 + 4
STATE_BYTES = 400


def maker(*parts: Any) -> CacheMaker:
    """Return what makes caches of these kinds."""
    return CacheMaker(SimpleNamespace(make_cache=lambda: [part() for part in parts]))


PLAIN = maker(KVCache)
MIXED = maker(KVCache, lambda: ArraysCache(1))


def kv(tokens: list[int]) -> KVCache:
    """Return KV that tells which tokens it is of."""
    cache = KVCache()
    cache.keys = mx.array(tokens, dtype=mx.float32).reshape(1, 1, -1, 1)
    cache.values = -cache.keys
    cache.offset = len(tokens)
    return cache


def state(tokens: list[int]) -> ArraysCache:
    """Return a state that tells after which tokens it was."""
    cache = ArraysCache(1)
    cache.cache = [mx.full((1, STATE_BYTES // 4), float(sum(tokens)))]
    return cache


def snapshot(tokens: list[int]) -> Snapshot:
    """Return what a row keeps on its way."""
    return MIXED.snapshot([kv(tokens), state(tokens)])


def read(cache: list[Any] | None) -> list[int]:
    """Return the tokens that KV is of."""
    assert cache is not None
    keys, values = cache[0].keys_and_values()
    assert mx.array_equal(keys, -values)
    return [int(number) for number in keys.reshape(-1).tolist()]


def layers(caches: CacheMaker, tokens: list[int]) -> list[Any]:
    """Return what the layers of a model keep of some tokens."""
    return [kv(tokens), state(tokens)] if caches is MIXED else [kv(tokens)]
