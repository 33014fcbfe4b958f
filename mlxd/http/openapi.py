"""The OpenAPI document, made of what answers: the table of routes, the structs of bodies, the tree of errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

import mlxd
from mlxd.http.errors import Dialect, dialect_of_path
from mlxd.http.health import PROBES
from mlxd.http.query import NoQuery
from mlxd.http.schema import fields_of
from mlxd.protocol.errors import (
    CapacityError,
    CloudError,
    EngineError,
    FileInvalid,
    Forbidden,
    InUse,
    InvalidRequest,
    MlxdError,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    RequestTimedOut,
    TooManyConnections,
    Unauthenticated,
    UnsupportedMediaType,
)


@dataclass(frozen=True, slots=True)
class Route:
    """One route: `path` in aiohttp's notation. The first line of the handler's docstring says what it does.

    Attributes:
        body: the structs that a POST is read into, each of them some of its fields.
        query: the struct of its parameters.
    """

    method: str
    path: str
    handler: Handler
    body: tuple[type[msgspec.Struct], ...] = ()
    query: type[msgspec.Struct] = NoQuery


DESCRIBED = web.AppKey("mlxd_openapi", tuple[Route, ...])

_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")
_EVERYWHERE = (InvalidRequest, Forbidden, FileInvalid, TooManyConnections, MlxdError)
_WITH_KEYS = (Unauthenticated,)
_POSTED = (RateLimited, RequestTimedOut)
# What a model may end in, the errors of upstreams included; an upstream that refuses a request has its own 4xx.
_ANSWERED = (PayloadTooLarge, UnsupportedMediaType, NotFound, CapacityError, EngineError, CloudError)
_EVENTS = "text/event-stream"
_JSON = "application/json"
_TEXT = {"/metrics": "text/plain"}
_ERRORS = {Dialect.OPENAI: "OpenAIError", Dialect.ANTHROPIC: "AnthropicError"}


@functools.cache
def describe(routes: tuple[Route, ...]) -> bytes:
    """Return the document as JSON. It takes some 50 ms to make."""
    shapes = dict.fromkeys(shape for route in routes for shape in (*route.body, route.query))
    shown, components = msgspec.json.schema_components(shapes, ref_template="#/components/schemas/{name}")
    names = {shape: each["$ref"].rpartition("/")[2] for shape, each in zip(shapes, shown, strict=True)}
    for each in components.values():
        _allow_null(each)
    schemas = {shape: components.pop(name) for shape, name in names.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(route, schemas)
    return orjson.dumps(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "mlxd",
                "version": mlxd.__version__,
                "description": "A field that is not listed is ignored, and named in the header x-mlxd-ignored-fields, "
                "or refused: http.unknown_fields. What an upstream refuses has the upstream's status.",
            },
            "paths": paths,
            "components": {"schemas": {**components, **_error_schemas()}, "securitySchemes": _SECURITY_SCHEMES},
        }
    )


async def get_openapi(request: web.Request) -> web.Response:
    """Return the OpenAPI document."""
    return web.Response(body=describe(request.app[DESCRIBED]), content_type=_JSON)


def statuses(route: Route) -> tuple[int, ...]:
    """Return all that the route can answer, in order."""
    found = {200, *(_status for error in _errors(route) for _status in _statuses_of(error))}
    return tuple(sorted(found))


def _errors(route: Route) -> Iterator[type[MlxdError]]:
    yield from _EVERYWHERE
    if route.path not in PROBES:
        yield from _WITH_KEYS
    if "{" in route.path:
        yield NotFound
    if route.method == "DELETE":
        yield InUse
    if route.method == "POST":
        yield from _POSTED
    if route.body:
        yield from _ANSWERED


def _statuses_of(error: type[MlxdError]) -> Iterator[int]:
    yield error.http_status
    if error is not MlxdError:  # of which all others are
        for below in error.__subclasses__():
            yield from _statuses_of(below)


def _allow_null(schema: dict[str, Any]) -> None:
    """Say that null is as good as nothing, but for fields that are required."""
    for name, shown in schema["properties"].items():
        if name not in schema["required"]:
            schema["properties"][name] = {"anyOf": [shown, {"type": "null"}]}


def _operation(route: Route, schemas: Mapping[type[msgspec.Struct], dict[str, Any]]) -> dict[str, Any]:
    summary = (route.handler.__doc__ or "").strip().partition("\n")[0]
    operation: dict[str, Any] = {
        "summary": summary,
        "operationId": route.handler.__name__,
        "responses": {str(status): _response(route, status) for status in statuses(route)},
    }
    if route.path not in PROBES:
        operation["security"] = [{}, *({name: []} for name in _SECURITY_SCHEMES)]
    if fields_of(route.query):
        operation["parameters"] = _parameters(route.query, schemas[route.query])
    names = [match[1] for match in _PARAMETER.finditer(route.path)]
    if names:
        operation["parameters"] = operation.get("parameters", []) + [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    if route.body:
        parts = [schemas[shape] for shape in route.body]
        body = {
            "type": "object",
            "properties": {name: shown for part in parts for name, shown in part["properties"].items()},
            "required": [name for part in parts for name in part["required"]],
        }
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": body}}}
    return operation


def _parameters(query: type[msgspec.Struct], schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the parameters of a route; one that is accepted at no value is not there."""
    return [
        {"name": name, "in": "query", "required": False, "schema": schema["properties"][name]}
        for name, field in fields_of(query).items()
        if field.here == "done" or field.neutral
    ]


def _response(route: Route, status: int) -> dict[str, Any]:
    if status == web.HTTPOk.status_code:
        content: dict[str, Any] = {_TEXT.get(route.path, _JSON): {}}
        if any("stream" in fields_of(shape) for shape in route.body):
            content[_EVENTS] = {}
        return {"description": "The answer.", "content": content}
    shown = {"$ref": f"#/components/schemas/{_ERRORS[dialect_of_path(route.path)]}"}
    return {
        "description": "An error, with its code.",
        "content": {_JSON: {} if route.path in PROBES else {"schema": shown}},
    }


_SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def _error_schemas() -> dict[str, Any]:
    text, text_or_none = {"type": "string"}, {"type": ["string", "null"]}
    openai = {"message": text, "type": text, "param": text_or_none, "code": text}
    anthropic = {"message": text, "type": text, "code": text}
    return {
        "OpenAIError": _object({"error": _object(openai)}),
        "AnthropicError": _object(
            {"type": {"const": "error"}, "error": _object(anthropic), "request_id": text_or_none}
        ),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}
