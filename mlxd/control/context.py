"""The request that a handler of a control operation gets, and the parts of the daemon that it may use."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxd.apikey import ApiKeys
from mlxd.audit import AuditLog
from mlxd.catalog import Catalog
from mlxd.cloud.key import Keys
from mlxd.cloud.router import Router
from mlxd.cloud.secret import Secrets
from mlxd.cloud.upstream import Upstreams
from mlxd.config import SettingsStore
from mlxd.control.bus import Bus
from mlxd.control.listen import NOBODY, Peer
from mlxd.control.operation import Operations
from mlxd.crash import CrashLog
from mlxd.pool.pool import Pool
from mlxd.protocol.paths import Home
from mlxd.requests import RunningRequests


@dataclass(frozen=True, slots=True)
class HttpState:
    """Where the HTTP server listens, and why not."""

    url: str | None
    problem: str | None
    is_loopback: bool = True  # nobody but this machine reaches it where it really listens


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """What the daemon says of itself.

    Attributes:
        version: of the running code.
        boot_id: another one after each start.
        pid: of the process.
        home: its folders.
        http: asked whenever somebody wants to know.
        started_s: unix time.
        started_monotonic_s: the same moment on the clock that nobody sets.
        usable_bytes: memory that models may use at most on this machine.
        socket: the control socket; None is the home's.
        log: the file it logs to; None is its stderr.
    """

    version: str
    boot_id: str
    pid: int
    home: Home
    http: Callable[[], HttpState]
    started_s: float = field(default_factory=time.time)
    started_monotonic_s: float = field(default_factory=time.monotonic)
    usable_bytes: int = 0
    socket: Path | None = None
    log: Path | None = None


@dataclass(frozen=True, slots=True)
class ControlContext:
    """All that control operations read and change."""

    info: DaemonInfo
    store: SettingsStore
    pool: Pool
    catalog: Catalog
    requests: RunningRequests
    router: Router
    upstreams: Upstreams
    secrets: Secrets
    keys: Keys
    operations: Operations
    bus: Bus
    crashes: CrashLog
    api_keys: ApiKeys
    audit: AuditLog
    on_stop: Callable[[bool], None]  # True: cancel the running requests; must return at once


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its params checked by the table of operations.

    Attributes:
        operation: its name, which the history of the settings has as the source.
        params: the known ones; optional ones that were left out are missing.
        dry: say what would happen.
        if_gen: refuse when the settings are of another generation.
        force: pass checks that can be passed.
        persist: False leaves the settings file alone; what changes is lost with the process.
        progress: sends a `prog` frame to the client.
        peer: the process that asks.
    """

    operation: str
    params: Mapping[str, Any]
    dry: bool
    if_gen: int | None
    force: bool
    persist: bool
    progress: Callable[[Mapping[str, Any]], Awaitable[None]]
    peer: Peer = NOBODY


Reply = dict[str, Any]
Handler = Callable[[ControlContext, Request], Awaitable[Reply]]


def handles(operation: str) -> Callable[[Handler], Handler]:
    """Mark a function as the handler of this operation, for `handlers.py`."""

    def mark(handler: Handler) -> Handler:
        vars(handler)["operation"] = operation
        return handler

    return mark
