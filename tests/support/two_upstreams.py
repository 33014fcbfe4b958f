"""A scripted pool behind a rule whose two targets are real upstream servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.support.clock import FakeClock
from tests.support.http_server import Served, serving
from tests.support.scripted_pool import ScriptedPool, Step, end, say
from tests.support.upstream import KEY, Upstream, upstream


@asynccontextmanager
async def two_upstreams(
    script: Sequence[Step] = (),
    *,
    on_lease: Sequence[Step] = (),
    clock: FakeClock | None = None,
    timeouts: dict[str, str] | None = None,
    cloud: dict[str, Any] | None = None,
    **rule: Any,
) -> AsyncIterator[tuple[Served, Upstream, Upstream]]:
    """Serve a pool that follows the script behind a rule with two targets."""
    pool = ScriptedPool(list(script) or [*say("local"), *end()])
    pool.on_lease = list(on_lease)
    async with upstream() as first, upstream() as second:
        providers = {
            name: {"base_url": far.url, "auth": {"env": "KEY"}, "timeouts": timeouts or {}}
            for name, far in (("one", first), ("two", second))
        }
        rules = {"r": {"match": "big", "mode": "fallback", "to": ["one/a", "two/b"]} | rule}
        document = {"cloud": {"enabled": True, "providers": providers, "rules": rules, **(cloud or {})}}
        async with serving(pool, document=document, environ={"KEY": KEY}, clock=clock) as served:
            yield served, first, second
