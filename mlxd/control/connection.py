"""One client of the control socket: hello, requests, subscriptions, the end. The daemon never waits for a client.

What is in flight is bounded, and so is what is written: one frame beyond the transport's buffer. A client that asks
without reading stops being read, and one that has not read for `stall_timeout_s` loses its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlxd.control.bus import Bus
from mlxd.control.listen import NOBODY, Peer
from mlxd.protocol import framing
from mlxd.protocol.errors import Draining, InvalidRequest, MlxdError, NotFound, ProtocolError, RequestCancelled
from mlxd.protocol.event import Gap, Interest, check_topics

MAX_IN_FLIGHT = 32
STALL_TIMEOUT_S = 10.0
_READ_BYTES = 65536
_TOPIC = "events"
_log = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, Any]], Awaitable[None]]
Answer = tuple[Mapping[str, Any], list[str]]  # the result, and the names of params that were not known
Dispatch = Callable[[Mapping[str, Any], Progress, Peer], Awaitable[Answer]]


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


@dataclass(slots=True)
class _Exchange:
    """A request or a subscription in flight. *why* is set by whoever ends it before it ends by itself."""

    number: int
    name: str
    task: asyncio.Task[None] | None = None
    is_begun: bool = False  # a task that is cancelled before its first turn could say nothing
    is_feeding: bool = False  # its snapshot was sent: from now on it ends with `end`
    why: MlxdError | None = None

    def give_up(self, why: MlxdError) -> None:
        """End it, with words for the client."""
        if self.why is None and self.task is not None:
            self.why = why
            if self.is_begun:
                self.task.cancel()


class Connection:
    """One connection, from its hello to its end."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        service: Service,
        peer: Peer = NOBODY,
    ) -> None:
        """Take the streams, the daemon's side, and who is at the other end."""
        self._peer = peer
        self._reader = reader
        self._writer = writer
        self._service = service
        self._decoder = framing.FrameDecoder(framing.MAX_REQUEST_BYTES)
        self._frames: deque[dict[str, Any]] = deque()
        self._writing = asyncio.Lock()
        self._exchanges: dict[int, _Exchange] = {}
        self._quiet_since_s: float | None = None  # None before its hello, and once it is dropped

    @property
    def idle_since_s(self) -> float | None:
        """Since when it has no request and no subscription, by the loop's clock; None while it is of use."""
        return None if self._exchanges else self._quiet_since_s

    async def serve(self) -> None:
        """Serve until the client goes, breaks the rules or stops reading."""
        try:
            await self._greet()
            self._note_sign_of_life()
            while (frame := await self._receive()) is not None:
                self._note_sign_of_life()
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
        """Answer everything in flight with *reason*, so that who waits learns why that is over, and hang up."""
        exchanges = list(self._exchanges.values())
        for exchange in exchanges:
            exchange.give_up(Draining(reason, hint="mlxctl start"))
        await asyncio.gather(
            *(exchange.task for exchange in exchanges if exchange.task is not None), return_exceptions=True
        )
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def drop(self) -> None:
        """Hang up at once, whatever the client has not taken yet."""
        self._quiet_since_s = None
        self._writer.transport.abort()

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
        """Begin what the frame asks for; what is answered here at once keeps the next frame waiting for its reader."""
        kind, number = frame.get("t"), frame.get("id")
        if kind == "ping":
            await self._send({"t": "pong"})
        elif not isinstance(number, int) or isinstance(number, bool):
            raise ProtocolError(f"a frame of type {str(kind)[:40]!r} needs a whole number as its id")
        elif kind == "cancel":
            self._cancel(number)
        elif number in self._exchanges:
            raise ProtocolError(f"the id {number} is in use")
        elif kind not in {"req", "sub"}:
            await self._answer_error(number, NotFound(f"there is no frame of type {str(kind)[:40]!r}"))
        elif len(self._exchanges) >= MAX_IN_FLIGHT:
            await self._answer_error(number, ProtocolError(f"{MAX_IN_FLIGHT} requests are in flight already"))
        else:
            self._begin(number, frame)

    def _begin(self, number: int, frame: dict[str, Any]) -> None:
        is_request = frame["t"] == "req"
        exchange = _Exchange(number, str(frame.get("m" if is_request else "topic"))[:40])
        work = self._answer if is_request else self._feed
        exchange.task = asyncio.get_running_loop().create_task(self._run(exchange, partial(work, exchange, frame)))
        self._exchanges[number] = exchange
        exchange.task.add_done_callback(lambda _: self._on_exchanged(number))

    def _on_exchanged(self, number: int) -> None:
        self._exchanges.pop(number, None)
        self._note_sign_of_life()

    def _note_sign_of_life(self) -> None:
        if not self._writer.transport.is_closing():
            self._quiet_since_s = asyncio.get_running_loop().time()

    async def _run(self, exchange: _Exchange, work: Callable[[], Awaitable[None]]) -> None:
        """Do *work*, and put into words whatever ends it."""
        exchange.is_begun = True
        try:
            if exchange.why is not None:
                await self._finish(exchange, exchange.why)
            else:
                await work()
        except MlxdError as error:
            await self._finish(exchange, error)
        except asyncio.CancelledError:
            if exchange.why is None:
                raise
            await self._finish(exchange, exchange.why)
        except (ConnectionError, TimeoutError):
            self._writer.transport.abort()
        except Exception:  # noqa: BLE001  (the renderer of control replies: the client learns no detail)
            _log.exception("%s failed", exchange.name)
            await self._finish(exchange, MlxdError("this failed inside of mlxd; its log has the details"))

    async def _finish(self, exchange: _Exchange, error: MlxdError) -> None:
        if not exchange.is_feeding:
            await self._answer_error(exchange.number, error)
            return
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self._send({"t": "end", "sub": exchange.number, "reason": error.message})

    async def _answer(self, exchange: _Exchange, frame: dict[str, Any]) -> None:
        async def progress(data: Mapping[str, Any]) -> None:
            await self._send({"t": "prog", "id": exchange.number, **data})

        result, ignored = await self._service.dispatch(frame, progress, self._peer)
        more = {"ignored": ignored} if ignored else {}
        await self._send(
            {"t": "res", "id": exchange.number, "ok": True, "r": result, "gen": self._service.generation(), **more}
        )

    async def _feed(self, exchange: _Exchange, frame: dict[str, Any]) -> None:
        """Send the snapshot, then every event that it lacks, until somebody ends it."""
        interest, number, bus = _read_interest(frame), exchange.number, self._service.bus
        # In one turn of the loop, so that what the snapshot lacks comes as an event.
        subscription = bus.subscribe(interest)
        try:
            result = {"sub": number, "seq": bus.seq, "snapshot": self._service.snapshot()}
            await self._send({"t": "res", "id": number, "ok": True, "r": result, "gen": self._service.generation()})
            exchange.is_feeding = True
            while True:
                item = await subscription.next()
                if isinstance(item, Gap):
                    await self._send({"t": "gap", "sub": number, "from": item.first, "to": item.last})
                else:
                    data = dict(item.data)
                    await self._send({"t": "evt", "sub": number, "seq": item.seq, "k": item.kind, "d": data})
        finally:
            bus.unsubscribe(subscription)

    async def _answer_error(self, number: int, error: MlxdError) -> None:
        reply = {"t": "res", "id": number, "ok": False, "e": error.to_wire(), "gen": self._service.generation()}
        with contextlib.suppress(ConnectionError, TimeoutError):
            await self._send(reply)

    def _cancel(self, number: int) -> None:
        exchange = self._exchanges.get(number)
        if exchange is not None:
            words = "cancelled" if exchange.is_feeding else "the client gave the request up"
            exchange.give_up(RequestCancelled(words))

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
        tasks = [exchange.task for exchange in self._exchanges.values() if exchange.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(self._service.stall_timeout_s):
                await self._writer.wait_closed()
        self._writer.transport.abort()


def _read_interest(frame: Mapping[str, Any]) -> Interest:
    """Return what a `sub` frame is about.

    Raises:
        InvalidRequest: its topic, topics or model are none; `param` names the key.
    """
    topic, topics, model = frame.get("topic"), frame.get("topics"), frame.get("model")
    if topic != _TOPIC:
        raise InvalidRequest(f"there is no topic {str(topic)[:40]!r}, only {_TOPIC!r}", param="topic")
    if model is not None and (not isinstance(model, str) or not model):
        raise InvalidRequest("model must be a text that is not empty", param="model")
    return Interest(None if topics is None else frozenset(check_topics(topics)), model)
