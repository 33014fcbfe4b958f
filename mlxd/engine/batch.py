"""Rows join and leave mlx-lm's batches with few layers in memory twice. Used on the device thread only.

mlx-lm changes the caches of all layers before any of them is evaluated, or copies the whole batch first: with long rows
that is gigabytes that no grant covers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, PromptProcessingBatch
from mlx_lm.sample_utils import greedy_sampler

# Layers exist twice while they are copied, as many as this is in bytes: a wait for the device costs less than the copy.
_MOST_COPIED_BYTES = 8_000_000


def change_layers(layers: list[Any], change: Callable[[int, Any], Any]) -> None:
    """Change the cache of each layer, which copies it, so that few layers exist twice at a time.

    *change* gets the number of the layer and its cache, and returns the cache that it has moved rows to, if any.
    """
    pending: list[Any] = []
    pending_bytes = 0
    for index, layer in enumerate(layers):
        made = change(index, layer)
        pending.append((layer.state, None if made is None else made.state))
        pending_bytes += layer.nbytes + (0 if made is None else made.nbytes)
        if pending_bytes > _MOST_COPIED_BYTES:
            mx.eval(pending)
            pending, pending_bytes = [], 0


def extend(batch: Any, rows: Any) -> None:
    """Let *rows* join *batch*."""
    layers, joining = batch.prompt_cache, rows.prompt_cache[::-1]
    batch.prompt_cache, rows.prompt_cache = [], []  # each layer is dropped as it has joined
    change_layers(layers, lambda _, layer: layer.extend(joining.pop()))
    batch.extend(rows)
    batch.prompt_cache = layers


def _take_cache(batch: Any, taken: list[int], staying: list[int]) -> list[Any]:
    """Return a batched cache of the rows *taken*, and leave *batch* with those *staying*; there are some of both."""
    out: list[Any] = []

    def change(_: int, layer: Any) -> Any:
        rows = [layer.extract(index) for index in taken]
        out.append(rows[0].merge(rows))
        layer.filter(staying)
        return out[-1]

    layers, batch.prompt_cache = batch.prompt_cache, []  # which mlx-lm would filter all at once
    change_layers(layers, change)
    batch.filter(staying)
    batch.prompt_cache = layers
    return out


def split(batch: Any, taken: list[int], staying: list[int]) -> Any:
    """Return the rows *taken* as a batch of their own, and leave those *staying*; there are some of both."""
    rows = PromptProcessingBatch(
        model=batch.model,
        uids=[batch.uids[index] for index in taken],
        caches=[],
        tokens=[batch.tokens[index] for index in taken],
        samplers=[batch.samplers[index] for index in taken],
        fallback_sampler=batch.fallback_sampler,
        logits_processors=[batch.logits_processors[index] for index in taken],
        stop_sequences=[batch.stop_sequences[index] for index in taken],
        max_tokens=[batch.max_tokens[index] for index in taken],
    )
    rows.prompt_cache = _take_cache(batch, taken, staying)
    return rows


def take(model: Any, group: Any, index: int) -> Any:
    """Return one row of *group* as a group of its own, in the middle of its step; the others stay."""
    staying = [other for other in range(len(group)) if other != index]
    row = GenerationBatch.empty(model, greedy_sampler)
    row.uids = [group.uids[index]]
    row.tokens = [group.tokens[index]]
    row.samplers = [group.samplers[index]]
    row.logits_processors = [group.logits_processors[index]]
    row.stop_sequences = [group.stop_sequences[index]]
    row.max_tokens = [group.max_tokens[index]]
    row._current_tokens = None  # noqa: SLF001 the parts of a step in flight have no other way out
    row._next_tokens = group._next_tokens[index : index + 1]  # noqa: SLF001
    row._next_logprobs = [group._next_logprobs[index]]  # noqa: SLF001
    row._token_context = [group._token_context[index]]  # noqa: SLF001
    row._num_tokens = [group._num_tokens[index]]  # noqa: SLF001
    row._matchers = [group._matchers[index]]  # noqa: SLF001
    if staying:
        row.prompt_cache = _take_cache(group, [index], staying)
    else:
        row.prompt_cache, group.prompt_cache = group.prompt_cache, []
        group.filter([])
    return row
