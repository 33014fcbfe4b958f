"""What came of a program's requests: refusals, and how much of what two prompts share was cached."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tests.agents.proxy import Exchange

CACHED_SHARE = 0.95
# Less is what prompts of one template begin with: no conversation.
_MOST_OF_CHANCE = 256
_SHOWN_BYTES = 160


@dataclass
class Verdict:
    """The sums of one program, and what is wrong."""

    requests: int = 0
    answered: int = 0
    shared_tokens: int = 0
    cached_tokens: int = 0
    lowest_share: float = 1.0
    faults: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the tokens that a prompt shares with an earlier one, how many were cached."""
        return self.cached_tokens / self.shared_tokens if self.shared_tokens else 1.0


def shared_with(tokens: Sequence[int], earlier: Sequence[Sequence[int]]) -> int:
    """Return the length of the longest head that *tokens* shares with one of *earlier*."""
    return max((sum(1 for _ in takewhile(_equal, zip(tokens, other, strict=False))) for other in earlier), default=0)


def _equal(pair: tuple[int, int]) -> bool:
    return pair[0] == pair[1]


def judge(
    seen: Sequence[Exchange], rows: Mapping[str, Mapping[str, Any]], prompts: Mapping[str, Sequence[int]]
) -> Verdict:
    """Hold what a program sent against the rows of the request log.

    Args:
        seen: what passed the proxy, in order.
        rows: request id → row of the log.
        prompts: request id → tokens, of all prompts.
    """
    verdict = Verdict(requests=len(seen))
    earlier: dict[int, list[Sequence[int]]] = defaultdict(list)
    for exchange in seen:
        request = exchange.answer_headers.get("x-request-id", "")
        row = rows.get(request)
        where = f"{exchange.step}: {exchange.method} {exchange.path}"
        status = exchange.status if row is None else row["http_status"]
        if not 200 <= status < 300:
            verdict.faults.append(f"{where} → {status} {exchange.answer[:_SHOWN_BYTES].decode(errors='replace')}")
            continue
        if row is None and exchange.method == "POST":
            verdict.faults.append(f"{where} is not in the request log")
        verdict.answered += 1
        if row is None or request not in prompts:
            continue
        tokens = prompts[request]
        shared = shared_with(tokens, earlier[exchange.daemon])
        earlier[exchange.daemon].append(tokens)
        if shared > _MOST_OF_CHANCE:
            cached = min(row["cached_tokens"], shared)
            verdict.shared_tokens += shared
            verdict.cached_tokens += cached
            verdict.lowest_share = min(verdict.lowest_share, cached / shared)
            if cached < CACHED_SHARE * shared:
                verdict.faults.append(f"{where}: {cached} of {shared} shared tokens were cached")
    return verdict
