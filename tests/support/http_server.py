"""The real HTTP server on a free port, with whatever pool, catalog and settings a test gives it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from mlxd.apikey import ApiKeys
from mlxd.atomic_file import AtomicFile
from mlxd.audit import RequestRecord
from mlxd.catalog import Catalog
from mlxd.clock import Clock, LoopClock
from mlxd.cloud.breaker import Breakers
from mlxd.cloud.budget import Budget
from mlxd.cloud.connection import open_session
from mlxd.cloud.router import Router
from mlxd.cloud.secret import Secrets
from mlxd.cloud.upstream import Upstreams
from mlxd.http.context import AppContext
from mlxd.http.intake import Intake
from mlxd.http.server import HttpServer
from mlxd.metrics import Metrics
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import FileInvalid, ModelNotFound
from mlxd.protocol.paths import Home
from mlxd.protocol.settings import Settings
from mlxd.protocol.table import decode
from mlxd.requests import RunningRequests
from mlxd.routes import make_app
from tests.support.clock import FakeClock

CREATED_S = 1700000000


def settings_of(document: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of a document; what it leaves out has its default."""
    return decode({} if document is None else document, 16 * 10**9)


@dataclass
class SimpleStore:
    """Settings that a test swaps by assignment."""

    current: Settings
    has_booted_invalid: bool = False
    problem: FileInvalid | None = None


@dataclass
class Served:
    """A running server and all that it is made of."""

    url: str
    context: AppContext
    store: SimpleStore
    server: HttpServer
    http: aiohttp.ClientSession
    rows: list[RequestRecord]  # what the request log would hold

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        """Send a JSON body; return status, headers and body of the answer."""
        async with self.http.post(self.url + path, json=body, headers=_dashed(headers)) as response:
            return response.status, response.headers, await response.read()

    async def get(self, path: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body of the answer."""
        async with self.http.get(self.url + path, headers=_dashed(headers)) as response:
            return response.status, response.headers, await response.read()


def _dashed(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


@asynccontextmanager
async def serving(
    pool: Pool,
    *,
    catalog: Catalog | None = None,
    document: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    environ: Mapping[str, str] = os.environ,
    home: Path = Path("/nowhere"),
    socket_clock: Clock | None = None,
    metrics: Metrics | None = None,
) -> AsyncIterator[Served]:
    """Serve *pool* on a free port until the end of the context."""
    rows: list[RequestRecord] = []
    models = Catalog([]) if catalog is None else catalog
    store = SimpleStore(settings_of(document))
    time = FakeClock() if clock is None else clock

    def is_local(name: str) -> bool:
        try:
            return models.resolve(name).problem is None
        except ModelNotFound:
            return False

    secrets = Secrets(environ, home)
    async with open_session() as upstreams, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as http:
        context = AppContext(
            pool=pool,
            catalog=models,
            router=Router(store, is_local, models.alias_target, secrets),
            upstreams=Upstreams(upstreams, secrets, Breakers(time.now), Budget(None, lambda: CREATED_S), store),
            requests=RunningRequests(),
            store=store,
            clock=time,
            api_keys=ApiKeys(AtomicFile(Home(home).api_keys), time.now, lambda: CREATED_S),
            metrics=Metrics() if metrics is None else metrics,
            intake=Intake(lambda: store.current.http.bodies_memory, time),
            now=lambda: CREATED_S,
            on_ended=rows.append,
        )
        server = HttpServer(
            make_app(context),
            msgspec.structs.replace(store.current.http, port=0),
            clock=LoopClock(asyncio.get_running_loop()) if socket_clock is None else socket_clock,
            has_keys=lambda: context.api_keys.is_required,
        )
        await server.start()
        try:
            yield Served(f"http://{server.state.address}", context, store, server, http, rows)
        finally:
            await server.close()
