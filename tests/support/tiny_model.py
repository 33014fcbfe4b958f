"""A tiny random llama on disk, in the layout of an MLX-LM folder: config, weights, tokenizer and chat template.

Written with numpy alone in about 0.1 s, so that tests without MLX can use it too. Every printable ASCII character and
the newline is one token. The special tokens have so low a logit that the model never makes one on its own: it never
ends before its `max_tokens`. A `logit_bias` of 100 on `token_id("<|im_end|>", ...)` forces it to. One dimension of the
residual stream is held constant for this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Weights = dict[str, NDArray[np.float32]]

END = "<|im_end|>"
_ASCII = "".join(chr(code) for code in range(32, 127)) + "\n"
_SPECIAL = ("<unk>", "<|im_start|>", END)
_THINKING = ("<think>", "</think>")
_TOOLS = ("<tool_call>", "</tool_call>")
# The tags of each format of calls; the ones of mlx-lm's JSON parser where none is named.
CALL_FORMATS: dict[str, tuple[str, ...]] = {
    "json_tools": _TOOLS,
    "mistral": ("[TOOL_CALLS]", "[ARGS]"),
    "kimi_k2": (
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ),
    "qwen3_coder": _TOOLS,
    "glm47": (*_TOOLS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "longcat": (
        "<longcat_tool_call>",
        "</longcat_tool_call>",
        "<longcat_arg_key>",
        "</longcat_arg_key>",
        "<longcat_arg_value>",
        "</longcat_arg_value>",
    ),
    "minimax_m2": ("<minimax:tool_call>", "</minimax:tool_call>"),
    "minicpm5": (),
    "muse_spark": (),
    "pythonic": ("<|tool_call_start|>", "<|tool_call_end|>"),
    "function_gemma": ("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma4": ("<|tool_call>", "<tool_call|>", '<|"|>'),
    "kimi_k3": ("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
}
# What is added to a special token's logit: no sampler reaches it, and a logit_bias of 100 overcomes it.
_SPECIAL_LOGIT = -40.0
_MESSAGES = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_OPEN_THINKING = "{% if add_generation_prompt and enable_thinking %}{{ '<think>\n' }}{% endif %}"
# mlx-lm infers its JSON tool parser from these two names in the template.
_TOOL_MESSAGES = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for tool_call in message.tool_calls or [] %}"
    "<tool_call>\n"
    "{{ {'name': tool_call.function.name, 'arguments': tool_call.function.arguments} | tojson }}"
    "\n</tool_call>"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if false %}{{ tool_call.name }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class _Shape:
    layers: int
    width: int
    heads: int
    kv_heads: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 64,
    context: int = 2048,
    heads: int = 4,
    kv_heads: int = 2,
    thinking: bool = False,
    open_thinking: bool = False,
    tools: bool = False,
    call_format: str = "json_tools",
    template: str | None = None,
    markup: tuple[str, ...] = (),
    all_bytes: bool = False,
    sliding_window: int | None = None,
) -> Path:
    """Write the model into *folder* (made if missing) and return it; equal arguments write equal bytes.

    Args:
        folder: where the files go.
        seed: of the random weights.
        layers: transformer layers.
        width: of the residual stream; a multiple of *heads*.
        context: `max_position_embeddings`.
        heads: attention heads.
        kv_heads: key and value heads; divides *heads*.
        thinking: adds the tokens `<think>` and `</think>`.
        open_thinking: the chat template ends with an open `<think>`, but not with `enable_thinking` false; implies
            *thinking*.
        tools: adds the tokens `<tool_call>` and `</tool_call>`, and a template that renders tools and calls, from which
            mlx-lm infers its JSON tool parser.
        call_format: another format of calls, with *tools*: a parser of mlx-lm, which is named in the configuration.
        template: a chat template in place of the model's own (see `templates.py`); only its markup that *thinking*,
            *tools* and *markup* add is one token each.
        markup: more tokens, of a format of answers.
        all_bytes: every byte is a token, so that any Unicode text can be encoded (and answers may be invalid UTF-8).
        sliding_window: every second layer attends to this many tokens only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = _Shape(layers, width, heads, kv_heads)
    tags = (CALL_FORMATS[call_format] if tools else ()) + markup
    vocabulary = tiny_vocabulary(thinking=thinking or open_thinking, tags=tags, all_bytes=all_bytes)
    n_special = sum(1 for token in vocabulary if len(token) > 1)
    config = _config(shape, len(vocabulary), vocabulary[END], context)
    if sliding_window is not None:
        config["sliding_window"] = sliding_window
        config["layer_types"] = [("full_attention", "sliding_attention")[i % 2] for i in range(layers)]
    own = (_TOOL_MESSAGES if tools else _MESSAGES) + _ANSWER + _OPEN_THINKING * open_thinking
    _write_json(folder / "config.json", config)
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary))
    tokenizer_config = _tokenizer_config(own if template is None else template, context)
    if call_format != "json_tools":
        tokenizer_config["tool_parser_type"] = call_format
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    save_file(_weights(shape, len(vocabulary), n_special, seed), folder / "model.safetensors", {"format": "mlx"})
    return folder


def tiny_vocabulary(*, thinking: bool = False, tags: tuple[str, ...] = (), all_bytes: bool = False) -> dict[str, int]:
    """Return token → id; characters are spelled as byte-level BPE spells them (a space is `Ġ`)."""
    spelled = _byte_spelling()
    characters = [spelled[byte] for byte in (range(256) if all_bytes else _ASCII.encode())]
    special = _SPECIAL + _THINKING * thinking + tags
    return {token: index for index, token in enumerate([*characters, *special])}


def token_id(token: str, *, thinking: bool = False, tools: bool = False, all_bytes: bool = False) -> int:
    """Return the id of a special token, or of a single byte's character, in a model written with the same options."""
    vocabulary = tiny_vocabulary(thinking=thinking, tags=_TOOLS * tools, all_bytes=all_bytes)
    return vocabulary[token] if token in vocabulary else vocabulary[_byte_spelling()[token.encode()[0]]]


def tiny_tokenizer(context: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return `tokenizer.json`, `tokenizer_config.json` and the size of the vocabulary of a model without a template."""
    vocabulary = tiny_vocabulary()
    return _tokenizer(vocabulary), _tokenizer_config("", context), len(vocabulary)


def _byte_spelling() -> dict[int, str]:
    """Return byte → character of GPT-2's byte-level BPE (openai/gpt-2, `src/encoder.py`)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def _config(shape: _Shape, vocab_size: int, end_id: int, context: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "intermediate_size": 2 * shape.width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": end_id,
        "torch_dtype": "float32",
    }


def _tokenizer(vocabulary: dict[str, int]) -> dict[str, Any]:
    special = [
        {"id": index, "content": token, "special": token in _SPECIAL}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token, index in vocabulary.items()
        if len(token) > 1
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": []},
    }


def _tokenizer_config(chat_template: str, context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "unk_token": "<unk>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template,
    }


def _weights(shape: _Shape, vocab_size: int, n_special: int, seed: int) -> Weights:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float32]:
        values: NDArray[np.float32] = (rng.standard_normal((rows, columns)) * scale / columns**0.5).astype(np.float32)
        return values

    width, kv_width = shape.width, shape.kv_heads * shape.head_dim
    norm = np.ones(width, np.float32)
    embedding = matrix(vocab_size, width, np.sqrt(width))
    embedding[:, 0] = 1.0
    head = matrix(vocab_size, width, 2.0)
    head[:, 0] = 0.0
    # The constant dimension leaves the last norm as about 0.5..1, whatever came before it.
    head[vocab_size - n_special :] = 0.0
    head[vocab_size - n_special :, 0] = _SPECIAL_LOGIT * 2
    weights = {"model.embed_tokens.weight": embedding, "model.norm.weight": norm, "lm_head.weight": head}
    for layer in range(shape.layers):
        out, down = matrix(width, width, 2.0), matrix(width, 2 * width, 2.0)
        out[0] = down[0] = 0.0
        parts = {
            "self_attn.q_proj": matrix(width, width, 2.0),
            "self_attn.k_proj": matrix(kv_width, width, 2.0),
            "self_attn.v_proj": matrix(kv_width, width),
            "self_attn.o_proj": out,
            "mlp.gate_proj": matrix(2 * width, width),
            "mlp.up_proj": matrix(2 * width, width),
            "mlp.down_proj": down,
            "input_layernorm": norm,
            "post_attention_layernorm": norm,
        }
        weights |= {f"model.layers.{layer}.{name}.weight": value for name, value in parts.items()}
    return weights


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
