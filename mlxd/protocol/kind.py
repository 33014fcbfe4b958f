"""The kinds of setting: each parses a value as TOML or a command line gives it, and knows its bounds.

`parse` takes what stands in the file (str, int, float, bool, list, dict) or the text of a command line, and raises
`ValueError` with a sentence that states the bound. `to_toml` gives the value that is written to the file for a given
input: what a person typed is kept (`60%` stays `60%`), text of numbers and booleans becomes a number or a boolean.
"""

from __future__ import annotations

import ipaddress
import math
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from mlxd.protocol import units

T_co = TypeVar("T_co", covariant=True)

MINIMUM_MEMORY_BYTES = 10**6
# More than any machine has, and what both the control protocol and MLX can take as a number.
MAXIMUM_MEMORY_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class Machine:
    """What a relative value is relative to."""

    usable_bytes: int  # the least of RAM, cgroup limit and Metal's recommended working set
    auto_fraction: float = 0.75

    @property
    def auto_bytes(self) -> int:
        """What `auto` stands for."""
        return int(self.usable_bytes * self.auto_fraction)


class Kind(Protocol[T_co]):
    """One kind of value."""

    def parse(self, value: Any, machine: Machine) -> T_co:
        """Return the typed value or raise ValueError."""

    def to_toml(self, value: Any) -> Any:
        """Return the TOML value for an input that `parse` accepts."""

    def describe(self) -> str:
        """Return the kind and its bounds in a few words, for help and docs."""


def _reject(value: object, expected: str) -> ValueError:
    return ValueError(f"{value!r} is not {expected}")


@dataclass(frozen=True, slots=True)
class Boolean:
    """true or false."""

    def parse(self, value: Any, machine: Machine) -> bool:  # noqa: ARG002
        """Return the boolean."""
        parsed = self.to_toml(value)
        if not isinstance(parsed, bool):
            raise _reject(value, "true or false")
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
            raise _reject(value, self.describe())
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


@dataclass(frozen=True, slots=True)
class Bytes:
    """A size within bounds."""

    minimum: int
    maximum: int

    def parse(self, value: Any, machine: Machine) -> int:  # noqa: ARG002
        """Return the bytes."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise _reject(value, self.describe())
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
        return f"a size from {units.format_bytes(self.minimum)} to {units.format_bytes(self.maximum)}"


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory limit: a size, a percentage of usable memory, or `auto`.

    The upper bound of a size is the machine's; the pool checks it, because `--force` may pass it.
    """

    def parse(self, value: Any, machine: Machine) -> int:
        """Return the bytes that the value stands for on this machine."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise _reject(value, self.describe())
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
            raise _reject(text, self.describe()) from None
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
            raise _reject(value, self.describe())
        try:
            seconds = units.parse_duration_s(value) if isinstance(value, str) else float(value)
        except (ValueError, OverflowError):  # TOML has whole numbers that no float can hold
            raise _reject(value, f"a duration; it must be {self.describe()}, such as 250ms, 30s, 5m or 1h30m") from None
        if not self.minimum_s <= seconds <= self.maximum_s:
            msg = f"{value} is out of bounds; it must be {self.describe()}"
            raise ValueError(msg)
        return seconds

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the bounds in words."""
        words = f"a duration from {units.format_duration(self.minimum_s)} to {units.format_duration(self.maximum_s)}"
        extra = [repr(word) for word in (self.none, "inherit" if self.inherit else None) if word is not None]
        return ", or ".join([words, *extra])


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
            raise _reject(value, self.describe())
        return str(value)

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the words."""
        return "one of " + ", ".join(self.choices) if len(self.choices) > 1 else repr(self.choices[0])


@dataclass(frozen=True, slots=True)
class Text:
    """Text of a bounded length."""

    minimum: int
    maximum: int

    def parse(self, value: Any, machine: Machine) -> str:  # noqa: ARG002
        """Return the text."""
        if not isinstance(value, str) or not self.minimum <= len(value) <= self.maximum:
            raise _reject(value, self.describe())
        return value

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the bounds in words."""
        return f"text of {self.minimum} to {self.maximum} characters"


@dataclass(frozen=True, slots=True)
class TextList:
    """A list of distinct, non-empty texts; on a command line separated by commas."""

    def parse(self, value: Any, machine: Machine) -> tuple[str, ...]:  # noqa: ARG002
        """Return the texts."""
        items = self.to_toml(value)
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) and item for item in items):
            raise _reject(value, self.describe())
        if len(set(items)) != len(items):
            twice = next(item for item in items if list(items).count(item) > 1)
            msg = f"{twice!r} stands in the list twice"
            raise ValueError(msg)
        return tuple(items)

    def to_toml(self, value: Any) -> Any:
        """Split the text of a command line at its commas; the empty text is the empty list."""
        if isinstance(value, str):
            return [item.strip() for item in value.split(",")] if value.strip() else []
        return list(value) if isinstance(value, tuple) else value

    def describe(self) -> str:
        """Return the kind in words."""
        return "a list of texts"


@dataclass(frozen=True, slots=True)
class URL:
    """An http(s) address without credentials, query or fragment; plain http only to loopback and private networks."""

    def parse(self, value: Any, machine: Machine) -> str:  # noqa: ARG002
        """Return the address without a closing slash."""
        if not isinstance(value, str):
            raise _reject(value, self.describe())
        parts = urllib.parse.urlsplit(value)
        if "@" in parts.netloc or parts.query or parts.fragment:
            # The value is not repeated: it may hold a key.
            msg = (
                'an address may not hold credentials, a query or a fragment; the key goes into auth = { env = "NAME" }'
            )
            raise ValueError(msg)
        is_text = value.isprintable() and " " not in value
        if parts.scheme not in {"http", "https"} or not parts.hostname or not _is_host(parts.hostname) or not is_text:
            raise _reject(value, self.describe())
        try:
            parts.port  # noqa: B018  (reading it is the check)
        except ValueError as error:
            msg = f"{value!r} has no valid port: {error}"
            raise ValueError(msg) from None
        if parts.scheme == "http" and not _is_near(parts.hostname):
            msg = (
                f"{value!r} would send the key and the prompts unencrypted; use https, or a loopback or private address"
            )
            raise ValueError(msg)
        return value.rstrip("/")

    def to_toml(self, value: Any) -> Any:
        """Keep what was typed."""
        return value

    def describe(self) -> str:
        """Return the kind in words."""
        return "an address such as https://host/v1"


def _is_host(hostname: str) -> bool:
    """Tell whether a name can be looked up; the `…` of an example that was copied cannot."""
    try:
        return all(hostname.encode("idna").removesuffix(b".").split(b"."))
    except UnicodeError:
        return False


def _is_near(hostname: str) -> bool:
    """Tell whether plain http to the host stays on this machine or its network."""
    if hostname == "localhost" or hostname.endswith(".local"):
        return True
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        return False
    return address.is_loopback or address.is_private


@dataclass(frozen=True, slots=True)
class SecretReference:
    """Where a secret is kept: `{ env = "NAME" }`; never the secret itself."""

    def parse(self, value: Any, machine: Machine) -> Mapping[str, str] | None:  # noqa: ARG002
        """Return the reference."""
        if value is None:
            return None
        if not isinstance(value, Mapping) or set(value) != {"env"}:
            raise ValueError("it must be " + self.describe())
        name = value["env"]
        if not isinstance(name, str) or not (name.isidentifier() and name.isascii()):
            # The value is not repeated: somebody may have put the key itself there.
            msg = 'auth.env must be the NAME of an environment variable (letters, digits and "_"), not the key itself'
            raise ValueError(msg)
        return {"env": name}

    def to_toml(self, value: Any) -> Any:
        """Keep the reference."""
        return value

    def describe(self) -> str:
        """Return the kind in words."""
        return 'a reference such as { env = "NAME" }'
