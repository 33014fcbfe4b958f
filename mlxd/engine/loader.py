"""Loads weights in slices, so that running streams go on between them. Used on the device thread only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, load_model

from mlxd.engine.adapter import put_adapter_on
from mlxd.engine.answer.registry import tool_format
from mlxd.engine.base import EngineFacts, LoadSpec
from mlxd.engine.command import ModelFiles
from mlxd.engine.decoding_check import DecodingCheck, Finding, as_texts
from mlxd.engine.encoder import workspace
from mlxd.engine.hidden import Encoder, hidden_width
from mlxd.engine.kv import CacheMaker
from mlxd.engine.model_file import Signature
from mlxd.engine.placed import PlacedTensor
from mlxd.engine.pooling_config import shorter_dimensions
from mlxd.engine.source import context_length
from mlxd.engine.vector import Pooling, VectorFacts
from mlxd.engine.vocabulary import Vocabulary

# Measured: 8 MB take 5 ms, which a stream does not notice; 64 MB take 29 ms and load twice as fast.
BUSY_SLICE_BYTES = 8_000_000
IDLE_SLICE_BYTES = 64_000_000

# How models are decoded, by the files that they were loaded from: of this process, as another MLX may do otherwise.
Checked = dict[Signature, Finding]
# The last ones; the signature of a model of many files takes some ten kB.
MOST_CHECKED = 100


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


@dataclass(slots=True)
class _Weight:
    """An array of a model that is not in memory yet."""

    array: mx.array
    names: list[str]  # of the parameters that it is
    tensor: str | None = None  # in the files, where the array is that tensor as it is


class SlicedLoad:
    """A load in progress.

    The weights count as the sum of their arrays. MLX's active memory does not tell: the step of a running stream is in
    flight during a slice, and what it frees would be taken off the weights.
    """

    def __init__(
        self, spec: LoadSpec, files: ModelFiles, base: LoadedModel | None = None, checked: Checked | None = None
    ) -> None:
        """Begin with nothing read; *base* is what an adapter is put on, *checked* what needs no check again."""
        self._spec = spec
        self._files = files
        self._base = base
        self._checked = {} if checked is None else checked
        self._check: DecodingCheck | None = None
        self._model: Any = None
        self._waiting: list[_Weight] = []
        self._placed: PlacedTensor | None = None  # the large tensor that is being read
        self.done_bytes = 0
        self.total_bytes = 0

    def advance(self, slice_bytes: int) -> LoadedModel | None:
        """Load the next *slice_bytes*; return the model when it is complete.

        A slice is larger only where one array is computed from larger tensors, as in some models that mlx-lm converts.

        Raises:
            LoadFailed: the model cannot be served.
            Exception: whatever MLX and mlx-lm raise on damaged or unknown files.
        """
        if self._model is None:
            self._waiting = self._open()
            self._waiting.reverse()
            self.total_bytes = sum(weight.array.nbytes for weight in self._waiting)
        elif self._placed is not None or self._waiting:
            self.done_bytes += self._load_bytes(slice_bytes)
        elif self._spec.is_encoder:
            return self._measured_encoder()
        else:
            found = self._check_decoding()
            return None if found is None else self._measured(found)
        return None

    def close(self) -> None:
        """Let go of what was loaded."""
        if self._placed is not None:
            self._placed.close()
        if self._check is not None:
            self._check.close()
        self.__dict__.clear()

    def _load_bytes(self, slice_bytes: int) -> int:
        """Bring the next bytes into memory, and return how many."""
        if self._placed is None and self._waiting[-1].array.nbytes > slice_bytes:
            self._place(self._waiting[-1])
        if self._placed is not None:
            read_bytes = self._placed.read(slice_bytes)
            if self._placed.is_whole:
                self._placed.close()
                self._placed = None
            return read_bytes
        arrays = [self._waiting.pop().array]
        taken_bytes = arrays[0].nbytes
        while self._waiting and taken_bytes + self._waiting[-1].array.nbytes <= slice_bytes:
            arrays.append(self._waiting.pop().array)
            taken_bytes += arrays[-1].nbytes
        mx.eval(arrays)
        return taken_bytes

    def _place(self, weight: _Weight) -> None:
        """Begin to read a large tensor in pieces, where that can be done."""
        place = None if weight.tensor is None else self._files.tensors.get(weight.tensor)
        if place is None:
            return
        placed = PlacedTensor(*place)
        if placed.is_in_place() and placed.array.shape == weight.array.shape:
            self._model.update(tree_unflatten([(name, placed.array) for name in weight.names]))
            self._waiting.pop()
            self._placed = placed
        else:
            placed.close()

    def _open(self) -> list[_Weight]:
        """Build the model around arrays that are not read yet; return the ones that it does not share with a base."""
        if self._base is not None and self._spec.adapter_path is not None:
            self._model, own = put_adapter_on(self._base.model, self._spec.adapter_path)
            self._base = None
            return _weights(own.items(), {id(array): name for name, array in own.items()})
        noted = _Noted()
        self._model = _open_encoder(self._files, noted) if self._spec.is_encoder else _open_model(self._files, noted)
        parameters = cast("list[tuple[str, mx.array]]", tree_flatten(self._model.parameters()))
        return _weights(parameters, {id(array): name for name, array in noted.tensors.items()})

    def _check_decoding(self) -> Finding | None:
        """Go on with finding out how the model may be decoded, one pass; return it when it is known."""
        # The weights of an adapter are not those of the signature.
        key = None if self._spec.adapter_path is not None else self._files.signature
        if key is not None and key in self._checked:
            return self._checked[key]
        if self._check is None:
            self._check = self._new_check()
        found = self._check.advance()
        if found is not None and key is not None:
            self._checked[key] = found
            if len(self._checked) > MOST_CHECKED:
                del self._checked[next(iter(self._checked))]
        return found

    def _new_check(self) -> DecodingCheck:
        caches = CacheMaker(self._model)
        _, vocab_size = caches.probe()
        return DecodingCheck(self._model, caches, as_texts(self._files.tokenizer, vocab_size))

    def _measured(self, found: Finding) -> LoadedModel:
        kv, vocab_size = CacheMaker(self._model).probe()
        tokenizer = self._files.tokenizer
        facts = EngineFacts(
            weights_bytes=self.done_bytes,
            kv=kv,
            context_length=context_length(self._spec, self._files, self._model),
            vocab_size=vocab_size,
            has_thinking=bool(tokenizer.has_thinking),
            tool_format=tool_format(tokenizer),
            chat_template=bool(tokenizer.has_chat_template),
            vectors=self._vectors(hidden_width(self._model, vocab_size)),
            decoding=found.decoding,
            decoding_reason=found.reason,
        )
        return LoadedModel(self._spec.model_id, self._model, tokenizer, self._files.vocabulary, facts)

    def _measured_encoder(self) -> LoadedModel:
        files = self._files
        encoder = Encoder(self._model, Pooling.MEAN if files.pooling is None else files.pooling)
        facts = EngineFacts(
            weights_bytes=self.done_bytes,
            kv=workspace(files.config),
            context_length=context_length(self._spec, files, self._model),
            vocab_size=int(self._model.config.vocab_size),
            has_thinking=False,
            tool_format="",
            chat_template=False,
            vectors=self._vectors(encoder.width()),
        )
        return LoadedModel(self._spec.model_id, self._model, files.tokenizer, files.vocabulary, facts, encoder)

    def _vectors(self, width: int | None) -> VectorFacts | None:
        pooling = self._files.pooling
        if width is None or pooling is None:
            return None
        shorter = shorter_dimensions(self._files.config, width)
        return VectorFacts(width, pooling, shorter, self._files.is_pooling_assumed)


class _Noted:
    """What the files of a model hold, noted as its library hands it to `sanitize`, which passes most of it on as it is.

    The arrays are kept as well: an id is only theirs while they live.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, mx.array] = {}

    def watch(self, model_class: Any) -> Callable[[Any], Any]:
        """Return what makes a *model_class* whose tensors are noted."""

        def build(arguments: Any) -> Any:
            model = model_class(arguments)
            sanitize = getattr(model, "sanitize", None)

            def note(weights: dict[str, mx.array]) -> dict[str, mx.array]:
                self.tensors.update(weights)
                return weights if sanitize is None else cast("dict[str, mx.array]", sanitize(weights))

            model.sanitize = note
            return model

        return build


def _open_model(files: ModelFiles, noted: _Noted) -> Any:
    """Build a text model around arrays that are not read yet."""

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, arguments_class = _get_classes(config=config)
        return noted.watch(model_class), arguments_class

    model = load_model(files.path, lazy=True, get_model_classes=classes)[0]
    del model.sanitize
    return model


def _open_encoder(files: ModelFiles, noted: _Noted) -> Any:
    """Build an encoder around arrays that are not read yet."""
    from mlx_embeddings import utils  # an extra; a worker has imported it

    def classes(config: dict[str, Any]) -> tuple[Any, ...]:
        model_class, *others = utils._get_classes(config=config)  # noqa: SLF001 as mlx-lm's, which it was copied from
        return noted.watch(model_class), *others

    # ModernBERT pools by itself.
    pooling = {"classifier_pooling": "cls" if files.pooling is Pooling.FIRST else "mean"}
    model = utils.load_model(
        files.path, lazy=True, model_config=pooling, get_model_classes=classes, path_to_repo=str(files.path)
    )
    del model.sanitize
    return model


def _weights(parameters: Iterable[tuple[str, mx.array]], tensors: dict[int, str]) -> list[_Weight]:
    """Return what is to be read for *parameters*; *tensors* are names of those in the files, by identity."""
    weights: dict[int, _Weight] = {}  # a layer that is used in two places has its arrays once
    for name, array in parameters:
        weights.setdefault(id(array), _Weight(array, [], tensors.get(id(array)))).names.append(name)
    return list(weights.values())
