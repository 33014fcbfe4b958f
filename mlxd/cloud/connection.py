"""One request to one target: sent, and its answer read. The one place where what aiohttp's client raises is mapped.

Of the client's headers those of the errand are passed on: no Authorization, no cookies, no hop headers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import aiohttp

import mlxd
from mlxd.cloud import mask
from mlxd.cloud.attempt import REFUSED_KEY
from mlxd.cloud.errand import Errand
from mlxd.cloud.protocol import Protocol
from mlxd.cloud.protocol.base import parse
from mlxd.cloud.router import CloudRoute
from mlxd.cloud.sse import LAST, Event, EventCutter
from mlxd.engine.base import Usage
from mlxd.protocol.errors import (
    AuthFailed,
    StreamInterrupted,
    UpstreamBroke,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)

_MAX_BODY_BYTES = 64 << 20
_SHOWN_CHARACTERS = 300
_JSON = "application/json"
_EVENTS = "text/event-stream"
# Shorter than the keep-alive of common servers (5 s): a connection that they close just then would fail a request.
_IDLE_CONNECTION_S = 4
# How long the end of a connection's answer may take after the end of a stream.
_DRAIN_S = 0.5
# What an answer has, be it that of a response which has failed; an error alone has none of them.
_ANSWERING = ("id", "choices", "content", "output", "data")
# More than a day is no pause; digits without end would be infinity.
_MOST_RETRY_S = 86_400.0


def open_session() -> aiohttp.ClientSession:
    """Return the session that upstreams are called with; its owner closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_CONNECTION_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Identity: a compressing upstream would hold events back.
        headers={"User-Agent": f"mlxd/{mlxd.__version__}", "Accept-Encoding": "identity"},
    )


@asynccontextmanager
async def post(
    session: aiohttp.ClientSession,
    route: CloudRoute,
    protocol: Protocol,
    endpoint: str,
    body: bytes,
    *,
    secret: str | None,
    errand: Errand,
    passed: Mapping[str, str],
) -> AsyncIterator[Reply]:
    """Send *body* and yield the answer's head; leaving the context closes what is still open of the connection.

    Args:
        session: from `open_session`.
        route: whose provider is asked.
        protocol: that the provider speaks.
        endpoint: the path under the base address.
        body: as the upstream takes it.
        secret: the provider's key.
        errand: that the body is of; one for a stream has to begin soon, a whole answer may take long.
        passed: headers of the client that belong to the body; they go before the protocol's own.

    Raises:
        UpstreamUnreachable: nothing was sent.
        UpstreamBroke, UpstreamTimeout: the request may have been sent, and there will be no answer.
    """
    timeouts = route.provider.timeouts
    headers = {
        "Content-Type": _JSON,
        "Accept": _EVENTS if errand.wants_stream else _JSON,
        "Via": ", ".join(["1.1 mlxd"] * errand.hops),
        **protocol.headers(secret),
        **passed,
    }
    started_s = asyncio.get_running_loop().time()
    until_s = (
        started_s + min(timeouts.first_token, timeouts.total) if errand.wants_stream else started_s + timeouts.total
    )
    with _mapped(route):
        async with asyncio.timeout_at(until_s):
            response = await session.post(
                f"{route.provider.base_url}/{endpoint}",
                data=body,
                headers=headers,
                proxy=route.provider.proxy,
                allow_redirects=False,  # the key goes to the address that was configured
                timeout=aiohttp.ClientTimeout(total=None, connect=timeouts.connect),
            )
    try:
        yield Reply(response, route, protocol, started_s, secret)
    finally:
        response.close()


class Reply:
    """An upstream's answer: whole, or a stream of events."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        route: CloudRoute,
        protocol: Protocol,
        started_s: float,
        secret: str | None,
    ) -> None:
        """Made by `post` only."""
        self._response = response
        self._route = route
        self._protocol = protocol
        self._started_s = started_s
        self._secret = secret
        self._cutter = EventCutter()
        self._is_answering = False
        self._alive_s = started_s  # when the last event came, or comment: thoughts that are not told come with those
        self._unfinished: frozenset[int] | None = None  # answers of a stream that have begun and not ended
        self.status = response.status
        self.usage: Usage | None = None
        self.is_whole = False  # the answer has come to its end, so that `usage` is all of it
        self.failed: str | None = None  # the words of an error that came after content
        self._kind = response.content_type
        self.is_stream = response.status == 200 and self._kind == _EVENTS

    @property
    def retry_after_s(self) -> float | None:
        """What the upstream says of when to come back."""
        value = self._response.headers.get("Retry-After", "")
        return min(float(value), _MOST_RETRY_S) if value.isdecimal() else None

    def failure(self, body: bytes) -> UpstreamError | AuthFailed:
        """Return the error that an answer without success is, in the upstream's words where it has any.

        Its status stands in `data`; words that repeat the key are dropped, and a page is no words.
        """
        target = self._route.target
        if self.status in REFUSED_KEY:
            return AuthFailed(
                f"{target} refused the key of provider {self._route.provider_id!r} with status {self.status}",
                hint="mlxctl cloud provider list",
                data={"target": target, "status": self.status},
            )
        parsed = parse(body)
        words = self._protocol.error_of(parsed) if parsed is not None else None
        if words is None:
            words = body.decode(errors="replace").strip()
        words = self._shown(words)
        data: dict[str, Any] = {"target": target}
        if 400 <= self.status < 600:  # a redirect is not followed, and is no answer; above there is no status
            data["status"] = self.status
        message = f"{target} answered with status {self.status}" + (f": {words}" if words else "")
        return UpstreamError(message, data=data, retry_after_s=self.retry_after_s)

    def _shown(self, words: str) -> str:
        """Return the beginning of an upstream's words, or nothing where any part of them repeats the key."""
        return "" if mask.holds(words.encode(errors="replace"), self._secret) else words[:_SHOWN_CHARACTERS]

    def _error(self, words: str) -> UpstreamError:
        """Return the error that stands in an answer with a status of success."""
        target = self._route.target
        return UpstreamError(f"{target} answered with an error: {self._shown(words)}", data={"target": target})

    def mismatch(self) -> UpstreamError:
        """Return the error that a stream is where none was asked for, and a whole answer in the place of a stream."""
        target = self._route.target
        got, asked = ("a stream", "a whole answer") if self.is_stream else (f"{self._kind!r}", "a stream")
        return UpstreamError(f"{target} sent {got}, and {asked} was asked for", data={"target": target})

    def is_envelope(self, body: bytes) -> bool:
        """Tell whether an error's body may go to the client as it is: in the protocol's shape, and without the key."""
        if mask.holds(body, self._secret):
            return False
        return self._protocol.error_of(parse(body)) is not None

    async def read(self) -> bytes:
        """Return the whole body, and note its usage.

        Raises:
            UpstreamTimeout: the answer took longer than the total.
            UpstreamBroke: it broke off.
            UpstreamError: it is larger than any answer, no JSON, or an error.
        """
        with _mapped(self._route):
            async with asyncio.timeout_at(self._started_s + self._route.provider.timeouts.total):
                body = await _read(self._response, self._route.target)
        if 200 <= self.status < 300:
            parsed = parse(body)
            if parsed is None:
                raise UpstreamError(f"{self._route.target} answered with something that is no JSON object")
            words = self._protocol.error_of(parsed)
            if words is not None and not any(parsed.get(name) for name in _ANSWERING):
                raise self._error(words)
            self.usage = self._protocol.usage_of(parsed, None)
            self.is_whole = True
            return mask.masked(body, self._secret)
        return body

    async def events(self) -> AsyncIterator[list[tuple[Event, dict[str, Any] | None]]]:
        """Yield whole events with their data, in groups as they come; the first group ends with the first content.

        Raises:
            UpstreamTimeout, UpstreamBroke, UpstreamError: nothing has been yielded.
            StreamInterrupted: something has, and the rest does not come.
        """
        group: list[tuple[Event, dict[str, Any] | None]] = []
        while not self.is_whole and (chunk := await self._next_chunk()):
            for event in map(self._masked, self._cutter.feed(chunk)):
                self._alive_s = asyncio.get_running_loop().time()
                parsed = self._note(event)
                group.append((event, parsed))
                self.is_whole = self.is_whole or self._protocol.is_end(event, parsed)
            if group and self._is_answering:
                yield group
                group = []
        for event in self._cutter.close():
            group.append((event, None))
            self.is_whole = self.is_whole or self._protocol.is_end(event, None)
        if not self.is_whole and self._unfinished == frozenset():
            group.append((LAST, None))
            self.is_whole = True
        if not self.is_whole:
            message = f"{self._route.target} ended its stream before its answer was whole"
            raise StreamInterrupted(message) if self._is_answering else UpstreamBroke(message)
        if not self._is_answering:
            target = self._route.target
            raise UpstreamError(f"{target} ended its stream without an answer", data={"target": target})
        if group:
            yield group
        await self._drain()

    def _masked(self, event: Event) -> Event:
        """Return *event* without our key, which an upstream may repeat in its errors."""
        if not mask.holds(event.raw, self._secret):
            return event
        return Event(mask.masked(event.raw, self._secret), event.name, mask.masked(event.data, self._secret))

    async def _drain(self) -> None:
        """Read what comes after a stream's last event, so that the connection serves again; it is not waited for."""
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            async with asyncio.timeout(_DRAIN_S):
                async for chunk in self._response.content.iter_any():
                    if len(chunk) > _SHOWN_CHARACTERS:
                        return

    def _note(self, event: Event) -> dict[str, Any] | None:
        """Look at an event; raise for an error that comes before any content."""
        parsed = parse(event.data) if event.data.startswith(b"{") else None
        if parsed is None:
            return None
        words = self._protocol.error_of(parsed)
        if words is not None and not self._is_answering:
            raise self._error(words)
        if self.failed is None:
            self.failed = words
        self.usage = self._protocol.usage_of(parsed, self.usage)
        self._is_answering = self._is_answering or self._protocol.has_content(parsed)
        self._unfinished = self._protocol.unfinished(parsed, self._unfinished)
        return parsed

    async def _next_chunk(self) -> bytes:
        loop = asyncio.get_running_loop()
        timeouts = self._route.provider.timeouts
        until_s = loop.time() + timeouts.idle if self._is_answering else self._alive_s + timeouts.first_token
        try:
            with _mapped(self._route):
                async with asyncio.timeout_at(min(until_s, self._started_s + timeouts.total)):
                    return await self._response.content.readany()
        except (UpstreamBroke, UpstreamTimeout) as error:
            if not self._is_answering:
                raise
            raise StreamInterrupted(f"the answer broke off: {error.message}") from error


async def get_models(
    session: aiohttp.ClientSession, route: CloudRoute, protocol: Protocol, secret: str | None
) -> tuple[int, bytes]:
    """Ask for the list of models; return the answer's status and body.

    Raises:
        UpstreamUnreachable, UpstreamBroke, UpstreamTimeout: there is no answer.
    """
    timeouts = route.provider.timeouts
    until_s = asyncio.get_running_loop().time() + min(timeouts.first_token, timeouts.total)
    with _mapped(route):
        async with (
            asyncio.timeout_at(until_s),
            session.get(
                f"{route.provider.base_url}/models",
                headers={"Accept": _JSON, **protocol.headers(secret)},
                proxy=route.provider.proxy,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=timeouts.connect),
            ) as response,
        ):
            return response.status, await _read(response, route.provider_id)


async def _read(response: aiohttp.ClientResponse, sender: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise UpstreamError(f"{sender} sent more than {_MAX_BODY_BYTES >> 20} MiB")
    return bytes(body)


@contextmanager
def _mapped(route: CloudRoute) -> Iterator[None]:
    """Turn what aiohttp's client raises into ours."""
    target = route.target
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise UpstreamUnreachable(f"{target}: no connection to {route.provider.base_url} in time") from error
    except TimeoutError as error:
        raise UpstreamTimeout(f"{target} did not answer in time") from error
    except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError, aiohttp.InvalidURL) as error:
        way = "" if route.provider.proxy is None else f" by way of {route.provider.proxy}"
        raise UpstreamUnreachable(f"{target}: no connection to {route.provider.base_url}{way}: {error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamBroke(f"{target}: the connection broke: {str(error) or type(error).__name__}") from error
