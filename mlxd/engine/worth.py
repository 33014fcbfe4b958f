"""Rank kept KV by its worth: the least goes first. Knows no tokens and no MLX."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

# A use counts half as much after so long.
_HALF_LIFE_S = 1800.0
# So many uses that had not faded when the last one came make a checkpoint one that several conversations begin with;
_SHARED_USES = 2.5
# it goes as if it had been used so many half-lives later: after what only one conversation has used meanwhile.
_SHARED_HALF_LIVES = 16


@dataclass(slots=True)
class Heat:
    """How often something was used, lately."""

    uses: float
    at_s: float

    def add(self, now_s: float) -> None:
        """Count one more use."""
        self.uses, self.at_s = self.uses * math.exp2((self.at_s - now_s) / _HALF_LIFE_S) + 1, now_s

    def worth(self, saved: int, n_bytes: int, *, may_be_shared: bool) -> float:
        """Return what it is worth to keep: tokens that it saves, by how often it was used lately, per byte.

        It is a logarithm. All uses fade alike, so that the order of two items does not change while nobody uses them.
        """
        later = _SHARED_HALF_LIVES if may_be_shared and self.uses >= _SHARED_USES else 0
        return math.log2(saved * self.uses / max(1, n_bytes)) + self.at_s / _HALF_LIFE_S + later


class Order(Generic[Item]):
    """Items by what they are worth; of equals the oldest is first."""

    def __init__(self) -> None:
        self._sorted: list[tuple[float, int, Item]] = []
        self._places: dict[Item, tuple[float, int, Item]] = {}
        self._numbers = itertools.count()

    def __contains__(self, item: Item) -> bool:
        """Whether it was put here and not discarded."""
        return item in self._places

    def put(self, item: Item, worth: float) -> None:
        """Add *item*, or change what it is worth."""
        self.discard(item)
        self._places[item] = place = (worth, next(self._numbers), item)
        insort(self._sorted, place)

    def discard(self, item: Item) -> None:
        """Remove *item* if it is here."""
        place = self._places.pop(item, None)
        if place is not None:
            del self._sorted[bisect_left(self._sorted, place)]

    def least(self) -> Item | None:
        """Return what is worth the least; None when nothing is here."""
        return self._sorted[0][2] if self._sorted else None
