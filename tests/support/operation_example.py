"""One example of every operation, in an order in which each can be done; it makes the shapes of all replies seen.

A new operation gets its example here, and `python -m tests.support.wire_promise` writes its fields down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from mlxd.audit import RequestRecord, RequestStatus
from mlxd.protocol.errors import RequestCancelled
from tests.support.control import Plane

RECORD = RequestRecord(
    request="r-0",
    started_ms=1_700_000_000_000,
    endpoint="chat/completions",
    route="cloud",
    asked="big",
    model="a",
    target="p/a",
    rule="r",
    reason="does_not_fit",
    attempts=({"target": "p/a", "status": 200, "code": None, "ms": 5},),
    status=RequestStatus.ERROR,
    code="stream_interrupted",
    http_status=200,
    prompt_tokens=7,
    cached_tokens=3,
    completion_tokens=2,
    ttft_ms=40,
    duration_ms=60,
    tokens_per_s=50.0,
    key="k",
    cost_micro_usd=9,
    noise_removed={"claude-billing-line": 1},
    ignored=("verbosity",),
)
Example = tuple[str, Mapping[str, Any]]

SETTING_UP: tuple[Example, ...] = (
    ("settings.set", {"changes": {"pool.max_models": 5, "models.a.pin": True}}),
    ("cloud.provider.add", {"id": "p", "base_url": "http://127.0.0.1:1/v1", "kind": "openai", "auth_env": "KEY"}),
    ("cloud.rule.add", {"id": "r", "match": "exact:x", "mode": "always", "to": ["p/y"], "priority": 5}),
    ("cloud.enable", {}),
    ("cloud.budget.set", {"usd_per_day": "5", "requests_per_day": "100"}),
    ("cloud.price.set", {"target": "p/z", "input": "1", "output": "2"}),
    ("key.set", {"name": "k", "secret": "sk-example"}),
    ("preload.add", {"model": "b", "at": 0}),
    ("apikey.create", {"name": "app", "models": ["a", "org/*"], "rate": "60/min"}),
)
EXAMPLES: tuple[Example, ...] = (
    ("ping", {}),
    ("daemon.show", {}),
    ("cache.rules", {}),
    ("cloud.show", {}),
    ("cloud.provider.list", {}),
    ("cloud.rule.list", {}),
    ("cloud.rule.explain", {"model": "x", "assume": "oom"}),
    ("cloud.rule.show", {"id": "r"}),
    ("cloud.provider.show", {"id": "p"}),
    ("cloud.provider.test", {"id": "p"}),
    ("cloud.breaker.list", {}),
    ("cloud.budget.show", {}),
    ("cloud.price.list", {}),
    ("key.list", {}),
    ("apikey.list", {}),
    ("settings.get", {"key": "pool.memory"}),
    ("settings.list", {}),
    ("settings.validate", {}),
    ("settings.path", {}),
    ("settings.read", {}),
    ("settings.reload", {}),
    ("settings.history", {}),
    ("settings.diff", {}),
    ("preload.list", {}),
    ("model.list", {}),
    ("model.show", {"model": "a"}),
    ("model.estimate", {"model": "a"}),
    ("pool.simulate", {"load": "org/c"}),
    ("pool.simulate", {"memory": "8MB"}),
    ("status", {}),
    ("ps", {}),
    ("pool.show", {}),
    ("queue.show", {}),
    ("op.list", {}),
    ("request.list", {}),
    ("request.show", {"request": "r-1"}),
    ("audit.list", {}),
    ("audit.changes", {}),
    ("audit.stats", {}),
)
TAKING_DOWN: tuple[Example, ...] = (
    ("model.alias.add", {"model": "a", "alias": "first"}),
    ("model.alias.list", {}),
    ("model.alias.remove", {"alias": "first"}),
    ("model.set", {"model": "a", "changes": {"keep_alive": "5m"}}),
    ("preload.set", {"models": []}),
    ("pool.evict", {"model": "b"}),
    ("preload.add", {"model": "b"}),
    ("preload.remove", {"model": "b", "unload": True}),
    ("model.pin", {"model": "a"}),
    ("model.unpin", {"model": "a"}),
    ("model.reset", {"model": "a"}),
    ("model.unload", {"model": "a"}),
    ("model.unload", {"model": "org/c"}),
    ("cloud.provider.set", {"id": "p", "kind": "anthropic"}),
    ("cloud.rule.set", {"id": "r", "priority": 6}),
    ("cloud.rule.move", {"id": "r", "first": True}),
    ("cloud.rule.disable", {"id": "r"}),
    ("cloud.rule.enable", {"id": "r"}),
    ("key.remove", {"name": "k"}),
    ("cloud.price.remove", {"target": "p/z"}),
    ("cloud.breaker.reset", {}),
    ("cloud.disable", {}),
    ("cloud.rule.remove", {"id": "r"}),
    ("cloud.provider.remove", {"id": "p"}),
    ("settings.rollback", {"gen": 1}),
    ("settings.apply", {"text": '[catalog]\npaths = ["models"]\n'}),
    ("apikey.revoke", {"name": "app"}),
    ("catalog.rescan", {}),
    ("model.remove", {"model": "org/c"}),
    ("daemon.stop", {"now": True}),
)


async def collect_replies(plane: Plane) -> dict[str, list[dict[str, Any]]]:
    """Return the replies of every operation, with something in each list that can hold something."""
    replies: dict[str, list[dict[str, Any]]] = {}
    async with await plane.connect() as client:

        async def run(examples: tuple[Example, ...], *, waits: bool = False) -> None:
            for name, params in examples:
                reply = await ask(name, **params)
                if waits and reply.get("op") is not None:
                    await client.wait(reply["op"])

        async def ask(name: str, /, **params: Any) -> dict[str, Any]:
            reply = await client.ask(name, **params)
            replies.setdefault(name, []).append(reply)
            return reply

        plane.backend.hold_loads(hold=True)
        await run(SETTING_UP)
        loading = await ask("model.load", model="a")
        await ask("op.show", op=loading["op"])
        await ask("op.wait", op=loading["op"], timeout_ms=0)
        await ask("op.cancel", op=loading["op"])
        held = await _hold(plane)
        plane.audit.note_request(RECORD)
        await run(EXAMPLES)
        plane.backend.hold_loads(hold=False)
        for operation in plane.operations.running():
            await client.wait(operation["op"])
        await run(EXAMPLES)
        await ask("request.cancel", request="r-1")
        await asyncio.wait({held})
        await run(TAKING_DOWN, waits=True)
    return replies


async def _hold(plane: Plane) -> asyncio.Task[None]:
    """Return a request that runs and waits in the queue, until it is cancelled."""
    is_there = asyncio.Event()

    async def run() -> None:
        with (
            contextlib.suppress(RequestCancelled),
            plane.requests.track("r-1", endpoint="chat", model="org/c", route="local"),
        ):
            is_there.set()
            async with plane.pool.lease("org/c", request_id="r-1"):
                await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await is_there.wait()
    await asyncio.sleep(0)
    return task
