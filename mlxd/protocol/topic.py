"""Topics: what a subscription may be about. The topic of an event follows from its kind, `model.loaded` → `model`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mlxd.protocol.errors import InvalidRequest

TOPICS: Mapping[str, str] = MappingProxyType(
    {
        "apikey": "An API key for HTTP clients was made or revoked.",
        "audit": "A request or a change, as the request log has it at its end; only for who asks for it by name.",
        "config": "Settings were changed, or their file went bad or was mended.",
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
