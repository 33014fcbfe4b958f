"""Random histories of all that can happen to a pool; its twelve promises hold throughout.

A run of the suite lives some hundred histories; `make soak-histories` lives many thousands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mlxd.engine.base import EngineFacts
from mlxd.pool.lifecycle import ModelState
from mlxd.pool.resident import Resident
from mlxd.protocol.errors import (
    DoesNotFit,
    Draining,
    InsufficientCapacity,
    InvalidValue,
    LoadFailed,
    LoadTimeout,
    MlxdError,
    ModelNotFound,
    ModelUnloaded,
    OutOfMemory,
    QueueFull,
    QueueTimeout,
    RequestCancelled,
)
from tests.support.fake_row import answer_text
from tests.support.pool_invariants import WatchedWorld
from tests.support.pool_world import MB, Client, entry, facts
from tests.support.promise.base import SHORT
from tests.support.tally import Tally

MODELS = ("a", "a+x", "b", "c", "huge")
SIZES_MB = {"a": 20, "a+x": 2, "b": 30, "c": 45, "huge": 400}
LIMITS_MB = (40, 60, 80, 100, 150)

model_ids = st.sampled_from(("a", "b", "c", "a+x"))
some_models = st.lists(model_ids, unique=True, max_size=2)
lengths = st.tuples(st.sampled_from((1, 40, 1200, 3000, 6000)), st.sampled_from((5, 200, 2500)))

# Operation → (weight, arguments). Mostly requests and time, so that histories get somewhere.
LOAD: dict[str, tuple[int, st.SearchStrategy[tuple[Any, ...]]]] = {
    "send": (30, st.tuples(model_ids, lengths).map(lambda drawn: (drawn[0], *drawn[1]))),
    "send_many": (4, st.tuples(model_ids, lengths, st.sampled_from((2, 5, 12)))),
    "send_huge": (2, st.just(())),
    "drop": (6, st.tuples(st.integers(0, 30))),
    "turns": (8, st.tuples(st.integers(0, 4))),
    "advance": (24, st.tuples(st.sampled_from((0.02, 0.3, 0.3, 1.1, 1.1, 6.0, 35.0)))),
}
CHANGES: dict[str, tuple[int, st.SearchStrategy[tuple[Any, ...]]]] = {
    "limit": (5, st.tuples(st.sampled_from(LIMITS_MB))),
    "max_models": (1, st.tuples(st.sampled_from((1, 2, "none")))),
    "preload": (2, st.tuples(some_models)),
    "pins": (1, st.tuples(some_models)),
    "keep_alive": (2, st.tuples(st.sampled_from(("0s", "2s", "30m", "never")))),
    "policy": (1, st.tuples(st.sampled_from(("lru", "lfu")))),
    "queue": (1, st.tuples(st.sampled_from((0, 2, 64, 64)))),
    "slots": (2, st.tuples(st.sampled_from((1, 2, 32, 32)))),
    "prompt_cache": (1, st.tuples(st.sampled_from((0, 2_000_000, 2**30)))),
    "load": (2, st.tuples(model_ids)),
    "unload": (2, st.tuples(model_ids, st.booleans())),
    "fail_load": (1, st.tuples(model_ids)),
    "fail_sequences": (1, st.tuples(model_ids)),
    "oom_load": (1, st.tuples(model_ids)),
    "oom_sequences": (1, st.tuples(model_ids)),
    "patience": (1, st.tuples(st.sampled_from(("0s", "2s", "30s")))),
    "limit_by_force": (1, st.tuples(st.sampled_from(LIMITS_MB))),
    "load_by_force": (1, st.tuples(st.sampled_from(MODELS))),
    "force_drain": (1, st.just(())),
    "pressure": (2, st.tuples(st.booleans())),
    "delete": (1, st.tuples(model_ids)),
    "restore": (1, st.just(())),
    "reset": (1, st.tuples(model_ids)),
    "estimate": (1, st.tuples(model_ids, st.sampled_from((5, 60)))),
}


def histories(
    operations: dict[str, tuple[int, st.SearchStrategy[tuple[Any, ...]]]],
) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    """Return histories of these operations, drawn by their weights."""
    names = [name for name, (weight, _) in operations.items() for _ in range(weight)]
    drawn = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), operations[name][1]))
    return st.lists(drawn.map(lambda pair: (pair[0], *pair[1])), min_size=20, max_size=60)


def made_up(name: str, megabytes: int) -> EngineFacts:
    """Return the facts of a model; what a sequence of b keeps cannot be cut, so that it has checkpoints."""
    return facts(megabytes * MB, per_token=3000, state_bytes=400_000 if name == "b" else 0)


class Watched(WatchedWorld):
    """Three models of which about two fit, and one that never does."""

    def __init__(self, tally: Tally, sizes_mb: Mapping[str, int] = SIZES_MB) -> None:
        models = {name: made_up(name, size) for name, size in sizes_mb.items()}
        super().__init__(models, DOCUMENT, tally=tally)
        self.entries = dict(self.catalog.index)
        self.backend.pass_tokens = 60
        self.backend.step_s = 0.05
        self.backend.unload_s = 0.3


class History:
    """Carries out operations and remembers what each request may end with."""

    def __init__(self, watched: Watched) -> None:
        self.world = watched
        self.clients: list[tuple[Client, str]] = []
        self.commands: list[asyncio.Task[Any]] = []
        self.dropped: set[int] = set()
        self.may_end_with: set[type[MlxdError]] = {QueueFull, QueueTimeout, LoadTimeout, DoesNotFit}

    async def do(self, name: str, *arguments: Any) -> None:
        self.world.tally.operations[name] += 1
        handler: Callable[..., Any] = getattr(self, f"do_{name}")
        result = handler(*arguments)
        if asyncio.iscoroutine(result):
            await result

    def do_send(self, model_id: str, tokens: int, prompt_length: int, n: int = 1) -> None:
        number = len(self.clients)
        prompt = (f"{number}:" + "x" * prompt_length)[:prompt_length]
        client = self.world.send(model_id, tokens=tokens, prompt=prompt, seed=number, n=n)
        self.clients.append((client, answer_text(prompt, number, tokens) * n))

    def do_send_many(self, model_id: str, length: tuple[int, int], n: int) -> None:
        self.do_send(model_id, *length, n)

    def do_send_huge(self) -> None:
        self.do_send("huge", 1, 5)

    def do_drop(self, place: int) -> None:
        if place < len(self.clients):
            self.clients[place][0].task.cancel()
            self.dropped.add(place)

    async def do_turns(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def do_advance(self, seconds: float) -> None:
        await self.world.advance(seconds)

    def do_limit(self, megabytes: int) -> None:
        self._change({"pool": {"memory": megabytes * 1_000_000}})

    def do_max_models(self, count: int | str) -> None:
        self._change({"pool": {"max_models": count}})

    def do_preload(self, chosen: list[str]) -> None:
        self._change({"pool": {"preload": chosen}})

    def do_pins(self, chosen: list[str]) -> None:
        self._change({"models": {name: {"pin": name in chosen} for name in MODELS}})

    def do_keep_alive(self, value: str) -> None:
        self._change({"pool": {"keep_alive": value}})

    def do_policy(self, value: str) -> None:
        self._change({"pool": {"policy": value}})

    def do_queue(self, size: int) -> None:
        self._change({"queue": {"size": size, "per_model": max(1, size // 2)}})

    def do_slots(self, count: int) -> None:
        self._change({"engine": {"max_sequences": count}})

    def do_prompt_cache(self, n_bytes: int) -> None:
        self._change({"engine": {"prompt_cache": n_bytes}})

    def do_load(self, model_id: str) -> None:
        self.commands.append(self.world.task(self.world.pool.load(model_id)))

    def do_unload(self, model_id: str, force: bool) -> None:
        self.may_end_with.add(ModelUnloaded)
        if force:
            self.may_end_with.add(RequestCancelled)
        self.commands.append(self.world.task(self.world.pool.unload(model_id, force=force)))

    def do_fail_load(self, model_id: str) -> None:
        self.may_end_with.add(LoadFailed)
        self.world.backend.fail_load(model_id, LoadFailed("the disk is on fire"))

    def do_fail_sequences(self, model_id: str) -> None:
        self.may_end_with.add(Made)
        self.world.backend.fail_sequences(model_id, Made("made to fail"))

    def do_oom_load(self, model_id: str) -> None:
        self.may_end_with.add(OutOfMemory)
        self.world.backend.fail_load(model_id, OutOfMemory("made to be short"))

    def do_oom_sequences(self, model_id: str) -> None:
        self.may_end_with.add(OutOfMemory)
        self.world.backend.fail_sequences(model_id, OutOfMemory("made to be short"))

    def do_patience(self, value: str) -> None:
        self._change({"pool": {"evict_patience": value}})

    def do_limit_by_force(self, megabytes: int) -> None:
        self._change({"pool": {"memory": megabytes * MB}}, force=True)

    def do_load_by_force(self, model_id: str) -> None:
        self.commands.append(self.world.task(self.world.pool.load(model_id, force=True)))

    def do_force_drain(self) -> None:
        self.may_end_with.add(RequestCancelled)
        self.world.pool.force_drain(MODELS)

    def do_pressure(self, is_short: bool) -> None:
        self.world.pool.report_pressure(SHORT if is_short else None)

    def do_delete(self, model_id: str) -> None:
        self.may_end_with.add(ModelNotFound)
        for name in (model_id, f"{model_id}+x"):  # an adapter cannot be served without its base
            self.world.catalog.index.pop(name, None)
        self.world.pool.rescan()

    def do_restore(self) -> None:
        for name in MODELS:
            self.world.catalog.index.setdefault(name, self.world.entries[name])
        self.world.pool.rescan()

    def do_reset(self, model_id: str) -> None:
        if model_id in self.world.catalog.index:
            self.world.pool.reset(model_id)

    def do_estimate(self, model_id: str, megabytes: int) -> None:
        if model_id in self.world.catalog.index:
            self.world.catalog.index[model_id] = entry(model_id, made_up(model_id, megabytes))
            self.world.pool.rescan()

    async def do_shutdown(self, timeout_s: float) -> None:
        self.may_end_with |= {Draining, RequestCancelled}
        drained = self.world.task(self.world.pool.drain(timeout_s))
        await self.world.advance(timeout_s + 5)
        assert drained.done(), "P6: the shutdown waits forever"

    def _change(self, document: dict[str, Any], *, force: bool = False) -> None:
        self.world.invariants.limit.is_excused = True  # or pins, or max_models
        try:
            begun = self.world.change(document, force=force)
        except (InsufficientCapacity, InvalidValue):  # more than fits; a model that was deleted
            return
        residents = self.world.pool._state.residents
        for victim in begun.evicting if not begun.loading else ():  # loads evict one after another
            assert _is_gone(residents[victim.id]), "the plan is what was begun"
        for model in begun.draining:
            assert self.world.state(model.id) == "draining", "the plan is what was begun"

    async def finish(self) -> None:
        """Let all waits run out, and judge how each request ended."""
        self._change({"pool": {"keep_alive": "never", "preload": []}})
        for _ in range(60):
            await self.world.advance(60)
            if all(client.done for client, _ in self.clients) and all(task.done() for task in self.commands):
                break
        await self.world.advance(1)
        for place, (client, expected) in enumerate(self.clients):
            assert client.done, f"P6: request {place} never ended: {self.world.pool.status().queue}"
            if client.error is not None:
                assert type(client.error) in self.may_end_with, repr(client.error)
            elif not client.task.cancelled():
                assert client.text == expected, f"request {place} is not whole"
            else:
                assert place in self.dropped
        for task in self.commands:
            assert task.done(), "P6: a command never ended"
            assert task.exception() is None or isinstance(task.exception(), MlxdError), repr(task.exception())
        self.world.invariants.look_at_end()
        # Unloads by command bring the pool down to nothing, pins and all.
        for resident in self.world.pool._state.present:
            await self.world.run(self.world.pool.unload(resident.id))
        await self.world.settle()
        self.world.invariants.truth.look_when_empty()


def _is_gone(resident: Resident) -> bool:
    """Whether an evicted model has left, or goes as soon as the device has ended what nobody reads any more."""
    if resident.state in {ModelState.QUEUED, ModelState.RETRYING, ModelState.UNLOADED} or resident.is_certain_to_go:
        return True
    together = (resident, *resident.adapters.values())
    is_read = any(ticket.holds for model in together for ticket in model.held.values())
    return resident.state is ModelState.DRAINING and not is_read


class Made(MlxdError):
    """The fault that `fail_sequences` makes."""

    code = "error"


async def live(tally: Tally, history: list[tuple[Any, ...]]) -> None:
    """Run one history to its end."""
    watched = Watched(tally)
    await watched.pool.start()
    played = History(watched)
    try:
        for name, *arguments in history:
            await played.do(name, *arguments)
        await played.finish()
        for kind in {happened.kind for happened in watched.events}:
            event(kind)
        tally.histories += 1
    finally:
        await watched.close()


DOCUMENT: dict[str, Any] = {"queue": {"timeout": "20s"}, "pool": {"memory": 100_000_000}}


def thorough(share: int) -> settings:
    """Return settings for this many of a hundred of the profile's examples."""
    return settings(
        max_examples=max(1, settings().max_examples * share // 100),
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@thorough(35)
@given(history=histories({**LOAD, **CHANGES}))
def test_promises_hold_while_everything_changes(tally: Tally, history: list[tuple[Any, ...]]) -> None:
    """P1 to P12 hold at every event and every quiet moment, each request ends in a stated way, and nothing leaks."""
    asyncio.run(live(tally, history))


@thorough(20)
@given(history=histories({**LOAD, "limit": CHANGES["limit"], "preload": CHANGES["preload"]}))
def test_promises_hold_under_memory_pressure(tally: Tally, history: list[tuple[Any, ...]]) -> None:
    """The same where nothing fails and nobody interferes, so that requests compete for memory for long."""
    asyncio.run(live(tally, history))


@thorough(15)
@given(history=histories({**LOAD, **CHANGES}), timeout_s=st.sampled_from((0.0, 2.0, 45.0)))
def test_promises_hold_through_a_shutdown(tally: Tally, history: list[tuple[Any, ...]], timeout_s: float) -> None:
    """Whatever is under way when the daemon is told to end, it ends: whole, refused or cancelled, and in time."""
    asyncio.run(live(tally, [*history, ("shutdown", timeout_s)]))
