"""Tools that a model may call, and the calls that it makes: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools.

    Attributes:
        tools: as chat templates and mlx-lm's parsers want them: maps with `type` "function" and `function`, a map with
            `name`, `description` and `parameters` (a JSON Schema).
        parallel: whether an answer may hold more than one call; its text ends after the first where it may not.
        deferred: names of tools that may be called, and that a message of the prompt describes.
    """

    tools: tuple[Mapping[str, Any], ...]
    parallel: bool = True

    @property
    def names(self) -> set[str]:
        """Those of the functions."""
        return {str(tool["function"]["name"]) for tool in self.tools}

    deferred: frozenset[str] = frozenset()

    @property
    def shown(self) -> tuple[Mapping[str, Any], ...]:
        """Those that the chat template is given."""
        return tuple(tool for tool in self.tools if tool["function"]["name"] not in self.deferred)


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call, as it is written. The calls of an answer come one after the other.

    Attributes:
        name: who is called, in the first piece of a call; None in the others.
        arguments: more of them. All pieces add up to a JSON object, as text; or to what the model wrote in place of
            one, or before it was cut off, which no JSON parser takes for whole.
        is_last: whether the call ends with it.
        id: that an upstream has given the call, in its first piece; the renderer gives one where there is none.
    """

    name: str | None
    arguments: str
    is_last: bool
    id: str = ""


# In an object under this key stand arguments that are none: so Anthropic's documentation of streamed tools has it.
INVALID = "INVALID_JSON"


def is_object(arguments: str) -> bool:
    """Whether the arguments of a call are a JSON object: a model may fail to write one, or be cut off in it."""
    try:
        return isinstance(orjson.loads(arguments), dict)
    except orjson.JSONDecodeError:
        return False
