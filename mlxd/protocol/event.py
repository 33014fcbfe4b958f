"""What a subscription hears, on both ends of it: events in order, and a gap where some were lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.protocol.topic import BY_NAME_ONLY, topic_of


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. *kind* is `model.loaded`; *data* has what is worth knowing, as plain values."""

    seq: int
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that were lost because nobody read them in time: the first and the last number of those asked for.

    What is known from before may be wrong by now.
    """

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Interest:
    """Which events a subscriber wants: those of *topics* and about *model*.

    None does not choose, but for topics that are only for who names them.
    """

    topics: frozenset[str] | None = None
    model: str | None = None

    def includes(self, event: Event) -> bool:
        """Tell whether the event is wanted."""
        topic = topic_of(event.kind)
        if topic in BY_NAME_ONLY if self.topics is None else topic not in self.topics:
            return False
        return self.model is None or self.model == event.data.get("model") or self.model in event.data.get("models", ())
