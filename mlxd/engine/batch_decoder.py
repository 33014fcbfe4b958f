"""The decoders: rows of like length in one batch, or every row by itself. Used on the device thread only.

They drive mlx-lm's `PromptProcessingBatch` and `GenerationBatch`, and know their habits: lists of tokens are live, a
batch is padded to its longest row, its changes copy all layers at once, the next step is in flight when one returns.

A short row does not pay for a long one: rows are decoded with those of their `length_class`, which their grant tells.
Prompts wait in the order in which they came, each for its lane: short ones side by side with others of their class,
long ones one at a time, so that a short one waits for no long one and a long one is never padded, split or copied.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, PromptProcessingBatch, StopSequences
from mlx_lm.sample_utils import greedy_sampler

from mlxd.engine.base import Decoding, FinishReason
from mlxd.engine.batch import change_layers, extend, split, take
from mlxd.engine.decoder import ChunkTokens, Decoder, Entry, Kept, Made, Prefilled
from mlxd.engine.kv import CacheMaker, Snapshot, cut_to_length
from mlxd.engine.kv_shape import LONG_PROMPT_TOKENS, PREFILL_ROWS, length_class

# Freed buffers pile up as caches grow; mlx-lm gives them back as often.
_CLEAR_EVERY_STEPS = 512
# The lane of long prompts; the others have the number of their length class.
_LONG_LANE = -1
_ENDS = {None: None, "stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def make_decoder(model: Any, caches: CacheMaker, end_tokens: Iterable[int], decoding: Decoding) -> Decoder:
    """Return what decodes *model* in that way; a row ends with any of *end_tokens*."""
    if decoding is Decoding.ONE_BY_ONE:
        return OneByOneDecoder(model, caches, end_tokens)
    return BatchDecoder(model, caches, end_tokens, 1 if decoding is Decoding.SINGLE_PREFILL else PREFILL_ROWS)


@dataclass(slots=True)
class _Waiting:
    """A row that has not begun with its prompt."""

    uid: int
    entry: Entry
    rest: list[int]


@dataclass(slots=True)
class _Lane:
    """Prompts that are processed side by side."""

    batch: Any = None  # PromptProcessingBatch
    rests: list[list[int]] = field(default_factory=list)  # what each row still needs, in the batch's order
    done: list[int] = field(default_factory=list)


class BatchDecoder:
    """Rows of like length share a batch."""

    def __init__(self, model: Any, caches: CacheMaker, end_tokens: Iterable[int], prefill_rows: int) -> None:
        """Take one of mlx-lm's models; at most *prefill_rows* prompts are processed side by side."""
        self._model = _in_float32(model)
        self._caches = caches
        self._stops = StopSequences([[token] for token in end_tokens])
        self._prefill_rows = prefill_rows
        self._uids = itertools.count()
        self._waiting: deque[_Waiting] = deque()
        self._lanes: dict[int, _Lane] = {}
        self._groups: dict[int, Any] = {}  # GenerationBatch
        self._homes: dict[int, int] = {}  # by uid, the group that a row belongs to
        self._cuts: dict[int, set[int]] = {}  # by uid, after how many tokens a step of its prompt must end
        self._steps = 0

    def insert(self, entry: Entry) -> int:
        """Let a row in from the next step on."""
        if entry.known >= len(entry.tokens):
            raise ValueError(f"no token is left to continue from: the KV of all {len(entry.tokens)} is known")
        if entry.max_tokens < 1:
            raise ValueError(f"expected at least one token to make, got {entry.max_tokens}")
        uid = next(self._uids)
        self._homes[uid] = self._home(uid, entry.kv_tokens)
        self._cuts[uid] = set(entry.cuts)
        self._waiting.append(_Waiting(uid, entry, list(entry.tokens[entry.known :])))
        return uid

    def add_cut(self, uid: int, tokens: int) -> None:
        """Let a step end after so many tokens."""
        self._cuts[uid].add(tokens)

    def snapshot(self, uid: int) -> Snapshot:
        """Return a copy of what cannot be cut of the KV of a row."""
        return self._snapshot(*self._find(uid))

    def step(self, chunk_tokens: ChunkTokens) -> tuple[list[Prefilled], list[Made]]:
        """Make a token for every row whose prompt is done, and process a chunk in every lane."""
        made = [self._made(response) for group in list(self._groups.values()) for response in group.next()]
        self._drop_empty()
        self._steps += 1
        if self._steps % _CLEAR_EVERY_STEPS == 0:
            mx.clear_cache()
        prefilled = self._begin_decoding()
        self._fill_lanes()
        for lane in self._lanes.values():
            prefilled += self._process(lane, chunk_tokens)
        return prefilled, made

    def grant(self, uid: int, kv_tokens: int) -> None:
        """Let a row hold more tokens; it joins rows of like length."""
        if uid not in self._homes:
            return
        before, home = self._homes[uid], self._home(uid, kv_tokens)
        group = self._groups.get(before)
        self._homes[uid] = home
        if home != before and group is not None and uid in group.uids:
            row = take(self._model, group, group.uids.index(uid))
            self._drop_empty()
            self._join(row, home)

    def extract(self, uid: int) -> Kept:
        """Return a copy of the KV of a row."""
        batch, index = self._find(uid)
        return Kept(self._extracted(batch, index), list(batch.tokens[index]))

    def remove(self, uids: Sequence[int], *, keep: bool = False) -> dict[int, Kept]:
        """Take rows out."""
        leaving = {uid for uid in uids if uid in self._homes}
        waiting = {row.uid for row in self._waiting} & leaving
        kept = {uid: self.extract(uid) for uid in leaving - waiting} if keep else {}
        if waiting:
            self._waiting = deque(row for row in self._waiting if row.uid not in waiting)
        for key, lane in list(self._lanes.items()):
            staying = [index for index, uid in enumerate(lane.batch.uids) if uid not in leaving]
            if len(staying) < len(lane.batch):
                lane.batch.filter(staying)
                lane.rests = [lane.rests[index] for index in staying]
                lane.done = [lane.done[index] for index in staying]
            if not staying:
                del self._lanes[key]
        for group in self._groups.values():
            staying = [index for index, uid in enumerate(group.uids) if uid not in leaving]
            if len(staying) < len(group):
                group.filter(staying)
        self._drop_empty()
        for uid in leaving:
            del self._homes[uid], self._cuts[uid]
        return kept

    def close(self) -> None:
        """Let go of everything; a traceback that holds this object holds no weights."""
        self.__dict__.clear()

    # What is special to batches

    def _home(self, uid: int, kv_tokens: int) -> int:  # noqa: ARG002 a row by itself goes by its uid
        """Return the group that a row with this grant belongs to."""
        return length_class(kv_tokens)

    def _batched(self, caches: list[list[Any]]) -> list[Any]:
        """Return one cache per layer that holds all of *caches*, whose arrays are copied."""
        return [layer[0].merge(list(layer)) for layer in zip(*caches, strict=True)]

    def _extracted(self, batch: Any, index: int) -> list[Any]:
        """Return a copy of the KV of one row."""
        cache: list[Any] = batch.extract_cache(index)
        return cache

    def _snapshot(self, batch: Any, index: int) -> Snapshot:
        """Return a copy of what cannot be cut of the KV of one row."""
        return self._caches.snapshot(batch.prompt_cache, index)

    def _generate(self, batch: Any, last_tokens: list[list[int]]) -> Any:
        """Turn a batch of prompts into one that makes tokens; its first step is in flight then."""
        return batch.generate(last_tokens)

    # Prompts

    def _fill_lanes(self) -> None:
        """Begin with prompts that wait, as far as their lanes have room; none overtakes another of its lane."""
        entering: dict[int, list[_Waiting]] = {}
        staying: deque[_Waiting] = deque()
        full: set[int] = set()
        for row in self._waiting:
            key = _LONG_LANE if len(row.rest) > LONG_PROMPT_TOKENS else self._lane(row.uid)
            rows = entering.setdefault(key, [])
            present = len(rows) + (len(self._lanes[key].rests) if key in self._lanes else 0)
            if key in full or present >= (1 if key == _LONG_LANE else self._prefill_rows):
                full.add(key)
                staying.append(row)
            else:
                rows.append(row)
        self._waiting = staying
        for key, rows in entering.items():
            if not rows:
                continue
            lane = self._lanes.setdefault(key, _Lane())
            batch = self._begun(rows)
            if lane.batch is None:
                lane.batch = batch
            else:
                extend(lane.batch, batch)
            lane.rests += [row.rest for row in rows]
            lane.done += [0] * len(rows)

    def _lane(self, uid: int) -> int:
        return self._homes[uid]

    def _begun(self, rows: list[_Waiting]) -> Any:
        """Return a batch of prompts none of which has been processed here."""
        batch = PromptProcessingBatch(
            model=self._model,
            uids=[row.uid for row in rows],
            caches=[],
            tokens=[list(row.entry.tokens[: row.entry.known]) for row in rows],
            samplers=[row.entry.sampler for row in rows],
            fallback_sampler=greedy_sampler,
            logits_processors=[tuple(row.entry.processors) for row in rows],
            stop_sequences=[self._stops] * len(rows),
            max_tokens=[row.entry.max_tokens for row in rows],
        )
        batch.prompt_cache = self._batched(
            [self._caches.make() if row.entry.cache is None else row.entry.cache for row in rows]
        )
        return batch

    def _process(self, lane: _Lane, chunk_tokens: ChunkTokens) -> list[Prefilled]:
        """Process the next chunk of all prompts of a lane but for their last tokens."""
        remaining = [
            min(len(rest) - 1, self._until_cut(uid, len(tokens)))
            for rest, uid, tokens in zip(lane.rests, lane.batch.uids, lane.batch.tokens, strict=True)
        ]
        most = chunk_tokens(remaining)
        chunks = [rest[: min(most, left)] for rest, left in zip(lane.rests, remaining, strict=True)]
        self._prefill(lane.batch, chunks)
        lane.rests = [rest[len(chunk) :] for rest, chunk in zip(lane.rests, chunks, strict=True)]
        lane.done = [done + len(chunk) for done, chunk in zip(lane.done, chunks, strict=True)]
        return [Prefilled(uid, done, is_done=False) for uid, done in zip(lane.batch.uids, lane.done, strict=True)]

    def _until_cut(self, uid: int, done: int) -> int:
        """Return how many tokens lie before the next cut of a row that has *done* so many."""
        return min((cut - done for cut in self._cuts[uid] if cut > done), default=sys.maxsize)

    def _prefill(self, batch: Any, chunks: list[list[int]]) -> None:
        """Take chunks of all prompts of *batch* through the model, padded to the longest on the right."""
        lengths = [len(chunk) for chunk in chunks]
        padding = [max(lengths) - length for length in lengths]
        if any(padding):
            for layer in batch.prompt_cache:
                layer.prepare(lengths=lengths, right_padding=padding)
        padded = [chunk + [0] * short for chunk, short in zip(chunks, padding, strict=True)]
        self._model(mx.array(padded), batch.prompt_cache)
        mx.eval([layer.state for layer in batch.prompt_cache])
        if any(padding):
            change_layers(batch.prompt_cache, lambda _, layer: layer.finalize())
            mx.eval([layer.state for layer in batch.prompt_cache])
        mx.clear_cache()
        for tokens, chunk in zip(batch.tokens, chunks, strict=True):
            tokens.extend(chunk)

    def _begin_decoding(self) -> list[Prefilled]:
        """Let rows decode of which only the last token is left."""
        prefilled = []
        for key, lane in list(self._lanes.items()):
            ready = [index for index, rest in enumerate(lane.rests) if len(rest) == 1]
            if not ready:
                continue
            prefilled += [Prefilled(lane.batch.uids[index], lane.done[index] + 1, is_done=True) for index in ready]
            last_tokens = [lane.rests[index] for index in ready]
            staying = [index for index, rest in enumerate(lane.rests) if len(rest) > 1]
            batch = split(lane.batch, ready, staying) if staying else lane.batch
            if staying:
                lane.rests = [lane.rests[index] for index in staying]
                lane.done = [lane.done[index] for index in staying]
            else:
                del self._lanes[key]
            self._start(batch, last_tokens)
        by_home: dict[int, list[_Waiting]] = {}
        for row in self._waiting:
            if len(row.rest) == 1:
                by_home.setdefault(self._homes[row.uid], []).append(row)
        if by_home:
            self._waiting = deque(row for row in self._waiting if len(row.rest) > 1)
        for rows in by_home.values():
            prefilled += [Prefilled(row.uid, 1, is_done=True) for row in rows]
            self._start(self._begun(rows), [row.rest for row in rows])
        return prefilled

    # Groups

    def _start(self, batch: Any, last_tokens: list[list[int]]) -> None:
        """Let all rows of *batch* decode; a grant that came meanwhile may have given one of them another home."""
        uids = list(batch.uids)
        group = self._generate(batch, last_tokens)
        for uid in uids[1:]:
            if self._homes[uid] != self._homes[uids[0]]:
                self._join(take(self._model, group, group.uids.index(uid)), self._homes[uid])
        self._join(group, self._homes[uids[0]])

    def _join(self, rows: Any, home: int) -> None:
        if home in self._groups:
            extend(self._groups[home], rows)
        else:
            self._groups[home] = rows

    def _made(self, response: Any) -> Made:
        end = _ENDS[response.finish_reason]
        kept = None
        if end is not None:
            del self._homes[response.uid], self._cuts[response.uid]
            kept = Kept(response.prompt_cache, list(response.all_tokens))
        return Made(response.uid, (response.token,), (response.logprobs,), end, kept)

    def _find(self, uid: int) -> tuple[Any, int]:
        batches = [*self._groups.values(), *(lane.batch for lane in self._lanes.values())]
        return next((batch, batch.uids.index(uid)) for batch in batches if uid in batch.uids)

    def _drop_empty(self) -> None:
        self._groups = {home: group for home, group in self._groups.items() if len(group) > 0}


class OneByOneDecoder(BatchDecoder):
    """Every row is by itself, with the model's own unbatched caches; each step makes one token for each of them.

    For models whose caches cannot be merged, or that answer wrongly in a batch.
    """

    def __init__(self, model: Any, caches: CacheMaker, end_tokens: Iterable[int]) -> None:
        super().__init__(model, caches, end_tokens, 1)

    def _home(self, uid: int, kv_tokens: int) -> int:  # noqa: ARG002 whatever it may hold
        return uid

    def _lane(self, uid: int) -> int:  # noqa: ARG002 one short prompt beside a long one
        return 0

    def _batched(self, caches: list[list[Any]]) -> list[Any]:
        (cache,) = caches
        cache = copy.deepcopy(cache)  # the arrays are shared
        cut_to_length(cache)
        return cache

    def _extracted(self, batch: Any, index: int) -> list[Any]:  # noqa: ARG002 there is one row
        cache: list[Any] = copy.deepcopy(batch.prompt_cache)
        return cache

    def _snapshot(self, batch: Any, index: int) -> Snapshot:  # noqa: ARG002 there is one row
        return self._caches.snapshot(batch.prompt_cache)

    def _generate(self, batch: Any, last_tokens: list[list[int]]) -> Any:
        return _SingleGeneration(
            self._model,
            batch.uids,
            mx.array([tokens[-1] for tokens in last_tokens]),
            batch.prompt_cache,
            batch.tokens,
            batch.samplers,
            batch.fallback_sampler,
            batch.logits_processors,
            batch.stop_sequences,
            batch.max_tokens,
        )


class _SingleGeneration(GenerationBatch):  # type: ignore[misc]
    """A batch of one row, whose cache is no batch."""

    def extract_cache(self, idx: int) -> list[Any]:  # noqa: ARG002 there is one row
        """Return the cache of a row that has ended."""
        return list(self.prompt_cache)  # the list itself is emptied


def _in_float32(model: Any) -> Callable[..., mx.array]:
    """Return *model* with logits in float32: bfloat16 is coarse, and a batch has one type for all of its rows."""

    def run(tokens: mx.array, cache: list[Any]) -> mx.array:
        logits: mx.array = model(tokens, cache=cache)
        return logits.astype(mx.float32)

    return run
