"""Random histories with adapters, stale models and reloads; the pool's promises hold, and those of base and adapter."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlxd.pool.lifecycle import PRESENT, ModelState
from mlxd.protocol.errors import ModelNotFound, ModelUnloaded
from tests.pool.test_histories import CHANGES, LOAD, History, Watched, histories, thorough
from tests.support.tally import Tally

# Of a base and its adapters about three fit beside another model.
SIZES_MB = {"a": 20, "a+x": 3, "a+y": 8, "b": 30, "b+z": 3, "c": 45}
NAMES = tuple(SIZES_MB)

names = st.sampled_from(NAMES)
lengths = st.tuples(st.sampled_from((1, 40, 1200, 3000)), st.sampled_from((5, 200, 2500)))
OPERATIONS: dict[str, tuple[int, st.SearchStrategy[tuple[Any, ...]]]] = {
    **{name: LOAD[name] for name in ("drop", "turns", "advance")},
    **{name: CHANGES[name] for name in ("limit", "max_models", "keep_alive", "slots", "restore", "pressure")},
    "send": (30, st.tuples(names, lengths).map(lambda drawn: (drawn[0], *drawn[1]))),
    "send_many": (4, st.tuples(names, lengths, st.sampled_from((2, 5, 12)))),
    "preload": (3, st.tuples(st.lists(names, unique=True, max_size=2))),
    "pins": (1, st.tuples(st.lists(names, unique=True, max_size=2))),
    "load": (3, st.tuples(names)),
    "load_by_force": (1, st.tuples(names)),
    "unload": (3, st.tuples(names, st.booleans())),
    "fail_load": (2, st.tuples(names)),
    "oom_load": (1, st.tuples(names)),
    "context": (4, st.tuples(names, st.sampled_from((8192, 12000, 16384)))),
    "mode": (2, st.tuples(names, st.sampled_from(("idle", "now", "next-load")))),
    "files": (2, st.tuples(names, st.integers(0, 5))),
    "reload": (2, st.tuples(names, st.sampled_from(("idle", "now", "next-load", None)))),
    "delete": (1, st.tuples(names)),
}


class AdapterWorld(Watched):
    """Bases with adapters, and one model without."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(tally, SIZES_MB)

    async def settle(self) -> None:
        await super().settle()
        for resident in self.pool._state.residents.values():
            base = resident.base
            if base is None or resident.state not in PRESENT:
                continue
            assert base.state in {ModelState.READY, ModelState.DRAINING}, f"{resident.id} without its base"
            is_going = base.state is ModelState.DRAINING
            assert not is_going or resident.state is not ModelState.READY, f"{resident.id} stays while its base goes"


class AdapterHistory(History):
    """What can happen to them besides."""

    def do_pins(self, chosen: list[str]) -> None:
        self._change_models({name: {"pin": name in chosen} for name in NAMES})

    def do_context(self, model_id: str, tokens: int) -> None:
        self.may_end_with.add(ModelUnloaded)  # a prompt that was made ready for another context
        self._change_models({model_id: {"context_length": tokens}})

    def do_mode(self, model_id: str, mode: str) -> None:
        self._change_models({model_id: {"reload": mode}})

    def do_files(self, model_id: str, version: int) -> None:
        self.may_end_with.add(ModelUnloaded)  # a prompt that was made ready for other files
        index = self.world.catalog.index
        if model_id in index:
            index[model_id] = dataclasses.replace(index[model_id], signature=(("weights", version, 0),))
            self.world.pool.rescan()

    def do_reload(self, model_id: str, mode: str | None) -> None:
        try:
            self.world.pool.reload(model_id, mode)
        except ModelNotFound:
            assert model_id not in self.world.catalog.index

    def do_delete(self, model_id: str) -> None:
        """Take a model off the disk; the catalog does not serve an adapter without its base."""
        self.may_end_with.add(ModelNotFound)
        for name in [name for name in self.world.catalog.index if name == model_id or name.startswith(f"{model_id}+")]:
            del self.world.catalog.index[name]
        self.world.pool.rescan()

    def do_restore(self) -> None:
        for name in NAMES:
            self.world.catalog.index.setdefault(name, self.world.entries[name])
        self.world.pool.rescan()

    def _change_models(self, changes: dict[str, dict[str, Any]]) -> None:
        models = {name: dict(model) for name, model in self.world.document.get("models", {}).items()}
        for name, change in changes.items():
            models[name] = models.get(name, {}) | change
        self._change({"models": models})


async def live(tally: Tally, history: list[tuple[Any, ...]]) -> None:
    """Run one history to its end."""
    watched = AdapterWorld(tally)
    await watched.pool.start()
    played = AdapterHistory(watched)
    try:
        for name, *arguments in history:
            await played.do(name, *arguments)
        await played.finish()
        tally.histories += 1
    finally:
        await watched.close()


@thorough(30)
@given(history=histories(OPERATIONS))
def test_promises_hold_with_adapters(tally: Tally, history: list[tuple[Any, ...]]) -> None:
    """An adapter is never without its base, never stays when that goes, and all else holds as it does without them."""
    asyncio.run(live(tally, history))
