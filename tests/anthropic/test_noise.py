"""Two sessions of Claude Code on one machine: their heads are the same tokens, and are read once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.claude_code import billing, body
from tests.support.http_server import Served
from tests.support.served_models import ServeModels

MESSAGES = "/v1/messages"
# One turn: the tiny model has no tools.
FIRST = body(billing(more=" cch=eb6c6;"), notes=(15_000_000, 14_999_436), asks="read main.py")
SECOND = body(billing("84c", more=" cch=36ee5;"), notes=(15_000_000, 14_998_000), asks="look at i.png")


def turn(session: dict[str, Any]) -> dict[str, Any]:
    """Return the first request of a session, for the tiny model."""
    (user,) = session["messages"][:1]
    notes = [message for message in session["messages"] if "total_tokens" in str(message)][:1]
    return {"model": "tiny", "max_tokens": 4, "system": session["system"], "messages": [user, *notes]}


async def usage(served: Served, asked: dict[str, Any]) -> tuple[int, int, int]:
    """Return the tokens of the prompt, how many of them were cached, and what count_tokens says."""
    status, _, answer = await served.post(MESSAGES, asked)
    assert status == 200, answer
    used = json.loads(answer)["usage"]
    counted = {name: asked[name] for name in ("model", "system", "messages")}
    _, _, count = await served.post(f"{MESSAGES}/count_tokens", counted)
    cached = used["cache_read_input_tokens"]
    return used["input_tokens"] + cached, cached, json.loads(count)["input_tokens"]


@pytest.mark.parametrize("serve_models", ["device"], indirect=True)
async def test_a_second_session_reuses_the_head_of_the_first(serve_models: ServeModels) -> None:
    """With other headers and notes; the count is that of what is served, and less with the rules on."""
    async with serve_models() as served:
        total, _, counted = await usage(served, turn(FIRST))
        assert counted == total
        total, cached, counted = await usage(served, turn(SECOND))
        head = sum(len(block["text"]) for block in SECOND["system"][1:])  # a character is a token of the tiny model
        assert (counted, cached > head) == (total, True)
    async with serve_models(http={"noise_rules_off": ["claude-billing-line", "claude-tokens-left"]}) as served:
        noisy, _, counted = await usage(served, turn(FIRST))
        assert (counted, noisy > total) == (noisy, True)
        _, cached, _ = await usage(served, turn(SECOND))
        assert cached < len(billing("84c"))
