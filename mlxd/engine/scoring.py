"""Log-probabilities: of each token that a row draws, and of the tokens of a prompt. Used on the device thread only."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlxd.engine.base import Prefilling, PromptScored, SchedulingParams
from mlxd.engine.loader import LoadedModel
from mlxd.engine.logprob import Alternative, TokenLogprob
from mlxd.engine.pace import PrefillPace
from mlxd.engine.row import Phase, PostEvent, Row, Rows
from mlxd.engine.vocabulary import Vocabulary

# The most that is read at once. Its logits are held in float32: 64 tokens of a vocabulary of 150,000 take 38 MB.
_SLICE_TOKENS = 64
# OpenAI's number for "so good as impossible"; JSON has no infinity.
LEAST_LOGPROB = -9999.0


def token_logprob(vocabulary: Any, logprobs: Any, token: int, top: int) -> TokenLogprob:
    """Return what *logprobs* (float32, [vocabulary], numpy) say of *token*, and the *top* likeliest tokens."""
    alternatives = []
    if top > 0:
        count = min(top, len(logprobs))
        best = np.argpartition(logprobs, -count)[-count:]
        order = best[np.argsort(-logprobs[best], kind="stable")]
        alternatives = [
            Alternative(int(other), vocabulary.decode_bytes([int(other)]), _finite(logprobs[other])) for other in order
        ]
    return TokenLogprob(token, vocabulary.decode_bytes([token]), _finite(logprobs[token]), tuple(alternatives))


def _finite(logprob: Any) -> float:
    return max(float(logprob), LEAST_LOGPROB)


class Scores:
    """Log-probabilities of one model."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int, scheduling: SchedulingParams) -> None:
        """Take its tokens, the size of its logits, and how long others may wait for a slice of a prompt."""
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._pace = PrefillPace(_in_slices(scheduling), _SLICE_TOKENS)

    def change(self, scheduling: SchedulingParams) -> None:
        """Change the pace at which prompts are read."""
        self._pace.change(_in_slices(scheduling))

    def of_token(self, token: int, logprobs: Any, top: int | None) -> TokenLogprob | None:
        """Return what a decoder's *logprobs* say of *token*; None where *top* is None."""
        if top is None:
            return None
        # Evaluated already; any operation of MLX on it would queue behind the step in flight.
        return token_logprob(self._tokens(), np.array(logprobs, copy=False), token, top)

    def of_prompt(self, loaded: LoadedModel, tokens: list[int], top: int | None) -> PromptScorer:
        """Return what reads a prompt."""
        return PromptScorer(loaded, self._tokens(), tokens, 0 if top is None else top, self._pace)

    def _tokens(self) -> Any:
        return self._vocabulary.tokens(self._vocab_size, "logprobs")


class PromptScorer:
    """Reads a prompt in slices and keeps what the model thought of its tokens, and the KV of all but the last."""

    def __init__(self, loaded: LoadedModel, vocabulary: Any, tokens: list[int], top: int, pace: PrefillPace) -> None:
        """Begin with nothing read; *top* alternatives are reported beside each token."""
        self._pace = pace
        self._model = loaded.model
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._top = top
        self._done = 0
        self.cache: list[Any] = loaded.caches.make()
        self.logprobs = [TokenLogprob(tokens[0], vocabulary.decode_bytes([tokens[0]]), None)]

    @property
    def is_done(self) -> bool:
        """Whether every token has been scored."""
        return len(self.logprobs) == len(self._tokens)

    def advance(self, *, others_decode: bool) -> None:
        """Read one slice, a short one where others wait for their next token."""
        remaining = len(self._tokens) - 1 - self._done
        if remaining == 0:
            return
        slice_tokens = min(self._pace.step_tokens([remaining], others_decode=others_decode), remaining)
        started_s = time.perf_counter()
        self._read(self._done + slice_tokens)
        if slice_tokens < remaining:  # the last one may be too short to say how long a slice takes
            self._pace.record_prefill(slice_tokens, time.perf_counter() - started_s, decoding=False)

    def _read(self, end: int) -> None:
        logits = self._model(mx.array([self._tokens[self._done : end]]), cache=self.cache)[0].astype(mx.float32)
        scored = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        mx.eval(scored, [part.state for part in self.cache])
        rows = np.array(scored, copy=False)
        self.logprobs += [
            token_logprob(self._vocabulary, row, token, self._top)
            for row, token in zip(rows, self._tokens[self._done + 1 : end + 1], strict=True)
        ]
        self._done = end


class ScoringQueue:
    """The rows of one model whose prompts are read for their logprobs before they enter the batch, oldest first."""

    def __init__(self, loaded: LoadedModel, scores: Scores, rows: Rows, post: PostEvent) -> None:
        """Take what belongs to one model; the scores of a prompt go to *post*."""
        self._loaded = loaded
        self._scores = scores
        self._rows = rows
        self._post = post
        self._scorers: dict[int, PromptScorer] = {}  # by sequence id

    def __bool__(self) -> bool:
        """Whether a prompt is to be read."""
        return bool(self._scorers)

    @property
    def oldest(self) -> Row:
        """The row whose prompt is read first."""
        return self._rows[next(iter(self._scorers))]

    def begin(self, row: Row) -> None:
        """Have the prompt of *row* read after those that are here."""
        self._scorers[row.sequence_id] = self._scores.of_prompt(self._loaded, row.tokens, row.submit.logprobs)
        row.phase = Phase.SCORING

    def discard(self, row: Row) -> None:
        """Read no more for *row*."""
        self._scorers.pop(row.sequence_id, None)

    def advance(self, *, others_decode: bool) -> list[tuple[Row, list[Any]]]:
        """Read a slice for the oldest row; at its end, return it and those that waited for it, with the KV they share.

        The KV is of all tokens but the last.
        """
        row = self.oldest
        scorer = self._scorers[row.sequence_id]
        scorer.advance(others_decode=others_decode)
        self._post(row.listener, Prefilling(row.sequence_id, len(scorer.logprobs), len(row.tokens)))
        if not scorer.is_done:
            return []
        self.discard(row)
        scored = [row, *self._rows.held_by(row)]
        for other in scored:
            other.leader = None
            other.prompt_logprobs = tuple(scorer.logprobs)
            self._post(other.listener, PromptScored(other.sequence_id, other.prompt_logprobs))
        return [(other, scorer.cache) for other in scored]


def _in_slices(scheduling: SchedulingParams) -> SchedulingParams:
    most = scheduling.prefill_step_tokens
    return replace(scheduling, prefill_step_tokens=_SLICE_TOKENS if most is None else min(most, _SLICE_TOKENS))
