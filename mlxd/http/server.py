"""The listening TCP socket: opened, moved while requests run, and retried while another program has the port.

Owns the sockets and nothing of what is answered on them. A taken port never ends the daemon: `state` says so.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from aiohttp import web

from mlxd.clock import Clock, Timer
from mlxd.http.connection import Connections
from mlxd.http.listener import Listener, in_url, in_words, listen
from mlxd.protocol.errors import InvalidValue
from mlxd.protocol.settings import HttpSettings, Settings

_log = logging.getLogger(__name__)
RETRY_S = 3.0
_OPEN_HINT = "mlxctl apikey create NAME, or mlxctl config set http.allow_open=true"
# Requests have been drained or cancelled by then; this is for connections that hang.
_CLOSE_S = 1.0


class ServerStatus(Enum):
    """What the socket does."""

    LISTENING = "listening"
    PORT_TAKEN = "port_taken"  # tried again every few seconds
    REFUSED = "refused"  # beyond loopback without an API key; tried again, too
    CANNOT_LISTEN = "cannot_listen"  # for another reason; tried again too
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ServerState:
    """What `status` shows of the socket."""

    status: ServerStatus
    address: str | None  # host:port while it listens; the old one while a new one cannot be had
    reason: str | None


class HttpServer:
    """Serves the application on one address. A settings participant for `[http]`."""

    def __init__(
        self, app: web.Application, settings: HttpSettings, *, clock: Clock, has_keys: Callable[[], bool]
    ) -> None:
        """Take what to serve, where, and whether requests need an API key; nothing is opened before `start`."""
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=_CLOSE_S,
        )
        self._settings = settings
        self._has_keys = has_keys
        self._asked = (settings.host, settings.port)
        self._clock = clock
        self._listener: Listener | None = None
        self._prepared: Listener | None = None
        self._gave_way: Listener | None = None  # closed for what is prepared, and back when that is abandoned
        self._returning: asyncio.Task[None] | None = None
        self._retry: Timer | None = None
        self._retrying: asyncio.Task[None] | None = None
        self._state = ServerState(ServerStatus.STOPPED, None, None)

    @property
    def state(self) -> ServerState:
        """Whether it listens, where, and why not."""
        return self._state

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine reaches it where it really listens, whatever was asked for."""
        return all(listener.is_loopback for listener in (self._listener, self._prepared) if listener is not None)

    async def start(self) -> None:
        """Listen; when the port cannot be had, say so in `state` and try again every few seconds."""
        await self._runner.setup()
        serve = self._runner.server
        assert serve is not None, "it is set up"  # noqa: S101  (for the type checker)
        self._connections = Connections(serve, lambda: self._settings, self._clock)
        await self._try_listen()

    async def rebind(self, host: str, port: int) -> None:
        """Listen on another address from now on; requests that run are not touched.

        Raises:
            InvalidValue: it cannot be had; the old address stays.
        """
        await self._prepare((host, port))
        self._move((host, port))

    async def prepare(self, new: Settings) -> None:
        """Open the new address, beside the old one where the two go together, when it changes; raises as `rebind`."""
        if _asked(self._settings) != _asked(new.http):
            await self._prepare(_asked(new.http))

    def abandon(self) -> None:
        """Close what `prepare` opened: the change was not committed."""
        if self._prepared is not None:
            self._prepared.close()
            self._prepared = None
        ours, self._gave_way = self._gave_way, None
        if ours is not None:
            self._returning = asyncio.create_task(self._return(ours))

    def check(self, new: Settings, *, force: bool = False) -> list[str]:  # noqa: ARG002  (http.allow_open is the word)
        """Refuse to be open to others without an API key; whether an address can be had shows in `prepare`."""
        reason = self._refusal(new.http)
        if reason is not None:
            raise InvalidValue(f"http.host: {reason}", hint=_OPEN_HINT, param="http.host")
        return []

    def plan(self, new: Settings) -> dict[str, Any]:
        """Return where the server would move."""
        return {} if _asked(self._settings) == _asked(new.http) else {"listening": in_url(*_asked(new.http))}

    def apply(self, new: Settings) -> dict[str, Any]:
        """Move to what `prepare` opened, or, after an edit of the file by hand, begin to; return where to."""
        old, self._settings = self._settings, new.http
        if _asked(old) == _asked(new.http):
            return {}
        self._move(_asked(new.http))
        return {"listening": self._state.address if self._retrying is None else in_url(*_asked(new.http))}

    async def close(self) -> None:
        """Stop listening, cancel what still runs, close all connections."""
        self._stop_retrying()
        self.abandon()
        if self._returning is not None:
            await self._returning
            self._stop_retrying()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._state = ServerState(ServerStatus.STOPPED, None, None)
        await self._runner.cleanup()

    async def _prepare(self, asked: tuple[str, int]) -> None:
        self.abandon()
        if self._returning is not None:
            await self._returning
        if self._is_at(asked):
            return
        try:
            self._prepared = await self._open(asked)
        except OSError as error:
            raise InvalidValue(f"http.port: {in_words(error, asked)}", param="http.port") from error

    def _move(self, asked: tuple[str, int]) -> None:
        self._stop_retrying()
        self._asked = asked
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            self._settle(prepared)
        elif self._listener is not None and self._is_at(asked):
            self._settle(self._listener)
        else:
            self._retrying = asyncio.create_task(self._try_listen())

    def _is_at(self, asked: tuple[str, int]) -> bool:
        return self._listener is not None and self._listener.asked == asked

    async def _open(self, asked: tuple[str, int]) -> Listener:
        """Listen on another address; ours gives way where it excludes that, and is back when it was not the reason.

        Raises:
            OSError: the address cannot be had.
        """
        try:
            return await listen(self._connections, asked)
        except OSError as error:
            ours = self._listener
            if error.errno != errno.EADDRINUSE or ours is None or not ours.is_in_the_way_of(asked):
                raise
        ours.close()
        self._listener, self._gave_way = None, ours
        try:
            return await listen(self._connections, asked)
        except BaseException:
            self._gave_way = None
            await self._return(ours)
            raise

    async def _return(self, ours: Listener) -> None:
        """Listen again where we gave way for nothing."""
        try:
            self._listener = await listen(self._connections, ours.asked, ours.port)
        except OSError as error:  # another program was as quick
            self._wait(ServerStatus.CANNOT_LISTEN, in_words(error, ours.asked))

    async def _try_listen(self) -> None:
        """Listen at the address asked for; until it can be had, the old one, if any, stays open."""
        refusal = self._refusal(self._settings)
        if refusal is not None:
            self._wait(ServerStatus.REFUSED, f"http.host: {refusal}; {_OPEN_HINT}")
            return
        try:
            listener = await self._open(self._asked)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            status = ServerStatus.PORT_TAKEN if taken else ServerStatus.CANNOT_LISTEN
            self._wait(status, in_words(error, self._asked))
        else:
            self._settle(listener)

    def _wait(self, status: ServerStatus, words: str) -> None:
        if self._state.reason != words:
            _log.error("%s; trying again every %g s", words, RETRY_S)
        address = None if self._listener is None else self._listener.address
        if self._retry is not None:
            self._retry.cancel()
        self._state = ServerState(status, address, words)
        self._retry = self._clock.call_later(RETRY_S, self._on_retry)

    def _refusal(self, settings: HttpSettings) -> str | None:
        """Return why the server must not listen there: all the network could use the models."""
        if settings.is_loopback or settings.allow_open or self._has_keys():
            return None
        return f"{settings.host} is not loopback, and without an API key whoever reaches it could use the models"

    def _settle(self, listener: Listener) -> None:
        if self._listener is not None and self._listener is not listener:
            self._listener.close()
        self._listener, self._gave_way = listener, None
        self._state = ServerState(ServerStatus.LISTENING, listener.address, None)
        _log.info("listening on http://%s", listener.address)

    def _on_retry(self) -> None:
        self._retrying = asyncio.create_task(self._try_listen())

    def _stop_retrying(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._retrying is not None:
            self._retrying.cancel()
            self._retrying = None


def _asked(settings: HttpSettings) -> tuple[str, int]:
    return settings.host, settings.port
