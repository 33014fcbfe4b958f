"""What the routes are given, and what they note of each request. Owns nothing."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from mlxd.catalog import Catalog
from mlxd.cloud.providers.openai import OpenAIProvider
from mlxd.cloud.router import CloudRoute, Router
from mlxd.pool.clock import Clock
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import FileInvalid
from mlxd.protocol.settings import Settings
from mlxd.requests import RunningRequests

_HEADER_SAFE = "!#$%&'()*+,/:;<=>?@[]^`{|}~ "


class LiveSettings(Protocol):
    """What the routes read of the settings store, at every request."""

    @property
    def current(self) -> Settings:
        """The snapshot in force."""

    @property
    def has_booted_invalid(self) -> bool:
        """Whether the daemon came up without its settings; it serves nothing until the file is mended."""

    @property
    def problem(self) -> FileInvalid | None:
        """What is wrong with the file."""


@dataclass(frozen=True, slots=True)
class AppContext:
    """All collaborators of the routes."""

    pool: Pool
    catalog: Catalog
    router: Router
    provider: OpenAIProvider
    requests: RunningRequests
    store: LiveSettings
    clock: Clock
    now: Callable[[], float] = time.time  # unix time, for `created`


@dataclass(slots=True)
class Exchange:
    """What one request turned out to be; becomes response headers and the log line."""

    request_id: str
    route: str | None = None
    model: str | None = None
    rule: str | None = None
    target: str | None = None
    ignored: tuple[str, ...] = ()

    def note_local(self, model: str) -> None:
        """Note that a model of this machine answers."""
        self.route, self.model = "local", model

    def note_cloud(self, route: CloudRoute) -> None:
        """Note that an upstream answers."""
        self.route, self.model, self.rule, self.target = "cloud", route.model, route.rule_id, route.target

    def headers(self) -> dict[str, str]:
        """Return the headers that every answer to the request carries."""
        shown = {
            "x-request-id": self.request_id,
            "request-id": self.request_id,  # as Anthropic calls it
            "x-mlxd-route": self.route,
            "x-mlxd-model": self.model,
            "x-mlxd-rule": self.rule,
            "x-mlxd-target": self.target,
            "x-mlxd-ignored-fields": ", ".join(self.ignored) or None,
        }
        return {name: _header_text(value) for name, value in shown.items() if value is not None}


CONTEXT = web.AppKey("mlxd_context", AppContext)
EXCHANGE = web.RequestKey("mlxd_exchange", Exchange)


def _header_text(value: str) -> str:
    """Return *value* as a header may carry it: names come from clients and disks, and hold anything."""
    return urllib.parse.quote(value, safe=_HEADER_SAFE)
