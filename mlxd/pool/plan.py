"""What a command would begin, and how far that would go: each is taken on a copy of the pool (`rehearsal.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from mlxd.pool import change, command, report
from mlxd.pool.rehearsal import Rehearsal
from mlxd.pool.resident import PRESENT, ModelState
from mlxd.pool.state import PoolState
from mlxd.pool.status import DeferredModel, DrainingModel, PoolPlan, Victim
from mlxd.protocol.errors import MlxdError
from mlxd.protocol.settings import Settings


def plan_settings(state: PoolState, new: Settings) -> PoolPlan:
    """Return what a change of settings would do."""
    rehearsal = Rehearsal(state)
    command.take_settings(rehearsal.state, rehearsal.scheduler, new)
    return _finish(state, rehearsal)


def plan_unload(state: PoolState, model_id: str, *, force: bool) -> PoolPlan:
    """Return what `model unload` would do.

    Raises:
        ModelNotFound: no such model.
    """
    rehearsal = Rehearsal(state)
    resident = command.resident_of(rehearsal.state, model_id)
    command.begin_unload(rehearsal.state, rehearsal.scheduler, resident, force=force)
    return _finish(state, rehearsal)


def plan_evict(state: PoolState, model_ids: Iterable[str]) -> PoolPlan:
    """Return what an eviction by command would do."""
    rehearsal = Rehearsal(state)
    command.begin_evict(rehearsal.state, rehearsal.scheduler, model_ids)
    return _finish(state, rehearsal)


def plan_load(state: PoolState, model_id: str, *, force: bool = False) -> PoolPlan:
    """Return what `model load` would do.

    Where busy models block the load, `waiting` says so, and `draining` names those that would have to drain after
    `drain_after_s`. `evicting_later` also names what goes when those have drained, or when a load by force has taken
    the pool over its limit.

    Raises:
        ModelNotFound, DoesNotFit, Draining: as the load would.
    """
    rehearsal = Rehearsal(state)
    ticket = rehearsal.scheduler.join(model_id, "model load", is_command=True, force=force)
    begun = _finish(state, rehearsal)
    error = ticket.granted.exception() if ticket.granted.done() else None
    if isinstance(error, MlxdError):
        raise error
    waiting = None if ticket.granted.done() else report.reason_waiting(rehearsal.state, ticket)
    patience_s = rehearsal.state.settings.pool.evict_patience
    if waiting is not None:
        rehearsal.let_pass(patience_s)
    draining = {model.id: model for model in _draining(state, rehearsal)}
    while rehearsal.let_drain():
        draining = {model.id: model for model in _draining(state, rehearsal)} | draining
    known = {victim.id for victim in begun.evicting} | draining.keys()
    later = [victim for model_id, victim in _evicted(state, rehearsal).items() if model_id not in known]
    is_patient = waiting is not None and draining.keys() > {model.id for model in begun.draining}
    return dataclasses.replace(
        begun,
        draining=tuple(draining.values()),
        aborting=tuple(_aborting(state, rehearsal)),
        evicting_later=tuple(later),
        deferred=tuple(_deferred(rehearsal.state)),
        over_limit=report.over_limit(rehearsal.state),
        waiting=waiting,
        drain_after_s=patience_s if is_patient else None,
    )


def _finish(live: PoolState, rehearsal: Rehearsal) -> PoolPlan:
    """Note what has begun, let it come to its end, and return the difference between the pool and its copy."""
    copy = rehearsal.state
    begun, draining, aborting = _evicted(live, rehearsal), _draining(live, rehearsal), _aborting(live, rehearsal)
    rehearsal.finish()
    evicted = _evicted(live, rehearsal)
    drained = {model.id for model in draining}  # a base goes when its adapters have gone, which takes no request's end
    return PoolPlan(
        evicting=tuple(victim for model_id, victim in evicted.items() if model_id in begun or model_id in drained),
        draining=tuple(model for model in draining if model.id not in evicted),
        aborting=tuple(aborting),
        evicting_later=tuple(victim for model_id, victim in evicted.items() if model_id not in {*begun, *drained}),
        trimming=tuple(_trimmed(live, copy, evicted)),
        loading=tuple(dict.fromkeys(str(event.model_id) for event in rehearsal.happened("model.loading"))),
        deferred=tuple(_deferred(copy)),
        limit_bytes=copy.settings.pool.memory,
        reserved_bytes=live.held_bytes,
        over_limit=report.over_limit(copy),
        stale=tuple(change.stale_models(live, copy.settings)),
        waiting=None,
        drain_after_s=None,
    )


def _evicted(live: PoolState, rehearsal: Rehearsal) -> dict[str, Victim]:
    """Return the models that were ready, or being loaded, and go, in order."""
    was_there = {resident.id for resident in live.present if resident.state in {ModelState.READY, ModelState.LOADING}}
    evicted: dict[str, Victim] = {}
    for event in rehearsal.happened("model.evicting"):
        if event.model_id in was_there:
            evicted.setdefault(event.model_id, Victim(event.model_id, event.data["bytes"]))
    return evicted


def _draining(live: PoolState, rehearsal: Rehearsal) -> list[DrainingModel]:
    """Return the models that drain and did not before."""
    before = {resident.id for resident in live.present if resident.state is ModelState.DRAINING}
    return [
        DrainingModel(resident.id, resident.holders, live.held_bytes_of(resident.id))
        for resident in rehearsal.state.present
        if resident.state is ModelState.DRAINING and resident.id not in before
    ]


def _aborting(live: PoolState, rehearsal: Rehearsal) -> list[Victim]:
    """Return the loads that are told to end, or have ended so, and were not before."""
    ended = {event.model_id for event in rehearsal.happened("model.load_aborted")}
    ended |= {resident.id for resident in rehearsal.state.present if resident.is_aborting}
    return [
        Victim(resident.id, live.held_bytes_of(resident.id))
        for resident in live.present
        if resident.state is ModelState.LOADING and not resident.is_aborting and resident.id in ended
    ]


def _deferred(copy: PoolState) -> Iterable[DeferredModel]:
    """Yield the preloads that have to wait."""
    for model_id in copy.settings.pool.preload:
        model = report.preload_status(copy, model_id)
        is_out = model.state in {"deferred", "failed"} and not copy.is_dismissed(model_id)
        if is_out and model.reason is not None:
            yield DeferredModel(model_id, model.reason)


def _trimmed(live: PoolState, copy: PoolState, evicted: Iterable[str]) -> Iterable[Victim]:
    """Yield what is taken out of the prompt caches of models that stay."""
    for resident in live.present:
        twin = copy.residents[resident.id]
        freed_bytes = resident.prompt_cache_bytes - twin.prompt_cache_bytes
        if freed_bytes > 0 and resident.id not in evicted and twin.state in PRESENT:
            yield Victim(resident.id, freed_bytes)
