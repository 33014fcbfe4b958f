"""From tokens to pooled hidden states, a slice at a time. Used on the device thread only.

A `Pass` takes some texts through a model. A decoder's goes on along the text, with a KV cache where it takes several
slices; an encoder's sees whole texts, and goes on product by product: the graph is built at once, evaluated in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

from mlxd.engine.kv import CacheMaker
from mlxd.engine.kv_shape import WINDOW_PREFILL_TOKENS
from mlxd.engine.memory import is_gpu
from mlxd.engine.vector import Pooling

Rows = Sequence[tuple[int, ...]]

# Where mlx-lm's models keep what comes before their head.
_BODIES = ("model", "transformer", "backbone", "language_model")
# Of a vector that is divided by its length.
_LEAST_NORM = 1e-12


class Pass(Protocol):
    """Some texts on their way through a model."""

    @property
    def is_done(self) -> bool:
        """Whether `pooled` can be asked."""

    def advance(self, step_tokens: int, *, others_decode: bool) -> int:
        """Do the next slice; return how many tokens it took, padding included."""

    def pooled(self) -> mx.array:
        """Return one vector per text, float32 [texts, width]."""


class Forward(Protocol):
    """A way from tokens to pooled hidden states."""

    def begin(self, rows: Rows, step_tokens: int) -> Pass:
        """Begin with some texts, of which several are taken only if all of their tokens are one slice."""


def body_of(model: Any) -> Any | None:
    """Return the part of one of mlx-lm's models that makes hidden states; None if it is not found."""
    for name in _BODIES:
        part = getattr(model, name, None)
        if isinstance(part, Module):
            # A language model within a model of several modalities has a head of its own.
            return body_of(part) if name == "language_model" else part
    return None


def hidden_width(model: Any, vocab_size: int) -> int | None:
    """Return the width of the hidden states of one of mlx-lm's models; None where they cannot be had.

    One token is sent through and nothing is evaluated: shapes are known without.
    """
    body = body_of(model)
    if body is None:
        return None
    try:
        hidden = body(mx.array([[0]]))
    except Exception:  # noqa: BLE001 the engine's edge: a body that wants other arguments makes no vectors
        return None
    if not isinstance(hidden, mx.array) or hidden.ndim != 3 or hidden.shape[-1] == vocab_size:
        return None
    return int(hidden.shape[-1])


def unit(vectors: mx.array, dimensions: int) -> mx.array:
    """Return the first *dimensions* of each vector, at unit length."""
    cut = vectors[:, :dimensions]
    return cut / mx.maximum(mx.linalg.norm(cut, axis=-1, keepdims=True), _LEAST_NORM)


def _padded(rows: Rows) -> tuple[mx.array, mx.array]:
    """Return tokens and mask [texts, longest]; padding is on the right, where causal attention does not look."""
    longest = max(map(len, rows))
    tokens = mx.array([[*row, *([0] * (longest - len(row)))] for row in rows])
    lengths = mx.array([[len(row)] for row in rows])
    return tokens, (mx.arange(longest)[None] < lengths).astype(mx.float32)


class TextForward:
    """The hidden states of a text model."""

    def __init__(self, model: Any, caches: CacheMaker, pooling: Pooling) -> None:
        self._caches = caches
        self._body = body_of(model)
        self._pooling = pooling

    def begin(self, rows: Rows, step_tokens: int) -> Pass:
        """Begin with some texts."""
        is_slice = len(rows) * max(map(len, rows)) <= step_tokens
        cache = None if is_slice else self._caches.make()
        return _TextPass(self._body, rows, self._pooling, cache)


class _TextPass:
    def __init__(self, body: Any, rows: Rows, pooling: Pooling, cache: list[Any] | None) -> None:
        self._body = body
        self._tokens, self._mask = _padded(rows)
        self._lengths = mx.array([[len(row)] for row in rows])
        self._pooling = pooling
        self._cache = cache
        self._done = 0
        self._sum: mx.array | None = None

    @property
    def is_done(self) -> bool:
        return self._done == self._tokens.shape[1]

    def advance(self, step_tokens: int, *, others_decode: bool) -> int:  # noqa: ARG002 its slices are short by themselves
        length = self._tokens.shape[1]
        end = length if self._cache is None else min(self._done + min(step_tokens, WINDOW_PREFILL_TOKENS), length)
        tokens = self._tokens[:, self._done : end]
        hidden = self._body(tokens) if self._cache is None else self._body(tokens, cache=self._cache)
        weights = self._weights()[:, self._done : end, None]
        part = (hidden.astype(mx.float32) * weights).sum(axis=1)
        self._sum = part if self._sum is None else self._sum + part
        mx.eval(self._sum, [] if self._cache is None else [layer.state for layer in self._cache])
        self._done = end
        return int(tokens.size)

    def pooled(self) -> mx.array:
        if self._sum is None:
            raise RuntimeError("nothing has passed yet")
        return self._sum

    def _weights(self) -> mx.array:
        """Return how much each token's state counts."""
        places = mx.arange(self._tokens.shape[1])[None]
        if self._pooling is Pooling.MEAN:
            return self._mask / self._lengths
        if self._pooling is Pooling.FIRST:
            return (places == 0).astype(mx.float32)
        return (places == self._lengths - 1).astype(mx.float32)


class Encoder:
    """The hidden states of one of mlx-embeddings' models, whose layers and matrix products are tapped from now on."""

    def __init__(self, model: Any, pooling: Pooling) -> None:
        """Take the model; those that pool by themselves have been told how."""
        self._model = model
        self._pooling = pooling
        self._tapped: list[mx.array] = []
        layers = _layers_of(model)
        for layer in layers:
            self._tap_products(layer)
        layers[:] = [_Tap(layer, self._tapped.append) for layer in layers]

    def begin(self, rows: Rows, step_tokens: int) -> Pass:  # noqa: ARG002 a text is not cut
        """Begin with some texts."""
        tokens, mask = _padded(rows)
        self._tapped.clear()
        output = self._model(tokens, attention_mask=mask)
        parts = list(self._tapped)
        self._tapped.clear()
        return _EncoderPass(parts, self._pool(output, mask), int(tokens.size))

    def width(self) -> int:
        """Return the length of its vectors; nothing is evaluated."""
        rows = self.begin([(0,)], 1)
        return int(rows.pooled().shape[-1])

    def _tap_products(self, layer: Any) -> None:
        for _, module in layer.named_modules():
            for name, part in module.items():
                if isinstance(part, (Linear, QuantizedLinear)):
                    module[name] = _Tap(part, self._tapped.append)

    def _pool(self, output: Any, mask: mx.array) -> mx.array:
        """Return what the tokens' states come to; a model that has pooled them has no more than one."""
        states: mx.array = output.last_hidden_state.astype(mx.float32)
        if states.ndim == 2:
            return states
        if self._pooling is Pooling.FIRST:
            return states[:, 0]
        return (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)


class _EncoderPass:
    def __init__(self, parts: list[mx.array], pooled: mx.array, tokens: int) -> None:
        self._waiting = parts[::-1]
        self._pooled = pooled
        self._tokens = tokens
        self.is_done = False

    def advance(self, step_tokens: int, *, others_decode: bool) -> int:  # noqa: ARG002 the texts have been chosen by it
        """Do one part; on a GPU that nobody waits for all of them, since each evaluation is a wait."""
        if self._waiting and (others_decode or not is_gpu()):
            mx.eval(self._waiting.pop())
        else:
            self._waiting.clear()
            mx.eval(self._pooled)
            self.is_done = True
        return self._tokens

    def pooled(self) -> mx.array:
        return self._pooled


class _Tap:
    """A part of a model that shows what it returns."""

    def __init__(self, part: Any, show: Callable[[mx.array], None]) -> None:
        self._part = part
        self._show = show

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._part(*args, **kwargs)
        self._show(output[0] if isinstance(output, (tuple, list)) else output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def _layers_of(model: Any) -> list[Any]:
    """Return the model's own list of layers: the longest list of modules in it."""
    lists = [
        value
        for _, module in model.named_modules()
        for value in module.values()
        if isinstance(value, list) and value and all(isinstance(item, Module) for item in value)
    ]
    longest: list[Any] = max(lists, key=len, default=[])
    return longest
