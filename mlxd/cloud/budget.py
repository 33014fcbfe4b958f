"""What a day may cost: reserved before a request is sent, settled when its usage is known. Owns the day's sums.

A day is one of UTC. The sums are kept in a small file, so that a restart does not begin the day anew.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxd.protocol.errors import BudgetExceeded
from mlxd.protocol.settings import BudgetSettings, PriceSettings

_MICRO = 1_000_000
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Day:
    """The sums of one day; money in micro-USD."""

    date: str
    spent: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one request may cost at most."""

    date: str
    micro_usd: int
    price: PriceSettings | None


class Budget:
    """The day's spending."""

    def __init__(self, path: Path | None, now: Callable[[], float]) -> None:
        """Take the file that the sums are kept in (None keeps none), and unix time."""
        self._path = path
        self._now = now
        self._reserved = 0
        self._day = self._read()

    @property
    def today(self) -> Day:
        """The sums of today."""
        date = self._date()
        if self._day.date != date:
            self._day = Day(date)
        return self._day

    @property
    def reserved(self) -> int:
        """Micro-USD of the requests that run."""
        return self._reserved

    def reserve(
        self, limits: BudgetSettings, price: PriceSettings | None, target: str, prompt_tokens: int, max_tokens: int
    ) -> Reservation:
        """Set aside what a request may cost, and count it.

        Args:
            limits: of the settings in force.
            price: of the target; None where it has none.
            target: PROVIDER/MODEL, for messages.
            prompt_tokens: at most.
            max_tokens: of the answer, at most.

        Raises:
            BudgetExceeded: the day has no room for it, or the target has no price and money is bounded.
        """
        day = self.today
        if limits.requests_per_day is not None and day.requests >= limits.requests_per_day:
            raise BudgetExceeded(
                f"{day.requests} requests were sent out today; the budget is {limits.requests_per_day} a day (UTC)",
                hint="mlxctl cloud budget set --requests-per-day N",
            )
        micro_usd = 0 if price is None else _cost(price, prompt_tokens, max_tokens)
        if limits.usd_per_day is not None:
            if price is None:
                raise BudgetExceeded(
                    f"{target} has no price, and a day may cost {limits.usd_per_day:g} USD",
                    hint=f"mlxctl cloud price set {target} --input USD --output USD",
                )
            if day.spent + self._reserved + micro_usd > limits.usd_per_day * _MICRO:
                raise BudgetExceeded(
                    f"a request to {target} may cost {micro_usd / _MICRO:.4f} USD; today {day.spent / _MICRO:.4f} were"
                    f" spent and {self._reserved / _MICRO:.4f} are reserved of {limits.usd_per_day:g}",
                    hint="mlxctl cloud budget set --usd-per-day USD",
                )
        day.requests += 1
        self._reserved += micro_usd
        self._write()
        return Reservation(day.date, micro_usd, price)

    def settle(self, reservation: Reservation, usage: tuple[int, int] | None) -> int:
        """Replace what was reserved by what it cost; return that in micro-USD.

        Args:
            reservation: from `reserve`, settled once.
            usage: tokens of the prompt and of the answer; None where nobody knows: then all that was reserved is spent.
        """
        self._reserved -= reservation.micro_usd
        cost = reservation.micro_usd
        if usage is not None:
            cost = 0 if reservation.price is None else _cost(reservation.price, *usage)
        self.today.spent += cost  # also what was reserved yesterday: it is on some day's bill
        self._write()
        return cost

    def cancel(self, reservation: Reservation) -> None:
        """Take back what was never sent: its money, and its place among the day's requests."""
        self._reserved -= reservation.micro_usd
        if self.today.date == reservation.date:
            self.today.requests -= 1
            self._write()

    def _date(self) -> str:
        return datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m-%d")

    def _read(self) -> Day:
        if self._path is not None:
            try:
                return _parse(json.loads(self._path.read_text()))
            except FileNotFoundError:
                pass
            except (OSError, ValueError, TypeError) as error:
                _log.warning("the sums of the day in %s cannot be read, they begin anew: %s", self._path, error)
        return Day(self._date())

    def _write(self) -> None:
        """Keep the sums, with what runs as spent: a daemon that dies cannot settle it. A full disk stops no request."""
        if self._path is None:
            return
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(asdict(self._day) | {"spent": self._day.spent + self._reserved}))
            os.replace(temporary, self._path)  # noqa: PTH105  (one system call, named as what it is)
        except OSError as error:
            _log.warning("the sums of the day cannot be written to %s: %s", self._path, error.strerror)


def _parse(value: Any) -> Day:
    """Return the sums of a file; raises ValueError or TypeError for what are none."""
    date, spent, requests = (dict(value).get(name) for name in ("date", "spent", "requests"))
    counts = [each for each in (spent, requests) if type(each) is int and each >= 0]
    if not isinstance(date, str) or len(counts) != 2:
        raise ValueError("it holds no sums")
    return Day(date, *counts)


def _cost(price: PriceSettings, prompt_tokens: int, completion_tokens: int) -> int:
    """Return micro-USD: a price of 1 USD per million tokens is one micro-USD per token. Rounded up."""
    return -int(-(price.input * prompt_tokens + price.output * completion_tokens) // 1)
