"""The running requests, local and cloud: list them, cancel them, wait for their end.

Owns the set of requests that are being answered and the gate that shuts when the daemon drains. Must not import
aiohttp, the pool or the cloud: it knows a request as an asyncio task with a name.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
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
    task: asyncio.Task[object] | None = field(default=None, repr=False, compare=False)  # that it runs in
    cancel_reason: str | None = field(default=None, repr=False, compare=False)

    def begin_answering(self) -> None:
        """Note that its first text was made."""
        if self.state is RequestState.WAITING:
            self.state = RequestState.ANSWERING
            if self.on_answering is not None:
                self.on_answering()

    def cancel(self, reason: str) -> None:
        """Interrupt its task, which then raises `RequestCancelled`; a second call changes nothing."""
        if self.cancel_reason is None and self.task is not None:
            self.cancel_reason = reason
            self.task.cancel()


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
        self._running: dict[int, RunningRequest] = {}
        self._next_number = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @contextmanager
    def track(self, request_id: str, *, endpoint: str, model: str, route: str) -> Iterator[RunningRequest]:
        """Count the current task as this request inside of the context.

        Raises:
            Draining: `close` was called.
            RequestCancelled: `cancel` was.
        """
        if self._closed:
            raise Draining("the daemon is shutting down", retry_after_s=_RESTART_S)
        task = asyncio.current_task()
        cancels_before = 0 if task is None else task.cancelling()
        request = RunningRequest(request_id, endpoint, model, route, self._now(), begun_s=self._clock(), task=task)
        request.number = self._next_number
        request.on_answering = partial(self._tell, "request.answering", request)
        self._next_number += 1
        self._running[request.number] = request
        self._idle.clear()
        self._tell("request.started", request, endpoint=endpoint, route=route)
        outcome = "done"
        try:
            yield request
        except BaseException as error:
            outcome = _outcome(request, error)
            raise
        finally:
            del self._running[request.number]
            if not self._running:
                self._idle.set()
            self._tell("request.ended", request, outcome=outcome)
            request.task = None
            # As in asyncio.timeout: our own cancel becomes an error with words, one from outside (the client's) stays.
            is_ours = task is not None and request.cancel_reason is not None and task.uncancel() <= cancels_before
            if is_ours and outcome == "cancelled":
                raise RequestCancelled(request.cancel_reason or "")

    def list(self) -> tuple[RunningRequest, ...]:
        """Return a snapshot, oldest first."""
        return tuple(dataclasses.replace(request) for request in self._running.values())

    def cancel(self, request_id: str, reason: str = "the request was cancelled by an operator") -> int:
        """End the requests with this id (a client may use one twice) with `RequestCancelled`; return how many.

        Raises:
            NotFound: no running request has this id.
        """
        found = [request for request in self._running.values() if request.id == request_id]
        if not found:
            raise NotFound(f"there is no running request {request_id!r}", hint="mlxctl ps")
        for request in found:
            request.cancel(reason)
        return len(found)

    def cancel_number(self, number: int, reason: str) -> None:
        """End the request of this number with `RequestCancelled`; one that has ended is left alone."""
        request = self._running.get(number)
        if request is not None:
            request.cancel(reason)

    def cancel_all(self, reason: str) -> int:
        """End every request with `RequestCancelled`; return how many."""
        for request in self._running.values():
            request.cancel(reason)
        return len(self._running)

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

    def _tell(self, kind: str, request: RunningRequest, **data: Any) -> None:
        if kind != "request.started":
            data["elapsed_ms"] = round(1000 * (self._clock() - request.begun_s))
        self._on_event(RequestEvent(kind, {"request": request.id, "model": request.model, **data}))


def _outcome(request: RunningRequest, error: BaseException) -> str:
    """Return how it ended: cancelled (by an operator), gone (its client), or the code of its error."""
    if isinstance(error, asyncio.CancelledError):
        return "gone" if request.cancel_reason is None else "cancelled"
    return error.code if isinstance(error, MlxdError) else MlxdError.code
