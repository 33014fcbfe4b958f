"""Mutations: one at a time, in order, and each once per key, whatever becomes of the connections that ask."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.control.dispatch import KEPT_ANSWERS, Mutations, Once
from mlxd.protocol.errors import Conflict, DoesNotFit, Draining, WaitEnded
from mlxd.protocol.paths import Home
from tests.support.control import Plane, running_plane, until

KEY = Once("k", b"1")


class Work:
    """A change that can be held up; counts how often it was made."""

    def __init__(self, *, is_held: bool = False, error: Exception | None = None) -> None:
        self.made = 0
        self.go = asyncio.Event()
        self.error = error
        if not is_held:
            self.go.set()

    async def __call__(self) -> Mapping[str, Any]:
        self.made += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return {"made": self.made}


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_one_at_a_time_and_in_order() -> None:
    """The second begins when the first has ended."""
    mutations = Mutations(asyncio.Lock())
    first, second = Work(is_held=True), Work()
    running = [asyncio.create_task(mutations.run(work)) for work in (first, second)]
    await settle()
    assert (first.made, second.made) == (1, 0)
    first.go.set()
    assert await asyncio.gather(*running) == [{"made": 1}, {"made": 1}]


async def test_what_ends_something_waits_for_no_turn() -> None:
    """A cancel does not queue behind what it is to cancel."""
    mutations, first = Mutations(asyncio.Lock()), Work(is_held=True)
    running = asyncio.create_task(mutations.run(first))
    await settle()
    assert await mutations.run(Work(), at_once=True) == {"made": 1}
    first.go.set()
    await running


async def test_a_key_makes_the_change_once() -> None:
    """Asked again while it runs and after it has ended: the answer is the first one's."""
    mutations, work = Mutations(asyncio.Lock()), Work(is_held=True)
    asked = [asyncio.create_task(mutations.run(work, once=KEY)) for _ in range(3)]
    await settle()
    work.go.set()
    assert await asyncio.gather(*asked) == [{"made": 1}] * 3
    assert await mutations.run(work, once=KEY) == {"made": 1}
    assert await mutations.run(work, once=Once("other", b"1")) == {"made": 2}


async def test_a_refusal_is_an_answer_too() -> None:
    """What failed once is not tried again under the same key."""
    mutations, work = Mutations(asyncio.Lock()), Work(error=DoesNotFit("too large"))
    for _ in range(2):
        with pytest.raises(DoesNotFit):
            await mutations.run(work, once=KEY)
    assert work.made == 1


async def test_a_key_stands_for_one_request() -> None:
    """Another request under a used key is refused, and nothing is changed."""
    mutations, work = Mutations(asyncio.Lock()), Work()
    await mutations.run(work, once=KEY)
    with pytest.raises(Conflict, match="used for another request") as caught:
        await mutations.run(work, once=Once("k", b"2"))
    assert (caught.value.code, caught.value.exit_code, work.made) == ("idem.conflict", 5, 1)


async def test_a_change_that_nobody_waits_for_is_not_begun() -> None:
    """Who goes away before its turn has asked for nothing; its key is free again."""
    mutations, first, second = Mutations(asyncio.Lock()), Work(is_held=True), Work()
    running = asyncio.create_task(mutations.run(first))
    waiting = [asyncio.create_task(mutations.run(second, once=KEY)) for _ in range(2)]
    await settle()
    waiting[0].cancel()
    await settle()
    waiting[1].cancel()
    await settle()
    first.go.set()
    await running
    await settle()
    assert second.made == 0
    assert await mutations.run(second, once=KEY) == {"made": 1}


async def test_one_of_two_who_wait_may_go() -> None:
    """The other one still gets its change."""
    mutations, first, second = Mutations(asyncio.Lock()), Work(is_held=True), Work()
    running = asyncio.create_task(mutations.run(first))
    gone, stays = (asyncio.create_task(mutations.run(second, once=KEY)) for _ in range(2))
    await settle()
    gone.cancel()
    first.go.set()
    assert await stays == {"made": 1}
    await running


async def test_a_begun_change_is_finished_without_its_client() -> None:
    """Its answer is there for whoever asks again."""
    mutations, work = Mutations(asyncio.Lock()), Work(is_held=True)
    gone = asyncio.create_task(mutations.run(work, once=KEY))
    await settle()
    gone.cancel()
    await settle()
    work.go.set()
    assert await mutations.run(work, once=KEY) == {"made": 1}
    assert work.made == 1


async def test_a_turn_that_does_not_come_in_time() -> None:
    """Nothing is changed, and the key is free again."""
    mutations, first, second = Mutations(asyncio.Lock()), Work(is_held=True), Work()
    running = asyncio.create_task(mutations.run(first))
    await settle()
    with pytest.raises(WaitEnded, match="within 0 s; nothing was changed"):
        await mutations.run(second, once=KEY, deadline_s=0.0)
    first.go.set()
    await running
    assert await mutations.run(second, once=KEY) == {"made": 1}


async def test_the_end_waits_for_what_has_begun_only() -> None:
    """What waits for its turn then is answered in words and not begun."""
    mutations, first, second = Mutations(asyncio.Lock()), Work(is_held=True), Work()
    asked = [asyncio.create_task(mutations.run(work)) for work in (first, second)]
    await settle()
    closing = asyncio.create_task(mutations.close())
    await settle()
    assert not closing.done()
    first.go.set()
    await closing
    assert await asked[0] == {"made": 1}
    with pytest.raises(Draining, match="nothing was changed"):
        await asked[1]
    assert second.made == 0


@settings(max_examples=40)
@given(st.lists(st.integers(0, KEPT_ANSWERS * 2), max_size=60))
def test_the_answers_kept_are_bounded(keys: list[int]) -> None:
    """However many keys come, at most so many are kept, the newest among them."""

    async def run() -> None:
        mutations = Mutations(asyncio.Lock())
        for key in [*range(KEPT_ANSWERS), *keys]:
            await mutations.run(Work(), once=Once(str(key), b"1"))
            assert str(key) in mutations._kept
            assert len(mutations._kept) <= KEPT_ANSWERS + 1

    asyncio.run(run())


# Over the socket.


async def test_asked_again_over_another_connection(plane: Plane) -> None:
    """A client whose connection broke before the answer gets it under its key, and there is one change."""
    frame = {"t": "req", "id": 1, "m": "settings.set", "p": {"changes": {"pool.max_models": 3}}, "idem": "k"}
    turn = plane.server.dispatcher.mutations._turn
    broken = await plane.connect()
    await turn.acquire()
    await broken.send(frame)
    await broken.send({"t": "ping"})
    await broken.receive()
    turn.release()
    await until(lambda: plane.server.dispatcher.mutations._begun)
    await broken.close()
    async with await plane.connect() as client:
        answer = await client.request("settings.set", {**frame, "id": 5})
        assert (answer["ok"], answer["r"]["gen"], len(answer["r"]["changed"])) == (True, 2, 1)
        again = await client.request("settings.set", {**frame, "id": 6, "deadline_ms": 1000})
        assert again["r"] == answer["r"]
        error = await client.refused("settings.set", {"idem": "k"}, changes={"pool.max_models": 4})
    assert (error["code"], error["exit"], error["field"]) == ("idem.conflict", 5, "idem")
    assert plane.store.current.pool.max_models == 3


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("model.load", {"model": "a"}),
        ("model.unload", {"model": "a"}),
        ("model.remove", {"model": "a"}),
        ("settings.set", {"changes": {"pool.max_models": 3}}),
        ("op.cancel", {"op": "op-1"}),
        ("daemon.stop", {}),
    ],
)
async def test_every_change_compares_the_generation(home: Home, operation: str, params: dict[str, Any]) -> None:
    """A caller that looked at other settings changes nothing, whatever it asks for; exit 5."""
    async with running_plane(home) as plane, await plane.connect() as client:
        error = await client.refused(operation, {"if_gen": 7}, **params)
        assert (error["code"], error["exit"], error["data"]) == ("config.conflict", 5, {"gen": 1})
        assert plane.stops == []
        assert plane.operations.list() == []
