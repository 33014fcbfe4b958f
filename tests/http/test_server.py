"""The listening socket: a taken port, a move while requests run, both loopback addresses."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

from mlxd.http.connection import connection_of
from mlxd.http.listener import in_url
from mlxd.http.server import RETRY_S, HttpServer, ServerStatus
from mlxd.protocol.errors import InvalidValue
from mlxd.protocol.settings import HttpSettings, Settings
from tests.support.clock import FakeClock
from tests.support.http_server import settings_of


@web.middleware
async def tell_connection(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Note the begin and the end, as the boundary does."""
    connection = connection_of(request)
    assert connection is not None
    connection.begin_request(request)
    try:
        return await handler(request)
    finally:
        connection.end_request()


class Gate:
    """An application whose one route waits until it is told to answer."""

    def __init__(self) -> None:
        self.entered, self.open = asyncio.Event(), asyncio.Event()
        self.cancelled = asyncio.Event()
        self.app = web.Application(middlewares=[tell_connection])
        self.app.router.add_get("/", self.wait)
        self.app.router.add_get("/now", self.now)

    async def wait(self, request: web.Request) -> web.Response:
        self.entered.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return web.Response(text="done")

    async def now(self, request: web.Request) -> web.Response:
        return web.Response(text="now")


def http_of(host: str, port: int) -> HttpSettings:
    """Return the settings of a server that listens there."""
    return settings_of({"http": {"host": host, "port": port}}).http


@asynccontextmanager
async def _server(port: int, host: str = "127.0.0.1") -> AsyncIterator[tuple[HttpServer, Gate, FakeClock]]:
    gate, clock = Gate(), FakeClock()
    server = HttpServer(gate.app, _at(host, port).http, clock=clock, has_keys=lambda: False)
    await server.start()
    try:
        yield server, gate, clock
    finally:
        await server.close()


@asynccontextmanager
async def _taken() -> AsyncIterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


def _status(server: HttpServer) -> str:
    return server.state.status.value


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


async def _get(address: str | None, path: str = "/now") -> str:
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}{path}") as response:
        return await response.text()


async def test_port_0_takes_a_free_one() -> None:
    """The state has the real address."""
    async with _server(0) as (server, _, _):
        assert _status(server) == "listening"
        assert await _get(server.state.address) == "now"
    assert _status(server) == "stopped"


async def test_a_taken_port_is_retried_until_it_is_free() -> None:
    """Start does not fail; the state names the port and the remedy, and once the port is free it listens."""
    async with _taken() as other:
        port = other.getsockname()[1]
        async with _server(port) as (server, _, clock):
            assert _status(server) == "port_taken"
            assert f"port {port} on 127.0.0.1 is taken" in str(server.state.reason)
            assert "mlxctl config set http.port" in str(server.state.reason)
            assert clock.next_s == clock.now() + RETRY_S
            await _retry(server, clock)
            assert _status(server) == "port_taken"
            other.close()
            await _retry(server, clock)
            assert _status(server) == "listening"
            assert server.state.address == f"127.0.0.1:{port}"
            assert clock.next_s is None


async def _retry(server: HttpServer, clock: FakeClock) -> None:
    clock.run_next()
    await _attempt(server)


async def _attempt(server: HttpServer) -> None:
    retrying = server._retrying
    assert retrying is not None
    await retrying


async def test_a_move_leaves_running_requests_alone() -> None:
    """The new port answers at once, the old one no more, and what ran on the old one ends whole."""
    async with _server(0) as (server, gate, _):
        old = server.state.address
        asking = asyncio.create_task(_get(old, "/"))
        await gate.entered.wait()
        await server.rebind("127.0.0.1", _free_port())
        assert server.state.address != old
        assert await _get(server.state.address) == "now"
        with pytest.raises(aiohttp.ClientConnectorError):
            await _get(old)
        gate.open.set()
        assert await asking == "done"


async def test_a_move_to_a_taken_port_changes_nothing() -> None:
    """The change is refused with the port in words, and the old address answers on."""
    async with _taken() as other, _server(0) as (server, _, _):
        before = server.state
        port = other.getsockname()[1]
        with pytest.raises(InvalidValue, match=f"port {port} on 127.0.0.1 is taken") as refused:
            await server.rebind("127.0.0.1", port)
        assert refused.value.param == "http.port"
        assert server.state == before
        assert await _get(before.address) == "now"


async def test_a_move_ends_the_retrying() -> None:
    """A daemon that found its port taken can be given another one."""
    async with _taken() as other, _server(other.getsockname()[1]) as (server, _, clock):
        await server.rebind("127.0.0.1", _free_port())
        assert server.state.status is ServerStatus.LISTENING
        assert clock.next_s is None


async def test_as_a_participant_it_moves_with_the_settings() -> None:
    """Prepare opens, abandon closes again, apply moves; settings that leave the address alone do nothing."""
    async with _server(0) as (server, _, _):
        port = _free_port()
        old, new = settings_of({"http": {"port": 0}}), settings_of({"http": {"port": port}})
        first = server.state
        assert server.check(new, force=False) == []
        assert (server.plan(old), server.plan(new)) == ({}, {"listening": f"127.0.0.1:{port}"})
        await server.prepare(new)
        server.abandon()
        assert server.state == first
        await server.prepare(old)
        assert server.apply(old) == {}
        assert server.state == first
        await server.prepare(new)
        assert server.apply(new) == {"listening": f"127.0.0.1:{port}"}
        assert await _get(f"127.0.0.1:{port}") == "now"


async def test_an_edit_by_hand_moves_it_without_a_preparation() -> None:
    """Until the new port can be had the old one answers and the state says why; back again is no move at all."""
    async with _taken() as other, _server(0) as (server, _, clock):
        old, new = settings_of({"http": {"port": 0}}), settings_of({"http": {"port": other.getsockname()[1]}})
        first = server.state
        assert server.apply(new) == {"listening": f"127.0.0.1:{new.http.port}"}
        await _attempt(server)
        assert (server.state.status, server.state.address) == (ServerStatus.PORT_TAKEN, first.address)
        assert await _get(first.address) == "now"
        assert server.apply(old) == {"listening": first.address}
        assert server.state == first
        assert clock.next_s is None
        server.apply(new)
        await _attempt(server)
        other.close()
        await _retry(server, clock)
        assert server.state.address == f"127.0.0.1:{new.http.port}"
        assert await _get(server.state.address) == "now"


async def test_localhost_is_both_loopback_addresses() -> None:
    """Clients resolve localhost to either; both have the same port."""
    async with _server(0, "localhost") as (server, _, _):
        address = server.state.address
        assert address is not None
        port = address.rpartition(":")[2]
        assert address == f"localhost:{port}"
        assert await _get(f"127.0.0.1:{port}") == "now"
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            return  # this machine has no IPv6
        assert await _get(f"[::1]:{port}") == "now"


async def test_the_loopback_of_ipv6_is_written_in_brackets() -> None:
    """The address can be put into a URL as it is."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with _server(0, "::1") as (server, _, _):
        assert str(server.state.address).startswith("[::1]:")
        assert await _get(server.state.address) == "now"


async def test_a_client_that_disconnects_cancels_its_handler() -> None:
    """`handler_cancellation` is on: everything else stands on it."""
    async with _server(0) as (server, gate, _):
        asking = asyncio.create_task(_get(server.state.address, "/"))
        await gate.entered.wait()
        asking.cancel()
        await gate.cancelled.wait()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nAuthorization: private\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"private" * 10_000,
        b"\0private\r\n",
    ],
    ids=["a character", "a length", "no HTTP"],
)
async def test_what_is_no_http_is_no_traceback(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a 400; the log has a line at most, and nothing of what came."""
    async with _server(0) as (server, _, _):
        assert server.state.address is not None
        reader, writer = await asyncio.open_connection(*server.state.address.split(":"))
        writer.write(sent)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 4")
    assert "private" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_client_that_has_just_gone_is_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """A stream that writes between the end of its connection and its own cancellation has not failed."""

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        await response.write(b"more")
        return response

    app = web.Application()
    app.router.add_get("/", stream)
    server = HttpServer(app, http_of("127.0.0.1", 0), clock=FakeClock(), has_keys=lambda: False)
    await server.start()
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError):
            async with http.get(f"http://{server.state.address}/") as response:
                await response.read()
    await server.close()
    assert "Traceback" not in caplog.text


async def test_an_exception_in_a_connection_has_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """A mistake of ours is told in full."""

    async def fail(request: web.Request) -> web.Response:
        raise ZeroDivisionError

    app = web.Application()
    app.router.add_get("/", fail)
    server = HttpServer(app, http_of("127.0.0.1", 0), clock=FakeClock(), has_keys=lambda: False)
    await server.start()
    async with aiohttp.ClientSession() as http, http.get(f"http://{server.state.address}/") as response:
        assert response.status == 500
    await server.close()
    assert "ZeroDivisionError" in caplog.text


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def _at(host: str, port: int) -> Settings:
    return settings_of({"http": {"host": host, "port": port, "allow_open": True}})


HOSTS = [
    ("127.0.0.1", "0.0.0.0"),
    ("0.0.0.0", "127.0.0.1"),
    ("127.0.0.1", "localhost"),
    ("localhost", "127.0.0.1"),
    ("localhost", "0.0.0.0"),
    ("127.0.0.1", "::1"),
    ("::1", "127.0.0.1"),
    ("::1", "::"),
    ("::", "::1"),
]


@pytest.mark.parametrize("is_prepared", [True, False], ids=["by command", "by hand"])
@pytest.mark.parametrize(("old", "new"), HOSTS)
async def test_it_moves_to_another_host_on_its_port(old: str, new: str, is_prepared: bool) -> None:
    """Its own address is no other program's, and what runs on it ends whole."""
    if ":" in old + new and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    port = _free_port()
    async with _server(port, old) as (server, gate, clock):
        reached = "[::1]" if ":" in old else "127.0.0.1"
        asking = asyncio.create_task(_get(f"{reached}:{port}", "/"))
        await gate.entered.wait()
        if is_prepared:
            await server.prepare(_at(new, port))
        server.apply(_at(new, port))
        if not is_prepared:
            await _attempt(server)
        assert (server.state.status, server.state.reason) == (ServerStatus.LISTENING, None)
        assert server.state.address == in_url(new, port)
        assert server.is_loopback == (new not in ("0.0.0.0", "::"))
        assert await _get(f"{'[::1]' if ':' in new else '127.0.0.1'}:{port}") == "now"
        gate.open.set()
        assert await asking == "done"
        assert clock.next_s is None


async def test_a_move_that_was_abandoned_leaves_it_where_it_was() -> None:
    """The listener that gave way for what was prepared is back, at the port that it had found."""
    async with _server(0) as (server, _, _):
        first = server.state
        assert first.address is not None
        port = int(first.address.rpartition(":")[2])
        await server.prepare(_at("0.0.0.0", port))
        is_open = not server.is_loopback
        server.abandon()
        assert (is_open, server.is_loopback) == (True, True)
        await server.rebind("127.0.0.1", 0)  # at once, and no move at all
        assert server.state == first
        assert await _get(first.address) == "now"


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is no address elsewhere")
async def test_a_host_that_another_program_excludes_is_refused() -> None:
    """The listener has given way for nothing and is back; by hand it stays too, and the state says why."""
    async with _server(0) as (server, _, clock):
        first = server.state
        assert first.address is not None
        port = int(first.address.rpartition(":")[2])
        with socket.socket() as other:
            other.bind(("127.0.0.2", port))
            other.listen()
            with pytest.raises(InvalidValue, match=f"port {port} on 0.0.0.0 is taken by another program"):
                await server.prepare(_at("0.0.0.0", port))
            server.abandon()
            assert server.state == first
            assert await _get(first.address) == "now"
            server.apply(_at("0.0.0.0", port))
            await _attempt(server)
            assert (server.state.status, server.state.address) == (ServerStatus.PORT_TAKEN, first.address)
            assert await _get(first.address) == "now"
        await _retry(server, clock)
        assert server.state.address == f"0.0.0.0:{port}"
        assert await _get(first.address) == "now"
