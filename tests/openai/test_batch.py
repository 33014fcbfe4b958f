"""What one request says does not depend on the others beside it, and what they wait for: MLX through HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from mlxd.engine.constraint import Constraint
from mlxd.engine.grammar import Grammar, Grammars
from mlxd.engine.handle import LoadedEngine
from mlxd.engine.text import TextModel
from tests.support.http_server import Served
from tests.support.official_client import openai_client
from tests.support.served_models import ServeModels

pytestmark = pytest.mark.parametrize("serve_models", ["device"], indirect=True)

PROMPTS = [f"{number} times {'as long ' * (number % 5)}" for number in range(16)]
LONG = "A prompt that takes several steps to read. " * 35


@asynccontextmanager
async def serve(serve_models: ServeModels) -> AsyncIterator[tuple[Served, openai.AsyncOpenAI]]:
    """Serve the tiny models, with a client of them."""
    async with serve_models() as served, openai_client(served) as client:
        yield served, client


async def complete(client: openai.AsyncOpenAI, prompt: str, **options: Any) -> str:
    """Return the text of a completion."""
    asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 24, **options}
    return str((await client.completions.create(**asked)).choices[0].text)


async def test_sixteen_at_once_say_what_they_say_alone(serve_models: ServeModels) -> None:
    """Greedy answers of a batch of 16, of unequal lengths, are those of one request after the other."""
    async with serve(serve_models) as (_, client):
        together = await asyncio.gather(*(complete(client, prompt, temperature=0) for prompt in PROMPTS))
        alone = [await complete(client, prompt, temperature=0) for prompt in PROMPTS]

    assert together == alone
    assert len(set(alone)) > 8


async def test_a_seed_says_the_same_in_any_company(serve_models: ServeModels) -> None:
    """Alone, beside greedy rows, beside other seeds, and asked again: the same text."""
    seeded: dict[str, Any] = {"temperature": 1.5, "seed": 11, "top_p": 0.9}
    async with serve(serve_models) as (_, client):
        alone = await complete(client, PROMPTS[0], **seeded)
        others = [complete(client, prompt, temperature=0) for prompt in PROMPTS[1:6]]
        others += [complete(client, prompt, temperature=1.0, seed=number) for number, prompt in enumerate(PROMPTS[6:9])]
        others += [complete(client, prompt, temperature=1.0) for prompt in PROMPTS[9:11]]
        crowded, twin, *_ = await asyncio.gather(
            complete(client, PROMPTS[0], **seeded), complete(client, PROMPTS[0], **seeded), *others
        )
        other_seed = await complete(client, PROMPTS[0], **{**seeded, "seed": 12})

    assert crowded == twin == alone
    assert other_seed != alone


async def test_a_cancelled_prefill_is_where_the_retry_begins(
    serve_models: ServeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part that was read when the client went away is `cached_tokens` of the next try."""
    loop, has_begun, may_go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    on_prefilled, cancel = TextModel._on_prefilled, LoadedEngine.cancel

    def hold(self: TextModel, response: Any) -> None:
        on_prefilled(self, response)
        loop.call_soon_threadsafe(has_begun.set)
        assert may_go_on.wait(60)

    def cancel_and_go_on(self: LoadedEngine, sequence_id: int) -> None:
        cancel(self, sequence_id)
        may_go_on.set()

    monkeypatch.setattr(TextModel, "_on_prefilled", hold)
    monkeypatch.setattr(LoadedEngine, "cancel", cancel_and_go_on)
    async with serve(serve_models) as (_, client):
        gone = asyncio.ensure_future(complete(client, LONG))
        await has_begun.wait()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        again = await client.completions.create(model="tiny", prompt=LONG, max_tokens=1)
    usage = again.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens == len(LONG)
    assert 0 < (usage.prompt_tokens_details.cached_tokens or 0) < len(LONG) - 1


async def test_what_does_not_fit_the_context_is_refused_unread(serve_models: ServeModels) -> None:
    """Both numbers are in the message, and nothing of the prompt was processed."""
    async with serve(serve_models) as (_, client):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="tiny", prompt=LONG + "x" * 2000)
        fits = await client.completions.create(model="tiny", prompt=LONG, max_tokens=1)

    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert "This model's maximum context length is 2048 tokens." in refused.value.message
    assert f"your prompt resulted in {len(LONG) + 2000} tokens" in refused.value.message
    assert fits.usage is not None
    assert fits.usage.prompt_tokens_details is not None
    assert fits.usage.prompt_tokens_details.cached_tokens == 0


async def test_a_grammar_is_compiled_while_others_go_on(
    serve_models: ServeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that runs, and one that comes later, are whole before the compilation of others' schemas has ended."""
    loop, is_compiling, may_end = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    compiled = Grammars.compile

    def compile_slowly(self: Grammars, constraint: Constraint, is_given_up: Callable[[], bool]) -> Grammar:
        loop.call_soon_threadsafe(is_compiling.set)
        assert may_end.wait(60)
        return compiled(self, constraint, is_given_up)

    monkeypatch.setattr(Grammars, "compile", compile_slowly)
    bound: dict[str, Any] = {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "strict": True, "schema": {"enum": ["yes", "no"]}},
        }
    }
    async with serve(serve_models) as (_, client):
        stream = await client.completions.create(model="tiny", prompt="Go on", max_tokens=200, stream=True)
        chunks = aiter(stream)
        await anext(chunks)
        asked: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "?"}], **bound}
        waiting = asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(5)))
        await is_compiling.wait()
        rest = [chunk async for chunk in chunks]
        beside = await complete(client, "Another", temperature=0)
        assert not waiting.done()
        may_end.set()
        answers = await waiting

    assert rest[-1].choices[0].finish_reason == "length"
    assert len(beside) == 24
    assert {answer.choices[0].message.content for answer in answers} <= {'"yes"', '"no"'}
