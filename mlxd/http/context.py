"""The parts of the daemon that routes use. Owns nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from mlxd.apikey import ApiKeys
from mlxd.audit.record import RequestRecord
from mlxd.catalog import Catalog
from mlxd.clock import Clock
from mlxd.cloud.router import Router
from mlxd.cloud.upstream import Upstreams
from mlxd.http.intake import Intake
from mlxd.http.omissions import OmissionLog
from mlxd.metrics import Metrics
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import FileInvalid
from mlxd.protocol.settings import Settings
from mlxd.requests import RunningRequests


class LiveSettings(Protocol):
    """What the routes read of the settings store, at every request."""

    @property
    def current(self) -> Settings:
        """The snapshot in force."""

    @property
    def has_booted_invalid(self) -> bool:
        """Whether the daemon came up without its settings; it serves nothing until the file is fixed."""

    @property
    def problem(self) -> FileInvalid | None:
        """What is wrong with the file."""


@dataclass(frozen=True, slots=True)
class AppContext:
    """All collaborators of the routes."""

    pool: Pool
    catalog: Catalog
    router: Router
    upstreams: Upstreams
    requests: RunningRequests
    store: LiveSettings
    clock: Clock
    api_keys: ApiKeys
    metrics: Metrics
    intake: Intake
    omission_log: OmissionLog = field(default_factory=OmissionLog)
    now: Callable[[], float] = time.time  # unix time, for `created`
    on_ended: Callable[[RequestRecord], None] = lambda _: None  # told of each request that a model was to answer


CONTEXT = web.AppKey("mlxd_context", AppContext)
