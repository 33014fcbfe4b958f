"""`engine.handle`: what one model's prompts cost, they cost that model only."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path

import pytest

from mlxd.engine.base import ChatPrompt, Engine, GenerationRequest, TextPrompt
from mlxd.engine.command import PromptCacheUse
from mlxd.engine.constraint import JsonConstraint
from mlxd.engine.device import Device
from mlxd.engine.handle import _GRAMMAR_WORKERS, LoadedEngine
from mlxd.protocol.errors import RequestCancelled
from tests.engine.bench import WriteModel, load_spec

CHAT = GenerationRequest(ChatPrompt(({"role": "user", "content": "Hi"},)))
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}" + "{% endfor %}" * 3


async def load_endless(device: Device, write_model: WriteModel, folder: Path) -> Engine:
    """Load a model whose chat template does not end."""
    path = shutil.copytree(write_model(), folder / "endless")
    config = path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": ENDLESS}))
    return await device.load(load_spec(path), lambda done, total: None)


async def test_endless_template_stops_its_own_model_only(
    device: Device, engine: Engine, write_model: WriteModel, tmp_path: Path
) -> None:
    """While as many prompts as a model has threads never end, others are answered, loads go on, and it is unloaded."""
    bad = await load_endless(device, write_model, tmp_path)
    stuck = [asyncio.create_task(bad.prepare(CHAT)) for _ in range(3)]
    assert len((await engine.prepare(CHAT)).tokens) == 21
    other = await device.load(load_spec(write_model(seed=1)), lambda done, total: None)
    assert len((await other.prepare(CHAT)).tokens) == 21
    await device.unload(bad)
    for outcome in await asyncio.gather(*stuck, return_exceptions=True):
        assert isinstance(outcome, RequestCancelled)
    with pytest.raises(RequestCancelled, match="was unloaded"):
        await bad.prepare(CHAT)


async def test_tokenizer_that_does_not_end_stops_its_own_model_only(
    device: Device, engine: Engine, write_model: WriteModel
) -> None:
    """Nothing can end it, so it costs the model its threads, and the others nothing."""
    bad = await device.load(load_spec(write_model(seed=1)), lambda done, total: None)
    assert isinstance(bad, LoadedEngine)
    assert bad._renderer is not None
    is_over, began = threading.Event(), threading.Semaphore(0)

    def encode(text: str, **options: object) -> list[int]:
        began.release()
        is_over.wait()
        return [1]

    bad._renderer._tokenizer._tokenizer.encode = encode
    stuck = [asyncio.create_task(bad.prepare(CHAT)) for _ in range(3)]
    for _ in range(2):  # as many as it has threads
        await asyncio.to_thread(began.acquire)
    assert len((await engine.prepare(CHAT)).tokens) == 21
    await device.load(load_spec(write_model(seed=2)), lambda done, total: None)
    await device.unload(bad)
    is_over.set()
    await asyncio.gather(*stuck, return_exceptions=True)


async def test_client_that_leaves_ends_its_rendering(device: Device, write_model: WriteModel, tmp_path: Path) -> None:
    """The threads of the model are free again at once, not at the deadline."""
    bad = await load_endless(device, write_model, tmp_path)
    for _ in range(3):
        left = asyncio.create_task(bad.prepare(CHAT))
        await asyncio.sleep(0)  # it has begun
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
    assert (await bad.prepare(GenerationRequest(TextPrompt("Hi")))).tokens


async def let_go(engine: LoadedEngine) -> None:
    """Return when each worker has other work: it holds what it has made until then."""
    together = threading.Barrier(_GRAMMAR_WORKERS)
    loop, workers = asyncio.get_running_loop(), engine._grammar_workers
    await asyncio.gather(*(loop.run_in_executor(workers, together.wait) for _ in range(_GRAMMAR_WORKERS)))


async def test_grammars_are_among_what_a_model_keeps_and_gives_back(engine: Engine) -> None:
    """The pool sees them beside the cached prompts, and a trim returns them."""
    assert isinstance(engine, LoadedEngine)
    prompt = await engine.prepare(GenerationRequest(TextPrompt("Hi"), constraint=JsonConstraint('{"const": 1}')))
    assert engine.prompt_cache_bytes == engine.grammar_bytes > 100_000
    assert await engine.trim_prompt_cache(0) > 0  # an answer may still follow it
    del prompt
    await let_go(engine)
    assert (await engine.trim_prompt_cache(0), engine.prompt_cache_bytes, engine.grammar_bytes) == (0, 0, 0)


async def test_grammars_go_before_cached_prompts_and_with_the_model(device: Device, engine: Engine) -> None:
    """A trim that leaves room for the prompts takes nothing of them; an unload forgets all grammars."""
    assert isinstance(engine, LoadedEngine)
    engine._on_prompt_cache(PromptCacheUse(10**6))  # as the device thread would say it
    request = GenerationRequest(TextPrompt("Hi"), constraint=JsonConstraint('{"const": 1}'))
    await engine.prepare(request)
    assert engine.prompt_cache_bytes > 10**6 + 50_000
    await let_go(engine)
    await engine.trim_prompt_cache(10**6 + 50_000)
    assert engine.prompt_cache_bytes == 10**6
    await engine.prepare(request)
    await let_go(engine)
    await device.unload(engine)
    assert engine.prompt_cache_bytes == 10**6
