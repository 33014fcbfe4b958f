"""KV memory: grants, growth, pauses, and that all streams end whole under any limit that fits one of them."""

from __future__ import annotations

import pytest

from mlxd.engine.base import Delta, GenerationRequest, TextPrompt
from mlxd.pool.lease import Lease
from mlxd.pool.resident import SequenceState
from mlxd.protocol.errors import DoesNotFit
from tests.support.fake_row import answer_text
from tests.support.pool_world import KV_BYTES_PER_TOKEN, MB, SHORT_KV_BYTES, STEP_KV_BYTES, World, facts, world

# One 60 MB model with its margin and the KV of a short sequence.
FLOOR_BYTES = 63 * MB + SHORT_KV_BYTES


def kv_bytes(w: World, model_id: str = "a") -> int:
    """Return the KV that is reserved for a model."""
    model = w.model(model_id)
    assert model is not None
    return model.kv_bytes


def pauses(w: World) -> int:
    """Return how often a sequence has paused."""
    return sum(event.kind == "sequence.paused" for event in w.events)


async def test_the_first_grant_is_the_prompt_and_a_step() -> None:
    """A long prompt reserves itself and 1024 tokens, whatever `max_tokens` says."""
    async with world({"a": 60}) as w:
        w.send("a", prompt="x" * 4096, tokens=10_000)
        await w.advance(1.5)

        assert kv_bytes(w) == (4096 + 1024) * KV_BYTES_PER_TOKEN + STEP_KV_BYTES


async def test_the_first_grant_is_never_more_than_the_request() -> None:
    """A request for a few tokens reserves no more than its final length."""
    async with world({"a": 60}) as w:
        w.send("a", prompt="x" * 4096, tokens=200)
        await w.advance(1.5)

        assert kv_bytes(w) == (4096 + 200) * KV_BYTES_PER_TOKEN + STEP_KV_BYTES


async def test_grants_grow_in_steps_before_the_tokens_are_made() -> None:
    """A stream gets 1024 tokens more each time it nears its grant, and never pauses while there is memory."""
    async with world({"a": 60}) as w:
        stream = w.send("a", prompt="x" * 1024, tokens=4096)
        await w.advance(1.5)
        seen = {kv_bytes(w)}
        while not stream.done:
            await w.advance(0.5)
            seen.add(kv_bytes(w))

        assert sorted(seen) == [0, *(size * KV_BYTES_PER_TOKEN + STEP_KV_BYTES for size in (2048, 3072, 4096, 5120))]
        assert pauses(w) == 0
        assert stream.text == answer_text("x" * 1024, 0, 4096)


async def test_sixty_four_long_generations_under_a_limit_for_a_few() -> None:
    """All end whole and equal to unhurried ones, none fails, and the limit holds but for the oldest sequence."""
    document = {
        "pool": {"memory": FLOOR_BYTES + 20 * MB},
        "engine": {"max_sequences": 64},
        "queue": {"timeout": "1h"},
    }
    async with world({"a": 60}, document) as w:
        w.backend.pass_tokens = 20
        streams = [w.send("a", prompt=f"{seed}" * 100, tokens=3000, seed=seed) for seed in range(64)]
        while not all(stream.done for stream in streams):
            await w.advance(0.2)
            assert w.backend.active_bytes <= w.pool.status().memory.reserved_bytes

        assert [stream.text for stream in streams] == [answer_text(f"{seed}" * 100, seed, 3000) for seed in range(64)]
        assert pauses(w) > 10
        assert "pool.over_limit" not in {event.kind for event in w.events}


async def test_growth_trims_the_prompt_cache_first() -> None:
    """Before a stream pauses, the prompt cache gives its memory back."""
    async with world({"a": 60}, {"pool": {"memory": FLOOR_BYTES + 6 * MB}}) as w:
        for seed in range(3):
            await w.run(w.answer("a", prompt=f"{seed}" * 2000))
        model = w.model("a")
        assert model is not None
        assert model.prompt_cache_bytes > 5 * MB

        streams = [w.send("a", prompt=f"{seed}" * 100, tokens=2500, seed=seed) for seed in range(2)]
        await w.advance(60)

        assert [len(stream.text) for stream in streams] == [2500, 2500]
        assert pauses(w) == 0


async def test_grammars_are_a_part_of_their_own_and_go_before_prompts() -> None:
    """Status tells them from cached prompts, the sums stay, and a trim of their size leaves the prompts alone."""
    async with world({"a": 60, "b": 20}) as w:
        await w.run(w.answer("a", prompt="x" * 2000))
        before = w.pool.status().memory
        w.backend.engines[0].grammar_bytes = 30 * MB
        model, memory = w.model("a"), w.pool.status().memory
        assert model is not None
        assert (model.grammar_bytes, memory.grammar_bytes) == (30 * MB, 30 * MB)
        assert memory.prompt_cache_bytes == before.prompt_cache_bytes > 0
        assert memory.reserved_bytes == sum(
            (memory.weights_bytes, memory.kv_bytes, before.prompt_cache_bytes, 30 * MB, memory.margin_bytes)
        )
        w.change({"pool": {"memory": memory.reserved_bytes - 5 * MB}})
        await w.advance(1)
        memory = w.pool.status().memory
        assert memory.prompt_cache_bytes == before.prompt_cache_bytes
        assert memory.grammar_bytes == 25 * MB


async def test_prompts_that_are_too_large_to_keep_are_told_until_the_unload() -> None:
    """Status has the count of each model, and 0 of one that is not loaded."""
    async with world({"a": 60}, {"models": {"a": {"pin": True}}}) as w:
        for count in (0, 3):
            await w.load("a")
            w.backend.engines[0].prompts_too_large = count
            model = w.model("a")
            assert model is not None
            assert model.prompts_too_large == count
        await w.run(w.pool.unload("a"))
        model = w.model("a")
        assert model is not None
        assert model.prompts_too_large == 0


async def test_growth_evicts_idle_models_before_it_pauses() -> None:
    """An idle model goes before any stream has to pause."""
    async with world({"a": 30, "b": 60}) as w:
        await w.load("a", "b")
        streams = [w.send("b", prompt="x" * 200, tokens=4000, seed=seed) for seed in range(2)]
        await w.advance(80)

        assert w.state("a") == "unloaded"
        assert pauses(w) == 0
        assert all(len(stream.text) == 4000 for stream in streams)


async def test_sequences_that_grow_at_once_are_given_room_for_all_of_them() -> None:
    """What an older one is promised is not counted for a younger one: an idle model goes for each of them."""
    grows = facts(10 * MB, per_token=3000)
    async with world({"a": grows, "d": grows, "b": 1, "c": 1}, {"pool": {"memory": 43 * MB}}) as w:
        await w.load("b", "c", "a", "d")
        clients = [w.send(model_id, prompt="x" * 1000, tokens=3000) for model_id in "ad"]
        await w.settle()
        while "evicting" not in w.kinds("b"):
            w.clock.run_next()
            await w.settle()
        assert (w.state("b"), w.state("c")) == ("unloading", "unloading")
        await w.advance(60)
        assert all(len(client.text) == 3000 for client in clients)


async def test_the_youngest_pauses_and_the_oldest_goes_on() -> None:
    """Under pressure the youngest stream gives its KV back; it ends whole after the older one."""
    async with world({"a": 60}, {"pool": {"memory": FLOOR_BYTES + 4 * MB + STEP_KV_BYTES}}) as w:
        old = w.send("a", prompt="o" * 500, tokens=3000)
        await w.advance(1.2)
        young = w.send("a", prompt="y" * 500, tokens=3000)
        await w.advance(22)
        model = w.model("a")
        assert model is not None
        assert (model.running, model.paused) == (1, 1)
        (paused,) = (s for s in w.pool._state.residents["a"].active.values() if s.state is SequenceState.PAUSED)
        assert paused.since_s > 1015  # its patience begins with the pause

        await w.advance(10)
        assert old.done
        assert not young.done
        await w.advance(60)
        assert old.text == answer_text("o" * 500, 0, 3000)
        assert young.text == answer_text("y" * 500, 0, 3000)
        assert "pool.over_limit" not in {event.kind for event in w.events}


async def test_the_youngest_of_any_model_pauses() -> None:
    """Pressure in one model pauses a younger stream of another."""
    async with world({"a": 30, "b": 30}, {"pool": {"memory": 74 * MB}}) as w:
        await w.load("a", "b")
        old = w.send("a", prompt="o" * 500, tokens=8000)
        young = w.send("b", prompt="y" * 500, tokens=8000)
        await w.advance(75)
        other = w.model("b")
        assert other is not None
        assert other.paused == 1

        await w.advance(200)
        assert len(old.text) == len(young.text) == 8000


async def test_the_oldest_goes_over_the_limit_rather_than_stop() -> None:
    """With nobody left to pause, the oldest sequence gets its grant and the pool says that it is over."""
    async with world({"a": 60}, {"pool": {"memory": FLOOR_BYTES + 2 * MB}}) as w:
        stream = w.send("a", prompt="x" * 500, tokens=6000)
        await w.advance(45)
        assert w.pool.status().over_limit == "the oldest sequence, on a"

        await w.advance(40)
        assert stream.text == answer_text("x" * 500, 0, 6000)
        assert w.pool.status().over_limit is None
        assert pauses(w) == 0


async def test_a_paused_stream_goes_on_before_newer_requests() -> None:
    """Age decides: the paused request is older than those that came while it was paused."""
    async with world({"a": 60}, {"pool": {"memory": FLOOR_BYTES + 4 * MB}}) as w:
        w.send("a", prompt="o" * 500, tokens=3000)
        await w.advance(1.2)
        paused = w.send("a", prompt="y" * 500, tokens=3000)
        await w.advance(22)
        assert pauses(w) == 1
        newer = w.send("a", prompt="n" * 2500, tokens=100)
        await w.advance(15)
        model = w.model("a")
        assert model is not None
        assert (model.running, model.paused, model.waiting) == (1, 0, 1)

        await w.advance(60)
        assert len(paused.text) == 3000
        assert newer.text


async def test_a_paused_stream_can_be_dropped() -> None:
    """A client that goes while its stream is paused leaves nothing behind."""
    async with world({"a": 60}, {"pool": {"memory": FLOOR_BYTES + 4 * MB}}) as w:
        w.send("a", prompt="o" * 500, tokens=3000)
        await w.advance(1.2)
        paused = w.send("a", prompt="y" * 500, tokens=3000)
        await w.advance(22)
        assert (pauses(w), w.backend.running, w.backend.engines[0].sequences) == (1, 1, 2)
        paused.task.cancel()
        await w.advance(0.1)

        assert w.backend.engines[0].sequences == 1


async def test_a_prompt_that_can_never_fit_is_refused_at_once() -> None:
    """P10: prompt, first step and weights above the limit are 507 before anything is evicted or submitted."""
    async with world({"a": 60, "b": 20}) as w:
        await w.load("a")
        w.change({"pool": {"memory": 70 * MB}})
        with pytest.raises(DoesNotFit, match="a with 16010 tokens of context needs") as refused:
            await w.run(w.answer("a", prompt="x" * 16_000))

        assert refused.value.http_status == 507
        assert w.backend.running == 0
        assert await w.run(w.answer("a"))


async def test_requests_wait_for_kv_in_order_of_age() -> None:
    """A small newer request does not overtake an older one that waits for memory."""
    async with world({"a": 60}, {"pool": {"memory": FLOOR_BYTES + 6 * MB}}) as w:
        running = w.send("a", prompt="r" * 4000, tokens=1500)
        await w.advance(1.5)
        older = w.send("a", prompt="o" * 4000, tokens=5)
        newer = w.send("a", prompt="n" * 10, tokens=5)
        await w.advance(5)
        assert [wait.request_id for wait in w.pool.status().queue] == ["a-oooooooo-0", "a-nnnnnnnn-0"]

        await w.advance(20)
        assert len(running.text) == 1500
        assert older.text
        assert newer.text


async def test_a_waiting_request_does_not_hold_its_model() -> None:
    """A model on which requests only wait for KV can be drained; they are answered after the reload."""
    document = {"pool": {"memory": 100 * MB}}
    async with world({"a": 30, "b": 60}, document) as w:
        busy = w.send("b", tokens=2000)
        await w.load("a")
        waiting = w.send("a", prompt="x" * 5000, tokens=5)
        await w.advance(0.5)
        model = w.model("a")
        assert model is not None
        assert (model.state, model.waiting, model.leases) == ("ready", 1, 0)

        w.change({"pool": {"memory": 68 * MB}})
        await w.advance(1)
        assert w.state("a") == "queued"
        await w.advance(40)
        assert len(busy.text) == 2000
        assert waiting.text == answer_text("x" * 5000, 0, 5)


async def test_slots_bound_the_running_sequences() -> None:
    """At most `engine.max_sequences` run; a raised bound lets the next one start at once."""
    async with world({"a": 30}, {"engine": {"max_sequences": 2}}) as w:
        await w.load("a")
        for seed in range(4):
            w.send("a", tokens=1000, seed=seed)
        await w.advance(0.1)
        assert w.backend.running == 2

        w.change({"engine": {"max_sequences": 3}})
        await w.advance(0.1)
        assert w.backend.running == 3


async def test_memory_of_a_finished_stream_goes_to_the_prompt_cache_within_its_reservation() -> None:
    """The sum in the ledger never grows when a stream ends."""
    async with world({"a": 60}) as w:
        stream = w.send("a", prompt="x" * 3000, tokens=100)
        await w.advance(1.5)
        before = w.pool.status().memory
        await w.advance(5)
        after = w.pool.status().memory

        assert stream.done
        assert after.prompt_cache_bytes > 3 * MB
        assert after.reserved_bytes <= before.reserved_bytes
        assert after.reserved_bytes == sum(
            (after.weights_bytes, after.kv_bytes, after.prompt_cache_bytes, after.loading_bytes, after.margin_bytes)
        )


async def test_an_older_stream_that_starts_takes_over_from_one_over_the_limit() -> None:
    """Only the oldest stream may go over the limit: when an older one starts, the younger one pauses at once."""
    async with world({"a": 45, "b": 30}, {"pool": {"memory": 95 * MB}}) as w:
        w.backend.hold_loads(hold=True)
        older = w.send("a", prompt="o" * 300, tokens=300)
        await w.advance(1)
        w.backend.holding_loads = False
        younger = w.send("b", prompt="y" * 12_000, tokens=4000)
        await w.advance(30)
        assert w.pool.status().over_limit is not None
        assert pauses(w) == 0

        w.backend.hold_loads(hold=False)
        await w.advance(0.1)
        assert (pauses(w), w.backend.running) == (1, 1)

        await w.advance(60)
        assert older.text == answer_text("o" * 300, 0, 300)
        assert younger.text == answer_text("y" * 12_000, 0, 4000)


async def test_the_parts_of_a_started_request_do_not_time_out() -> None:
    """A second prompt of one request waits for the first one's slot, longer than `queue.timeout`."""
    document = {"engine": {"max_sequences": 1}, "queue": {"timeout": "5s"}}
    async with world({"a": 30}, document) as w:
        await w.load("a")
        request = GenerationRequest(TextPrompt("hello"), max_tokens=1000)

        async def read(lease: Lease) -> int:
            prompt = await lease.prepare(request)
            return sum([1 async for event in lease.generate(request, prompt) if isinstance(event, Delta)])

        async with w.pool.lease("a", request_id="r") as lease:
            first, second = w.task(read(lease)), w.task(read(lease))
            await w.advance(25)

        assert (first.result(), second.result()) == (1000, 1000)


async def test_what_an_older_stream_waits_for_is_not_given_to_a_younger_one() -> None:
    """While the youngest pauses for the oldest, the one in between does not grow, although its step would fit."""
    models = {"a": facts(20 * MB, per_token=4000), "b": facts(20 * MB), "c": facts(20 * MB, per_token=2000)}
    async with world(models) as w:
        await w.load("a", "b", "c")
        for model_id in models:
            w.send(model_id, prompt="x" * 1100, tokens=8000)
        await w.advance(0.5)
        oldest, middle, youngest = (next(iter(w.pool._state.residents[name].active.values())) for name in models)
        before = (oldest.granted_tokens, middle.granted_tokens)
        w.change({"pool": {"memory": w.pool.status().memory.reserved_bytes + 3 * MB}})
        oldest.wanted_tokens, middle.wanted_tokens = oldest.next_grant_tokens, middle.next_grant_tokens

        w.pool._scheduler.pump()

        assert youngest.state is SequenceState.PAUSING
        assert (oldest.granted_tokens, middle.granted_tokens) == before
        await w.advance(0.1)
        assert oldest.granted_tokens > before[0]


async def test_nobody_pauses_in_vain() -> None:
    """A stream that lives within its model's least is not paused: it would bring nothing."""
    document = {"pool": {"memory": 70 * MB}, "models": {"b": {"pin": True}}}
    async with world({"a": 30, "b": 30}, document) as w:
        await w.load("a", "b")
        old = w.send("a", prompt="o" * 500, tokens=9000)
        await w.advance(60)
        young = w.send("b", prompt="y" * 10, tokens=1000)
        await w.advance(40)

        assert w.pool.status().over_limit is not None or old.done
        assert len(old.text) == 9000
        assert len(young.text) == 1000
        assert pauses(w) == 0


async def test_a_paused_stream_of_a_draining_model_gets_its_memory() -> None:
    """A drain ends although it needs memory first: the caches of others are trimmed for its paused stream."""
    models = {"b": facts(30 * MB, per_token=3000), "c": facts(45 * MB, per_token=3000)}
    async with world(models) as w:
        await w.load("c", "b")
        older = w.send("c", prompt="o" * 5, tokens=3000)
        await w.advance(0.1)
        stream = w.send("b", prompt="x" * 2500, tokens=3000)
        await w.advance(25)
        unload = w.task(w.pool.unload("b"))
        await w.advance(3)
        assert pauses(w) >= 1
        await w.advance(120)

        assert len(older.text) == 3000
        assert len(stream.text) == 3000
        assert unload.result() is True


async def test_a_trim_that_frees_less_than_asked_is_not_repeated_for_ever() -> None:
    """When the engine cannot empty its cache, the pool looks for memory elsewhere."""
    async with world({"a": 60}, {"pool": {"memory": FLOOR_BYTES + 6 * MB}}) as w:
        await w.run(w.answer("a", prompt="x" * 4000))
        engine = w.backend.engines[0]
        asked = []

        async def keep(max_bytes: int) -> int:
            asked.append(max_bytes)
            return engine.prompt_cache_bytes

        engine.trim_prompt_cache = keep  # type: ignore[method-assign]
        waiting = w.send("a", prompt="y" * 4000)
        await w.advance(5)

        assert len(asked) == 1
        assert not waiting.done


async def test_a_short_request_runs_beside_a_long_one() -> None:
    """A request of a few tokens needs its own memory, not that of the long row that its model is running."""
    with_context = facts(20 * MB, context_length=65_536)
    async with world({"a": with_context}, {"pool": {"memory": 90 * MB}}) as w:
        await w.load("a")
        long = w.send("a", prompt="x" * 40_000, tokens=1000)
        await w.settle()
        free_bytes = w.pool.status().memory.free_bytes
        assert 0 < free_bytes < 41_000 * KV_BYTES_PER_TOKEN  # no room for another row padded to the long one
        short = w.send("a", prompt="hi", tokens=5)
        assert await w.run(short.task, 10)
        assert not long.done
