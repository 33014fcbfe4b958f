"""The kinds of setting: each parses a value as TOML or a command line gives it, and knows its bounds.

`parse` takes what stands in the file (str, int, float, bool, list, dict) or the text of a command line, and raises
`ValueError` with a sentence that states the bound. `to_toml` gives the value that is written to the file for a given
input: what a person typed is kept (`60%` stays `60%`), text of numbers and booleans becomes a number or a boolean.
"""

from __future__ import annotations

from mlxd.protocol.kind.base import Kind, Machine
from mlxd.protocol.kind.measure import Bytes, Duration, Memory
from mlxd.protocol.kind.scalar import Boolean, Choice, Host, Integer, Number, Text, TextList
from mlxd.protocol.kind.upstream import URL, SecretReference

__all__ = [
    "URL",
    "Boolean",
    "Bytes",
    "Choice",
    "Duration",
    "Host",
    "Integer",
    "Kind",
    "Machine",
    "Memory",
    "Number",
    "SecretReference",
    "Text",
    "TextList",
]
