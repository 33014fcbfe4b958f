"""The day's budget: reserved, settled, kept over restarts, and never overspent by what runs at once."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.atomic_file import AtomicFile, Content
from mlxd.cloud.budget import Budget, Reservation
from mlxd.protocol.errors import BudgetExceeded
from mlxd.protocol.settings import BudgetSettings, PriceSettings

NOON_S = 1_700_000_000
DAY_S = 86_400
ONE_USD = BudgetSettings(usd_per_day=1.0, requests_per_day=None)
UNBOUNDED = BudgetSettings(usd_per_day=None, requests_per_day=None)
PRICE = PriceSettings(input=1.0, output=2.0)  # micro-USD per token


class SlowFile(AtomicFile):
    """A file on a disk that takes until a test says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.begun, self.may_write = threading.Semaphore(0), threading.Semaphore(0)
        self.contents: list[Any] = []

    def read(self) -> Content:
        return Content(None)

    def replace(self, data: bytes) -> None:
        self.begun.release()
        self.may_write.acquire()
        self.contents.append(json.loads(data))


async def test_what_is_reserved_is_settled_by_what_was_used() -> None:
    """A request holds what it may cost at most, and costs what was counted, or all of it when nobody has counted."""
    budget = Budget(None, lambda: NOON_S)
    first = await budget.reserve(ONE_USD, PRICE, "p/m", 100, 1000)
    second = await budget.reserve(ONE_USD, PRICE, "p/m", 100, 1000)
    assert (budget.reserved, budget.today.spent) == (4200, 0)
    assert budget.settle(first, (100, 10)) == 120
    assert budget.settle(second, None) == 2100
    assert (budget.reserved, budget.today.spent, budget.today.requests) == (0, 2220, 2)


async def test_a_target_without_a_price_is_refused_under_a_bound_of_money() -> None:
    """What may cost anything cannot be bounded; the message names the command that says the price."""
    budget = Budget(None, lambda: NOON_S)
    with pytest.raises(BudgetExceeded, match="p/m has no price") as refused:
        await budget.reserve(ONE_USD, None, "p/m", 1, 1)
    assert refused.value.hint == "mlxctl cloud price set p/m --input USD --output USD"
    assert (await budget.reserve(BudgetSettings(None, 5), None, "p/m", 1, 1)).micro_usd == 0


async def test_what_was_never_sent_is_taken_back() -> None:
    """Neither its money nor its place among the day's requests is gone."""
    budget = Budget(None, lambda: NOON_S)
    budget.cancel(await budget.reserve(ONE_USD, PRICE, "p/m", 100, 1000))
    assert (budget.reserved, budget.today.spent, budget.today.requests) == (0, 0, 0)


async def test_a_restart_does_not_begin_the_day_anew(tmp_path: Path) -> None:
    """The sums are read from the file; the next day (UTC) begins with nothing, and pays for what ran over midnight."""
    now_s, file = [NOON_S], AtomicFile(tmp_path / "cloud-day.json")
    async with Budget(file, lambda: now_s[0]) as budget:
        budget.settle(await budget.reserve(ONE_USD, PRICE, "p/m", 400_000, 100_000), None)
    async with Budget(file, lambda: now_s[0]) as again:
        assert (again.today.spent, again.today.requests) == (600_000, 1)
        with pytest.raises(BudgetExceeded, match=r"may cost 0.6000 USD; today 0.6000 were\s+spent"):
            await again.reserve(ONE_USD, PRICE, "p/m", 400_000, 100_000)
        over_midnight = await again.reserve(ONE_USD, PRICE, "p/m", 1, 1)
        now_s[0] += DAY_S
        again.settle(over_midnight, None)
        assert (again.reserved, again.today.spent, again.today.requests) == (0, 3, 0)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"date": 1}', '{"date": "x", "spent": "much", "requests": 1}'])
async def test_a_bounded_day_of_which_nobody_knows_the_sums_is_over(tmp_path: Path, content: str) -> None:
    """A file that cannot be read lets nothing out, also after a restart, until the next day or without a bound."""
    path, now_s = tmp_path / "cloud-day.json", [NOON_S]
    path.write_text(content)
    for _ in range(2):
        async with Budget(AtomicFile(path), lambda: now_s[0]) as budget:
            with pytest.raises(BudgetExceeded, match=r"nobody knows .*cloud-day\.json could not be read"):
                await budget.reserve(ONE_USD, PRICE, "p/m", 1, 1)
            budget.settle(await budget.reserve(UNBOUNDED, PRICE, "p/m", 1, 1), None)
    now_s[0] += DAY_S
    async with Budget(AtomicFile(path), lambda: now_s[0]) as budget:
        assert (await budget.reserve(ONE_USD, PRICE, "p/m", 1, 1)).micro_usd == 3


async def test_a_pipe_in_the_place_of_the_file_holds_nobody_up(tmp_path: Path) -> None:
    """It is no file, and nobody waits for a writer."""
    os.mkfifo(tmp_path / "pipe")
    async with Budget(AtomicFile(tmp_path / "pipe"), lambda: NOON_S) as budget:
        assert "no regular file" in str(budget.today.doubt)


async def test_sums_that_cannot_be_kept_let_nothing_out(tmp_path: Path) -> None:
    """A daemon that is killed would forget them: a bounded request is refused, an unbounded one is sent."""
    folder = tmp_path / "later"
    async with Budget(AtomicFile(folder / "cloud-day.json"), lambda: NOON_S) as budget:
        with pytest.raises(BudgetExceeded, match="cannot be written: No such file or directory"):
            await budget.reserve(ONE_USD, PRICE, "p/m", 1, 1)
        assert (budget.reserved, budget.today.requests) == (0, 0)
        await budget.reserve(UNBOUNDED, PRICE, "p/m", 1, 1)
        folder.mkdir()
        assert (await budget.reserve(ONE_USD, PRICE, "p/m", 1, 1)).micro_usd == 3
        assert budget.problem is None


async def test_a_bounded_request_waits_until_the_file_holds_it(tmp_path: Path) -> None:
    """The file is written away from the event loop; one that leaves meanwhile holds nothing."""
    file = SlowFile(tmp_path / "cloud-day.json")
    async with Budget(file, lambda: NOON_S) as budget:
        first = asyncio.create_task(budget.reserve(ONE_USD, PRICE, "p/m", 1, 1))
        await asyncio.to_thread(file.begun.acquire)
        second = asyncio.create_task(budget.reserve(ONE_USD, PRICE, "p/m", 1, 1))
        await asyncio.sleep(0)
        assert (budget.reserved, first.done(), second.done()) == (6, False, False)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert (budget.reserved, budget.today.requests) == (3, 1)
        file.may_write.release(2)
        assert (await first).micro_usd == 3
    assert file.contents[-1]["days"][-1] == {"date": "2023-11-14", "spent": 3, "requests": 1, "doubt": None}


async def test_a_clock_that_jumps_and_comes_back_finds_the_day_as_it_was(tmp_path: Path) -> None:
    """Also over a restart on the wrong day; after many days the oldest is forgotten."""
    now_s, file = [NOON_S], AtomicFile(tmp_path / "cloud-day.json")
    async with Budget(file, lambda: now_s[0]) as budget:
        budget.settle(await budget.reserve(ONE_USD, PRICE, "p/m", 1_000_000, 0), None)
        now_s[0] += DAY_S
        budget.settle(await budget.reserve(ONE_USD, PRICE, "p/m", 1, 1), None)
    async with Budget(file, lambda: now_s[0]) as again:
        now_s[0] -= DAY_S
        with pytest.raises(BudgetExceeded, match=r"today 1\.0000 were"):
            await again.reserve(ONE_USD, PRICE, "p/m", 1, 0)
        for _ in range(7):
            now_s[0] += DAY_S
            assert again.today.spent in {0, 3}
        now_s[0] -= 7 * DAY_S
        assert again.today.spent == 0


async def test_a_day_may_be_spent_to_its_last_cent() -> None:
    """What costs exactly what is left is sent; a micro-dollar more is not."""
    budget = Budget(None, lambda: NOON_S)
    budget.settle(await budget.reserve(ONE_USD, PRICE, "p/m", 600_000, 0), None)
    with pytest.raises(BudgetExceeded):
        await budget.reserve(ONE_USD, PRICE, "p/m", 400_001, 0)
    assert (await budget.reserve(ONE_USD, PRICE, "p/m", 400_000, 0)).micro_usd == 400_000


async def test_a_file_of_an_older_daemon_is_read(tmp_path: Path) -> None:
    """It holds one day."""
    path = tmp_path / "cloud-day.json"
    path.write_text('{"date": "2023-11-14", "spent": 7, "requests": 2}')
    async with Budget(AtomicFile(path), lambda: NOON_S) as budget:
        assert (budget.today.spent, budget.today.requests, budget.today.doubt) == (7, 2, None)


Step = tuple[str, int, int]


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from(["reserve", "use", "lose", "cancel"]), st.integers(0, 30), st.integers(0, 300_000)),
        max_size=60,
    )
)  # fmt: skip
def test_requests_at_once_never_overspend(steps: list[Step]) -> None:
    """Whatever runs, ends or is lost: spent and reserved together stay within the day's bound, and nothing is lost."""
    asyncio.run(_live(steps))


async def _live(steps: list[Step]) -> None:
    budget, running = Budget(None, lambda: NOON_S), list[Reservation]()
    spent = 0
    for action, index, tokens in steps:
        if action == "reserve":
            try:
                running.append(await budget.reserve(ONE_USD, PRICE, "p/m", tokens, tokens))
            except BudgetExceeded:
                assert spent + sum(each.micro_usd for each in running) + 3 * tokens > 1_000_000
        elif running:
            reservation = running.pop(index % len(running))
            if action == "cancel":
                budget.cancel(reservation)
            elif action == "lose":
                spent += budget.settle(reservation, None)
            else:
                spent += budget.settle(reservation, (min(tokens, reservation.micro_usd // 3), 0))
        assert budget.today.spent == spent
        assert budget.reserved == sum(each.micro_usd for each in running)
        assert budget.today.spent + budget.reserved <= 1_000_000


async def test_the_file_holds_sums_and_nothing_else(tmp_path: Path) -> None:
    """No model, no prompt, no key; what runs counts as spent, should this be all that is left of the daemon."""
    path = tmp_path / "cloud-day.json"
    await Budget(AtomicFile(path), lambda: NOON_S).reserve(ONE_USD, PRICE, "p/m", 1, 1)
    kept: dict[str, Any] = json.loads(path.read_text())
    assert kept == {"days": [{"date": "2023-11-14", "spent": 3, "requests": 1, "doubt": None}]}
