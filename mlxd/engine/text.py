"""A text model on the device thread: its decoder, its rows, its prompt cache.

Every row is in the batch, or paused and without KV, or waits for the KV of its prompt: the prompt is read for its
logprobs first, or another row processes what both have in common. A row leaves the batch before the step that
would take its KV over its grant, which the pool has reserved. A token that the decoder returned is in the KV; the one
after it is being computed already, and is computed again when a row comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from mlxd.engine.base import (
    Failed,
    Finished,
    FinishReason,
    KvLow,
    Listener,
    Paused,
    Prefilling,
    SchedulingParams,
    SequenceEvent,
    Submit,
)
from mlxd.engine.batch_decoder import make_decoder
from mlxd.engine.decoder import Decoder, Entry, Kept, Made, Prefilled
from mlxd.engine.fault import generation_failure
from mlxd.engine.kv_shape import WINDOW_PREFILL_TOKENS
from mlxd.engine.loader import LoadedModel
from mlxd.engine.memory import is_gpu
from mlxd.engine.output import Markup
from mlxd.engine.pace import PrefillPace
from mlxd.engine.prompt_cache import PromptCache
from mlxd.engine.reuse import Reuse, Source
from mlxd.engine.row import NO_UID, Phase, PostEvent, Row, Rows
from mlxd.engine.sampling import SamplerCache, logits_processors
from mlxd.engine.scoring import Scores, ScoringQueue
from mlxd.protocol.errors import MlxdError

_log = logging.getLogger(__name__)

# On the CPU longer steps take longer per token: 3000 tokens in 6 s at 256, in 14 s at 2048 (tiny model, 2 cores).
_CPU_PREFILL_TOKENS = 256
_GPU_PREFILL_TOKENS = 2048


class TextModel:
    """Runs the sequences of one model; events go to *post*."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompt_cache_limit_bytes: int,
        scheduling: SchedulingParams,
        post: PostEvent,
    ) -> None:
        tokenizer = loaded.tokenizer
        self.model_id = loaded.model_id
        self.prompts = PromptCache(loaded.caches, prompt_cache_limit_bytes)
        self._loaded = loaded
        self._post = post
        self._pace = PrefillPace(scheduling, _GPU_PREFILL_TOKENS if is_gpu() else _CPU_PREFILL_TOKENS)
        self._markup = Markup(tokenizer)
        self._scores = Scores(loaded.vocabulary, loaded.facts.vocab_size, scheduling)
        self._eos_tokens = sorted(tokenizer.eos_token_ids)
        newline = tokenizer.encode("\n", add_special_tokens=False)
        self._samplers = SamplerCache(loaded.facts.vocab_size, [*newline, *self._eos_tokens])
        self._rows = Rows()
        self._reuse = Reuse(loaded.caches, loaded.facts.kv, self.prompts, self._rows)
        self._batch: dict[int, Row] = {}  # by uid: the ones that the decoder has
        self._scoring = ScoringQueue(loaded, self._scores, self._rows, post)
        self._decoder = self._make_decoder()

    @property
    def is_busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._batch or self._scoring)

    @property
    def is_decoding(self) -> bool:
        """Whether a stream waits for its next token."""
        return any(row.phase is Phase.DECODE for row in self._batch.values())

    @property
    def loaded(self) -> LoadedModel:
        """The model itself, for adapters to be put on."""
        return self._loaded

    # Commands

    def submit(self, submit: Submit, listener: Listener) -> None:
        """Begin a sequence."""
        try:
            row = self._make_row(submit, listener)
        except Exception as error:  # noqa: BLE001 the engine's edge: tokenizers and samplers
            self._post(listener, Failed(submit.sequence_id, generation_failure(self.model_id, error)))
            return
        self._rows[submit.sequence_id] = row
        self._enter(row, submit.kv_tokens)

    def grant(self, sequence_id: int, kv_tokens: int) -> None:
        """Raise a grant, unless the sequence has ended or paused."""
        row = self._rows.get(sequence_id)
        if row is not None and row.phase is not Phase.PAUSED:
            row.set_grant(kv_tokens)
            self._decoder.grant(row.uid, kv_tokens)

    def pause(self, sequence_id: int) -> None:
        """Take a sequence out of the batch and drop its KV."""
        row = self._rows.get(sequence_id)
        if row is not None and row.phase is not Phase.PAUSED:
            self._decoder.remove([row.uid])  # knows nothing of rows that wait for their prompt
            self._pause(row)

    def resume(self, sequence_id: int, kv_tokens: int) -> None:
        """Go on with a paused sequence."""
        row = self._rows.get(sequence_id)
        if row is not None and row.phase is Phase.PAUSED:
            row.sampler = self._samplers.row_sampler(row.submit.sampling, row.generated)
            self._enter(row, kv_tokens)

    def cancel(self, sequence_id: int) -> None:
        """End a sequence; its KV goes into the prompt cache."""
        row = self._rows.get(sequence_id)
        if row is None:
            return
        kept = None
        if row.phase is not Phase.PAUSED:
            kept = self._decoder.remove([row.uid], keep=True).get(row.uid)
        self._finish(row, FinishReason.CANCELLED, kept)

    def set_scheduling(self, params: SchedulingParams) -> None:
        """Change the pace of prefills."""
        self._pace.change(params)
        self._scores.change(params)

    # A step

    def step(self, *, others_decode: bool) -> None:
        """Make one token for every decoding row, and process one chunk of the prompts that wait."""
        if self._scoring:
            self._score(others_decode=others_decode or self.is_decoding)
        if not self._batch:
            return
        prefilled, made = self._next(others_decode=others_decode)
        for event in prefilled:
            self._on_prefilled(event)
        stopped: list[Row] = []
        for tokens in made:
            self._on_made(tokens, stopped)
        if stopped:
            kept = self._decoder.remove([row.uid for row in stopped], keep=True)
            for row in stopped:
                self._finish(row, FinishReason.STOP, kept.get(row.uid))
        for row, failure in [(row, row.failure) for row in self._batch.values()]:
            if failure is not None:  # of the token that is being computed: a row that ends before it is whole
                self._fail(row, failure)
        for event in prefilled:  # last: those that waited look at all rows, which must be as the decoder has them
            self._hand_on(event.uid)

    def _next(self, *, others_decode: bool) -> tuple[list[Prefilled], list[Made]]:
        """Run the decoder's step at the pace of the prefills."""
        prefilling = [row.unprocessed_tokens for row in self._batch.values() if row.phase is Phase.PREFILL]
        # A row whose prompt is done but for its last token waits for its first token as others do for their next.
        decoding = sum(tokens > 1 for tokens in prefilling) < len(self._batch)
        most = WINDOW_PREFILL_TOKENS if self._loaded.facts.kv.has_window else None
        with self._pace.step(
            is_prefilling=bool(prefilling), decoding=decoding, others=others_decode, most=most
        ) as pace:
            return self._decoder.step(pace)

    def fail_batch(self, error: MlxdError) -> None:
        """End the sequences in the batch with *error* and begin a fresh one, whatever state the old one is in."""
        failed = list(self._batch.values())
        self._batch.clear()  # rows that were held enter the fresh one below
        self._decoder.close()
        self._decoder = self._make_decoder()
        for row in failed:
            row.phase = Phase.PAUSED  # nothing can be taken out of the old one,
            row.uid = NO_UID  # and the fresh one gives its uids to others
        for row in failed:
            self._forget(row)
            self._post(row.listener, Failed(row.sequence_id, error))

    def close(self, error: MlxdError) -> None:
        """End all sequences with *error* and let go of everything MLX."""
        for row in self._rows.values():
            self._post(row.listener, Failed(row.sequence_id, error))
        self._decoder.close()
        # Whoever still holds this object, such as a logged traceback, holds no weights.
        self.__dict__.clear()

    def _make_decoder(self) -> Decoder:
        loaded = self._loaded
        return make_decoder(loaded.model, loaded.caches, self._eos_tokens, loaded.facts.decoding)

    # Rows

    def _make_row(self, submit: Submit, listener: Listener) -> Row:
        prompt, sampling = submit.prompt, submit.sampling
        return Row(
            submit,
            listener,
            self._markup.output(prompt, submit.stop),
            self._samplers.row_sampler(sampling),
            logits_processors(sampling, len(prompt.tokens), self._eos_tokens),
        )

    def _enter(self, row: Row, kv_tokens: int) -> None:
        """Let *row* go on with a grant: in the batch, or towards it."""
        row.set_grant(kv_tokens)
        if len(row.tokens) >= kv_tokens:  # no token fits
            self._pause(row)
        elif row.submit.scores_prompt and not row.is_scored:
            scorer = self._rows.scorer_of(row)
            if scorer is None:
                self._begin_scoring(row)
            else:
                row.hold(scorer, len(row.tokens) - 1)
        else:
            self._begin_prompt(row)

    def _begin_prompt(self, row: Row, offer: Source | None = None) -> None:
        """Let *row* process what is not known of its prompt, or wait for a row that does."""
        try:
            source = self._reuse.find(row, self._decoder, offer)
        except Exception as error:  # noqa: BLE001 the engine's edge: nothing was touched
            self._fail(row, error)
            return
        if source.leader is not None:
            row.hold(source.leader, source.awaited)
            self._decoder.add_cut(source.leader.uid, source.awaited)
            return
        row.checkpoints = self._reuse.plan_checkpoints(row, source)
        self._insert(row, source.cache, source.known)

    def _insert(self, row: Row, cache: list[Any] | None, known: int) -> None:
        """Put *row* into the batch with the KV of its first *known* tokens."""
        try:
            row.uid = self._decoder.insert(
                Entry(
                    tokens=row.tokens,
                    known=known,
                    cache=cache,
                    kv_tokens=row.kv_tokens,
                    max_tokens=row.remaining_tokens,
                    sampler=row.sampler,
                    processors=row.enter_batch(self._loaded.tokenizer),
                    cuts=row.checkpoints,
                )
            )
        except Exception as error:  # noqa: BLE001 the engine's edge: refused before the batch was touched
            self._fail(row, error)
            return
        row.phase = Phase.PREFILL
        row.inserted_tokens = row.prefilled_tokens = known
        self._batch[row.uid] = row
        if row.is_fresh:
            row.cached_tokens = known
            self._post(row.listener, Prefilling(row.sequence_id, known, len(row.tokens)))

    def _hand_on(self, uid: int) -> None:
        """Let those go on that waited for what a row has processed by now, unless it has left meanwhile."""
        leader = self._batch.get(uid)
        if leader is None:
            return
        waiting = [row for row in self._rows.held_by(leader) if row.awaited == leader.prefilled_tokens]
        if not waiting:
            return
        offer = self._reuse.offer(leader, self._decoder)
        for row in waiting:
            row.leader = None
            self._begin_prompt(row, offer)
            if row.submit.prompt is leader.submit.prompt:
                row.cached_tokens = leader.cached_tokens

    def _begin_scoring(self, row: Row) -> None:
        try:
            self._scoring.begin(row)
        except Exception as error:  # noqa: BLE001 the engine's edge: nothing was touched
            self._fail(row, error)

    def _score(self, *, others_decode: bool) -> None:
        """Read the next slice of the oldest prompt that is to be scored; whoever has its scores goes on."""
        row = self._scoring.oldest
        try:
            scored = self._scoring.advance(others_decode=others_decode)
        except Exception as error:  # noqa: BLE001 the engine's edge: no other row had a part in it
            self._fail(row, error)
            return
        for other, cache in scored:
            self._insert(other, cache, len(other.tokens) - 1)
            other.cached_tokens = 0

    def _on_prefilled(self, event: Prefilled) -> None:
        row = self._batch[event.uid]
        if event.is_done:
            row.phase = Phase.DECODE
        done = row.inserted_tokens + event.done
        if done > row.prefilled_tokens:
            row.prefilled_tokens = done
            if row.is_fresh:
                self._post(row.listener, Prefilling(row.sequence_id, done, len(row.tokens)))
        self._reuse.keep(row, self._decoder)

    def _on_made(self, made: Made, stopped: list[Row]) -> None:
        """Hand out what new tokens made known; rows to take out because of a stop string go to *stopped*."""
        row = self._batch[made.uid]
        left = len(made.tokens)
        for token, logprobs in zip(made.tokens, made.logprobs, strict=True):
            left -= 1
            end = made.end if left == 0 else None
            row.tokens.append(token)
            row.generated += 1
            if end is FinishReason.STOP:  # the token is no text
                break
            try:
                deltas = row.push(token, self._scores.of_token(token, logprobs, row.submit.logprobs))
            except Exception as error:  # noqa: BLE001 a tokenizer's failure on one row is none of the others' business
                self._fail(row, error)
                return
            self._post_all(row, deltas)
            if end is None and row.output.stopped:
                stopped.append(row)
                return
        if made.end is not None:
            self._finish(row, made.end, made.kept)
        elif len(row.tokens) >= row.check_at_tokens:
            self._check_grant(row)

    def _post_all(self, row: Row, events: Iterable[SequenceEvent]) -> None:
        for event in events:
            self._post(row.listener, event)

    def _check_grant(self, row: Row) -> None:
        if len(row.tokens) >= row.kv_tokens:
            self._decoder.remove([row.uid])
            self._pause(row)
        else:
            row.set_low_posted()
            self._post(row.listener, KvLow(row.sequence_id, row.kv_tokens))

    def _pause(self, row: Row) -> None:
        self._leave(row)
        self._post(row.listener, Paused(row.sequence_id, len(row.tokens)))

    def _leave(self, row: Row) -> None:
        """Note that *row* is out of the batch; those that waited for its prompt process it themselves."""
        self._batch.pop(row.uid, None)
        row.uid = NO_UID  # the next decoder gives this one to another row
        self._scoring.discard(row)
        row.snapshots.clear()
        row.checkpoint_bytes = 0
        row.leader = None
        led = self._rows.held_by(row)
        row.phase = Phase.PAUSED
        for other in led:
            other.leader = None
            self._enter(other, other.kv_tokens)

    def _finish(self, row: Row, reason: FinishReason, kept: Kept | None) -> None:
        """End *row*, which is out of the batch; *kept* is its KV."""
        try:
            deltas = row.flush()
        except Exception as error:  # noqa: BLE001 as above
            self._fail(row, error)
            return
        if kept is not None:
            self._reuse.store(row, kept)
        self._post_all(row, deltas)
        if reason is FinishReason.LENGTH and row.output.stopped:
            reason = FinishReason.STOP
        self._forget(row)
        self._post(row.listener, Finished(row.sequence_id, reason, row.usage, row.output.stopped_by))

    def _fail(self, row: Row, error: Exception) -> None:
        _log.error("sequence %d of %s failed", row.sequence_id, self.model_id, exc_info=error)
        self._decoder.remove([row.uid])
        self._forget(row)
        self._post(row.listener, Failed(row.sequence_id, generation_failure(self.model_id, error)))

    def _forget(self, row: Row) -> None:
        del self._rows[row.sequence_id]
        self._leave(row)
