"""A pool on the fake backend, the fake clock and made-up models, with time moved by hand."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlxd.catalog import ModelEntry
from mlxd.engine.base import Delta, EngineFacts, Finished, GenerationRequest, SamplingParams, TextPrompt
from mlxd.engine.kv_shape import KvShape
from mlxd.kv_estimate import Confidence
from mlxd.model_folder import Signature
from mlxd.pool.event import PoolEvent
from mlxd.pool.pool import Pool
from mlxd.pool.status import ModelStatus, PoolPlan
from mlxd.protocol.errors import ModelNotFound
from mlxd.protocol.settings import Settings
from mlxd.protocol.table import decode
from tests.support.clock import FakeClock
from tests.support.fake_backend import DEFAULT_FACTS, FakeBackend

MB = 1_000_000
USABLE_BYTES = 1000 * MB
# A loaded model's least: weights, margin, and the KV of a short sequence.
KV_BYTES_PER_TOKEN = 1000
# A cache may run a step of 256 tokens ahead of its sequence.
STEP_KV_BYTES = 255 * KV_BYTES_PER_TOKEN
SHORT_KV_BYTES = 1280 * KV_BYTES_PER_TOKEN + STEP_KV_BYTES
# Of files that are other ones than those that a world begins with.
OTHER_FILES: Signature = (("model.safetensors", 1, 2),)
# Turns of the event loop after which nothing is left to do but timers; the longest chain takes about eight.
TURNS = 12

T = TypeVar("T")


def facts(
    weights_bytes: int, *, context_length: int = 16384, per_token: int = KV_BYTES_PER_TOKEN, state_bytes: int = 0
) -> EngineFacts:
    """Return the facts of a made-up model, whose sequences hold *state_bytes* whatever their length."""
    return EngineFacts(
        weights_bytes=weights_bytes,
        kv=KvShape(groups=((per_token, None),), fixed_bytes=state_bytes),
        context_length=context_length,
        vocab_size=DEFAULT_FACTS.vocab_size,
        has_thinking=False,
        tool_format="",
        chat_template=True,
        vectors=DEFAULT_FACTS.vectors,
    )


def entry(model_id: str, measured: EngineFacts, *, problem: str | None = None, signature: Signature = ()) -> ModelEntry:
    """Return the catalog's entry of a made-up model; `a+x` is an adapter of a. The estimate is exact."""
    return ModelEntry(
        id=model_id,
        path=Path("/models") / model_id,
        kind="text",
        model_type="llama",
        weights_bytes=measured.weights_bytes,
        disk_bytes=measured.weights_bytes,
        context_length=measured.context_length,
        longest_context=measured.context_length,
        kv=measured.kv,
        kv_confidence=Confidence.HEADER,
        quantization=None,
        source="folder",
        problem=problem,
        base=model_id.rpartition("+")[0] or None,
        signature=signature,
    )


class FakeCatalog:
    """A catalog that holds what it is given."""

    def __init__(self, *entries: ModelEntry) -> None:
        self.index = {item.id: item for item in entries}

    def get(self, model_id: str) -> ModelEntry:
        if model_id not in self.index:
            nearest = self.nearest(model_id)
            raise ModelNotFound(
                f"there is no model {model_id!r}; the nearest names are {', '.join(nearest)}", data={"nearest": nearest}
            )
        return self.index[model_id]

    def nearest(self, name: str) -> list[str]:
        return difflib.get_close_matches(name, self.index, cutoff=0.1)


def settings(document: Mapping[str, Any] | None = None) -> Settings:
    """Return settings with these groups changed; the memory limit is 100 MB unless it is given."""
    document = {} if document is None else document
    pool = {"memory": 100 * MB, **document.get("pool", {})}
    return decode({**document, "pool": pool}, USABLE_BYTES)


@dataclass(slots=True)
class Client:
    """One request under way, as a task."""

    task: asyncio.Task[str]

    @property
    def done(self) -> bool:
        return self.task.done()

    @property
    def error(self) -> BaseException | None:
        return self.task.exception() if self.task.done() and not self.task.cancelled() else None

    @property
    def text(self) -> str:
        return self.task.result()


class World:
    """The pool and everything around it. Weights are whole MB; 30 MB model "a" is `models={"a": 30}`."""

    def __init__(self, models: Mapping[str, int | EngineFacts], document: Mapping[str, Any] | None = None) -> None:
        measured = {name: facts(size * MB) if isinstance(size, int) else size for name, size in models.items()}
        self.clock = FakeClock()
        self.backend = FakeBackend(self.clock, measured)
        self.catalog = FakeCatalog(*(entry(name, size) for name, size in measured.items()))
        self.document = {} if document is None else dict(document)
        self.events: list[PoolEvent] = []
        self.pool = Pool(
            self.backend,
            self.catalog,
            settings(document),
            clock=self.clock,
            usable_bytes=USABLE_BYTES,
            on_event=self.events.append,
        )
        self._tasks: list[asyncio.Task[Any]] = []

    # Time

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        await self.settle()
        until_s = self.clock.now() + seconds
        while (next_s := self.clock.next_s) is not None and next_s <= until_s:
            self.clock.run_next()
            await self.settle()
        self.clock.move(until_s - self.clock.now())

    async def run(self, work: Awaitable[T], seconds: float = 600) -> T:
        """Let time pass until the work is done, and return what it returns."""
        task = asyncio.ensure_future(work)
        until_s = self.clock.now() + seconds
        await self.settle()
        while not task.done():
            assert self.clock.next_s is not None, "it waits forever"
            assert self.clock.next_s <= until_s, f"it takes longer than {seconds} s"
            self.clock.run_next()
            await self.settle()
        return task.result()

    # Doing things

    def task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin something; it is cancelled when the world ends."""
        task = asyncio.ensure_future(work)
        self._tasks.append(task)
        return task

    def send(self, model_id: str, *, tokens: int = 10, prompt: str = "hello", seed: int = 0, n: int = 1) -> Client:
        """Begin a request."""
        return Client(self.task(self.answer(model_id, tokens=tokens, prompt=prompt, seed=seed, n=n)))

    async def answer(self, model_id: str, *, tokens: int = 10, prompt: str = "hello", seed: int = 0, n: int = 1) -> str:
        """Make a request for *n* answers, which are equal, and return their texts one behind the other."""
        request = GenerationRequest(TextPrompt(prompt), SamplingParams(seed=seed), max_tokens=tokens)
        async with self.pool.lease(model_id, request_id=f"{model_id}-{prompt[:8]}-{seed}") as lease:
            prepared = await lease.prepare(request)

            async def read() -> str:
                text = ""
                async for event in lease.generate(request, prepared):
                    if isinstance(event, Delta):
                        text += event.text
                    elif isinstance(event, Finished):
                        break
                return text

            return "".join(await asyncio.gather(*(read() for _ in range(n))))

    async def load(self, *model_ids: str) -> None:
        """Load models by command."""
        for model_id in model_ids:
            await self.run(self.pool.load(model_id))

    def change(self, document: Mapping[str, Any], *, force: bool = False) -> PoolPlan:
        """Check and apply settings; groups that are not named keep what they had."""
        merged = {
            group: {**self.document.get(group, {}), **document.get(group, {})} for group in (*self.document, *document)
        }
        new = settings(merged)
        self.pool.check(new, force=force)
        self.document = merged
        return self.pool.apply(new)

    # Looking

    def model(self, model_id: str) -> ModelStatus | None:
        """Return the status of a model, or None."""
        return next((model for model in self.pool.status().models if model.id == model_id), None)

    def state(self, model_id: str) -> str:
        """Return the state of a model."""
        model = self.model(model_id)
        return "unloaded" if model is None else model.state

    def kinds(self, model_id: str) -> list[str]:
        """Return what happened to a model, without progress and without who waits for it."""
        return [
            event.kind.removeprefix("model.")
            for event in self.events
            if event.model_id == model_id
            and event.kind != "model.load_progress"
            and not event.kind.startswith("queue.")
        ]

    async def close(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.close()
        await self.backend.close()
        await self.settle()


@asynccontextmanager
async def world(
    models: Mapping[str, int | EngineFacts], document: Mapping[str, Any] | None = None
) -> AsyncIterator[World]:
    """Run a started world."""
    made = World(models, document)
    await made.pool.start()
    try:
        yield made
    finally:
        await made.close()
