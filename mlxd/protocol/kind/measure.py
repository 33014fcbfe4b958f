"""Kinds with a unit: sizes, the memory limit, durations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlxd.protocol import units
from mlxd.protocol.kind.base import Machine, reject

# As JSON Schema writes them; the bounds of what they stand for are in the words only.
_SIZE = r"^\s*[0-9]+(\.[0-9]+)?\s*([KkMmGgTt][Ii]?)?[Bb]?\s*$"
_PERCENTAGE = r"^\s*[0-9]+(\.[0-9]+)?\s*%\s*$"
_DURATION = r"^\s*(([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+|[0-9]+(\.[0-9]+)?)\s*$"

MINIMUM_MEMORY_BYTES = 10**6
# More than any machine has, and what both the control protocol and MLX can take as a number.
MAXIMUM_MEMORY_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class Bytes:
    """A size within bounds; `most` is the word that stands for the greatest."""

    minimum: int
    maximum: int
    most: str | None = None

    def parse(self, value: Any, machine: Machine) -> int:  # noqa: ARG002
        """Return the bytes."""
        if self.most is not None and value == self.most:
            return self.maximum
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise reject(value, self.describe())
        try:
            n_bytes = value if isinstance(value, int) else units.parse_bytes(value)
        except ValueError as error:
            msg = f"{error}; it must be {self.describe()}"
            raise ValueError(msg) from None
        if not self.minimum <= n_bytes <= self.maximum:
            msg = f"{value} is out of bounds; it must be {self.describe()}"
            raise ValueError(msg)
        return n_bytes

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the bounds in words."""
        words = f"a size from {units.format_bytes(self.minimum)} to {units.format_bytes(self.maximum)}"
        return words if self.most is None else f"{words}, or {self.most!r}"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        number = {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}
        words = [] if self.most is None else [{"const": self.most}]
        return {"anyOf": [number, {"type": "string", "pattern": _SIZE}, *words]}


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory limit: a size, a percentage of usable memory, or `auto`.

    The upper bound of a size is the machine's; the pool checks it, because `--force` may pass it.
    """

    def parse(self, value: Any, machine: Machine) -> int:
        """Return the bytes that the value stands for on this machine."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise reject(value, self.describe())
        if isinstance(value, int):
            return self._bounded(value, value)
        text = value.strip()
        if text.lower() == "auto":
            return machine.auto_bytes
        if text.endswith("%"):
            return self._percentage(text, machine)
        try:
            n_bytes = units.parse_bytes(text)
        except ValueError as error:
            msg = f"{error}; it must be {self.describe()}"
            raise ValueError(msg) from None
        return self._bounded(n_bytes, value)

    def _percentage(self, text: str, machine: Machine) -> int:
        try:
            percent = float(text[:-1])
        except ValueError:
            raise reject(text, self.describe()) from None
        if not 1 <= percent <= 100:  # NaN fails this too
            msg = f"{text} is out of bounds; a percentage of usable memory must be from 1% to 100%"
            raise ValueError(msg)
        return self._bounded(int(machine.usable_bytes * percent / 100), text)

    def _bounded(self, n_bytes: int, shown: object) -> int:
        if n_bytes < MINIMUM_MEMORY_BYTES:
            msg = f"{shown} is out of bounds; the smallest memory limit is {units.format_bytes(MINIMUM_MEMORY_BYTES)}"
            raise ValueError(msg)
        if n_bytes > MAXIMUM_MEMORY_BYTES:
            msg = f"{shown} is out of bounds; the largest memory limit is {units.format_bytes(MAXIMUM_MEMORY_BYTES)}"
            raise ValueError(msg)
        return n_bytes

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the kind in words."""
        return "a size of at least 1MB, a percentage from 1% to 100%, or 'auto'"

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        number = {"type": "integer", "minimum": MINIMUM_MEMORY_BYTES, "maximum": MAXIMUM_MEMORY_BYTES}
        texts = [{"type": "string", "pattern": pattern} for pattern in (_SIZE, _PERCENTAGE, "^[Aa][Uu][Tt][Oo]$")]
        return {"anyOf": [number, *texts]}


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds within bounds; `none` is the word for "for ever", which is `math.inf`; `inherit` allows None."""

    minimum_s: float
    maximum_s: float
    none: str | None = None
    inherit: bool = False

    def parse(self, value: Any, machine: Machine) -> float | None:  # noqa: ARG002
        """Return the seconds."""
        if self.none is not None and value == self.none:
            return math.inf
        if self.inherit and value == "inherit":
            return None
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise reject(value, self.describe())
        try:
            seconds = units.parse_duration_s(value, is_unit_needed=False) if isinstance(value, str) else float(value)
        except (ValueError, OverflowError):  # TOML has whole numbers that no float can hold
            raise reject(value, f"a duration; it must be {self.describe()}, such as 250ms, 30s, 5m or 1h30m") from None
        if not self.minimum_s <= seconds <= self.maximum_s:
            msg = f"{value} is out of bounds; it must be {self.describe()}"
            raise ValueError(msg)
        return seconds

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed; a text that is a number alone is refused, since nobody knows what its writer meant."""
        if isinstance(value, str) and value not in {self.none, "inherit"}:
            units.parse_duration_s(value)
        return value

    def describe(self) -> str:
        """Return the bounds in words."""
        words = f"a duration from {units.format_duration(self.minimum_s)} to {units.format_duration(self.maximum_s)}"
        extra = [repr(word) for word in (self.none, "inherit" if self.inherit else None) if word is not None]
        return ", or ".join([words, *extra])

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema."""
        number = {"type": "number", "minimum": self.minimum_s, "maximum": self.maximum_s}
        words = [{"const": word} for word in (self.none, "inherit" if self.inherit else None) if word is not None]
        return {"anyOf": [number, {"type": "string", "pattern": _DURATION}, *words]}
