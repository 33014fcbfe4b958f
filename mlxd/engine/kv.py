"""What the KV of one sequence costs, read off the model's own caches. Used on the device thread only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, make_prompt_cache

from mlxd.engine.kv_shape import KvShape
from mlxd.protocol.errors import LoadFailed


def probe_kv(model: Any) -> tuple[KvShape, int]:
    """Return the shape of the KV of *model*, and the size of its vocabulary (the logits' last axis).

    Item sizes are those of the activations, which the files do not tell: 4-bit weights may have float32 KV. One token
    is sent through the model and nothing is evaluated: shapes and types are known without.

    Raises:
        LoadFailed: the model has a cache that mlx-lm cannot batch.
    """
    cache = make_prompt_cache(model)
    logits = model(mx.array([[0]]), cache=cache)
    per_token_bytes: Counter[int | None] = Counter()
    fixed_bytes = 0
    for part in _leaves(cache):
        if not hasattr(part, "merge"):
            raise LoadFailed(f"mlx-lm cannot batch this model: its cache is a {type(part).__name__}")
        keys = getattr(part, "keys", None)
        if keys is None:
            fixed_bytes += part.nbytes
        else:
            per_token_bytes[getattr(part, "max_size", None)] += part.nbytes // keys.shape[2]
    groups = tuple((n_bytes, cap) for cap, n_bytes in per_token_bytes.items())
    return KvShape(groups=groups, fixed_bytes=fixed_bytes), int(logits.shape[-1])


def _leaves(cache: Any) -> Iterator[Any]:
    for part in cache:
        if isinstance(part, CacheList):
            yield from _leaves(part.caches)
        else:
            yield part
