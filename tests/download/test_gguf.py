"""GGUF to a folder that mlx-lm loads: weights, config, and what the real starter model comes to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxd.atomic_file import AtomicFile
from mlxd.catalog import Catalog
from mlxd.download import gguf
from mlxd.download.errors import CannotConvert
from mlxd.engine.kv_shape import KvShape
from mlxd.kv_estimate import KvShapes
from tests.support.gguf_writer import RawTensor, encode_tensor
from tests.support.starter import starter_folder
from tests.support.tiny_gguf import TinyModel, raw_tensors, write_folder, write_gguf

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
_COMPARE = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx_lm.utils import load_model
tokens = mx.array([[3, 4, 5, 6, 7, 0, 1, 2] * 8])
worst = {}
for ours, theirs in zip(sys.argv[1::2], sys.argv[2::2]):
    logits = [load_model(Path(folder))[0](tokens) for folder in (ours, theirs)]
    worst[Path(ours).parent.name] = [mx.abs(logits[0] - logits[1]).max().item(), mx.abs(logits[1]).max().item()]
print(json.dumps(worst))
"""
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
MODELS = {
    "llama": TinyModel(),
    "llama with biases and a head of its own": TinyModel(
        is_tied=False, has_bias=True, heads=4, kv_heads=2, head_dim=16
    ),
    "llama with wide heads": TinyModel(heads=2, kv_heads=2, head_dim=64),
    "llama 3": TinyModel(rope_theta=500_000.0, rope_scaling={"type": "llama3", "rope_type": "llama3", **LLAMA3}),
    "linear": TinyModel(rope_scaling={"type": "linear", "rope_type": "linear", "factor": 2.0}),
    "yarn": TinyModel(
        "qwen2",
        rope_scaling={"type": "yarn", "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    ),
    "qwen2": TinyModel("qwen2"),
    "qwen3": TinyModel("qwen3", is_tied=False, head_dim=64),
}
SCALING: dict[str, dict[str, Any]] = {
    "linear": {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
    "yarn": {
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 128,
    },
}


def run_python(code: str, *arguments: str) -> dict[str, Any]:
    """Run code in an interpreter of its own; return the JSON of its last line."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def converted(folder: Path, model: TinyModel | None = None, type_name: str = "F32", **options: Any) -> Path:
    """Write a tiny model as GGUF into *folder* and convert it; return the folder that came of it."""
    how = {name: options.pop(name) for name in ("dtype", "bits") if name in options}
    folder.mkdir(exist_ok=True)
    write_gguf(folder / "tiny.gguf", model, type_name, **options)
    made = folder / "model"
    made.mkdir()
    gguf.convert(gguf.plan(folder / "tiny.gguf", **how), made, lambda path: path.open("wb"))
    return made


def read_config(folder: Path) -> dict[str, Any]:
    """Return the config of a folder."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def load(folder: Path) -> dict[str, mx.array]:
    """Return the arrays of a folder."""
    arrays = mx.load(str(folder / "model.safetensors"))
    assert isinstance(arrays, dict)
    return arrays


def llama3_factors(head_dim: int, theta: float, factor: float = 8.0) -> RawTensor:
    """Return `rope_freqs` as llama.cpp's converter makes it for Llama 3.1 (`LlamaModel.generate_extra_tensors`)."""
    low, high, old_context = 1.0, 4.0, 8192
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < old_context / high:
            factors.append(1.0)
        elif wavelength > old_context / low:
            factors.append(factor)
        else:
            smooth = (old_context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return encode_tensor("rope_freqs.weight", np.array(factors, np.float32), "F32")


@pytest.fixture(scope="module")
def starter() -> Path:
    """Return the real starter model."""
    return starter_folder()


def test_logits_are_those_of_the_original(tmp_path: Path) -> None:
    """A float32 file computes what the same weights do that never were a GGUF file, for every layout that is known."""
    pairs = []
    for name, model in MODELS.items():
        more = [llama3_factors(model.head_dim, model.rope_theta)] if name == "llama 3" else []
        pairs.append(str(converted(tmp_path / name, model, changes=SCALING.get(name), more=more)))
        write_folder(tmp_path / name / "original", model)
        pairs.append(str(tmp_path / name / "original"))

    worst = run_python(_COMPARE, *pairs)

    assert set(worst) == set(MODELS)
    assert {name: difference for name, (difference, _) in worst.items()} == dict.fromkeys(MODELS, 0.0)
    assert all(largest > 1 for _, largest in worst.values())


def test_weights_come_back(tmp_path: Path) -> None:
    """Every tensor has mlx-lm's name and the rows' order of the model before llama.cpp's conversion."""
    found = load(converted(tmp_path))
    expected = TinyModel().weights()
    assert set(found) == set(expected)
    for name, weights in expected.items():
        assert np.array_equal(np.array(found[name]), weights), name


@pytest.mark.parametrize(
    ("type_name", "architecture", "has_gpu", "dtype"),
    [
        ("F32", "llama", True, "float32"),
        ("F16", "llama", False, "float16"),
        ("BF16", "llama", True, "bfloat16"),
        ("Q8_0", "llama", True, "float16"),
        ("Q8_0", "llama", False, "float32"),
        ("Q4_0", "qwen2", True, "bfloat16"),
    ],
)
def test_floats_have_one_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_name: str, architecture: str, has_gpu: bool, dtype: str
) -> None:
    """Norms, scales and biases have one type, which the device is fast with, so that nothing is cast at a step."""
    monkeypatch.setattr(gguf, "has_gpu", lambda: has_gpu)
    folder = converted(tmp_path, TinyModel(architecture), type_name)
    types = {str(array.dtype).removeprefix("mlx.core.") for array in load(folder).values()}
    assert types - {"uint32"} == {dtype}
    assert read_config(folder)["torch_dtype"] == dtype


def test_quantization_map(tmp_path: Path) -> None:
    """The config names the bits of most modules, and those of the others by name; plain ones are left out."""

    def edit(tensors: list[RawTensor]) -> list[RawTensor]:
        others = {tensor.name: tensor for tensor in raw_tensors(model, "Q8_0")}
        floats = {tensor.name: tensor for tensor in raw_tensors(model, "F16")}
        changed = {"token_embd.weight": others, "blk.1.attn_v.weight": floats}
        return [changed.get(tensor.name, {tensor.name: tensor})[tensor.name] for tensor in tensors]

    model = TinyModel()
    folder = converted(tmp_path, model, "Q4_1", edit=edit)
    exception = {"group_size": 32, "bits": 8}
    assert read_config(folder)["quantization"] == {"group_size": 32, "bits": 4, "model.embed_tokens": exception}
    assert "model.layers.1.self_attn.v_proj.scales" not in load(folder)


def test_dequantized(tmp_path: Path) -> None:
    """Asked for plain weights, packed ones become floats, near the originals, and nothing else is left of them."""
    folder = converted(tmp_path, None, "Q8_0", dtype="float32", bits=16)
    plain, original = load(folder), TinyModel().weights()
    assert set(plain) == set(original)
    assert {array.dtype for array in plain.values()} == {mx.float32}
    assert "quantization" not in read_config(folder)
    assert max(np.abs(np.array(plain[name]) - weights).max() for name, weights in original.items()) < 0.02


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights become several files with an index, which the catalog finds whole; the plan knew their size."""
    whole = load(converted(tmp_path / "whole"))
    monkeypatch.setattr(gguf, "_SHARD_BYTES", 60_000)
    folder = converted(tmp_path / "sharded")

    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in whole.values())
    parts = {name: array for file in files for name, array in mx.load(str(file)).items()}  # type: ignore[union-attr]
    assert all(mx.array_equal(parts[name], array) for name, array in whole.items())
    catalog = Catalog([folder.parent])
    catalog.scan()
    assert catalog.get("model").problem is None


def test_config(tmp_path: Path) -> None:
    """The config has mlx-lm's fields, rounded as they were meant, and no quantization for plain weights."""
    config = read_config(converted(tmp_path))
    assert config["rms_norm_eps"] == 1e-05
    assert config["eos_token_id"] == [2, 0]
    assert config["tie_word_embeddings"] is True
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (2, 1, 32)
    assert "quantization" not in config
    assert "rope_scaling" not in config


def test_defaults_of_older_files(tmp_path: Path) -> None:
    """What a file may leave out has llama.cpp's defaults."""
    left_out = (
        "rope.freq_base",
        "rope.dimension_count",
        "attention.key_length",
        "attention.value_length",
        "vocab_size",
    )
    changes = {f"llama.{key}": None for key in left_out}
    config = read_config(converted(tmp_path, changes={**changes, "llama.rope.scale_linear": 4.0}))
    assert (config["rope_theta"], config["head_dim"], config["vocab_size"]) == (10_000.0, 32, 8)
    assert config["rope_scaling"] == {"type": "linear", "rope_type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"general.architecture": "bert"}, r"architecture 'bert' cannot be converted; llama, qwen2, qwen3 can"),
        ({"general.architecture": None}, r"architecture None cannot"),
        ({"llama.expert_count": 8}, r"mixture of 8 experts"),
        ({"llama.logit_scale": 2.0}, r"sets llama\.logit_scale, which is not known"),
        ({"llama.block_count": None}, r"lacks llama\.block_count"),
        ({"llama.block_count": "two"}, r"llama\.block_count of the GGUF file is no single number"),
        ({"llama.block_count": 2_000_000_000}, r"to have 2000000000 layers"),
        ({"llama.attention.head_count": [2, 1]}, r"head_count of the GGUF file is no single number"),
        ({"llama.attention.head_count_kv": 3}, r"2 heads over 3"),
        ({"llama.embedding_length": 0}, r"embedding_length of the GGUF file is 0, not a count"),
        ({"llama.embedding_length": 128}, r"is \(8, 64\), and \(8, 128\) is expected"),
        ({"llama.block_count": 3}, r"lacks the tensor of model\.layers\.2\.\S+ and 8 more"),
        ({"llama.block_count": 1}, r"has the tensor 'blk\.1\..*', which a llama does not have"),
        ({"llama.rope.dimension_count": 16}, r"32 dimensions for keys, 32 for values, and 16 are rotated"),
        ({"llama.rope.scaling.type": "longrope"}, r"rope scaling 'longrope'"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, r"lacks .*original_context_length"),
        ({"tokenizer.ggml.eos_token_id": None}, r"lacks tokenizer\.ggml\.eos_token_id"),
        ({"tokenizer.ggml.eos_token_id": 99}, r"the tokens \[99, 0, 2\], and has 8"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """Architectures, settings and shapes that are not known are refused by name, never guessed."""
    with pytest.raises(CannotConvert, match=words):
        converted(tmp_path, changes=changes)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (encode_tensor("blk.0.attn_sinks.weight", np.ones(2, np.float32), "F32"), "'blk.0.attn_sinks.weight'"),
        (encode_tensor("blk.0.attn_q.bias", np.ones(64, np.float32), "F32"), "lacks the tensor of"),
        (encode_tensor("rope_freqs.weight", np.arange(1, 17, dtype=np.float32), "F32"), "not those of Llama 3"),
    ],
)
def test_tensors_that_are_not_known_are_refused(tmp_path: Path, more: RawTensor, words: str) -> None:
    """A tensor that would be left out, or that nothing stands beside, is refused by name."""
    with pytest.raises(CannotConvert, match=words):
        converted(tmp_path, more=[more])


def test_factors_of_one_change_nothing(tmp_path: Path) -> None:
    """Frequency factors that are all one are as good as none."""
    ones = encode_tensor("rope_freqs.weight", np.ones(16, np.float32), "F32")
    assert "rope_scaling" not in read_config(converted(tmp_path, more=[ones]))


def test_starter_in_the_catalog(starter: Path, tmp_path: Path) -> None:
    """The catalog finds the starter servable, with its quantization and sizes."""
    catalog = Catalog([starter.parent], shapes=KvShapes(AtomicFile(tmp_path / "kv.json")))
    catalog.scan()
    entry = catalog.get(starter.name)
    assert (entry.problem, entry.model_type, entry.quantization) == (None, "llama", "4-bit group 32")
    assert entry.context_length == 8192
    assert entry.kv == KvShape(((30 * 2 * 3 * 64 * 4, None),))
    assert entry.weights_bytes <= entry.disk_bytes <= entry.weights_bytes + 4_000_000


def test_starter_answers(starter: Path) -> None:
    """mlx-lm itself loads the folder, tokenizes as the original does, and answers greedily."""
    result = run_python(_ASK, str(starter), "What is the capital of France?", ODD_TEXT)
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
    embedding = {"group_size": 32, "bits": 8}
    assert read_config(starter)["quantization"] == {"group_size": 32, "bits": 4, "model.embed_tokens": embedding}
