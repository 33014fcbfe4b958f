"""POST /v1/chat/completions: transcripts, streamed and whole, and what happens when things end early."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxd.engine.base import Delta, FinishReason, Prefilling, TextKind
from mlxd.protocol.errors import GenerationFailed, QueueFull, QueueTimeout, RequestCancelled
from tests.support.clock import FakeClock
from tests.support.http_server import CREATED_S, serving
from tests.support.scripted_pool import ScriptedPool, Step, end, say

PATH = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
HEAD = (
    'data: {"id":"chatcmpl-golden","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    '"system_fingerprint":"mlxd-VERSION","choices":['
)


def _golden(*lines: str) -> str:
    import mlxd

    return "".join(f"{line}\n\n" for line in lines).replace("HEAD", HEAD).replace("VERSION", mlxd.__version__)


async def test_a_stream_is_exactly_this() -> None:
    """The role comes first, then one chunk per piece, the finish reason, [DONE]."""
    pool = ScriptedPool([Prefilling(1, 1, 1), *say('Hel"', "", "lo\n☃"), *end(FinishReason.LENGTH)])
    async with serving(pool) as served:
        status, headers, body = await served.post(PATH, HELLO | {"stream": True}, x_request_id="golden")
    assert status == 200
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["x-request-id"] == "golden"
    assert (headers["x-mlxd-route"], headers["x-mlxd-model"]) == ("local", "m")
    assert body.decode() == _golden(
        'HEAD{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]}',
        'HEAD{"index":0,"delta":{"content":"Hel\\""},"logprobs":null,"finish_reason":null}]}',
        'HEAD{"index":0,"delta":{"content":"lo\\n☃"},"logprobs":null,"finish_reason":null}]}',
        'HEAD{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}',
        "data: [DONE]",
    )


async def test_a_stream_with_usage_and_reasoning_is_exactly_this() -> None:
    """Reasoning has a delta of its own, usage comes last and is null before."""
    script = [*say("hm", kind=TextKind.REASONING), Delta(1, "so", TextKind.CONTENT, 2), *end()]
    body = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
    async with serving(ScriptedPool(script)) as served:
        _, _, answer = await served.post(PATH, body, x_request_id="golden")
    assert answer.decode() == _golden(
        'HEAD{"index":0,"delta":{"role":"assistant","content":"","refusal":null},'
        '"logprobs":null,"finish_reason":null}],"usage":null}',
        'HEAD{"index":0,"delta":{"reasoning_content":"hm"},"logprobs":null,"finish_reason":null}],"usage":null}',
        'HEAD{"index":0,"delta":{"content":"so"},"logprobs":null,"finish_reason":null}],"usage":null}',
        'HEAD{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}',
        'HEAD],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,'
        '"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":1}}}',
        "data: [DONE]",
    )


async def test_an_answer_without_text_still_has_its_role_and_end() -> None:
    """A model that says nothing makes a stream of role, finish reason and [DONE]."""
    async with serving(ScriptedPool(end())) as served:
        _, _, body = await served.post(PATH, HELLO | {"stream": True})
    events = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line.startswith("data: {")]
    assert [event["choices"][0]["delta"].get("role") for event in events] == ["assistant", None]
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_whole_answer_is_exactly_this() -> None:
    """The message has content and reasoning apart, a true finish reason, and usage with the cached tokens."""
    script = [*say("let me ", "see", kind=TextKind.REASONING), *say("Par", "is"), *end(FinishReason.LENGTH)]
    async with serving(ScriptedPool(script)) as served:
        status, headers, body = await served.post(PATH, HELLO, x_request_id="golden")
    answer = json.loads(body)
    fingerprint = answer.pop("system_fingerprint")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert fingerprint.startswith("mlxd-")
    assert answer == {
        "id": "chatcmpl-golden",
        "object": "chat.completion",
        "created": CREATED_S,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Paris",
                    "refusal": None,
                    "reasoning_content": "let me see",
                },
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 2,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 2},
        },
    }


_PIECES = st.lists(st.tuples(st.sampled_from(TextKind), st.text(max_size=5)), max_size=12)


@given(_PIECES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
def test_a_streams_concatenation_is_the_whole_answer(pieces: list[tuple[TextKind, str]]) -> None:
    """Whatever the pieces are, the stream's deltas joined are the message of the non-stream answer."""
    script = [step for kind, text in pieces for step in say(text, kind=kind)] + end()

    async def both() -> tuple[bytes, bytes]:
        async with serving(ScriptedPool(script)) as served:
            _, _, streamed = await served.post(PATH, HELLO | {"stream": True})
            _, _, whole = await served.post(PATH, HELLO)
        return streamed, whole

    streamed, whole = asyncio.run(both())
    events = [json.loads(event[6:]) for event in streamed.decode().split("\n\n") if event.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events]
    message = json.loads(whole)["choices"][0]["message"]
    for name in ("content", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == message.get(name, "")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_byte_has_its_status(stream: bool) -> None:
    """A refused admission is an envelope with status and Retry-After, streamed or not."""
    pool = ScriptedPool(end())
    pool.on_lease = [QueueFull("64 requests wait", retry_after_s=7.2)]
    async with serving(pool) as served:
        status, headers, body = await served.post(PATH, HELLO | {"stream": stream})
    assert (status, headers["Retry-After"]) == (429, "8")
    assert json.loads(body)["error"] == {
        "message": "64 requests wait",
        "type": "rate_limit_error",
        "param": None,
        "code": "queue_full",
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_in_the_prefill_is_a_500(stream: bool) -> None:
    """What fails before any text was made has a status, in a stream until the prompt is admitted."""
    admitted: list[Step] = [] if stream else [Prefilling(1, 1, 2)]
    pool = ScriptedPool([*admitted, GenerationFailed("the model broke")])
    async with serving(pool) as served:
        status, _, body = await served.post(PATH, HELLO | {"stream": stream})
    assert (status, json.loads(body)["error"]["code"]) == (500, "error")
    assert (pool.active_leases, pool.active_generations) == (0, 0)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RequestCancelled("an operator ended it"), "cancelled", "an operator ended it"),
        (ZeroDivisionError("secret detail"), "internal_error", "an internal error happened; the daemon's log has"),
    ],
)
async def test_an_error_after_text_is_one_event_and_no_done(error: Exception, code: str, message: str) -> None:
    """After the first byte an error becomes the last event, and the stream ends without [DONE]."""
    async with serving(ScriptedPool([*say("a"), error])) as served:
        status, _, body = await served.post(PATH, HELLO | {"stream": True})
    last = body.decode().strip().split("\n\n")[-1]
    assert status == 200
    assert b"[DONE]" not in body
    assert b"secret" not in body
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert json.loads(last.removeprefix("data: "))["error"]["message"].startswith(message)


async def test_a_long_wait_is_kept_alive_by_comments() -> None:
    """While nothing was sent for http.keepalive, a comment goes out; an error after that is an event."""
    clock = FakeClock()
    waiting, gate = asyncio.Event(), asyncio.Event()
    pool = ScriptedPool(end())
    pool.on_lease = [waiting.set, gate, QueueTimeout("waited 120 s")]
    async with serving(pool, clock=clock, document={"http": {"keepalive": "5s"}}) as served:
        asking = asyncio.create_task(served.http.post(served.url + PATH, json=HELLO | {"stream": True}))
        await waiting.wait()
        clock.run_next()
        async with await asking as response:
            first = await _read_until(response, b"\n\n")
            assert clock.now() == 1005
            clock.run_next()
            second = await _read_until(response, b"\n\n")
            gate.set()
            rest = await response.read()
    assert (first, second) == (b": keep-alive\n\n", b": keep-alive\n\n")
    assert response.status == 200
    assert rest.startswith(b'data: {"error":')
    assert b"queue_timeout" in rest
    assert b"[DONE]" not in rest


async def test_a_busy_stream_gets_no_comments() -> None:
    """Text puts the comment off: the silence counts, not the time since the last comment."""
    clock = FakeClock()
    waiting, halfway, gate, last = (asyncio.Event() for _ in range(4))
    script: list[Step] = [waiting.set, halfway, *say("a"), gate, *say("b"), last, *end()]
    async with serving(ScriptedPool(script), clock=clock, document={"http": {"keepalive": "5s"}}) as served:
        asking = asyncio.create_task(served.http.post(served.url + PATH, json=HELLO | {"stream": True}))
        await waiting.wait()
        clock.move(4)
        halfway.set()
        async with await asking as response:
            await _read_until(response, b'"a"')
            clock.run_next()  # at 5 s; the text came at 4 s
            assert clock.next_s == 1009
            gate.set()
            await _read_until(response, b'"b"')
            last.set()
            assert b"keep-alive" not in await response.read()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("where", ["in the queue", "in the answer"])
async def test_a_client_that_goes_away_frees_the_lease(where: str, stream: bool) -> None:
    """Closing the connection ends the wait or the generation at once."""
    reached, never = asyncio.Event(), asyncio.Event()
    pool = ScriptedPool([*say("a"), reached.set, never])
    if where == "in the queue":
        pool.on_lease = [reached.set, never]
    async with serving(pool) as served:
        asking = asyncio.create_task(served.post(PATH, HELLO | {"stream": stream}))
        await reached.wait()
        assert len(served.context.requests.list()) == 1
        asking.cancel()
        await served.context.requests.wait_idle()
        assert (pool.active_leases, pool.active_generations) == (0, 0)


async def test_an_operators_cancel_ends_the_stream_with_an_error_event() -> None:
    """RunningRequests.cancel reaches a stream that runs."""
    reached, never = asyncio.Event(), asyncio.Event()
    async with serving(ScriptedPool([*say("a"), reached.set, never])) as served:
        asking = asyncio.create_task(served.post(PATH, HELLO | {"stream": True}, x_request_id="mine"))
        await reached.wait()
        served.context.requests.cancel("mine", "ended by an operator")
        _, _, body = await asking
    assert b"ended by an operator" in body
    assert b"[DONE]" not in body


async def _read_until(response: aiohttp.ClientResponse, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        chunk = await response.content.readany()
        assert chunk, f"the stream ended before {text!r}: {seen!r}"
        seen += chunk
    return seen


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    """A client that takes nothing for a minute does not hold its lease any longer."""
    clock = FakeClock()
    pool = ScriptedPool(say("x" * 1_000_000) * 500)
    async with (
        serving(pool, clock=clock, socket_clock=clock) as served,
        served.http.post(served.url + PATH, json=HELLO | {"stream": True}),
    ):
        assert pool.active_leases == 1
        while served.context.requests.list():
            if clock.next_s is not None:
                clock.run_next()
            await asyncio.sleep(0)
    assert (pool.active_leases, pool.active_generations) == (0, 0)
