"""The official clients of both protocols, routed to upstreams of both: they cannot tell but by headers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from tests.support import claude_code
from tests.support.http_server import Served, serving
from tests.support.said import Call, Said, error_body
from tests.support.scripted_pool import ScriptedPool, end
from tests.support.upstream import KEY, Upstream, upstream

KINDS = ("openai", "anthropic")
HI: Any = [{"role": "user", "content": "hi"}]
CALLS = Said(
    words=("Let me see.",),
    calls=(Call("call_a", "weather", ('{"city":', '"Rome"}')), Call("call_b", "weather", ('{"city":"Oslo"}',))),
    end="calls",
)
SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
OPENAI_TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
ANTHROPIC_TOOLS: Any = [{"name": "weather", "input_schema": SCHEMA}]


@asynccontextmanager
async def routed() -> AsyncIterator[tuple[Served, Upstream]]:
    """Serve with rules that send `via-openai` and `via-anthropic` to one upstream by one protocol each."""
    async with upstream() as far:
        far.said = Said()
        auth = {"env": "KEY"}
        providers = {kind: {"kind": kind, "base_url": far.url, "auth": auth} for kind in KINDS}
        rules = {kind: {"match": f"via-{kind}", "to": [f"{kind}/far"]} for kind in KINDS}
        document = {"cloud": {"enabled": True, "providers": providers, "rules": rules}}
        async with serving(ScriptedPool(end()), document=document, environ={"KEY": KEY}) as served:
            yield served, far


def openai_client(url: str) -> openai.AsyncOpenAI:
    """Return OpenAI's client for an address up to and including /v1; certificates, which take time, are not read."""
    plain = openai.DefaultAsyncHttpxClient(verify=False)
    return openai.AsyncOpenAI(base_url=url, api_key="the-clients-own", max_retries=0, http_client=plain)


def anthropic_client(url: str) -> anthropic.AsyncAnthropic:
    """Return Anthropic's client for an address up to and including /v1."""
    plain, base_url = anthropic.DefaultAsyncHttpxClient(verify=False), url.removesuffix("/v1")
    return anthropic.AsyncAnthropic(base_url=base_url, api_key="the-clients-own", max_retries=0, http_client=plain)


async def chat(client: openai.AsyncOpenAI, *, stream: bool, **body: Any) -> Any:
    """Return a chat completion, put together by the client's own helper where it is streamed."""
    body = {"model": "far", "messages": HI} | body
    if not stream:
        return await client.chat.completions.create(**body)
    async with client.chat.completions.stream(**body, stream_options={"include_usage": True}) as running:
        async for _ in running:
            pass
        return await running.get_final_completion()


async def message(client: anthropic.AsyncAnthropic, *, stream: bool, **body: Any) -> Any:
    """Return a message, put together by the client's own helper where it is streamed."""
    body = {"model": "far", "messages": HI, "max_tokens": 99} | body
    if not stream:
        return await client.messages.create(**body)
    async with client.messages.stream(**body) as running:
        async for _ in running:
            pass
        return await running.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [Said(), CALLS, Said(end="length"), Said(words=("No.",), end="refused")])
async def test_openais_client_cannot_tell(said: Said, kind: str, stream: bool) -> None:
    """The object that it parses is that of a direct answer, field for field, but for the time of its making."""
    async with routed() as (served, far), openai_client(far.url) as direct, openai_client(served.url + "/v1") as ours:
        far.said = said
        tools = {"tools": OPENAI_TOOLS} if said.calls else {}
        expected = await parsed(direct, stream=stream, **tools)
        answer = await parsed(ours, stream=stream, model=f"via-{kind}", **tools)
    assert answer == (expected if isinstance(expected, type) else expected | {"model": f"via-{kind}"})


async def parsed(client: openai.AsyncOpenAI, **body: Any) -> Any:
    """Return what the client makes of a chat: its fields, or what its helper raises for an answer that is cut short."""
    try:
        answer = await chat(client, **body)
    except (openai.LengthFinishReasonError, openai.ContentFilterFinishReasonError) as error:
        return type(error)
    assert answer.created > 0
    return answer.model_dump(exclude={"created"})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [Said(), CALLS, Said(end="length"), Said(words=("No.",), end="refused")])
async def test_anthropics_client_cannot_tell(said: Said, kind: str, stream: bool) -> None:
    """The object that it parses is that of a direct answer, field for field."""
    async with (
        routed() as (served, far),
        anthropic_client(far.url) as direct,
        anthropic_client(served.url) as ours,
    ):
        far.said = said
        expected = await message(direct, stream=stream, tools=ANTHROPIC_TOOLS)
        answer = await message(ours, stream=stream, tools=ANTHROPIC_TOOLS, model=f"via-{kind}")
    assert answer.model_dump() == expected.model_dump() | {"model": f"via-{kind}"}


@pytest.mark.parametrize("include_usage", [False, True])
async def test_openais_chunks_are_those_of_a_direct_stream(include_usage: bool) -> None:
    """One by one: the role first, words, heads and pieces of calls, the reason, and usage if it was asked for."""
    async with routed() as (served, far), openai_client(far.url) as direct, openai_client(served.url + "/v1") as ours:
        far.said = CALLS
        seen = []
        for client, model in ((direct, "far"), (ours, "via-anthropic")):
            chunks = await client.chat.completions.create(
                model=model, messages=HI, stream=True, stream_options={"include_usage": include_usage}
            )
            seen.append([chunk.model_dump(exclude={"created"}, exclude_unset=True) async for chunk in chunks])
    assert seen[1] == [chunk | {"model": "via-anthropic"} for chunk in seen[0]]
    assert len(seen[0]) == 8 + include_usage


async def test_anthropics_events_are_those_of_a_direct_stream() -> None:
    """One by one, but for pings, and for the usage at the start, which a chat tells at the end only."""
    async with (
        routed() as (served, far),
        anthropic_client(far.url) as direct,
        anthropic_client(served.url) as ours,
    ):
        far.said = CALLS
        seen = []
        for client, model in ((direct, "far"), (ours, "via-openai")):
            events = await client.messages.create(model=model, max_tokens=99, messages=HI, stream=True)
            seen.append([event.model_dump() async for event in events])
    for start in (seen[0][0], seen[1][0]):
        del start["message"]["usage"], start["message"]["model"]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_round_of_tools_by_openais_client(kind: str, stream: bool) -> None:
    """Calls are answered with results, and the upstream gets both in its own shape."""
    async with routed() as (served, far), openai_client(served.url + "/v1") as client:
        far.said = CALLS
        body: dict[str, Any] = {"model": f"via-{kind}", "tools": OPENAI_TOOLS, "stream": stream}
        first = await chat(client, **body)
        asked = first.choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in asked.tool_calls]
        far.said = Said()
        last = await chat(client, **body, messages=[*HI, asked.model_dump(exclude_none=True), *results])
    assert last.choices[0].message.content == Said().text
    sent = far.seen[-1].json["messages"]
    if kind == "openai":
        assert [turn["role"] for turn in sent] == ["user", "assistant", "tool", "tool"]
        return
    assert sent[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Rome"}},
                {"type": "tool_use", "id": "call_b", "name": "weather", "input": {"city": "Oslo"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": name, "content": "sun"} for name in ("call_a", "call_b")
            ],
        },
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_round_of_tools_by_anthropics_client(kind: str, stream: bool) -> None:
    """Calls are answered with results, and the upstream gets both in its own shape."""
    async with routed() as (served, far), anthropic_client(served.url) as client:
        far.said = CALLS
        body: dict[str, Any] = {"model": f"via-{kind}", "tools": ANTHROPIC_TOOLS, "stream": stream}
        first = await message(client, **body)
        uses = [block for block in first.content if block.type == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": use.id, "content": "sun"} for use in uses]
        turns = [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        far.said = Said()
        last = await message(client, **body, messages=[*HI, *turns])
    assert last.content[0].text == Said().text
    sent = far.seen[-1].json["messages"]
    if kind == "anthropic":
        assert [turn["role"] for turn in sent] == ["user", "assistant", "user"]
        return
    assert [(turn["role"], turn["content"]) for turn in sent[1:]] == [
        ("assistant", "Let me see."),
        ("tool", "sun"),
        ("tool", "sun"),
    ]
    assert [call["function"]["arguments"] for call in sent[1]["tool_calls"]] == ['{"city":"Rome"}', '{"city":"Oslo"}']


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_of_anthropic_go_through_openais_client_and_back(stream: bool) -> None:
    """They are read as reasoning, and what the client sends back is what Anthropic signed."""
    async with routed() as (served, far), openai_client(served.url + "/v1") as client:
        far.said = Said(thoughts=("h", "m"))
        answer = await chat(client, model="via-anthropic", stream=stream)
        said = answer.choices[0].message
        await chat(
            client, model="via-anthropic", stream=stream, messages=[*HI, said.model_dump(exclude_none=True), *HI]
        )
    assert said.reasoning_content == "hm"
    assert far.seen[-1].json["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "text", "text": Said().text},
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_of_openais_upstreams_are_blocks(stream: bool) -> None:
    """Anthropic's client reads them as thinking, and they go back as reasoning."""
    async with routed() as (served, far), anthropic_client(served.url) as client:
        far.said = Said(thoughts=("h", "m"))
        answer = await message(client, model="via-openai", stream=stream)
        turns = [*HI, {"role": "assistant", "content": answer.content}, *HI]
        await message(client, model="via-openai", stream=stream, messages=turns)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    assert far.seen[-1].json["messages"][1]["reasoning_content"] == "hm"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_said_is_never_sent(stream: bool) -> None:
    """The official clients get their own 400 with the field; the upstream gets nothing."""
    async with (
        routed() as (served, far),
        openai_client(served.url + "/v1") as ours,
        anthropic_client(served.url) as theirs,
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await ours.chat.completions.create(model="via-anthropic", messages=HI, seed=1, stream=stream)
        with pytest.raises(anthropic.BadRequestError, match="inference_geo") as refused_too:
            await theirs.messages.create(
                model="via-openai", messages=HI, max_tokens=9, stream=stream, extra_body={"inference_geo": "eu"}
            )
        with pytest.raises(openai.BadRequestError, match="embeddings"):
            await ours.embeddings.create(model="via-anthropic", input="x")
        with pytest.raises(anthropic.BadRequestError, match="count_tokens"):
            await theirs.messages.count_tokens(model="via-openai", messages=HI)
        assert far.seen == []
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "seed")
    assert refused_too.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


async def test_what_is_left_out_is_named_in_a_header() -> None:
    """Fields that are no one's are told, routed as at home."""
    async with routed() as (served, _):
        body = {"model": "via-anthropic", "messages": HI, "chat_id": 5}
        _, headers, _ = await served.post("/v1/chat/completions", body)
    assert (headers["x-mlxd-ignored-fields"], headers["x-mlxd-target"]) == ("chat_id", "anthropic/far")


@pytest.mark.parametrize("stream", [False, True])
async def test_claude_code_is_answered_by_an_upstream_of_openais_protocol(stream: bool) -> None:
    """Its body is no 400; what it has to do without is named, and the message is of the model that it asked for."""
    asked = claude_code.body(claude_code.billing()) | {
        "model": "via-openai",
        "stream": stream,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "metadata": {"user_id": "x" * 159},
    }
    async with routed() as (served, far):
        status, headers, answer = await served.post("/v1/messages?beta=true", asked, anthropic_beta="effort-2025-11-24")
    assert (status, headers["x-mlxd-ignored-fields"]) == (200, "context_management, thinking.display")
    assert b'"model":"via-openai"' in answer
    assert len(far.seen[0].json["user"]) == 64


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "openais", "anthropics"),
    [
        (400, openai.BadRequestError, anthropic.BadRequestError),
        (404, openai.NotFoundError, anthropic.NotFoundError),
        (422, openai.UnprocessableEntityError, anthropic.UnprocessableEntityError),
        (429, openai.RateLimitError, anthropic.RateLimitError),
        (500, openai.InternalServerError, anthropic.InternalServerError),
        (529, openai.InternalServerError, anthropic.OverloadedError),
    ],
)
async def test_errors_are_those_of_the_clients_own_protocol(
    status: int,
    openais: type[openai.APIStatusError],
    anthropics: type[anthropic.APIStatusError],
    kind: str,
    stream: bool,
) -> None:
    """Class, words and Retry-After are what a direct call would have given."""
    async with (
        routed() as (served, far),
        openai_client(served.url + "/v1") as ours,
        anthropic_client(served.url) as theirs,
    ):
        far.behaviour, far.status, far.reply = "refuse", status, error_body("their words", speaks=kind)
        far.reply_headers = {"Retry-After": "7"} if status == 429 else {}
        with pytest.raises(openais, match="their words") as one:
            await ours.chat.completions.create(model=f"via-{kind}", messages=HI, stream=stream)
        with pytest.raises(anthropics, match="their words") as two:
            await theirs.messages.create(model=f"via-{kind}", messages=HI, max_tokens=9, stream=stream)
    if status == 429:
        assert (one.value.response.headers["Retry-After"], two.value.response.headers["Retry-After"]) == ("7", "7")
    assert set(json.loads(one.value.response.content)) == {"error"}
    assert json.loads(two.value.response.content)["type"] == "error"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_key_is_not_the_clients_fault(kind: str) -> None:
    """The key is this machine's: the client learns who refused it, and that another try is in vain."""
    async with (
        routed() as (served, far),
        openai_client(served.url + "/v1") as ours,
        anthropic_client(served.url) as theirs,
    ):
        far.behaviour, far.status, far.reply = "refuse", 401, error_body("bad key", speaks=kind)
        with pytest.raises(openai.InternalServerError, match="refused the key") as one:
            await ours.chat.completions.create(model=f"via-{kind}", messages=HI)
        with pytest.raises(anthropic.InternalServerError, match="refused its key") as two:
            await theirs.messages.create(model=f"via-{kind}", messages=HI, max_tokens=9)
    assert {error.value.response.headers["x-should-retry"] for error in (one, two)} == {"false"}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_before_any_content_has_a_status(kind: str) -> None:
    """A stream that begins with its error is no stream for the client."""
    async with (
        routed() as (served, far),
        openai_client(served.url + "/v1") as ours,
        anthropic_client(served.url) as theirs,
    ):
        far.behaviour = "error_first"
        with pytest.raises(openai.InternalServerError, match="Overloaded"):
            await chat(ours, model=f"via-{kind}", stream=True)
        with pytest.raises(anthropic.InternalServerError, match="Overloaded"):
            await message(theirs, model=f"via-{kind}", stream=True)


@pytest.mark.parametrize("behaviour", ["error_event", "die_after_content", "end_after_content"])
@pytest.mark.parametrize("kind", KINDS)
async def test_after_content_it_is_one_error_event(kind: str, behaviour: str) -> None:
    """What was said stands; the error is the last event, in the client's dialect, and nothing says that it is whole."""
    async with routed() as (served, far):
        far.behaviour = behaviour
        bodies = []
        for path in ("/v1/chat/completions", "/v1/messages"):
            asked = {"model": f"via-{kind}", "messages": HI, "max_tokens": 9, "stream": True}
            status, _, body = await served.post(path, asked)
            assert status == 200
            bodies.append(body.decode())
    assert all("Hel" in body and "error" in body.rsplit("\n\n", 2)[-2] for body in bodies)
    assert "[DONE]" not in bodies[0]
    assert "message_stop" not in bodies[1]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_clients_see_the_error_in_a_stream(kind: str) -> None:
    """Each raises its own exception after the words that came before."""
    async with (
        routed() as (served, far),
        openai_client(served.url + "/v1") as ours,
        anthropic_client(served.url) as theirs,
    ):
        far.behaviour = "error_event"
        with pytest.raises(openai.APIError, match="Overloaded"):
            await chat(ours, model=f"via-{kind}", stream=True)
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            await message(theirs, model=f"via-{kind}", stream=True)


async def test_betas_and_version_of_a_client_reach_an_upstream_of_its_protocol() -> None:
    """A body that is passed on is read by its own headers; one that is translated is not, nor is one without them."""
    own = {"anthropic_version": "2024-01-01", "anthropic_beta": "context-management-2025-06-27,effort-2025-11-24"}
    async with routed() as (served, far):
        for kind, headers in (("anthropic", own), ("anthropic", {}), ("openai", own)):
            body = {"model": f"via-{kind}", "messages": HI, "max_tokens": 9}
            status, _, _ = await served.post("/v1/messages", body, **headers)
            assert status == 200
    assert [(seen.headers.get("anthropic-version"), seen.headers.get("anthropic-beta")) for seen in far.seen] == [
        ("2024-01-01", "context-management-2025-06-27,effort-2025-11-24"),
        ("2023-06-01", None),
        (None, None),
    ]


@pytest.mark.parametrize("value", ["a;b", "é", "x" * 2049])
async def test_betas_of_other_characters_are_refused(value: str) -> None:
    """The header is named, and nothing is sent."""
    async with routed() as (served, far):
        body = {"model": "via-anthropic", "messages": HI, "max_tokens": 9}
        status, _, answer = await served.post("/v1/messages", body, anthropic_beta=value)
        assert far.seen == []
    assert (status, "anthropic-beta" in json.loads(answer)["error"]["message"]) == (400, True)
