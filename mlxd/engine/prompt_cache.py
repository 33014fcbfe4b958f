"""The prompt cache of one model: KV of past sequences by their tokens. Used on the device thread only; see DESIGN.md.

Sequences that begin alike share what they have in common: a tree of runs of tokens. Layers that keep an entry per token
(`KVCache` and its like) lie in the runs in slices, so that any beginning of a stored sequence can be continued. What
the other layers keep (a window, a state) cannot be cut: it is stored whole at checkpoints, and only these can be
continued. A model without such layers has no checkpoints, and needs none.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mlxd.engine.kv import CacheMaker, Snapshot, allocated_bytes
from mlxd.engine.worth import Heat, Order

# What is evicted at once, and may be kept in vain when a sequence parts from the middle of it.
_RUN_TOKENS = 2048
_TOKEN_BYTES = 4
# Most sequences that have nothing in common differ in so many items already.
_GLANCE = 64


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a prompt.

    Attributes:
        cache: unbatched, with arrays of its own where the model changes them; None where nothing is known.
        known: how many tokens are in it; at least one of the prompt is left over.
        shared: how many tokens a stored sequence begins with too; what comes after parts the two.
    """

    cache: list[Any] | None
    known: int
    shared: int


@dataclass(slots=True, eq=False)
class _Run:
    """Some tokens of a sequence, and what the layers that can be cut keep of them."""

    parent: _Run | None
    start: int  # tokens before it
    key: bytes  # its tokens
    parts: list[Any]  # by layer: its arrays; None where only a checkpoint has them
    n_bytes: int
    heat: Heat
    children: dict[tuple[int, bytes], _Run] = field(default_factory=dict)  # by where they begin, and their first token
    checkpoints: dict[int, _Checkpoint] = field(default_factory=dict)  # by how many tokens are in them

    @property
    def end(self) -> int:
        return self.start + len(self.key) // _TOKEN_BYTES


@dataclass(slots=True, eq=False)
class _Checkpoint:
    """What the layers that cannot be cut keep after some tokens."""

    run: _Run
    end: int
    snapshot: Snapshot
    n_bytes: int
    heat: Heat


class PromptCache:
    """KV of past sequences by their tokens."""

    def __init__(self, caches: CacheMaker, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep at most *max_bytes* of a model's KV; 0 keeps nothing."""
        self._caches = caches
        self._clock = clock
        self.too_large = 0  # sequences that were not kept because they alone are more than `max_bytes`
        self.clear(max_bytes)

    def clear(self, max_bytes: int) -> None:
        """Let go of everything, whatever state it is in, and keep at most *max_bytes* from now on."""
        self.max_bytes = max_bytes
        self.stored_bytes = 0
        self._root = _Run(None, 0, b"", [], 0, Heat(0, 0))
        # The checkpoints, or, of a model that has none, the ends of sequences.
        self._order: Order[_Run | _Checkpoint] = Order()

    def fetch(self, tokens: Sequence[int]) -> Found:
        """Return the KV of the longest beginning of *tokens* that can be continued."""
        key = _key(tokens)
        path = self._walk(key)
        if not path:
            return Found(None, 0, 0)
        shared = path[-1][1]
        most = min(shared, len(tokens) - 1)
        now_s = self._clock()
        checkpoint = None
        if self._caches.has_states:
            checkpoint = self._last_checkpoint(path, most)
            if checkpoint is None:
                return Found(None, 0, shared)
            most = checkpoint.end
            checkpoint.heat.add(now_s)
            self._rank(checkpoint)
        if most == 0:
            return Found(None, 0, shared)
        slices = []
        for run, agreed in path:
            if run.start < most:
                run.heat.add(now_s)
                if run in self._order:
                    self._rank(run)
                slices.append((run.parts, min(agreed, most) - run.start))
        snapshot = None if checkpoint is None else checkpoint.snapshot
        return Found(self._caches.assemble(slices, snapshot), most, shared)

    def store(self, tokens: Sequence[int], cache: list[Any], snapshots: Mapping[int, Snapshot] | None = None) -> None:
        """Keep the KV of *tokens* if it fits the bound; what is worth the least makes room.

        Args:
            tokens: all that are in *cache*.
            cache: unbatched; its arrays are copied.
            snapshots: what was kept on the way, by how many tokens were in the cache then.
        """
        if not tokens or self.max_bytes == 0:
            return
        key = _key(tokens)
        path = self._walk(key)
        now_s = self._clock()
        before = path[-1][1] if path else 0
        parent = path[-1][0] if path else self._root
        chain = list(self._new_runs(parent, before, key, cache, now_s))
        runs = [run for run, _ in path] + chain
        checkpoints = list(self._new_checkpoints(runs, len(tokens), cache, snapshots or {}, now_s))
        new_bytes = sum(run.n_bytes for run in chain) + sum(checkpoint.n_bytes for checkpoint in checkpoints)
        if not chain and not checkpoints:
            return
        if new_bytes + sum(run.n_bytes for run, _ in path) > self.max_bytes:
            self.too_large += 1
            return
        added: list[_Run | _Checkpoint] = [*(checkpoints or chain)]
        self._link(chain, checkpoints)
        try:
            self._evict(self.max_bytes)
            mx.eval([run.parts for run in chain])  # may run out of memory
        except Exception:
            for item in reversed(added):
                self._drop(item)
            raise
        for item in checkpoints or added[-1:]:
            self._rank(item)

    def set_limit(self, max_bytes: int) -> None:
        """Bound it from now on, and shrink it when it is over."""
        self.max_bytes = max_bytes
        self.trim(max_bytes)

    def trim(self, max_bytes: int) -> None:
        """Shrink it to *max_bytes* once."""
        self._evict(max_bytes)

    # Search

    def _walk(self, key: bytes) -> list[tuple[_Run, int]]:
        """Return the runs that *key* begins with, each with how many tokens agree up to and in it."""
        path: list[tuple[_Run, int]] = []
        run, at = self._root, 0
        while True:
            child = run.children.get((at, key[at * _TOKEN_BYTES : (at + 1) * _TOKEN_BYTES]))
            if child is None:
                return path
            at += common_length(child.key, key[at * _TOKEN_BYTES : child.end * _TOKEN_BYTES]) // _TOKEN_BYTES
            path.append((child, at))
            run = child

    def _last_checkpoint(self, path: list[tuple[_Run, int]], most: int) -> _Checkpoint | None:
        for run, agreed in reversed(path):
            ends = [end for end in run.checkpoints if end <= min(most, agreed)]
            if ends:
                return run.checkpoints[max(ends)]
        return None

    # Growth

    def _new_runs(self, parent: _Run, start: int, key: bytes, cache: list[Any], now_s: float) -> Iterator[_Run]:
        end = len(key) // _TOKEN_BYTES
        for begin in range(start, end, _RUN_TOKENS):
            stop = min(begin + _RUN_TOKENS, end)
            parts = self._caches.slices(cache, begin, stop)
            tokens = key[begin * _TOKEN_BYTES : stop * _TOKEN_BYTES]
            n_bytes = allocated_bytes(parts) + len(tokens)
            parent = _Run(parent, begin, tokens, parts, n_bytes, Heat(1, now_s))
            yield parent

    def _new_checkpoints(
        self,
        runs: list[_Run],
        end: int,
        cache: list[Any],
        snapshots: Mapping[int, Snapshot],
        now_s: float,
    ) -> Iterator[_Checkpoint]:
        if not self._caches.has_states:
            return
        for at, snapshot in {**snapshots, end: None}.items():
            run = next(run for run in reversed(runs) if run.start < at)
            if at not in run.checkpoints:
                kept = self._caches.snapshot(cache) if snapshot is None else snapshot
                yield _Checkpoint(run, at, kept, allocated_bytes(kept), Heat(1, now_s))

    def _link(self, chain: list[_Run], checkpoints: list[_Checkpoint]) -> None:
        """Make new items part of the tree, so that what they need stays; without a rank, they stay too."""
        for run in chain:
            above = run.parent or self._root
            above.children[run.start, run.key[:_TOKEN_BYTES]] = run
            self._order.discard(above)
            self.stored_bytes += run.n_bytes
        for checkpoint in checkpoints:
            checkpoint.run.checkpoints[checkpoint.end] = checkpoint
            self.stored_bytes += checkpoint.n_bytes
            self._rank_after(checkpoint)

    # Eviction

    def _evict(self, max_bytes: int) -> None:
        """Let go of what is worth the least until *max_bytes* are left."""
        while self.stored_bytes > max(0, max_bytes) and (item := self._order.least()) is not None:
            self._drop(item)

    def _rank(self, item: _Run | _Checkpoint) -> None:
        """Make an item evictable, or change its place among those that are."""
        if isinstance(item, _Run):
            worth = item.heat.worth(item.end - item.start, item.n_bytes, may_be_shared=False)
        else:
            worth = item.heat.worth(item.end - _checkpoint_before(item), item.n_bytes, may_be_shared=True)
        self._order.put(item, worth)

    def _rank_after(self, checkpoint: _Checkpoint) -> None:
        """Note that *checkpoint* has come or gone, which changes what those save that go on from it."""
        for other in _checkpoints_after(checkpoint):
            if other in self._order:
                self._rank(other)

    def _drop(self, item: _Run | _Checkpoint) -> None:
        """Remove an item and the runs that only it needed."""
        self._order.discard(item)
        if isinstance(item, _Run):
            above = self._unlink(item)
            if above is not self._root and not above.children:
                self._rank(above)
            return
        del item.run.checkpoints[item.end]
        self.stored_bytes -= item.n_bytes
        self._rank_after(item)
        run = item.run
        while run is not self._root and not run.children and not run.checkpoints:
            run = self._unlink(run)

    def _unlink(self, run: _Run) -> _Run:
        """Take a run out of the tree and return the one before it."""
        above = run.parent or self._root
        del above.children[run.start, run.key[:_TOKEN_BYTES]]
        self.stored_bytes -= run.n_bytes
        return above


def _checkpoint_before(checkpoint: _Checkpoint) -> int:
    """Return how many tokens the nearest checkpoint has that it goes on from; 0 without one."""
    run: _Run | None = checkpoint.run
    limit = checkpoint.end
    while run is not None:
        ends = [end for end in run.checkpoints if end < limit]
        if ends:
            return max(ends)
        limit, run = run.start + 1, run.parent
    return 0


def _checkpoints_after(checkpoint: _Checkpoint) -> Iterator[_Checkpoint]:
    """Return the nearest checkpoint on each way that sequences go on from one."""
    below = [checkpoint.run]
    while below:
        run = below.pop()
        nearest = min((end for end in run.checkpoints if end > checkpoint.end), default=run.end + 1)
        if nearest <= run.end:
            yield run.checkpoints[nearest]
        below += [child for (start, _), child in run.children.items() if checkpoint.end <= start < nearest]


def _key(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many items agree at the beginning, by comparing slices and not items."""
    high = min(len(one), len(other))
    if one[:_GLANCE] != other[:_GLANCE]:
        high = min(high, _GLANCE)
    if one[:high] == other[:high]:
        return high
    low = 0  # they agree up to here, and not up to `high`
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
