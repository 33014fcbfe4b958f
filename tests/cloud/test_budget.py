"""The day's budget: reserved, settled, kept over restarts, and never overspent by what runs at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.cloud.budget import Budget, Reservation
from mlxd.protocol.errors import BudgetExceeded
from mlxd.protocol.settings import BudgetSettings, PriceSettings

NOON_S = 1_700_000_000
DAY_S = 86_400
ONE_USD = BudgetSettings(usd_per_day=1.0, requests_per_day=None)
PRICE = PriceSettings(input=1.0, output=2.0)  # micro-USD per token


def test_what_is_reserved_is_settled_by_what_was_used() -> None:
    """A request holds what it may cost at most, and costs what was counted, or all of it when nobody has counted."""
    budget = Budget(None, lambda: NOON_S)
    first = budget.reserve(ONE_USD, PRICE, "p/m", 100, 1000)
    second = budget.reserve(ONE_USD, PRICE, "p/m", 100, 1000)
    assert (budget.reserved, budget.today.spent) == (4200, 0)
    assert budget.settle(first, (100, 10)) == 120
    assert budget.settle(second, None) == 2100
    assert (budget.reserved, budget.today.spent, budget.today.requests) == (0, 2220, 2)


def test_a_target_without_a_price_is_refused_under_a_bound_of_money() -> None:
    """What may cost anything cannot be bounded; the message names the command that says the price."""
    budget = Budget(None, lambda: NOON_S)
    with pytest.raises(BudgetExceeded, match="p/m has no price") as refused:
        budget.reserve(ONE_USD, None, "p/m", 1, 1)
    assert refused.value.hint == "mlxctl cloud price set p/m --input USD --output USD"
    assert budget.reserve(BudgetSettings(None, 5), None, "p/m", 1, 1).micro_usd == 0


def test_what_was_never_sent_is_taken_back() -> None:
    """Neither its money nor its place among the day's requests is gone."""
    budget = Budget(None, lambda: NOON_S)
    budget.cancel(budget.reserve(ONE_USD, PRICE, "p/m", 100, 1000))
    assert (budget.reserved, budget.today.spent, budget.today.requests) == (0, 0, 0)


def test_a_restart_does_not_begin_the_day_anew(tmp_path: Path) -> None:
    """The sums are read from the file; the next day (UTC) begins with nothing, and pays for what ran over midnight."""
    now_s, path = [NOON_S], tmp_path / "cloud-day.json"
    budget = Budget(path, lambda: now_s[0])
    budget.settle(budget.reserve(ONE_USD, PRICE, "p/m", 400_000, 100_000), None)
    again = Budget(path, lambda: now_s[0])
    assert (again.today.spent, again.today.requests) == (600_000, 1)
    with pytest.raises(BudgetExceeded, match=r"may cost 0.6000 USD; today 0.6000 were\s+spent"):
        again.reserve(ONE_USD, PRICE, "p/m", 400_000, 100_000)
    over_midnight = again.reserve(ONE_USD, PRICE, "p/m", 1, 1)
    now_s[0] += DAY_S
    again.settle(over_midnight, None)
    assert (again.reserved, again.today.spent, again.today.requests) == (0, 3, 0)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"date": 1}', '{"date": "x", "spent": "much", "requests": 1}'])
def test_a_file_that_is_none_is_said(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    """The sums begin anew, and the log says so."""
    path = tmp_path / "cloud-day.json"
    path.write_text(content)
    assert Budget(path, lambda: NOON_S).today.spent == 0
    assert "begin anew" in caplog.text


def test_a_disk_that_refuses_stops_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said in the log, and the sums go on in memory."""
    budget = Budget(tmp_path / "nowhere" / "cloud-day.json", lambda: NOON_S)
    budget.reserve(ONE_USD, PRICE, "p/m", 1, 1)
    assert "cannot be written" in caplog.text
    assert budget.today.requests == 1


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
    budget, running = Budget(None, lambda: NOON_S), list[Reservation]()
    spent = 0
    for action, index, tokens in steps:
        if action == "reserve":
            try:
                running.append(budget.reserve(ONE_USD, PRICE, "p/m", tokens, tokens))
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


def test_the_file_holds_sums_and_nothing_else(tmp_path: Path) -> None:
    """No model, no prompt, no key; what runs counts as spent, should this be all that is left of the daemon."""
    path = tmp_path / "cloud-day.json"
    Budget(path, lambda: NOON_S).reserve(ONE_USD, PRICE, "p/m", 1, 1)
    kept: dict[str, Any] = json.loads(path.read_text())
    assert kept == {"date": "2023-11-14", "spent": 3, "requests": 1}
