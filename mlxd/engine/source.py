"""Read a model's configuration and tokenizer on a worker thread, before the device thread loads it.

Takes a second for a large tokenizer and touches no array. Nothing is fetched: a folder is complete or the load fails.
Every file is looked at again, as it may have changed since it was listed: no library may read one that never ends, and
the device thread, which all models share, must not build what no weights are there for.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_config, load_tokenizer

from mlxd.engine import encoder
from mlxd.engine.answer.registry import adopt_format
from mlxd.engine.base import LoadSpec
from mlxd.engine.command import ModelFiles
from mlxd.engine.config import MOST_PARTS, context_of, parts_problem
from mlxd.engine.fault import in_words, is_fault
from mlxd.engine.model_file import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    WEIGHTS,
    BadFile,
    check_folder,
    nested_weights,
    read_object,
    read_signature,
)
from mlxd.engine.pooling_config import read_pooling
from mlxd.engine.safetensors_header import Tensor, read_tensors
from mlxd.engine.vector import Pooling
from mlxd.engine.vocabulary import Vocabulary
from mlxd.protocol.errors import LoadFailed

# For a model that states none anywhere.
_DEFAULT_CONTEXT_TOKENS = 4096
# transformers writes 10^30 for "unknown".
_UNKNOWN_CONTEXT_TOKENS = 10**9


def read_model_files(spec: LoadSpec) -> ModelFiles:
    """Read configuration and tokenizer.

    Raises:
        LoadFailed: something is missing or damaged.
    """
    signature = read_signature(spec.path)
    config, tensors = _read_config(spec)
    if spec.is_encoder:
        _import_encoders(spec, str(config["model_type"]))
    tokenizer = _read_tokenizer(spec, config)
    pooling, is_assumed = _pooling(spec)
    vocabulary = Vocabulary(tokenizer)
    return ModelFiles(spec.path, config, tokenizer, vocabulary, pooling, is_assumed, tensors, signature)


def _read_tokenizer(spec: LoadSpec, config: dict[str, Any]) -> Any:
    try:
        tokenizer = load_tokenizer(
            spec.path,
            # A folder that brings its own code is not run, and nothing is asked of the network or of a terminal.
            {"trust_remote_code": False, "local_files_only": True},
            eos_token_ids=config.get("eos_token_id"),
        )
        # The first call settles the tokenizer's mode; later calls only read it, from several threads at once. One that
        # fails at every text fails here.
        tokenizer.decode(tokenizer.encode("a"))
        tokenizer.encode("a", add_special_tokens=False)
        adopt_format(tokenizer)
    except BaseException as error:
        if not is_fault(error):
            raise
        raise LoadFailed(f"model '{spec.model_id}': the tokenizer cannot be read: {in_words(error)}") from error
    return tokenizer


def read_adapter(spec: LoadSpec) -> dict[str, tuple[Path, Tensor]]:
    """Look at the files of an adapter, and return where its tensors are, for the device thread to read.

    Raises:
        LoadFailed: something is missing or damaged.
    """
    if spec.adapter_path is None:
        raise ValueError(f"{spec.model_id} is no adapter")
    with _reading(spec, spec.adapter_path):
        check_folder(spec.adapter_path)
        path = spec.adapter_path / ADAPTER_FILE
        tensors = {tensor.name: (path, tensor) for tensor in read_tensors(path)}
        # Its number of layers may be more than its base has: the last ones are meant.
        problem = parts_problem(read_object(spec.adapter_path / ADAPTER_CONFIG_FILE), MOST_PARTS)
        if problem is not None:
            raise BadFile(problem)
        return tensors


def context_length(spec: LoadSpec, files: ModelFiles, model: Any) -> int:
    """Return the context in tokens: the setting's, but no more than what the model can have.

    That is what its config states or can stretch to, or else what its tokenizer states, or else what mlx-lm takes for a
    model of its type; 4096 where nothing is stated or set. More is nonsense at the end of a long prompt.

    Args:
        spec: has the setting.
        files: of the model.
        model: the `mlx.nn.Module`.
    """
    if spec.is_encoder:
        own = longest = _encoder_context(files)
    else:
        stated = context_of(files.config)
        own, longest = stated.own, stated.longest
        if own is None:
            own = longest = _stated_elsewhere(files, model)
    if spec.context_length is None:
        return _DEFAULT_CONTEXT_TOKENS if own is None else own
    return spec.context_length if longest is None else min(spec.context_length, longest)


def _stated_elsewhere(files: ModelFiles, model: Any) -> int | None:
    tokens = _tokenizer_context(files)
    return _usual_context(model) if tokens is None else tokens


def _encoder_context(files: ModelFiles) -> int | None:
    own = [encoder.context_tokens(files.config), _tokenizer_context(files)]
    return min((length for length in own if length is not None), default=None)


def _tokenizer_context(files: ModelFiles) -> int | None:
    length = files.tokenizer.model_max_length
    is_stated = isinstance(length, (int, float)) and 1 <= length < _UNKNOWN_CONTEXT_TOKENS
    return int(length) if is_stated else None


def _usual_context(model: Any) -> int | None:
    """Return what mlx-lm's configuration of the model, or of its part that makes text, has where the file has none."""
    parts: list[Any] = [model, getattr(model, "language_model", None)]
    usual = (context_of(vars(part.args)).own for part in parts if hasattr(part, "args"))
    return next((tokens for tokens in usual if tokens is not None), None)


def _pooling(spec: LoadSpec) -> tuple[Pooling | None, bool]:
    """Return how the hidden states are pooled, None if in no way that is known, and whether that is a guess."""
    stated = spec.pooling
    if stated is None:
        try:
            stated = read_pooling(spec.model_id, spec.path)
        except LoadFailed:
            if spec.is_encoder:
                raise
            return None, False  # no reason not to chat
    if stated is Pooling.LAST and spec.is_encoder:
        raise LoadFailed(f"model '{spec.model_id}' pools by its last token, which no encoder here does")
    return (Pooling.MEAN, True) if stated is None else (stated, False)


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


def _read_config(spec: LoadSpec) -> tuple[dict[str, Any], dict[str, tuple[Path, Tensor]]]:
    """Return what the model is built from, when it and the weights may be read and fit each other.

    The tensors are given by name, but for names that several files have.
    """
    with _reading(spec, spec.path):
        check_folder(spec.path)
        checked = read_object(spec.path / CONFIG_FILE)
        weights = nested_weights(spec.path) if spec.is_encoder else sorted(spec.path.glob(WEIGHTS))
        tensors = [(path, tensor) for path in weights for tensor in read_tensors(path)]
        if not isinstance(checked.get("model_type"), str):
            raise BadFile(f"{CONFIG_FILE} names no model_type")
        if not weights:
            raise BadFile(f"no weights ({WEIGHTS})")
        if (problem := parts_problem(checked, len(tensors))) is not None:
            raise BadFile(problem)
        files_of_name = Counter(tensor.name for _, tensor in tensors)
        places = {tensor.name: (path, tensor) for path, tensor in tensors if files_of_name[tensor.name] == 1}
        config = dict(load_config(spec.path))  # with what generation_config.json adds
        ends = config.get("eos_token_id")
        if ends is not None and not all(type(token) is int for token in (ends if isinstance(ends, list) else [ends])):
            raise BadFile("eos_token_id is neither a token nor a list of tokens")
        return config, places


@contextlib.contextmanager
def _reading(spec: LoadSpec, folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise LoadFailed(f"model '{spec.model_id}': {error.filename} is missing") from error
    except OSError as error:
        raise LoadFailed(f"model '{spec.model_id}': {error.filename} cannot be read: {error.strerror}") from error
    except BadFile as error:
        raise LoadFailed(f"model '{spec.model_id}': {error} ({folder})") from error
