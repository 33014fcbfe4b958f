"""The metrics for Prometheus: a registry of its own, fed by events and, at each scrape, by the owners of the state.

Owns the counters of what happened and nothing of what is: memory, queue, tokens and breakers are read where they live.
No label holds what a client wrote, but for the names of targets, which are settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mlxd.cloud.attempt import Attempt
from mlxd.cloud.breaker import BreakerState, BreakerStatus
from mlxd.pool.event import PoolEvent
from mlxd.pool.status import PoolStatus

# From a cached short answer to a long one of a large model.
_DURATIONS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_LOADED = frozenset({"ready", "draining"})
_NO_ERROR = "ok"


class Metrics:
    """All series."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("mlxd_requests", "Answered HTTP requests.", "method", "route", "status")
        self._durations = self._histogram("mlxd_request_duration_seconds", "From headers to last byte.", "route")
        self._first_tokens = self._histogram(
            "mlxd_time_to_first_token_seconds", "From a request's headers to its first token, local models.", "route"
        )
        self._waits = self._histogram("mlxd_queue_wait_seconds", "Time in the queue.", "started")
        self._loads = self._counter("mlxd_model_loads", "Loads of models that have ended.", "result")
        self._evictions = self._counter("mlxd_model_evictions", "Models that gave way to others.")
        self._unloads = self._counter("mlxd_model_unloads", "Models that were unloaded, for whatever reason.")
        self._attempts = self._counter(
            "mlxd_cloud_attempts", "Requests sent to upstreams; code is ok, or the error's.", "target", "code"
        )

    def watch(self, pool: Callable[[], PoolStatus], breakers: Callable[[], Sequence[BreakerStatus]]) -> None:
        """Read these at every scrape."""
        self._registry.register(_Live(pool, breakers))

    def watch_audit(self, audit: Callable[[], Mapping[str, Any]]) -> None:
        """Read the request log's own counts at every scrape."""
        self._registry.register(_Audit(audit))

    def note_request(
        self,
        *,
        method: str,
        route: str,
        status: int,
        duration_s: float,
        first_token_s: float | None,
        attempts: Iterable[Attempt],
    ) -> None:
        """Count a request at its end; *route* is the pattern of the table, never a path."""
        self._requests.labels(method, route, str(status)).inc()
        self._durations.labels(route).observe(duration_s)
        if first_token_s is not None:
            self._first_tokens.labels(route).observe(first_token_s)
        for attempt in attempts:
            self._attempts.labels(attempt.target, attempt.code if attempt.code is not None else _NO_ERROR).inc()

    def take_pool_event(self, event: PoolEvent) -> None:
        """Count what the pool does."""
        match event.kind:
            case "queue.left":
                started = "true" if event.data["started"] else "false"
                self._waits.labels(started).observe(event.data["waited_ms"] / 1000)
            case "model.loaded":
                self._loads.labels("loaded").inc()
            case "model.load_failed":
                self._loads.labels("failed").inc()
            case "model.evicting":
                self._evictions.inc()
            case "model.unloaded":
                self._unloads.inc()

    def render(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(name, help_text, labels, buckets=_DURATIONS_S, registry=self._registry)


class _Live(Collector):
    """What is the case at the moment of a scrape."""

    def __init__(self, pool: Callable[[], PoolStatus], breakers: Callable[[], Sequence[BreakerStatus]]) -> None:
        self._pool = pool
        self._breakers = breakers

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: registering would scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the owners."""
        status = self._pool()
        memory = status.memory
        yield _gauge("mlxd_memory_limit_bytes", "What models may make resident.", memory.limit_bytes)
        yield _gauge("mlxd_memory_reserved_bytes", "What they have reserved, the sum of parts.", memory.reserved_bytes)
        parts = GaugeMetricFamily("mlxd_memory_bytes", "Reserved memory by what it is for.", labels=["part"])
        for part in ("weights", "kv", "prompt_cache", "loading", "margin"):
            parts.add_metric([part], getattr(memory, f"{part}_bytes"))
        yield parts
        loaded = sum(model.state in _LOADED for model in status.models)
        yield _gauge("mlxd_models_loaded", "Models that are loaded.", loaded)
        yield _gauge("mlxd_queue_length", "Requests that wait.", len(status.queue))
        yield _gauge("mlxd_sequences_running", "Sequences that run.", sum(model.running for model in status.models))
        tokens = CounterMetricFamily("mlxd_tokens", "Tokens of local models.", labels=["kind"])
        tokens.add_metric(["prompt"], status.tokens.prompt)
        tokens.add_metric(["completion"], status.tokens.completion)
        yield tokens
        states = GaugeMetricFamily("mlxd_cloud_breaker", "1 at the state of a target.", labels=["target", "state"])
        for breaker in self._breakers():
            for state in BreakerState:
                states.add_metric([breaker.target, state.value], float(breaker.state is state))
        yield states


class _Audit(Collector):
    """The request log's rows."""

    def __init__(self, audit: Callable[[], Mapping[str, Any]]) -> None:
        self._audit = audit

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: registering would scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the log's state."""
        state = self._audit()
        rows = CounterMetricFamily("mlxd_audit_rows", "Rows of the request log; dropped is lost.", labels=["fate"])
        for fate in ("written", "dropped"):
            rows.add_metric([fate], state[fate])
        yield rows


def _gauge(name: str, help_text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help_text, value=value)
