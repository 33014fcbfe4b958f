"""What the routes are given, and what they note of each request. Owns nothing."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aiohttp import web

from mlxd.apikey import ApiKey, ApiKeys
from mlxd.audit.record import RequestRecord
from mlxd.catalog import Catalog
from mlxd.clock import Clock
from mlxd.cloud.attempt import Attempt
from mlxd.cloud.router import CloudRoute, Router
from mlxd.cloud.upstream import Answer, Upstreams
from mlxd.engine.base import Usage
from mlxd.http.intake import Intake
from mlxd.http.omissions import OmissionLog
from mlxd.metrics import Metrics
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import FileInvalid, MlxdError
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


@dataclass(slots=True)
class Tokens:
    """What a model of this machine has read and made for a request until now; *cached* of *prompt* was known."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(slots=True)
class Exchange:
    """What one request turned out to be; becomes response headers and the log line."""

    request_id: str
    api_key: ApiKey | None = None  # whose request it is, where keys are needed
    endpoint: str | None = None  # of a route that a model answers: its path under /v1
    asked: str | None = None  # the model as the client calls it
    route: str | None = None
    model: str | None = None
    rule: str | None = None
    target: str | None = None
    reason: str | None = None  # the local failure after which the cloud was asked
    attempts: list[Attempt] = field(default_factory=list)
    ignored: Collection[str] = ()  # what is left out of the body
    tool_format: str | None = None  # of the local model, where the request has tools
    noise_removed: Mapping[str, int] = field(default_factory=dict)  # rule → pieces, from a prompt of this machine
    clock: Callable[[], float] = time.monotonic
    first_token_at_s: float | None = None  # of that clock
    number: int | None = None  # its place among the running requests
    tokens: Tokens | None = None  # of the local answer
    answer: Answer | None = None  # of an upstream
    error: MlxdError | None = None  # what the client was told last, also within its stream
    http_status: int | None = None  # that was sent

    def note_cloud(self, route: CloudRoute, reason: str | None) -> None:
        """Note that upstreams are asked, *route* first, after the local failure *reason* if there was one."""
        self.route, self.model, self.rule, self.target = "cloud", route.model, route.rule_id, route.target
        self.reason = reason
        self.ignored, self.noise_removed = (), {}  # a cloud is given all of it
        self.tool_format = None
        self.first_token_at_s = None  # of a local answer that came to nothing

    def note_answer(self, answer: Answer) -> None:
        """Note who answers after all."""
        self.answer = answer
        if answer.body is None:
            self.first_token_at_s = self.clock()  # a stream is handed out with its first content
        self.model, self.target = answer.route.model, answer.route.target
        self.ignored = answer.left_out

    def note_ignored(self, names: Collection[str]) -> None:
        """Note what the local model cannot act upon, besides what was left out of the body."""
        self.ignored = tuple(dict.fromkeys((*self.ignored, *names)))

    def note_error(self, error: MlxdError) -> None:
        """Note what the client is told, and forget where it was raised: the frames hold bodies, parsed and rendered."""
        self.error = error
        error.__traceback__ = error.__context__ = error.__cause__ = None

    def note_first_token(self) -> None:
        """Note that the local model has made a token; the first one counts."""
        if self.first_token_at_s is None:
            self.first_token_at_s = self.clock()

    @property
    def usage(self) -> Usage | None:
        """The tokens of the answer, as far as it came; None where nobody has counted."""
        if self.answer is not None:
            return self.answer.usage
        if self.tokens is None or self.route == "cloud":
            return None
        return Usage(self.tokens.prompt, self.tokens.cached, self.tokens.completion)

    def headers(self) -> dict[str, str]:
        """Return the headers that every answer to the request carries."""
        shown = {
            "x-request-id": self.request_id,
            "request-id": self.request_id,  # as Anthropic calls it
            "x-mlxd-route": self.route,
            "x-mlxd-model": self.model,
            "x-mlxd-rule": self.rule,
            "x-mlxd-target": self.target,
            "x-mlxd-reason": self.reason,
            "x-mlxd-attempts": str(len(self.attempts)) if self.attempts else None,
            "x-mlxd-ignored-fields": ", ".join(self.ignored) or None,
            "x-mlxd-tool-format": self.tool_format,
        }
        return {name: _header_text(value) for name, value in shown.items() if value is not None}


CONTEXT = web.AppKey("mlxd_context", AppContext)
EXCHANGE = web.RequestKey("mlxd_exchange", Exchange)


def _header_text(value: str) -> str:
    """Return *value* as a header may carry it: names come from clients and disks, and hold anything."""
    return urllib.parse.quote(value, safe=_HEADER_SAFE)
