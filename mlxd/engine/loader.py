"""Loads weights in slices, so that running streams go on between them. Used on the device thread only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlxd.engine.adapter import put_adapter_on
from mlxd.engine.base import Decoding, EngineFacts, LoadSpec
from mlxd.engine.command import ModelFiles
from mlxd.engine.encoder import workspace
from mlxd.engine.hidden import Encoder, hidden_width
from mlxd.engine.kv import CacheMaker
from mlxd.engine.sentence import shorter_dimensions
from mlxd.engine.source import context_length
from mlxd.engine.vector import Pooling, VectorFacts
from mlxd.engine.vocabulary import Vocabulary

# Measured: 8 MB take 5 ms, which a stream does not notice; 64 MB take 29 ms and load twice as fast.
BUSY_SLICE_BYTES = 8_000_000
IDLE_SLICE_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model whose weights are in memory."""

    model_id: str
    model: Any  # mlx.nn.Module
    tokenizer: Any  # mlx_lm.tokenizer_utils.TokenizerWrapper
    vocabulary: Vocabulary
    facts: EngineFacts
    encoder: Encoder | None = None  # the way through a model that makes no text

    @property
    def caches(self) -> CacheMaker:
        """What makes the caches of a model that makes text."""
        return CacheMaker(self.model)


class SlicedLoad:
    """A load in progress.

    The weights count as the sum of their arrays. MLX's active memory does not tell: the step of a running stream is in
    flight during a slice, and what it frees would be taken off the weights.
    """

    def __init__(self, spec: LoadSpec, files: ModelFiles, base: LoadedModel | None = None) -> None:
        """Begin with nothing read; *base* is what an adapter is put on."""
        self._spec = spec
        self._files = files
        self._base = base
        self._model: Any = None
        self._waiting: list[mx.array] = []
        self.done_bytes = 0
        self.total_bytes = 0

    def advance(self, slice_bytes: int) -> LoadedModel | None:
        """Load the next *slice_bytes*, at least one array; return the model when it is complete.

        Raises:
            LoadFailed: the model cannot be served.
            Exception: whatever MLX and mlx-lm raise on damaged or unknown files.
        """
        if self._model is None:
            # A layer that is used in two places has its arrays once.
            self._waiting = list({id(array): array for array in self._open()}.values())
            self._waiting.reverse()
            self.total_bytes = sum(array.nbytes for array in self._waiting)
        elif self._waiting:
            arrays = [self._waiting.pop()]
            taken_bytes = arrays[0].nbytes
            while self._waiting and taken_bytes + self._waiting[-1].nbytes <= slice_bytes:
                arrays.append(self._waiting.pop())
                taken_bytes += arrays[-1].nbytes
            mx.eval(arrays)
            self.done_bytes += taken_bytes
        else:
            return self._measured_encoder() if self._spec.is_encoder else self._measured()
        return None

    def _open(self) -> list[mx.array]:
        """Build the model around arrays that are not read yet; return the ones that it does not share with a base."""
        if self._base is not None and self._spec.adapter_path is not None:
            self._model, arrays = put_adapter_on(self._base.model, self._spec.adapter_path)
            self._base = None
            return arrays
        self._model = self._open_encoder() if self._spec.is_encoder else load_model(self._files.path, lazy=True)[0]
        flat = cast("list[tuple[str, mx.array]]", tree_flatten(self._model.parameters()))
        return [array for _, array in flat]

    def _measured(self) -> LoadedModel:
        caches = CacheMaker(self._model)
        kv, vocab_size = caches.probe()
        tokenizer = self._files.tokenizer
        facts = EngineFacts(
            weights_bytes=self.done_bytes,
            kv=kv,
            context_length=context_length(self._spec, self._files),
            vocab_size=vocab_size,
            has_thinking=bool(tokenizer.has_thinking),
            has_tool_calling=bool(tokenizer.has_tool_calling),
            chat_template=bool(tokenizer.has_chat_template),
            vectors=self._vectors(hidden_width(self._model, vocab_size)),
            decoding=Decoding.BATCHED if caches.can_merge else Decoding.ONE_BY_ONE,
        )
        return LoadedModel(self._spec.model_id, self._model, tokenizer, self._files.vocabulary, facts)

    def _open_encoder(self) -> Any:
        from mlx_embeddings.utils import load_model as load_encoder  # an extra; a worker has imported it

        # ModernBERT pools by itself.
        pooling = {"classifier_pooling": "cls" if self._files.pooling is Pooling.FIRST else "mean"}
        return load_encoder(self._files.path, lazy=True, model_config=pooling, path_to_repo=str(self._files.path))

    def _measured_encoder(self) -> LoadedModel:
        files = self._files
        encoder = Encoder(self._model, Pooling.MEAN if files.pooling is None else files.pooling)
        facts = EngineFacts(
            weights_bytes=self.done_bytes,
            kv=workspace(files.config),
            context_length=context_length(self._spec, files),
            vocab_size=int(self._model.config.vocab_size),
            has_thinking=False,
            has_tool_calling=False,
            chat_template=False,
            vectors=self._vectors(encoder.width()),
        )
        return LoadedModel(self._spec.model_id, self._model, files.tokenizer, files.vocabulary, facts, encoder)

    def _vectors(self, width: int | None) -> VectorFacts | None:
        pooling = self._files.pooling
        if width is None or pooling is None:
            return None
        return VectorFacts(width, pooling, shorter_dimensions(self._files.config, width))
