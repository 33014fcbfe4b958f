"""With an API key, every route but the probes needs one: in both dialects, per model, at a rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxd.catalog import Catalog
from tests.support.clock import FakeClock
from tests.support.http_server import serving
from tests.support.model_folder import write_model
from tests.support.scripted_pool import ScriptedPool, end, say

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", CHAT), ("POST", MESSAGES), ("GET", "/v1/models"), ("GET", "/v1/models/m"), ("GET", "/nope")],
)
async def test_without_the_key_everything_is_a_401(tmp_path: Path, method: str, path: str) -> None:
    """In the envelope of the path's dialect, and nothing is loaded."""
    pool = ScriptedPool(end())
    async with serving(pool, home=tmp_path) as served:
        await served.context.api_keys.create("app", [], None)
        send = served.post(path, BODY) if method == "POST" else served.get(path)
        status, headers, body = await send
        assert (status, headers["WWW-Authenticate"], headers["x-should-retry"]) == (401, "Bearer", "false")
        assert json.loads(body)["error"]["type"] == "authentication_error"
        status, _, body = await served.post(MESSAGES, BODY, x_api_key="mlxd-wrong")
    assert (status, json.loads(body)["error"]["type"]) == (401, "authentication_error")
    assert pool.leased == []


async def test_the_probes_need_none(tmp_path: Path) -> None:
    """Whatever watches the daemon has no key."""
    async with serving(ScriptedPool(end()), home=tmp_path) as served:
        await served.context.api_keys.create("app", [], None)
        assert [(await served.get(path))[0] for path in ("/health", "/ready")] == [200, 200]


@pytest.mark.parametrize("form", ["bearer", "x-api-key", "token"])
async def test_the_key_lets_in(tmp_path: Path, form: str) -> None:
    """As OpenAI's clients send it, as Anthropic's do, and the token that mlxctl has."""
    async with serving(ScriptedPool(*[[*say("hello"), *end()]] * 3), home=tmp_path) as served:
        keys = served.context.api_keys
        _, secret = await keys.create("app", [], None)
        secret = keys.boot_token if form == "token" else secret
        headers = {"x_api_key": secret} if form == "x-api-key" else {"Authorization": f"Bearer {secret}"}
        assert (await served.post(CHAT, BODY, **headers))[0] == 200


async def test_a_model_that_is_not_allowed_is_a_403_and_is_not_listed(tmp_path: Path) -> None:
    """In both dialects; whether there is such a model is not told."""
    for name in ("mine", "org/yours"):
        write_model(tmp_path / "models" / name)
    catalog = Catalog([tmp_path / "models"])
    catalog.scan()
    pool = ScriptedPool(end())
    async with serving(pool, home=tmp_path, catalog=catalog) as served:
        _, secret = await served.context.api_keys.create("app", ["org/*"], None)
        key = {"Authorization": f"Bearer {secret}"}
        listed = json.loads((await served.get("/v1/models", **key))[2])
        assert [model["id"] for model in listed["data"]] == ["org/yours"]
        for path in (CHAT, MESSAGES):
            status, _, body = await served.post(path, {**BODY, "model": "mine"}, **key)
            error = json.loads(body)["error"]
            assert (status, error["type"], error["code"]) == (403, "permission_error", "model_not_allowed")
        statuses = [(await served.get(f"/v1/models/{name}", **key))[0] for name in ("mine", "nope", "org/yours")]
    assert statuses == [403, 403, 200]
    assert pool.leased == []


async def test_over_its_rate_a_key_is_told_when_to_come_again(tmp_path: Path) -> None:
    """Lists are free; a refused request costs nothing to another key."""
    clock = FakeClock()
    async with serving(ScriptedPool(*[[*say("hello"), *end()]] * 3), home=tmp_path, clock=clock) as served:
        _, secret = await served.context.api_keys.create("app", [], "1/min")
        _, other = await served.context.api_keys.create("other", [], "1/min")
        key = {"Authorization": f"Bearer {secret}"}
        assert (await served.post(CHAT, BODY, **key))[0] == 200
        status, headers, body = await served.post(CHAT, BODY, **key)
        assert (status, headers["Retry-After"], json.loads(body)["error"]["code"]) == (429, "60", "rate_limited")
        status, _, body = await served.post(MESSAGES, BODY, **key)
        assert (status, json.loads(body)["error"]["type"]) == (429, "rate_limit_error")
        assert (await served.get("/v1/models", **key))[0] == 200
        assert (await served.post(CHAT, BODY, Authorization=f"Bearer {other}"))[0] == 200
        clock.move(60)
        assert (await served.post(CHAT, BODY, **key))[0] == 200


async def test_a_revoked_key_is_refused_at_once(tmp_path: Path) -> None:
    """On a connection that it has used before."""
    async with serving(ScriptedPool(end()), home=tmp_path) as served:
        keys = served.context.api_keys
        _, secret = await keys.create("app", [], None)
        await keys.create("other", [], None)
        key = {"Authorization": f"Bearer {secret}"}
        assert (await served.get("/v1/models", **key))[0] == 200
        await keys.revoke("app")
        assert (await served.get("/v1/models", **key))[0] == 401


async def test_a_stored_response_is_there_for_its_key_alone(tmp_path: Path) -> None:
    """Another key does not learn that there is one."""
    async with serving(ScriptedPool([*say("hello"), *end()]), home=tmp_path) as served:
        mine, yours = [
            {"Authorization": f"Bearer {(await served.context.api_keys.create(name, [], None))[1]}"}
            for name in ("mine", "yours")
        ]
        made = json.loads((await served.post("/v1/responses", {"model": "m", "input": "hi"}, **mine))[2])
        path = f"/v1/responses/{made['id']}"
        statuses = [(await served.get(path, **key))[0] for key in (mine, yours)]
        further = {"model": "m", "input": "more", "previous_response_id": made["id"]}
        statuses += [(await served.post("/v1/responses", further, **key))[0] for key in (mine, yours)]
    assert statuses == [200, 404, 200, 400]
