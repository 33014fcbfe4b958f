"""How many functions and files of ours a change of a setting runs through: each is one more to read."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mlxctl.cli import main
from mlxd.protocol.paths import Home
from tests.support.control import running_plane
from tests.support.walk import walking

# With a few to spare: whether the request log is written meanwhile is chance. On commit 7fe96bf it was 437 in 73 files.
MOST_FUNCTIONS, MOST_FILES = 360, 60


async def run(*arguments: str) -> int:
    """Run one mlxctl command on a thread of its own, which is traced as every new one; return its exit status."""
    loop, status = asyncio.get_running_loop(), list[int]()
    ended = asyncio.Event()

    def call() -> None:
        status.append(main(arguments))
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=call).start()
    await ended.wait()
    return status[0]


async def test_a_lowered_limit_is_a_short_walk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mlxctl pool set-memory` that evicts an idle model: from the command line to its last word, on all threads."""
    monkeypatch.setenv("MLXD_HOME", str(home.root))
    with walking() as walk:
        async with running_plane(home) as plane, await plane.connect() as client:
            for model in ("a", "b"):
                await client.wait((await client.ask("model.load", model=model))["op"])
            assert await run("pool", "set-memory", "15MB") == 0
            plane.backend.unload_s = 60
            walk.is_noting = True
            assert await run("pool", "set-memory", "3MB") == 0
            walk.is_noting = False
            assert plane.state("a") == "unloading"
    walked = "\n".join(walk.functions)
    assert 0 < len(walk.functions) <= MOST_FUNCTIONS, walked
    assert len(walk.files) <= MOST_FILES, walked
    print(
        len(walk.functions),
        len(walk.files),
        len([f for f in walk.functions if not f.startswith(("mlxd/pool/", "mlxd/engine/"))]),
    )
