"""Targets of both protocols in one rule, and another mlxd behind either of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mlxd.protocol.errors import DoesNotFit, QueueTimeout
from tests.support import claude_code
from tests.support.http_server import Served, serving
from tests.support.said import Said, error_body
from tests.support.scripted_pool import ScriptedPool, Step, end, say
from tests.support.upstream import KEY, Upstream, upstream

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}


@asynccontextmanager
async def mixed(*, on_lease: Sequence[Step] = (), **rule: Any) -> AsyncIterator[tuple[Served, Upstream, Upstream]]:
    """Serve a rule whose first target speaks Anthropic's protocol and whose second speaks OpenAI's."""
    async with upstream() as first, upstream() as second:
        first.said = second.said = Said()
        providers = {
            "one": {"kind": "anthropic", "base_url": first.url, "auth": {"env": "KEY"}},
            "two": {"kind": "openai", "base_url": second.url, "auth": {"env": "KEY"}},
        }
        rules = {"r": {"match": "big", "to": ["one/a", "two/b"]} | rule}
        document = {"cloud": {"enabled": True, "providers": providers, "rules": rules}}
        pool = ScriptedPool(end())
        pool.on_lease = list(on_lease)
        async with serving(pool, document=document, environ={"KEY": KEY}) as served:
            yield served, first, second


@pytest.mark.parametrize("stream", [False, True])
async def test_a_target_that_can_say_it_is_asked_instead(stream: bool) -> None:
    """What one protocol cannot say is no reason against a target of the other; nothing was sent to the first."""
    async with mixed() as (served, first, second):
        status, headers, body = await served.post(CHAT, BODY | {"seed": 1, "stream": stream})
    assert (status, headers["x-mlxd-target"], headers["x-mlxd-attempts"]) == (200, "two/b", "2")
    assert b"afar" in body
    assert (len(first.seen), len(second.seen), second.seen[0].json["seed"]) == (0, 1, 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("behaviour", ["refuse", "error_first", "die_empty"])
async def test_the_next_target_speaks_another_protocol(behaviour: str, path: str, stream: bool) -> None:
    """Each attempt is translated anew, from the body as the client sent it."""
    async with mixed() as (served, first, second):
        first.behaviour, first.status, first.reply = behaviour, 529, error_body("Overloaded", speaks="anthropic")
        if behaviour == "error_first" and not stream:
            first.behaviour = "garbage"
        status, headers, body = await served.post(path, BODY | {"stream": stream})
    assert (status, headers["x-mlxd-target"]) == (200, "two/b")
    assert b"afar" in body
    assert [far.seen[0].path for far in (first, second)] == [MESSAGES, CHAT]


async def test_the_local_cause_is_told_where_no_target_can_say_it() -> None:
    """What the machine could not do is what the client can fix; the attempts say why there was no other way."""
    async with mixed(on_lease=[DoesNotFit("needs 9 GB")], mode="fallback", to=["one/a"]) as (served, first, _):
        status, _, body = await served.post(CHAT, BODY | {"seed": 1})
    error = json.loads(body)["error"]
    assert (status, error["code"], first.seen) == (507, "does_not_fit", [])
    assert [attempt["code"] for attempt in error["attempts"]] == ["unsupported_parameter"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("kind", "path"), [("anthropic", CHAT), ("openai", MESSAGES)])
async def test_another_mlxd_takes_what_is_translated(kind: str, path: str, stream: bool) -> None:
    """Its own routes, strict about every field, answer, and the client reads its own protocol."""
    strict = {"http": {"unknown_fields": "reject"}}
    async with serving(ScriptedPool([*say("from"), *say(" next door"), *end()]), document=strict) as other:
        providers = {"lan": {"kind": kind, "base_url": other.url + "/v1"}}
        document = {
            "cloud": {"enabled": True, "providers": providers, "rules": {"r": {"match": "big", "to": ["lan/m"]}}}
        }
        async with serving(ScriptedPool(end()), document=document) as served:
            status, headers, body = await served.post(path, BODY | {"stream": stream, "temperature": 0.5})
    assert (status, headers["x-mlxd-target"]) == (200, "lan/m")
    if not stream:
        answer = json.loads(body)
        text = answer["choices"][0]["message"]["content"] if path == CHAT else answer["content"][0]["text"]
        assert text == "from next door"
    else:
        assert body.endswith(b"data: [DONE]\n\n" if path == CHAT else b'data: {"type":"message_stop"}\n\n')


IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
IMAGE_URL: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
LATE = [{"role": "system", "content": claude_code.left(5)}, {"role": "user", "content": "And?"}]


@pytest.mark.parametrize(
    ("kind", "path", "body"),
    [
        (
            "openai",
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [IMAGE_URL]}, *LATE], "reasoning_effort": "max", "odd": 1},
        ),
        (
            "anthropic",
            "/v1/messages",
            {
                "system": claude_code.text(claude_code.billing(), claude_code.AGENT),
                "messages": [{"role": "user", "content": [IMAGE]}, *LATE],
                "max_tokens": 9,
                "output_config": {"effort": "max"},
                "tools": [{"type": "web_search_20250305", "name": "web_search"}],
            },
        ),
    ],
)
async def test_a_body_that_falls_back_is_the_clients_own(kind: str, path: str, body: dict[str, Any]) -> None:
    """Notes for images, merged messages and what is left out are for the model of this machine alone."""
    async with upstream() as far:
        far.said = Said()
        providers = {"far": {"kind": kind, "base_url": far.url}}
        rules = {"r": {"match": "m", "mode": "fallback", "to": ["far/x"]}}
        pool = ScriptedPool(end())
        pool.on_lease = [QueueTimeout("waited 120 s")]
        document = {"cloud": {"enabled": True, "providers": providers, "rules": rules}}
        raw = json.dumps({"model": "m", **body}, indent=1).encode()
        async with (
            serving(pool, document=document, environ={}) as served,
            served.http.post(served.url + path, data=raw, headers={"Content-Type": "application/json"}) as response,
        ):
            assert (response.status, response.headers["x-mlxd-reason"]) == (200, "queue_timeout")
            assert "x-mlxd-ignored-fields" not in response.headers
    assert far.seen[0].body == raw.replace(b'"model": "m"', b'"model": "x"')
