"""What the request log says of a request: its `Exchange`, put into a row at its end."""

from __future__ import annotations

from dataclasses import asdict

from mlxd.audit.record import RequestRecord, RequestStatus
from mlxd.engine.base import Usage
from mlxd.http.context import Exchange
from mlxd.protocol.errors import (
    FirstTokenTimeout,
    LoadTimeout,
    QueueTimeout,
    RequestCancelled,
    UpstreamError,
    UpstreamTimeout,
)

_TIMEOUTS = frozenset(kind.code for kind in (QueueTimeout, LoadTimeout, FirstTokenTimeout, UpstreamTimeout))


def describe_end(
    exchange: Exchange, endpoint: str, started_s: float, started_ms: int, *, has_ended: bool
) -> RequestRecord:
    """Return the row of a request.

    Args:
        exchange: what it turned out to be.
        endpoint: its path under /v1.
        started_s: by the exchange's clock.
        started_ms: unix time.
        has_ended: whether the last byte is out; False where the client went before it.
    """
    ended_s = exchange.clock()
    status, code = _judge(exchange, has_ended=has_ended)
    usage, first_s = exchange.usage, exchange.first_token_at_s
    return RequestRecord(
        request=exchange.request_id,
        started_ms=started_ms,
        endpoint=endpoint,
        route=exchange.route,
        asked=exchange.asked,
        model=exchange.asked if exchange.model is None else exchange.model,
        target=exchange.target,
        rule=exchange.rule,
        reason=exchange.reason,
        attempts=tuple(asdict(attempt) for attempt in exchange.attempts) or None,
        status=status,
        code=code,
        http_status=exchange.http_status,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        cached_tokens=None if usage is None else usage.cached_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        ttft_ms=None if first_s is None else _ms(first_s - started_s),
        duration_ms=_ms(ended_s - started_s),
        tokens_per_s=_speed(usage, first_s, ended_s),
        key=None if exchange.api_key is None else exchange.api_key.name,
        cost_micro_usd=None if exchange.answer is None else exchange.answer.cost_micro_usd,
        noise_removed=dict(exchange.noise_removed) or None,
        ignored=tuple(exchange.ignored) or None,
    )


def _judge(exchange: Exchange, *, has_ended: bool) -> tuple[RequestStatus, str | None]:
    """Return how it ended, and the code of its error."""
    error, answer = exchange.error, exchange.answer
    if error is not None:
        if isinstance(error, RequestCancelled):
            return RequestStatus.CANCELLED, error.code
        return RequestStatus.TIMEOUT if error.code in _TIMEOUTS else RequestStatus.ERROR, error.code
    if not has_ended:
        return RequestStatus.CANCELLED, None
    if answer is not None and (answer.status >= 400 or answer.failure is not None):
        return RequestStatus.ERROR, UpstreamError.code
    return RequestStatus.OK, None


def _speed(usage: Usage | None, first_s: float | None, ended_s: float) -> float | None:
    """Return tokens per second after the first token; None where there were too few to tell."""
    if usage is None or first_s is None or usage.completion_tokens < 2 or ended_s <= first_s:
        return None
    return round((usage.completion_tokens - 1) / (ended_s - first_s), 2)


def _ms(seconds: float) -> int:
    return max(0, round(1000 * seconds))
