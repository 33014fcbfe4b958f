"""Fields that OpenAI does not define: collected for the response header, or refused with the nearest name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from mlxd.protocol.errors import InvalidRequest

_SHOWN_CHARACTERS = 64
_MAX_NAMES = 20


class UnknownFields:
    """Collects the names of one body's unknown fields."""

    def __init__(self, *, reject: bool) -> None:
        """With *reject* the first unknown field is an error (`http.unknown_fields = "reject"`)."""
        self._reject = reject
        self._names: dict[str, None] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The paths noted so far, in order, each once; at most 20."""
        return tuple(self._names)

    def note(self, path: str, given: Mapping[str, Any], known: Collection[str]) -> None:
        """Note the keys of *given*, an object at *path* in the body, that are not *known*.

        Raises:
            InvalidRequest: there is one, and unknown fields are refused.
        """
        for key in given:
            if key not in known:
                name = (f"{path}.{key}" if path else key)[:_SHOWN_CHARACTERS]
                if self._reject:
                    near = difflib.get_close_matches(key[:_SHOWN_CHARACTERS], known, n=1)
                    hint = f"; the nearest is {near[0]}" if near else ""
                    raise InvalidRequest(f"there is no field {name!r}{hint}", param=name)
                if len(self._names) < _MAX_NAMES:
                    self._names[name] = None
