"""The tokens of one model as bytes, for grammars and logprobs. Made on a worker thread; read on any."""

from __future__ import annotations

import threading
from typing import Any

from mlxd.protocol.errors import InvalidRequest


class Vocabulary:
    """A tokenizer as llguidance sees it; built at its first use, which takes up to a second."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._built: Any = None

    def tokens(self, vocab_size: int, field: str) -> Any:
        """Return llguidance's `LLTokenizer`, its masks as wide as the model's logits.

        Args:
            vocab_size: the last axis of the logits.
            field: what asked for it, for the message.

        Raises:
            InvalidRequest: the model's tokenizer is not of a kind that can be read.
        """
        with self._lock:
            if self._built is None:
                import llguidance.hf  # imports transformers

                try:
                    self._built = llguidance.hf.from_tokenizer(
                        self._tokenizer._tokenizer,  # noqa: SLF001  (the wrapper has no other way in)
                        n_vocab=vocab_size,
                        eos_token=sorted(self._tokenizer.eos_token_ids),
                    )
                except Exception as error:  # the engine's edge: it parses what came with the model
                    raise InvalidRequest(
                        f"{field} is not supported by this model: its tokenizer cannot be read token by token",
                        param=field,
                    ) from error
            return self._built
