"""Memory that is short although the ledger's sums are right: an allocation failed, or the system needs it."""

from __future__ import annotations

import pytest

from mlxd.pool.pressure import CALM_S, MOST_RETURN_S
from mlxd.protocol.errors import OutOfMemory, QueueTimeout
from tests.support.fake_row import answer_text
from tests.support.pool_world import MB, Client, World, world

NO_MEMORY = OutOfMemory("model 'b': out of memory while loading: Unable to allocate 30000000 bytes")
SHORT = "macOS says that its memory is critically short"


async def test_out_of_memory_at_load_frees_idle_models_and_retries_once() -> None:
    """Idle models and prompt caches go, the load is tried again when they are gone, and nobody sees an error."""
    async with world({"a": 20, "b": 30, "busy": 20, "pinned": 10}, {"models": {"pinned": {"pin": True}}}) as w:
        await w.load("a", "pinned")
        stream = w.send("busy", tokens=2000)
        await w.advance(2)
        w.backend.fail_load("b", NO_MEMORY)
        clients = [w.send("b", seed=seed) for seed in range(3)]
        await w.advance(1.01)
        waiting = [(wait.model, wait.reason) for wait in w.pool.status().queue]
        assert waiting == [("b", "it ran out of memory; what is idle is freed before it is tried once more")] * 3
        assert [w.state(name) for name in ("a", "busy", "pinned", "b")] == ["unloading", "ready", "ready", "queued"]

        await w.advance(2)
        assert [client.text for client in clients] == [answer_text("hello", seed, 10) for seed in range(3)]
        assert w.kinds("b") == ["loading", "load_retried", "loading", "loaded"]
        assert w.backend.calls[-2:] == ["unload a", "load b"]
        await w.advance(20)
        assert len(stream.text) == 2000


async def test_out_of_memory_at_the_second_try_fails_with_oom() -> None:
    """All waiters get `oom` with the cause; the backoff begins, and after it a failed try frees nobody again."""
    async with world({"a": 20, "b": 30}) as w:
        await w.load("a")
        for _ in range(3):
            w.backend.fail_load("b", NO_MEMORY)
        clients = [w.send("b", seed=seed) for seed in range(2)]
        await w.advance(3)
        assert [type(client.error) for client in clients] == [OutOfMemory, OutOfMemory]
        assert w.state("a") == "unloaded"
        assert w.kinds("b") == ["loading", "load_retried", "loading", "load_failed"]
        model = w.model("b")
        assert model is not None
        assert model.reason == "not tried again for 4 s"

        early = w.send("b")
        await w.settle()
        assert isinstance(early.error, OutOfMemory)
        assert "not tried again for 4 s" in early.error.message
        await w.load("a")
        await w.advance(5)
        third = w.send("b")
        await w.advance(2)
        assert isinstance(third.error, OutOfMemory)
        assert w.state("a") == "ready"
        assert w.kinds("b")[-2:] == ["loading", "load_failed"]


async def test_out_of_memory_of_a_preload_waits_for_its_backoff() -> None:
    """A load that no request waits for frees idle models too, and is tried again when its backoff is over."""
    async with world({"a": 20, "b": 30}) as w:
        await w.load("a")
        w.backend.fail_load("b", NO_MEMORY)
        w.change({"pool": {"preload": ["b"]}})
        await w.advance(1.5)
        assert (w.state("a"), w.state("b")) == ("unloaded", "failed")

        await w.advance(6)
        assert w.state("b") == "ready"


async def test_a_load_whose_last_waiter_leaves_between_the_tries_is_given_up() -> None:
    """Nobody wants it any more: it is not loaded, and the next request begins with a first try."""
    async with world({"a": 20, "b": 30}) as w:
        w.backend.unload_s = 5
        await w.load("a")
        w.backend.fail_load("b", NO_MEMORY)
        client = w.send("b")
        await w.advance(1.5)
        assert w.state("b") == "queued"
        client.task.cancel()
        await w.advance(10)
        assert w.state("b") == "unloaded"

        w.backend.fail_load("b", NO_MEMORY)
        assert await w.run(w.answer("b"))
        assert w.kinds("b") == ["loading", "load_retried", "loading", "load_retried", "loading", "loaded"]


async def test_an_unload_that_meets_the_second_try_returns() -> None:
    """The model was gone between the tries: the command is done, although a later request has it loaded again."""
    async with world({"a": 20}) as w:
        w.backend.fail_load("a", NO_MEMORY)
        w.send("a")
        await w.settle()
        unload = w.task(w.pool.unload("a"))
        await w.settle()
        later = w.send("a", seed=1)
        await w.advance(5)
        assert later.text
        assert unload.done()


async def _prefilling(w: World, *models: str) -> list[Client]:
    """Begin a request for each model and stop before the device has seen it."""
    clients = [w.send(name, tokens=50) for name in models]
    await w.settle()
    return clients


async def test_out_of_memory_at_prefill_frees_idle_models_and_retries_once() -> None:
    """A request that has had no text yet begins once more when what was idle is gone; its answer is whole."""
    async with world({"a": 20, "idle": 30}) as w:
        await w.load("a", "idle")
        (client,) = await _prefilling(w, "a")
        w.backend.fail_sequences("a", NO_MEMORY)
        await w.advance(0.02)
        assert (w.state("a"), w.state("idle"), client.done) == ("ready", "unloading", False)
        assert w.backend.running == 0

        await w.advance(2)
        assert client.text == answer_text("hello", 0, 50)
        assert "sequence.retried" in w.kinds("a")


async def test_out_of_memory_at_the_second_prefill_fails_with_oom() -> None:
    """The request ends with `oom`, and its row's reservation is gone."""
    async with world({"a": 20}) as w:
        await w.load("a")
        (client,) = await _prefilling(w, "a")
        w.backend.fail_sequences("a", NO_MEMORY)
        await w.advance(0.011)
        w.backend.fail_sequences("a", NO_MEMORY)
        await w.advance(1)
        assert isinstance(client.error, OutOfMemory)
        assert w.backend.running == 0
        assert await w.run(w.answer("a"))


async def test_out_of_memory_after_the_first_text_is_no_retry() -> None:
    """What a reader has seen cannot be taken back: a stream that answers already ends with `oom`."""
    async with world({"a": 20, "idle": 30}) as w:
        await w.load("a", "idle")
        client = w.send("a", tokens=500)
        await w.advance(1)
        w.backend.fail_sequences("a", NO_MEMORY)
        await w.advance(1)
        assert isinstance(client.error, OutOfMemory)
        assert w.state("idle") == "ready"


async def test_a_request_that_begins_again_on_a_draining_model_waits_for_the_reload() -> None:
    """The model drains without it, comes back for it, and the prompt that was prepared is answered."""
    async with world({"a": 20, "b": 20}) as w:
        await w.load("a", "b")
        client, other = await _prefilling(w, "a", "b")
        w.change({"pool": {"max_models": 1}})
        assert (w.state("a"), w.state("b")) == ("draining", "ready")
        w.backend.fail_sequences("a", NO_MEMORY)
        await w.advance(5)
        assert other.text

        assert client.text == answer_text("hello", 0, 50)
        assert w.kinds("a")[-4:] == ["evicting", "unloaded", "loading", "loaded"]


async def test_os_memory_critical() -> None:
    """New loads wait with the reason, idle unpinned models unload, what runs goes on; later the loads go on too."""
    models = {"idle": 20, "busy": 10, "pinned": 10, "new": 20}
    async with world(models, {"models": {"pinned": {"pin": True}}}) as w:
        await w.load("idle", "pinned")
        stream = w.send("busy", tokens=400)
        await w.advance(2)
        w.pool.report_pressure(SHORT)
        waiting = w.send("new")
        await w.advance(1)
        assert [w.state(name) for name in models] == ["unloaded", "ready", "ready", "queued"]
        assert w.pool.status().pressure == SHORT
        assert w.pool.status().queue[0].reason == SHORT
        assert [event.kind for event in w.events].count("pool.pressed") == 1
        assert await w.run(w.answer("pinned"))

        await w.advance(CALM_S - 2)
        w.pool.report_pressure(None)
        w.pool.report_pressure(SHORT)
        await w.advance(CALM_S - 1)
        assert (waiting.done, w.state("busy")) == (False, "unloaded")
        assert len(stream.text) == 400

        await w.advance(4)
        assert waiting.text
        assert w.pool.status().pressure is None
        kinds = [event.kind for event in w.events]
        assert (kinds.count("pool.pressed"), kinds.count("pool.relieved")) == (1, 1)


async def test_os_memory_critical_takes_preloaded_models_last_and_brings_them_back() -> None:
    """The next sample that is still critical takes idle preloaded models too; they load again when it is over."""
    async with world({"a": 20, "kept": 30}, {"pool": {"preload": ["kept"]}}) as w:
        await w.advance(2)
        await w.load("a")
        w.pool.report_pressure(SHORT)
        w.pool.report_pressure(SHORT)
        assert (w.state("a"), w.state("kept")) == ("unloading", "ready")
        await w.advance(1)
        w.pool.report_pressure(SHORT)
        await w.advance(1)
        assert w.state("kept") == "unloaded"
        assert [(preload.state, preload.reason) for preload in w.pool.status().preload] == [("deferred", SHORT)]
        planned = w.pool.plan(w.pool._state.settings)
        assert [(model.id, model.reason) for model in planned.deferred] == [("kept", SHORT)]

        await w.advance(CALM_S + 2)
        assert w.state("kept") == "ready"


async def test_os_memory_critical_ends_a_wait_with_its_reason() -> None:
    """While it lasts, a request waits for `queue.timeout` at most, and is told why."""
    async with world({"a": 20}, {"queue": {"timeout": "5s"}}) as w:
        w.pool.report_pressure(SHORT)
        client = w.send("a")
        await w.advance(6)

        assert isinstance(client.error, QueueTimeout)
        assert SHORT in client.error.message
        assert w.backend.calls == []


async def test_os_memory_critical_yields_to_force() -> None:
    """`model load --force` loads all the same: the sample may be wrong, and the operator knows better."""
    async with world({"a": 20}) as w:
        w.pool.report_pressure(SHORT)
        with pytest.raises(AssertionError, match="it takes longer"):
            await w.run(w.pool.load("a"), seconds=3)
        await w.run(w.pool.load("a", force=True))
        assert w.state("a") == "ready"


async def test_os_memory_critical_aborts_loads() -> None:
    """A load that runs when the system gets short ends at once, and its requests are answered when that is over."""
    models = {"a": 20, "kept": 10, "forced": 5}
    async with world(models, {"pool": {"preload": ["kept"]}}) as w:
        w.task(w.pool.load("forced", force=True))
        client = w.send("a")
        await w.advance(0.5)
        w.pool.report_pressure(SHORT)
        await w.advance(2)
        assert [w.state(name) for name in models] == ["queued", "unloaded", "ready"]
        assert w.pool.status().queue[0].reason == SHORT

        await w.advance(CALM_S + 2)
        assert client.text
        assert w.state("kept") == "ready"


async def test_os_memory_critical_ends_by_itself() -> None:
    """With nothing loaded and nobody waiting it is over all the same when no sample has confirmed it for a while."""
    async with world({"a": 20}) as w:
        w.pool.report_pressure(SHORT)
        await w.advance(CALM_S + 1)
        assert w.pool.status().pressure is None


async def _live(w: World, seconds: float, *, spare_bytes: int | None = None) -> None:
    """Let time pass on a system that is short of memory whenever the model `big` is there, and is sampled every 5 s."""
    await w.settle()
    for _ in range(round(seconds / 5)):
        is_short = w.state("big") in {"loading", "ready"}
        w.pool.report_pressure(SHORT if is_short else None, spare_bytes)
        await w.advance(5)


@pytest.mark.parametrize("load_s", [1, 20])
async def test_a_preload_that_makes_the_system_short_comes_back_ever_later(load_s: float) -> None:
    """Whether it was unloaded or its load was stopped, the wait doubles each time, and status says how long it is."""
    async with world({"big": 60}, {"pool": {"preload": ["big"]}}) as w:
        w.backend.load_s = load_s
        await _live(w, 1200)
        assert w.backend.calls.count("load big") <= 7
        (deferred,) = w.pool.status().preload
        assert deferred.state == "deferred"
        assert deferred.reason is not None
        assert "the system was short of memory while big was loaded; it is not loaded again for" in deferred.reason

        w.backend.calls.clear()
        await _live(w, 2 * MOST_RETURN_S)
        assert w.backend.calls.count("load big") in {2, 3}  # one every half hour


async def test_a_preload_waits_until_the_system_can_spare_what_it_needs() -> None:
    """It is not loaded again in vain, the reason names both numbers, and it is back as soon as there is enough."""
    async with world({"big": 60}, {"pool": {"preload": ["big"]}}) as w:
        await _live(w, 1200, spare_bytes=50 * MB)
        assert w.backend.calls.count("load big") == 1
        (deferred,) = w.pool.status().preload
        assert deferred.reason == (
            "the system was short of memory while big was loaded; it needs 64.5 MB (61.5 MiB),"
            " the system can spare 50.0 MB (47.7 MiB)"
        )
        planned = w.pool.plan(w.pool._state.settings)
        assert [(model.id, model.reason) for model in planned.deferred] == [("big", deferred.reason)]

        w.pool.report_pressure(None, 70 * MB)
        await w.advance(2)
        assert w.state("big") == "ready"


async def test_a_preload_that_was_kept_out_is_loaded_when_it_is_asked_for() -> None:
    """A request, a command and a reset need not wait for the list's turn once the system has memory again."""
    async with world({"big": 60}, {"pool": {"preload": ["big"]}}) as w:
        await _live(w, 100)
        await w.advance(CALM_S)
        assert w.state("big") == "unloaded"
        assert await w.run(w.answer("big"), seconds=2)

        await _live(w, 10)
        await w.advance(CALM_S)
        assert w.state("big") == "unloaded"
        await w.run(w.pool.load("big"), seconds=2)

        await _live(w, 10)
        await w.advance(CALM_S)
        w.pool.reset("big")
        await w.advance(2)
        assert w.state("big") == "ready"


async def test_a_preload_that_was_there_for_long_is_not_blamed_for_the_shortage() -> None:
    """One that was driven out again and again, and then stayed, comes back after the first wait."""
    async with world({"big": 60}, {"pool": {"preload": ["big"]}}) as w:
        await _live(w, 1200)
        await w.run(w.pool.load("big"), seconds=CALM_S + 2)
        await w.advance(MOST_RETURN_S)
        w.pool.report_pressure(SHORT)
        await w.advance(1)
        assert w.state("big") == "unloaded"

        await w.advance(CALM_S + 2)
        assert w.state("big") == "ready"


async def test_an_adapter_of_the_list_waits_for_its_base() -> None:
    """A base that the system was short with is not loaded for an adapter of the list either."""
    document = {"pool": {"preload": ["big+x"]}}
    async with world({"big": 60, "big+x": 1}, document) as w:
        await _live(w, 1200, spare_bytes=50 * MB)
        assert w.backend.calls.count("load big") == 1
        assert "was short of memory while big was loaded; it needs 64.5 MB" in str(w.pool.status().preload[0].reason)
