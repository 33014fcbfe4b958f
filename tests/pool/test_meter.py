"""How many tokens were made, and how fast: of one model, of all, over pauses and reloads."""

from __future__ import annotations

import pytest

from mlxd.pool.meter import TokenMeter
from tests.support.pool_world import MB, Client, World, facts, world


def test_steady_stream_has_its_rate() -> None:
    """Ten tokens a second are ten a second at every moment after the first second, and none when nothing comes."""
    meter = TokenMeter()
    for step in range(100):
        meter.add(1, 1000 + step / 10)
    assert meter.total == 100
    assert meter.per_s(1009.9) == pytest.approx(10, abs=0.3)
    assert meter.per_s(1012.5) == pytest.approx(20 / 4.5, abs=0.3)
    assert meter.per_s(1014.0) == 0
    assert meter.total == 100


def test_burst_counts_from_its_beginning() -> None:
    """A stream that began two seconds ago is not taken for one that was slow for five; a first instant is a second."""
    meter = TokenMeter()
    assert meter.per_s(0.0) == 0
    meter.add(4, 7.5)
    assert meter.per_s(7.5) == 4
    meter.add(36, 9.5)
    assert meter.per_s(9.5) == 20
    meter.add(6, 100.0)
    assert meter.per_s(100.5) == 6


async def test_models_and_all() -> None:
    """Every token is counted once, for its model and for all, also when its request has ended."""
    async with world({"a": 20, "b": 20}) as w:
        clients = [w.send("a", tokens=10, prompt="12345"), w.send("b", tokens=30, prompt="123"), w.send("a", tokens=5)]
        await w.run(text_of(clients[1]))
        assert counts(w) == {"a": 15, "b": 30}
        assert w.pool.status().tokens.completion == 45
        assert w.pool.status().tokens.prompt > 8
        assert w.pool.status().tokens.per_s > 0
        await w.advance(10)
        assert [model.tokens_per_s for model in w.pool.status().models] == [0, 0]


async def test_pause_and_reload_count_nothing_twice() -> None:
    """A sequence that paused for memory, and a model that was unloaded, have the tokens that their readers got."""
    big = facts(30 * MB, per_token=20_000)
    async with world({"a": big}, {"pool": {"memory": 110 * MB}}) as w:
        clients = [w.send("a", tokens=2000, seed=seed) for seed in range(2)]
        for client in clients:
            await w.run(text_of(client))
        assert "sequence.paused" in {event.kind for event in w.events}
        await w.run(w.pool.unload("a"))
        assert w.pool.status().tokens.completion == 4000
        await w.run(w.answer("a", tokens=3))
        assert counts(w) == {"a": 4003}


async def text_of(client: Client) -> str:
    """Return what a request that runs comes to."""
    return await client.task


def counts(w: World) -> dict[str, int]:
    """Return the tokens of each model."""
    return {model.id: model.completion_tokens for model in w.pool.status().models}


def test_as_many_tokens_as_the_next_second_is_old() -> None:
    """Tokens are counted in the second in which they were made, however many the second before has."""
    meter = TokenMeter()
    meter.add(6, 5.0)
    meter.add(1, 6.0)

    assert meter.per_s(10.0) == 1 / 4
