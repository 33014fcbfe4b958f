"""What status, ps, pool.show, queue.show and daemon.show say."""

import asyncio
import os
import sys
import time

import pytest

from mlxd.config import Participant
from mlxd.control.context import HttpState
from tests.support.control import Client, Plane, until


async def test_status_of_a_quiet_daemon(plane: Plane, client: Client) -> None:
    """Version, uptime, address, settings, memory: all is there, and there is nothing to look at."""
    status = await client.ask("status")
    assert status["version"] == "1.2.3"
    assert status["uptime_ms"] >= 0
    assert status["gen"] == 1
    assert status["ready"] is True
    assert status["http"] == {"url": "http://127.0.0.1:6593", "problem": None}
    assert status["config"] == {"path": str(plane.home.config), "problem": None, "overlay": []}
    assert status["pool"]["memory"]["limit_bytes"] == 16 * 10**6
    assert status["pool"]["models"] == status["pool"]["queue"] == status["requests"] == status["operations"] == []
    cloud = status["cloud"]
    assert (cloud["enabled"], cloud["providers"], cloud["rules"], cloud["refused"]) == (False, 0, 0, [])
    assert (cloud["budget"]["requests"], cloud["budget"]["usd_per_day_micro"]) == (0, None)
    assert status["problems"] == []


async def test_the_uptime_is_not_the_wall_clocks(plane: Plane, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set back does not make it negative."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    before = (await client.ask("status"))["uptime_ms"]
    assert 0 <= before < 60_000


async def test_status_names_every_problem_in_words(plane: Plane, client: Client) -> None:
    """A bad file, a taken port, a missing key and a preload that cannot be had each have a line."""
    await client.ask("preload.set", models=["a"])
    await client.ask("cloud.provider.add", id="p", base_url="https://host/v1", auth_env="MISSING_KEY")
    plane.http = HttpState(None, "port 6593 on 127.0.0.1 is taken by another program")
    (plane.home.models / "a" / "model.safetensors").unlink()
    await client.ask("catalog.rescan")
    plane.home.config.write_text(plane.home.config.read_text() + "nonsense\n")
    await client.refused("settings.reload")
    status = await client.ask("status")
    words = "\n".join(status["problems"])
    assert "config.toml:" in words
    assert "the settings before hold" in words
    assert "port 6593" in words
    assert "MISSING_KEY" in words
    assert status["http"]["url"] is None
    assert status["config"]["problem"]["code"] == "config.file_invalid"


async def test_an_owner_that_has_not_followed_is_a_problem(plane: Plane, client: Client) -> None:
    """A mistake in the pool's part of a change is a warning of the reply, and a problem until it has followed."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    plane.store.participants.attach("pool", Participant(apply=fail))
    reply = await client.ask("settings.set", changes={"pool.max_models": 2})
    assert "pool has not applied the settings in force" in reply["warnings"][0]
    assert (await client.ask("status"))["problems"] == reply["warnings"]
    plane.store.participants.attach("pool", Participant(apply=plane.pool.apply))
    await client.ask("settings.set", changes={"pool.max_models": 3})
    assert (await client.ask("status"))["problems"] == []


async def test_what_keeps_a_bounded_day_from_being_counted_is_a_problem(plane: Plane, client: Client) -> None:
    """Nothing is sent to the cloud then, and status says why; without a bound it does not matter."""
    budget = plane.upstreams.budget
    budget.today.doubt, budget.problem = "cloud-day.json could not be read: it holds no sums", "the disk is full"
    assert (await client.ask("status"))["problems"] == []
    await client.ask("cloud.budget.set", requests_per_day="5")
    first, second = (await client.ask("status"))["problems"]
    assert "until 00:00 UTC" in first
    assert "holds no sums" in first
    assert "the disk is full" in second


async def test_the_key_file_of_a_provider_is_looked_at_away_from_the_loop(plane: Plane, client: Client) -> None:
    """Status says what is wrong with it, and a commit of another setting does not wait for it."""
    os.mkfifo(plane.home.root / "pipe", 0o600)
    reply = await client.ask(
        "cloud.provider.add", id="p", base_url="https://host/v1", auth=f"file:{plane.home.root}/pipe"
    )
    assert "no regular file" in reply["warnings"][0]
    assert "no regular file" in (await client.ask("status"))["problems"][0]


async def test_a_daemon_that_ends_says_so(plane: Plane, client: Client) -> None:
    """Whoever asks while the last requests run learns that it is about to end."""
    plane.requests.close()
    assert "shutting down" in (await client.ask("status"))["problems"][0]


async def test_the_process_shows_what_it_sees(plane: Plane, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, limits and what decides where things are found; no other variable, since it may be a secret."""
    monkeypatch.setenv("OPENROUTER_KEY", "secret")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    shown = await client.ask("daemon.show")
    assert shown["socket"] == str(plane.home.socket)
    assert shown["config"] == str(plane.home.config)
    assert shown["log"] is None
    assert shown["python"] == sys.executable
    assert shown["environment"]["PATH"] == "/usr/bin:/bin"
    assert "secret" not in str(shown)


async def test_ps_has_models_requests_waits_and_operations(plane: Plane, client: Client) -> None:
    """Whatever runs or waits is listed, with what the client's program needs to show it."""
    plane.backend.hold_loads(hold=True)
    loading = await client.ask("model.load", model="a")
    with plane.requests.track("req-1", endpoint="chat", model="a", route="local"):
        ps = await client.ask("ps")
    assert [(model["id"], model["state"]) for model in ps["models"]] == [("a", "loading")]
    assert [(request["id"], request["route"]) for request in ps["requests"]] == [("req-1", "local")]
    assert isinstance(ps["requests"][0]["started_at_ms"], int)
    assert [operation["op"] for operation in ps["operations"]] == [loading["op"]]
    plane.backend.hold_loads(hold=False)
    assert (await client.wait(loading["op"]))["state"] == "done"


async def test_pool_show_is_the_pools_snapshot(plane: Plane, client: Client) -> None:
    """The ledger adds up in the reply as it does in the pool."""
    await client.wait((await client.ask("model.load", model="a"))["op"])
    shown = await client.ask("pool.show")
    memory = shown["memory"]
    parts = ("weights_bytes", "kv_bytes", "prompt_cache_bytes", "grammar_bytes", "loading_bytes", "margin_bytes")
    assert memory["reserved_bytes"] == sum(memory[part] for part in parts)
    assert shown["models"][0]["id"] == "a"


async def test_queue_show_has_the_place_and_the_reason_of_each_wait(plane: Plane, client: Client) -> None:
    """Oldest first over all models, each with its place for its own model, and the bounds in force."""
    plane.backend.hold_loads(hold=True)
    waits = [("r1", "a"), ("r2", "b"), ("r3", "a")]
    tasks = [asyncio.ensure_future(_hold(plane, model, request)) for request, model in waits]
    await until(lambda: plane.pool.queue_length == 3)

    shown = await client.ask("queue.show")
    assert [
        (wait["position"], wait["request_id"], wait["model"], wait["model_position"]) for wait in shown["queue"]
    ] == [(1, "r1", "a", 1), (2, "r2", "b", 1), (3, "r3", "a", 2)]
    assert [wait["reason"].split(" (")[0] for wait in shown["queue"]] == [
        "a is loading",
        "b is loading",
        "a is loading",
    ]
    assert all(wait["waited_s"] >= 0 for wait in shown["queue"])
    assert [shown[key] for key in ("waiting", "size", "per_model", "timeout_s")] == [3, 256, 64, 120.0]
    first = await client.ask("queue.show", limit=1)
    assert ([wait["request_id"] for wait in first["queue"]], first["waiting"]) == (["r1"], 3)

    plane.backend.hold_loads(hold=False)
    await asyncio.gather(*tasks)
    assert (await client.ask("queue.show"))["queue"] == []


async def _hold(plane: Plane, model: str, request: str) -> None:
    """Take a lease and give it back."""
    async with plane.pool.lease(model, request_id=request):
        pass


async def test_a_system_that_is_short_of_memory_is_a_problem(plane: Plane, client: Client) -> None:
    """`status` says that loads wait, and why."""
    plane.pool.report_pressure("the system has 1.0 % of its memory left")
    status = await client.ask("status")
    assert status["pool"]["pressure"] == "the system has 1.0 % of its memory left"
    assert any("loads wait" in problem and "1.0 % of its memory left" in problem for problem in status["problems"])


async def test_ping(plane: Plane, client: Client) -> None:
    """A ping names the boot, so that a client notices a restart."""
    assert await client.ask("ping") == {"boot_id": "boot-1"}
