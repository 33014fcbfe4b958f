"""What was tried at upstreams for one request: for headers, for the log, and for the error when all of it failed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlxd.protocol.errors import MlxdError


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one target. `code` is that of its error; None for the one that answered."""

    target: str
    status: int | None
    code: str | None
    ms: int


def with_attempts(error: MlxdError, attempts: list[Attempt]) -> MlxdError:
    """Return *error*, telling what was tried."""
    tried: list[dict[str, Any]] = [asdict(attempt) for attempt in attempts]
    error.data["attempts"] = tried
    return error
