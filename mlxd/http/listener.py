"""Sockets that listen on one address: bound all together or not at all. Owns them until they are closed."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from dataclasses import dataclass

from mlxd.http.connection import Connections

_BACKLOG = 512


@dataclass(frozen=True, slots=True)
class Listener:
    """What accepts connections at one address."""

    servers: tuple[asyncio.Server, ...]
    asked: tuple[str, int]
    port: int  # the real one, when 0 was asked for

    @property
    def address(self) -> str:
        """As it stands in a URL."""
        return in_url(self.asked[0], self.port)

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine reaches it."""
        return all(host.is_loopback for host in _hosts(self.asked[0]))

    def is_in_the_way_of(self, asked: tuple[str, int]) -> bool:
        """Tell whether *asked* may not be bound as long as this listens: on Linux a wildcard excludes its addresses."""
        host, port = asked
        return port == self.port and any(
            ours == theirs or (ours.version == theirs.version and (ours.is_unspecified or theirs.is_unspecified))
            for ours in _hosts(self.asked[0])
            for theirs in _hosts(host)
        )

    def close(self) -> None:
        """Accept no more connections; those that are open live on."""
        for server in self.servers:
            server.close()


async def listen(accept: Connections, asked: tuple[str, int], port: int | None = None) -> Listener:
    """Return what listens there; *port* is the one to take where 0 was asked for.

    Raises:
        OSError: the address cannot be had.
    """
    loop = asyncio.get_running_loop()
    sockets = _bind(asked[0], asked[1] if port is None else port)
    servers = [await loop.create_server(accept, sock=sock, backlog=_BACKLOG, start_serving=False) for sock in sockets]
    listener = Listener(tuple(servers), asked, sockets[0].getsockname()[1])
    try:
        for server in servers:
            await server.start_serving()
    except BaseException:  # a move that came between
        listener.close()
        raise
    return listener


def in_url(host: str, port: int) -> str:
    """Return host and port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def in_words(error: OSError, asked: tuple[str, int]) -> str:
    """Return why the address cannot be had, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return f"port {asked[1]} on {asked[0]} is taken by another program; free it, or mlxctl config set http.port=N"
    return f"cannot listen on {asked[0]} port {asked[1]}: {error.strerror}"


def _hosts(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    return [ipaddress.ip_address(each) for each in (("127.0.0.1", "::1") if host == "localhost" else (host,))]


def _bind(host: str, port: int) -> list[socket.socket]:
    """Return bound sockets; `localhost` is both loopback addresses, where the machine has both.

    Raises:
        OSError: the first address cannot be had, or the second is taken by another program.
    """
    if host != "localhost":
        return [_bind_one(host, port)]
    first = _bind_one("127.0.0.1", port)
    try:
        return [first, _bind_one("::1", first.getsockname()[1])]
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            first.close()
            raise
        return [first]  # a machine without IPv6


def _bind_one(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        # Listening now, not later: two programs may bind one port, and only the second to listen is told.
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
