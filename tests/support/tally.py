"""How much the random histories of the pool have looked at. Stands alone: every test run imports it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """How much has been looked at."""

    histories: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    moments: int = 0

    def take(self) -> dict[str, Any]:
        """Return all counts as plain data, and begin anew."""
        taken = {
            "histories": self.histories,
            "moments": self.moments,
            "operations": dict(self.operations),
            "events": dict(self.events),
        }
        self.histories = self.moments = 0
        self.operations.clear()
        self.events.clear()
        return taken

    def add(self, taken: Mapping[str, Any]) -> None:
        """Add what another tally has counted."""
        self.histories += taken["histories"]
        self.moments += taken["moments"]
        self.operations.update(taken["operations"])
        self.events.update(taken["events"])

    def lines(self) -> Iterable[str]:
        """Yield what the end of a test run shows."""
        n_operations = sum(self.operations.values())
        yield f"{self.histories} histories of {n_operations} operations, P1 to P12 looked at {self.moments} times"
        yield "operations: " + ", ".join(f"{name} {count}" for name, count in sorted(self.operations.items()))
        yield "events: " + ", ".join(f"{name} {count}" for name, count in sorted(self.events.items()))
