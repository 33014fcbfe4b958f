"""Carries out what operators ask of the pool, each in one synchronous step, and says what that has begun.

A dry run takes the same steps on a copy of the pool.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from mlxd.catalog import context_limit
from mlxd.pool import ledger, policy, report
from mlxd.pool.check import stale_models
from mlxd.pool.lifecycle import PRESENT, Comeback, ModelState
from mlxd.pool.queue_limit import retry_after_s
from mlxd.pool.resident import Resident
from mlxd.pool.scheduler import Scheduler
from mlxd.pool.state import PoolState
from mlxd.pool.status import DeferredModel, DrainingModel, PoolPlan, Victim
from mlxd.protocol.errors import ModelUnloaded, RequestCancelled
from mlxd.protocol.settings import Settings


class Outset:
    """How the pool stands when an intervention comes, to tell afterwards what that has begun."""

    def __init__(self, state: PoolState, new: Settings | None = None) -> None:
        """Note how it stands; *new* are the settings that come, if any do."""
        self._state = state
        self._stale = () if new is None else tuple(stale_models(state, new))
        self._reserved_bytes = state.held_bytes
        self._trimming = {model.id for model in state.present if model.trim_target_bytes is not None}
        self.cached_bytes = {model.id: model.prompt_cache_bytes for model in state.present}
        self.staying_bytes = {model.id: ledger.held_bytes(model) for model in state.present if not model.is_leaving}

    def begun(self) -> PoolPlan:
        """Return what has begun since, and which loads are on their way."""
        state = self._state
        left = [model for model in state.present if model.is_leaving and model.id in self.staying_bytes]
        left.sort(key=lambda model: model.base is None)  # an adapter goes before its base
        loading = [model.id for model in state.present if model.is_loading and model.id not in self.cached_bytes]
        returning = [model.id for model in left if model.comeback is Comeback.AT_ONCE]
        aborting = [model for model in left if model.state is ModelState.ABORTING]
        coming = _coming(state)
        return PoolPlan(
            evicting=tuple(
                self._victim(model)
                for model in left
                if model.is_certain_to_go and model.state is not ModelState.ABORTING
            ),
            draining=tuple(
                DrainingModel(model.id, model.holders, self.staying_bytes[model.id])
                for model in left
                if not model.is_certain_to_go
            ),
            aborting=tuple(map(self._victim, aborting)),
            evicting_later=(),
            trimming=tuple(
                Victim(model.id, self.cached_bytes[model.id] - model.trim_target_bytes)
                for model in state.present
                if model.trim_target_bytes is not None and model.id not in self._trimming and not model.is_certain_to_go
            ),
            loading=tuple(dict.fromkeys((*loading, *returning, *coming))),
            deferred=tuple(deferred_models(state, coming)),
            limit_bytes=state.settings.pool.memory,
            reserved_bytes=self._reserved_bytes,
            over_limit=report.over_limit_at_rest(state),
            stale=self._stale,
            waiting=None,
            drain_after_s=None,
        )

    def _victim(self, model: Resident) -> Victim:
        return Victim(model.id, self.staying_bytes[model.id])


class Settling:
    """What an intervention has begun, until it has come to its end."""

    def __init__(self, state: PoolState, begun: PoolPlan) -> None:
        """Note how it stands with the models that move."""
        self._state = state
        self._loading = begun.loading
        found = (state.residents.get(model_id) for model_id in begun.model_ids)
        self._unloads = {resident: resident.unloads for resident in found if resident is not None}
        self._present = {resident for resident in self._unloads if resident.state in PRESENT}

    def busy(self) -> list[Resident]:
        """Return the models that still leave, or are still to load."""
        return [resident for resident in self._unloads if self._is_busy(resident)]

    def _is_busy(self, resident: Resident) -> bool:
        state = self._state
        if resident.id not in self._loading:
            return resident.is_leaving and resident.unloads == self._unloads[resident]
        is_known = state.residents.get(resident.id) is resident  # else it has left the disk, and was forgotten
        is_wanted = is_known and resident.id in state.settings.pool.preload
        # One that was behind other loads, and has no room now, is deferred: nobody waits for that.
        is_coming = resident in self._present or resident.state in PRESENT or resident.id in state.coming
        return is_wanted and is_coming and resident.state not in {ModelState.READY, ModelState.FAILED}


def _coming(state: PoolState) -> list[str]:
    """Return the preloads that load when what is under way has ended, as far as models that stay leave room."""
    if not state.coming:
        return []
    staying = policy.protected(state.view())
    free_bytes = state.settings.pool.memory - sum(model.floor_bytes for model in staying)
    most = state.settings.pool.max_models
    free_places = math.inf if most is None else most - sum(model.base is None for model in staying)
    coming: list[str] = []
    behind = (state.residents[model_id] for model_id in state.settings.pool.preload if model_id in state.coming)
    for resident in (resident for resident in behind if resident.state not in PRESENT):
        n_bytes, n_places = ledger.floor_bytes(resident), int(resident.base is None)
        if n_bytes <= free_bytes and n_places <= free_places:
            free_bytes -= n_bytes
            free_places -= n_places
            coming.append(resident.id)
    return coming


def deferred_models(state: PoolState, coming: Collection[str] = ()) -> Iterable[DeferredModel]:
    """Yield the preloads that have to wait, without those that are *coming*."""
    for model_id in state.settings.pool.preload:
        model = report.preload_status(state, model_id)
        resident = state.residents.get(model_id)
        is_dismissed = resident is not None and resident.comeback is Comeback.NEVER
        is_out = model.state in {"deferred", "failed"} and model_id not in coming
        if is_out and model.reason is not None and not is_dismissed:
            yield DeferredModel(model_id, model.reason)


def take_settings(state: PoolState, scheduler: Scheduler, new: Settings) -> None:
    """Make *new* the settings in force and begin what follows from them."""
    old, state.settings = state.settings, new
    for known in state.residents.values():
        known.context_limit = context_limit(new, known.entry)
    for model_id in new.pool.preload:
        resident = state.residents.get(model_id)
        if resident is not None and model_id not in old.pool.preload:
            if resident.comeback is Comeback.NEVER:
                resident.comeback = Comeback.BY_LIST
            resident.return_wait_s = 0.0
    if new.engine.prompt_cache != old.engine.prompt_cache:
        scheduler.loader.bound_prompt_caches()
    scheduler.pump()


def begin_unload(state: PoolState, scheduler: Scheduler, resident: Resident, *, force: bool) -> None:
    """Let the model go when its requests have ended, or with *force* end them; those that wait for it fail."""
    resident.fail_waiting(
        ModelUnloaded(
            f"{resident.id} was unloaded by command while the request waited for it",
            retry_after_s=retry_after_s(state, resident.holders),
        )
    )
    for leaving in (resident, *resident.adapters.values()):
        leaving.comeback = Comeback.NEVER
    let_go(scheduler, resident, "unloaded by command")
    if force:
        scheduler.revoke(resident, RequestCancelled(f"{resident.id} was unloaded by force"))
    scheduler.pump()


def begin_evict(state: PoolState, scheduler: Scheduler, model_ids: Iterable[str]) -> None:
    """Let loaded models go as for another model's load: what waits for them goes on waiting."""
    for model_id in model_ids:
        scheduler.loader.drain(state.residents[model_id], "evicted by command")
    scheduler.pump()


def let_go(scheduler: Scheduler, resident: Resident, reason: str) -> None:
    """Drain the model, or abort its load."""
    if resident.state is ModelState.READY:
        scheduler.loader.drain(resident, reason)
    elif resident.state is ModelState.LOADING:
        scheduler.loader.abort(resident, reason)


def resident_of(state: PoolState, model_id: str) -> Resident:
    """Return the record of a model of the catalog, or of one that is loaded and has left it.

    Raises:
        ModelNotFound: no such model.
    """
    resident = state.residents.get(model_id)
    return resident if resident is not None and resident.state in PRESENT else state.resident(model_id)
