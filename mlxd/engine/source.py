"""What a worker thread reads of a model's folder before the device thread loads it: configuration and tokenizer.

Takes a second for a large tokenizer and touches no array. Nothing is fetched: a folder is complete or the load fails.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_config, load_tokenizer

from mlxd.engine import encoder
from mlxd.engine.base import LoadSpec
from mlxd.engine.command import ModelFiles
from mlxd.engine.fault import in_words
from mlxd.engine.sentence import read_pooling
from mlxd.engine.vector import Pooling
from mlxd.engine.vocabulary import Vocabulary
from mlxd.protocol.errors import LoadFailed

# Where configurations state their context, in the order of preference.
_CONTEXT_KEYS = ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions", "n_ctx")
# For a model that states none anywhere.
_DEFAULT_CONTEXT_TOKENS = 4096
# transformers writes 10^30 for "unknown".
_UNKNOWN_CONTEXT_TOKENS = 10**9


def read_model_files(spec: LoadSpec) -> ModelFiles:
    """Read configuration and tokenizer.

    Raises:
        LoadFailed: something is missing or damaged.
    """
    config = _read_config(spec)
    if not any(spec.path.glob("model*.safetensors")):
        raise LoadFailed(f"model '{spec.model_id}': no weights (model*.safetensors) in {spec.path}")
    if spec.is_encoder:
        _import_encoders(spec, str(config["model_type"]))
    try:
        tokenizer = load_tokenizer(
            spec.path,
            # A folder that brings its own code is not run, and nothing is asked of the network or of a terminal.
            {"trust_remote_code": False, "local_files_only": True},
            eos_token_ids=config.get("eos_token_id"),
        )
        # The first call settles the tokenizer's mode; later calls only read it, from several threads at once.
        tokenizer.encode("a", add_special_tokens=False)
    except Exception as error:  # tokenizers raise bare Exception
        raise LoadFailed(f"model '{spec.model_id}': the tokenizer cannot be read: {in_words(error)}") from error
    return ModelFiles(spec.path, config, tokenizer, Vocabulary(tokenizer), _pooling(spec))


def context_length(spec: LoadSpec, files: ModelFiles) -> int:
    """Return the context in tokens: the setting's, but no more than what the model, or else its tokenizer, declares.

    4096 where nothing is declared or set. More than a model was made for is nonsense at the end of a long prompt.
    """
    own = _declared_context_length(files) if not spec.is_encoder else _encoder_context(files)
    if spec.context_length is None:
        return _DEFAULT_CONTEXT_TOKENS if own is None else own
    return spec.context_length if own is None else min(spec.context_length, own)


def _encoder_context(files: ModelFiles) -> int | None:
    own = [encoder.context_tokens(files.config), files.tokenizer.model_max_length]
    return min((length for length in own if length is not None and length < _UNKNOWN_CONTEXT_TOKENS), default=None)


def _pooling(spec: LoadSpec) -> Pooling | None:
    if spec.is_encoder:
        pooling = read_pooling(spec.model_id, spec.path)
        if pooling is Pooling.LAST:
            raise LoadFailed(f"model '{spec.model_id}' pools by its last token, which no encoder here does")
        return pooling
    with contextlib.suppress(LoadFailed):  # no reason not to chat
        return read_pooling(spec.model_id, spec.path)
    return None


def _import_encoders(spec: LoadSpec, model_type: str) -> None:
    """Import mlx-embeddings, which takes a second or two: on a worker, so that running streams go on meanwhile."""
    try:
        import mlx_embeddings.utils  # noqa: F401 the device thread finds it imported

        importlib.import_module(f"{encoder.PACKAGE}.models.{model_type.replace('-', '_')}")
    except ImportError as error:
        raise LoadFailed(
            f"model '{spec.model_id}' is an encoder ({model_type}), and mlx-embeddings, which runs it, cannot be"
            f" imported: {in_words(error)}",
            hint=encoder.INSTALL,
        ) from error
    finally:
        # What it imports makes streams, and MLX aborts a process that ends while a thread has some.
        mx.clear_streams()


def _declared_context_length(files: ModelFiles) -> int | None:
    for config in (files.config, files.config.get("text_config") or {}):
        for key in _CONTEXT_KEYS:
            if isinstance(config.get(key), int):
                return int(config[key])
    length = files.tokenizer.model_max_length
    return int(length) if length < _UNKNOWN_CONTEXT_TOKENS else None


def _read_config(spec: LoadSpec) -> dict[str, Any]:
    path: Path = spec.path / "config.json"
    try:
        config: Any = load_config(spec.path)
    except FileNotFoundError as error:
        raise LoadFailed(f"model '{spec.model_id}': {path} is missing") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoadFailed(f"model '{spec.model_id}': {path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise LoadFailed(f"model '{spec.model_id}': {path} names no model_type")
    return dict(config)
