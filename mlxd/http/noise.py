"""Removes the noise of clients from the texts of a prompt, by the rules of `mlxd/protocol/noise.py`, and counts it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.noise import RULES, Place

_PATTERNS = tuple((rule.name, match, re.compile(match.pattern)) for rule in RULES for match in rule.matches)


class NoiseFilter:
    """What the parser of one body gives the texts of its messages to, before it joins them.

    It is made for each request that this machine may answer, and touches nothing that is sent to a cloud.
    """

    def __init__(self, off: Collection[str] = ()) -> None:
        """Leave out the rules that are *off* (`http.noise_rules_off`)."""
        self._patterns = [found for found in _PATTERNS if found[0] not in off]
        self.removed: dict[str, int] = {}  # rule → pieces that it has removed

    def keep(self, role: str, texts: Sequence[str], *, is_first: bool = False, others: int = 0) -> list[str]:
        """Return the texts of one message without noise; a text that was nothing else is left out.

        Args:
            role: system, user, assistant or tool.
            texts: the text of each block.
            is_first: whether the prompt begins with this message.
            others: how many blocks the message has that are no text.
        """
        kept = []
        for number, text in enumerate(texts):
            places = {Place.LAST_LINE}
            if is_first and number == 0:
                places.add(Place.FIRST_LINE)
            if number + others > 0:
                places.add(Place.LATER_BLOCK)
            left = self._clean(role, places, text)
            if left or not text:
                kept.append(left)
        return kept

    def _clean(self, role: str, places: Collection[Place], text: str) -> str:
        for name, match, pattern in self._patterns:
            if match.role == role and match.place in places:
                piece, rest = _cut(text, match.place)
                if pattern.fullmatch(piece.strip()):
                    self.removed[name] = self.removed.get(name, 0) + 1
                    text = rest
        return text


def _cut(text: str, place: Place) -> tuple[str, str]:
    """Return what stands at the place, and the rest of the text."""
    match place:
        case Place.FIRST_LINE:
            line, _, rest = text.partition("\n")
            return line, rest.lstrip("\r\n")
        case Place.LAST_LINE:
            rest, _, line = text.rstrip().rpartition("\n")
            return line, rest.rstrip()
        case Place.LATER_BLOCK:
            return text, ""


def require_messages(messages: Sequence[Any]) -> None:
    """Pass if there are messages.

    Raises:
        InvalidRequest: all of them were noise, so there is nothing to answer.
    """
    if not messages:
        raise InvalidRequest(
            "messages holds nothing to answer, only what noise rules remove",
            hint="mlxctl cache rules",
            param="messages",
        )
