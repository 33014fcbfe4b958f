"""From an embedding request to tokens: tokenizer, range, context. Runs on worker threads and touches no mlx."""

from __future__ import annotations

import logging
from typing import Any

from mlxd.engine.base import EngineFacts
from mlxd.engine.fault import tokenizing
from mlxd.engine.prompt_check import GENEROUS_CHARACTERS, foreign_token
from mlxd.engine.vector import EmbeddingRequest, PreparedInputs, VectorFacts
from mlxd.protocol.errors import ContextLengthExceeded, InvalidRequest

_log = logging.getLogger(__name__)


class InputReader:
    """Prepares the texts of one model."""

    def __init__(self, model_id: str, tokenizer: Any, facts: EngineFacts) -> None:
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._facts = facts
        self._has_warned = False

    def prepare(self, request: EmbeddingRequest) -> PreparedInputs:
        """Tokenize and check against the context.

        Raises:
            InvalidRequest: the model makes no vectors, or none of that length; a text is empty or a token out of range.
            ContextLengthExceeded: a text is over the context and is not to be cut.
        """
        vectors = self._facts.vectors
        if vectors is None:
            raise InvalidRequest(
                f"model '{self._model_id}' cannot make embeddings: its hidden states are out of reach, or its"
                " folder names a pooling that is not known",
                hint=f"mlxctl model set {self._model_id} pooling=mean (or first, last)",
                param="model",
            )
        if vectors.is_assumed and not self._has_warned:
            self._has_warned = True
            _log.warning(
                "%s makes vectors, and nothing says how it pools: the mean of the hidden states is a guess; read its"
                " card, then: mlxctl model set %s pooling=mean (or first, last)",
                self._model_id,
                self._model_id,
            )
        dimensions = check_dimensions(self._model_id, vectors, request.dimensions)
        return PreparedInputs(
            tuple(self._row(place, given, request) for place, given in enumerate(request.inputs)), dimensions
        )

    def _row(self, place: int, given: str | tuple[int, ...], request: EmbeddingRequest) -> tuple[int, ...]:
        name = "input" if len(request.inputs) == 1 else f"input[{place}]"
        tokens = self._encode(name, given, truncate=request.truncate) if isinstance(given, str) else given
        if not tokens:
            raise InvalidRequest(f"{name} is empty", param="input")
        wrong = foreign_token(tokens, self._facts.vocab_size)
        if wrong is not None:
            raise InvalidRequest(
                f"{name}: token {wrong} is not one of '{self._model_id}': 0..{self._facts.vocab_size - 1}",
                hint="send texts; tokens must come from this model's own tokenizer",
                param="input",
            )
        context = self._facts.context_length
        if len(tokens) <= context:
            return tuple(tokens)
        if not request.truncate:
            raise self._too_long(f"{name} has {len(tokens)} tokens")
        return self._cut(tuple(tokens), context, is_text=isinstance(given, str))

    def _encode(self, name: str, text: str, *, truncate: bool) -> list[int]:
        """Tokenize *text*; of one that is far too long the beginning is enough, as tokenizing it all takes minutes."""
        beginning = GENEROUS_CHARACTERS * self._facts.context_length
        if len(text) > beginning:
            tokens = self._tokens_of(text[:beginning])
            if len(tokens) > 2 * self._facts.context_length:
                if truncate:
                    return tokens
                raise self._too_long(
                    f"{name} has {len(text)} characters, and its first {beginning} are {len(tokens)} tokens already"
                )
        return self._tokens_of(text)

    def _tokens_of(self, text: str) -> list[int]:
        with tokenizing(self._model_id):
            return list(self._tokenizer.encode(text))

    def _cut(self, tokens: tuple[int, ...], context: int, *, is_text: bool) -> tuple[int, ...]:
        """Return the beginning of *tokens*, with the special tokens that end every text of this tokenizer."""
        ending = self._ending() if is_text else ()
        if len(ending) >= context:
            return tokens[:context]
        return (*tokens[: context - len(ending)], *ending)

    def _ending(self) -> tuple[int, ...]:
        """Return the special tokens that the tokenizer puts after a text."""
        plain = list(self._tokenizer.encode("a", add_special_tokens=False))
        whole = list(self._tokenizer.encode("a"))
        for start in range(len(whole) - len(plain) + 1):
            if whole[start : start + len(plain)] == plain:
                return tuple(whole[start + len(plain) :])
        return ()

    def _too_long(self, what: str) -> ContextLengthExceeded:
        return ContextLengthExceeded(
            f"{what}, more than the context of {self._facts.context_length} tokens of '{self._model_id}'",
            hint="send shorter texts, or truncate: true to have them cut",
            param="input",
        )


def check_dimensions(model_id: str, vectors: VectorFacts, wanted: int | None) -> int:
    """Return the length of the vectors to make.

    Raises:
        InvalidRequest: the model was not trained for vectors of that length: cut ones would mean little.
    """
    if wanted is None or wanted == vectors.dimensions:
        return vectors.dimensions
    if wanted in vectors.shorter:
        return wanted
    words = f"it makes vectors of {vectors.dimensions} dimensions"
    if isinstance(vectors.shorter, range):
        words += f", or of {vectors.shorter.start} to {vectors.shorter.stop - 1}"
    elif vectors.shorter:
        words += ", or of " + ", ".join(map(str, vectors.shorter))
    raise InvalidRequest(f"dimensions is {wanted}, which '{model_id}' was not trained for: {words}", param="dimensions")
