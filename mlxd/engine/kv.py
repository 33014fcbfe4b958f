"""The caches of a model and what the KV of one sequence costs in them. Used on the device thread only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, make_prompt_cache

from mlxd.engine.kv_shape import KV_STEP_TOKENS, KvShape


class CacheMaker:
    """Makes the caches of one model; nothing else does."""

    def __init__(self, model: Any) -> None:
        """Take one of mlx-lm's models."""
        self._model = model

    @property
    def can_merge(self) -> bool:
        """Whether rows can share a batch of these caches."""
        return all(hasattr(part, "merge") for part in leaves(self.make()))

    def make(self) -> list[Any]:
        """Return an empty, unbatched cache per layer."""
        cache: list[Any] = make_prompt_cache(self._model)
        return [_Chunked(part.chunk_size) if type(part) is ChunkedKVCache else part for part in cache]

    def probe(self) -> tuple[KvShape, int]:
        """Return the shape of the model's KV, and the size of its vocabulary (the logits' last axis).

        Item sizes are those of the activations, which the files do not tell: 4-bit weights may have float32 KV. One
        token is sent through the model and nothing is evaluated: shapes and types are known without.
        """
        cache = self.make()
        logits = self._model(mx.array([[0]]), cache=cache)
        per_token_bytes: Counter[int | None] = Counter()
        fixed_bytes = 0
        for part in leaves(cache):
            keys = getattr(part, "keys", None)
            if keys is None:
                fixed_bytes += part.nbytes
            else:
                per_token_bytes[_most_tokens(part)] += part.nbytes // keys.shape[2]
        groups = tuple((n_bytes, cap) for cap, n_bytes in per_token_bytes.items())
        return KvShape(groups=groups, fixed_bytes=fixed_bytes), int(logits.shape[-1])


class _Chunked(ChunkedKVCache):  # type: ignore[misc]
    """mlx-lm's cache of attention in chunks, which says that it can be cut back when what lies before is gone."""

    def is_trimmable(self) -> bool:
        """Whether nothing has been dropped."""
        return bool(self.start_position == 0)


def leaves(cache: list[Any]) -> Iterator[Any]:
    """Return the caches of all layers, those in lists one by one."""
    for part in cache:
        if isinstance(part, CacheList):
            yield from leaves(part.caches)
        else:
            yield part


def detach(cache: list[Any]) -> None:
    """Give an unbatched cache arrays of its own, evaluated and no longer than its tokens.

    What mlx-lm extracts of a state is a view that keeps the whole batch alive, and so is anything not evaluated.
    """
    cut_to_length(cache)
    for part in leaves(cache):
        if isinstance(part, ArraysCache):
            part.cache = [None if array is None else mx.contiguous(array) for array in part.cache]
    mx.eval([part.state for part in cache])


def cut_to_length(cache: list[Any]) -> None:
    """Drop what an unbatched cache has beyond its tokens: room to grow, and what a trim left behind."""
    for part in leaves(cache):
        keys = getattr(part, "keys", None)
        if keys is None or hasattr(part, "max_size"):  # a window is bounded, and its order is its own
            continue
        kept = part.offset - getattr(part, "start_position", 0)
        if kept < keys.shape[2]:
            part.keys = mx.contiguous(keys[..., :kept, :])
            part.values = mx.contiguous(part.values[..., :kept, :])


def _most_tokens(part: Any) -> int | None:
    """Return the most tokens that a layer holds, but for the step of a prompt that it keeps with them."""
    chunk_size = getattr(part, "chunk_size", None)
    if chunk_size is not None:
        return int(chunk_size) + KV_STEP_TOKENS  # it grows by steps whatever its length
    return getattr(part, "max_size", None)
