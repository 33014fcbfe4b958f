"""What every kind of setting does, and what a relative value is relative to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)


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

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of what stands in the file."""


def reject(value: object, expected: str) -> ValueError:
    """Return the error that a value is not what is expected."""
    return ValueError(f"{value!r} is not {expected}")
