"""How sessions of coding agents are judged."""

from __future__ import annotations

from typing import Any

from tests.agents.proxy import Exchange
from tests.agents.verdict import judge

_HEAD = list(range(1000))


def exchange(request: str, status: int = 200, daemon: int = 0) -> Exchange:
    """Return one that a daemon answered."""
    seen = Exchange("step", "POST", "/v1/responses", {}, {}, {}, status, {"x-request-id": request}, b"no")
    seen.daemon = daemon
    return seen


def row(cached: int, status: int = 200) -> dict[str, Any]:
    """Return what the request log says of it."""
    return {"http_status": status, "cached_tokens": cached}


def test_shared_tokens_must_be_cached() -> None:
    """A prompt of which less than .95 of what it shares with any earlier one was cached is a fault."""
    prompts = {"a": [*_HEAD, 1], "title": [7, 7], "b": [*_HEAD, 2, 3], "c": [*_HEAD, 2, 4]}
    seen = [exchange(request) for request in prompts]

    verdict = judge(seen, {"a": row(0), "title": row(0), "b": row(960), "c": row(900)}, prompts)

    assert verdict.shared_tokens == 2001
    assert verdict.share == 1860 / 2001
    assert verdict.faults == ["step: POST /v1/responses: 900 of 1001 shared tokens were cached"]


def test_nothing_is_shared_across_a_restart() -> None:
    """A daemon that was started again has cached nothing, and nobody expects it to."""
    prompts = {"a": [*_HEAD, 1], "b": [*_HEAD, 2]}

    verdict = judge([exchange("a"), exchange("b", daemon=1)], {"a": row(0), "b": row(0)}, prompts)

    assert (verdict.shared_tokens, verdict.faults) == (0, [])


def test_every_request_must_be_answered_and_logged() -> None:
    """A refusal is a fault, by what the request log says, and so is a request that it does not have."""
    verdict = judge([exchange("a", 400), exchange("b"), exchange("c")], {"a": row(0, 400), "b": row(0, 500)}, {})

    assert (verdict.requests, verdict.answered) == (3, 1)
    assert verdict.faults == [
        "step: POST /v1/responses → 400 no",
        "step: POST /v1/responses → 500 no",
        "step: POST /v1/responses is not in the request log",
    ]
