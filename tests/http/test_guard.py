"""Who may call: Host, Origin, preflight."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxd.http.guard import is_allowed_host
from tests.support.http_server import serving, settings_of
from tests.support.scripted_pool import ScriptedPool, end

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PAGE = "https://page.example"


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:6593", "LOCALHOST", "127.0.0.1:1", "127.1.2.3", "[::1]", "[::1]:6593", "mac.lan:80"],
)
def test_loopback_and_allowed_hosts_pass(host: str) -> None:
    """Any name of this machine's loopback, and the names of the setting, with any port and in any case."""
    assert is_allowed_host(host, ("Mac.lan",))


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:6593",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "[::]",
        "[::1",
        "localhost@evil.example",
        "mac.lan.",
        ":6593",
    ],
)
def test_other_hosts_do_not(host: str) -> None:
    """A rebound name, another address, no name, a broken one."""
    assert not is_allowed_host(host, ("mac.lan",))


@pytest.mark.parametrize("path", [CHAT, "/health", "/nope"])
async def test_a_rebound_host_is_a_403_everywhere(path: str) -> None:
    """DNS rebinding gets nowhere, and loads nothing."""
    pool = ScriptedPool(end())
    async with serving(pool) as served:
        status, _, body = await served.post(path, BODY, Host="evil.example:6593")
    assert (status, json.loads(body)["error"]["code"]) == (403, "forbidden")
    assert "evil.example" in json.loads(body)["error"]["message"]
    assert pool.leased == []


@pytest.mark.parametrize("origin", ["https://evil.example", "null", PAGE + ":8443", "http://page.example", PAGE + "/"])
async def test_a_web_page_that_is_not_allowed_is_a_403(origin: str) -> None:
    """Origins match exactly; without a match there are no CORS headers, and nothing is loaded."""
    pool = ScriptedPool(end())
    async with serving(pool, document={"http": {"allowed_origins": [PAGE]}}) as served:
        status, headers, body = await served.post(CHAT, BODY, Origin=origin)
    assert (status, json.loads(body)["error"]["code"]) == (403, "forbidden")
    assert "Access-Control-Allow-Origin" not in headers
    assert pool.leased == []


@pytest.mark.parametrize("stream", [False, True])
async def test_an_allowed_page_may_read_the_answer(stream: bool) -> None:
    """The answer, a stream too, names the origin and exposes our headers; so does an error."""
    async with serving(ScriptedPool(end()), document={"http": {"allowed_origins": [PAGE]}}) as served:
        status, headers, _ = await served.post(CHAT, BODY | {"stream": stream}, Origin=PAGE)
        bad_status, bad_headers, _ = await served.post(CHAT, {}, Origin=PAGE)
        _, no_origin, _ = await served.post(CHAT, BODY)
    assert (status, bad_status) == (200, 400)
    for answer in (headers, bad_headers):
        assert (answer["Access-Control-Allow-Origin"], answer["Vary"]) == (PAGE, "Origin")
        assert "x-request-id" in answer["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Origin" not in no_origin


async def test_a_preflight_is_answered_for_allowed_pages_only() -> None:
    """The browser learns methods and headers; another page gets a 403."""
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type,x-stainless-os"}
    async with serving(ScriptedPool(end()), document={"http": {"allowed_origins": [PAGE]}}) as served:
        url = served.url + CHAT
        private = {"Access-Control-Request-Private-Network": "true"}
        async with served.http.options(url, headers=asking | private | {"Origin": PAGE}) as allowed:
            pass
        async with served.http.options(url, headers=asking | {"Origin": "https://evil.example"}) as refused:
            pass
    assert (allowed.status, refused.status) == (204, 403)
    assert allowed.headers["Access-Control-Allow-Origin"] == PAGE
    assert allowed.headers["Access-Control-Allow-Methods"] == "GET, POST, DELETE"
    assert allowed.headers["Access-Control-Allow-Headers"] == "content-type,x-stainless-os"
    assert allowed.headers["Access-Control-Allow-Private-Network"] == "true"
    assert "Access-Control-Allow-Methods" not in refused.headers


async def test_the_lists_are_live() -> None:
    """Allowed hosts and origins are read at every request."""
    async with serving(ScriptedPool(end())) as served:
        before = await served.post(CHAT, BODY, Host="mac.lan", Origin=PAGE)
        served.store.current = settings_of({"http": {"allowed_hosts": ["mac.lan"], "allowed_origins": [PAGE]}})
        after = await served.post(CHAT, BODY, Host="mac.lan", Origin=PAGE)
    assert (before[0], after[0]) == (403, 200)
