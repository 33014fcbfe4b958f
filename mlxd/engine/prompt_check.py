"""Refuses what must not reach the device: tokens that a model does not have, and prompts over its context. No mlx."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mlxd.engine.base import GenerationRequest, SamplingParams
from mlxd.engine.fault import tokenizing
from mlxd.protocol.errors import ContextLengthExceeded, InvalidRequest

# A text is longer than its context when this many characters per token of context are.
GENEROUS_CHARACTERS = 16
_log = logging.getLogger(__name__)


def foreign_token(tokens: Sequence[int], vocab_size: int) -> int | None:
    """Return a token that the model does not have; None when all are its own."""
    # Of every prompt: a tokenizer may know more tokens than its model, and MLX reads past the end of the embedding.
    if not tokens or 0 <= min(tokens) <= max(tokens) < vocab_size:
        return None
    return min(tokens) if min(tokens) < 0 else max(tokens)


def check_bias(params: SamplingParams, vocab_size: int) -> None:
    """Refuse a bias of a token that the model does not have: an exception inside a batch costs other rows their tokens.

    Raises:
        InvalidRequest: names the token, and which there are.
    """
    for token, _ in params.logit_bias:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token}; the tokens are 0..{vocab_size - 1}", param="logit_bias"
            )


class PromptLength:
    """Compares prompts with the context of one model."""

    def __init__(self, model_id: str, tokenizer: Any, context_tokens: int) -> None:
        """Take mlx-lm's `TokenizerWrapper`, and the most that prompt and answer may have together."""
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens

    def max_tokens(self, prompt_tokens: int, request: GenerationRequest, field: str) -> int:
        """Return the most tokens that the answer may have: those asked for, as far as the prompt leaves room for them.

        Args:
            prompt_tokens: of the prompt.
            request: what is asked for.
            field: that an error names where the prompt is at fault.

        Raises:
            InvalidRequest: the prompt is empty, or nothing is asked for.
            ContextLengthExceeded: the prompt leaves no room.
        """
        wanted = request.max_tokens
        if prompt_tokens == 0:
            raise InvalidRequest("the prompt is empty", param=field)
        if wanted is not None and wanted < 1:
            raise InvalidRequest(f"max_tokens is {wanted}; the least is 1", param="max_tokens")
        room = self._context_tokens - prompt_tokens
        if room < 1:
            raise self._too_long(str(prompt_tokens), prompt_tokens, field)
        if wanted is None:
            return room if request.default_max_tokens is None else min(room, request.default_max_tokens)
        if wanted > room:
            # Clients ask for what their usual models can, and cannot be changed; the finish reason tells them.
            _log.debug("max_tokens %d of %s reduced to the room of %d", wanted, self._model_id, room)
        return min(wanted, room)

    def thinking_budget(self, request: GenerationRequest, max_tokens: int) -> int | None:
        """Return the most tokens of thinking; where *max_tokens* was reduced, the answer keeps its share of them."""
        budget, wanted = request.thinking_budget, request.max_tokens
        if budget is None or wanted is None or wanted <= max_tokens:
            return budget
        return max(1, budget * max_tokens // wanted)

    def refuse_far_too_long(self, text: str, field: str) -> None:
        """Pass unless a text of the prompt is so long that its beginning says so.

        30 MB take a tokenizer half a minute and some GB, in which the prompts of others wait.

        Raises:
            ContextLengthExceeded: it is.
        """
        beginning = GENEROUS_CHARACTERS * self._context_tokens
        if len(text) <= beginning:
            return
        with tokenizing(self._model_id):
            tokens = len(self._tokenizer.encode(text[:beginning], add_special_tokens=False))
        # Twice the context, so that what is cut off the last word decides nothing.
        if tokens > 2 * self._context_tokens:
            raise self._too_long(f"more than {tokens}", tokens, field)

    def _too_long(self, counted: str, prompt_tokens: int, field: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            # Clients look for these words, which are OpenAI's, and shorten the conversation.
            f"This model's maximum context length is {self._context_tokens} tokens. However, your {field} resulted in"
            f" {counted} tokens, and the answer needs one",
            hint=f"shorten the {field}\nmlxctl model set {self._model_id} context_length=N, if the model can have more",
            param=field,
            data={"prompt_tokens": prompt_tokens, "context_tokens": self._context_tokens},
        )
