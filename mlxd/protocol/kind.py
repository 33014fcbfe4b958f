"""The kinds of value that settings have, made of their annotations: what each reads, and how it says its bounds.

`Annotated[int, Meta(ge=1, le=9)]` is a whole number, and with the notes SIZE, DURATION, `Word` and `OneOf` a number has
a unit, a value a word, a list its choices. What no type says is a `Kind` of its own, which is noted as well.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import Meta

from mlxd.protocol import units

# As JSON Schema writes them; the bounds of what they stand for are in the words only.
_SIZE = r"^\s*[0-9]+(\.[0-9]+)?\s*([KkMmGgTt][Ii]?)?[Bb]?\s*$"
_PERCENTAGE = r"^\s*[0-9]+(\.[0-9]+)?\s*%\s*$"
_DURATION = r"^\s*(([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+|[0-9]+(\.[0-9]+)?)\s*$"
_BOOLEANS = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
_AUTO = 0.75  # of usable memory
_LEAST_MEMORY_BYTES = 10**6
# More than any machine has, and what both the control protocol and MLX can take as a number.
_MOST_MEMORY_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class Word:
    """A note that a word stands for a value which cannot be written otherwise."""

    word: str
    meaning: float | None


@dataclass(frozen=True, slots=True)
class OneOf:
    """A note that the items of a list are some of these."""

    choices: tuple[str, ...]


def reject(value: object, accepted: str) -> ValueError:
    """Return the error that a value is not what is accepted."""
    return ValueError(f"{value!r} is not {accepted}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value.

    Attributes:
        accepted: what it takes and within which bounds, in a few words for help, docs and errors.
        forms: the JSON Schema of each way to write it in the file.
        read: returns the typed value of what stands in the file or on a command line, or raises ValueError.
        to_toml: returns the value to write for an input that is read; what a person typed is kept (`60%`).
        words: words that stand for a value.
        choices: all that it takes, where these are a few words.
    """

    accepted: str
    forms: tuple[Mapping[str, Any], ...] = field(repr=False)
    read: Callable[[Any, int], Any] = field(repr=False)
    to_toml: Callable[[Any], Any] = field(default=lambda value: value, repr=False)
    words: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    def parse(self, value: Any, usable_bytes: int) -> Any:
        """Return the typed value, or raise ValueError with a sentence that states the bound.

        A percentage is of *usable_bytes*: the least of RAM, cgroup limit and Metal's recommended working set.
        """
        if isinstance(value, str) and value in self.words:
            return self.words[value]
        return self.read(value, usable_bytes)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of what stands in the file."""
        return dict(self.forms[0]) if len(self.forms) == 1 else {"anyOf": list(self.forms)}


@dataclass(frozen=True, slots=True)
class Unit:
    """A note of how a number is written, and with which words one that cannot be read is refused."""

    noun: str
    parse: Callable[[str], float]
    format: Callable[[float], str]
    to_toml: Callable[[Any], Any] = lambda value: value
    refusal: str = "{value!r} is not {accepted}"
    pattern: str | None = None


def _typed(parse: Callable[[str], float]) -> Callable[[Any], Any]:
    def to_toml(value: Any) -> Any:
        try:
            return parse(value) if isinstance(value, str) else value
        except ValueError:
            return value

    return to_toml


def _with_unit(value: Any) -> Any:
    """Refuse a text that is a number alone: nobody knows which unit its writer meant."""
    if isinstance(value, str) and value not in {"never", "inherit"}:
        units.parse_duration_s(value)
    return value


_WHOLE = Unit("a whole number", int, str, _typed(int))
_NUMBER = Unit("a number", float, "{:g}".format, _typed(float))
SIZE = Unit(
    "a size",
    units.parse_bytes,
    lambda n_bytes: units.format_bytes(int(n_bytes)),
    refusal="{error}; it must be {accepted}",
    pattern=_SIZE,
)
DURATION = Unit(
    "a duration",
    lambda text: units.parse_duration_s(text, is_unit_needed=False),
    units.format_duration,
    _with_unit,
    "{value!r} is not a duration; it must be {accepted}, such as 250ms, 30s, 5m or 1h30m",
    _DURATION,
)


def kind_of(annotation: Any) -> Kind:
    """Return the kind of the values of an annotation."""
    hint, notes = _unwrap(annotation)
    by_type: dict[type, Any] = {type(note): note for note in notes}
    if Kind in by_type:
        own: Kind = by_type[Kind]
        return own
    words = {note.word: note.meaning for note in notes if isinstance(note, Word)}
    if hint is bool:
        return Kind("true or false", ({"type": "boolean"},), _read_boolean, _to_boolean, choices=("true", "false"))
    if get_origin(hint) is Literal:
        return _choice(get_args(hint))
    if get_origin(hint) is tuple:
        return _texts(by_type[OneOf].choices if OneOf in by_type else ())
    if hint is str:
        return _text(by_type[Meta], words)
    return _number(hint, by_type[Meta], by_type.get(Unit, _WHOLE if hint is int else _NUMBER), words)


def _unwrap(hint: Any, notes: tuple[object, ...] = ()) -> tuple[Any, tuple[object, ...]]:
    """Return the type of an annotation without None, and its notes."""
    if get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        return _unwrap(hint, (*notes, *more))
    if get_origin(hint) in {Union, types.UnionType}:
        return _unwrap(next(part for part in get_args(hint) if part is not types.NoneType), notes)
    return hint, notes


def _or_words(accepted: str, words: Mapping[str, Any]) -> str:
    """Return what is accepted, with the words that are accepted as well."""
    return ", or ".join([accepted, *map(repr, words)])


def _to_boolean(value: Any) -> Any:
    return _BOOLEANS.get(value.lower(), value) if isinstance(value, str) else value


def _read_boolean(value: Any, _: int) -> bool:
    parsed = _to_boolean(value)
    if not isinstance(parsed, bool):
        raise reject(value, "true or false")
    return parsed


def _choice(choices: tuple[str, ...]) -> Kind:
    accepted = "one of " + ", ".join(choices) if len(choices) > 1 else repr(choices[0])

    def read(value: Any, _: int) -> str:
        if value not in choices:
            raise reject(value, accepted)
        return str(value)

    return Kind(accepted, ({"enum": list(choices)},), read, choices=choices)


def _text(bounds: Meta, words: Mapping[str, Any]) -> Kind:
    least, most = bounds.min_length or 0, bounds.max_length or 0
    accepted = _or_words(f"text of {least} to {most} characters", words)

    def read(value: Any, _: int) -> str:
        if not isinstance(value, str) or not least <= len(value) <= most:
            raise reject(value, accepted)
        return value

    return Kind(accepted, ({"type": "string", "minLength": least, "maxLength": most},), read, words=words)


def _texts(choices: tuple[str, ...]) -> Kind:
    """Return the kind of a list of distinct, non-empty texts; on a command line they are separated by commas."""
    accepted = f"a list of {', '.join(choices)}" if choices else "a list of texts"
    item = {"enum": list(choices)} if choices else {"type": "string", "minLength": 1}

    def to_toml(value: Any) -> Any:
        if isinstance(value, str):
            return [item.strip() for item in value.split(",")] if value.strip() else []
        return list(value) if isinstance(value, tuple) else value

    def read(value: Any, _: int) -> tuple[str, ...]:
        items = to_toml(value)
        if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
            raise reject(value, accepted)
        if len(set(items)) != len(items):
            twice = next(item for item in items if items.count(item) > 1)
            raise ValueError(f"{twice!r} stands in the list twice")
        strange = [item for item in items if choices and item not in choices]
        if strange:
            raise reject(strange[0], f"one of {', '.join(choices)}")
        return tuple(items)

    return Kind(accepted, ({"type": "array", "items": item, "uniqueItems": True},), read, to_toml, choices=choices)


def _number(number: type[int | float], bounds: Meta, unit: Unit, words: Mapping[str, Any]) -> Kind:
    is_above = bounds.ge is None
    least: Any = bounds.gt if is_above else bounds.ge
    most: Any = bounds.le
    between = ("above", "and at most") if is_above else ("from", "to")
    span = f"{between[0]} {unit.format(least)} {between[1]} {unit.format(most)}"
    accepted = _or_words(f"{unit.noun} {span}", words)

    def read(value: Any, _: int) -> float:
        try:
            parsed = unit.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(unit.refusal.format(value=value, error=error, accepted=accepted)) from None
        if isinstance(parsed, bool) or not isinstance(parsed, (int, number)):
            raise reject(value, accepted)
        if not least <= parsed <= most or (is_above and parsed == least):  # NaN is out
            raise ValueError(f"{value} is out of bounds; it must be {accepted}")
        return number(parsed)

    lower = "exclusiveMinimum" if is_above else "minimum"
    form = {"type": "integer" if number is int else "number", lower: least, "maximum": most}
    forms: list[Mapping[str, Any]] = [form, *({"const": word} for word in words)]
    if unit.pattern is not None:
        forms.insert(1, {"type": "string", "pattern": unit.pattern})
    return Kind(accepted, tuple(forms), read, unit.to_toml, words)


_MEMORY = "a size of at least 1MB, a percentage from 1% to 100%, or 'auto'"


def _read_memory(value: Any, usable_bytes: int) -> int:
    """Return the bytes. The pool checks that the machine has them, because `--force` may pass that."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise reject(value, _MEMORY)
    text = value.strip() if isinstance(value, str) else ""
    if text.lower() == "auto":
        return int(usable_bytes * _AUTO)
    if text.endswith("%"):
        n_bytes = int(usable_bytes * _percent(text) / 100)
    else:
        try:
            n_bytes = units.parse_bytes(text) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"{error}; it must be {_MEMORY}") from None
    if n_bytes < _LEAST_MEMORY_BYTES:
        least = units.format_bytes(_LEAST_MEMORY_BYTES)
        raise ValueError(f"{value} is out of bounds; the smallest memory limit is {least}")
    if n_bytes > _MOST_MEMORY_BYTES:
        most = units.format_bytes(_MOST_MEMORY_BYTES)
        raise ValueError(f"{value} is out of bounds; the largest memory limit is {most}")
    return n_bytes


def _percent(text: str) -> float:
    try:
        percent = float(text[:-1])
    except ValueError:
        raise reject(text, _MEMORY) from None
    if not 1 <= percent <= 100:  # NaN fails this too
        raise ValueError(f"{text} is out of bounds; a percentage of usable memory must be from 1% to 100%")
    return percent


# A memory limit: a size, a percentage of usable memory, or `auto`.
MEMORY = Kind(
    _MEMORY,
    (
        {"type": "integer", "minimum": _LEAST_MEMORY_BYTES, "maximum": _MOST_MEMORY_BYTES},
        *({"type": "string", "pattern": pattern} for pattern in (_SIZE, _PERCENTAGE, "^[Aa][Uu][Tt][Oo]$")),
    ),
    _read_memory,
)
