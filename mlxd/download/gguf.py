"""GGUF to a folder that mlx-lm loads: tensors and `config.json`. The tokenizer is in `gguf_tokenizer.py`.

Only the llama architecture, which is what the starter model has. MLX reads the file natively: quantized tensors arrive
as packed weights with scales and biases. Imports mlx, which is allowed here because this is a process of its own.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import mlx.core as mx

from mlxd.download.errors import CannotConvert
from mlxd.download.gguf_tokenizer import write_tokenizer

# https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py, to mlx-lm's names of the same.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
# Q4_0, Q4_1 and Q8_0 all scale groups of 32.
_GROUP_SIZE = 32
_END_OF_TEXT = "<|endoftext|>"

Tensors = dict[str, mx.array]
OpenFile = Callable[[Path], BinaryIO]


def convert(gguf: Path, folder: Path, dtype: str | None, open_file: OpenFile) -> None:
    """Write config, tokenizer and weights of *gguf* into the empty *folder*.

    Args:
        gguf: the file to read.
        folder: exists, and is nobody else's yet.
        dtype: "float32" makes plain weights; None keeps the quantization.
        open_file: opens each file for writing, so that the caller sees progress and makes it durable.

    Raises:
        CannotConvert: the file is no GGUF file, or of an architecture that is not handled.
        OSError: a file could not be written.
    """
    try:
        loaded: tuple[Tensors, dict[str, Any]] = mx.load(str(gguf), format="gguf", return_metadata=True)  # type: ignore[assignment]
    except (RuntimeError, ValueError) as error:
        raise CannotConvert(f"{gguf.name} is not a GGUF file that MLX reads: {error}") from error
    raw, metadata = loaded
    config = _config(metadata, tied="output.weight" not in raw)
    permuted = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors: Tensors = {}
    for raw_name, array in raw.items():
        name = _mlx_name(raw_name)
        n_heads = permuted.get(name.split(".")[-2])
        tensors[name] = array if n_heads is None else _unpermuted(array, n_heads)
    if dtype is None and _quantized_modules(tensors):
        config["quantization"] = _quantization(tensors)
        # The activations are float32 (the norms are): scales of another type would be cast at every step, which costs a
        # tenth of the speed on the CPU.
        tensors = {
            name: array if array.dtype == mx.uint32 else array.astype(mx.float32) for name, array in tensors.items()
        }
    else:
        tensors = _dequantized(tensors)
    write_tokenizer(metadata, folder, open_file)
    _write_json(folder / "config.json", config, open_file)
    with open_file(folder / "model.safetensors") as file:
        mx.save_safetensors(file, tensors, metadata={"format": "mlx"})


def _config(metadata: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CannotConvert(f"GGUF files of the architecture {architecture!r} cannot be converted; only llama can")

    def number(key: str) -> Any:
        value = metadata.get(key)
        if not isinstance(value, mx.array):
            raise CannotConvert(f"the GGUF file lacks {key}")
        return value.item()

    n_heads = number("llama.attention.head_count")
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": number("llama.embedding_length"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_hidden_layers": number("llama.block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": number("llama.attention.head_count_kv"),
        "head_dim": number("llama.rope.dimension_count"),
        # Stored as float32: 1e-05 comes back as 9.99999974e-06.
        "rms_norm_eps": float(f"{number('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": number("llama.rope.freq_base"),
        "max_position_embeddings": number("llama.context_length"),
        "vocab_size": number("llama.vocab_size"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_tokens(metadata, number("tokenizer.ggml.eos_token_id")),
        "torch_dtype": "float32",
    }


def _end_tokens(metadata: Mapping[str, Any], turn_end: int) -> list[int]:
    """Return the end of a turn, and the end of a text: GGUF has room for one, llama.cpp knows the other by its name."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    others = [tokens.index(_END_OF_TEXT)] if _END_OF_TEXT in tokens else []
    return list(dict.fromkeys([turn_end, *others]))


def _mlx_name(raw_name: str) -> str:
    stem, _, leaf = raw_name.rpartition(".")
    block = _BLOCK.fullmatch(stem)
    prefix, stem = (f"model.layers.{block[1]}.", block[2]) if block is not None else ("", stem)
    if stem not in _NAMES:
        raise CannotConvert(f"the GGUF file has the tensor {raw_name!r}, which a llama does not have")
    return f"{prefix}{_NAMES[stem]}.{leaf}"


def _unpermuted(array: mx.array, n_heads: int) -> mx.array:
    """Undo GGUF's order of the rows of q and k, which serves another way to rotate (pairs, not halves)."""
    rows, *rest = array.shape
    return array.reshape(n_heads, rows // n_heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def _bits(tensors: Tensors, module: str) -> int:
    """Return the bits per weight of a quantized module: 32 · packed columns / (32 · groups)."""
    return tensors[f"{module}.weight"].shape[-1] // tensors[f"{module}.scales"].shape[-1]


def _quantized_modules(tensors: Tensors) -> list[str]:
    return sorted(name.removesuffix(".scales") for name in tensors if name.endswith(".scales"))


def _quantization(tensors: Tensors) -> dict[str, Any]:
    """Return mlx-lm's `quantization` map: the bits that most modules have, and the exceptions by name."""
    bits = {module: _bits(tensors, module) for module in _quantized_modules(tensors)}
    usual, _ = Counter(bits.values()).most_common(1)[0]
    exceptions = {module: {"group_size": _GROUP_SIZE, "bits": own} for module, own in bits.items() if own != usual}
    return {"group_size": _GROUP_SIZE, "bits": usual, **exceptions}


def _dequantized(tensors: Tensors) -> Tensors:
    modules = _quantized_modules(tensors)
    packed = {f"{module}.{leaf}" for module in modules for leaf in ("weight", "scales", "biases")}
    plain = {name: array.astype(mx.float32) for name, array in tensors.items() if name not in packed}
    for module in modules:
        weight, scales, biases = (tensors[f"{module}.{leaf}"] for leaf in ("weight", "scales", "biases"))
        plain[f"{module}.weight"] = mx.dequantize(
            weight,
            scales.astype(mx.float32),
            biases.astype(mx.float32),
            group_size=_GROUP_SIZE,
            bits=_bits(tensors, module),
        )
    return plain


def _write_json(path: Path, value: Any, open_file: OpenFile) -> None:
    with open_file(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")
