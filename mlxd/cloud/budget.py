"""The day's budget for the cloud: reserved before a request is sent, settled when its usage is known. Owns the sums.

A day is one of UTC. The sums are kept in a small file, so that a restart does not begin the day anew, and for the last
few days, so that a clock that jumps over midnight and back does not either. Where a day is bounded, nothing is sent
that the file does not hold, and nothing while nobody knows what it held.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Self

from mlxd.atomic_file import AtomicFile
from mlxd.protocol.errors import BudgetExceeded
from mlxd.protocol.settings import BudgetSettings, PriceSettings

_MICRO = 1_000_000
_KEPT_DAYS = 7
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Day:
    """The sums of one day; money in micro-USD."""

    date: str
    spent: int = 0
    requests: int = 0
    doubt: str | None = None  # why there may have been more: the file could not be read


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one request may cost at most."""

    date: str
    micro_usd: int
    price: PriceSettings | None


class Budget:
    """The day's spending."""

    def __init__(self, file: AtomicFile | None, now: Callable[[], float]) -> None:
        """Take the file that the sums are kept in (None keeps none), and unix time."""
        self._file = file
        self._now = now
        self._reserved = 0
        self._days: dict[str, Day] = {}  # the one that was used last is the last
        self._changes = 0  # of the sums; the file was last written, or could not be, at so many
        self._kept_changes = 0
        self._writer: asyncio.Task[None] | None = None
        self.problem: str | None = None  # why the file does not hold the sums

    async def __aenter__(self) -> Self:
        """Read the file; without it the sums begin at nothing."""
        if self._file is not None:
            try:
                data = (await asyncio.to_thread(self._file.read)).data
                self._days = {} if data is None else {day.date: day for day in _parse(json.loads(data))}
            except (OSError, ValueError, TypeError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else error
                self.today.doubt = f"{self._file.path} could not be read: {reason}"
                _log.warning("what the cloud has cost today is not known: %s", self.today.doubt)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Wait until the file holds the sums."""
        if self._writer is not None:
            await self._writer

    @property
    def today(self) -> Day:
        """The sums of today."""
        date = self._date()
        day = self._days[date] = self._days.pop(date, Day(date))
        while len(self._days) > _KEPT_DAYS:
            del self._days[next(iter(self._days))]
        return day

    @property
    def reserved(self) -> int:
        """Micro-USD of the requests that run."""
        return self._reserved

    async def reserve(
        self, limits: BudgetSettings, price: PriceSettings | None, target: str, prompt_tokens: int, max_tokens: int
    ) -> Reservation:
        """Set aside what a request may cost, and count it; where a day is bounded, the file holds it afterwards.

        Args:
            limits: of the settings in force.
            price: of the target; None where it has none.
            target: PROVIDER/MODEL, for messages.
            prompt_tokens: at most.
            max_tokens: of the answer, at most.

        Raises:
            BudgetExceeded: the day has no room for it, or the day is bounded and the target has no price or the sums
                cannot be read or kept.
        """
        day = self.today
        is_bounded = limits.requests_per_day is not None or limits.usd_per_day is not None
        if is_bounded and day.doubt is not None:
            raise BudgetExceeded(
                "nobody knows what was sent out today, and a day is bounded; nothing is sent until 00:00 UTC:"
                f" {day.doubt}",
                hint="mlxctl cloud budget set --usd-per-day none",
            )
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
        self._note_change()
        reservation = Reservation(day.date, micro_usd, price)
        if is_bounded:
            try:
                await self._be_kept()
            except BaseException:
                self.cancel(reservation)
                raise
        return reservation

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
        self._note_change()
        return cost

    def cancel(self, reservation: Reservation) -> None:
        """Take back what was never sent: its money, and its place among the day's requests."""
        self._reserved -= reservation.micro_usd
        if reservation.date in self._days:
            self._days[reservation.date].requests -= 1
        self._note_change()

    def _date(self) -> str:
        return datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m-%d")

    def _note_change(self) -> None:
        """Have the sums written; changes that come meanwhile are written together."""
        self._changes += 1
        if self._file is not None and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self._write(self._file))

    async def _be_kept(self) -> None:
        """Wait until the file holds the sums of now.

        Raises:
            BudgetExceeded: it cannot be written.
        """
        changes = self._changes
        while self._writer is not None and self._kept_changes < changes:
            await asyncio.shield(self._writer)
        if self.problem is not None:
            raise BudgetExceeded(
                f"a daemon that is killed would forget what was sent out today, and a day is bounded: {self.problem}",
                hint="free some disk space",
            )

    async def _write(self, file: AtomicFile) -> None:
        while self._kept_changes < self._changes:
            changes, data = self._changes, self._format()
            try:
                await asyncio.to_thread(file.replace, data)
                self.problem = None
            except OSError as error:
                self.problem = f"{file.path} cannot be written: {error.strerror or error}"
                _log.warning("what the cloud has cost today is not kept: %s", self.problem)
            self._kept_changes = changes

    def _format(self) -> bytes:
        """Return the content of the file, with what runs as spent: a daemon that dies cannot settle it."""
        days = [asdict(day) for day in self._days.values()]
        if days:
            days[-1]["spent"] += self._reserved
        return json.dumps({"days": days}).encode()


def _parse(value: Any) -> list[Day]:
    """Return the days of a file; raises ValueError or TypeError for what are none."""
    # Until 0.1 the file held one day.
    days = value["days"] if isinstance(value, dict) and "days" in value else [value]
    if not isinstance(days, list):
        raise ValueError("it holds no sums")  # noqa: TRY004  (of a file, not of an argument)
    return [_parse_day(day) for day in days]


def _parse_day(value: Any) -> Day:
    date, spent, requests = (dict(value).get(name) for name in ("date", "spent", "requests"))
    counts = [each for each in (spent, requests) if type(each) is int and each >= 0]
    if not isinstance(date, str) or len(counts) != 2:
        raise ValueError("it holds no sums")
    doubt = dict(value).get("doubt")
    return Day(date, counts[0], counts[1], None if doubt is None else str(doubt))


def _cost(price: PriceSettings, prompt_tokens: int, completion_tokens: int) -> int:
    """Return micro-USD: a price of 1 USD per million tokens is one micro-USD per token. Rounded up."""
    return -int(-(price.input * prompt_tokens + price.output * completion_tokens) // 1)
