"""Model folders of many architectures, and ways to spoil their files: any value for any key of any file.

A folder is written once as a template and copied for each example.
"""

from __future__ import annotations

import copy
import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.support.every_architecture import config_of, make_model
from tests.support.tiny_encoder import write_tiny_encoder
from tests.support.tiny_model import tiny_tokenizer, write_tiny_model

HEADERS = {"header": "model.safetensors", "adapter header": "adapters.safetensors"}
_CONTEXT = 4096
_KINDS = (
    "llama",
    "gemma3_text",
    "qwen3_next",
    "deepseek_v3",
    "mamba2",
    "jamba",
    "kimi_linear",
    "nemotron_h",
    "gpt_oss",
)
TEMPLATES = ("chat", "bert", *_KINDS)
_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "1_Pooling/config.json"),
    "header",
)
_ADAPTER_FILES = ("adapter_config.json", "adapter header")
# What a careless or hostile writer may put in place of anything.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 1000, 65_535, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**30, 10**400),
    *(
        0.5,
        -0.0,
        1e-300,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "a",
        "llama",
        "\ud800",
        "../../etc/passwd",
        "/dev/zero",
    ),
    *("x" * 10_000, "{{ 1/0 }}", [], [[]], [0], [1, None], ["full_attention"] * 4, [2**40] * 4, {}, {"a": {}}),
    *({"bits": 4, "group_size": 64}, {"bits": 0, "group_size": 0}, {"bits": "4", "group_size": []}),
    *({"rope_type": "yarn", "factor": 0, "original_max_position_embeddings": 0}, {"type": "linear"}),
    *({"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}, {"quant_method": "awq", "bits": 4}),
)
# Keys that the templates lack, and that are read where they are there.
_MORE_KEYS: dict[str, tuple[str, ...]] = {
    "config.json": (
        *(
            "quantization",
            "quantization_config",
            "rope_scaling",
            "rope_parameters",
            "text_config",
            "model_file",
            "dtype",
        ),
        *("torch_dtype", "eos_token_id", "head_dim", "layer_types", "sliding_window", "use_bidirectional_attention"),
        *("max_seq_len", "tie_word_embeddings", "attention_bias", "is_matryoshka", "matryoshka_dimensions", "auto_map"),
        *("partial_rotary_factor", "rope_traditional", "logits_scaling", "num_key_value_heads", "quantize_activations"),
    ),
    "tokenizer.json": ("normalizer", "truncation", "padding", "post_processor", "pre_tokenizer", "decoder"),
    "tokenizer_config.json": (
        *("chat_template", "tool_parser_type", "chat_template_type", "auto_map", "added_tokens_decoder", "vocab_file"),
        *(
            "extra_special_tokens",
            "bos_token",
            "pad_token",
            "add_bos_token",
            "fast_tokenizer_files",
            "additional_special_tokens",
        ),
        *("model_max_length", "tokenizer_file", "init_inputs", "padding_side", "name_or_path", "is_local"),
    ),
    "generation_config.json": ("eos_token_id",),
    "1_Pooling/config.json": ("pooling_mode_cls_token", "pooling_mode"),
    "header": ("__metadata__", "model.layers.9.extra"),
    "adapter_config.json": ("fine_tune_type", "num_layers", "lora_parameters", "model"),
    "adapter header": ("__metadata__", "model.layers.9.self_attn.q_proj.lora_a"),
}
_RAW = (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5_000, b'{"a": NaN}')


@dataclass(frozen=True)
class Damage:
    """One change of one file: what stands at a place, or the whole content."""

    file: str
    place: int  # of all places in the file, counted around
    change: str  # "replace", "remove", "add", "raw"
    value: int  # of `VALUES`, of the keys to add, or of the raw contents, counted around

    def apply(self, folder: Path) -> None:
        """Change the file; a file that is no JSON any more stays as it is."""
        path = folder / HEADERS.get(self.file, self.file)
        if self.change == "raw" and self.file not in HEADERS:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(_RAW[self.value % len(_RAW)])
            return
        try:
            document, rest = _read(path, is_header=self.file in HEADERS)
        except (ValueError, RecursionError):
            return
        document = self._changed(document)
        raw = json.dumps(document).encode()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + rest if self.file in HEADERS else raw)

    def _changed(self, document: Any) -> Any:
        value = copy.deepcopy(VALUES[self.value % len(VALUES)])
        places = list(_places(document))
        keys = _MORE_KEYS[self.file]
        if self.change == "add" or not places:
            if isinstance(document, dict):
                document[keys[self.place % len(keys)]] = value
            return document
        container, key = places[self.place % len(places)]
        if self.change == "remove":
            del container[key]
        else:
            container[key] = value
        return document


def _damages_of(files: tuple[str, ...]) -> st.SearchStrategy[Damage]:
    changes = ("replace", "replace", "add", "add", "remove", "raw")
    return st.builds(
        Damage, st.sampled_from(files), st.integers(0, 10_000), st.sampled_from(changes), st.integers(0, 1_000)
    )


damages = _damages_of(_FILES)
adapter_damages = _damages_of(_ADAPTER_FILES)


def write_template(folder: Path, kind: str) -> Path:
    """Write a good model of this kind; return it."""
    if kind == "chat":
        return write_tiny_model(folder, context=_CONTEXT, thinking=True, tools=True)
    if kind == "bert":
        return write_tiny_encoder(folder, "bert")
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir(parents=True)
    tokenizer, tokenizer_config, vocab_size = tiny_tokenizer(_CONTEXT)
    # transformers warns of the key.
    config = {key: value for key, value in config_of(kind).items() if key != "rope_scaling"} | {
        "vocab_size": vocab_size
    }
    mx.random.seed(0)
    weights = dict(tree_flatten(make_model(config).parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    for name, content in {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def copy_template(template: Path, folder: Path) -> None:
    """Put a copy of the template at *folder*, whatever is there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)


def _read(path: Path, *, is_header: bool) -> tuple[Any, bytes]:
    if not path.exists():
        return {}, b""
    raw = path.read_bytes()
    if not is_header:
        return json.loads(raw), b""
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8:end]), raw[end:]


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value, however deep; of a vocabulary only a few."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        pairs = [(document, key) for key in list(document)[:40]]
    elif isinstance(document, list):
        pairs = [(document, index) for index in range(min(len(document), 10))]
    for container, key in pairs:
        yield container, key
        yield from _places(container[key])
