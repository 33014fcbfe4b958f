"""The caches of a model and what the KV of one sequence costs in them. Used on the device thread only."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from mlxd.engine.kv_shape import KV_STEP_TOKENS, KvShape
from mlxd.engine.memory import is_gpu

# What the layers of a sequence keep that cannot be cut, with arrays of their own; None for those that can.
Snapshot = tuple[Any, ...]
_PAGE_BYTES = 16_384
# `mx.contiguous` shares a buffer that is no more than 16 kB larger than what is used of it: much of a small array.
_SMALL_BYTES = 16 * 16_384
# They keep one entry per token and overwrite none.
_SLICEABLE = (KVCache, QuantizedKVCache, ConcatenateKVCache)


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

    @cached_property
    def _sliceable(self) -> tuple[bool, ...]:
        return tuple(type(part) in _SLICEABLE for part in leaves(self.make()))

    @property
    def has_states(self) -> bool:
        """Whether some layers keep what cannot be cut: a window or a state."""
        return not all(self._sliceable)

    def slices(self, cache: list[Any], start: int, end: int) -> list[Any]:
        """Return a copy of the KV of some tokens out of an unbatched cache; None for layers that cannot be cut."""
        return [
            _slice(part, start, end) if is_sliceable else None
            for part, is_sliceable in zip(leaves(cache), self._sliceable, strict=True)
        ]

    def snapshot(self, cache: list[Any], row: int | None = None) -> Snapshot:
        """Return a copy of what cannot be cut: of an unbatched cache, or of one *row* of a batch."""
        made = tuple(
            None if is_sliceable else _detached(copy.deepcopy(part) if row is None else part.extract(row))
            for part, is_sliceable in zip(leaves(cache), self._sliceable, strict=True)
        )
        mx.eval(list(arrays_of(made)))  # until then it keeps the whole batch in memory, which is copied as it changes
        return made

    def assemble(self, runs: Sequence[tuple[list[Any], int]], snapshot: Snapshot | None) -> list[Any]:
        """Return an unbatched cache out of slices, in order and each with how many of its tokens, and a snapshot.

        What can be cut is not evaluated: what it is merged into copies it.
        """
        parts = []
        for index, (part, is_sliceable) in enumerate(zip(leaves(self.make()), self._sliceable, strict=True)):
            if is_sliceable:
                pieces = [(slices[index], tokens) for slices, tokens in runs]
                if all(piece is not None for piece, _ in pieces):
                    part.keys, part.values = (
                        _joined([(piece[which], tokens) for piece, tokens in pieces]) for which in (0, 1)
                    )
                    part.offset = sum(tokens for _, tokens in pieces)
                parts.append(part)
            elif snapshot is not None:
                parts.append(copy.deepcopy(snapshot[index]))
        return _restored(self.make(), iter(parts))

    def cut(self, cache: list[Any], snapshot: Snapshot | None, tokens: int) -> list[Any]:
        """Return an unbatched cache of its first *tokens*; *snapshot* is what cannot be cut, of so many."""
        return self.assemble([(self.slices(cache, 0, tokens), tokens)], snapshot)

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


def _restored(cache: list[Any], parts: Iterator[Any]) -> list[Any]:
    """Return *cache* with *parts* for its leaves."""
    made = []
    for layer in cache:
        if isinstance(layer, CacheList):
            layer.caches = tuple(_restored(list(layer.caches), parts))
            made.append(layer)
        else:
            made.append(next(parts))
    return made


def _slice(part: Any, start: int, end: int) -> tuple[Any, Any] | None:
    if part.keys is None:
        return None
    keys, values = (
        tree_map(lambda array: _copied(array[..., start:end, :]), arrays) for arrays in (part.keys, part.values)
    )
    return keys, values


def _joined(pieces: list[tuple[Any, int]]) -> Any:
    """Return the first tokens of each piece, one after the other; a quantized piece is several arrays."""
    cut = [tree_map(lambda array, n=tokens: array[..., :n, :], piece) for piece, tokens in pieces]
    return cut[0] if len(cut) == 1 else tree_map(lambda *arrays: mx.concatenate(list(arrays), axis=-2), *cut)


def _detached(part: Any) -> Any:
    """Give a cache arrays of its own; a window keeps no more than it looks at."""
    if isinstance(part, RotatingKVCache) and part.keys is not None and part.keep == 0:
        kept = part.size()
        part.keys, part.values = (
            part._temporal_order(array)[..., -kept:, :]  # noqa: SLF001 as mlx-lm's own merge does
            for array in (part.keys, part.values)
        )
        part._idx = kept  # noqa: SLF001
    for name, value in vars(part).items():
        if isinstance(value, mx.array):
            setattr(part, name, _copied(value))
        elif isinstance(value, list):
            setattr(part, name, [_copied(item) if isinstance(item, mx.array) else item for item in value])
    return part


def _copied(array: mx.array) -> mx.array:
    """Return the same numbers in a buffer of their own."""
    if array.ndim > 0 and array.nbytes < _SMALL_BYTES:
        return array[mx.arange(array.shape[0])]
    return mx.contiguous(array)


def arrays_of(item: Any) -> Iterator[mx.array]:
    """Return the arrays in slices or a snapshot."""
    if isinstance(item, mx.array):
        yield item
    elif isinstance(item, tuple | list):
        for part in item:
            yield from arrays_of(part)
    elif hasattr(item, "__dict__"):
        yield from arrays_of(list(vars(item).values()))


def allocated_bytes(item: Any) -> int:
    """Return the memory that slices or a snapshot take; a GPU hands out what is larger than a page in whole pages."""
    page = _PAGE_BYTES if is_gpu() else 1
    return sum(array.nbytes if array.nbytes <= page else -(-array.nbytes // page) * page for array in arrays_of(item))


def detach(cache: list[Any]) -> None:
    """Give an unbatched cache arrays of its own, evaluated and no longer than its tokens.

    What mlx-lm extracts of a state is a view that keeps the whole batch alive, and so is anything not evaluated.
    """
    cut_to_length(cache)
    for part in leaves(cache):
        if isinstance(part, ArraysCache):
            _detached(part)
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
