"""Loads, unloads and trims models: slow work, each bracketed by two quick events. Decides nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

from mlxd.catalog import ModelEntry, pooling_of
from mlxd.engine.base import Backend, Engine, LoadSpec
from mlxd.pool import ledger, policy
from mlxd.pool.lifecycle import Backoff, Comeback, LastLoad, ModelState, Origin
from mlxd.pool.policy import Plan
from mlxd.pool.resident import Resident
from mlxd.pool.state import PoolState
from mlxd.pool.task import Tasks
from mlxd.protocol.errors import LoadFailed, MlxdError, OutOfMemory
from mlxd.protocol.units import count, show_bytes

# Notes a load from its beginning to its end, so that one that kills the daemon is known afterwards.
Noted = Callable[[ModelEntry], AbstractAsyncContextManager[None]]
_log = logging.getLogger(__name__)


def unnoted(_: ModelEntry) -> AbstractAsyncContextManager[None]:
    """Note nothing."""
    return nullcontext()


class Loader:
    """Moves models in and out of memory."""

    def __init__(
        self, state: PoolState, backend: Backend, tasks: Tasks, pump: Callable[[], None], noted: Noted = unnoted
    ) -> None:
        self._state = state
        self._noted = noted
        self._backend = backend
        self._pump = pump
        self._tasks = tasks

    def load(self, resident: Resident, *, force: bool = False) -> None:
        """Begin to load the model; its bytes are reserved from now on."""
        base = resident.base
        if base is not None and base.state is not ModelState.READY:
            raise RuntimeError(f"{resident.id} cannot be loaded: {base.id} is {base.state.word}")
        spec = self._spec(resident)
        origin = Origin(
            resident.entry,
            resident.context_limit,
            pooling_of(self._state.settings, resident.id),
            None if base is None else base.load.origin,
        )
        is_retry = resident.state is ModelState.RETRYING
        resident.load = LastLoad(origin, self._state.clock.now(), is_forced=force, is_retry=is_retry)
        resident.enter(ModelState.LOADING)
        resident.load.total_bytes = resident.weights_bytes
        resident.comeback = Comeback.BY_LIST
        resident.reload = None
        resident.blocked_reason = None
        size = show_bytes(resident.weights_bytes)
        self._state.emit("model.loading", resident.id, f"loading {resident.id}, {size}")
        self._begin_load(resident, spec)

    def _spec(self, resident: Resident) -> LoadSpec:
        model = self._state.settings.models.get(resident.id)
        base = resident.base
        if base is not None and base.engine is None:
            raise RuntimeError(f"{resident.id} cannot be loaded: {base.id} is {base.state.word}")
        return LoadSpec(
            model_id=resident.id,
            path=resident.entry.path if base is None else base.entry.path,
            context_length=None if model is None else model.context_length,
            prompt_cache_limit_bytes=self._state.settings.engine.prompt_cache,
            adapter_path=None if base is None else resident.entry.path,
            base=None if base is None else base.engine,
            is_encoder=resident.entry.kind == "embedding",
            pooling=pooling_of(self._state.settings, resident.id),
        )

    def drain(self, resident: Resident, reason: str) -> None:
        """Let the model go, and the adapters on it: at once when it is idle, else when its requests have ended."""
        for adapter in resident.adapters.values():
            if adapter.state is ModelState.READY:
                self.drain(adapter, reason)
            elif adapter.state is ModelState.LOADING:
                self.abort(adapter, reason)
        resident.enter(ModelState.DRAINING)
        resident.leave_reason = reason
        resident.drain_started_s = self._state.clock.now()
        if not resident.can_unload:
            requests = resident.holders + sum(adapter.holders for adapter in resident.adapters.values())
            self._state.emit(
                "model.draining",
                resident.id,
                f"draining {resident.id} ({count(requests, 'request')}): {reason}",
                {"requests": requests, "reason": reason},
            )
        else:
            self.unload(resident)

    def abort(self, resident: Resident, reason: str) -> None:
        """Have a load end before it is complete; its bytes stay reserved until the device says that it has ended."""
        if resident.state is ModelState.LOADING and resident.load.task is not None:
            resident.enter(ModelState.ABORTING)
            resident.leave_reason = reason
            resident.load.task.cancel()  # does nothing to one that is complete: it drains in the next turn

    def unload(self, resident: Resident) -> None:
        """Begin to free a draining model that nothing holds."""
        engine = resident.engine
        if engine is None or not resident.can_unload:
            raise RuntimeError(f"{resident.id} is held, or not loaded: it cannot be unloaded")
        n_bytes = ledger.held_bytes(resident)
        resident.enter(ModelState.UNLOADING)
        self._state.emit(
            "model.evicting",
            resident.id,
            f"unloading {resident.id}, {show_bytes(n_bytes)}: {resident.leave_reason}",
            {"bytes": n_bytes, "reason": resident.leave_reason},
        )
        self._begin_unload(resident, engine)

    def carry_out(self, plan: Plan, reason: str) -> None:
        """Begin the trims, aborts, evictions and drains of a plan."""
        for trim in plan.trims:
            self._trim(self._state.residents[trim.model_id], trim.bytes)
        for model_id in plan.abort:
            self.abort(self._state.residents[model_id], reason)
        for model_id in (*plan.evict, *plan.drain):
            resident = self._state.residents[model_id]
            if resident.state is ModelState.READY:  # an adapter has gone with its base already
                self.drain(resident, reason)

    def give_back(self, reason: str, *, preloaded: bool = False) -> None:
        """Empty all prompt caches and let idle models go: memory is short although the ledger's sums are right."""
        self.carry_out(policy.plan_relief(self._state.view(), preloaded=preloaded), reason)
        for resident in self._state.present:
            if resident.state is not ModelState.UNLOADING and resident.prompt_cache_bytes > 0:
                self._trim(resident, resident.prompt_cache_bytes)

    def bound_prompt_caches(self) -> None:
        """Pass the setting `engine.prompt_cache` on to all loaded models."""
        limit_bytes = self._state.settings.engine.prompt_cache
        for resident in self._state.present:
            if resident.engine is not None and resident.state is not ModelState.UNLOADING:
                resident.engine.set_prompt_cache_limit(limit_bytes)
                # The engine shrinks by itself, but only the end of a trim tells us so.
                if resident.prompt_cache_bytes > limit_bytes:
                    self._trim(resident, resident.prompt_cache_bytes - limit_bytes)

    def follow(self, resident: Resident) -> None:
        """Take over what is under way with a model whose record is a copy of another."""
        if resident.is_loading:
            self._begin_load(resident, self._spec(resident))
            if resident.state is ModelState.ABORTING and resident.load.task is not None:
                resident.load.task.cancel()
        elif resident.engine is not None and resident.state is ModelState.UNLOADING:
            self._begin_unload(resident, resident.engine)
        elif resident.engine is not None and resident.trim_target_bytes is not None:
            self._begin_trim(resident, resident.engine, resident.trim_target_bytes)

    def _begin_load(self, resident: Resident, spec: LoadSpec) -> None:
        work = self._load(resident, spec)
        resident.load.task = self._tasks.begin(work, partial(self._on_load_ended, resident, spec))

    async def _load(self, resident: Resident, spec: LoadSpec) -> Engine:
        async with self._noted(resident.entry):
            return await self._backend.load(spec, partial(self._on_progress, resident))

    def _begin_unload(self, resident: Resident, engine: Engine) -> None:
        self._tasks.begin(self._backend.unload(engine), partial(self._on_unloaded, resident))

    def _begin_trim(self, resident: Resident, engine: Engine, target_bytes: int) -> None:
        self._tasks.begin(engine.trim_prompt_cache(target_bytes), partial(self._on_trimmed, resident))

    def _trim(self, resident: Resident, n_bytes: int) -> None:
        engine = resident.engine
        if engine is not None and resident.trim_target_bytes is None:
            target_bytes = max(0, resident.prompt_cache_bytes - n_bytes)
            resident.trim_target_bytes = target_bytes
            self._begin_trim(resident, engine, target_bytes)

    def _on_progress(self, resident: Resident, done_bytes: int, total_bytes: int) -> None:
        resident.load.done_bytes, resident.load.total_bytes = done_bytes, total_bytes
        self._state.emit("model.load_progress", resident.id, "", {"done": done_bytes, "total": total_bytes})

    def _on_load_ended(self, resident: Resident, spec: LoadSpec, task: asyncio.Future[Engine]) -> None:
        resident.load.task = None
        if task.cancelled():
            if resident.state is ModelState.ABORTING:  # else the daemon ends
                self._on_load_aborted(resident)
                self._pump()
            return
        error = task.exception()
        if error is None:
            self._on_loaded(resident, spec, task.result())
        elif isinstance(error, MlxdError):
            self._on_load_failed(resident, error)
        else:
            _log.error("loading %s failed", resident.id, exc_info=error)
            self._on_load_failed(resident, LoadFailed(f"{resident.id} could not be loaded: {error!r}"))
        self._pump()

    def _on_loaded(self, resident: Resident, spec: LoadSpec, engine: Engine) -> None:
        now = self._state.clock.now()
        resident.engine = engine
        resident.facts = engine.facts
        resident.error = None
        resident.backoff = Backoff()
        resident.touch(now)
        resident.untrimmable_bytes = 0
        if spec.context_length is not None and spec.context_length > engine.facts.context_length:
            self._state.emit(
                "model.context_cut",
                resident.id,
                f"the context of {resident.id} is {engine.facts.context_length} tokens, its own;"
                f" models.{resident.id}.context_length asks for {spec.context_length}",
                {"context_length": engine.facts.context_length, "asked": spec.context_length},
            )
        if self._state.settings.engine.prompt_cache != spec.prompt_cache_limit_bytes:  # changed during the load
            engine.set_prompt_cache_limit(self._state.settings.engine.prompt_cache)
        resident.restart_waits(now)  # the load has had its own deadline
        seconds = now - resident.load.started_s
        self._state.emit(
            "model.loaded",
            resident.id,
            f"loaded {resident.id}, {show_bytes(resident.weights_bytes)}, in {seconds:.1f} s",
            {"bytes": resident.weights_bytes, "seconds": seconds},
        )
        if resident.state is ModelState.ABORTING:
            self.drain(resident, resident.leave_reason)
        else:
            resident.enter(ModelState.READY)

    def _on_load_aborted(self, resident: Resident) -> None:
        _note_gone(resident)
        reason = resident.leave_reason
        resident.restart_waits(self._state.clock.now())  # the load has had its own deadline
        self._state.emit(
            "model.load_aborted", resident.id, f"stopped loading {resident.id}: {reason}", {"reason": reason}
        )

    def _on_load_failed(self, resident: Resident, error: MlxdError) -> None:
        if isinstance(error, OutOfMemory) and resident.backoff.failures == 0 and not resident.load.is_retry:
            self.give_back(f"loading {resident.id} ran out of memory")
            if resident.has_waiters:
                self._load_again(resident, error)
                return
        self.fail(resident, error)

    def fail(self, resident: Resident, error: MlxdError) -> None:
        """Take it that the model cannot be loaded for now: those that wait for it get *error*, and a backoff begins."""
        if resident.state is not ModelState.FAILED:
            resident.enter(ModelState.FAILED)
        resident.error = error
        resident.backoff, backoff_s = resident.backoff.after_failure(self._state.clock.now())
        self._state.emit(
            "model.load_failed",
            resident.id,
            f"loading {resident.id} failed: {error.message}; not tried again for {backoff_s:.0f} s",
            {"error": error.to_wire(), "retry_in_s": backoff_s},
        )
        resident.fail_waiting(error)

    def _load_again(self, resident: Resident, error: OutOfMemory) -> None:
        """Have the load tried once more, when what is being given back is free; its waiters go on waiting."""
        now = self._state.clock.now()
        resident.enter(ModelState.RETRYING)
        resident.unloads += 1  # whoever waits for it to go has seen it gone, though it may load again in this turn
        resident.restart_waits(now)  # the load has had its own deadline
        self._state.emit(
            "model.load_retried",
            resident.id,
            f"loading {resident.id} ran out of memory; idle models are freed and it is tried once more",
            {"error": error.to_wire()},
        )

    def _on_unloaded(self, resident: Resident, task: asyncio.Future[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            _log.error("unloading %s failed", resident.id, exc_info=error)
        _note_gone(resident)
        resident.engine = None
        resident.trim_target_bytes = None
        self._state.emit("model.unloaded", resident.id, f"unloaded {resident.id}: {resident.leave_reason}")
        self._pump()

    def _on_trimmed(self, resident: Resident, task: asyncio.Future[int]) -> None:
        if task.cancelled():
            return
        target_bytes = resident.trim_target_bytes
        resident.trim_target_bytes = None
        error = task.exception()
        if error is not None:
            _log.error("trimming the prompt cache of %s failed", resident.id, exc_info=error)
            resident.untrimmable_bytes = resident.prompt_cache_bytes
        elif target_bytes is not None and task.result() > target_bytes:
            resident.untrimmable_bytes = task.result()
        self._pump()


def _note_gone(resident: Resident) -> None:
    """Note that the device holds nothing of the model any more."""
    resident.enter(ModelState.UNLOADED)
    if resident.load.origin is not None and resident.load.origin.files != resident.files:
        resident.facts = None  # measured on other files
    resident.unloads += 1
