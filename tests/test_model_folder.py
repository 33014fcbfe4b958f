"""Whatever the files of a folder contain is a problem of that model, and of nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxd.catalog import Catalog, ModelEntry
from mlxd.model_folder import read_model, read_signature
from tests.support.adapter import write_adapter
from tests.support.model_folder import LLAMA_CONFIG, write_model


def scan(root: Path) -> dict[str, ModelEntry]:
    """Return what a fresh catalog finds, by id; every entry can be sent to a client, whatever the length of a text."""
    catalog = Catalog([root])
    catalog.scan()
    entries = {entry.id: entry for entry in catalog.entries()}
    for entry in entries.values():
        costs = [entry.kv.bytes_for(2**31), entry.kv.prefill_bytes(2**31), entry.kv.batch_bytes([2**31] * 100)]
        texts = [entry.id, entry.model_type, entry.quantization, entry.problem, entry.base]
        msgpack.packb([*texts, entry.weights_bytes, entry.disk_bytes, entry.context_length, *costs])
        assert all(text is None or (len(text) < 400 and text.isprintable()) for text in texts)
    return entries


def problem_of(tmp_path: Path, config: dict[str, Any]) -> str | None:
    """Return the problem of a model with this config, beside a neighbor that must have none."""
    write_model(tmp_path / "models" / "neighbor")
    write_model(tmp_path / "models" / "odd", config)
    entries = scan(tmp_path / "models")
    assert entries["neighbor"].problem is None
    return entries["odd"].problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": ["llama"]}, "config.json names no model_type"),
        ({"model_type": {}}, "config.json names no model_type"),
        ({"model_type": "\ud800\n" * 1000}, "mlx-lm cannot run the model type '????"),
        ({"model_type": "switch_layers"}, "mlx-lm cannot run the model type 'switch_layers'"),
        ({"num_hidden_layers": 10**400}, "config.json is not valid JSON: a whole number of 401 digits"),
        ({"num_hidden_layers": 10**30}, "has 1000000000000000000000000000000 for num_hidden_layers; the maximum is"),
        ({"num_hidden_layers": 3}, "has 3 for num_hidden_layers, and the weights have only 2 tensors"),
        ({"text_config": {"num_experts": 10**9}}, "has 1000000000 for num_experts; the maximum is 16384"),
    ],
)
def test_a_config_that_no_model_has(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    """The problem says what is wrong with it."""
    problem = problem_of(tmp_path, dict(LLAMA_CONFIG) | changes)
    assert problem is not None
    assert words in problem


# What a careless or hostile writer may put in place of any value.
_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**31, 2**63, 10**39, -(10**39), 0.5, 1e308, float("nan"), float("inf"), "", "x", "\ud800"),
    *("x" * 100_000, [], [[]], ["full_attention", 5], [1, None], {}, {"a": {}}, {"bits": [], "mode": []}),
)
_KEYS = sorted(
    {
        *(*LLAMA_CONFIG, "head_dim", "layer_types", "sliding_window", "sliding_window_pattern", "kv_lora_rank"),
        *("text_config", "quantization", "quantization_config", "torch_dtype", "dtype", "model_file", "rope_scaling"),
        *("use_bidirectional_attention", "layers_block_type", "attn_layer_period", "attn_layer_offset", "n_layer"),
        *("hybrid_override_pattern", "full_attn_idxs", "block_types", "linear_attn_config", "mamba_d_state"),
        *("mamba_expand", "mamba_d_conv", "conv_L_cache", "full_attention_interval", "max_seq_len", "n_positions"),
    }
)
_TYPES = ("llama", "gemma3", "qwen3_next", "jamba", "lfm2", "kimi_linear", "nemotron_h", "recurrent_gemma", "bert")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model_type=st.sampled_from(_TYPES),
    changes=st.dictionaries(st.sampled_from(_KEYS), st.sampled_from(_VALUES), min_size=1, max_size=6),
    is_nested=st.booleans(),
)
def test_any_value_for_any_key(tmp_path: Path, model_type: str, changes: dict[str, Any], is_nested: bool) -> None:
    """Every value for every key that is read makes an entry that can be sent, and leaves the neighbor alone."""
    config = dict(LLAMA_CONFIG) | {"model_type": model_type}
    config |= {"text_config": changes} if is_nested else changes
    if not (tmp_path / "odd").exists():
        write_model(tmp_path / "odd")
        write_model(tmp_path / "neighbor")
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    entries = scan(tmp_path)
    assert list(entries) == ["neighbor", "odd"]
    assert entries["neighbor"].problem is None
    assert "it cannot be understood" not in str(entries["odd"].problem)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "vocab.txt"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_files_that_never_end(tmp_path: Path, name: str, make: Callable[[Path], object]) -> None:
    """A pipe, a device or a folder in place of a file that a load reads is the model's problem."""
    folder = write_model(tmp_path / "odd")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    entries = scan(tmp_path)
    if name == "config.json" and (folder / name).is_dir():
        assert not entries  # no config, no model
    else:
        assert entries["odd"].problem == f"{name} is no regular file"


def test_a_long_file(tmp_path: Path) -> None:
    """A file that is longer than any good one is named with its size and the maximum."""
    with (write_model(tmp_path / "odd") / "tokenizer.json").open("wb") as file:
        file.truncate(10**10)
    problem = scan(tmp_path)["odd"].problem
    assert problem == "tokenizer.json has 10.0 GB (9.3 GiB); the maximum for it is 67.1 MB (64.0 MiB)"


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": {"a": ["b"]}}', '{"weight_map": 5}', "[" * 10**5])
def test_an_odd_index_of_shards(tmp_path: Path, index: str) -> None:
    """An index is read as far as it is one."""
    (write_model(tmp_path / "odd") / "model.safetensors.index.json").write_text(index)
    assert scan(tmp_path)["odd"].problem in {
        None,
        "weights are missing: model.safetensors.index.json (unreadable)",
    }


def test_a_missing_shard_of_any_name(tmp_path: Path) -> None:
    """A name out of an index cannot forge a line of the log."""
    weight_map = {"a": "x\nERROR forged\x1b[0m" + "x" * 10**5}
    folder = write_model(tmp_path / "odd")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert str(scan(tmp_path)["odd"].problem).startswith("weights are missing: x?ERROR forged?[0m")


@pytest.mark.parametrize("base", ["~nosuchuser/base", "/\0", "/" + "x" * 5000, "\ud800", "a\nb", "", "/loop"])
def test_any_name_of_a_base(tmp_path: Path, base: str) -> None:
    """What an adapter's config names may be no path, or nobody's home."""
    write_model(tmp_path / "base")
    write_adapter(tmp_path / "style", base)
    entries = scan(tmp_path)
    assert entries["base"].problem is None
    (adapter,) = (entry for entry in entries.values() if entry.base is not None)
    assert "is not on this disk" in str(adapter.problem)


@pytest.mark.parametrize("config", ["[]", "{", '{"lora_parameters": 5, "num_layers": []}', '{"model": ["x"]}', "\xff"])
def test_an_odd_adapter_config(tmp_path: Path, config: str) -> None:
    """An adapter of another tool, or of none, has a problem of its own."""
    write_model(tmp_path / "base")
    write_adapter(tmp_path / "style", "base")
    (tmp_path / "style" / "adapter_config.json").write_bytes(config.encode("latin-1"))
    entries = scan(tmp_path)
    assert entries.pop("base").problem is None
    assert [str(entry.problem).startswith("adapter_config.json") for entry in entries.values()] == [True]


def test_a_folder_that_is_not_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the reading of one folder is a problem of that model, and its traceback is in the log."""
    write_model(tmp_path / "neighbor")
    write_model(tmp_path / "odd")

    def raise_once(model_id: str, *rest: Any) -> ModelEntry:
        if model_id == "odd":
            raise TypeError("unhashable type: 'list'")
        return read_model(model_id, *rest)

    monkeypatch.setattr("mlxd.catalog.read_model", raise_once)
    entries = scan(tmp_path)
    assert entries["neighbor"].problem is None
    assert entries["odd"].problem == "it cannot be understood (TypeError); the log has more"
    assert "unhashable type" in caplog.text


def test_refs_of_any_content(tmp_path: Path) -> None:
    """The refs of the hub's cache are read as far as a commit is long."""
    repository = tmp_path / "models--org--name"
    write_model(repository / "snapshots" / "aaa")
    (repository / "refs").mkdir()
    with (repository / "refs" / "main").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(repository / "refs" / "pipe")
    assert list(scan(tmp_path)) == ["org/name"]


def test_the_signature_is_of_regular_files(tmp_path: Path) -> None:
    """A pipe is neither waited for nor part of what a model is told from its predecessor by."""
    folder = write_model(tmp_path / "odd")
    before = read_signature(folder)
    os.mkfifo(folder / "tokenizer.json")
    assert read_signature(folder) == before
    assert [name for name, _, _ in before] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("model_type", "tokenizer", "is_served"),
    [
        ("kimi_k2", {"auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}, False),
        ("kimi_k2", {"auto_map": {"AutoTokenizer": ["a.b", None]}, "tokenizer_class": "TikTokenTokenizer"}, False),
        ("kimi_k2", {"auto_map": ["a.b", None]}, False),
        ("kimi_k2", {"auto_map": {"AutoTokenizer": ["a.b", None]}, "tokenizer_class": "LlamaTokenizerFast"}, True),
        ("kimi_k2", {"auto_map": ["a.b", None], "tokenizer_class": "PreTrainedTokenizerFast"}, True),
        ("internlm2", {"auto_map": {"AutoTokenizer": ["a.b", None]}}, True),
        ("qwen2", {"auto_map": {"AutoTokenizer": ["a.b", None]}}, True),
        ("kimi_k2", {"auto_map": {"AutoModel": "a.b"}}, True),
        ("kimi_k2", {"auto_map": [[]], "tokenizer_class": []}, False),
        ("kimi_k2", {}, True),
    ],
)
def test_a_tokenizer_with_code_of_its_own(
    tmp_path: Path, model_type: str, tokenizer: dict[str, Any], is_served: bool
) -> None:
    """Its code is never run, so that the model has a problem before anybody tries to load it."""
    folder = write_model(tmp_path / "odd", dict(LLAMA_CONFIG) | {"model_type": model_type})
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    problem = scan(tmp_path)["odd"].problem
    words = "its tokenizer needs code of its own (auto_map in tokenizer_config.json), which is never run"
    assert problem == (None if is_served else words)
