"""The running requests: who counts, who is cancelled, when the drain ends."""

from __future__ import annotations

import asyncio

import pytest

from mlxd.protocol.errors import DoesNotFit, Draining, NotFound, RequestCancelled
from mlxd.requests import RequestEvent, RequestState, RunningRequests


async def _hold(requests: RunningRequests, request_id: str, entered: asyncio.Event) -> None:
    with requests.track(request_id, endpoint="/v1/x", model="m", route="local"):
        entered.set()
        await asyncio.Event().wait()


async def _start(requests: RunningRequests, request_id: str) -> asyncio.Task[None]:
    entered = asyncio.Event()
    task = asyncio.create_task(_hold(requests, request_id, entered))
    await entered.wait()
    return task


async def test_a_request_is_listed_while_it_runs_and_no_longer() -> None:
    """The list shows id, endpoint, model, route, start and state of what runs now."""
    requests = RunningRequests(now=lambda: 12.0)
    with requests.track("a", endpoint="/v1/chat/completions", model="m", route="cloud") as running:
        running.state = RequestState.ANSWERING
        (listed,) = requests.list()
    assert (
        listed.id,
        listed.endpoint,
        listed.model,
        listed.route,
        listed.started_at_s,
        listed.state,
    ) == ("a", "/v1/chat/completions", "m", "cloud", 12.0, RequestState.ANSWERING)
    assert requests.list() == ()


async def test_cancel_ends_the_request_with_its_reason() -> None:
    """An operator's cancel reaches the request as RequestCancelled, and leaves the task usable."""
    requests = RunningRequests()
    task = await _start(requests, "a")
    assert requests.cancel("a", "because") == 1
    with pytest.raises(RequestCancelled, match="because"):
        await task
    assert task.cancelling() == 0


async def test_a_client_that_goes_away_stays_a_cancellation() -> None:
    """A cancel from outside is not turned into an error, not even when an operator cancels as well."""
    requests = RunningRequests()
    task = await _start(requests, "a")
    requests.cancel("a")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert requests.list() == ()


async def test_cancelling_an_unknown_request_says_so() -> None:
    """There is nothing to cancel under an id that does not run."""
    with pytest.raises(NotFound, match="'nope'"):
        RunningRequests().cancel("nope")


async def test_two_requests_may_share_an_id() -> None:
    """A client that sends one x-request-id twice gets both listed, and both cancelled."""
    requests = RunningRequests()
    tasks = [await _start(requests, "twin"), await _start(requests, "twin")]
    assert len(requests.list()) == 2
    assert requests.cancel("twin") == 2
    assert all(isinstance(end, RequestCancelled) for end in await asyncio.gather(*tasks, return_exceptions=True))


async def test_a_drain_refuses_new_requests_and_waits_for_the_old() -> None:
    """After close, track raises Draining with a Retry-After, and wait_idle returns once the last has ended."""
    requests = RunningRequests()
    task = await _start(requests, "a")
    requests.close()
    with pytest.raises(Draining) as refused, requests.track("b", endpoint="/v1/x", model="m", route="local"):
        pass
    assert refused.value.retry_after_s is not None
    idle = asyncio.create_task(requests.wait_idle())
    await asyncio.wait([idle], timeout=0)
    assert not idle.done()
    assert requests.cancel_all("the daemon ends") == 1
    await idle
    with pytest.raises(RequestCancelled, match="the daemon ends"):
        await task


async def test_an_idle_daemon_drains_at_once() -> None:
    """wait_idle does not wait when nothing ever ran."""
    await RunningRequests().wait_idle()


async def test_what_happens_to_a_request_is_told() -> None:
    """Its start, its first text and its end, with how it ended: once each; the wall clock may stand still or jump."""
    now = iter([10.0, 10.5, 12.0, 20.0, 21.0, 30.0, 31.0])
    told: list[RequestEvent] = []
    requests = RunningRequests(lambda: 9.0, told.append, lambda: next(now))
    with requests.track("a", endpoint="chat", model="m", route="local") as running:
        running.begin_answering()
        running.begin_answering()
    with pytest.raises(DoesNotFit), requests.track("b", endpoint="chat", model="m", route="local"):
        raise DoesNotFit("too large")
    with pytest.raises(asyncio.CancelledError), requests.track("c", endpoint="chat", model="m", route="local"):
        raise asyncio.CancelledError
    about = {"request": "a", "model": "m"}
    assert told[:3] == [
        RequestEvent("request.started", {**about, "endpoint": "chat", "route": "local"}),
        RequestEvent("request.answering", {**about, "elapsed_ms": 500}),
        RequestEvent("request.ended", {**about, "outcome": "done", "elapsed_ms": 2000}),
    ]
    assert [event.data["outcome"] for event in told if event.kind == "request.ended"] == [
        "done",
        "does_not_fit",
        "gone",
    ]


async def test_a_cancelled_request_is_told_as_that() -> None:
    """An operator's cancel is no client that went away."""
    told: list[RequestEvent] = []
    requests = RunningRequests(on_event=told.append)
    task = await _start(requests, "a")
    requests.cancel("a")
    with pytest.raises(RequestCancelled):
        await task
    assert told[-1].data["outcome"] == "cancelled"
