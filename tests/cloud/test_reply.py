"""What is made of an upstream's answer: its words without the key, its end, its errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mlxd.cloud.connection import Reply
from mlxd.cloud.protocol.anthropic import Anthropic
from mlxd.cloud.protocol.base import whole
from mlxd.cloud.protocol.openai import OpenAI
from mlxd.cloud.router import CloudRoute
from mlxd.cloud.upstream import most_tokens
from mlxd.engine.base import Usage
from mlxd.protocol.errors import StreamInterrupted, UpstreamError, UpstreamTimeout
from mlxd.protocol.settings import ProviderSettings, TimeoutSettings

KEY = 'sk/far"0123456789'
ESCAPED = [json.dumps(KEY)[1:-1], json.dumps(KEY)[1:-1].replace("/", "\\/")]


class Body:
    """The rest of an answer, which came in chunks."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)

    async def readany(self) -> bytes:
        for _ in range(3):
            await asyncio.sleep(0)  # the loop sees that the next chunk has yet to come
        return self._chunks.pop(0) if self._chunks else b""

    async def iter_any(self) -> AsyncIterator[bytes]:
        while self._chunks:
            yield self._chunks.pop(0)


_NOW_S = 1e12  # the loop's clock never comes near its timeouts


def reply(*chunks: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> Reply:
    """Return the reply of an upstream that was sent `KEY`."""
    response = SimpleNamespace(status=status, content_type=kind, headers=headers, content=Body(*chunks))
    return replying(response, 45, _NOW_S)


def replying(response: SimpleNamespace, first_token_s: float, started_s: float) -> Reply:
    """Return the reply that a response is."""
    timeouts = TimeoutSettings(5, first_token_s, 60, 900)
    provider = ProviderSettings(kind="openai", base_url="http://far/v1", auth=None, proxy=None, timeouts=timeouts)
    return Reply(cast("Any", response), CloudRoute("r", "one", provider, "a"), OpenAI(), started_s, KEY)


async def said(answer: Reply) -> bytes:
    """Return a stream's events as they are passed on."""
    return b"".join([event.raw async for group in answer.events() for event, _ in group])


@pytest.mark.parametrize("is_json", [True, False])
def test_a_key_across_the_cut_of_an_errors_words_is_not_told(is_json: bool) -> None:
    """No part of it stands in the message."""
    words = "x" * 295 + KEY
    body = json.dumps({"error": {"message": words}}).encode() if is_json else words.encode()
    assert "sk/" not in reply(status=500).failure(body).message


@pytest.mark.parametrize("form", ESCAPED)
async def test_a_key_that_json_has_escaped_is_found(form: str) -> None:
    """In an error's body, a whole answer and an event alike."""
    secret = form.encode()
    assert not reply(status=400).is_envelope(b'{"error":{"message":"%b"}}' % secret)
    assert b"0123456789" not in await reply(b'{"choices":["%b"]}' % secret).read()
    chunk = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\ndata: [DONE]\n\n' % secret
    assert b"0123456789" not in await said(reply(chunk))


async def test_an_error_that_is_null_does_not_end_a_stream() -> None:
    """The rest of it is passed on; a stream that breaks off after an error that is one is whole."""
    chunk = b'data: {"error":null,"choices":[{"delta":{"content":"%b"}}]}\n\n'
    pieces = [chunk % b"Hel", chunk % b"lo", b"data: [DONE]\n\n"]
    assert await said(reply(*pieces)) == b"".join(pieces)
    failed = [chunk % b"Hel", b'data: {"id":"x","error":{"message":"boom"}}\n\n']
    assert await said(reply(*failed)) == b"".join(failed)


async def test_pieces_may_be_waited_for() -> None:
    """Each has its own time, which begins when it is asked for."""
    chunk = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n'
    pieces = [chunk % b"Hel", chunk % b"lo", b"data: [DONE]\n\n"]
    assert await said(reply(*pieces, kind="text/event-stream")) == b"".join(pieces)


async def test_the_first_error_of_a_stream_is_the_one_that_is_told() -> None:
    """What comes after it does not take it back."""
    chunk = b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n'
    answer = reply(chunk, b'data: {"error":{"message":"boom"}}\n\n' + chunk)
    await said(answer)
    assert answer.failed == "boom"


@pytest.mark.parametrize(("status", "told"), [(302, None), (400, 400), (599, 599), (600, None)])
def test_an_error_has_the_status_of_one(status: int, told: int | None) -> None:
    """A client is not told of a redirect, nor of a number that is no status."""
    assert reply(status=status).failure(b"").data.get("status") == told


def test_a_pause_without_end_is_a_day() -> None:
    """Digits that no number holds are not infinity."""
    assert reply(status=429, **{"Retry-After": "9" * 5000}).retry_after_s == 86_400
    assert reply(status=429, **{"Retry-After": "3"}).retry_after_s == 3


async def test_an_error_with_a_status_of_success_is_an_error() -> None:
    """So that the next target is asked, in words without the key; a response that has failed is an answer."""
    words = json.dumps(f"overloaded, and your key is {KEY}").encode()
    with pytest.raises(UpstreamError, match=r"one/a answered with an error: $"):
        await reply(b'{"error":{"message":%b}}' % words).read()
    failed = b'{"id":"r","object":"response","status":"failed","error":{"message":"boom"},"output":[]}'
    assert await reply(failed).read() == failed


@pytest.mark.parametrize(
    ("endpoint", "body", "tokens"),
    [
        ("completions", {"prompt": ["a", "b", "c"], "n": 2}, 60),
        ("completions", {"prompt": [[1, 2], [3]]}, 20),
        ("completions", {"prompt": [1, 2, 3]}, 10),
        ("completions", {"prompt": []}, 10),
        ("chat/completions", {"prompt": ["a", "b"]}, 10),
        ("embeddings", {"input": ["a"]}, 0),
        ("messages/count_tokens", {}, 0),
        ("responses/input_tokens", {}, 0),
    ],
)
def test_all_answers_to_a_request_are_reserved(endpoint: str, body: dict[str, Any], tokens: int) -> None:
    """One for each prompt and choice, and none where a model says nothing."""
    assert most_tokens(endpoint, body | {"max_tokens": 10}) == tokens


def test_the_usage_of_an_anthropic_stream_comes_in_two_parts() -> None:
    """The prompt's is told at its start; an end that tells it again is right, one alone has what it says."""
    begun = Anthropic().usage_of({"message": {"usage": {"input_tokens": 7, "cache_read_input_tokens": 2}}}, None)
    assert begun == Usage(9, 2, 0)
    assert Anthropic().usage_of({"usage": {"output_tokens": 5}}, begun) == Usage(9, 2, 5)
    assert Anthropic().usage_of({"usage": {"input_tokens": 8, "output_tokens": 5}}, begun) == Usage(8, 0, 5)
    assert Anthropic().usage_of({"usage": {"output_tokens": 5}}, None) == Usage(0, 0, 5)


@pytest.mark.parametrize(
    ("value", "count"), [(1, 1), (7, 7), (0, 0), (-1, 0), (True, 0), (1.0, 0), ("1", 0), (None, 0)]
)
def test_a_count_is_a_whole_number(value: object, count: int) -> None:
    """Whatever an upstream says of tokens; what is none counts as nothing."""
    assert whole(value) == count


_WORD = b'data: {"choices":[{"index":%d,"delta":{"content":"Hel"}}]}\n\n'
_REASON = b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":"stop"}]}\n\n'
_USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":2,"completion_tokens":1}}\n\n'


async def test_a_chat_that_tells_its_end_is_whole_without_a_last_line() -> None:
    """The client gets the line that the server forgot, and what was counted is what was used."""
    answer = reply(_WORD % 0, _REASON % 0, _USAGE, kind="text/event-stream")
    assert (await said(answer)).endswith(_USAGE + b"data: [DONE]\n\n")
    assert (answer.is_whole, answer.usage) == (True, Usage(2, 0, 1))


async def test_a_chat_of_which_one_answer_has_no_end_is_not_whole() -> None:
    """Each choice has its own."""
    answer = reply(_WORD % 0, _WORD % 1, _REASON % 0, _USAGE, kind="text/event-stream")
    with pytest.raises(StreamInterrupted):
        await said(answer)
    assert not answer.is_whole


@pytest.mark.parametrize("last", ["response.completed", "response.incomplete", "response.failed"])
async def test_events_without_names_are_called_by_their_type(last: str) -> None:
    """Some servers leave the line `event:` out."""
    events = b'data: {"type":"response.output_text.delta","delta":"Hel"}\n\n' + (
        b'data: {"type":"%b","response":{"usage":{"input_tokens":2,"output_tokens":1}}}\n\n' % last.encode()
    )
    answer = reply(events, kind="text/event-stream")
    assert await said(answer) == events
    assert (answer.is_whole, answer.usage) == (True, Usage(2, 0, 1))


class Thinking(Body):
    """An upstream that sends a sign of life each 40 s, of a clock that it moves."""

    def __init__(self, clock: Callable[[float], None], *chunks: bytes) -> None:
        super().__init__(*chunks)
        self._advance = clock

    async def readany(self) -> bytes:
        self._advance(40)
        return await super().readany()


@pytest.mark.parametrize(
    "sign",
    [
        b": PROCESSING\n\n",
        b'event: ping\ndata: {"type":"ping"}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
    ],
)
@pytest.mark.parametrize("limit_s", [45, 30])
async def test_signs_of_life_extend_the_wait_for_the_first_content(
    sign: bytes, limit_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upstream that thinks for minutes is waited for, unless one silence is too long."""
    loop, passed_s = asyncio.get_running_loop(), 0.0
    real = loop.time

    def advance(by_s: float) -> None:
        nonlocal passed_s
        passed_s += by_s

    monkeypatch.setattr(loop, "time", lambda: real() + passed_s)
    body = Thinking(advance, sign, sign, sign, _WORD % 0, _REASON % 0)
    response = SimpleNamespace(status=200, content_type="text/event-stream", headers={}, content=body)
    answer = replying(response, limit_s, loop.time())
    if limit_s == 45:
        assert (await said(answer)).startswith(sign * 3 + _WORD % 0)
    else:
        with pytest.raises(UpstreamTimeout):
            await said(answer)
