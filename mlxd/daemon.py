"""The composition root: builds the parts, listens, waits for a signal, drains. Wiring happens here and nowhere else."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from mlxd import __version__, log
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
from mlxd.control.listen import InstanceLock, ListeningSocket
from mlxd.control.operation import Operations
from mlxd.control.presence import Presence
from mlxd.control.relay import note_settings, relay_pool_event, relay_request_event, relay_store_event
from mlxd.control.server import ControlServer
from mlxd.crash import CrashLog, LoadMarks
from mlxd.cross_check import cross_check
from mlxd.engine.base import BackendLimits
from mlxd.engine.device import Device, recommended_working_set_bytes
from mlxd.heap import bound_heap
from mlxd.http.context import CONTEXT, AppContext
from mlxd.http.intake import Intake
from mlxd.http.server import HttpServer
from mlxd.kv_estimate import KvShapes
from mlxd.machine import raise_open_files, usable_memory_bytes
from mlxd.memory_pressure import watch_memory_pressure
from mlxd.metrics import Metrics
from mlxd.openai.response_store import RESPONSES
from mlxd.pool.event import PoolEvent
from mlxd.pool.pool import Pool, scheduling_params
from mlxd.protocol.errors import EXIT_OK, MlxdError
from mlxd.protocol.paths import Home
from mlxd.protocol.units import count
from mlxd.requests import RunningRequests
from mlxd.routes import make_app
from mlxd.shutdown import Shutdown, end_at_last

# Together with the longest daemon.drain_timeout (50 s) below the 60 s after which service managers kill.
_GRACE_S = 5.0
_CLOSE_S = 3.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; everything else is a setting."""

    home: Home
    config: Path
    socket: Path
    log_file: Path | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to end; return the exit status."""
    options = _parse(arguments)
    bound_heap()
    try:
        lock = InstanceLock(options.home.lock, options.socket)
    except MlxdError as error:
        return _refuse(error)
    raise_open_files()
    try:
        return asyncio.run(_run(options, lock))
    except MlxdError as error:
        return _refuse(error)
    finally:
        lock.release()


def _refuse(error: MlxdError) -> int:
    """Say why there will be no daemon, as mlxctl words it; return the exit status."""
    lines = [f"error: {error.message}", *(f"  try: {way}" for way in error.ways), f"  code: {error.code}"]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return error.exit_code


def _parse(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(
        prog="mlxd",
        description="A local model server, in the foreground. `mlxctl start` runs it in the background.",
        epilog="MLXD_HOME is the folder of all it keeps (default ~/.mlxd). The rest is settings: mlxctl config list.",
    )
    parser.add_argument("--version", action="version", version=f"mlxd {__version__}")
    parser.add_argument("--config", type=Path, metavar="PATH", help="settings file, if not config.toml in MLXD_HOME")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="control socket, if not mlxd.sock in MLXD_HOME")
    parser.add_argument("--log-file", type=Path, metavar="PATH", help="log there, rotated by size, instead of stderr")
    given = parser.parse_args(arguments)
    home = Home.from_environment()
    return Options(
        home=home,
        config=home.config if given.config is None else given.config.absolute(),
        socket=home.socket if given.socket is None else given.socket.absolute(),
        log_file=given.log_file,
    )


@dataclass(frozen=True, slots=True)
class _Base:
    """What all other parts stand on: the settings, the time, who may call, and who is told what happens."""

    options: Options
    shutdown: Shutdown
    usable_bytes: int
    store: SettingsStore
    clock: LoopClock
    bus: Bus
    metrics: Metrics
    audit: AuditLog
    requests: RunningRequests
    api_keys: ApiKeys
    boot_id: str


@dataclass(frozen=True, slots=True)
class _Models:
    """The models of this machine."""

    catalog: Catalog
    crashes: CrashLog
    device: Device
    pool: Pool


@dataclass(frozen=True, slots=True)
class _Cloud:
    """The models of others."""

    secrets: Secrets
    router: Router
    upstreams: Upstreams


async def _run(options: Options, lock: InstanceLock) -> int:
    """Build, listen, wait for the wish to end, drain, close in the reverse order of building."""
    shutdown = Shutdown()
    shutdown.take_signals(asyncio.get_running_loop())
    async with AsyncExitStack() as stack:
        # First, so that beside another daemon, whose lock was deleted, nothing of the home is touched.
        listening = stack.enter_context(contextlib.closing(ListeningSocket(options.socket)))
        base = await _open_base(stack, options, shutdown)
        models = await _open_models(stack, base)
        cloud = await _open_cloud(stack, base, models.catalog)
        app = _make_app(base, models, cloud)
        http = HttpServer(app, base.store.current.http, clock=base.clock, has_keys=lambda: base.api_keys.is_required)
        operations = Operations(base.bus, base.boot_id)
        control = _make_control(base, models, cloud, http, operations)
        sync = _attach(base, models, cloud, http)
        # Before anybody can ask for a model; the first time that a model is seen, it takes a process to know its KV.
        await _find_models(models)

        stack.callback(listening.close)  # before the rest: mlxctl should find nobody
        stack.push_async_callback(control.close)
        await control.start(listening.socket)
        stack.push_async_callback(operations.close)
        stack.push_async_callback(http.close)
        await http.start()
        await models.pool.start()
        stack.callback(end_at_last, _CLOSE_S, _warm_up(models.device), shutdown)
        watches = sync.watch(), Presence(lock, listening, control, shutdown.ask).watch()
        _watch(stack, base, models.pool, app, watches)
        await shutdown.wait()
        await _drain(base, models.pool)
    return shutdown.exit_status


async def _open_base(stack: AsyncExitStack, options: Options, shutdown: Shutdown) -> _Base:
    usable_bytes = usable_memory_bytes(recommended_working_set_bytes())
    store = SettingsStore(options.config, options.home.history, usable_bytes, validate=cross_check)
    log.configure(store.current.daemon.log_level, options.log_file)
    if store.problem is not None:
        _log.error("%s; the defaults hold until it is fixed", store.problem.message)
    bus, metrics, clock = Bus(), Metrics(), LoopClock(asyncio.get_running_loop())
    audit = await stack.enter_async_context(AuditLog(options.home.audit, store.current.audit, bus.publish))
    metrics.watch_audit(audit.status)
    requests = RunningRequests(on_event=lambda event: relay_request_event(bus, event))
    api_keys = await ApiKeys(AtomicFile(options.home.api_keys), clock.now).open()
    boot_id = uuid.uuid4().hex
    return _Base(options, shutdown, usable_bytes, store, clock, bus, metrics, audit, requests, api_keys, boot_id)


async def _open_models(stack: AsyncExitStack, base: _Base) -> _Models:
    home, settings = base.options.home, base.store.current
    catalog = Catalog(
        resolve_roots(settings.catalog.paths, home),
        home.models,
        adapter_paths(settings, home),
        KvShapes(AtomicFile(home.cache / "kv.json")),
    )
    crashes = CrashLog(AtomicFile(home.state), LoadMarks(home.loading, base.boot_id))
    await crashes.open()
    device = Device(
        asyncio.get_running_loop(),
        BackendLimits(memory_bytes=settings.pool.memory, cache_bytes=0),
        scheduling_params(settings),
        lambda error: _on_device_failed(base.requests, base.shutdown, error),
        crashes.marks.working_on,
    )
    stack.push_async_callback(device.close)

    def on_event(event: PoolEvent) -> None:
        relay_pool_event(base.bus, event)
        base.metrics.take_pool_event(event)

    pool = Pool(
        device,
        catalog,
        settings,
        clock=base.clock,
        usable_bytes=base.usable_bytes,
        on_event=on_event,
        noted=crashes.noted,
    )
    stack.push_async_callback(pool.close)
    # Before both: where a read of weights hangs, they wait for the device, and this daemon still ends in order.
    stack.push_async_callback(lambda: crashes.close(has_failed=base.shutdown.exit_status != EXIT_OK))
    return _Models(catalog, crashes, device, pool)


async def _open_cloud(stack: AsyncExitStack, base: _Base, catalog: Catalog) -> _Cloud:
    secrets = Secrets(os.environ, base.options.home.root)
    router = Router(base.store, catalog.has, catalog.alias_target, secrets)
    session = await stack.enter_async_context(open_session())
    budget = await stack.enter_async_context(Budget(AtomicFile(base.options.home.cloud_day), time.time))
    return _Cloud(secrets, router, Upstreams(session, secrets, Breakers(base.clock.now), budget, base.store))


def _make_app(base: _Base, models: _Models, cloud: _Cloud) -> web.Application:
    return make_app(
        AppContext(
            models.pool,
            models.catalog,
            cloud.router,
            cloud.upstreams,
            base.requests,
            base.store,
            base.clock,
            base.api_keys,
            base.metrics,
            Intake(lambda: base.store.current.http.bodies_memory, base.clock),
            on_ended=base.audit.note_request,
        )
    )


def _make_control(
    base: _Base, models: _Models, cloud: _Cloud, http: HttpServer, operations: Operations
) -> ControlServer:
    options = base.options

    def http_state() -> HttpState:
        state = http.state
        return HttpState(None if state.address is None else f"http://{state.address}", state.reason, http.is_loopback)

    info = DaemonInfo(
        version=__version__,
        boot_id=base.boot_id,
        pid=os.getpid(),
        home=options.home,
        http=http_state,
        usable_bytes=base.usable_bytes,
        socket=options.socket,
        log=options.log_file,
    )
    return ControlServer(
        ControlContext(
            info,
            base.store,
            models.pool,
            models.catalog,
            base.requests,
            cloud.router,
            cloud.upstreams,
            cloud.secrets,
            Keys(options.home.secrets),
            operations,
            base.bus,
            models.crashes,
            base.api_keys,
            base.audit,
            base.shutdown.ask,
        )
    )


def _attach(base: _Base, models: _Models, cloud: _Cloud, http: HttpServer) -> CatalogSync:
    """Let those who own a group of settings take part in its changes; return the one that also follows files."""
    store, pool = base.store, models.pool
    sync = CatalogSync(models.catalog, pool, base.options.home, store.current)
    attach = store.participants.attach
    attach("pool", Participant(check=pool.check, plan=pool.plan, apply=pool.apply))
    attach("catalog", Participant(sync.groups, sync.check, None, sync.prepare, sync.abandon, sync.apply))
    attach("cloud", Participant(["cloud"], check=cloud.router.check))
    attach("http", Participant(["http"], http.check, http.plan, http.prepare, http.abandon, http.apply))
    attach("audit", Participant(["audit"], apply=base.audit.apply))
    attach("log", Participant(["daemon"], apply=log.apply))
    store.subscribe(lambda event: relay_store_event(base.bus, event))
    store.subscribe(lambda event: note_settings(base.audit, event))
    return sync


async def _find_models(models: _Models) -> None:
    """Read the catalog, and have the pool refuse the models whose loads killed daemons."""
    await models.catalog.rescan()
    for entry in models.catalog.entries():
        refusal = models.crashes.refusal(entry)
        if refusal is not None and entry.problem is None:
            models.pool.refuse(entry.id, refusal)


def _warm_up(device: Device) -> Callable[[], bool]:
    """Have MLX imported; return what tells whether that still goes on."""
    is_warm = threading.Event()

    def on_warm() -> None:
        raise_open_files()  # again: mlx-lm lowers the bound when it is imported
        is_warm.set()

    device.warm_up(on_warm)
    return lambda: not is_warm.is_set()


def _watch(
    stack: AsyncExitStack, base: _Base, pool: Pool, app: web.Application, watches: Iterable[Coroutine[Any, Any, None]]
) -> None:
    """Follow the settings file, also at SIGHUP, the memory, and what *watches* look at, until the end."""
    store, loop = base.store, asyncio.get_running_loop()
    store.subscribe(lambda _: app[RESPONSES].trim())
    store.subscribe(lambda _: app[CONTEXT].intake.pump())
    memory_watch = watch_memory_pressure(lambda sample: pool.report_pressure(sample.shortage, sample.spare_bytes))
    for watch in (store.watch(), memory_watch, *watches):
        _keep_watching(stack, watch)
    loop.add_signal_handler(signal.SIGHUP, lambda: loop.create_task(store.follow()))


def _keep_watching(stack: AsyncExitStack, watch: Coroutine[Any, Any, None]) -> None:
    """Run *watch* until the end; should it fail, the daemon serves on without it, and the log says so."""
    task = asyncio.get_running_loop().create_task(watch)
    task.add_done_callback(_on_watch_ended)
    stack.callback(task.cancel)


def _on_watch_ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("%r has ended; mlxctl restart begins it again", task.get_coro(), exc_info=error)


def _on_device_failed(requests: RunningRequests, shutdown: Shutdown, error: MlxdError) -> None:
    """End the daemon; from this moment on `/ready` says so."""
    requests.close()
    shutdown.fail(error)


async def _drain(base: _Base, pool: Pool) -> None:
    """Refuse what is new, let what runs end, and cancel the rest after `daemon.drain_timeout` or at a hurry."""
    requests, timeout_s = base.requests, base.store.current.daemon.drain_timeout
    _log.info("shutting down: %s to end within %g s", count(len(requests.list()), "request"), timeout_s)
    base.bus.publish("daemon.stopping", {"requests": len(requests.list()), "timeout_ms": round(1000 * timeout_s)})
    requests.close()
    drained: asyncio.Future[Any] = asyncio.gather(pool.drain(timeout_s), requests.wait_idle())
    hurried: asyncio.Future[Any] = asyncio.ensure_future(base.shutdown.wait_hurried())
    await asyncio.wait({drained, hurried}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    cancelled = requests.cancel_all("the daemon is shutting down")
    if cancelled:
        _log.warning("cancelled %s that had not ended", count(cancelled, "request"))
    # Their handlers write the error event and go; a client that does not read it is not waited for.
    await asyncio.wait({drained}, timeout=_GRACE_S)
    drained.cancel()
