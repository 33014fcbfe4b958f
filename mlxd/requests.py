"""The running requests, local and cloud: list them, cancel them, wait for their end.

Owns the set of requests that are being answered and the gate that shuts when the daemon drains. Must not import
aiohttp, the pool or the cloud: it knows a request as an asyncio task with a name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any

from mlxd.protocol.errors import Draining, MlxdError, NotFound, RequestCancelled

# What a client is told to wait while a daemon goes away and its successor comes up.
_RESTART_S = 5.0


class RequestState(Enum):
    """How far a request is."""

    WAITING = "waiting"  # for a place, a load, the prefill or an upstream
    ANSWERING = "answering"  # its first text was made


@dataclass(frozen=True, slots=True)
class RequestEvent:
    """What happens to a request: `kind` is request.started, request.answering or request.ended. Plain data."""

    kind: str
    data: Mapping[str, Any]


@dataclass(slots=True)
class RunningRequest:
    """One request, as `mlxctl ps` shows it."""

    id: str
    endpoint: str
    model: str
    route: str  # "local" or "cloud"
    started_at_s: float  # unix time
    state: RequestState = RequestState.WAITING
    completion_tokens: int = 0  # made so far, of all its sequences; an upstream does not tell
    on_answering: Callable[[], None] | None = field(default=None, repr=False, compare=False)
    begun_s: float = field(default=0.0, repr=False, compare=False)  # of the clock that only goes forward
    number: int = 0  # its place among all requests of this daemon: later ones have higher numbers

    def begin_answering(self) -> None:
        """Note that its first text was made."""
        if self.state is RequestState.WAITING:
            self.state = RequestState.ANSWERING
            if self.on_answering is not None:
                self.on_answering()


class RunningRequests:
    """All requests between their admission and their last byte."""

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        on_event: Callable[[RequestEvent], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the unix time, who is told what happens to requests, and the clock by which they last."""
        self._now = now
        self._clock = clock
        self._on_event = on_event
        self._tracked: dict[int, TrackedRequest] = {}
        self._next_key = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def track(self, request_id: str, *, endpoint: str, model: str, route: str) -> TrackedRequest:
        """Return a context manager; the current task counts as this request inside of it.

        Raises:
            Draining: `close` was called.
        """
        if self._closed:
            raise Draining("the daemon is shutting down", retry_after_s=_RESTART_S)
        return TrackedRequest(
            self, RunningRequest(request_id, endpoint, model, route, self._now(), begun_s=self._clock())
        )

    def list(self) -> tuple[RunningRequest, ...]:
        """Return a snapshot, oldest first."""
        return tuple(dataclasses.replace(tracked.request) for tracked in self._tracked.values())

    def cancel(self, request_id: str, reason: str = "the request was cancelled by an operator") -> int:
        """End the requests with this id (a client may use one twice) with `RequestCancelled`; return how many.

        Raises:
            NotFound: no running request has this id.
        """
        found = [tracked for tracked in self._tracked.values() if tracked.request.id == request_id]
        if not found:
            raise NotFound(f"there is no running request {request_id!r}", hint="mlxctl ps")
        for tracked in found:
            tracked.cancel(reason)
        return len(found)

    def cancel_number(self, number: int, reason: str) -> None:
        """End the request of this number with `RequestCancelled`; one that has ended is left alone."""
        tracked = self._tracked.get(number)
        if tracked is not None:
            tracked.cancel(reason)

    def cancel_all(self, reason: str) -> int:
        """End every request with `RequestCancelled`; return how many."""
        for tracked in self._tracked.values():
            tracked.cancel(reason)
        return len(self._tracked)

    @property
    def is_closed(self) -> bool:
        """Whether new requests are refused."""
        return self._closed

    def close(self) -> None:
        """Refuse new requests from now on."""
        self._closed = True

    async def wait_idle(self) -> None:
        """Return when no request runs."""
        await self._idle.wait()

    def _add(self, tracked: TrackedRequest) -> int:
        key = self._next_key
        self._next_key += 1
        self._tracked[key] = tracked
        self._idle.clear()
        request = tracked.request
        request.number = key
        request.on_answering = lambda: self._tell("request.answering", request, elapsed_ms=self._elapsed_ms(request))
        self._tell("request.started", request, endpoint=request.endpoint, route=request.route)
        return key

    def _remove(self, key: int, outcome: str) -> None:
        request = self._tracked.pop(key).request
        if not self._tracked:
            self._idle.set()
        self._tell("request.ended", request, outcome=outcome, elapsed_ms=self._elapsed_ms(request))

    def _elapsed_ms(self, request: RunningRequest) -> int:
        return round(1000 * (self._clock() - request.begun_s))

    def _tell(self, kind: str, request: RunningRequest, **data: Any) -> None:
        self._on_event(RequestEvent(kind, {"request": request.id, "model": request.model, **data}))


class TrackedRequest:
    """One request that runs in the task that entered this context."""

    def __init__(self, owner: RunningRequests, request: RunningRequest) -> None:
        """Made by `RunningRequests.track` only."""
        self.request = request
        self._owner = owner
        self._key = -1
        self._task: asyncio.Task[object] | None = None
        self._cancels_before = 0
        self._reason: str | None = None

    def cancel(self, reason: str) -> None:
        """Interrupt the task; a second call changes nothing."""
        if self._reason is None and self._task is not None:
            self._reason = reason
            self._task.cancel()

    def __enter__(self) -> RunningRequest:
        self._task = asyncio.current_task()
        self._cancels_before = self._task.cancelling() if self._task is not None else 0
        self._key = self._owner._add(self)  # noqa: SLF001  (two halves of one module)
        return self.request

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner._remove(self._key, self._outcome(error))  # noqa: SLF001
        task, self._task = self._task, None
        # As in asyncio.timeout: our own cancel becomes an error with words, one from outside (the client went) stays.
        if task is None or self._reason is None or task.uncancel() > self._cancels_before:
            return
        if exc_type is not None and issubclass(exc_type, asyncio.CancelledError):
            raise RequestCancelled(self._reason) from error

    def _outcome(self, error: BaseException | None) -> str:
        """Return how it ended: done, cancelled (by an operator), gone (its client), or the code of its error."""
        if error is None:
            return "done"
        if isinstance(error, asyncio.CancelledError):
            return "gone" if self._reason is None else "cancelled"
        return error.code if isinstance(error, MlxdError) else MlxdError.code
