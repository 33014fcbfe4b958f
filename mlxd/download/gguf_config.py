"""`config.json` for the model of a GGUF file, and which tensors such a model has.

Only architectures whose layout is proven by a test. What a file sets beyond what is known here is refused by name: it
would change what the model computes. Must not import mlx.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxd.download.errors import CannotConvert
from mlxd.download.gguf_file import Metadata

# Ends of an answer or a text, beside the one that a file names: GGUF has room for one, llama.cpp knows these by name.
_END_TOKENS = (
    "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "</s>"
)  # fmt: skip
_MAX_LAYERS = 1024
# What a reader of `config.json` would not miss.
_IDLE_KEYS = frozenset({"vocab_size", "tensor_data_layout", "expert_used_count", "rope.scaling.finetuned"})
_KNOWN_KEYS = _IDLE_KEYS | {
    "context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "expert_count",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Architecture:
    """How llama.cpp stores one architecture, and what mlx-lm calls it.

    Attributes:
        model_type: mlx-lm's name.
        class_name: transformers' name.
        is_permuted: the rows of q and k are in the order of another way to rotate (pairs, not halves).
        has_qkv_bias: q, k and v have biases whatever the file says; None: the file says so by having them.
        has_qk_norm: q and k are normalised per head.
        has_head_dim: the width of a head need not be hidden size / heads.
        quantized_dtype: of scales and activations of a quantized file; bfloat16 where float16 is known to overflow.
    """

    model_type: str
    class_name: str
    is_permuted: bool
    has_qkv_bias: bool | None
    has_qk_norm: bool
    has_head_dim: bool
    quantized_dtype: str


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        model_type="llama",
        class_name="LlamaForCausalLM",
        is_permuted=True,
        has_qkv_bias=None,
        has_qk_norm=False,
        has_head_dim=True,
        quantized_dtype="float16",
    ),
    "qwen2": Architecture(
        model_type="qwen2",
        class_name="Qwen2ForCausalLM",
        is_permuted=False,
        has_qkv_bias=True,
        has_qk_norm=False,
        has_head_dim=False,
        quantized_dtype="bfloat16",
    ),
    "qwen3": Architecture(
        model_type="qwen3",
        class_name="Qwen3ForCausalLM",
        is_permuted=False,
        has_qkv_bias=False,
        has_qk_norm=True,
        has_head_dim=True,
        quantized_dtype="bfloat16",
    ),
}


def find_architecture(metadata: Metadata) -> tuple[str, Architecture]:
    """Return the name and the layout of the file's architecture.

    Raises:
        CannotConvert: it is another.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CannotConvert(
            f"GGUF files of the architecture {name!r} cannot be converted; {', '.join(ARCHITECTURES)} can",
            hint="one made for MLX: mlxctl model pull ORG/NAME",
        )
    return name, ARCHITECTURES[name]


class ConfigReader:
    """Makes the config of one file."""

    def __init__(self, metadata: Metadata, shapes: Mapping[str, Sequence[int]]) -> None:
        """Take the metadata and the shapes of the tensors by llama.cpp's names."""
        self._metadata = metadata
        self._shapes = shapes
        self._name, self.architecture = find_architecture(metadata)

    def read(self, frequency_factors: Sequence[float] | None) -> dict[str, Any]:
        """Return the config without dtype and quantization.

        Args:
            frequency_factors: the tensor `rope_freqs`, where there is one.

        Raises:
            CannotConvert: a number is missing or makes no sense, or the file sets something that is not known.
        """
        self._refuse_unknown()
        width, n_heads = self._count("embedding_length"), self._count("attention.head_count")
        n_kv_heads = self._count("attention.head_count_kv", n_heads)
        head_dim = self._head_dim(width, n_heads)
        theta = self._number("rope.freq_base", 10_000.0)
        biases = {name for name in self._shapes if name.startswith("blk.0.") and name.endswith(".bias")}
        layers = self._count("block_count")
        if layers > _MAX_LAYERS:
            raise CannotConvert(f"the GGUF file is to have {layers} layers; the most are {_MAX_LAYERS}")
        if n_heads % n_kv_heads:
            raise CannotConvert(f"the GGUF file is to have {n_heads} heads over {n_kv_heads} of keys and values")
        config: dict[str, Any] = {
            "model_type": self.architecture.model_type,
            "architectures": [self.architecture.class_name],
            "hidden_size": width,
            "intermediate_size": self._count("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": n_heads,
            "num_key_value_heads": n_kv_heads,
            "head_dim": head_dim,
            # Stored as float32: 1e-05 comes back as 9.99999974e-06.
            "rms_norm_eps": float(f"{self._number('attention.layer_norm_rms_epsilon'):.6g}"),
            "rope_theta": theta,
            "rope_scaling": self._rope_scaling(head_dim, theta, frequency_factors),
            "max_position_embeddings": self._count("context_length"),
            "vocab_size": self._vocab_size(),
            "hidden_act": "silu",
            "attention_bias": any(".attn_" in name for name in biases),
            "mlp_bias": any(".ffn_" in name for name in biases),
            "tie_word_embeddings": "output.weight" not in self._shapes,
            "bos_token_id": self._metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self._end_tokens(),
        }
        return {key: value for key, value in config.items() if value is not None}

    def _refuse_unknown(self) -> None:
        prefix = f"{self._name}."
        own = {key.removeprefix(prefix) for key in self._metadata if key.startswith(prefix)}
        unknown = sorted(own - _KNOWN_KEYS)
        if unknown:
            raise CannotConvert(
                f"the GGUF file sets {', '.join(prefix + key for key in unknown)}, which is not known here"
                " and may change what the model computes"
            )
        experts = self._number("expert_count", 0)
        if experts > 0:
            raise CannotConvert(
                f"the GGUF file is a mixture of {experts:g} experts; only dense models can be converted"
            )

    def _head_dim(self, width: int, n_heads: int) -> int:
        head_dim = self._count("attention.key_length", width // n_heads)
        of_values = self._count("attention.value_length", head_dim)
        rotated = self._count("rope.dimension_count", head_dim)
        if not head_dim == of_values == rotated or head_dim % 2:
            raise CannotConvert(
                f"the heads of the GGUF file have {head_dim} dimensions for keys, {of_values} for values,"
                f" and {rotated} are rotated; only one even number for all can be converted"
            )
        if not self.architecture.has_head_dim and head_dim * n_heads != width:
            raise CannotConvert(f"{n_heads} heads of {head_dim} do not make the width of {width} in the GGUF file")
        return head_dim

    def _rope_scaling(
        self, head_dim: int, theta: float, frequency_factors: Sequence[float] | None
    ) -> dict[str, Any] | None:
        kind = self._metadata.get(f"{self._name}.rope.scaling.type", "none")
        factor = self._number("rope.scaling.factor", self._number("rope.scale_linear", 1.0))
        if kind == "none" and factor != 1.0:
            kind = "linear"
        if frequency_factors is not None and any(value != 1.0 for value in frequency_factors):
            if kind != "none":
                raise CannotConvert(f"the GGUF file has frequency factors beside the rope scaling {kind!r}")
            return _llama3_scaling(head_dim, theta, frequency_factors)
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return None
        scaling = {"type": kind, "rope_type": kind, "factor": factor}
        if kind == "linear":
            return scaling
        if kind == "yarn":
            return {**scaling, "original_max_position_embeddings": self._count("rope.scaling.original_context_length")}
        raise CannotConvert(f"the GGUF file has the rope scaling {kind!r}; linear and yarn can be converted")

    def _vocab_size(self) -> int:
        rows = int(self._shapes.get("token_embd.weight", (0,))[0])
        n_tokens = len(self._metadata.get("tokenizer.ggml.tokens", ()))
        if rows < n_tokens:
            raise CannotConvert(f"the GGUF file has {n_tokens} tokens and an embedding of {rows}")
        return rows

    def _end_tokens(self) -> list[int]:
        """Return the end of a turn, and all others that end an answer."""
        tokens: list[str] = self._metadata.get("tokenizer.ggml.tokens", [])
        named = [self._metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        if named[0] is None:
            raise CannotConvert("the GGUF file lacks tokenizer.ggml.eos_token_id")
        ids = {token: token_id for token_id, token in enumerate(tokens) if token in _END_TOKENS}
        known = [ids[token] for token in _END_TOKENS if token in ids]
        found = [int(token_id) for token_id in [*named, *known] if token_id is not None]
        if not all(0 <= token_id < len(tokens) for token_id in found):
            raise CannotConvert(f"the GGUF file ends an answer with one of the tokens {found}, and has {len(tokens)}")
        return list(dict.fromkeys(found))

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._metadata.get(f"{self._name}.{key}", default)
        if value is None:
            raise CannotConvert(f"the GGUF file lacks {self._name}.{key}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CannotConvert(f"{self._name}.{key} of the GGUF file is no single number")
        return value

    def _count(self, key: str, default: int | None = None) -> int:
        value = self._number(key, default)
        if not isinstance(value, int) or not 0 < value < 1 << 31:
            raise CannotConvert(f"{self._name}.{key} of the GGUF file is {value!r}, not a count")
        return value


def _llama3_scaling(head_dim: int, theta: float, factors: Sequence[float]) -> dict[str, Any]:
    """Return the scaling of Llama 3.1 and later that *factors* were made by, as `Llama3RotaryEmbedding` has it.

    llama.cpp keeps the factors alone. All models of the family were made with these three numbers; the largest factor
    is the fourth. Others are refused.
    """
    low, high, original = 1.0, 4.0, 8192
    factor = max(factors)
    expected = []
    for index in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * index / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        expected.append(1 / ((1 - smooth) / factor + smooth))
    is_same = len(factors) == len(expected) and all(
        math.isclose(found, wanted, rel_tol=1e-3) for found, wanted in zip(factors, expected, strict=True)
    )
    if not is_same:
        raise CannotConvert("the GGUF file has frequency factors (rope_freqs) that are not those of Llama 3")
    return {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": float(f"{factor:.6g}"),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
