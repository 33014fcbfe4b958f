"""Read a model's `config.json`: its kind, module, context, quantization.

Must not import mlx or mlx_lm: which model types mlx-lm runs is read from the files of the installed package.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxd.engine import encoder
from mlxd.engine.config import Config, Context, as_size, context_of, field_of
from mlxd.engine.model_file import shown_text
from mlxd.engine.safetensors_header import Tensor

# Types whose `sanitize` turns fp8 weights into bfloat16; a test compares them.
FP8_TYPES = frozenset(
    {"deepseek_v3", "deepseek_v32", "glm_moe_dsa", "kimi_k25", "mimo_v2_flash", "minimax", "mistral4"}
)
# What multiplies the codes of the numbers instead of the numbers: no error, and nothing but noise.
MISREAD_FP8_TYPES = frozenset({"ministral3"})
_SCALE = "_scale_inv"
_FP8 = ("F8_E4M3", "U8")  # as they are, and as MLX saves them

_TOKENIZER = re.compile(r'\(\s*"([\w-]+)",\s*"(\w+?)(?:Fast)?"')
_PLAIN = re.compile(r"^MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS[^{]*\{(.*?)\}", re.DOTALL | re.MULTILINE)
_GENERAL_TOKENIZERS = frozenset({"PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"})

_ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Runnable:
    """The model types that the installed packages have a file for."""

    text: frozenset[str]
    encoders: frozenset[str] | None = None  # None: mlx-embeddings is not installed


def find_runnable() -> Runnable:
    """Look at mlx-lm and mlx-embeddings; without mlx-lm nothing runs."""
    encoders = frozenset(file.stem for file in _files(encoder.PACKAGE, "models/*.py"))
    return Runnable(_text_modules(), encoders or None)


@functools.cache
def _text_modules() -> frozenset[str]:
    """Return the files of mlx-lm that are models; others hold parts. Another version takes a restart anyway."""
    files = _files("mlx_lm", "models/*.py")
    return frozenset(file.stem for file in files if re.search(r"\bModelArgs\b", file.read_text(encoding="utf-8")))


def _files(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)  # of a top-level package: imports nothing
    folders = () if spec is None else spec.submodule_search_locations or ()
    return [file for folder in folders for file in Path(folder).glob(pattern)]


@functools.cache
def _remapped(table: str) -> dict[Any, str]:
    """Return a table of mlx-lm's `utils.py` that says which file runs a type that has none of its own name."""
    for file in _files("mlx_lm", "utils.py"):
        found = re.search(rf"^{table} = (\{{.*?^\}})", file.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        if found is not None:
            return dict(ast.literal_eval(found[1]))
    return {}


def kind_of(config: Config, runnable: Runnable) -> tuple[str, str | None]:
    """Return the kind ("text", "embedding" or "unknown") and why the model cannot be served, None if it can."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return "unknown", "config.json names no model_type"
    if model_type in encoder.ENCODER_TYPES:
        return "embedding", _encoder_problem(model_type, runnable)
    if field_of(config, "use_bidirectional_attention") is True:
        return "embedding", f"an embedding model of a kind that cannot be served ({model_type} that attends both ways)"
    if module_of(config) not in runnable.text:
        return "unknown", f"mlx-lm cannot run the model type {shown_text(model_type)!r}"
    if config.get("model_file") is not None:
        return "text", "it needs code of its own (model_file in config.json), which is never run"
    return "text", None


def _encoder_problem(model_type: str, runnable: Runnable) -> str | None:
    if runnable.encoders is None:
        return f"an embedding model ({model_type}), which needs mlx-embeddings: {encoder.INSTALL}"
    if model_type.replace("-", "_") not in runnable.encoders:
        return f"an embedding model of a type that mlx-embeddings cannot run ({model_type})"
    return None


def loaded_bytes(config: Config, tensors: Sequence[Tensor]) -> int:
    """Return what the tensors take when they are loaded: fp8 that mlx-lm turns into bfloat16 counts twice."""
    stored_bytes = sum(tensor.n_bytes for tensor in tensors)
    if _text_type(config) not in FP8_TYPES:
        return stored_bytes
    found = {tensor.name: tensor for tensor in tensors}
    scaled = (found.get(name.replace(_SCALE, "")) for name in found if name.endswith(_SCALE))
    return stored_bytes + sum(tensor.n_bytes for tensor in scaled if tensor is not None and tensor.dtype in _FP8)


def fp8_problem(config: Config, tensors: Iterable[Tensor]) -> str | None:
    """Return why fp8 weights of this type cannot be served, None if they can or there are none."""
    named = _text_type(config)
    if named not in MISREAD_FP8_TYPES or not any(tensor.name.endswith(_SCALE) for tensor in tensors):
        return None
    return f"mlx-lm cannot read fp8 weights of the type {named}; convert the bfloat16 model instead"


def module_of(config: Config) -> str:
    """Return the file among mlx-lm's models that runs the model; "" where the config names no type."""
    model_type, named = config.get("model_type"), config.get("architectures")
    if not isinstance(model_type, str):
        return ""
    for architecture in named if isinstance(named, list) else [named]:
        if isinstance(architecture, str) and (model_type, architecture) in _remapped("MODEL_ARCHITECTURE_REMAPPING"):
            return _remapped("MODEL_ARCHITECTURE_REMAPPING")[model_type, architecture]
    return _remapped("MODEL_REMAPPING").get(model_type, model_type)


def _text_type(config: Config) -> str:
    """Return the type of the part that makes text."""
    model_type = module_of(config)
    text = config.get("text_config")
    inner = text.get("model_type") if model_type == "mistral3" and isinstance(text, dict) else None
    return inner if isinstance(inner, str) else model_type


@functools.cache
def known_tokenizers() -> frozenset[str]:
    """Return the model types and classes that transformers has a tokenizer for, by its table."""
    tables = [file.read_text(encoding="utf-8") for file in _files("transformers", "models/auto/tokenization_auto.py")]
    pairs = [pair for table in tables for pair in _TOKENIZER.findall(table)]
    # Types whose own code transformers leaves alone by itself.
    plain = [name for table in tables for found in _PLAIN.findall(table) for name in re.findall(r'"([^"]+)"', found)]
    return frozenset([name for pair in pairs for name in pair] + plain) | _GENERAL_TOKENIZERS


def tokenizer_problem(config: Config, tokenizer_config: Config) -> str | None:
    """Return why the tokenizer cannot be read, None if it can: one that brings its own code is never run."""
    named = tokenizer_config.get("auto_map")
    own = named.get("AutoTokenizer") if isinstance(named, dict) else named
    if not own:
        return None
    names = [config.get("model_type"), tokenizer_config.get("tokenizer_class")]
    if any(isinstance(name, str) and name.removesuffix("Fast") in known_tokenizers() for name in names):
        return None
    return "its tokenizer needs code of its own (auto_map in tokenizer_config.json), which is never run"


def context_length(config: Config) -> Context:
    """Return the most tokens of prompt and answer together, as far as the config says."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in encoder.ENCODER_TYPES:
        tokens = encoder.context_tokens(config)
        return Context(tokens, tokens)
    return context_of(config)


def quantization_of(config: Config) -> str | None:
    """Return words for the quantization: `4-bit group 32`, `4-bit group 32 mxfp4`, `fp8`; None for none."""
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "bits" in quantization:
        bits, group_size, mode = (quantization.get(key) for key in ("bits", "group_size", "mode"))
        words = f"{_word(bits)}-bit group {_word(group_size)}"
        return words if mode is None or mode == "affine" else f"{words} {_word(mode)}"
    foreign = field_of(config, "quantization_config")
    if isinstance(foreign, dict) and "quant_method" in foreign:
        return _word(foreign["quant_method"])
    return None


def _word(value: object) -> str:
    """Return a word or a number of a config, "?" for what is neither."""
    if isinstance(value, str):
        return shown_text(value)
    return str(value) if as_size(value) is not None else "?"


def activation_itemsize(config: Config, norm_dtypes: Iterable[str]) -> int:
    """Return the bytes of one activation, which is what the KV is stored as.

    Args:
        config: its `torch_dtype` (or `dtype`) counts where the tensors do not tell.
        norm_dtypes: safetensors types of the norms' weights and the quantization's scales: every activation passes
            through them and takes the widest.
    """
    widest = max(({"F32": 4, "F16": 2, "BF16": 2}.get(dtype, 0) for dtype in norm_dtypes), default=0)
    if widest:
        return widest
    named = next((name for key in ("torch_dtype", "dtype") if isinstance(name := field_of(config, key), str)), "")
    return _ITEMSIZES.get(named, 4)
