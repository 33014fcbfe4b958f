"""Events, as both ends of a subscription have them, and topics: what a subscription may be about.

The topic of an event follows from its kind, `model.loaded` → `model`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from mlxd.protocol.errors import InvalidRequest

TOPICS: Mapping[str, str] = MappingProxyType(
    {
        "apikey": "An API key for HTTP clients was made or revoked.",
        "audit": "A request or a change, as the request log has it at its end; only for who asks for it by name.",
        "config": "Settings were changed, or their file went bad or was fixed.",
        "daemon": "The daemon is about to end.",
        "model": "A model loads, is there, drains, or is gone.",
        "op": "An operation began or ended.",
        "pool": "Memory went over the limit, or came within it again.",
        "queue": "A request began to wait, or does so no longer.",
        "request": "A request began, gave its first text, was paused or ended.",
    }
)
# They say at more length what other events have said.
BY_NAME_ONLY = frozenset({"audit"})
_OTHER_NAMES = {"sequence": "request"}


def topic_of(kind: str) -> str:
    """Return the topic of events of this kind."""
    noun = kind.partition(".")[0]
    return _OTHER_NAMES.get(noun, noun)


def check_topics(topics: object) -> Sequence[str]:
    """Return the topics that a subscription asks for.

    Raises:
        InvalidRequest: these are no topics; the message names the nearest, or all.
    """
    if not isinstance(topics, list) or not topics:
        raise InvalidRequest(f"topics must be a list of {', '.join(TOPICS)}", param="topics")
    for topic in topics:
        if not isinstance(topic, str) or topic not in TOPICS:
            near = difflib.get_close_matches(str(topic), TOPICS, n=1)
            known = f"the nearest is {near[0]!r}" if near else f"there are {', '.join(TOPICS)}"
            raise InvalidRequest(f"there is no topic {topic!r}; {known}", param="topics")
    return topics


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
