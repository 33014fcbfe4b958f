"""GGUF to a folder that mlx-lm loads: `config.json`, the tokenizer (`gguf_tokenizer.py`) and the weights.

The one path for the starter model and for `model import`. Imports mlx, which is allowed here because this is a process
of its own. Holds one shard of the weights in memory, never all.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx
import numpy as np

from mlxd.download.errors import CannotConvert
from mlxd.download.gguf_config import Architecture, ConfigReader
from mlxd.download.gguf_file import EXACT_BITS, GROUP_SIZE, GgufFile, GgufTensor, read_gguf
from mlxd.download.gguf_tokenizer import make_tokenizer

# https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py, to mlx-lm's names of the same.
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_ROPE_FACTORS = "rope_freqs.weight"
_NAME = re.compile(r"(?:blk\.(\d+)\.)?([a-z_]+)\.(weight|bias)")
_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
# Two of them are in memory at a time, and progress moves when one is written: weights that are computed take a while.
_SHARD_BYTES = 512 << 20

Tensors = dict[str, mx.array]
OpenFile = Callable[[Path], BinaryIO]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made of a file, checked; nothing is written yet."""

    file: GgufFile
    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]  # file name → what is in it
    architecture: Architecture
    dtype: str  # of all floats
    bits: int | None  # of every matrix, 16 for none quantized; None: those of its own
    tensors: tuple[GgufTensor, ...]

    @property
    def n_bytes(self) -> int:
        """About the size of the folder: the weights, and a margin for the tokenizer."""
        return self.weights_bytes + (8 << 20)

    @property
    def weights_bytes(self) -> int:
        """The size of all arrays."""
        return sum(self.array_bytes(tensor) for tensor in self.tensors)

    @property
    def changes(self) -> str:
        """What becomes of types that MLX does not have bit for bit: "Q4_K as 4 bits, Q6_K as 8 bits"; or nothing."""
        kinds = {(tensor.type_name, tensor.bits(self.bits)) for tensor in self.tensors}
        changed = sorted((name, bits or 0) for name, bits in kinds if EXACT_BITS.get(name, 0) != bits)
        return ", ".join(f"{name} as {f'{bits} bits' if bits else self.dtype}" for name, bits in changed)

    def array_bytes(self, tensor: GgufTensor) -> int:
        """Return the size of the arrays that a tensor becomes."""
        n_weights, itemsize, bits = math.prod(tensor.shape), _DTYPES[self.dtype].size, tensor.bits(self.bits)
        if bits is None:
            return n_weights * itemsize
        return n_weights * bits // 8 + 2 * (n_weights // GROUP_SIZE) * itemsize


def plan(gguf: Path, *, dtype: str | None = None, bits: int | None = None) -> Plan:
    """Read the header of *gguf* and check that a model can be made of it.

    Args:
        gguf: the file.
        dtype: what all floats become; None: what suits the file. Scales of another type than the activations would be
            cast at every step.
        bits: 4 or 8: of every matrix; 16: floats; None: those of the file where MLX has them, else the next of 4 and 8.

    Raises:
        CannotConvert: in words: what the file has that cannot be converted.
        OSError: it could not be read.
    """
    file = read_gguf(gguf)
    by_name = {tensor.name: tensor for tensor in file.tensors}
    factors = by_name.get(_ROPE_FACTORS)
    reader = ConfigReader(file.metadata, {name: tensor.shape for name, tensor in by_name.items()})
    config = reader.read(None if factors is None else _read_factors(file, factors))
    weights = tuple(tensor for tensor in file.tensors if tensor is not factors)
    _check_shapes(config, reader.architecture, weights)
    chosen = dtype if dtype is not None else _choose_dtype(reader.architecture, weights, bits)
    config["torch_dtype"] = chosen
    modules = {mlx_name(tensor.name).removesuffix(".weight"): tensor.bits(bits) for tensor in weights}
    quantized = {module: own for module, own in modules.items() if own is not None}
    if quantized:
        config["quantization"] = _quantization(quantized)
    return Plan(file, config, make_tokenizer(file.metadata, config), reader.architecture, chosen, bits, weights)


def convert(made: Plan, folder: Path, open_file: OpenFile) -> None:
    """Write config, tokenizer and weights into the empty *folder*.

    Args:
        made: what `plan` returned.
        folder: exists, and is nobody else's yet.
        open_file: opens each file for writing, so that the caller sees progress and makes it durable.

    Raises:
        CannotConvert: the file became shorter meanwhile.
        OSError: a file could not be written.
    """
    for name, value in {"config.json": made.config, **made.tokenizer}.items():
        with open_file(folder / name) as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
    shards = list(_shards(made))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = _convert_tensors(made, shard)
        weight_map.update(dict.fromkeys(arrays, name))
        with open_file(folder / name) as file:
            mx.save_safetensors(file, arrays, metadata={"format": "mlx"})
        del arrays
        mx.clear_cache()
    if len(shards) > 1:
        index = {"metadata": {"total_size": made.weights_bytes}, "weight_map": weight_map}
        with open_file(folder / "model.safetensors.index.json") as file:
            file.write(json.dumps(index, indent=2).encode() + b"\n")


def _read_factors(file: GgufFile, tensor: GgufTensor) -> list[float]:
    (array,) = file.read(tensor, None).values()
    return [float(factor) for factor in np.array(array.astype(mx.float32)).flatten()]


def _choose_dtype(architecture: Architecture, tensors: Iterable[GgufTensor], bits: int | None) -> str:
    """Return the type of all floats: that of the matrices, as norms are float32 in every file.

    A CPU multiplies packed weights with float32 thirty times as fast as with float16.
    """
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    types = {tensor.type_name for tensor in matrices}
    if any(tensor.bits(bits) is not None for tensor in matrices):
        return architecture.quantized_dtype if has_gpu() else "float32"
    if types <= {"F32"} and bits is None:
        return "float32"
    if "BF16" in types:
        return "bfloat16"
    return "float16" if types <= {"F16", "F32"} and "F16" in types else architecture.quantized_dtype


def has_gpu() -> bool:
    """Tell whether this machine computes on a GPU."""
    return bool(mx.default_device() == mx.Device(mx.gpu))


def _quantization(bits: Mapping[str, int]) -> dict[str, Any]:
    """Return mlx-lm's `quantization` map: the bits that most modules have, and the exceptions by name."""
    usual, _ = Counter(bits.values()).most_common(1)[0]
    exceptions = {
        module: {"group_size": GROUP_SIZE, "bits": own} for module, own in sorted(bits.items()) if own != usual
    }
    return {"group_size": GROUP_SIZE, "bits": usual, **exceptions}


def _check_shapes(config: Mapping[str, Any], architecture: Architecture, tensors: Sequence[GgufTensor]) -> None:
    """Compare the tensors with those that the config promises, so that what is written can be loaded."""
    expected = dict(_expected_shapes(config, architecture))
    found = {mlx_name(tensor.name): tensor for tensor in tensors}
    missing = sorted(expected.keys() - found.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CannotConvert(f"the GGUF file lacks the tensor of {missing[0]}{more}")
    for name, tensor in found.items():
        if name not in expected:
            raise CannotConvert(
                f"the GGUF file has the tensor {tensor.name!r}, which a {architecture.model_type} does not have"
            )
        if tensor.shape != expected[name]:
            raise CannotConvert(f"{tensor.name} of the GGUF file is {tensor.shape}, and {expected[name]} is expected")


def _expected_shapes(config: Mapping[str, Any], architecture: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q_rows, kv_rows = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    has_qkv_bias = config["attention_bias"] if architecture.has_qkv_bias is None else architecture.has_qkv_bias
    matrices = {
        "self_attn.q_proj": (q_rows, width, has_qkv_bias),
        "self_attn.k_proj": (kv_rows, width, has_qkv_bias),
        "self_attn.v_proj": (kv_rows, width, has_qkv_bias),
        # mlx-lm gives q, k, v and o biases together in a llama, and none to o elsewhere.
        "self_attn.o_proj": (width, q_rows, has_qkv_bias and architecture.has_qkv_bias is None),
        "mlp.gate_proj": (hidden, width, config["mlp_bias"]),
        "mlp.up_proj": (hidden, width, config["mlp_bias"]),
        "mlp.down_proj": (width, hidden, config["mlp_bias"]),
    }
    yield "model.embed_tokens.weight", (config["vocab_size"], width)
    yield "model.norm.weight", (width,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for module, (rows, columns, has_bias) in matrices.items():
            yield f"{prefix}{module}.weight", (rows, columns)
            if has_bias:
                yield f"{prefix}{module}.bias", (rows,)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", (width,)
        if architecture.has_qk_norm:
            for norm in ("self_attn.q_norm", "self_attn.k_norm"):
                yield f"{prefix}{norm}.weight", (head_dim,)


def mlx_name(raw_name: str) -> str:
    """Return mlx-lm's name of a tensor.

    Raises:
        CannotConvert: no model that is known here has it.
    """
    match = _NAME.fullmatch(raw_name)
    names = _TOP if match is not None and match[1] is None else _LAYER
    if match is None or match[2] not in names:
        raise CannotConvert(f"the GGUF file has the tensor {raw_name!r}, which is not known here")
    prefix = "" if match[1] is None else f"model.layers.{int(match[1])}."
    return f"{prefix}{names[match[2]]}.{match[3]}"


def _shards(made: Plan) -> Iterator[list[GgufTensor]]:
    shard: list[GgufTensor] = []
    shard_bytes = 0
    for tensor in made.tensors:
        size = made.array_bytes(tensor)
        if shard and shard_bytes + size > _SHARD_BYTES:
            yield shard
            shard, shard_bytes = [], 0
        shard.append(tensor)
        shard_bytes += size
    yield shard


def _convert_tensors(made: Plan, tensors: Iterable[GgufTensor]) -> Tensors:
    heads = {"q_proj": made.config["num_attention_heads"], "k_proj": made.config["num_key_value_heads"]}
    arrays: Tensors = {}
    for tensor in tensors:
        name = mlx_name(tensor.name)
        module, _, leaf = name.rpartition(".")
        n_heads = heads.get(module.rpartition(".")[2]) if made.architecture.is_permuted else None
        parts = made.file.read(tensor, tensor.bits(made.bits))
        if n_heads is not None:
            parts = {part: _unpermuted(array, n_heads) for part, array in parts.items()}
        parts = {part: _cast(array, _DTYPES[made.dtype]) for part, array in parts.items()}
        arrays.update({f"{module}.{part or leaf}": array for part, array in parts.items()})
    return arrays


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    return array if array.dtype == mx.uint32 else array.astype(dtype)


def _unpermuted(array: mx.array, n_heads: int) -> mx.array:
    """Undo GGUF's order of the rows of q and k, which serves another way to rotate (pairs, not halves)."""
    rows, *rest = array.shape
    return array.reshape(n_heads, rows // n_heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)
