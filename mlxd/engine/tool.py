"""Tools that a model may call, and the calls that it makes: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools.

    Attributes:
        tools: as chat templates and mlx-lm's parsers want them: maps with `type` "function" and `function`, a map with
            `name`, `description` and `parameters` (a JSON Schema).
        parallel: whether an answer may hold more than one call; its text ends after the first where it may not.
    """

    tools: tuple[Mapping[str, Any], ...]
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One complete call. `arguments` is a JSON object, as text."""

    name: str
    arguments: str
