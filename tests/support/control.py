"""A whole control plane in the test's loop: real sockets, store, pool, catalog, router; only the device is made up."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxd.apikey import ApiKeys
from mlxd.atomic_file import AtomicFile
from mlxd.audit import AuditLog
from mlxd.catalog import Catalog, adapter_paths, resolve_roots
from mlxd.catalog_sync import CatalogSync
from mlxd.clock import LoopClock
from mlxd.cloud.breaker import Breakers
from mlxd.cloud.budget import Budget
from mlxd.cloud.connection import open_session
from mlxd.cloud.key import Keys
from mlxd.cloud.router import Router
from mlxd.cloud.secret import Secrets
from mlxd.cloud.upstream import Upstreams
from mlxd.config import Participant, SettingsStore
from mlxd.control.bus import Bus
from mlxd.control.context import ControlContext, DaemonInfo, HttpState
from mlxd.control.listen import ListeningSocket
from mlxd.control.operation import Operations
from mlxd.control.relay import note_settings, relay_pool_event, relay_request_event, relay_store_event
from mlxd.control.server import ControlServer
from mlxd.crash import CrashLog, LoadMarks
from mlxd.cross_check import cross_check
from mlxd.pool.pool import Pool
from mlxd.protocol import framing
from mlxd.protocol.paths import Home
from mlxd.requests import RunningRequests
from tests.support.fake_backend import FakeBackend
from tests.support.model_folder import write_model

USABLE_BYTES = 32 * 10**6
CONFIG = '# mine\n[pool]\nmemory = "16MB"  # for two\n[catalog]\npaths = ["models"]\n'


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until the condition holds."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (what is waited for has no event)
            await asyncio.sleep(0)


class Client:
    """A control client that speaks frame by frame."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.hello: dict[str, Any] = {}
        self._decoder = framing.FrameDecoder(framing.MAX_REPLY_BYTES)
        self._frames: deque[dict[str, Any]] = deque()
        self._last_id = 0

    @classmethod
    async def connect(cls, path: Path, *, greet: bool = True) -> Client:
        """Connect, and exchange hellos unless told not to."""
        client = cls(*await asyncio.open_unix_connection(str(path)))
        if greet:
            await client.send(framing.make_hello("9.9"))
            client.hello = await client.receive()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        await asyncio.gather(self.writer.wait_closed(), return_exceptions=True)

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send one frame."""
        self.writer.write(framing.encode(frame, framing.MAX_REPLY_BYTES))
        await self.writer.drain()

    async def receive(self) -> dict[str, Any]:
        """Return the next frame; EOFError when the daemon has hung up."""
        async with asyncio.timeout(30):
            while not self._frames:
                data = await self.reader.read(65536)
                if not data:
                    raise EOFError
                self._frames.extend(self._decoder.feed(data))
            return self._frames.popleft()

    async def receive_of(self, *types: str) -> dict[str, Any]:
        """Return the next frame of one of these types."""
        while (frame := await self.receive())["t"] not in types:
            pass
        return frame

    async def request(self, operation: str, frame: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        """Ask for an operation and return the whole `res` frame."""
        self._last_id += 1
        await self.send({"t": "req", "id": self._last_id, "m": operation, "p": params, **(frame or {})})
        return await self.receive_of("res")

    async def ask(self, operation: str, frame: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        """Ask for an operation that must succeed and return its result."""
        answer = await self.request(operation, frame, **params)
        assert answer["ok"], answer
        result: dict[str, Any] = answer["r"]
        return result

    async def refused(self, operation: str, frame: Mapping[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        """Ask for an operation that must be refused and return the error."""
        answer = await self.request(operation, frame, **params)
        assert not answer["ok"], answer
        error: dict[str, Any] = answer["e"]
        return error

    async def wait(self, op: str) -> dict[str, Any]:
        """Wait for an operation's end and return it."""
        return await self.ask("op.wait", op=op, timeout_ms=30_000)


class Plane:
    """A daemon's control side, and what it stands on."""

    def __init__(self, home: Home, *, text: str | None = CONFIG, **options: Any) -> None:
        """Take the home; *options* go to the server. Models `a`, `b` and `org/c` lie in the home."""
        self.home = home
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if text is not None:
            home.config.write_text(text)
        for name in ("a", "b", "org/c"):
            if not (home.models / name).exists():
                write_model(home.models / name)
        self.clock = LoopClock(asyncio.get_running_loop())
        self.backend = FakeBackend(self.clock, load_s=0, unload_s=0, step_s=0.001)
        self.store = SettingsStore(home.config, home.history, USABLE_BYTES, validate=cross_check)
        settings = self.store.current
        self.catalog = Catalog(resolve_roots(settings.catalog.paths, home), home.models, adapter_paths(settings, home))
        self.bus = Bus()
        self.audit = AuditLog(home.audit, settings.audit, self.bus.publish)
        self.crashes = CrashLog(AtomicFile(home.state), LoadMarks(home.loading, "boot-1"))
        self.pool = Pool(
            self.backend,
            self.catalog,
            self.store.current,
            clock=self.clock,
            usable_bytes=USABLE_BYTES,
            on_event=lambda event: relay_pool_event(self.bus, event),
            noted=self.crashes.noted,
        )
        self.operations = Operations(self.bus, "boot-1")
        self.requests = RunningRequests(on_event=lambda event: relay_request_event(self.bus, event))
        self.environ = {"KEY": "secret"}
        self.secrets = Secrets(self.environ, home.root)
        self.router = Router(self.store, self.catalog.has, self.catalog.alias_target, self.secrets)
        self.session = open_session()
        budget = Budget(AtomicFile(home.cloud_day), time.time)
        self.upstreams = Upstreams(self.session, self.secrets, Breakers(self.clock.now), budget, self.store)
        attach = self.store.participants.attach
        attach("pool", Participant(check=self.pool.check, plan=self.pool.plan, apply=self.pool.apply))
        attach("cloud", Participant(["cloud"], check=self.router.check))
        self.catalog_sync = sync = CatalogSync(self.catalog, self.pool, home, settings)
        attach("catalog", Participant(sync.groups, sync.check, None, sync.prepare, sync.abandon, sync.apply))
        attach("audit", Participant(["audit"], apply=self.audit.apply))
        self.store.subscribe(lambda event: relay_store_event(self.bus, event))
        self.store.subscribe(lambda event: note_settings(self.audit, event))
        self.http = HttpState("http://127.0.0.1:6593", None)
        self.api_keys = ApiKeys(AtomicFile(home.api_keys), self.clock.now)
        self.stops: list[bool] = []
        info = DaemonInfo("1.2.3", "boot-1", os.getpid(), home, lambda: self.http, time.time())
        context = ControlContext(
            info,
            self.store,
            self.pool,
            self.catalog,
            self.requests,
            self.router,
            self.upstreams,
            self.secrets,
            Keys(home.secrets),
            self.operations,
            self.bus,
            self.crashes,
            self.api_keys,
            self.audit,
            self.stops.append,
        )
        self.server = ControlServer(context, **options)
        self.listening = ListeningSocket(home.socket)

    async def start(self) -> None:
        """Find the models and accept clients."""
        self.audit.start()
        await self.crashes.open()
        await self.api_keys.open()
        self.catalog.scan()
        await self.pool.start()
        await self.server.start(self.listening.socket)

    async def close(self) -> None:
        """End everything in the daemon's order."""
        await self.server.close()
        self.listening.close()
        await self.operations.close()
        await self.session.close()
        await self.pool.close()
        await self.backend.close()
        await self.crashes.close()
        await self.audit.close()

    async def connect(self, *, greet: bool = True) -> Client:
        """Return a client."""
        return await Client.connect(self.home.socket, greet=greet)

    def state(self, model_id: str) -> str:
        """Return a model's state in the pool."""
        states = {model.id: model.state for model in self.pool.status().models}
        return states.get(model_id, "unloaded")


@asynccontextmanager
async def running_plane(home: Home, **options: Any) -> AsyncIterator[Plane]:
    """Run a control plane."""
    plane = Plane(home, **options)
    await plane.start()
    try:
        yield plane
    finally:
        await plane.close()
