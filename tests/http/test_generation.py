"""From a lease to events: their numbers, the end of one among many, and what the list of running requests learns."""

from __future__ import annotations

import pytest

from mlxd.engine.base import Delta, Finished, GenerationRequest, TextPrompt
from mlxd.http.exchange import Exchange, Tokens
from mlxd.http.generation import Held
from mlxd.protocol.errors import GenerationFailed
from mlxd.renderer import CountRenderer, Job
from mlxd.requests import RequestState, RunningRequests
from tests.support.scripted_pool import ScriptedPool, end, say

REQUEST = GenerationRequest(TextPrompt("x"))


async def test_running_request_counts_the_tokens_of_all_its_answers() -> None:
    """While answers are made side by side, the request has the tokens of all of them, each once."""
    pool = ScriptedPool([*say("a", "b", "c"), *end()])
    requests = RunningRequests()
    seen, ended = [], []
    with requests.track("r", endpoint="/v1/completions", model="m", route="local") as running:
        async with pool.lease("m", request_id="r") as lease:
            held = Held(lease, running, Exchange("r"), Tokens(), None)
            async for index, event in held.events(Job(CountRenderer(), [REQUEST, REQUEST], n=2)):
                (shown,) = requests.list()
                if isinstance(event, Delta):
                    seen.append((shown.state, shown.completion_tokens))
                elif isinstance(event, Finished):
                    ended.append(index)
    assert sorted(ended) == [0, 1, 2, 3]
    assert {state for state, _ in seen} == {RequestState.ANSWERING}
    assert max(tokens for _, tokens in seen) == running.completion_tokens == 12


async def test_the_first_error_gives_the_other_answers_up() -> None:
    """It is raised as it is, and nothing goes on behind it."""
    pool = ScriptedPool([*say("a", "b"), *end()], [*say("a"), GenerationFailed("x")], say(*"abcdefgh"))
    requests = RunningRequests()
    with requests.track("r", endpoint="/v1/completions", model="m", route="local") as running:
        async with pool.lease("m", request_id="r") as lease:
            held = Held(lease, running, Exchange("r"), Tokens(), None)
            with pytest.raises(GenerationFailed, match="x"):
                [event async for event in held.events(Job(CountRenderer(), [REQUEST], n=3))]
    assert pool.active_generations == 0
