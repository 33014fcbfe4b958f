"""Random traffic: workers that ask one question after the other, in every way a client may."""

from __future__ import annotations

import asyncio
import random
import string
import time
from collections import Counter
from dataclasses import dataclass, field

import aiohttp

from tests.soak.ending import Doing
from tests.soak.exchange import HANG_S, HUNG, Case, ask, learn
from tests.support.upstream import PIECES

# Most answers are short, so that many fit into the time; some outgrow their first grant of KV.
_LENGTHS = (1, 4, 16, 60, 60, 200, 200, 1200)
_PROMPTS = ("hello", "the quick brown fox", "and so on " * 12, "a longer beginning that others share. " * 8)
_KEPT_FAILURES = 20


def make_cases(models: list[str], chance: random.Random) -> list[Case]:
    """Return questions for all models, greedy and seeded, some with the same beginning."""
    cases = []
    for model in models:
        for number, max_tokens in enumerate(_LENGTHS):
            for is_chat in (True, False):
                prompt = chance.choice(_PROMPTS) + "".join(chance.choices(string.ascii_letters, k=chance.randrange(8)))
                is_seeded = number % 3 == 2
                cases.append(
                    Case(
                        model,
                        is_chat,
                        prompt,
                        max_tokens,
                        temperature=0.8 if is_seeded else 0.0,
                        seed=chance.randrange(2**31) if is_seeded else None,
                    )
                )
    return cases


def make_cloud_cases() -> list[Case]:
    """Return questions that only a cloud rule answers."""
    text = "".join(PIECES)
    return [Case(f"cloud-{name}", is_chat, "hello", 8, text=text) for name in ("x", "y") for is_chat in (True, False)]


async def learn_all(url: str, cases: list[Case]) -> list[Case]:
    """Ask each question alone, one after the other, and return them with their answers."""
    async with _session(url) as session:
        return [await learn(session, case) for case in cases]


@dataclass(slots=True)
class Traffic:
    """What the workers share: the questions, whether to go on, and what has happened."""

    url: str
    cases: list[Case]
    is_over: bool = False
    ends: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    n_failures: int = 0
    longest_s: float = 0.0
    doing: Doing = field(default_factory=Doing)

    async def run(self, seed: int, workers: int) -> None:
        """Run the workers until `is_over`; each ends the request that it has begun."""
        await asyncio.gather(*(self._work(random.Random(f"{seed} worker {number}")) for number in range(workers)))

    async def ask_all(self) -> None:
        """Ask every question once more, alone; after one that hangs no other is asked."""
        async with _session(self.url) as session:
            for case in self.cases:
                if case.is_cloud:
                    continue
                with self.doing.note(str(case)):
                    outcome = await ask(session, case, stream=True, drop_after=None)
                is_answer = outcome.kind == "streamed"
                self._count(outcome.kind, outcome.failure if is_answer else f"{outcome.kind} at the end: {case}")
                if outcome.kind == HUNG:
                    return

    async def _work(self, chance: random.Random) -> None:
        async with _session(self.url) as session:
            while not self.is_over:
                case = chance.choice(self.cases)
                is_dropping = chance.random() < 0.2
                drop_after = chance.choice((0, 0, 1, 3, 20)) if is_dropping else None
                start_s = time.monotonic()
                with self.doing.note(f"{case.path} of {case.model}, {case.max_tokens} tokens"):
                    outcome = await ask(session, case, stream=chance.random() < 0.6, drop_after=drop_after)
                self.longest_s = max(self.longest_s, time.monotonic() - start_s)
                self._count(outcome.kind, outcome.failure)
                if outcome.kind[:1].isdigit():  # refused: clients come back, but not at once
                    await asyncio.sleep(chance.uniform(0, 0.5))
                if chance.random() < 0.1:  # a person who thinks: models become idle
                    await asyncio.sleep(chance.uniform(0.1, 2))

    def _count(self, kind: str, failure: str | None) -> None:
        self.ends[kind] += 1
        if failure is not None:
            self.n_failures += 1
            if len(self.failures) < _KEPT_FAILURES:
                self.failures.append(failure)


def _session(url: str) -> aiohttp.ClientSession:
    # Dropped connections are part of it: none is used again after that, by aiohttp's own rule.
    timeout = aiohttp.ClientTimeout(total=HANG_S)
    return aiohttp.ClientSession(base_url=f"{url.rstrip('/')}/", timeout=timeout, headers={"Connection": "keep-alive"})
