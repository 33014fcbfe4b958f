"""The official client against a real pool, on the fake device and on MLX with a tiny model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.support.official_client import openai_client
from tests.support.served_models import ServeModels
from tests.support.tiny_model import token_id

HI: Any = [{"role": "user", "content": "Hello, you there"}]
CHAT = "/v1/chat/completions"


async def test_a_chat_is_answered(serve_models: ServeModels) -> None:
    """Text, a true finish reason, usage that adds up, the model's id."""
    async with serve_models() as served, openai_client(served) as client:
        raw = await client.chat.completions.with_raw_response.create(model="tiny", messages=HI, max_tokens=12, seed=5)
        answer = raw.parse()
    usage = answer.usage
    assert usage is not None
    assert (answer.choices[0].finish_reason, usage.completion_tokens) == ("length", 12)
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert len(answer.choices[0].message.content or "") == 12  # a token is a character
    assert (answer.model, raw.headers["x-mlxd-route"], raw.headers["x-mlxd-model"]) == ("tiny", "local", "tiny")


async def test_a_stream_is_the_whole_answer_in_pieces(serve_models: ServeModels) -> None:
    """For one seed the joined deltas are the non-stream text; usage comes in the last chunk."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 40, "seed": 7, "temperature": 1.5}
    async with serve_models() as served, openai_client(served) as client:
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_prompt_asked_again_comes_from_the_cache(serve_models: ServeModels) -> None:
    """usage.prompt_tokens_details.cached_tokens is true: nothing the first time, most of it the second."""
    async with serve_models() as served, openai_client(served) as client:
        cached = []
        for _ in range(2):
            answer = await client.chat.completions.create(model="tiny", messages=HI, max_tokens=4, temperature=0)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            cached.append((answer.usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens))
    assert cached[0][0] == 0
    assert 0 < (cached[1][0] or 0) < cached[1][1]


async def test_a_stop_string_is_never_emitted(serve_models: ServeModels) -> None:
    """The text ends before it, and the finish reason says stop, streamed or not."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 30, "temperature": 0}
    async with serve_models() as served, openai_client(served) as client:
        text = (await client.chat.completions.create(**asked)).choices[0].message.content or ""
        stop = text[10:13]
        whole = await client.chat.completions.create(**asked, stop=[stop, "never there"])
        stream = await client.chat.completions.create(**asked, stop=stop, stream=True)
        pieces = [chunk.choices[0] async for chunk in stream]
    expected = text[: text.index(stop)]
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (expected, "stop")
    assert "".join(piece.delta.content or "" for piece in pieces) == expected
    assert pieces[-1].finish_reason == "stop"


async def test_completions_of_every_kind_of_prompt(serve_models: ServeModels) -> None:
    """A text, texts, tokens and lists of tokens; the choices are in the order of the prompts."""
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    async with serve_models() as served, openai_client(served) as client:
        one = await client.completions.create(prompt="abc", **asked)
        other = await client.completions.create(prompt="xyz", **asked)
        both = await client.completions.create(prompt=["abc", "xyz"], **asked)
        tokens = await client.completions.create(prompt=[5, 6, 7], **asked)
        lists = await client.completions.create(prompt=[[5, 6, 7], [8]], **asked)
    assert [choice.text for choice in both.choices] == [one.choices[0].text, other.choices[0].text]
    assert [choice.index for choice in both.choices] == [0, 1]
    assert lists.choices[0].text == tokens.choices[0].text
    assert both.usage is not None
    assert (both.usage.prompt_tokens, both.usage.completion_tokens) == (6, 12)


async def test_several_prompts_stream_side_by_side(serve_models: ServeModels) -> None:
    """Each choice's pieces joined are the text it has alone, and the stream ends once, after all."""
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "temperature": 0}
    prompts = ["abc", "xyz", "Hello"]
    async with serve_models() as served, openai_client(served) as client:
        whole = await client.completions.create(prompt=prompts, **asked)
        stream = await client.completions.create(
            prompt=prompts, stream=True, stream_options={"include_usage": True}, **asked
        )
        chunks = [chunk async for chunk in stream]
    texts, ends = ["", "", ""], [0, 0, 0]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] += choice.finish_reason == "length"
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [1, 1, 1]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 27


async def test_models_are_listed_and_found(serve_models: ServeModels) -> None:
    """Ids with slashes work; the state is the pool's."""
    async with serve_models() as served, openai_client(served) as client:
        before = [(model.id, model.to_dict()["state"]) async for model in client.models.list()]
        await client.completions.create(model="org/other", prompt="a", max_tokens=1)
        other = await client.models.retrieve("org/other")
        tiny = await client.models.retrieve("tiny")
        _, _, plain = await served.get("/v1/models/org/other")
    assert before == [(name, "unloaded") for name in ("caller", "org/other", "thinker", "tiny")]
    assert (other.id, other.object, other.owned_by, tiny.owned_by) == ("org/other", "model", "org", "local")
    assert (other.to_dict()["state"], tiny.to_dict()["state"]) == ("ready", "unloaded")
    assert other.created > 1_600_000_000
    assert json.loads(plain)["id"] == "org/other"
    assert set(json.loads(plain)) >= {"context_length", "size_bytes"}


async def test_an_unknown_model_is_not_found_with_the_nearest_names(serve_models: ServeModels) -> None:
    """NotFoundError for chat, completions and models alike."""
    async with serve_models() as served, openai_client(served) as client:
        with pytest.raises(openai.NotFoundError) as chat:
            await client.chat.completions.create(model="tinny", messages=HI)
        with pytest.raises(openai.NotFoundError) as completion:
            await client.completions.create(model="tinny", prompt="a")
        with pytest.raises(openai.NotFoundError) as model:
            await client.models.retrieve("tinny")
        with pytest.raises(openai.NotFoundError) as stream:
            await client.chat.completions.create(model="tinny", messages=HI, stream=True)
    for refused in (chat, completion, model, stream):
        assert refused.value.code == "model_not_found"
        assert "nearest" in refused.value.message
        assert "tiny" in refused.value.message


async def test_a_bad_parameter_is_a_bad_request_that_names_it(serve_models: ServeModels) -> None:
    """A value out of bounds, an unsupported field, a prompt that is empty, a context that is too small."""
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"temperature": 101}, "invalid_request", "temperature"),
        ({"n": 129}, "invalid_request", "n"),
        ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
        ({"messages": [{"role": "user", "content": "x" * 9000}]}, "context_length_exceeded", "messages"),
    ]
    async with serve_models() as served, openai_client(served) as client:
        for fields, code, param in cases:
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.chat.completions.create(
                        **{"model": "tiny", "messages": HI, "stream": stream, **fields}
                    )
                assert refused.value.code == code
                assert param is None or refused.value.param == param
        with pytest.raises(openai.BadRequestError, match="empty"):
            await client.completions.create(model="tiny", prompt="")
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model="tiny", prompt=[10**6 * 2])


async def test_streams_run_in_one_batch_and_do_not_mix(serve_models: ServeModels) -> None:
    """Eight seeded streams at once give each the text that it gives alone."""

    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.chat.completions.create(
            model="tiny", messages=HI, max_tokens=24, seed=seed, temperature=1, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with serve_models() as served, openai_client(served) as client:
        alone = [await ask(client, seed) for seed in range(8)]
        together = await asyncio.gather(*(ask(client, seed) for seed in range(8)))
    assert together == alone
    assert len(set(alone)) == 8


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_leaves_nothing_running(serve_models: ServeModels, stream: bool) -> None:
    """After a disconnect in the middle of an answer the pool has no lease, no sequence and no queue."""
    async with serve_models() as served:
        body = {"model": "tiny", "messages": HI, "max_tokens": 1900, "stream": stream}
        asking = asyncio.create_task(served.post(CHAT, body))
        pool = served.context.pool
        conditions = pool._scheduler.conditions
        assert await conditions.wait_until(lambda: any(model.running for model in pool.status().models), 120)
        asking.cancel()
        await served.context.requests.wait_idle()
        assert await conditions.wait_until(
            lambda: not any(model.running or model.leases for model in pool.status().models), 120
        )
        status, _, _ = await served.post(CHAT, body | {"max_tokens": 3, "stream": False})
    assert status == 200


async def test_a_model_that_can_never_fit_is_a_507(serve_models: ServeModels) -> None:
    """Refused at once with x-should-retry: false."""
    async with serve_models(pool={"memory": "1MB"}) as served:
        status, headers, body = await served.post(CHAT, {"model": "tiny", "messages": HI})
    assert (status, json.loads(body)["error"]["code"]) == (507, "does_not_fit")
    assert headers["x-should-retry"] == "false"


@pytest.mark.parametrize("serve_models", ["device"], indirect=True)
async def test_thinking_is_reasoning_content(serve_models: ServeModels) -> None:
    """A template that opens a thinking tag: the text up to its end is reasoning, streamed and whole alike."""
    close = {str(token_id("</think>", thinking=True)): 34}  # now and then
    asked: dict[str, Any] = {"model": "thinker", "messages": HI, "max_tokens": 60, "seed": 3, "logit_bias": close}
    async with serve_models() as served, openai_client(served) as client:
        whole = (await client.chat.completions.create(**asked)).choices[0].message.to_dict()
        stream = await client.chat.completions.create(**asked, stream=True)
        deltas = [chunk.choices[0].delta.to_dict() async for chunk in stream]
    for name in ("content", "reasoning_content"):
        assert whole[name]
        assert "".join(str(delta.get(name) or "") for delta in deltas) == whole[name]
