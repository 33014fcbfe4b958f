"""Decide who may call: Host against DNS rebinding, Origin against web pages, CORS for the allowed ones, API keys.

Runs before any route, so that nothing is parsed or loaded for a caller that is turned away.
"""

from __future__ import annotations

import ipaddress
import urllib.parse
from collections.abc import Iterable

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from mlxd.apikey import ApiKeys
from mlxd.http.context import CONTEXT
from mlxd.http.exchange import EXCHANGE
from mlxd.http.health import PROBES
from mlxd.protocol.errors import Forbidden

_EXPOSED = (
    "x-request-id, request-id, x-mlxd-route, x-mlxd-model, x-mlxd-rule, x-mlxd-target, x-mlxd-reason, x-mlxd-attempts, "
    "x-mlxd-ignored-fields, x-mlxd-tool-format, "
    "retry-after, x-should-retry"
)
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PREFLIGHT_AGE_S = 600


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let the request through, answer a preflight, or raise.

    Raises:
        Forbidden: the Host or the Origin is not allowed.
        Unauthenticated: there are API keys, and the request has none of them.
        RateLimited: its key has sent too many.
        FileInvalid: the daemon came up without its settings, or its API keys cannot be read.
    """
    context = request.app[CONTEXT]
    store = context.store
    http = store.current.http
    at = _address_at(request)
    if not is_allowed_host(request.headers.get(hdrs.HOST, ""), http.allowed_hosts, at):
        raise Forbidden(
            f"the host {request.headers.get(hdrs.HOST, '')[:100]!r} is not allowed",
            hint="mlxctl config set http.allowed_hosts=NAME",
        )
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None:
        if origin not in http.allowed_origins:
            raise Forbidden(
                f"the origin {origin[:100]!r} is not allowed", hint="mlxctl config set http.allowed_origins=ORIGIN"
            )
        if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            return _preflight(request)
    if request.path not in PROBES:
        # The server does not listen elsewhere then; this holds when both are changed at the same moment.
        if not (context.api_keys.is_required or http.allow_open or at is None or at.is_loopback):
            raise Forbidden(f"there is no API key, and {at} is not loopback", hint="mlxctl apikey create NAME")
        _check_key(request, context.api_keys)
    if store.has_booted_invalid and store.problem is not None and request.path not in PROBES:
        raise store.problem
    return await handler(request)


def _check_key(request: web.Request, api_keys: ApiKeys) -> None:
    """Note whose request it is; what a model answers counts against the key's rate."""
    kind, _, bearer = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    secret = bearer.strip() if kind.lower() == "bearer" else request.headers.get("x-api-key")
    key = api_keys.authenticate(secret)
    request[EXCHANGE].api_key = key
    if key is not None and request.method == hdrs.METH_POST:
        api_keys.spend(key)


def _address_at(request: web.Request) -> _Address | None:
    """Return the address of this machine that the client has connected to."""
    name = None if request.transport is None else request.transport.get_extra_info("sockname")
    return ipaddress.ip_address(name[0].partition("%")[0]) if isinstance(name, tuple) else None


def is_allowed_host(host: str, allowed: Iterable[str], at: _Address | None = None) -> bool:
    """Tell whether a Host header names this machine's loopback, an *allowed* name or the address *at*, with any port.

    An address in numbers is no rebound name.
    """
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    if name is None:
        return False
    if name == "localhost" or name in {entry.lower() for entry in allowed}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address == at


def cors_headers(request: web.Request) -> dict[str, str]:
    """Return the headers that let an allowed page read the answer; none for anybody else."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or origin not in request.app[CONTEXT].store.current.http.allowed_origins:
        return {}
    return {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
        hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _EXPOSED,
        hdrs.VARY: hdrs.ORIGIN,
    }


def _preflight(request: web.Request) -> web.Response:
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, DELETE",
        hdrs.ACCESS_CONTROL_ALLOW_HEADERS: request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, ""),
        hdrs.ACCESS_CONTROL_MAX_AGE: str(_PREFLIGHT_AGE_S),
    }
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)
