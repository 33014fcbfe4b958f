"""What the pool reports as it happens, for the log and for subscriptions. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something happened to a model or to the pool.

    `kind` is one of model.loading, model.context_cut, model.load_progress, model.loaded, model.load_retried,
    model.load_failed, model.load_aborted, model.draining, model.evicting, model.unloaded, sequence.paused,
    sequence.resumed, sequence.retried, queue.joined, queue.left, pool.over_limit, pool.within_limit, pool.pressed,
    pool.relieved.
    `message` is the log line; it is empty for what is too frequent for a log (model.load_progress, queue.*).
    `data` holds plain values for subscribers. Listeners are called in the middle of a transition: they must not raise,
    and may look at nothing but the event.
    """

    kind: str
    model_id: str | None
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)


OnEvent = Callable[[PoolEvent], None]
