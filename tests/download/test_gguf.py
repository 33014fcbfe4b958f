"""GGUF to a folder that mlx-lm loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxd.catalog import Catalog
from mlxd.download import gguf
from mlxd.download.errors import CannotConvert
from mlxd.engine.base import KvShape
from tests.support.starter import starter_folder
from tests.support.tiny_gguf import TOKENS, plain_weights, write_gguf

ODD_TEXT = "  naïve 東京 🙂\n\ttabs"
# Runs apart: mlx-lm brings transformers, and threads of its own.
_ASK = """
import json, sys
import mlx_lm
model, tokenizer = mlx_lm.load(sys.argv[1])
prompt = tokenizer.apply_chat_template([{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True)
answer = mlx_lm.generate(model, tokenizer, prompt, max_tokens=16)
print(json.dumps({"answer": answer, "ids": tokenizer.encode("In 1984<|im_end|>"),
                  "prompt": tokenizer.decode(prompt), "round": tokenizer.decode(tokenizer.encode(sys.argv[3]))}))
"""


def ask(folder: Path, question: str) -> dict[str, Any]:
    """Let mlx-lm itself load the folder and answer, greedily."""
    command = [sys.executable, "-c", _ASK, str(folder), question, ODD_TEXT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def converted(tmp_path: Path, dtype: str | None = None, **changes: str) -> Path:
    """Convert the tiny model; return the folder."""
    write_gguf(tmp_path / "tiny.gguf", **changes)
    folder = tmp_path / "model"
    folder.mkdir()
    gguf.convert(tmp_path / "tiny.gguf", folder, dtype, lambda path: path.open("wb"))
    return folder


@pytest.fixture(scope="module")
def starter() -> Path:
    """Return the real starter model."""
    return starter_folder()


def test_weights_come_back(tmp_path: Path) -> None:
    """Every tensor has mlx-lm's name and the rows' order of the model before llama.cpp's conversion."""
    folder = converted(tmp_path)
    found = mx.load(str(folder / "model.safetensors"))
    assert isinstance(found, dict)
    expected = plain_weights()
    assert set(found) == set(expected)
    for name, weights in expected.items():
        assert mx.array_equal(found[name], weights), name


def test_config(tmp_path: Path) -> None:
    """The config has mlx-lm's fields, rounded as they were meant, and no quantization for plain weights."""
    config = json.loads((converted(tmp_path) / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-05
    assert config["eos_token_id"] == [2, 0]
    assert config["tie_word_embeddings"] is True
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 1, 32)
    assert "quantization" not in config


def test_tokenizer(tmp_path: Path) -> None:
    """Tokens keep their ids, control tokens are special, and the template is kept."""
    folder = converted(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"] == {token: token_id for token_id, token in enumerate(TOKENS)}
    assert [token["content"] for token in tokenizer["added_tokens"]] == list(TOKENS[:3])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"
    assert config["chat_template"] == "{{ messages[0]['content'] }}"


@pytest.mark.parametrize(
    "change",
    [{"general__architecture": "bert"}, {"tokenizer__ggml__model": "llama"}, {"tokenizer__ggml__pre": "other"}],
)
def test_other_kinds_are_refused(tmp_path: Path, change: dict[str, str]) -> None:
    """Architectures and tokenizers that are not known are refused by name, never guessed."""
    with pytest.raises(CannotConvert, match=next(iter(change.values()))):
        converted(tmp_path, **change)


def test_file_that_is_no_gguf(tmp_path: Path) -> None:
    """A file of another kind is refused in words."""
    (tmp_path / "x.gguf").write_bytes(b"nothing" * 100)
    with pytest.raises(CannotConvert, match=r"x\.gguf is not a GGUF file"):
        gguf.convert(tmp_path / "x.gguf", tmp_path, None, lambda path: path.open("wb"))


def test_starter_in_the_catalog(starter: Path) -> None:
    """The catalog finds the starter servable, with its quantization and sizes."""
    catalog = Catalog([starter.parent])
    catalog.scan()
    entry = catalog.get(starter.name)
    assert (entry.problem, entry.model_type, entry.quantization) == (None, "llama", "4-bit group 32")
    assert entry.context_length == 8192
    assert entry.kv == KvShape(((30 * 2 * 3 * 64 * 4, None),))
    assert entry.weights_bytes <= entry.disk_bytes <= entry.weights_bytes + 4_000_000


def test_starter_answers(starter: Path) -> None:
    """mlx-lm itself loads the folder, tokenizes as the original does, and answers greedily."""
    result = ask(starter, "What is the capital of France?")
    assert result["answer"] == "The capital of France is Paris."
    assert result["prompt"] == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = json.loads((starter / "tokenizer.json").read_text())["model"]["vocab"]
    # Digits one by one, so that the space before the first of them stands alone; the special token is one.
    assert result["ids"] == [tokens[token] for token in ("In", "Ġ", "1", "9", "8", "4", "<|im_end|>")]
    assert result["round"] == ODD_TEXT


def test_starter_quantization(starter: Path) -> None:
    """The config names the bits of the layers, and the embedding's as the exception."""
    config = json.loads((starter / "config.json").read_text())
    embedding = {"group_size": 32, "bits": 8}
    assert config["quantization"] == {"group_size": 32, "bits": 4, "model.embed_tokens": embedding}


def test_dequantized() -> None:
    """Packed weights of several widths become plain float32 ones, and nothing else is left of them."""
    weights = {bits: mx.random.normal((8, 64), key=mx.random.key(bits)) for bits in (4, 8)}
    packed = {"norm.weight": mx.ones((64,), dtype=mx.float16)}
    for bits, values in weights.items():
        parts = mx.quantize(values, group_size=32, bits=bits)
        packed.update(
            {f"m{bits}.{leaf}": part for leaf, part in zip(("weight", "scales", "biases"), parts, strict=True)}
        )
    assert gguf._quantization(packed)["m8"] == {"group_size": 32, "bits": 8}
    plain = gguf._dequantized(packed)
    assert set(plain) == {"norm.weight", "m4.weight", "m8.weight"}
    assert {array.dtype for array in plain.values()} == {mx.float32}
    for bits, values in weights.items():
        assert mx.abs(plain[f"m{bits}.weight"] - values).max().item() < 4.0 / 2**bits
