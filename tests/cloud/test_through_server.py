"""The cloud from end to end: the official client → our HTTP server → a real upstream on a socket."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from tests.support.clock import FakeClock
from tests.support.http_server import Served, serving, settings_of
from tests.support.said import Said
from tests.support.scripted_pool import ScriptedPool, end, say
from tests.support.upstream import KEY, PIECES, Upstream, upstream

CHAT = "/v1/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "hi"}]
BODY: dict[str, Any] = {"model": "big-1", "messages": MESSAGES}
TEXT = "".join(PIECES)


def _document(
    url: str, *, enabled: bool = True, timeouts: dict[str, str] | None = None, **rules: Any
) -> dict[str, Any]:
    far = {"base_url": url, "auth": {"env": "FAR_KEY"}, "timeouts": timeouts or {}}
    return {
        "cloud": {
            "enabled": enabled,
            "providers": {"far": far},
            "rules": {"big": {"match": "glob:big-*", "to": ["far/org/model"]}} | rules,
        }
    }


@asynccontextmanager
async def _cloudy(
    timeouts: dict[str, str] | None = None, clock: FakeClock | None = None, **rules: Any
) -> AsyncIterator[tuple[Served, Upstream, ScriptedPool]]:
    pool = ScriptedPool([*say("local"), *end()])
    async with upstream() as far:
        environ = {"FAR_KEY": f" {KEY}\n"}
        document = _document(far.url, timeouts=timeouts, **rules)
        async with serving(pool, document=document, environ=environ, clock=clock) as served:
            yield served, far, pool


def _client(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="the-clients-own", max_retries=0)


async def test_a_rule_fires_for_a_name_that_is_not_local() -> None:
    """The official client gets the upstream's answer; our headers say where it came from; nothing is leased here."""
    async with _cloudy() as (served, far, pool), _client(served) as client:
        raw = await client.chat.completions.with_raw_response.create(model="big-1", messages=MESSAGES)
        answer = raw.parse()
    assert answer.choices[0].message.content == TEXT
    assert answer.model == "big-1"
    assert pool.leased == []
    assert {name: raw.headers.get(f"x-mlxd-{name}") for name in ("route", "rule", "target", "model")} == {
        "route": "cloud",
        "rule": "big",
        "target": "far/org/model",
        "model": "org/model",
    }
    assert far.seen[0].path == "/v1/chat/completions"


async def test_a_stream_passes_event_for_event() -> None:
    """The official client sees the upstream's chunks, and the stream ends whole."""
    async with _cloudy() as (served, _, _), _client(served) as client:
        stream = await client.chat.completions.create(model="big-1", messages=MESSAGES, stream=True)
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
    assert tuple(pieces) == PIECES


async def test_completions_go_to_the_cloud_too() -> None:
    """/v1/completions is routed as chat is, streamed or not."""
    async with _cloudy() as (served, far, _), _client(served) as client:
        whole = await client.completions.create(model="big-1", prompt="hi")
        stream = await client.completions.create(model="big-1", prompt="hi", stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
    assert (whole.choices[0].text, tuple(pieces)) == (TEXT, PIECES)
    assert [seen.path for seen in far.seen] == ["/v1/completions"] * 2


async def test_the_body_is_passed_byte_for_byte_but_for_the_model() -> None:
    """Spaces, order, tools and fields that we know nothing of reach the upstream untouched."""
    body = b'{ "tools":[{"type":"x"}],\n "model" : "big-1", "seed":1.50, "x":"\\u00e9", "messages":[] }'
    async with (
        _cloudy() as (served, far, _),
        served.http.post(served.url + CHAT, data=body, headers={"Content-Type": "application/json"}) as response,
    ):
        assert response.status == 200
        assert (await response.json())["odd_field"] == {"kept": True}
    assert far.seen[0].body == body.replace(b'"big-1"', b'"org/model"')


async def test_nothing_of_the_clients_headers_is_forwarded() -> None:
    """The provider's own key goes out; the client's key, cookies and other headers stay here."""
    async with _cloudy() as (served, far, _):
        await served.post(
            CHAT, BODY, Authorization="Bearer the-clients-own", Cookie="a=b", X_Secret="1", OpenAI_Organization="o"
        )
    sent = far.seen[0].headers
    assert sent["Authorization"] == f"Bearer {KEY}"
    assert "the-clients-own" not in str(sent)
    assert {"Cookie", "X-Secret", "OpenAI-Organization", "x-request-id"}.isdisjoint(sent)


async def test_a_never_rule_keeps_the_name_here() -> None:
    """A never rule beats an always rule of any priority."""
    rule = {"match": "big-1", "mode": "never", "priority": -5}
    async with _cloudy(secret=rule) as (served, far, pool), _client(served) as client:
        raw = await client.chat.completions.with_raw_response.create(model="big-1", messages=MESSAGES)
    assert raw.parse().choices[0].message.content == "local"
    assert (pool.leased, far.seen) == (["big-1"], [])
    assert raw.headers["x-mlxd-route"] == "local"


async def test_the_client_may_forbid_the_cloud_and_nothing_else() -> None:
    """X-Mlxd-Route: local narrows; any other value is refused."""
    async with _cloudy() as (served, far, pool):
        local = await served.post(CHAT, BODY, X_Mlxd_Route="local")
        other = await served.post(CHAT, BODY, X_Mlxd_Route="cloud")
    assert (local[0], pool.leased, far.seen) == (200, ["big-1"], [])
    assert (other[0], json.loads(other[2])["error"]["param"]) == (400, "x-mlxd-route")


async def test_a_rule_with_the_cloud_off_says_so() -> None:
    """A name that only the cloud has is refused with the rule and the command that turns the cloud on."""
    async with _cloudy() as (served, far, pool), _client(served) as client:
        served.store.current = settings_of(_document(far.url, enabled=False))
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await client.chat.completions.create(model="big-1", messages=MESSAGES)
    assert refused.value.code == "cloud_disabled"
    assert "'big'" in refused.value.message
    assert "mlxctl cloud enable" in refused.value.message
    assert (pool.leased, far.seen) == ([], [])


async def test_a_rule_added_now_serves_the_very_next_request() -> None:
    """The settings are read per request; what ran before is not touched."""
    async with _cloudy() as (served, far, pool):
        body = BODY | {"model": "new"}
        await served.post(CHAT, body)
        served.store.current = settings_of(_document(far.url, new={"match": "new", "to": ["far/new"]}))
        await served.post(CHAT, body)
    assert (pool.leased, [seen.json["model"] for seen in far.seen]) == (["new"], ["new"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "headers"), [(404, {}), (429, {"Retry-After": "3"}), (500, {}), (503, {})])
async def test_a_failure_of_the_last_target_says_what_was_tried(
    status: int, headers: dict[str, str], stream: bool
) -> None:
    """Status, words and Retry-After are the upstream's; the attempts tell target, status and code."""
    reply = b'{"error": {"message": "their words", "code": "their_code"}}'
    async with _cloudy() as (served, far, _):
        far.behaviour, far.status, far.reply, far.reply_headers = "refuse", status, reply, headers
        got, got_headers, body = await served.post(CHAT, BODY | {"stream": stream})
    error = json.loads(body)["error"]
    (attempt,) = error["attempts"]
    assert (got, error["code"]) == (status, "upstream_error")
    assert "their words" in error["message"]
    assert (attempt["target"], attempt["status"], attempt["code"]) == ("far/org/model", status, "upstream_error")
    assert got_headers.get("Retry-After", "1") == headers.get("Retry-After", "1")
    assert got_headers["x-mlxd-attempts"] == "1"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "headers"), [(400, {}), (413, {}), (422, {})])
async def test_a_clients_own_mistake_goes_back_as_it_is(status: int, headers: dict[str, str], stream: bool) -> None:
    """Status and body of a refusal in OpenAI's envelope are the upstream's own."""
    reply = b'{"error": {"message": "their words", "code": "their_code", "extra": 1}}'
    async with _cloudy() as (served, far, _):
        far.behaviour, far.status, far.reply, far.reply_headers = "refuse", status, reply, headers
        got, got_headers, body = await served.post(CHAT, BODY | {"stream": stream})
    assert (got, body) == (status, reply)
    assert got_headers.get("Retry-After") == headers.get("Retry-After")


@pytest.mark.parametrize(("status", "ours"), [(404, 404), (503, 503), (301, 502)])
async def test_an_error_that_no_client_could_read_is_put_into_the_envelope(status: int, ours: int) -> None:
    """A proxy's HTML page becomes our error with the upstream's status; a redirect is not followed."""
    async with _cloudy() as (served, far, _):
        far.behaviour, far.status, far.reply = "refuse", status, b"<html>gateway</html>"
        far.reply_headers = {"Location": far.url + "/elsewhere", "Content-Type": "text/html"}
        got, headers, body = await served.post(CHAT, BODY)
        assert len(far.seen) == 1
    error = json.loads(body)["error"]
    assert (got, error["code"]) == (ours, "upstream_error")
    assert "far/org/model answered with status" in error["message"]
    assert ("Retry-After" in headers) == (ours == 503)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_ours_to_mend(status: int, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets 502 auth_failed without the upstream's words, which may quote the key."""
    async with _cloudy() as (served, far, pool), _client(served) as client:
        far.behaviour, far.status = "refuse", status
        far.reply = b'{"error": {"message": "bad key ' + KEY.encode() + b'"}}'
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(model="big-1", messages=MESSAGES)
    assert (refused.value.status_code, refused.value.code) == (502, "auth_failed")
    assert KEY not in str(refused.value.body)
    assert KEY not in caplog.text
    assert pool.leased == []


async def test_an_error_that_quotes_the_key_is_not_passed_on() -> None:
    """The upstream's words are dropped when our key is among them."""
    async with _cloudy() as (served, far, _):
        far.behaviour, far.status, far.reply = "refuse", 400, b'{"error": {"message": "' + KEY.encode() + b'"}}'
        status, _, body = await served.post(CHAT, BODY)
    assert status == 400
    assert KEY.encode() not in body


@pytest.mark.parametrize("value", [None, "", "  ", "kéy", "a\nb"])
async def test_a_missing_key_names_the_variable(value: str | None) -> None:
    """An unset, empty or unusable variable is 502 secret_missing, and nothing is sent."""
    environ = {} if value is None else {"FAR_KEY": value}
    async with upstream() as far, serving(ScriptedPool(end()), document=_document(far.url), environ=environ) as served:
        status, _, body = await served.post(CHAT, BODY)
        assert far.seen == []
    assert (status, json.loads(body)["error"]["code"]) == (502, "secret_missing")
    assert "FAR_KEY" in json.loads(body)["error"]["message"]


async def test_a_provider_without_a_key_gets_none() -> None:
    """A server on the LAN needs no Authorization, and the client's is not passed on instead."""
    async with upstream() as far:
        document = _document(far.url)
        del document["cloud"]["providers"]["far"]["auth"]
        async with serving(ScriptedPool(end()), document=document, environ={}) as served:
            await served.post(CHAT, BODY, Authorization="Bearer x")
    assert "Authorization" not in far.seen[0].headers


@pytest.mark.parametrize("stream", [False, True])
async def test_nobody_listens(stream: bool) -> None:
    """No connection is 502 upstream_unreachable."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        document = _document(f"http://127.0.0.1:{closed.getsockname()[1]}/v1")
        async with serving(ScriptedPool(end()), document=document, environ={"FAR_KEY": KEY}) as served:
            status, _, body = await served.post(CHAT, BODY | {"stream": stream})
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_upstream_dies_without_an_answer(stream: bool) -> None:
    """A connection that breaks before the answer is 502."""
    async with _cloudy() as (served, far, _):
        far.behaviour = "die"
        status, _, body = await served.post(CHAT, BODY | {"stream": stream})
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_broke")


@pytest.mark.parametrize(
    ("behaviour", "stream", "timeouts"),
    [
        ("hang", False, {"total": "50ms"}),
        ("hang", True, {"first_token": "50ms"}),
        ("hang_before_content", True, {"first_token": "50ms"}),
    ],
)
async def test_an_upstream_that_hangs_is_a_504(behaviour: str, stream: bool, timeouts: dict[str, str]) -> None:
    """No answer in time, or comments and no content, is 504 upstream_timeout; the upstream's connection is closed."""
    async with _cloudy(timeouts) as (served, far, _):
        far.behaviour = behaviour
        status, _, body = await served.post(CHAT, BODY | {"stream": stream})
        await far.gone.wait()
    assert (status, json.loads(body)["error"]["code"]) == (504, "upstream_timeout")


@pytest.mark.parametrize(
    ("behaviour", "timeouts"),
    [
        ("die_after_content", None),
        ("end_after_content", None),
        ("hang_after_content", {"idle": "50ms"}),
        ("hang_after_content", {"total": "200ms"}),
    ],
)
async def test_a_break_after_content_is_one_error_event(behaviour: str, timeouts: dict[str, str] | None) -> None:
    """Whole events only, then stream_interrupted, and no [DONE]."""
    async with _cloudy(timeouts) as (served, far, _):
        far.behaviour = behaviour
        status, _, body = await served.post(CHAT, BODY | {"stream": True})
    events = [json.loads(event.removeprefix("data: ")) for event in body.decode().strip().split("\n\n")[1:]]
    assert status == 200
    assert [event["choices"][0]["delta"]["content"] for event in events[:-1]] == list(PIECES[:2])
    assert events[-1]["error"]["code"] == "stream_interrupted"
    assert b"[DONE]" not in body


async def test_the_official_client_raises_on_a_broken_stream() -> None:
    """The error event becomes an APIError with the code."""
    async with _cloudy() as (served, far, _), _client(served) as client:
        far.behaviour = "die_after_content"
        stream = await client.chat.completions.create(model="big-1", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            async for _ in stream:
                pass


async def test_a_key_in_a_stream_is_masked() -> None:
    """An upstream that repeats our key in an event does not tell it to the client; the rest is byte for byte."""
    async with _cloudy() as (served, far, _):
        far.behaviour, far.words = "error_event", f"bad key {KEY}"
        _, _, body = await served.post(CHAT, BODY | {"stream": True})
    assert KEY.encode() not in body
    assert b"bad key [the provider's key]" in body


async def test_an_upstreams_own_error_event_is_the_last() -> None:
    """When the upstream reports its error in the stream, ours is not added."""
    async with _cloudy() as (served, far, _):
        far.behaviour = "error_event"
        _, _, body = await served.post(CHAT, BODY | {"stream": True})
    assert body.count(b'"error"') == 1
    assert b"overloaded" in body


@pytest.mark.parametrize(("behaviour", "stream"), [("hang", False), ("hang", True), ("hang_after_content", True)])
async def test_a_client_that_goes_away_closes_the_upstreams_connection(behaviour: str, stream: bool) -> None:
    """The disconnect travels all the way."""
    async with _cloudy() as (served, far, _):
        far.behaviour = behaviour
        asking = asyncio.create_task(served.post(CHAT, BODY | {"stream": stream}))
        await far.arrived.wait()
        asking.cancel()
        await far.gone.wait()
        await served.context.requests.wait_idle()
        assert far.open_requests == 0


async def test_a_cloud_request_is_listed_and_can_be_cancelled() -> None:
    """RunningRequests shows the cloud's requests beside the local ones."""
    async with _cloudy() as (served, far, _):
        far.behaviour = "hang"
        asking = asyncio.create_task(served.post(CHAT, BODY, x_request_id="mine"))
        await far.arrived.wait()
        (listed,) = served.context.requests.list()
        served.context.requests.cancel("mine", "enough")
        status, _, body = await asking
    assert (listed.route, listed.model) == ("cloud", "org/model")
    assert (status, json.loads(body)["error"]["message"]) == (499, "enough")


async def test_exact_names_of_the_cloud_are_listed_as_models() -> None:
    """/v1/models has the names that exact rules send away, while the cloud is on."""
    rule = {"match": "exact:org/far-model", "to": ["far/x"]}
    async with _cloudy(one=rule) as (served, far, _), _client(served) as client:
        names = [model.id async for model in client.models.list()]
        one = await client.models.retrieve("org/far-model")
        served.store.current = settings_of(_document(far.url, enabled=False, one=rule))
        names_off = [model.id async for model in client.models.list()]
    assert (names, one.id, one.owned_by, names_off) == (["org/far-model"], "org/far-model", "far", [])


@pytest.mark.parametrize("status", [None, 429])
async def test_a_slow_upstream_is_kept_alive_by_our_comments(status: int | None) -> None:
    """A stream gets comments while the upstream thinks; a refusal after that is an error event."""
    clock = FakeClock()
    async with _cloudy(clock=clock) as (served, far, _):
        far.may_answer.clear()
        if status is not None:
            far.behaviour, far.status, far.reply = "refuse", status, b'{"error": {"message": "too many"}}'
        asking = asyncio.create_task(served.http.post(served.url + CHAT, json=BODY | {"stream": True}))
        await far.arrived.wait()
        clock.run_next()
        async with await asking as response:
            far.may_answer.set()
            body = await response.read()
    assert response.status == 200
    assert body.startswith(b": keep-alive\n\n")
    if status is None:
        assert b": x-mlxd-route: cloud, x-mlxd-target: far/org/model\n\n" in body
        assert body.endswith(b"data: [DONE]\n\n")
    else:
        assert b"too many" in body
        assert json.loads(body.split(b"data: ")[1])["error"]["code"] == "upstream_error"
        assert b"[DONE]" not in body


async def test_a_whole_answer_is_never_begun_by_comments() -> None:
    """Only a stream may be kept alive: the timer of comments does not even run."""
    clock = FakeClock()
    async with _cloudy(clock=clock) as (served, far, _):
        far.may_answer.clear()
        asking = asyncio.create_task(served.post(CHAT, BODY))
        await far.arrived.wait()
        assert clock.next_s is None
        far.may_answer.set()
        status, _, body = await asking
    assert (status, json.loads(body)["id"]) == (200, "up-1")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_of_the_other_kind_is_a_failure(stream: bool) -> None:
    """A stream where none was asked for, or a whole answer for one: a client would read it as an empty answer."""
    async with _cloudy() as (served, far, _):
        far.behaviour = "other_kind"
        status, _, body = await served.post(CHAT, BODY | {"stream": stream})
    error = json.loads(body)["error"]
    asked = "a stream was asked for" if stream else "a whole answer was asked for"
    assert (status, error["code"], asked in error["message"]) == (502, "upstream_error", True)


async def test_daemons_that_send_in_a_circle_stop() -> None:
    """A rule whose provider is this very daemon ends after three rounds with 508, not when the sockets run out."""
    async with serving(ScriptedPool(end()), environ={"FAR_KEY": KEY}) as served:
        document = _document(served.url + "/v1", big={"match": "glob:*", "to": ["far/again"]})
        served.store.current = settings_of(document)
        status, _, body = await served.post(CHAT, BODY)
    assert status == 508
    assert "circle" in json.loads(body)["error"]["message"]


def _proxied(url: str, proxy: Upstream) -> dict[str, Any]:
    document = _document(url)
    document["cloud"]["providers"]["far"]["proxy"] = proxy.url.removesuffix("/v1")
    return document


async def test_a_provider_may_be_behind_a_proxy() -> None:
    """The request goes to the proxy, with the provider's address and key; the environment's proxies do not count."""
    async with upstream() as proxy:
        document = _proxied("http://provider.local:81/v1", proxy)
        async with serving(ScriptedPool(end()), document=document, environ={"FAR_KEY": KEY}) as served:
            status, _, body = await served.post(CHAT, BODY)
    assert (status, json.loads(body)["choices"][0]["message"]["content"]) == (200, TEXT)
    (seen,) = proxy.seen
    assert (seen.headers["Host"], seen.headers["Authorization"]) == ("provider.local:81", f"Bearer {KEY}")


async def test_a_proxy_that_refuses_has_sent_nothing() -> None:
    """A tunnel that is not opened is no answer of the provider; the words name both addresses."""
    async with upstream() as proxy:
        document = _proxied("https://provider.local/v1", proxy)
        async with serving(ScriptedPool(end()), document=document, environ={"FAR_KEY": KEY}) as served:
            status, _, body = await served.post(CHAT, BODY)
            assert served.context.upstreams.budget.today.spent == 0
    error = json.loads(body)["error"]
    assert (status, error["code"], proxy.seen) == (502, "upstream_unreachable", [])
    assert "https://provider.local/v1 by way of http://127.0.0.1:" in error["message"]


@pytest.mark.parametrize("asks", [None, False, True])
async def test_usage_is_told_to_those_who_ask_for_it(asks: bool | None) -> None:
    """The log knows it in any case; a stream that did not ask for it has no event for it."""
    options = {} if asks is None else {"stream_options": {"include_usage": asks}}
    async with _cloudy() as (served, far, _):
        far.said = Said()
        _, _, body = await served.post(CHAT, BODY | {"stream": True} | options)
        (row,) = served.rows
    assert (b'"usage": {"' in body) is (asks is True)
    assert body.count(b'"content"') >= len(far.said.words)
    assert (row.prompt_tokens, row.completion_tokens, row.cost_micro_usd) == (10, 6, None)
