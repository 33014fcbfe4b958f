"""A text model on the device thread: one `BatchGenerator`, its rows, its prompt cache.

Every row is in the batch, or paused and without KV, or waits for the KV of its prompt: the prompt is read for its
logprobs first, or another row with the same prompt processes it for both. A row leaves the batch before the step that
would take its KV over its grant, which the pool has reserved. What `BatchGenerator.next` returned as a token is in the
KV; the token after it is being computed already, and is computed again when a row comes back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from mlxd.engine.base import (
    Failed,
    Finished,
    FinishReason,
    KvLow,
    Listener,
    Paused,
    Prefilling,
    PromptScored,
    SchedulingParams,
    SequenceEvent,
    Submit,
)
from mlxd.engine.fault import generation_failure
from mlxd.engine.kv_shape import PREFILL_ROWS, WINDOW_PREFILL_TOKENS
from mlxd.engine.loader import LoadedModel
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.memory import MemoryLimits, is_gpu
from mlxd.engine.output import Markup
from mlxd.engine.pace import PrefillPace
from mlxd.engine.prompt_cache import PromptCache
from mlxd.engine.row import NO_UID, Phase, Row, Rows
from mlxd.engine.sampling import SamplerCache, SeededSampler, logits_processors
from mlxd.engine.scoring import PromptScorer, Scores, to_float32
from mlxd.protocol.errors import GenerationFailed, MlxdError

_log = logging.getLogger(__name__)

# The pool bounds the rows, not the generator.
_MOST_ROWS = 1 << 20
# On the CPU longer steps take longer per token: 3000 tokens in 6 s at 256, in 14 s at 2048 (tiny model, 2 cores).
_CPU_PREFILL_TOKENS = 256
_GPU_PREFILL_TOKENS = 2048

PostEvent = Callable[[Listener, SequenceEvent], None]


class TextModel:
    """Runs the sequences of one model; events go to *post*."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompt_cache_limit_bytes: int,
        scheduling: SchedulingParams,
        limits: MemoryLimits,
        post: PostEvent,
    ) -> None:
        """Take a model whose weights are in memory."""
        tokenizer = loaded.tokenizer
        self.model_id = loaded.model_id
        self.prompts = PromptCache(prompt_cache_limit_bytes)
        self._loaded = loaded
        self._limits = limits
        self._post = post
        self._pace = PrefillPace(scheduling, _GPU_PREFILL_TOKENS if is_gpu() else _CPU_PREFILL_TOKENS)
        self._markup = Markup(tokenizer)
        self._scores = Scores(loaded.vocabulary, loaded.facts.vocab_size, scheduling)
        self._eos_tokens = sorted(tokenizer.eos_token_ids)
        newline = tokenizer.encode("\n", add_special_tokens=False)
        self._samplers = SamplerCache(loaded.facts.vocab_size, [*newline, *self._eos_tokens])
        self._rows = Rows()
        self._batch: dict[int, Row] = {}  # by uid: the ones that the generator has
        self._scorers: dict[int, PromptScorer] = {}  # by sequence id; the oldest is read first
        self._generator = self._make_generator()

    @property
    def is_busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._batch or self._scorers)

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

    def pause(self, sequence_id: int) -> None:
        """Take a sequence out of the batch and drop its KV."""
        row = self._rows.get(sequence_id)
        if row is not None and row.phase is not Phase.PAUSED:
            self._generator.remove([row.uid])  # knows nothing of rows that wait for their prompt
            self._pause(row)

    def resume(self, sequence_id: int, kv_tokens: int) -> None:
        """Go on with a paused sequence."""
        row = self._rows.get(sequence_id)
        if row is not None and row.phase is Phase.PAUSED:
            if isinstance(row.sampler, SeededSampler):
                row.sampler.seek(row.generated)
            self._enter(row, kv_tokens)

    def cancel(self, sequence_id: int) -> None:
        """End a sequence; its KV goes into the prompt cache."""
        row = self._rows.get(sequence_id)
        if row is None:
            return
        kept = None
        if row.phase is not Phase.PAUSED:
            kept = self._generator.remove([row.uid], return_prompt_caches=True).get(row.uid)
        self._finish(row, FinishReason.CANCELLED, kept)

    def set_scheduling(self, params: SchedulingParams) -> None:
        """Change the pace of prefills."""
        self._pace.change(params)
        self._scores.change(params)

    # A step

    def step(self, *, others_decode: bool) -> None:
        """Make one token for every decoding row, and process one chunk of the prompts that wait."""
        if self._scorers:
            self._score(others_decode=others_decode or self.is_decoding)
        if not self._batch:
            return
        prefilled, responses = self._next(others_decode=others_decode)
        for response in prefilled:
            self._on_prefilled(response)
        stopped: list[Row] = []
        for response in responses:
            self._on_token(response, stopped)
        if stopped:
            kept = self._generator.remove([row.uid for row in stopped], return_prompt_caches=True)
            for row in stopped:
                self._finish(row, FinishReason.STOP, kept.get(row.uid))

    def _next(self, *, others_decode: bool) -> tuple[list[Any], list[Any]]:
        """Run the generator's step at the pace of the prefills."""
        prefilling = [row.unprocessed_tokens for row in self._batch.values() if row.phase is Phase.PREFILL]
        chunked = [tokens - 1 for tokens in prefilling if tokens > 1]  # the last token is a step of its own
        # A row whose prompt is done but for its last token waits for its first token as others do for their next.
        decoding = len(chunked) < len(self._batch)
        step_tokens = 0
        if chunked:
            step_tokens = self._pace.step_tokens(chunked, others_decode=decoding or others_decode)
            if self._loaded.facts.kv.has_window:
                step_tokens = min(step_tokens, WINDOW_PREFILL_TOKENS)
            self._generator.prefill_step_size = step_tokens
        started_s = time.perf_counter()
        responses: tuple[list[Any], list[Any]] = self._generator.next()
        elapsed_s = time.perf_counter() - started_s
        if not prefilling:
            self._pace.record_decode(elapsed_s)
        elif chunked and max(chunked) >= step_tokens:
            self._pace.record_prefill(step_tokens, elapsed_s, decoding=decoding)
        return responses

    def fail_batch(self, error: MlxdError) -> None:
        """End the sequences in the batch with *error* and begin a fresh one, whatever state the old one is in."""
        failed = list(self._batch.values())
        self._batch.clear()  # the fresh one counts its uids from the beginning, and rows that were held enter it below
        self._generator.close()
        self._generator = self._make_generator()
        for row in failed:
            self._forget(row)
            self._post(row.listener, Failed(row.sequence_id, error))

    def close(self, error: MlxdError) -> None:
        """End all sequences with *error* and let go of everything MLX."""
        for row in self._rows.values():
            self._post(row.listener, Failed(row.sequence_id, error))
        self._generator.close()
        self._limits.apply_wired()
        # Whoever still holds this object, such as a logged traceback, holds no weights.
        self.__dict__.clear()

    def _make_generator(self) -> Any:
        generator = BatchGenerator(
            self._loaded.model,
            stop_tokens=[[token] for token in self._eos_tokens],
            completion_batch_size=_MOST_ROWS,
            prefill_batch_size=PREFILL_ROWS,
            stream=mx.default_stream(mx.default_device()),
        )
        self._limits.apply_wired()
        return generator

    # Rows

    def _make_row(self, submit: Submit, listener: Listener) -> Row:
        prompt = submit.prompt
        return Row(
            submit=submit,
            listener=listener,
            output=self._markup.output(prompt, submit.stop),
            sampler=self._samplers.row_sampler(submit.sampling),
            processors=[
                *([] if submit.logprobs is None else [to_float32]),
                *logits_processors(submit.sampling, len(prompt.tokens)),
            ],
            kv_tokens=submit.kv_tokens,
            tokens=list(prompt.tokens),
        )

    def _enter(self, row: Row, kv_tokens: int) -> None:
        """Let *row* go on with a grant: in the batch, or towards it."""
        row.set_grant(kv_tokens)
        if len(row.tokens) >= kv_tokens:  # no token fits
            self._pause(row)
        elif row.is_fresh and self._rows.is_led(row):
            row.phase = Phase.HELD
        elif row.submit.scores_prompt and not row.is_scored:
            self._begin_scoring(row)
        else:
            try:
                cache, known = self.prompts.fetch(row.tokens)
            except Exception as error:  # noqa: BLE001 the engine's edge: nothing was touched
                self._fail(row, error)
                return
            self._insert(row, cache, known)

    def _insert(self, row: Row, cache: list[Any] | None, known: int) -> None:
        """Put *row* into the batch with the KV of its first *known* tokens."""
        try:
            (row.uid,) = self._generator.insert(
                [row.tokens[known:]],
                max_tokens=[row.remaining_tokens],
                caches=[cache],
                all_tokens=[row.tokens[:known]],
                samplers=[row.sampler],
                logits_processors=[row.enter_batch(self._loaded.tokenizer)],
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

    def _hand_on(self, leader: Row, cache: list[Any]) -> None:
        """Let those in that waited for the KV of *leader*'s prompt, all but its last token; merging copies it."""
        for row in self._rows.held_by(leader):
            if leader.is_scored and not row.is_scored:
                self._post_scores(row, leader.prompt_logprobs)
            self._insert(row, cache, len(row.tokens) - 1)
            row.cached_tokens = leader.cached_tokens

    def _begin_scoring(self, row: Row) -> None:
        try:
            self._scorers[row.sequence_id] = self._scores.of_prompt(self._loaded.model, row.tokens, row.submit.logprobs)
        except Exception as error:  # noqa: BLE001 the engine's edge: nothing was touched
            self._fail(row, error)
            return
        row.phase = Phase.SCORING

    def _score(self, *, others_decode: bool) -> None:
        """Read the next slice of the oldest prompt that is to be scored."""
        sequence_id, scorer = next(iter(self._scorers.items()))
        row = self._rows[sequence_id]
        try:
            scorer.advance(others_decode=others_decode)
        except Exception as error:  # noqa: BLE001 the engine's edge: no other row had a part in it
            self._fail(row, error)
            return
        self._post(row.listener, Prefilling(sequence_id, len(scorer.logprobs), len(row.tokens)))
        if scorer.is_done:
            del self._scorers[sequence_id]
            self._post_scores(row, tuple(scorer.logprobs))
            self._insert(row, scorer.cache, len(row.tokens) - 1)
            row.cached_tokens = 0
            self._hand_on(row, scorer.cache)

    def _post_scores(self, row: Row, logprobs: tuple[TokenLogprob, ...]) -> None:
        row.prompt_logprobs = logprobs
        self._post(row.listener, PromptScored(row.sequence_id, logprobs))

    def _on_prefilled(self, response: Any) -> None:
        row = self._batch[response.uid]
        if response.end_of_prompt:
            row.phase = Phase.DECODE
        done = row.inserted_tokens + response.progress[0]
        if done > row.prefilled_tokens:
            row.prefilled_tokens = done
            if row.is_fresh:
                self._post(row.listener, Prefilling(row.sequence_id, done, len(row.tokens)))
        if row.unprocessed_tokens == 1 and self._rows.held_by(row):
            cache, _ = self._generator.extract_cache([row.uid])[row.uid]
            self._hand_on(row, cache)

    def _on_token(self, response: Any, stopped: list[Row]) -> None:
        """Hand out what a token made known; rows to take out of the batch because of a stop string go to *stopped*."""
        row = self._batch[response.uid]
        row.tokens.append(response.token)
        row.generated += 1
        if row.grammar is not None and row.grammar.failure is not None:
            self._fail(row, GenerationFailed(f"the grammar of the answer failed: {row.grammar.failure}"))
            return
        if response.finish_reason == "stop":
            self._finish(row, FinishReason.STOP, (response.prompt_cache, response.all_tokens))
            return
        try:
            deltas = row.push(response.token, self._scores.of_token(response, row.submit.logprobs))
        except Exception as error:  # noqa: BLE001 a tokenizer's failure on one row is none of the others' business
            self._fail(row, error)
            return
        self._post_all(row, deltas)
        if response.finish_reason is not None:
            self._finish(row, FinishReason.LENGTH, (response.prompt_cache, response.all_tokens))
        elif row.output.stopped:
            stopped.append(row)
        elif len(row.tokens) >= row.check_at_tokens:
            self._check_grant(row)

    def _post_all(self, row: Row, events: Iterable[SequenceEvent]) -> None:
        for event in events:
            self._post(row.listener, event)

    def _check_grant(self, row: Row) -> None:
        if len(row.tokens) >= row.kv_tokens:
            self._generator.remove([row.uid])
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
        row.uid = NO_UID  # the next generator gives this one to another row
        self._scorers.pop(row.sequence_id, None)
        led = self._rows.held_by(row) if row.phase in {Phase.SCORING, Phase.PREFILL} else []
        row.phase = Phase.PAUSED
        for other in led:
            self._enter(other, other.kv_tokens)

    def _finish(self, row: Row, reason: FinishReason, kept: tuple[list[Any], list[int]] | None) -> None:
        """End *row*, which is out of the batch; *kept* is its KV and the tokens in it."""
        try:
            deltas = row.flush()
            # KV that came out of the prompt cache and went no further is still in there.
            if kept is not None and len(kept[1]) > row.inserted_tokens:
                self.prompts.store(kept[1], kept[0])
        except Exception as error:  # noqa: BLE001 as above
            self._fail(row, error)
            return
        self._post_all(row, deltas)
        if reason is FinishReason.LENGTH and row.output.stopped:
            reason = FinishReason.STOP
        self._forget(row)
        self._post(row.listener, Finished(row.sequence_id, reason, row.usage, row.output.stopped_by))

    def _fail(self, row: Row, error: Exception) -> None:
        _log.error("sequence %d of %s failed", row.sequence_id, self.model_id, exc_info=error)
        self._generator.remove([row.uid])
        self._forget(row)
        self._post(row.listener, Failed(row.sequence_id, generation_failure(self.model_id, error)))

    def _forget(self, row: Row) -> None:
        del self._rows[row.sequence_id]
        self._leave(row)
