"""Every answer is JSON in OpenAI's shape with a request id, whatever path, method, body or fault it was."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from mlxd.http import errors
from mlxd.http.exchange import EXCHANGE, Exchange
from mlxd.protocol import errors as tree
from mlxd.protocol.errors import Draining, FileInvalid, MlxdError, QueueFull, UpstreamError
from tests.support.http_server import Served, serving
from tests.support.scripted_pool import ScriptedPool, end

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def _send(
    served: Served, method: str, path: str, data: bytes | None = None, **headers: str
) -> tuple[int, Mapping[str, str], Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with served.http.request(method, served.url + path, data=data, headers=named) as response:
        body = json.loads(await response.read())
        return response.status, response.headers, body


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "words"),
    [
        ("GET", "/nope", 404, "not_found", "there is no route GET /nope"),
        ("POST", "/chat/completions", 404, "not_found", "the nearest is /v1/chat/completions"),
        ("GET", CHAT, 405, "method_not_allowed", "does not take GET, only POST"),
        ("DELETE", "/v1/models/m", 405, "method_not_allowed", "does not take DELETE"),
        ("OPTIONS", CHAT, 405, "method_not_allowed", "does not take OPTIONS"),
        ("GET", "/v1/models/nope", 404, "model_not_found", "there is no model 'nope'"),
    ],
)
async def test_wrong_paths_and_methods_have_the_envelope(
    method: str, path: str, status: int, code: str, words: str
) -> None:
    """404 and 405 are JSON too, with the nearest route, the allowed methods and a request id."""
    async with serving(ScriptedPool(end())) as served:
        got, headers, body = await _send(served, method, path)
    assert (got, body["error"]["code"], body["error"]["type"]) == (status, code, "invalid_request_error")
    assert words in body["error"]["message"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert re.fullmatch("req_[0-9a-f]{32}", headers["x-request-id"])
    assert headers["x-should-retry"] == "false"
    assert headers["Server"].startswith("mlxd/")
    if status == 405:
        assert "GET" in headers["Allow"] or "POST" in headers["Allow"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"model": "m"', "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'"m"', "must be a JSON object"),
        (b'{"model": NaN}', "not valid JSON"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"{}", "model must be a text"),
        (b'{"model": ""}', "model must be a text"),
        (b'{"model": 5}', "model must be a text"),
        (b'{"model": null}', "model must be a text"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_a_bad_body_is_a_400(path: str, data: bytes, words: str) -> None:
    """What is no JSON object with a model is refused with the reason."""
    async with serving(ScriptedPool(end())) as served:
        status, _, body = await _send(served, "POST", path, data, **JSON)
    assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert words in body["error"]["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
async def test_a_post_that_is_not_json_is_a_415(content_type: str) -> None:
    """A web page's simple POST stops before anything is read or loaded."""
    pool = ScriptedPool(end())
    async with serving(pool) as served:
        status, _, body = await _send(served, "POST", CHAT, json.dumps(BODY).encode(), Content_Type=content_type)
    assert (status, body["error"]["code"]) == (415, "unsupported_media_type")
    assert pool.leased == []


async def test_json_with_a_charset_is_json() -> None:
    """Parameters of the content type do not matter."""
    async with serving(ScriptedPool(end())) as served:
        data = json.dumps(BODY).encode()
        status, _, _ = await _send(served, "POST", CHAT, data, Content_Type="application/json; charset=utf-8")
    assert status == 200


async def test_a_large_body_is_a_413() -> None:
    """The declared, the real and the unpacked length are bounded by http.max_body."""
    big = json.dumps(BODY | {"user": "x" * 2000}).encode()

    async def chunks() -> Any:
        for start in range(0, len(big), 500):
            yield big[start : start + 500]

    async with serving(ScriptedPool(end()), document={"http": {"max_body": "1KiB"}}) as served:
        declared = await _send(served, "POST", CHAT, big, **JSON)
        real = await _send(served, "POST", CHAT, chunks(), **JSON)
        packed = await _send(served, "POST", CHAT, gzip.compress(big), Content_Encoding="gzip", **JSON)
        small = await _send(served, "POST", CHAT, json.dumps(BODY).encode(), **JSON)
    for status, _, body in (declared, real, packed):
        assert (status, body["error"]["code"]) == (413, "payload_too_large")
        assert "1024 bytes" in body["error"]["message"] or "KiB" in body["error"]["message"]
    assert small[0] == 200


async def test_a_broken_encoding_is_a_400() -> None:
    """A body that does not unpack is the client's fault."""
    async with serving(ScriptedPool(end())) as served:
        status, _, body = await _send(served, "POST", CHAT, b"not gzip", Content_Encoding="gzip", **JSON)
    assert (status, body["error"]["code"]) == (400, "invalid_request")


async def test_the_clients_request_id_comes_back() -> None:
    """It is in the header and in the id of the answer; one that no header should carry is replaced."""
    async with serving(ScriptedPool(end())) as served:
        _, headers, body = await served.post(CHAT, BODY, x_request_id="abc-1")
        _, odd_headers, _ = await served.post(CHAT, BODY, x_request_id="a b")
    assert (headers["x-request-id"], json.loads(body)["id"]) == ("abc-1", "chatcmpl-abc-1")
    assert odd_headers["x-request-id"].startswith("req_")


async def test_an_unexpected_exception_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a 500 without detail, the log gets the traceback."""
    async with serving(ScriptedPool([ZeroDivisionError("secret")])) as served:
        status, _, body = await served.post(CHAT, BODY)
    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert b"secret" not in body
    assert "ZeroDivisionError: secret" in caplog.text


async def test_a_request_is_one_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """The line has method, path, status, id, model and ignored fields, and not a word of the prompt."""
    caplog.set_level("INFO", logger="mlxd")
    body = BODY | {"top_a": 1, "messages": [{"role": "user", "content": "private"}]}
    async with serving(ScriptedPool(end())) as served:
        await served.post(CHAT, body, x_request_id="q")
    (line,) = [record.getMessage() for record in caplog.records if "POST" in record.getMessage()]
    assert re.fullmatch(r"POST /v1/chat/completions 200 in 0\.000 s, q, model m \(local\), ignored fields top_a", line)
    assert "private" not in caplog.text


async def test_ignored_fields_are_named_in_a_header() -> None:
    """The header holds the names whatever characters they have, in an error too."""
    body = BODY | {"top_a": 1, "x\r\ny": 2}
    async with serving(ScriptedPool(end())) as served:
        _, headers, _ = await served.post(CHAT, body)
        _, plain, _ = await served.post(CHAT, BODY)
    assert headers["x-mlxd-ignored-fields"] == "top_a, x%0D%0Ay"
    assert "x-mlxd-ignored-fields" not in plain


async def test_unknown_fields_are_refused_when_the_setting_says_so() -> None:
    """http.unknown_fields is read at every request."""
    async with serving(ScriptedPool(end()), document={"http": {"unknown_fields": "reject"}}) as served:
        status, _, body = await served.post(CHAT, BODY | {"temprature": 1})
    assert (status, json.loads(body)["error"]["param"]) == (400, "temprature")


async def test_a_daemon_without_its_settings_says_so() -> None:
    """A bad file at boot: every route answers 503 with the place in the file, /health lives, /ready does not."""
    async with serving(ScriptedPool(end())) as served:
        served.store.has_booted_invalid = True
        served.store.problem = FileInvalid("config.toml:3:1: no such setting")
        chat = await served.post(CHAT, BODY)
        models = await served.get("/v1/models")
        health = await served.get("/health")
        ready = await served.get("/ready")
    assert (chat[0], models[0], health[0], ready[0]) == (503, 503, 200, 503)
    assert json.loads(chat[2])["error"]["code"] == "config.file_invalid"
    assert "config.toml:3:1" in json.loads(chat[2])["error"]["message"]
    # Probes need no key, and strangers are told no line and no name of a setting.
    assert json.loads(ready[2])["reasons"] == [
        "config.file_invalid: the settings file is not valid; mlxctl status says where"
    ]


async def test_a_file_that_went_bad_later_changes_nothing() -> None:
    """A running daemon serves on with the settings it has."""
    async with serving(ScriptedPool(end())) as served:
        served.store.problem = FileInvalid("config.toml:3:1: no such setting")
        assert (await served.post(CHAT, BODY))[0] == 200
        assert (await served.get("/ready"))[0] == 200


async def test_ready_follows_the_preload_list_and_the_shutdown() -> None:
    """/ready is 503 with the reason until the preload list is done with, and again once the daemon drains."""
    pool = ScriptedPool(end())
    async with serving(pool) as served:
        pool.is_ready = False
        loading = await served.get("/ready")
        pool.is_ready = True
        ready = await served.get("/ready")
        served.context.requests.close()
        draining = await served.get("/ready")
        refused = await served.post(CHAT, BODY)
        health = await served.get("/health")
    assert (loading[0], ready[0], draining[0], refused[0], health[0]) == (503, 200, 503, 503, 200)
    assert json.loads(ready[2]) == {"status": "ready", "reasons": [], "queue_length": 0}
    assert json.loads(loading[2])["reasons"][0].startswith("preload")
    assert json.loads(draining[2])["reasons"][0].startswith("draining")
    assert json.loads(refused[2])["error"]["code"] == "draining"
    assert refused[1]["Retry-After"] == "5"


def _leaves(base: type[MlxdError]) -> list[type[MlxdError]]:
    return [base, *(leaf for child in base.__subclasses__() for leaf in _leaves(child))]


def request_to(path: str) -> web.Request:
    """Return a request to *path*, as the boundary makes it."""
    request = make_mocked_request("POST", path)
    request[EXCHANGE] = Exchange("r1")
    return request


@pytest.mark.parametrize("error_class", _leaves(MlxdError), ids=lambda cls: cls.__name__)
def test_every_error_of_the_tree_renders_for_anthropics_clients(error_class: type[MlxdError]) -> None:
    """The same status and headers, in the other envelope, with a type that its clients know."""
    error = error_class("what happened")
    response = errors.render(error, request_to("/v1/messages"))
    assert isinstance(response.body, bytes)
    body = json.loads(response.body)
    kind = body["error"].pop("type")
    assert kind.endswith("_error") or kind == "request_too_large"
    detail = {"message": "what happened", "code": error_class.code}
    assert body == {"type": "error", "error": detail, "request_id": "r1"}
    assert response.status == error_class.http_status


@pytest.mark.parametrize("error_class", _leaves(MlxdError), ids=lambda cls: cls.__name__)
def test_every_error_of_the_tree_renders(error_class: type[MlxdError]) -> None:
    """Status, envelope, a Retry-After of 1 to 60 on 429 and 503, x-should-retry where the class has a word on it."""
    error = error_class("what happened", hint="mlxctl status")
    response = errors.render(error, request_to("/v1/completions"))
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {
        "error": {
            "message": "what happened. Try: mlxctl status",
            "type": error_class.openai_type,
            "param": None,
            "code": error_class.code,
        }
    }
    assert response.status == error_class.http_status
    assert ("Retry-After" in response.headers) == (response.status in {429, 503})
    assert ("x-should-retry" in response.headers) == (error_class.should_retry is not None)


def test_the_tree_is_the_one_of_the_protocol() -> None:
    """The parametrized test above sees all classes of the module."""
    named = {thing for thing in vars(tree).values() if isinstance(thing, type) and issubclass(thing, MlxdError)}
    assert named <= set(_leaves(MlxdError))


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (7.2, "8"), (3600.0, "60")])
def test_retry_after_is_clamped(seconds: float, header: str) -> None:
    """SDKs ignore more than 60 s and hammer."""
    assert errors.headers_of(QueueFull("full", retry_after_s=seconds))["Retry-After"] == header
    assert errors.headers_of(Draining("going"))["Retry-After"] == "1"


def test_words_that_are_no_utf8_are_rendered() -> None:
    """Headers and paths may hold any bytes, and messages quote them."""
    body = json.loads(errors.envelope(MlxdError("the Content-Type is \udcff")))
    assert body["error"]["message"] == r"the Content-Type is \udcff"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (507, "api_error"),
        (529, "overloaded_error"),
    ],
)
def test_a_status_has_anthropics_word(status: int, kind: str) -> None:
    """Clients go by it."""
    error = UpstreamError("no", data={"status": status})
    assert errors.detail(error, errors.Dialect.ANTHROPIC)["type"] == kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, "invalid_request_error"), (429, "rate_limit_error"), (499, "invalid_request_error"), (500, "server_error")],
)
def test_an_upstreams_status_has_openais_word(status: int, kind: str) -> None:
    """What the client did wrong is its own fault there, too."""
    assert errors.detail(UpstreamError("no", data={"status": status}))["type"] == kind


def test_an_upstreams_status_is_kept() -> None:
    """An error of an upstream has the upstream's status, 502 when it has none."""
    assert errors.status_of(UpstreamError("no", data={"status": 429})) == 429
    assert errors.status_of(UpstreamError("no")) == 502


async def test_thirty_two_streams_run_at_once() -> None:
    """One event loop serves 32 streams side by side: each waits until all have begun."""
    begun: list[int] = []
    all_begun = asyncio.Event()

    def begin() -> None:
        begun.append(1)
        if len(begun) == 32:
            all_begun.set()

    async with serving(ScriptedPool([begin, all_begun, *end()])) as served:
        answers = await asyncio.gather(*(served.post(CHAT, BODY | {"stream": True}) for _ in range(32)))
    assert all(body.endswith(b"[DONE]\n\n") for _, _, body in answers)


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/openapi.json"])
async def test_head_is_answered_as_get_is(path: str) -> None:
    """With its status and length, and without its body; Claude Code asks for / so at its start."""
    async with serving(ScriptedPool(end())) as served:
        _, headers, body = await served.get(path)
        async with served.http.head(served.url + path) as response:
            assert (response.status, await response.read()) == (200, b"")
            assert response.headers["Content-Length"] == headers["Content-Length"] == str(len(body))
