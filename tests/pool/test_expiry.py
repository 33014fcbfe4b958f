"""keep_alive and patience: what time does to models."""

from __future__ import annotations

import pytest

from tests.support.pool_world import MB, world


async def test_an_idle_model_expires() -> None:
    """After `pool.keep_alive` without a request the model unloads; the status counts down."""
    async with world({"a": 30}, {"pool": {"keep_alive": "60s"}}) as w:
        await w.run(w.answer("a"))
        await w.advance(59)
        model = w.model("a")
        assert model is not None
        assert (model.state, model.keep_alive_s) == ("ready", 60)
        assert model.expires_in_s == pytest.approx(1, abs=0.2)

        await w.advance(2)
        assert w.state("a") == "unloaded"
        assert w.backend.active_bytes == 0


async def test_expiry_counts_from_the_last_release() -> None:
    """A long stream does not age its model, and a new request starts the time anew."""
    async with world({"a": 30}, {"pool": {"keep_alive": "5s"}}) as w:
        stream = w.send("a", tokens=1500)
        await w.advance(15)
        assert w.state("a") == "ready"
        await w.advance(4)
        assert stream.text
        await w.run(w.answer("a"))
        await w.advance(4)
        assert w.state("a") == "ready"

        await w.advance(2)
        assert w.state("a") == "unloaded"


async def test_keep_alive_0_unloads_at_once() -> None:
    """With 0s the model goes with its last lease."""
    async with world({"a": 30}, {"pool": {"keep_alive": "0s"}}) as w:
        assert await w.run(w.answer("a"))

        assert w.state("a") in {"unloading", "unloaded"}
        await w.advance(1)
        assert w.state("a") == "unloaded"


async def test_keep_alive_0_serves_all_that_wait_first() -> None:
    """Requests that waited for the load share it; it is not unloaded between them."""
    async with world({"a": 30}, {"pool": {"keep_alive": "0s"}}) as w:
        clients = [w.send("a", seed=seed, tokens=100 * (seed + 1)) for seed in range(3)]
        await w.advance(10)

        assert all(client.text for client in clients)
        assert w.backend.calls == ["load a", "unload a"]


async def test_keep_alive_never() -> None:
    """`never` keeps an idle model, and the status says None rather than infinity."""
    async with world({"a": 30}, {"pool": {"keep_alive": "never"}}) as w:
        await w.load("a")
        await w.advance(100_000)

        model = w.model("a")
        assert model is not None
        assert (model.state, model.keep_alive_s, model.expires_in_s) == ("ready", None, None)


async def test_keep_alive_per_model() -> None:
    """A model's own keep_alive goes before the pool's; `inherit` takes the pool's."""
    document = {
        "pool": {"keep_alive": "10s"},
        "models": {"a": {"keep_alive": "never"}, "b": {"keep_alive": "2s"}, "c": {"keep_alive": "inherit"}},
    }
    async with world({"a": 20, "b": 20, "c": 20}, document) as w:
        for model_id in ("a", "b", "c"):
            await w.run(w.answer(model_id))
        await w.advance(5)
        assert [w.state(model_id) for model_id in ("a", "b", "c")] == ["ready", "unloaded", "ready"]
        await w.advance(6)
        assert [w.state(model_id) for model_id in ("a", "b", "c")] == ["ready", "unloaded", "unloaded"]


async def test_a_changed_keep_alive_applies_at_once() -> None:
    """A model that has been idle for longer than the new time goes in the same turn, and the reply names it."""
    async with world({"a": 30}) as w:
        await w.load("a")
        await w.advance(10)
        begun = w.change({"pool": {"keep_alive": "2s"}})

        assert [victim.id for victim in begun.evicting] == ["a"]
        assert w.state("a") == "unloading"


async def test_a_pinned_model_never_expires() -> None:
    """P9: pinned means no idle unload and no eviction, until unpinned."""
    async with world({"a": 60, "b": 60}, {"pool": {"keep_alive": "1s"}, "models": {"a": {"pin": True}}}) as w:
        await w.load("a")
        await w.advance(100)
        assert w.state("a") == "ready"

        w.change({"models": {"a": {"pin": False}}})
        await w.advance(1)
        assert w.state("a") == "unloaded"


async def test_a_model_loaded_by_force_never_expires() -> None:
    """It stays until it is unloaded by command, as its load promised."""
    async with world({"huge": 200}, {"pool": {"keep_alive": "60s"}}) as w:
        await w.run(w.pool.load("huge", force=True))
        await w.advance(600)
        model = w.model("huge")
        assert model is not None
        assert (model.state, model.expires_in_s) == ("ready", None)


async def test_a_request_at_the_moment_of_expiry_wins_or_waits_for_the_reload() -> None:
    """One turn decides: a lease taken first keeps the model; after the expiry it is loaded again."""
    async with world({"a": 30}, {"pool": {"keep_alive": "5s"}}) as w:
        await w.load("a")
        await w.advance(4.999)
        won = w.send("a")
        await w.advance(0.5)
        assert won.text
        assert w.backend.calls == ["load a"]

        await w.advance(4.65)
        assert w.state("a") in {"unloading", "unloaded"}
        reloaded = w.send("a", seed=1)
        await w.advance(3)
        assert reloaded.text
        assert w.backend.calls == ["load a", "unload a", "load a"]


async def test_a_model_that_requests_wait_in_is_not_idle() -> None:
    """A request that waits for KV keeps its model from expiring."""
    async with world({"a": 30, "b": 60}, {"pool": {"keep_alive": "1s"}}) as w:
        w.send("b", tokens=3000)
        await w.advance(2)
        waiting = w.send("a", prompt="x" * 5000)
        await w.advance(5)
        assert (w.state("a"), waiting.done) == ("ready", False)


async def test_an_idle_pool_sets_no_timer() -> None:
    """With nothing that can expire, nothing wakes the daemon."""
    async with world({"a": 30}, {"pool": {"keep_alive": "never"}}) as w:
        await w.run(w.answer("a"))
        await w.advance(1)

        assert w.clock.next_s is None


async def test_a_stream_of_requests_does_not_starve_another_model() -> None:
    """P4: after `evict_patience` the model that is busy all the time drains for the one that waits."""
    async with world({"a": 60, "b": 60}, {"pool": {"evict_patience": "30s"}}) as w:
        clients = []
        w.send("a", tokens=400)
        await w.advance(2)
        waiting = w.send("b")
        for seed in range(29):
            clients.append(w.send("a", tokens=400, seed=seed))
            await w.advance(1)
        assert (w.state("a"), w.state("b")) == ("ready", "queued")

        for seed in range(29, 45):
            clients.append(w.send("a", tokens=400, seed=seed))
            await w.advance(1)
        assert waiting.text, "b was starved"
        await w.advance(60)
        assert all(len(client.text) == 400 for client in clients)


async def test_a_waiter_is_served_within_the_patience_and_a_load() -> None:
    """With room for one and steady requests to a, b waits for the patience, a's last answer, its unload, and a load."""
    async with world({"a": 60, "b": 60}, {"pool": {"evict_patience": "30s"}}) as w:
        await w.load("a")
        asked_s = w.clock.now()
        clients = [w.send("a", tokens=400, seed=-1), w.send("b", tokens=1)]
        served_s: list[float] = []
        clients[1].task.add_done_callback(lambda _: served_s.append(w.clock.now()))
        for seed in range(80):
            clients.append(w.send("a", tokens=400, seed=seed))
            await w.advance(0.5)

        # An answer takes 4.02 s: a pass for the prompt, one for each token, one for the submit.
        busy_s, unload_s, load_s, answer_s = 4.02, w.backend.unload_s, w.backend.load_s, 3 * w.backend.step_s
        assert served_s[0] - asked_s <= 30 + busy_s + unload_s + load_s + answer_s
        drained = [place for place, event in enumerate(w.events) if event.kind == "model.draining"]
        assert [w.events[place].model_id for place in drained] == ["a"]
        await w.advance(120)
        assert all(client.text for client in clients)


async def test_patience_can_be_changed_while_a_request_waits() -> None:
    """A lowered `evict_patience` drains at once."""
    async with world({"a": 60, "b": 60}) as w:
        w.send("a", tokens=3000)
        await w.advance(2)
        w.send("b")
        await w.advance(10)
        assert w.state("a") == "ready"

        w.change({"pool": {"evict_patience": "5s"}})
        assert w.state("a") == "draining"


async def test_patience_does_not_drain_pinned_models() -> None:
    """P9: a request that only a pinned model's end could serve is refused, however long it would wait."""
    async with world({"a": 40, "b": 30, "c": 40}, {"models": {"a": {"pin": True}}}) as w:
        pinned, busy = w.send("a", tokens=15_000), w.send("b", tokens=15_000)
        await w.advance(2)
        waiting = w.send("c")
        await w.advance(40)

        assert (w.state("a"), w.state("b")) == ("ready", "draining")
        assert not pinned.done
        assert not busy.done
        assert not waiting.done


async def test_a_request_for_kv_is_not_starved_by_another_model() -> None:
    """P4 for memory: the busy model beside it drains after the patience, and the long prompt is answered."""
    document = {"pool": {"memory": 100 * MB, "evict_patience": "10s", "preload": ["a"]}, "queue": {"timeout": "200s"}}
    async with world({"a": 30, "b": 60}, document) as w:
        await w.advance(2)
        for seed in range(2):
            w.send("b", tokens=1500, seed=seed)
        await w.advance(2)
        long = w.send("a", prompt="x" * 12_000)
        await w.advance(9)
        assert w.state("b") == "ready"
        await w.advance(2)
        assert w.state("b") == "draining"

        await w.advance(60)
        assert long.text
