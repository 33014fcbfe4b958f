"""Kinds without a unit: booleans, whole numbers, words, texts and lists of texts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from mlxd.protocol.kind.base import Machine, reject


@dataclass(frozen=True, slots=True)
class Boolean:
    """true or false."""

    def parse(self, value: Any, machine: Machine) -> bool:  # noqa: ARG002
        """Return the boolean."""
        parsed = self.to_toml(value)
        if not isinstance(parsed, bool):
            raise reject(value, "true or false")
        return parsed

    def to_toml(self, value: Any) -> Any:
        """Turn the words of a command line into a boolean."""
        if isinstance(value, str):
            return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}.get(
                value.lower(), value
            )
        return value

    def describe(self) -> str:
        """Return the kind in words."""
        return "true or false"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number within bounds; `none` is the word that stands for no value."""

    minimum: int
    maximum: int
    none: str | None = None

    def parse(self, value: Any, machine: Machine) -> int | None:  # noqa: ARG002
        """Return the number, or None for the word."""
        parsed = self.to_toml(value)
        if self.none is not None and parsed == self.none:
            return None
        if not isinstance(parsed, int) or isinstance(parsed, bool):
            raise reject(value, self.describe())
        if not self.minimum <= parsed <= self.maximum:
            msg = f"{parsed} is out of bounds; it must be {self.describe()}"
            raise ValueError(msg)
        return parsed

    def to_toml(self, value: Any) -> Any:
        """Turn digits into a number."""
        if isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                return value
        return value

    def describe(self) -> str:
        """Return the bounds in words."""
        words = f"a whole number from {self.minimum} to {self.maximum}"
        return words if self.none is None else f"{words}, or {self.none!r}"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        number = {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}
        return number if self.none is None else {"anyOf": [number, {"const": self.none}]}


@dataclass(frozen=True, slots=True)
class Number:
    """A number within bounds; *above_minimum* leaves the lower one out. `none` is the word that stands for no value."""

    minimum: float
    maximum: float
    above_minimum: bool = False
    none: str | None = None

    def parse(self, value: Any, machine: Machine) -> float | None:  # noqa: ARG002
        """Return the number, or None for the word."""
        parsed = self.to_toml(value)
        if self.none is not None and parsed == self.none:
            return None
        if isinstance(parsed, bool) or not isinstance(parsed, (int, float)):
            raise reject(value, self.describe())
        if not self.minimum <= parsed <= self.maximum or (self.above_minimum and parsed == self.minimum):  # NaN is out
            msg = f"{value} is out of bounds; it must be {self.describe()}"
            raise ValueError(msg)
        return float(parsed)

    def to_toml(self, value: Any) -> Any:
        """Turn digits into a number."""
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return value
        return value

    def describe(self) -> str:
        """Return the bounds in words."""
        lower = "above" if self.above_minimum else "from"
        upper = "and at most" if self.above_minimum else "to"
        words = f"a number {lower} {self.minimum:g} {upper} {self.maximum:g}"
        return words if self.none is None else f"{words}, or {self.none!r}"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        lower = "exclusiveMinimum" if self.above_minimum else "minimum"
        number = {"type": "number", lower: self.minimum, "maximum": self.maximum}
        return number if self.none is None else {"anyOf": [number, {"const": self.none}]}


@dataclass(frozen=True, slots=True, init=False)
class Choice:
    """One of a few words."""

    choices: tuple[str, ...]

    def __init__(self, *choices: str) -> None:
        """Take the words."""
        object.__setattr__(self, "choices", choices)

    def parse(self, value: Any, machine: Machine) -> str:  # noqa: ARG002
        """Return the word."""
        if value not in self.choices:
            raise reject(value, self.describe())
        return str(value)

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the words."""
        return "one of " + ", ".join(self.choices) if len(self.choices) > 1 else repr(self.choices[0])

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        return {"enum": list(self.choices)}


@dataclass(frozen=True, slots=True)
class Text:
    """Text of a bounded length; `none` is the word that stands for no value."""

    minimum: int
    maximum: int
    none: str | None = None

    def parse(self, value: Any, machine: Machine) -> str | None:  # noqa: ARG002
        """Return the text, or None for the word."""
        if self.none is not None and value == self.none:
            return None
        if not isinstance(value, str) or not self.minimum <= len(value) <= self.maximum:
            raise reject(value, self.describe())
        return value

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the bounds in words."""
        words = f"text of {self.minimum} to {self.maximum} characters"
        return words if self.none is None else f"{words}, or {self.none!r}"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        return {"type": "string", "minLength": self.minimum, "maxLength": self.maximum}


@dataclass(frozen=True, slots=True)
class Host:
    """An IP address of this machine, or localhost; a name would be looked up, and mean something else tomorrow."""

    def parse(self, value: Any, machine: Machine) -> str:  # noqa: ARG002
        """Return the address in its usual form."""
        if value == "localhost":
            return str(value)
        try:
            return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
        except ValueError:
            raise reject(value, self.describe()) from None

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the kind in words."""
        return "an IP address, or localhost"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        return {
            "anyOf": [
                {"const": "localhost"},
                {"type": "string", "format": "ipv4"},
                {"type": "string", "format": "ipv6"},
            ]
        }


@dataclass(frozen=True, slots=True)
class TextList:
    """A list of distinct, non-empty texts, *choices* where there are any; on a command line separated by commas."""

    choices: tuple[str, ...] = ()

    def parse(self, value: Any, machine: Machine) -> tuple[str, ...]:  # noqa: ARG002
        """Return the texts."""
        items = self.to_toml(value)
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) and item for item in items):
            raise reject(value, self.describe())
        if len(set(items)) != len(items):
            twice = next(item for item in items if list(items).count(item) > 1)
            msg = f"{twice!r} stands in the list twice"
            raise ValueError(msg)
        strange = [item for item in items if self.choices and item not in self.choices]
        if strange:
            raise reject(strange[0], f"one of {', '.join(self.choices)}")
        return tuple(items)

    def to_toml(self, value: Any) -> Any:
        """Split the text of a command line at its commas; the empty text is the empty list."""
        if isinstance(value, str):
            return [item.strip() for item in value.split(",")] if value.strip() else []
        return list(value) if isinstance(value, tuple) else value

    def describe(self) -> str:
        """Return the kind in words."""
        return f"a list of {', '.join(self.choices)}" if self.choices else "a list of texts"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        item: dict[str, Any] = {"enum": list(self.choices)} if self.choices else {"type": "string", "minLength": 1}
        return {"type": "array", "items": item, "uniqueItems": True}
