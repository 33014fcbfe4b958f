"""Loaded models that differ from what a load would make of them: the rules of their reload."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mlxd.engine.vector import Pooling, VectorFacts
from mlxd.protocol.errors import DoesNotFit, LoadFailed
from tests.support.fake_row import answer_text
from tests.support.pool_world import MB, OTHER_FILES, World, entry, facts, world


def limit(tokens: int, mode: str = "idle", model_id: str = "a") -> dict[str, dict[str, dict[str, object]]]:
    """Return settings with another context length."""
    return {"models": {model_id: {"context_length": tokens, "reload": mode}}}


def stale(w: World, model_id: str = "a") -> str | None:
    """Return why a model is stale."""
    model = w.model(model_id)
    return None if model is None else model.stale


async def test_an_idle_model_takes_up_its_context_at_once() -> None:
    """It goes and comes back with the new limit, although nothing asks for it; the plan says so."""
    async with world({"a": 30}) as w:
        await w.load("a")
        plan = w.change(limit(4096))
        assert [(model.id, model.reload) for model in plan.stale] == [("a", "idle")]
        assert "4096 tokens instead of 16384" in plan.stale[0].reason
        await w.advance(5)
        assert w.backend.calls == ["load a", "unload a", "load a"]
        assert w.backend.engines[0].spec.context_length == 4096
        assert stale(w) is None


async def test_a_busy_model_is_stale_until_it_is_idle() -> None:
    """Requests go on and new ones are taken; the reload waits for the last of them."""
    async with world({"a": 30}) as w:
        await w.load("a")
        first = w.send("a", tokens=500)
        await w.advance(1)
        w.change(limit(4096))
        second = w.send("a", tokens=600, prompt="two")
        await w.advance(1)
        assert (w.state("a"), w.backend.calls) == ("ready", ["load a"])
        assert "4096" in str(stale(w))
        await w.advance(10)
        assert (first.text, second.text) == (answer_text("hello", 0, 500), answer_text("two", 0, 600))
        assert w.backend.calls == ["load a", "unload a", "load a"]


async def test_now_drains_first() -> None:
    """Running requests end under the old limit, later ones wait for the reload."""
    async with world({"a": 30}) as w:
        await w.load("a")
        first = w.send("a", tokens=500)
        await w.advance(1)
        w.change(limit(4096, "now"))
        second = w.send("a", prompt="two")
        await w.advance(1)
        assert (w.state("a"), second.done) == ("draining", False)
        await w.advance(10)
        assert (first.text, second.text) == (answer_text("hello", 0, 500), answer_text("two", 0, 10))
        assert w.backend.calls == ["load a", "unload a", "load a"]


async def test_next_load_leaves_it_alone() -> None:
    """It stays stale, idle or not, until it is loaded for another reason."""
    async with world({"a": 30}) as w:
        await w.load("a")
        w.change(limit(4096, "next-load"))
        await w.advance(60)
        assert (w.backend.calls, stale(w) is None) == (["load a"], False)
        await w.run(w.pool.unload("a"))
        await w.load("a")
        assert (stale(w), w.backend.engines[0].spec.context_length) == (None, 4096)


async def test_a_mode_for_this_once_counts_before_the_settings() -> None:
    """`reload` overrides it until the next load, and None takes it back."""
    async with world({"a": 30}) as w:
        await w.load("a")
        w.pool.reload("a", "next-load")
        w.change(limit(4096))
        await w.advance(5)
        assert w.backend.calls == ["load a"]
        w.pool.reload("a", None)
        await w.run(w.pool.wait_reloaded("a"))
        assert (w.state("a"), w.backend.calls) == ("ready", ["load a", "unload a", "load a"])
        w.change(limit(2048))
        await w.run(w.pool.wait_reloaded("a"))
        assert w.backend.engines[0].spec.context_length == 2048


async def test_a_change_taken_back_is_no_change() -> None:
    """Before the reload has begun, the old value makes the model fresh again."""
    async with world({"a": 30}) as w:
        await w.load("a")
        client = w.send("a", tokens=300)
        await w.advance(0.5)
        w.change(limit(4096))
        w.change(limit(16384))
        assert stale(w) is None
        await w.advance(10)
        assert client.done
        assert w.backend.calls == ["load a"]


async def test_a_limit_over_the_models_own_changes_nothing() -> None:
    """The model's own context is what it has either way."""
    async with world({"a": 30}) as w:
        await w.load("a")
        w.change(limit(999_999))
        await w.advance(5)
        assert (stale(w), w.backend.calls) == (None, ["load a"])


async def test_another_pooling_is_taken_up() -> None:
    """It makes a loaded model stale like another context, in both directions, and says what is to become of it."""
    async with world({"a": 30}) as w:
        await w.load("a")
        plan = w.change({"models": {"a": {"pooling": "last"}}})
        assert [model.reason for model in plan.stale] == ["its vectors are to be pooled as models.a.pooling says, last"]
        await w.advance(5)
        assert w.backend.calls == ["load a", "unload a", "load a"]
        assert stale(w) is None
        plan = w.change({"models": {"a": {"pooling": "inherit"}}})
        assert [model.reason for model in plan.stale] == ["its vectors are to be pooled as its folder says"]
        await w.advance(5)
        assert [spec.pooling for spec in w.backend.specs] == [None, Pooling.LAST, None]


@pytest.mark.parametrize(
    ("vectors", "shown"),
    [
        (VectorFacts(16, Pooling.LAST), "last"),
        (VectorFacts(16, Pooling.MEAN, is_assumed=True), "mean (a guess: its folder does not say)"),
        (None, None),
    ],
)
async def test_the_pooling_is_shown(vectors: VectorFacts | None, shown: str | None) -> None:
    """A model that is loaded says how it pools, and whether that is a guess."""
    async with world({"a": 30}) as w:
        w.backend.models["a"] = dataclasses.replace(w.backend.models["a"], vectors=vectors)
        await w.load("a")
        assert [model.pooling for model in w.pool.status().models] == [shown]


async def test_changed_files_make_a_loaded_model_stale() -> None:
    """Other files are taken up like other settings; a folder that moved, too."""
    async with world({"a": 30, "b": 30}) as w:
        await w.load("a", "b")
        index = w.catalog.index
        index["a"] = dataclasses.replace(index["a"], signature=OTHER_FILES)
        index["b"] = dataclasses.replace(index["b"], path=Path("/elsewhere/b"))
        w.pool.rescan()
        await w.advance(5)
        assert sorted(w.backend.calls[2:]) == ["load a", "load b", "unload a", "unload b"]
        assert (stale(w, "a"), stale(w, "b")) == (None, None)


async def test_a_stale_base_is_loaded_again_with_its_adapters() -> None:
    """All that was loaded comes back, in order."""
    async with world({"a": 30, "a+x": 2}) as w:
        await w.load("a+x")
        w.change(limit(4096))
        await w.advance(10)
        assert w.backend.calls == ["load a", "load a+x", "unload a+x", "unload a", "load a", "load a+x"]


async def test_a_base_waits_for_the_requests_of_its_adapters() -> None:
    """They make it busy as its own requests do."""
    async with world({"a": 30, "a+x": 2}) as w:
        await w.load("a+x")
        client = w.send("a+x", tokens=300)
        await w.advance(0.5)
        w.change(limit(4096))
        await w.advance(1)
        assert (w.state("a"), w.state("a+x")) == ("ready", "ready")
        await w.advance(10)
        assert client.text == answer_text("hello", 0, 300)
        assert w.backend.calls[2:4] == ["unload a+x", "unload a"]


async def test_another_adapter_of_the_same_name() -> None:
    """Only the adapter is loaded again."""
    async with world({"a": 30, "a+x": 2}) as w:
        await w.load("a+x")
        w.catalog.index["a+x"] = dataclasses.replace(w.catalog.index["a+x"], path=Path("/other/x"))
        w.pool.rescan()
        await w.advance(5)
        assert w.backend.calls == ["load a", "load a+x", "unload a+x", "load a+x"]
        assert w.backend.engines[-1].spec.adapter_path == Path("/other/x")


async def test_a_change_during_the_load() -> None:
    """The load completes, who waited is served, and then it is loaded again."""
    async with world({"a": 30}) as w:
        client = w.send("a")
        await w.advance(0.5)
        w.change(limit(4096))
        await w.advance(0.6)
        assert w.backend.calls == ["load a"]
        await w.advance(10)
        assert client.text == answer_text("hello", 0, 10)
        assert w.backend.calls == ["load a", "unload a", "load a"]


async def test_a_reload_without_room_leaves_it_unloaded() -> None:
    """Another request took the memory meanwhile: the model comes back when it is asked for."""
    async with world({"a": 60, "b": 60}) as w:
        await w.load("a")
        w.change(limit(4096))
        other = w.send("b", tokens=3000)
        await w.advance(5)
        assert (w.state("a"), w.state("b")) == ("unloaded", "ready")
        await w.advance(60)
        assert other.done
        assert w.state("a") == "unloaded"


async def test_a_reload_that_fails_is_told() -> None:
    """The model has failed like any other; whoever waits for the reload gets the cause."""
    async with world({"a": 30}) as w:
        await w.load("a")
        w.backend.fail_load("a", LoadFailed("the new files are broken"))
        w.change(limit(4096))
        with pytest.raises(LoadFailed, match="broken"):
            await w.run(w.pool.wait_reloaded("a"))
        await w.advance(60)
        assert w.backend.calls == ["load a", "unload a", "load a"]
        assert w.pool.reset("a")
        assert w.state("a") == "unloaded"


async def test_a_shorter_context_lets_a_model_in() -> None:
    """The least that a model reserves follows its limit before it is loaded."""
    async with world({"a": 30}, {"pool": {"memory": 32_400_000}}) as w:
        with pytest.raises(DoesNotFit):
            await w.load("a")
        w.change(limit(256))
        await w.load("a")
        assert 256_000 <= w.pool.status().memory.kv_bytes < 600_000


async def test_what_was_measured_on_other_files_is_void_after_the_unload() -> None:
    """A model whose files changed while it was loaded is estimated by its new files once it is gone."""
    async with world({"a": 30}) as w:
        await w.load("a")
        w.pool.reload("a", "next-load")
        w.catalog.index["a"] = entry("a", facts(50 * MB), signature=OTHER_FILES)
        w.pool.rescan()
        await w.run(w.pool.unload("a"))
        assert w.pool._state.residents["a"].weights_bytes == 50 * MB


@pytest.mark.parametrize("is_loaded", [True, False])
async def test_another_estimate_of_the_same_files_voids_no_measurement(is_loaded: bool) -> None:
    """Whether it comes while the model is loaded or afterwards, the measured size goes on counting."""
    async with world({"a": 30}) as w:
        await w.load("a")
        if not is_loaded:
            await w.run(w.pool.unload("a"))
        w.catalog.index["a"] = entry("a", facts(50 * MB))
        w.pool.rescan()
        await w.run(w.pool.unload("a"))
        assert w.pool._state.residents["a"].weights_bytes == 30 * MB


@pytest.mark.parametrize("is_loaded", [True, False])
async def test_what_was_measured_on_another_base_is_void(is_loaded: bool) -> None:
    """The KV of an adapter is its base's: when the files of that change, the adapter is estimated again."""
    async with world({"a": 30, "a+x": 2}) as w:
        w.catalog.index["a+x"] = entry("a+x", facts(1 * MB))  # estimated
        await w.load("a+x")
        resident = w.pool._state.residents["a+x"]
        if not is_loaded:
            await w.run(w.pool.unload("a"))
        assert resident.weights_bytes == 2 * MB
        w.pool.reload("a", "next-load")
        w.catalog.index["a"] = entry("a", facts(30 * MB), signature=OTHER_FILES)
        w.pool.rescan()
        await w.run(w.pool.unload("a"))
        assert resident.weights_bytes == 1 * MB
