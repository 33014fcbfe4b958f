"""Read a model's `config.json` with every number within bounds, its context, and whether it fits its weights.

The one way to a value for the catalog, the estimates and the engine. No mlx.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.engine.model_file import shown_text

Config = Mapping[str, Any]

# Of a size: MLX counts the elements along an axis in 32 bits.
MOST_SIZE = 2**31 - 1
# Of what mlx-lm makes one by one (layers, heads, experts): twenty times what any model has.
MOST_PARTS = 16_384

LAYER_KEYS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_transformer_layers")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
# mlx-lm loops over them, in whatever part of a config they stand.
_PARTS = re.compile(r"(^|_)(layers?|heads?|experts?|groups?|loops?|inputs?|iters?|embedders?|split_num|neighbor_num)$")
# Configs of several modalities have those of their parts inside; nothing that is read lies deeper.
_MOST_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Context:
    """The tokens of prompt and answer together: what a model has by itself, and the most that may be set."""

    own: int | None  # None: the config does not say
    longest: int | None


def field_of(config: Config, key: str) -> Any:
    """Return the value at the top or, in configs of several modalities, under `text_config`; None if absent."""
    if config.get(key) is not None:
        return config[key]
    text = config.get("text_config")
    return text.get(key) if isinstance(text, dict) else None


def as_size(value: object) -> int | None:
    """Return a whole number from 1 to 2^31 - 1; None for everything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST_SIZE else None


def first_int(config: Config, keys: Iterable[str]) -> int | None:
    """Return the first size that one of the keys has; None if none has."""
    return next((size for key in keys if (size := as_size(field_of(config, key))) is not None), None)


def context_of(config: Config) -> Context:
    """Return the context that the config states. Positions that YaRN or the like can stretch may be set that far."""
    own = first_int(config, _CONTEXT_KEYS)
    scaling = next((found for key in ("rope_scaling", "rope_parameters") if (found := field_of(config, key))), None)
    if own is None or not isinstance(scaling, dict):
        return Context(own, own)
    factor, original = scaling.get("factor"), as_size(scaling.get("original_max_position_embeddings"))
    if original is None or isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1 <= factor <= own:
        return Context(own, own)
    return Context(own, max(own, min(int(original * factor), MOST_SIZE)))


def parts_problem(config: Config, n_tensors: int) -> str | None:
    """Return what of the config no model can have, None if nothing: mlx-lm would make each of a billion layers.

    Args:
        config: a model's `config.json`, or what stands beside an adapter.
        n_tensors: of its weights; a layer has at least one.
    """
    for key, value in _numbers(config):
        if not _PARTS.search(key):
            continue
        if value > MOST_PARTS:
            return f"its config has {value} for {shown_text(key)}; the maximum is {MOST_PARTS}"
        if key in LAYER_KEYS and value > n_tensors:
            return f"its config has {value} for {key}, and the weights have only {n_tensors} tensors"
    return None


def _numbers(config: Config, depth: int = 0) -> Iterator[tuple[str, float]]:
    for key, value in config.items():
        if isinstance(value, dict) and depth < _MOST_DEPTH:
            yield from _numbers(value, depth + 1)
        elif isinstance(value, (int, float)):
            yield key, value
