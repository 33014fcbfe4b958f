"""Sampling fields of all routes that generate: OpenAI's and local extras, with readers for the unusual ones."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mlxd.engine.base import SamplingParams
from mlxd.http.schema import checked, read_by, wrong
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.settings import MOST_TOKENS, Penalty, RepetitionPenalty, Share, Temperature, XtcThreshold

_MAX_STOPS = 64
# They become a matcher on the device thread: one of a million characters stops all streams for seconds.
_MAX_STOP_CHARACTERS = 4096
_MAX_STOPS_CHARACTERS = 4 * _MAX_STOP_CHARACTERS
_MAX_BIASES = 1024
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")
# What `apply_chat_template` of transformers takes for itself.
_TEMPLATE_ARGUMENTS = frozenset(
    [
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors"),
        *("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    ]
)
Bias = Annotated[float, Meta(ge=-100, le=100)]
MaxTokens = Annotated[int, Meta(ge=-1, le=MOST_TOKENS)]
TokenLimit = Annotated[MaxTokens | None, Meta(description="-1 and 0 are unlimited")]


def _stops(name: str, value: Any) -> tuple[str, ...]:
    """Accept a text or a list of texts; empty ones, which forms of apps send, stop nowhere."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > _MAX_STOPS or not all(isinstance(item, str) for item in texts):
        raise wrong(name, value, f"a text or a list of up to {_MAX_STOPS} texts")
    for item in texts:
        if len(item) > _MAX_STOP_CHARACTERS:
            raise wrong(name, item, f"made of texts of at most {_MAX_STOP_CHARACTERS} characters")
    if sum(map(len, texts)) > _MAX_STOPS_CHARACTERS:
        raise wrong(name, value, f"made of texts of at most {_MAX_STOPS_CHARACTERS} characters together")
    return tuple(item for item in texts if item)


def _template_kwargs(name: str, value: Any) -> dict[str, Any]:
    """Accept variables for a chat template; not the arguments that decide what is rendered at all."""
    given: dict[str, Any] = checked(dict[str, Any], name, value)
    for key in given:
        if not key.isidentifier() or key in _TEMPLATE_ARGUMENTS:
            raise InvalidRequest(f"{name}.{key[:60]} is no variable of a template", param=name)
    return given


def texts_or_tokens(most: int) -> Meta:
    """Describe a field of texts, or of tokens: up to *most* of them."""
    words = "a text, a list of texts, or lists of tokens"
    return read_by(partial(_texts_or_tokens, most), words, type=["string", "array"])


def _texts_or_tokens(most: int, name: str, value: Any) -> list[str | tuple[int, ...]]:
    """Accept a text, a list of texts, a list of tokens, or a list of lists of tokens: up to *most*, all of one kind."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise wrong(name, value, "a text, a list of texts, a list of tokens, or a list of lists of tokens")
    kind = type(value[0])
    if kind not in (str, list):
        return [_tokens(name, value)]
    if len(value) > most:
        raise InvalidRequest(f"{name} holds {len(value)} {name}s; at most {most} are answered", param=name)
    for index, item in enumerate(value):
        if type(item) is not kind:
            raise wrong(f"{name}[{index}]", item, f"of the same kind as the first {name}")
    return [item if isinstance(item, str) else _tokens(f"{name}[{index}]", item) for index, item in enumerate(value)]


def _tokens(name: str, value: list[Any]) -> tuple[int, ...]:
    """Accept a list of token ids; whether the model has them is checked by the engine."""
    # A loop over a few million tokens would hold up the event loop for seconds.
    if value and (set(map(type, value)) != {int} or min(value) < 0 or max(value) > MOST_TOKENS):
        odd = next(token for token in value if type(token) is not int or not 0 <= token <= MOST_TOKENS)
        raise wrong(name, odd, "made of token ids, whole numbers of at least 0")
    return tuple(value)


def _logit_bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Accept a map of token id (as JSON has it: in quotes) to a number from -100 to 100."""
    if not isinstance(value, dict) or len(value) > _MAX_BIASES:
        raise wrong(name, value, f"an object of up to {_MAX_BIASES} token ids")
    pairs = []
    for key, amount in value.items():
        if not _TOKEN_ID.fullmatch(key) or int(key) > MOST_TOKENS:
            raise wrong(name, key, "an object whose keys are token ids")
        pairs.append((int(key), checked(Bias, f"{name}.{key}", amount)))
    return tuple(sorted(pairs))


_STOP = {"type": "string", "maxLength": _MAX_STOP_CHARACTERS}
Stops = Annotated[
    Any,
    read_by(
        _stops,
        f"a text or a list of up to {_MAX_STOPS} texts",
        anyOf=[_STOP, {"type": "array", "maxItems": _MAX_STOPS, "items": _STOP}],
    ),
]
TemplateKwargs = Annotated[
    Any,
    read_by(
        _template_kwargs,
        "an object",
        type="object",
        propertyNames={"not": {"enum": sorted(_TEMPLATE_ARGUMENTS)}},
    ),
]
_LogitBias = Annotated[
    Any,
    read_by(
        _logit_bias,
        f"an object of up to {_MAX_BIASES} token ids",
        type="object",
        maxProperties=_MAX_BIASES,
        propertyNames={"pattern": f"^(?:{_TOKEN_ID.pattern})$"},
        additionalProperties=msgspec.json.schema(Bias),
    ),
]


class Sampling(msgspec.Struct, kw_only=True):
    """The fields of a body that say how tokens are chosen; what is left out is neutral."""

    temperature: Temperature = 1.0
    top_p: Share = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=MOST_TOKENS, description="-1 is 0: off")] = 0
    min_p: Share = 0.0
    repetition_penalty: RepetitionPenalty = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    xtc_probability: Share = 0.0
    xtc_threshold: XtcThreshold = 0.0
    logit_bias: _LogitBias = ()
    ignore_eos: bool = False
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None

    def params(self) -> SamplingParams:
        """Return them as the engine has them."""
        return SamplingParams(**{**msgspec.structs.asdict(self), "top_k": max(self.top_k, 0)})
