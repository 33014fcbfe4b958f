"""From a lease to answers: what the list of running requests learns meanwhile."""

from __future__ import annotations

from mlxd.engine.base import Delta, Finished, GenerationRequest, TextPrompt
from mlxd.http.context import Tokens
from mlxd.http.generation import AnswerEvent, Generation
from mlxd.requests import RequestState, RunningRequests
from tests.support.scripted_pool import ScriptedPool, end, say


async def test_running_request_counts_the_tokens_of_all_its_answers() -> None:
    """While two answers are made side by side, the request has the tokens of both, each once."""
    pool = ScriptedPool([*say("a", "b", "c"), *end()])
    requests = RunningRequests()
    seen = []
    with requests.track("r", endpoint="/v1/completions", model="m", route="local") as running:
        async with pool.lease("m", request_id="r") as lease:

            async def look(number: int, event: AnswerEvent) -> None:
                if isinstance(event, Delta):
                    (shown,) = requests.list()
                    seen.append((shown.state, shown.completion_tokens))

            answers = await Generation(lease, running, lambda: None, Tokens()).deliver(
                [GenerationRequest(TextPrompt("x"))], 2, look
            )
            assert [type(answer) for answer in answers] == [Finished, Finished]
    assert sorted(tokens for _, tokens in seen) == [1, 2, 3, 4, 5, 6]
    assert {state for state, _ in seen} == {RequestState.ANSWERING}
