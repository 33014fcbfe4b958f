"""Large bodies share a bound: who comes when it is reached waits in order, or is told to come back."""

from __future__ import annotations

import asyncio
import gc
import io
import json
from collections.abc import AsyncIterator, Generator
from typing import Any

import pytest

from mlxd.http.exchange import Exchange
from mlxd.http.intake import Intake, Place
from mlxd.protocol.errors import InvalidRequest, MlxdError, TooManyBodies
from tests.support.clock import FakeClock
from tests.support.control import until
from tests.support.http_server import Served, serving
from tests.support.scripted_pool import ScriptedPool, end, say

CHAT = "/v1/chat/completions"
KIB = 1024
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def padded(n_bytes: int) -> bytes:
    """Return a body of that length."""
    room = n_bytes - len(json.dumps(BODY | {"pad": ""}))
    return json.dumps(BODY | {"pad": "x" * room}).encode()


async def send(served: Served, body: bytes, **headers: str) -> tuple[int, str | None, Any]:
    """Post a chat; return status, Retry-After and the answer."""
    given = {"Content-Type": "application/json", **headers}
    async with served.http.post(served.url + CHAT, data=io.BytesIO(body), headers=given) as response:
        return response.status, response.headers.get("Retry-After"), json.loads(await response.read())


async def test_the_next_is_let_in_when_there_is_room_in_order() -> None:
    """One that would fit does not overtake one that waits; a bound that is raised lets in at once."""
    bound = 100
    intake = Intake(lambda: bound, FakeClock())
    held, order = [Place(intake) for _ in range(4)], list[int]()

    async def claim(number: int, n_bytes: int) -> None:
        await held[number].claim(n_bytes, 30)
        order.append(number)

    await claim(0, 60)
    waiting = [asyncio.create_task(claim(number, n_bytes)) for number, n_bytes in ((1, 50), (2, 40), (3, 70))]
    await until(lambda: intake.waiting == 3)
    assert intake.held_bytes == 60
    held[0].resize(50)  # it has turned out shorter
    await until(lambda: order == [0, 1])
    held[0].resize(0)
    await until(lambda: order == [0, 1, 2])
    assert (intake.held_bytes, intake.waiting) == (90, 1)
    bound = 160
    intake.pump()
    await asyncio.gather(*waiting)
    for place in held:
        place.resize(0)
    assert (order, intake.held_bytes) == ([0, 1, 2, 3], 0)


async def test_one_alone_is_let_in_whatever_the_bound() -> None:
    """`http.max_body` may be larger than `http.bodies_memory`."""
    intake = Intake(lambda: 10, FakeClock())
    with intake.place() as place:
        await place.claim(1000, 30)
        assert intake.held_bytes == 1000
    assert intake.held_bytes == 0


@pytest.mark.parametrize("is_granted", [False, True])
async def test_who_gives_up_leaves_nothing(is_granted: bool) -> None:
    """Also when the place was given in the same turn of the loop; the next one is let in."""
    intake = Intake(lambda: 100, FakeClock())
    first, second, third = (Place(intake) for _ in range(3))
    await first.claim(100, 30)
    gone = asyncio.create_task(second.claim(100, 30))
    await until(lambda: intake.waiting == 1)
    stays = asyncio.create_task(third.claim(30, 30))
    await until(lambda: intake.waiting == 2)
    if is_granted:
        first.resize(0)
        gone.cancel()
    else:
        first.resize(50)
        gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await stays
    assert gone.cancelled()
    first.resize(0)
    assert (intake.held_bytes, intake.waiting) == (30, 0)


async def test_who_waits_too_long_is_told_the_numbers() -> None:
    """With a time to come back, and the setting."""
    intake = Intake(lambda: 100, FakeClock())
    await Place(intake).claim(90, 30)
    with pytest.raises(TooManyBodies, match="take 90B of the 100B that all may have") as refused:
        await Place(intake).claim(20, 0)
    assert (refused.value.http_status, refused.value.retry_after_s) == (503, 5)
    assert intake.waiting == 0


async def test_bodies_are_parsed_one_at_a_time() -> None:
    """And everything else goes on in between, as often as a step takes its time."""
    clock = FakeClock()
    intake = Intake(lambda: 100, clock)
    begun: list[int] = []

    def parse(number: int) -> Generator[None, None, int]:
        for _ in range(3):
            begun.append(number)
            clock.move(0.002)
            yield
        return number

    seen = set()

    async def look() -> None:
        while len(begun) < 6:
            seen.add(len(begun))
            await asyncio.sleep(0)

    first, second, _ = await asyncio.gather(intake.run(parse(1)), intake.run(parse(2)), look())
    assert (first, second, begun) == (1, 2, [1, 1, 1, 2, 2, 2])
    assert seen == {1, 2, 3, 4, 5}


async def test_parsing_sleeps_as_long_as_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that only looked for events would take the interpreter back before any other thread has it."""
    clock, pauses = FakeClock(), list[float]()
    intake = Intake(lambda: 100, clock)

    def parse() -> Generator[None, None, None]:
        for took_s in (0.0004, 0.0008, 0.003, 0.0001):
            clock.move(took_s)
            yield

    async def sleep(delay_s: float) -> None:
        pauses.append(delay_s)

    monkeypatch.setattr("mlxd.http.intake.asyncio.sleep", sleep)
    await intake.run(parse())
    assert pauses == pytest.approx([0.0012, 0.003])


async def test_a_large_body_waits_while_others_run() -> None:
    """Its place is held until its request ends; a small body needs none."""
    gate = asyncio.Event()
    pool = ScriptedPool([gate, *say("a"), *end()])
    async with serving(pool, document={"http": {"bodies_memory": "500KiB"}}) as served:
        intake = served.context.intake
        first = asyncio.create_task(send(served, padded(300 * KIB)))
        await until(lambda: pool.active_generations == 1)
        assert intake.held_bytes == 300 * KIB
        second = asyncio.create_task(send(served, padded(260 * KIB)))
        await until(lambda: intake.waiting == 1)
        small = asyncio.create_task(send(served, padded(200 * KIB)))
        await until(lambda: pool.active_generations == 2)
        assert (intake.waiting, intake.held_bytes) == (1, 300 * KIB)
        gate.set()
        assert [status for status, _, _ in await asyncio.gather(first, second, small)] == [200] * 3
        assert (intake.held_bytes, intake.waiting) == (0, 0)


async def test_a_body_of_unknown_length_takes_what_it_is() -> None:
    """While it comes it may become as long as `http.max_body`; then it has turned out shorter."""
    gate = asyncio.Event()
    pool = ScriptedPool([gate, *say("a"), *end()])
    body = padded(300 * KIB)

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    async with serving(pool) as served:
        given = {"Content-Type": "application/json"}
        asking = asyncio.ensure_future(served.http.post(served.url + CHAT, data=chunks(), headers=given))
        await until(lambda: pool.active_generations == 1)
        assert served.context.intake.held_bytes == len(body)
        gate.set()
        assert (await asking).status == 200


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize(("n_bytes", "status"), [(KIB, 200), (KIB + 1, 413)])
async def test_a_body_of_exactly_the_most_is_taken(n_bytes: int, status: int, is_chunked: bool) -> None:
    """Its length may be known before or not."""
    body = padded(n_bytes)

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    given = {"Content-Type": "application/json"}
    async with serving(ScriptedPool([*say("a"), *end()]), document={"http": {"max_body": "1KiB"}}) as served:
        data = chunks() if is_chunked else io.BytesIO(body)
        async with served.http.post(served.url + CHAT, data=data, headers=given) as response:
            assert response.status == status


async def test_no_room_in_time_is_a_503() -> None:
    """SDKs come back after Retry-After."""
    gate = asyncio.Event()
    pool = ScriptedPool([gate, *say("a"), *end()])
    document = {"http": {"bodies_memory": "500KiB", "body_timeout": "100ms"}}
    async with serving(pool, document=document) as served:
        first = asyncio.create_task(send(served, padded(300 * KIB)))
        await until(lambda: pool.active_generations == 1)
        status, retry_after, answer = await send(served, padded(300 * KIB))
        gate.set()
        await first
    assert (status, retry_after, answer["error"]["code"]) == (503, "5", "too_many_bodies")


async def test_a_body_of_many_objects_is_refused_unparsed() -> None:
    """It would take a gigabyte and stop all streams; the same text within a string is text."""
    many = b"[" + b"{}," * 300_000 + b"{}]"
    pool = ScriptedPool([*say("a"), *end()])
    async with serving(pool) as served:
        refused = [
            await send(served, json.dumps(BODY).encode()[:-1] + b',"x":' + many + b"}"),
            await send(served, b'{"model":"m","messages":' + many + b"}"),
        ]
        leased = list(pool.leased)
        messages = [{"role": "user", "content": many.decode()}, {"role": "user", "content": json.dumps(many.decode())}]
        status, _, _ = await send(served, json.dumps(BODY | {"messages": messages}).encode())
    assert [(status, answer["error"]["code"]) for status, _, answer in refused] == [(413, "payload_too_large")] * 2
    assert "260000 objects, lists and members" in refused[0][2]["error"]["message"]
    assert (leased, status) == ([], 200)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
async def test_what_is_not_read_of_a_body_is_not_kept(path: str) -> None:
    """While the request waits and runs, its unknown fields are gone."""
    gate = asyncio.Event()
    pool = ScriptedPool([gate, *say("a"), *end()])
    words = {"prompt": "hi"} if path == "/v1/completions" else {"input": "hi"} if path == "/v1/responses" else BODY
    body = {"model": "m", "max_tokens": 3, **words, "unknown": ["a marker that nobody reads"]}
    async with serving(pool) as served:
        asking = asyncio.create_task(served.post(path, body))
        await until(lambda: pool.active_generations == 1)
        gc.collect()
        kept = [found for found in gc.get_objects() if type(found) is list and found == body["unknown"]]
        gate.set()
        status, _, _ = await asking
    assert kept == [body["unknown"]]  # ours
    assert status in (200, 400)


def test_an_error_that_was_told_holds_no_frames() -> None:
    """They would keep bodies in memory until their clients have read the answer."""

    def fail(body: bytes) -> None:
        try:
            int(body)
        except ValueError as error:
            raise InvalidRequest("no") from error

    exchange = Exchange("r")
    with pytest.raises(MlxdError) as caught:
        fail(b"body")
    exchange.note_error(caught.value)
    error = exchange.error
    assert error is not None
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
