"""The bounds of the queue: who may begin to wait, and when to come back. Counts requests that have not started."""

from __future__ import annotations

from mlxd.pool.resident import Resident
from mlxd.pool.state import PoolState
from mlxd.protocol.errors import QueueFull
from mlxd.protocol.units import count

# SDKs take a longer Retry-After for none at all, and hammer.
MOST_RETRY_AFTER_S = 60.0


def refuse_if_full(state: PoolState, resident: Resident) -> None:
    """Check the bounds for a request that has just joined *resident*, with it counted.

    Raises:
        QueueFull: too many wait, over all models or for this one.
    """
    waiting = list(state.waiting_tickets())
    here = sum(ticket.resident is resident for ticket in waiting)
    queue = state.settings.queue
    retry_after = retry_after_s(state, here - 1)
    if here > queue.per_model:
        raise QueueFull(
            f"{count(here - 1, 'request')} waiting for {resident.id} already;"
            f" the bound queue.per_model is {queue.per_model}",
            hint="try again later, or raise it: mlxctl config set queue.per_model N",
            retry_after_s=retry_after,
        )
    if here and len(waiting) > queue.size:
        raise QueueFull(
            f"{count(len(waiting) - 1, 'request')} waiting already; the bound queue.size is {queue.size}",
            hint="try again later, or raise it: mlxctl config set queue.size N",
            retry_after_s=retry_after,
        )


def retry_after_s(state: PoolState, waiting: int) -> float:
    """Return seconds until *waiting* requests may have been served: queue · mean service / slots, within 1..60."""
    seconds = waiting * state.mean_service_s / state.settings.engine.max_sequences
    return min(max(seconds, 1.0), MOST_RETRY_AFTER_S)
