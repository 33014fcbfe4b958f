"""A tiny llama as llama.cpp would lay it out, and a wheel that holds it, in place of the starter's 93 MB."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import mlx.core as mx
import pytest

from mlxd.download import starter
from mlxd.download.wheel import Wheel

LAYERS, WIDTH, HEADS, KV_HEADS, HIDDEN = 2, 64, 2, 1, 96
HEAD_DIM = WIDTH // HEADS
TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcĠ", "ab")


def plain_weights() -> dict[str, mx.array]:
    """Return the weights under mlx-lm's names, from a fixed seed."""
    keys = iter(mx.random.split(mx.random.key(7), 100))

    def draw(rows: int, columns: int) -> mx.array:
        return mx.random.normal((rows, columns), key=next(keys))

    weights = {"model.embed_tokens.weight": draw(len(TOKENS), WIDTH), "model.norm.weight": mx.ones((WIDTH,))}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, rows in (
            ("q", HEADS * HEAD_DIM),
            ("k", KV_HEADS * HEAD_DIM),
            ("v", KV_HEADS * HEAD_DIM),
            ("o", WIDTH),
        ):
            weights[f"{prefix}.self_attn.{name}_proj.weight"] = draw(rows, WIDTH)
        weights[f"{prefix}.mlp.gate_proj.weight"] = draw(HIDDEN, WIDTH)
        weights[f"{prefix}.mlp.up_proj.weight"] = draw(HIDDEN, WIDTH)
        weights[f"{prefix}.mlp.down_proj.weight"] = draw(WIDTH, HIDDEN)
        weights[f"{prefix}.input_layernorm.weight"] = mx.ones((WIDTH,))
        weights[f"{prefix}.post_attention_layernorm.weight"] = mx.ones((WIDTH,))
    return weights


def permute(weights: mx.array, n_heads: int) -> mx.array:
    """Order rows as llama.cpp's convert_hf_to_gguf.py does (`LlamaModel.permute`)."""
    rows, columns = weights.shape
    return weights.reshape(n_heads, 2, rows // n_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, **changes: str) -> None:
    """Write the model to *path*; *changes* replace metadata, with `__` for the dots of a key."""
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers.": "blk.",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
    }
    tensors = {}
    for name, array in plain_weights().items():
        heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
        gguf_name = name
        for ours, theirs in names.items():
            gguf_name = gguf_name.replace(ours, theirs)
        tensors[gguf_name] = array if heads is None else permute(array, heads)
    numbers = {
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN,
        "llama.block_count": LAYERS,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.context_length": 512,
        "llama.vocab_size": len(TOKENS),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    metadata: dict[str, mx.array | str | list[str]] = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": mx.array([3, 3, 3] + [1] * (len(TOKENS) - 3), dtype=mx.int32),
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5),
        "llama.rope.freq_base": mx.array(100000.0),
        **{key: mx.array(value, dtype=mx.uint32) for key, value in numbers.items()},
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    mx.save_gguf(str(path), tensors, metadata)


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
