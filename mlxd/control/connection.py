"""One client of the control socket: hello, requests, subscriptions, the end. The daemon never waits for a client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.control.bus import Bus, Gap, Subscription
from mlxd.protocol import framing
from mlxd.protocol.errors import InvalidRequest, MlxdError, NotFound, ProtocolError, RequestCancelled

MAX_IN_FLIGHT = 32
STALL_TIMEOUT_S = 10.0
_READ_BYTES = 65536
_TOPIC = "events"
_log = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, Any]], Awaitable[None]]
Answer = tuple[Mapping[str, Any], list[str]]  # the result, and the names of params that were not known
Dispatch = Callable[[Mapping[str, Any], Progress], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Service:
    """The daemon's side, the same for all connections.

    Attributes:
        version: of the daemon.
        make_hello: protocol → the answer to a hello.
        dispatch: runs a `req` frame.
        bus: what subscriptions hear.
        snapshot: what they begin with.
        generation: of the settings, now.
        stall_timeout_s: longest wait for a client that does not read.
        hello_timeout_s: longest wait for the first frame.
    """

    version: str
    make_hello: Callable[[int], Mapping[str, Any]]
    dispatch: Dispatch
    bus: Bus
    snapshot: Callable[[], Mapping[str, Any]]
    generation: Callable[[], int]
    stall_timeout_s: float = STALL_TIMEOUT_S
    hello_timeout_s: float = framing.HELLO_TIMEOUT_S


class Connection:
    """One connection, from its hello to its end."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        service: Service,
    ) -> None:
        """Take the streams and the daemon's side."""
        self._reader = reader
        self._writer = writer
        self._service = service
        self._decoder = framing.Decoder(framing.MAX_REQUEST_BYTES)
        self._frames: deque[dict[str, Any]] = deque()
        self._writing = asyncio.Lock()
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._given_up: set[int] = set()
        self._subscriptions: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Serve until the client goes, breaks the rules or stops reading."""
        try:
            await self._greet()
            while (frame := await self._receive()) is not None:
                await self._take(frame)
        except ProtocolError as error:
            await self._refuse(error)
        except (ConnectionError, TimeoutError):
            pass  # the client went, or does not read
        finally:
            await self._close()

    async def refuse(self, error: MlxdError) -> None:
        """Say why there is no hello, and close."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self._send({"t": "reject", "version": self._service.version, "e": error.to_wire()})
        await self._close()

    async def end(self, reason: str) -> None:
        """Tell the subscriptions that there is nothing more to come."""
        for sub in list(self._subscriptions):
            await self._unsubscribe(sub, reason)

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(self._service.hello_timeout_s):
                hello = await self._receive()
        except TimeoutError:
            raise ProtocolError(f"no hello came within {self._service.hello_timeout_s:g} s") from None
        if hello is None:
            return
        proto = framing.choose_protocol(hello, daemon_version=self._service.version)
        await self._send(self._service.make_hello(proto))

    async def _receive(self) -> dict[str, Any] | None:
        """Return the next frame; None when the client has closed."""
        while not self._frames:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                return None
            self._frames.extend(self._decoder.feed(data))
        return self._frames.popleft()

    async def _take(self, frame: dict[str, Any]) -> None:
        kind, number = frame.get("t"), frame.get("id")
        if kind == "ping":
            await self._send({"t": "pong"})
        elif not isinstance(number, int) or isinstance(number, bool):
            raise ProtocolError(f"a frame of type {kind!r} needs a whole number as its id")
        elif kind == "cancel":
            await self._cancel(number)
        elif number in self._requests or number in self._subscriptions:
            raise ProtocolError(f"the id {number} is in use")
        elif kind == "req":
            self._start(number, frame)
        elif kind == "sub":
            await self._subscribe(number, frame)
        else:
            await self._answer_error(number, NotFound(f"there is no frame of type {kind!r}"))

    def _start(self, number: int, frame: dict[str, Any]) -> None:
        if len(self._requests) >= MAX_IN_FLIGHT:
            work = self._answer_error(number, ProtocolError(f"{MAX_IN_FLIGHT} requests are in flight already"))
        else:
            work = self._run(number, frame)
        task = asyncio.get_running_loop().create_task(work)
        self._requests[number] = task
        task.add_done_callback(lambda _: self._requests.pop(number, None))

    async def _run(self, number: int, frame: dict[str, Any]) -> None:
        async def progress(data: Mapping[str, Any]) -> None:
            await self._send({"t": "prog", "id": number, **data})

        try:
            result, ignored = await self._service.dispatch(frame, progress)
            reply = {"t": "res", "id": number, "ok": True, "r": result, "gen": self._service.generation()}
            if ignored:
                reply["ignored"] = ignored
            await self._send(reply)
        except MlxdError as error:
            await self._answer_error(number, error)
        except asyncio.CancelledError:
            if number not in self._given_up:
                raise
            self._given_up.discard(number)
            await self._answer_error(number, RequestCancelled("the client gave the request up"))
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()
        except Exception:  # noqa: BLE001  (the renderer of control replies: the client learns no detail)
            _log.exception("%s failed", frame.get("m"))
            await self._answer_error(number, MlxdError("this failed inside of mlxd; its log has the details"))

    async def _answer_error(self, number: int, error: MlxdError) -> None:
        reply = {"t": "res", "id": number, "ok": False, "e": error.to_wire(), "gen": self._service.generation()}
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self._send(reply)

    async def _cancel(self, number: int) -> None:
        if number in self._subscriptions:
            await self._unsubscribe(number, "cancelled")
        elif number in self._requests:
            self._given_up.add(number)
            self._requests[number].cancel()

    async def _subscribe(self, number: int, frame: dict[str, Any]) -> None:
        if frame.get("topic") != _TOPIC:
            error = InvalidRequest(f"there is no topic {frame.get('topic')!r}, only {_TOPIC!r}", param="topic")
            await self._answer_error(number, error)
            return
        # In one turn of the loop, so that what the snapshot lacks comes as an event.
        subscription = self._service.bus.subscribe()
        result = {"sub": number, "seq": self._service.bus.seq, "snapshot": self._service.snapshot()}
        task = asyncio.get_running_loop().create_task(self._relay(number, subscription, result))
        self._subscriptions[number] = task

    async def _relay(self, number: int, subscription: Subscription, result: Mapping[str, Any]) -> None:
        try:
            await self._send({"t": "res", "id": number, "ok": True, "r": result, "gen": self._service.generation()})
            while True:
                item = await subscription.next()
                if isinstance(item, Gap):
                    await self._send({"t": "gap", "sub": number, "from": item.first, "to": item.last})
                else:
                    data = dict(item.data)
                    await self._send({"t": "evt", "sub": number, "seq": item.seq, "k": item.kind, "d": data})
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()
        finally:
            self._service.bus.unsubscribe(subscription)

    async def _unsubscribe(self, number: int, reason: str) -> None:
        task = self._subscriptions.pop(number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self._send({"t": "end", "sub": number, "reason": reason})

    async def _send(self, frame: Mapping[str, Any]) -> None:
        """Write the frame and wait until the client has taken most of it; one that does not read loses its connection.

        Raises:
            ProtocolError: the frame is too long to be sent.
            ConnectionError, TimeoutError: the client is gone.
        """
        data = framing.encode(frame, framing.MAX_REPLY_BYTES)
        async with self._writing:
            if self._writer.transport.is_closing():
                raise ConnectionResetError
            self._writer.write(data)
            try:
                async with asyncio.timeout(self._service.stall_timeout_s):
                    await self._writer.drain()
            except TimeoutError:
                _log.warning("a control client does not read: disconnected")
                self._writer.transport.abort()
                raise

    async def _refuse(self, error: ProtocolError) -> None:
        """Answer what broke the rules, in words that the client's program can show."""
        with contextlib.suppress(ConnectionError, TimeoutError):
            if error.code == "protocol.foreign":
                self._writer.write(framing.answer_foreign(error.data["spoken"]))
            else:
                more = {"min": framing.PROTOCOL_MIN, "max": framing.PROTOCOL_MAX, "version": self._service.version}
                await self._send({"t": "reject", "e": error.to_wire(), **more})

    async def _close(self) -> None:
        """End what belongs to the connection; operations that it began go on."""
        tasks = [*self._requests.values(), *self._subscriptions.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(self._service.stall_timeout_s):
                await self._writer.wait_closed()
        self._writer.transport.abort()
