"""The attempts at upstreams for one request, and whether a failure lets the next target try."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from mlxd.protocol.errors import CloudError, MlxdError, UpstreamError

# The key was refused, or the account behind it is empty.
REFUSED_KEY = frozenset({401, 402, 403})
# Statuses, beside those of the target's own failures, after which another one may do better.
_NEXT = frozenset({404, 408, 409, 425, 429})


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


def may_go_on(error: MlxdError | None) -> bool:
    """Return whether the next target may do better."""
    if isinstance(error, UpstreamError):
        status = status_of(error)
        return status is None or status in _NEXT or status >= 500
    return True


def counts_against(error: CloudError) -> bool:
    """Return whether an error speaks against its target: one that is the request's own fault does not."""
    status = status_of(error)
    return status is None or status in {408, 429} or status >= 500


def status_of(error: MlxdError) -> int | None:
    """Return the status of the upstream's answer that an error stands for; None where there was none."""
    status = error.data.get("status")
    return status if isinstance(status, int) else None
