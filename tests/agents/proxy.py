"""A proxy between a coding agent and the daemon: it writes down what passes, and makes a random model call tools.

A model without training never calls a tool by itself. So the proxy narrows the schema of a tool to constants, the same
ones in every request, and names the tool in `tool_choice` when its turn has come. All else passes as it is.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession, ClientTimeout, web
from aiohttp.web_runner import AppRunner, TCPSite

_HOP = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "content-encoding"})


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that the model is made to write."""

    tool: str
    arguments: dict[str, Any]

    @property
    def schema(self) -> dict[str, Any]:
        """The only arguments that are valid."""
        properties = {name: {"type": _kind(value), "enum": [value]} for name, value in self.arguments.items()}
        return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def _kind(value: object) -> str:
    return {str: "string", bool: "boolean", int: "integer"}.get(type(value), "array")


@dataclass
class Exchange:
    """One request and how it was answered."""

    step: str
    method: str
    path: str
    headers: dict[str, str]
    asked: Any  # the program's own body
    sent: Any  # as the daemon got it
    status: int = 0
    answer_headers: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""
    daemon: int = 0  # how often the daemon was started before


class Proxy:
    """What happens next, and what has passed."""

    def __init__(self, upstream: str) -> None:
        """Take the daemon's URL, without a path."""
        self.upstream = upstream
        self.url = ""
        self.seen: list[Exchange] = []
        self.called = 0  # of the step's calls, how many came back with a result
        self.has_seen_image = False  # in the step
        self._daemon = 0
        self._step = ""
        self._narrowed: dict[str, Call] = {}
        self._calls: Sequence[str] = ()
        self._base: int | None = None

    def begin(self, step: str, narrowed: Sequence[Call], calls: Sequence[str]) -> None:
        """Start a step, in which the model calls the tools named *calls*, one in each answer, and then writes text."""
        self._step, self._narrowed, self._calls, self._base = step, {call.tool: call for call in narrowed}, calls, None
        self.called, self.has_seen_image = 0, False

    def new_daemon(self) -> None:
        """Note that the daemon was started again: what it had cached is gone."""
        self._daemon += 1

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on, changed, and its answer back as it comes."""
        raw = await request.read()
        asked = json.loads(raw) if raw else None
        sent = self.changed(asked) if isinstance(asked, dict) else asked
        exchange = Exchange(self._step, request.method, request.path_qs, dict(request.headers), asked, sent)
        exchange.daemon = self._daemon
        self.seen.append(exchange)
        self.has_seen_image |= b"iVBORw0KGgo" in raw  # how a PNG begins in base64
        data = raw if sent is None else json.dumps(sent).encode()
        async with (
            ClientSession(timeout=ClientTimeout(total=None), auto_decompress=False) as session,
            session.request(
                request.method, self.upstream + request.path_qs, headers=_passed(request.headers), data=data
            ) as got,
        ):
            exchange.status = got.status
            exchange.answer_headers = {name.lower(): value for name, value in got.headers.items()}
            response = web.StreamResponse(status=got.status, headers=_passed(got.headers))
            with suppress(ConnectionError):  # some close before the end of the last chunk
                await response.prepare(request)
                async for piece in got.content.iter_any():
                    exchange.answer += piece
                    await response.write(piece)
                await response.write_eof()
        return response

    def changed(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the body as the daemon gets it."""
        sent = copy.deepcopy(asked)
        tools = {offered.name: offered for offered in _offered(sent) if offered.name in self._narrowed}
        for name, offered in tools.items():
            offered.narrow(self._narrowed[name])
        if not tools:  # a request for a title, a summary
            return sent
        results = sum(1 for _ in _results(sent))
        self._base = results if self._base is None else self._base
        self.called = max(self.called, results - self._base)
        if results - self._base < len(self._calls):
            name = self._calls[results - self._base]
            tools.get(name, Offered({"name": name})).require(sent)
        return sent


def _passed(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _HOP]


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool in a body of any API: what holds its name and its schema, and the namespace that it is in."""

    tool: dict[str, Any]
    namespace: str | None = None

    @property
    def name(self) -> str | None:
        """As the client calls it; None for a tool that the server is to run."""
        return self.tool.get("name")

    def narrow(self, call: Call) -> None:
        """Allow the arguments of *call* only; a custom tool has one, which is its input."""
        if self.tool.get("type") == "custom":
            [text] = call.arguments.values()
            self.tool["format"] = {"type": "grammar", "syntax": "regex", "definition": re.escape(text)}
        else:
            self.tool["input_schema" if "input_schema" in self.tool else "parameters"] = call.schema
            self.tool.pop("strict", None)

    def require(self, body: dict[str, Any]) -> None:
        """Name it as the tool that the model must call."""
        if "input" in body:
            place = {} if self.namespace is None else {"namespace": self.namespace}
            body["tool_choice"] = {"type": self.tool.get("type", "function"), "name": self.name, **place}
            body["parallel_tool_calls"] = False
        elif any("input_schema" in tool for tool in body["tools"]):
            body["tool_choice"] = {"type": "tool", "name": self.name, "disable_parallel_tool_use": True}
        else:
            body["tool_choice"] = {"type": "function", "function": {"name": self.name}}
            body["parallel_tool_calls"] = False


def _items(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the items of Responses, where they are a list."""
    given = body.get("input")
    return given if isinstance(given, list) else []


def _offered(body: dict[str, Any], namespace: str | None = None) -> Iterator[Offered]:
    """Yield the tools that a body, a namespace or an item of the input offers."""
    for tool in body.get("tools") or []:
        if tool.get("type") == "namespace":
            yield from _offered(tool, tool["name"])
        else:
            yield Offered(tool["function"] if isinstance(tool.get("function"), dict) else tool, namespace)
    for item in _items(body):
        yield from _offered({"tools": item.get("tools")})


def _results(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the results of tools, on every API."""
    for item in [*(body.get("messages") or []), *_items(body)]:
        if item.get("role") == "tool" or str(item.get("type")).endswith("call_output"):
            yield item
        elif isinstance(item.get("content"), list):
            yield from (part for part in item["content"] if part.get("type") == "tool_result")


@asynccontextmanager
async def proxying(upstream: str) -> AsyncIterator[Proxy]:
    """Run a proxy on a free port of the loopback interface."""
    proxy = Proxy(upstream)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{tail:.*}", proxy.handle)
    runner = AppRunner(app)
    await runner.setup()
    site = TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield proxy
    finally:
        await runner.cleanup()
