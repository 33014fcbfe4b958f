"""POST /v1/completions: transcripts, and prompts that are answered side by side."""

from __future__ import annotations

import asyncio
import json

import mlxd
from mlxd.engine.base import FinishReason, TextKind, TextPrompt
from mlxd.protocol.errors import GenerationFailed
from tests.support.http_server import serving
from tests.support.scripted_pool import ScriptedPool, end, say

PATH = "/v1/completions"
HEAD = (
    'data: {"id":"cmpl-golden","object":"text_completion","created":1700000000,"model":"m",'
    f'"system_fingerprint":"mlxd-{mlxd.__version__}","choices":['
)


async def test_a_stream_is_exactly_this() -> None:
    """One chunk per piece, the text of all kinds, the finish reason, usage when it is asked for, [DONE]."""
    script = [*say("a\n", ""), *say("b", kind=TextKind.REASONING), *say("c"), *end()]
    asked = {"model": "m", "prompt": "hi", "stream": True, "stream_options": {"include_usage": True}}
    async with serving(ScriptedPool(script)) as served:
        _, _, body = await served.post(PATH, asked, x_request_id="golden")
    unfinished = '"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
    assert body.decode() == (
        HEAD + '{"index":0,"text":"a\\n",' + unfinished
        + HEAD + '{"index":0,"text":"b",' + unfinished
        + HEAD + '{"index":0,"text":"c",' + unfinished
        + HEAD + '{"index":0,"text":"","logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n'
        + HEAD + '],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,'
        '"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":0}}}\n\n'
        "data: [DONE]\n\n"
    )  # fmt: skip


async def test_a_whole_answer_has_a_choice_per_prompt() -> None:
    """Usage is the sum; the choices are in order."""
    pool = ScriptedPool([*say("a", "b"), *end()], [*say("c"), *end(FinishReason.LENGTH)])
    async with serving(pool) as served:
        _, _, body = await served.post(PATH, {"model": "m", "prompt": ["x", "y"]}, x_request_id="golden")
    answer = json.loads(body)
    assert answer["choices"] == [
        {"index": 0, "text": "ab", "logprobs": None, "finish_reason": "stop"},
        {"index": 1, "text": "c", "logprobs": None, "finish_reason": "length"},
    ]
    assert (answer["object"], answer["id"]) == ("text_completion", "cmpl-golden")
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]) == (14, 18)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 6}
    assert [request.prompt for request in pool.requests] == [TextPrompt("x"), TextPrompt("y")]
    assert pool.leased == ["m"]


async def test_one_prompt_that_fails_ends_them_all() -> None:
    """The error is the first one, as it is; the other generations are cancelled."""
    never = asyncio.Event()
    for stream in (False, True):
        pool = ScriptedPool([never], [GenerationFailed("it broke")])
        async with serving(pool) as served:
            status, _, body = await served.post(PATH, {"model": "m", "prompt": ["x", "y"], "stream": stream})
        assert (status, json.loads(body)["error"]["message"]) == (500, "it broke")
        assert (pool.active_leases, pool.active_generations) == (0, 0)


async def test_a_client_that_goes_away_ends_all_prompts() -> None:
    """None of the generations of one request outlives its connection."""
    begun: list[None] = []
    all_begun, never = asyncio.Event(), asyncio.Event()

    def begin() -> None:
        begun.append(None)
        if len(begun) == 3:
            all_begun.set()

    pool = ScriptedPool([begin, never])
    async with serving(pool) as served:
        asking = asyncio.create_task(served.post(PATH, {"model": "m", "prompt": ["x", "y", "z"], "stream": True}))
        await all_begun.wait()
        asking.cancel()
        await served.context.requests.wait_idle()
        assert (pool.active_leases, pool.active_generations) == (0, 0)
