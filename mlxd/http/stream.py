"""Writing server-sent events: opened by the first bytes, kept alive in silence, ended by [DONE] or by one error event.

Owns one response. Until its first bytes an error is the caller's to render with a status; after them it is an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from types import TracebackType
from typing import Self

from aiohttp import web

from mlxd.clock import Timer
from mlxd.http import errors
from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE
from mlxd.protocol.errors import MlxdError
from mlxd.renderer import Renderer

_log = logging.getLogger(__name__)

COMMENT = b": keep-alive\n\n"


class EventStream:
    """One response of type text/event-stream, as an async context: its end stops the timer and tells of errors."""

    def __init__(self, request: web.Request, keep_alive: bytes = COMMENT) -> None:
        """Take the request; nothing is sent before `send`, but *keep_alive* after a silence."""
        context = request.app[CONTEXT]
        self._request = request
        self._clock = context.clock
        self._keepalive_s = context.store.current.http.keepalive
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
        )
        self._last_s = self._clock.now()
        self._is_writing = False
        self.has_content = False  # something of an answer has been sent: there is no way back
        self._timer: Timer | None = None
        self._keeping_alive: asyncio.Task[None] | None = None
        self._keep_alive_bytes = keep_alive  # nothing of an answer; some clients count events only, and no comments
        self.renderer: Renderer | None = None  # writes the answer, while this machine does

    @property
    def response(self) -> web.StreamResponse:
        """What the handler returns."""
        return self._response

    @property
    def is_open(self) -> bool:
        """Whether the status has been sent, so that an error can only be an event."""
        return self._response.prepared

    async def send(self, data: bytes) -> None:
        """Write *data* at once; the first call sends the headers. Waits only while the client reads too slowly."""
        self.has_content = True
        await self._write(data)

    async def comment(self, text: str) -> None:
        """Write a comment, which clients skip: nothing of an answer has been sent by it."""
        await self._write(b": " + text.encode() + b"\n\n")

    async def _write(self, data: bytes) -> None:
        self._last_s = self._clock.now()
        self._is_writing = True
        try:
            if not self._response.prepared:
                await self._response.prepare(self._request)
            await self._response.write(data)
        finally:
            self._is_writing = False

    async def __aenter__(self) -> Self:
        self._timer = self._clock.call_later(self._keepalive_s, self._on_timer)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._keeping_alive is not None:
            self._keeping_alive.cancel()
        try:
            if not isinstance(error, Exception) or isinstance(error, ConnectionError) or not self.is_open:
                return False
            if not isinstance(error, MlxdError):
                _log.error("request %s failed in its stream", self._request[EXCHANGE].request_id, exc_info=error)
                error = errors.internal_error()
            self._request[EXCHANGE].note_error(error)
            await self.send(errors.event(error, self._request))
        finally:
            if self._timer is not None:
                self._timer.cancel()
        return True

    def _on_timer(self) -> None:
        idle_s = self._clock.now() - self._last_s
        wait_s = self._keepalive_s
        if not self._is_writing:  # else the client has yet to take what is on its way
            if idle_s >= self._keepalive_s:
                self._keeping_alive = asyncio.create_task(self._keep_alive())
            else:
                wait_s -= idle_s
        self._timer = self._clock.call_later(wait_s, self._on_timer)

    async def _keep_alive(self) -> None:
        # A client that went away is noticed by the handler itself.
        with contextlib.suppress(ConnectionError):
            if self._is_writing:
                return  # nothing comes between an event that is on its way and what it follows
            said = self.renderer.keep_alive() if self.renderer is not None and self.has_content else b""
            await self._write(said or self._keep_alive_bytes)
