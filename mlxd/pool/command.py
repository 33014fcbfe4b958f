"""What operators ask of the pool: each is one synchronous step, which a rehearsal can take on a copy as well."""

from __future__ import annotations

from collections.abc import Iterable

from mlxd.catalog import context_limit
from mlxd.pool.queue_limit import retry_after_s
from mlxd.pool.resident import PRESENT, ModelState, Resident
from mlxd.pool.scheduler import Scheduler
from mlxd.pool.state import PoolState
from mlxd.protocol.errors import ModelUnloaded, RequestCancelled
from mlxd.protocol.settings import Settings


def take_settings(state: PoolState, scheduler: Scheduler, new: Settings) -> None:
    """Make *new* the settings in force and begin what follows from them."""
    old, state.settings = state.settings, new
    for known in state.residents.values():
        known.context_limit = context_limit(new, known.entry)
    for model_id in new.pool.preload:
        resident = state.residents.get(model_id)
        if resident is not None and model_id not in old.pool.preload:
            resident.is_dismissed = False
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
        leaving.is_dismissed = True
        leaving.is_returning = False
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
