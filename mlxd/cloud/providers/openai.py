"""OpenAI's wire protocol, spoken to an upstream: the client's own body, our key, foreign exceptions turned into ours.

Nothing of the client's headers is passed on: no Authorization, no cookies, no hop headers. The one place where what
aiohttp's client raises is mapped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
import orjson

import mlxd
from mlxd.cloud.router import CloudRoute
from mlxd.cloud.secret import read_secret
from mlxd.cloud.splice import replace_model
from mlxd.cloud.sse import EventCutter
from mlxd.protocol.errors import (
    AuthFailed,
    CloudError,
    StreamInterrupted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)

_MAX_BODY_BYTES = 64 << 20
_SHOWN_BYTES = 200
_PASSED_ON = ("Content-Type", "Retry-After")
_JSON = "application/json"
_EVENTS = "text/event-stream"
# Shorter than the keep-alive of common servers (5 s): a connection that they close just then would fail a request.
_IDLE_CONNECTION_S = 4


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long an upstream may take."""

    connect_s: float = 5
    first_token_s: float = 45  # of a stream; a whole answer has until the total
    idle_s: float = 60  # between two pieces of a stream
    total_s: float = 900


def open_session() -> aiohttp.ClientSession:
    """Return the session that upstreams are called with; its owner closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_CONNECTION_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Identity: a compressing upstream would hold events back.
        headers={"User-Agent": f"mlxd/{mlxd.__version__}", "Accept-Encoding": "identity"},
    )


class OpenAIProvider:
    """Sends requests to upstreams that speak OpenAI's protocol."""

    def __init__(
        self, session: aiohttp.ClientSession, environ: Mapping[str, str], timeouts: Timeouts | None = None
    ) -> None:
        """Take the connections and the environment that keys are read from, at every request."""
        self._session = session
        self._environ = environ
        self._timeouts = Timeouts() if timeouts is None else timeouts

    @asynccontextmanager
    async def post(
        self, route: CloudRoute, endpoint: str, raw: bytes, *, wants_stream: bool, hops: int
    ) -> AsyncIterator[Reply]:
        """Send *raw* with the route's model in it; leaving the context closes what is still open of the connection.

        Args:
            route: from the router.
            endpoint: the path under the base address.
            raw: the client's body, which is passed on as it is but for the model.
            wants_stream: whether the body asks for a stream, which has to begin soon; a whole answer may take long.
            hops: how many mlxd the request will have passed, this one included.

        Raises:
            SecretMissing: before anything is sent.
            UpstreamUnreachable, UpstreamTimeout, AuthFailed, UpstreamError: there will be no answer.
        """
        secret = read_secret(route.provider_id, route.provider.auth, self._environ)
        headers = {
            "Content-Type": _JSON,
            "Accept": _EVENTS if wants_stream else _JSON,
            "Via": ", ".join(["1.1 mlxd"] * hops),
        }
        if secret is not None:
            headers["Authorization"] = f"Bearer {secret}"
        body = replace_model(raw, route.model)
        started_s = asyncio.get_running_loop().time()
        until_s = started_s + (self._timeouts.first_token_s if wants_stream else self._timeouts.total_s)
        with _mapped(route):
            async with asyncio.timeout_at(until_s):
                response = await self._session.post(
                    f"{route.provider.base_url}/{endpoint}",
                    data=body,
                    headers=headers,
                    allow_redirects=False,  # the key goes to the address that was configured
                    timeout=aiohttp.ClientTimeout(total=None, connect=self._timeouts.connect_s),
                )
        try:
            reply = Reply(response, route, self._timeouts, started_s)
            await reply.raise_for_status(secret)
            yield reply
        finally:
            response.close()


class Reply:
    """An upstream's answer: whole, or a stream of events."""

    def __init__(
        self, response: aiohttp.ClientResponse, route: CloudRoute, timeouts: Timeouts, started_s: float
    ) -> None:
        """Made by `OpenAIProvider.post` only."""
        self._response = response
        self._route = route
        self._timeouts = timeouts
        self._started_s = started_s
        self.status = response.status
        self.headers = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
        self.is_stream = response.status == 200 and response.content_type == _EVENTS
        self._body: bytes | None = None

    async def raise_for_status(self, secret: str | None) -> None:
        """Let success and errors in OpenAI's envelope through; those go back to the client as they are.

        Raises:
            AuthFailed: our key was refused; the upstream's words may quote it and are dropped.
            UpstreamError: any other answer that a client of ours could not read.
        """
        if 200 <= self.status < 300:
            return
        if self.status in {401, 403}:
            target = self._route.target
            raise AuthFailed(
                f"{target} refused the key of provider {self._route.provider_id!r} with status {self.status}",
                hint="mlxctl cloud provider list",
            )
        body = await self.read()
        if secret is not None and secret.encode() in body:
            raise self.as_error(b"")
        if self.status < 400 or not _is_envelope(body):
            raise self.as_error(body)
        self._body = body

    def as_error(self, body: bytes) -> UpstreamError:
        """Return an error of ours that quotes the beginning of *body*, and has the upstream's status if that is one."""
        words = body[:_SHOWN_BYTES].decode(errors="replace").strip()
        data: dict[str, str | int] = {"target": self._route.target}
        if self.status >= 400:  # a redirect is not followed, and is no answer
            data["status"] = self.status
        retry_after = self.headers.get("Retry-After", "")
        return UpstreamError(
            f"{self._route.target} answered with status {self.status}" + (f": {words}" if words else ""),
            data=data,
            retry_after_s=float(retry_after) if retry_after.isdecimal() else None,
        )

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            UpstreamTimeout: the answer took longer than the total.
            UpstreamError, UpstreamUnreachable: it broke off, or is larger than any answer.
        """
        if self._body is not None:
            return self._body
        body = bytearray()
        with _mapped(self._route):
            async with asyncio.timeout_at(self._started_s + self._timeouts.total_s):
                async for chunk in self._response.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_BODY_BYTES:
                        raise UpstreamError(f"{self._route.target} sent more than {_MAX_BODY_BYTES >> 20} MiB")
        return bytes(body)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield whole events as they come, from the first that has data; comments before it are dropped.

        Raises:
            UpstreamTimeout, UpstreamUnreachable, UpstreamError: nothing has been yielded.
            StreamInterrupted: something has, and the rest does not come.
        """
        cutter = EventCutter()
        while chunk := await self._next_chunk(cutter):
            whole = cutter.feed(chunk)
            if whole and cutter.has_data:
                yield whole
        rest = cutter.close()
        if rest:
            yield rest
        if not cutter.is_complete:
            message = f"{self._route.target} ended its stream before its answer was whole"
            raise StreamInterrupted(message) if cutter.has_data else UpstreamUnreachable(message)

    async def _next_chunk(self, cutter: EventCutter) -> bytes:
        loop = asyncio.get_running_loop()
        times = self._timeouts
        until_s = loop.time() + times.idle_s if cutter.has_data else self._started_s + times.first_token_s
        try:
            with _mapped(self._route):
                async with asyncio.timeout_at(min(until_s, self._started_s + times.total_s)):
                    return await self._response.content.readany()
        except CloudError as error:
            if not cutter.has_data:
                raise
            raise StreamInterrupted(f"the answer broke off: {error.message}") from error


def _is_envelope(body: bytes) -> bool:
    """Tell whether an error body is one that clients of OpenAI's API can read."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return isinstance(parsed, dict) and isinstance(parsed.get("error"), dict)


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
    except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
        raise UpstreamUnreachable(f"{target}: no connection to {route.provider.base_url}: {error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamUnreachable(f"{target}: the connection broke: {str(error) or type(error).__name__}") from error
