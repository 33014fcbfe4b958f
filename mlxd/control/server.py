"""`ControlServer`: accepts the control socket's clients and greets them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from typing import Any

from mlxd.control.connection import MAX_IN_FLIGHT, STALL_TIMEOUT_S, Connection, Service
from mlxd.control.context import ControlContext
from mlxd.control.dispatch import Dispatcher
from mlxd.control.listen import find_peer, is_allowed
from mlxd.control.report import snapshot
from mlxd.protocol import framing
from mlxd.protocol.errors import Forbidden, ProtocolError

MAX_CONNECTIONS = 64
# What a client is given to take the last words: they are written at once, so this is for one that does not read.
_FAREWELL_S = 1.0
_CAPS = ("apikey", "deadline", "dry", "events", "idem", "if_gen", "ops", "persist", "topics")
_log = logging.getLogger(__name__)


class ControlServer:
    """Serves one listening socket."""

    def __init__(
        self,
        context: ControlContext,
        *,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        hello_timeout_s: float = framing.HELLO_TIMEOUT_S,
    ) -> None:
        """Take what the operations work on, and how long a client may keep us waiting."""
        self._context = context
        self.dispatcher = Dispatcher(context)
        self._service = Service(
            version=context.info.version,
            make_hello=self._make_hello,
            dispatch=self.dispatcher.dispatch,
            bus=context.bus,
            snapshot=lambda: snapshot(context),
            generation=lambda: context.store.generation,
            stall_timeout_s=stall_timeout_s,
            hello_timeout_s=hello_timeout_s,
        )
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._served: set[Connection] = set()  # those of them that count
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Accept clients from now on, in the place of a socket before, whose connections go on."""
        if self._server is not None:
            self._server.close()
        self._server = await asyncio.start_unix_server(self._on_client, sock=listening)

    async def close(self) -> None:
        """Accept nobody any more, answer what is in flight and close all connections; begun mutations end first."""
        if self._server is not None:
            self._server.close()
        await self.dispatcher.mutations.close()
        farewells = [asyncio.ensure_future(connection.end("the daemon ends")) for connection in self._connections]
        if farewells:
            _, late = await asyncio.wait(farewells, timeout=_FAREWELL_S)
            for farewell in late:
                farewell.cancel()
        for connection in self._connections:
            connection.drop()
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = find_peer(writer.get_extra_info("socket"))
        connection = Connection(reader, writer, self._service, peer)
        if not is_allowed(peer.uid):
            _log.warning("refused a control client of user %s", peer.uid)
            work = connection.refuse(Forbidden("only the user who runs mlxd, and root, may steer it"))
        elif not self._make_room():
            work = connection.refuse(
                ProtocolError(
                    f"all {MAX_CONNECTIONS} control connections have requests or subscriptions in flight",
                    hint="end an `mlxctl top`, `events`, `logs -f` or `--wait` that still runs\n"
                    f"kill {self._context.info.pid}, which ends the daemon once running requests have ended",
                    code="control.too_many_connections",
                )
            )
        else:
            self._served.add(connection)
            work = connection.serve()
        task = asyncio.get_running_loop().create_task(work)
        self._connections[connection] = task
        task.add_done_callback(lambda _: self._on_gone(connection))

    def _make_room(self) -> bool:
        """Have a place for one more: the connection that has been idle longest goes; False when none is idle."""
        if len(self._served) < MAX_CONNECTIONS:
            return True
        idle = {known: known.idle_since_s for known in self._served if known.idle_since_s is not None}
        if not idle:
            return False
        longest = min(idle, key=lambda known: idle[known])
        self._served.discard(longest)
        longest.drop()
        return True

    def _on_gone(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        self._served.discard(connection)

    def _make_hello(self, proto: int) -> Mapping[str, Any]:
        info = self._context.info
        return framing.make_hello(
            info.version,
            caps=_CAPS,
            proto=proto,
            boot_id=info.boot_id,
            pid=info.pid,
            gen=self._context.store.generation,
            http=info.http().url,
            http_token=self._context.api_keys.boot_token,
            limits={"request_bytes": framing.MAX_REQUEST_BYTES, "in_flight": MAX_IN_FLIGHT},
        )
