"""Checks of single body fields: strict types, bounds, and messages that name the field. Knows no particular field.

Each carries the JSON Schema of what it accepts, which /openapi.json shows: one object, so that they stay together.
A schema may be wider than its check, never narrower.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson

from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.quote import shown

T_co = TypeVar("T_co", covariant=True)
Check = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Described(Generic[T_co]):
    """A check and its schema."""

    check: Callable[[str, Any], T_co]
    schema: Mapping[str, Any]

    def __call__(self, name: str, value: Any) -> T_co:
        """Return the typed value of the field *name*, or raise InvalidRequest."""
        return self.check(name, value)


def described(schema: Mapping[str, Any]) -> Callable[[Callable[[str, Any], T_co]], Described[T_co]]:
    """Return what makes a check of a function."""
    return lambda check: Described(check, schema)


_SHOWN_CHARACTERS = 60
_MAX_STOPS = 64
# They become a matcher on the device thread: one of a million characters stops all streams for seconds.
_MAX_STOP_CHARACTERS = 4096
_MAX_STOPS_CHARACTERS = 4 * _MAX_STOP_CHARACTERS
_MAX_BIASES = 1024
_BIAS_LIMIT = 100
# Token ids are 32-bit in MLX.
_MAX_TOKEN = 2**31 - 1
# What `apply_chat_template` of transformers takes for itself.
_TEMPLATE_ARGUMENTS = frozenset(
    [
        "conversation",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    ]
)
_STOP = {"type": "string", "maxLength": _MAX_STOP_CHARACTERS}
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


def wrong(name: str, value: object, expected: str) -> InvalidRequest:
    """Return the error that says what *name* must be and what it was."""
    return InvalidRequest(f"{name} must be {expected}, not {shown(value)}", param=name)


def number(minimum: float, maximum: float, *, above_minimum: bool = False) -> Described[float]:
    """Return a check for a number within bounds; *above_minimum* leaves the lower bound out."""
    bounds = f"above {minimum:g} and at most {maximum:g}" if above_minimum else f"from {minimum:g} to {maximum:g}"
    words = f"a number {bounds}"

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(name, value, words)
        if not minimum <= value <= maximum or (above_minimum and value == minimum):
            raise wrong(name, value, words)
        return float(value)

    lower = "exclusiveMinimum" if above_minimum else "minimum"
    return Described(check, {"type": "number", lower: minimum, "maximum": maximum})


def integer(minimum: int, maximum: int) -> Described[int]:
    """Return a check for a whole number within bounds, which may be written as 1.0: JavaScript knows no other."""
    words = f"a whole number from {minimum} to {maximum}"

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise wrong(name, value, words)
        return value

    return Described(check, {"type": "integer", "minimum": minimum, "maximum": maximum})


def standing_for(check: Described[T_co], stand_ins: Mapping[int, T_co]) -> Described[T_co]:
    """Return *check* with some whole numbers that stand for other values, as -1 does for "no bound" in many clients."""

    def translate(name: str, value: Any) -> T_co:
        return stand_ins[value] if type(value) is int and value in stand_ins else check(name, value)

    return Described(translate, {"anyOf": [{"enum": list(stand_ins)}, check.schema]})


@described({"type": "boolean"})
def boolean(name: str, value: Any) -> bool:
    """Accept true and false."""
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


@described({"type": "string", "minLength": 1})
def text(name: str, value: Any) -> str:
    """Accept a string that is not empty."""
    if not isinstance(value, str) or not value:
        raise wrong(name, value, "a text that is not empty")
    return value


@described({"type": "string"})
def string(name: str, value: Any) -> str:
    """Accept a string, which may be empty."""
    if not isinstance(value, str):
        raise wrong(name, value, "a text")
    return value


@described({"type": "object"})
def mapping(name: str, value: Any) -> dict[str, Any]:
    """Accept an object."""
    if not isinstance(value, dict):
        raise wrong(name, value, "an object")
    return value


def schema(name: str, value: Any) -> str:
    """Accept an object that can be written as JSON, and return it so: what is read may be deeper than that."""
    try:
        return orjson.dumps(mapping(name, value)).decode()
    except orjson.JSONEncodeError:
        raise InvalidRequest(f"{name} is nested too deep: 254 levels at most", param=name) from None


@described({"type": "array", "minItems": 1})
def sequence(name: str, value: Any) -> list[Any]:
    """Accept a list that is not empty."""
    if not isinstance(value, list) or not value:
        raise wrong(name, value, "a list that is not empty")
    return value


@described({"type": "array"})
def listing(name: str, value: Any) -> list[Any]:
    """Accept a list, which may be empty."""
    if not isinstance(value, list):
        raise wrong(name, value, "a list")
    return value


def word(*words: str) -> Described[str]:
    """Return a check for one of some words."""
    expected = ", ".join(map(repr, words[:-1])) + f" or {words[-1]!r}"

    def check(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise wrong(name, value, expected)
        return value

    return Described(check, {"enum": list(words)})


@described({})
def anything(name: str, value: Any) -> Any:  # noqa: ARG001
    """Accept every value; its reader checks it."""
    return value


@described(
    {
        "anyOf": [
            _STOP,
            {"type": "array", "maxItems": _MAX_STOPS, "items": _STOP},
        ]
    }
)
def stop(name: str, value: Any) -> tuple[str, ...]:
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


@described({"type": "object", "propertyNames": {"not": {"enum": sorted(_TEMPLATE_ARGUMENTS)}}})
def template_kwargs(name: str, value: Any) -> dict[str, Any]:
    """Accept variables for a chat template; not the arguments that decide what is rendered at all."""
    given = mapping(name, value)
    for key in given:
        if not key.isidentifier() or key in _TEMPLATE_ARGUMENTS:
            raise InvalidRequest(f"{name}.{key[:_SHOWN_CHARACTERS]} is no variable of a template", param=name)
    return given


@described(
    {
        "type": "object",
        "maxProperties": _MAX_BIASES,
        "propertyNames": {"pattern": f"^(?:{_TOKEN_ID.pattern})$"},
        "additionalProperties": {"type": "number", "minimum": -_BIAS_LIMIT, "maximum": _BIAS_LIMIT},
    }
)
def logit_bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Accept a map of token id (as JSON has it: in quotes) to a number from -100 to 100."""
    if not isinstance(value, dict) or len(value) > _MAX_BIASES:
        raise wrong(name, value, f"an object of up to {_MAX_BIASES} token ids")
    bias = number(-_BIAS_LIMIT, _BIAS_LIMIT)
    pairs = []
    for key, amount in value.items():
        if not _TOKEN_ID.fullmatch(key) or int(key) > _MAX_TOKEN:
            raise wrong(name, key, "an object whose keys are token ids")
        pairs.append((int(key), bias(f"{name}.{key}", amount)))
    return tuple(sorted(pairs))


def texts_or_tokens(name: str, value: Any, most: int) -> list[str | tuple[int, ...]]:
    """Accept a text, a list of texts, a list of tokens, or a list of lists of tokens: up to *most*, all of one kind."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise wrong(name, value, "a text, a list of texts, a list of tokens, or a list of lists of tokens")
    kind = type(value[0])
    if kind not in (str, list):
        return [tokens(name, value)]
    if len(value) > most:
        raise InvalidRequest(f"{name} holds {len(value)} {name}s; at most {most} are answered", param=name)
    for index, item in enumerate(value):
        if type(item) is not kind:
            raise wrong(f"{name}[{index}]", item, f"of the same kind as the first {name}")
    return [item if isinstance(item, str) else tokens(f"{name}[{index}]", item) for index, item in enumerate(value)]


def tokens(name: str, value: list[Any]) -> tuple[int, ...]:
    """Accept a list of token ids; whether the model has them is checked by the engine."""
    # A loop over a few million tokens would hold up the event loop for seconds.
    if value and (set(map(type, value)) != {int} or min(value) < 0 or max(value) > _MAX_TOKEN):
        odd = next(token for token in value if type(token) is not int or not 0 <= token <= _MAX_TOKEN)
        raise wrong(name, odd, "made of token ids, whole numbers of at least 0")
    return tuple(value)
