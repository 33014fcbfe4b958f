"""Reuse the KV of earlier prompts, and keep it on the way. Used on the device thread only; see DESIGN.md.

It comes out of the prompt cache, or of a row in the batch that begins with the same tokens. When such a row is about to
process what both have in common, the other waits for it instead of doing the same work beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mlxd.engine.decoder import Decoder, Kept
from mlxd.engine.kv import CacheMaker, allocated_bytes, detach
from mlxd.engine.kv_shape import LONG_PROMPT_TOKENS, KvShape
from mlxd.engine.prompt_cache import PromptCache, common_length
from mlxd.engine.row import Phase, Row, Rows

_log = logging.getLogger(__name__)

# What is worth a look into another row, and what is worth waiting for: less is processed in one step beside the others.
_LEAST_TAKEN = 32
_LEAST_AWAITED = 256
# No two checkpoints are closer than this; nor those in the middle of a prompt than that: a step each costs more.
_LEAST_APART = 16
_LEAST_APART_WITHIN = 128
# Where nobody knows how a text goes on: a change at its end costs at most four times what it must.
_TAILS = (32, 128, 512)


@dataclass(frozen=True, slots=True)
class Source:
    """How a row gets the KV of its beginning.

    Attributes:
        known: tokens in `cache`.
        shared: tokens that another sequence begins with too.
        cache: unbatched; None where nothing is known, and where it waits for `leader`.
        leader: will have the KV of `awaited` tokens before this row could.
        awaited: see there.
    """

    known: int = 0
    shared: int = 0
    cache: list[Any] | None = None
    leader: Row | None = None
    awaited: int = 0


class Reuse:
    """Finds what is known of prompts, and plans their checkpoints."""

    def __init__(self, caches: CacheMaker, kv: KvShape, prompts: PromptCache, rows: Rows) -> None:
        self._caches = caches
        self._kv = kv
        self._prompts = prompts
        self._rows = rows

    def find(self, row: Row, decoder: Decoder, offer: Source | None = None) -> Source:
        """Return the best source for *row*; *offer* is one that is at hand, others are rows of *decoder*."""
        found = self._prompts.fetch(row.tokens)
        best = Source(found.known, found.shared, found.cache)
        if offer is not None and offer.known > best.known:
            best = replace(offer, shared=max(found.shared, offer.shared))
        leader, holder, awaited = None, None, 0
        tokens = row.tokens[:-1]
        for other in self._rows.values():
            if other is row or other.phase not in {Phase.PREFILL, Phase.DECODE}:
                continue
            most = common_length(tokens, other.tokens)
            is_same = other.submit.prompt is row.submit.prompt
            best = replace(best, shared=max(best.shared, most))
            has = self._at_hand(other, most)
            if has >= best.known + (1 if is_same else _LEAST_TAKEN):
                best, holder = replace(best, known=has), other
            most = min(most, len(other.tokens) - 1)
            least = best.known + (1 if is_same else _LEAST_AWAITED)
            if other.phase is not Phase.PREFILL or _stands_in_line(other, len(row.tokens) - best.known):
                continue
            if most >= least and most > max(awaited, other.prefilled_tokens):
                leader, awaited = other, most
        if leader is not None and best.known <= leader.prefilled_tokens:
            return Source(leader=leader, awaited=awaited)
        if holder is None:
            return best
        cache = decoder.extract(holder.uid).cache
        cache = self._caches.cut(cache, holder.snapshots.get(best.known), best.known)
        detach(cache)  # the row may wait for its lane
        return replace(best, cache=cache)

    def offer(self, leader: Row, decoder: Decoder) -> Source:
        """Return what *leader* has processed by now, as a source for those that waited for it."""
        cache = decoder.extract(leader.uid).cache
        detach(cache)
        return Source(leader.prefilled_tokens, leader.prefilled_tokens, cache)

    def _at_hand(self, other: Row, most: int) -> int:
        """Return how many of the first *most* tokens of *other* can be taken out of the batch now."""
        if other.phase is Phase.PREFILL and other.prefilled_tokens == other.inserted_tokens:
            return 0  # it may not have begun
        if self._caches.has_states:
            return max((end for end in other.snapshots if end <= most), default=0)
        return min(most, other.prefilled_tokens if other.phase is Phase.PREFILL else len(other.tokens))

    def plan_checkpoints(self, row: Row, source: Source) -> set[int]:
        """Return after how many tokens of its prompt the KV of *row* is to be kept, as far as its bytes allow."""
        if not self._caches.has_states or self._prompts.max_bytes == 0:
            return set()
        length = row.prompt_tokens
        checkpoints = row.submit.prompt.checkpoints
        ends: Iterable[int] = checkpoints or [length - tail for tail in _TAILS]
        is_new = source.known < min(checkpoints, default=0)
        heads = {*checkpoints[:2]} if is_new else set()  # what the next conversation begins with too
        if source.shared - source.known >= _LEAST_APART_WITHIN:  # here another one has parted from it
            heads.add(source.shared)
            ends = [*ends, source.shared]
        planned: list[int] = []
        for end in sorted({min(end, len(row.tokens) - 1) for end in ends}, reverse=True):
            apart = _LEAST_APART if not planned or end in heads or not checkpoints else _LEAST_APART_WITHIN
            if end - source.known >= apart and (not planned or planned[-1] - end >= apart):
                planned.append(end)
        # The end of the prompt serves the next turn, its head the next conversation.
        ordered = planned[:1] + planned[:0:-1]
        kept: set[int] = set()
        left_bytes = row.checkpoint_bytes
        for end in ordered:
            left_bytes -= self._kv.checkpoint_bytes(end)
            if left_bytes >= 0:
                kept.add(end)
        return kept

    def keep(self, row: Row, decoder: Decoder) -> None:
        """Keep the KV of *row* as it is now, if that was planned and its bytes allow."""
        if row.prefilled_tokens not in row.checkpoints:
            return
        row.checkpoints.remove(row.prefilled_tokens)
        snapshot = decoder.snapshot(row.uid)
        if allocated_bytes([*row.snapshots.values(), snapshot]) <= row.checkpoint_bytes:
            row.snapshots[row.prefilled_tokens] = snapshot

    def store(self, row: Row, kept: Kept) -> None:
        """Store what *row* leaves behind."""
        if len(kept.tokens) <= row.inserted_tokens:
            return  # it came out of the prompt cache and went no further
        try:
            self._prompts.store(kept.tokens, kept.cache, row.snapshots)
        except Exception:  # noqa: BLE001 the answer is complete without it
            _log.exception("the KV of sequence %d is not kept", row.sequence_id)


def _stands_in_line(leader: Row, rest_tokens: int) -> bool:
    """Return whether *leader* may wait behind other long prompts, when a prompt with so much left would not."""
    has_begun = leader.prefilled_tokens > leader.inserted_tokens
    return not has_begun and rest_tokens <= LONG_PROMPT_TOKENS < leader.unprocessed_tokens
