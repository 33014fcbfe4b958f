"""The OpenAPI document says what the server does: held against it with requests made from it, valid and not."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from mlxd.catalog import Catalog
from mlxd.clock import LoopClock
from mlxd.http.omissions import Omissions
from mlxd.http.openapi import describe
from mlxd.http.schema import fields_of, read
from mlxd.pool.pool import Pool
from mlxd.protocol.errors import InvalidRequest
from mlxd.routes import ROUTES
from tests.support.fake_backend import FakeBackend
from tests.support.http_server import serving, settings_of
from tests.support.model_folder import write_model
from tests.support.scripted_pool import ScriptedPool, end

DOCUMENT = json.loads(describe(ROUTES))
PATTERN = re.compile(r":[^}]*}")  # aiohttp's notation of what a parameter matches
OPERATIONS = [f"{route.method} {PATTERN.sub('}', route.path)}" for route in ROUTES]
# Without a body there is nothing that could be invalid.
CASES = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS] + [
    (operation, GenerationMode.NEGATIVE) for operation, route in zip(OPERATIONS, ROUTES, strict=True) if route.body
]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
MODEL = "a"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


async def _serve(folder: Path, started: threading.Event, urls: list[str], ended: asyncio.Event) -> None:
    """Serve one model of a made-up device until told otherwise."""
    write_model(folder / MODEL)
    catalog = Catalog([folder])
    catalog.scan()
    clock = LoopClock(asyncio.get_running_loop())
    backend = FakeBackend(clock, load_s=0, unload_s=0, step_s=0)
    pool = Pool(backend, catalog, settings_of(), clock=clock, usable_bytes=16 * 10**9, on_event=lambda event: None)
    await pool.start()
    document = {"models": {MODEL: {"max_tokens": 4}}}
    async with serving(pool, catalog=catalog, clock=clock, document=document) as served:
        urls.append(served.url)
        started.set()
        await ended.wait()
    await pool.close()
    await backend.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in a thread of its own, as what asks it blocks."""
    started, urls = threading.Event(), list[str]()
    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    work = _serve(tmp_path_factory.mktemp("models"), started, urls, ended)
    thread = threading.Thread(target=lambda: loop.run_until_complete(work))
    thread.start()
    assert started.wait(30)
    yield urls[0]
    loop.call_soon_threadsafe(ended.set)
    thread.join(30)
    loop.close()


@pytest.mark.parametrize(("operation", "mode"), CASES, ids=str)
def test_answers_are_the_documented_ones(url: str, operation: str, mode: GenerationMode) -> None:
    """No 500, no status, content type or error envelope that the document does not have."""
    method, path = operation.split()
    loaded = schemathesis.openapi.from_dict(DOCUMENT)
    strategy = loaded[path][method].as_strategy(generation_mode=mode)

    @given(case=strategy)
    @settings(
        max_examples=6,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def run(case: Any) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL
        case.validate_response(case.call(base_url=url), checks=CHECKS)

    run()


def test_the_document_is_served(url: str) -> None:
    """As it is made of the tables."""
    with urllib.request.urlopen(f"{url}/openapi.json") as response:
        assert json.load(response) == DOCUMENT


def test_the_statuses_are_those_that_a_route_can_have() -> None:
    """A probe needs no key, an answer may fail in every way."""
    shown = {
        (method, path): [int(status) for status in operation["responses"]]
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }
    assert shown["get", "/health"] == [200, 400, 403, 500, 503]
    assert shown["get", "/v1/models/{id}"] == [200, 400, 401, 403, 404, 500, 503]
    answered = [200, 400, 401, 403, 404, 408, 413, 415, 429, 499, 500, 502, 503, 504, 507]
    assert [shown["post", path] for path in SHAPES] == [answered for _ in SHAPES]


def test_every_route_is_described() -> None:
    """With a sentence, and a body where it reads one."""
    described = {f"{method.upper()} {path}" for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == set(OPERATIONS)
    summaries = [operation["summary"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert all(summary.endswith(".") for summary in summaries)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_bounds_of_fields_with_a_reader_of_their_own_are_described(path: str) -> None:
    """Stop texts and biases of tokens have their types and bounds, though no type of a field says them all."""
    properties = schema_of(path)["properties"]
    stop, bias = json.dumps(properties["stop"]), json.dumps(properties["logit_bias"])
    assert all(f'"{bound}": {value}' in stop for bound, value in (("maxLength", 4096), ("maxItems", 64)))
    assert all(word in bias for word in ('"maxProperties": 1024', '"minimum": -100', '"maximum": 100', '"pattern"'))


def test_queries_are_described() -> None:
    """By the tables that read them; what can only be left out is not there."""
    shown = {
        path: {parameter["name"] for parameter in methods["get"].get("parameters", []) if parameter["in"] == "query"}
        for path, methods in DOCUMENT["paths"].items()
        if path.startswith("/v1/responses/{id}") and "get" in methods
    }
    assert shown == {
        "/v1/responses/{id}": {"include", "include_obfuscation", "stream"},
        "/v1/responses/{id}/input_items": {"after", "include", "limit", "order"},
    }


SHAPES = {route.path: route.body for route in ROUTES if route.body}


def schema_of(path: str) -> dict[str, Any]:
    """Return the schema of a route's body."""
    body = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return {**body, "components": DOCUMENT["components"]}


@pytest.mark.parametrize("path", SHAPES)
def test_null_is_as_good_as_nothing(path: str) -> None:
    """But for fields that must be there, where the document says anything of them."""
    body = schema_of(path)
    allows = {name: _validator(path, name).is_valid(None) for name in body["properties"]}
    told = {name: name not in body["required"] for name in allows if body["properties"][name]}
    assert {name: allows[name] for name in told} == told


@pytest.mark.parametrize("path", SHAPES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_a_check_accepts_its_schema_allows(path: str, data: st.DataObject) -> None:
    """The schema is never narrower than the check."""
    shapes = {name: shape for shape in SHAPES[path] for name, field in fields_of(shape).items() if field.here == "done"}
    name = data.draw(st.sampled_from(sorted(shapes)))
    near = st.sampled_from([0, 1, -1, 0.5, 2, 20, True, "none", "low", "auto", [], ["a"], {}, {"1": 2}, {"a": "b"}, ""])
    value = data.draw(near | JSON_VALUES)
    whole = {"model": "m", "messages": [{}], "max_tokens": 4, "prompt": "hi", "input": "hi"}
    required = {key: whole[key] for key, field in fields_of(shapes[name]).items() if field.is_required}
    try:
        read(shapes[name], {**required, name: value}, Omissions("m"))
    except InvalidRequest:
        return
    _validator(path, name).validate(value)


def _validator(path: str, name: str) -> Any:
    """Return what judges values of a field, with the components that its schema refers to."""
    body = schema_of(path)
    return jsonschema.Draft202012Validator({**body["properties"][name], "components": body["components"]})


@pytest.mark.parametrize("path", SHAPES)
async def test_without_a_required_field_a_body_is_refused(path: str, tmp_path: Path) -> None:
    """The document's required fields are the server's."""
    required = schema_of(path)["required"]
    messages = [{"role": "user", "content": "hi"}]
    whole = {"model": "m", "messages": messages, "max_tokens": 4, "prompt": "hi", "input": "hi"}
    async with serving(ScriptedPool([*end()])) as served:
        for missing in required:
            given_fields = {name: whole[name] for name in required if name != missing}
            status, _, text = await served.post(path, given_fields)
            assert (missing, status) == (missing, 400)
            assert missing in json.loads(text)["error"]["message"]
