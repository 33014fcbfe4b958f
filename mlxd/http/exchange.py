"""The facts about one request: noted by all that it goes through, and told in headers and logs."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

from aiohttp import web

from mlxd.apikey import ApiKey
from mlxd.audit.record import RequestRecord, RequestStatus
from mlxd.cloud.attempt import Attempt
from mlxd.cloud.router import CloudRoute
from mlxd.cloud.upstream import Answer
from mlxd.engine.base import Usage
from mlxd.protocol.errors import (
    FirstTokenTimeout,
    LoadTimeout,
    MlxdError,
    QueueTimeout,
    RequestCancelled,
    UpstreamError,
    UpstreamTimeout,
)

_HEADER_SAFE = "!#$%&'()*+,/:;<=>?@[]^`{|}~ "
_TIMEOUTS = frozenset(kind.code for kind in (QueueTimeout, LoadTimeout, FirstTokenTimeout, UpstreamTimeout))


@dataclass(slots=True)
class Tokens:
    """What a model of this machine has read and made for a request until now; *cached* of *prompt* was known."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(slots=True)
class Exchange:
    """What one request turned out to be; becomes response headers, the log line and a row of the request log."""

    request_id: str
    clock: Callable[[], float] = time.monotonic
    started_s: float = 0.0  # of that clock
    started_ms: int = 0  # unix time
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
        # Names come from clients and disks, and hold anything.
        quote = partial(urllib.parse.quote, safe=_HEADER_SAFE)
        return {name: quote(value) for name, value in shown.items() if value is not None}

    @property
    def first_token_s(self) -> float | None:
        """How long the first token took; None where none came."""
        return None if self.first_token_at_s is None else self.first_token_at_s - self.started_s

    def way(self) -> str:
        """Return who answered, for the log line: by which rule, after which local failure, at which attempt."""
        if self.model is None:
            return ""
        words = f", model {self.model} ({self.target or self.route})"
        if self.rule is not None:
            words += f", rule {self.rule}" + ("" if self.reason is None else f" after {self.reason}")
        tried = [f"{attempt.target} {attempt.code or attempt.status}" for attempt in self.attempts]
        return words + (f", tried {', '.join(tried)}" if tried else "")

    def record(self, *, has_ended: bool) -> RequestRecord:
        """Return the row of the request log; *has_ended* is whether the last byte is out, or the client went before."""
        ended_s = self.clock()
        status, code = self._judge(has_ended=has_ended)
        usage, first_s = self.usage, self.first_token_at_s
        return RequestRecord(
            request=self.request_id,
            started_ms=self.started_ms,
            endpoint=self.endpoint or "",
            route=self.route,
            asked=self.asked,
            model=self.asked if self.model is None else self.model,
            target=self.target,
            rule=self.rule,
            reason=self.reason,
            attempts=tuple(asdict(attempt) for attempt in self.attempts) or None,
            status=status,
            code=code,
            http_status=self.http_status,
            prompt_tokens=None if usage is None else usage.prompt_tokens,
            cached_tokens=None if usage is None else usage.cached_tokens,
            completion_tokens=None if usage is None else usage.completion_tokens,
            ttft_ms=None if first_s is None else _ms(first_s - self.started_s),
            duration_ms=_ms(ended_s - self.started_s),
            tokens_per_s=_speed(usage, first_s, ended_s),
            key=None if self.api_key is None else self.api_key.name,
            cost_micro_usd=None if self.answer is None else self.answer.cost_micro_usd,
            noise_removed=dict(self.noise_removed) or None,
            ignored=tuple(self.ignored) or None,
        )

    def _judge(self, *, has_ended: bool) -> tuple[RequestStatus, str | None]:
        """Return how it ended, and the code of its error."""
        error, answer = self.error, self.answer
        if error is not None:
            if isinstance(error, RequestCancelled):
                return RequestStatus.CANCELLED, error.code
            return RequestStatus.TIMEOUT if error.code in _TIMEOUTS else RequestStatus.ERROR, error.code
        if not has_ended:
            return RequestStatus.CANCELLED, None
        if answer is not None and (answer.status >= 400 or answer.failure is not None):
            return RequestStatus.ERROR, UpstreamError.code
        return RequestStatus.OK, None


EXCHANGE = web.RequestKey("mlxd_exchange", Exchange)


def _speed(usage: Usage | None, first_s: float | None, ended_s: float) -> float | None:
    """Return tokens per second after the first token; None where there were too few to tell."""
    if usage is None or first_s is None or usage.completion_tokens < 2 or ended_s <= first_s:
        return None
    return round((usage.completion_tokens - 1) / (ended_s - first_s), 2)


def _ms(seconds: float) -> int:
    return max(0, round(1000 * seconds))
