"""Judges and plans a change of settings. Reads the pool's state, changes nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Iterable

from mlxd.pool import ledger, policy
from mlxd.pool.policy import Candidate, Demand, Outcome, Rank, View
from mlxd.pool.resident import PRESENT, Resident
from mlxd.pool.state import PoolState
from mlxd.pool.status import DeferredModel, DrainingModel, PoolPlan, StaleModel, Victim
from mlxd.protocol.errors import InsufficientCapacity, InvalidValue, ModelNotFound
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import Settings
from mlxd.protocol.units import count, show_bytes


def check(state: PoolState, new: Settings, usable_bytes: int, *, force: bool) -> list[str]:
    """Refuse what the pool cannot honour and return warnings; `Pool.check` has the rules."""
    old = state.settings
    for model_id in _added(old.pool.preload, new.pool.preload):
        _check_known(state, new, model_id, "pool.preload")
    for model_id in _added(_pins(old), _pins(new)):
        _check_known(state, new, model_id, format_path(("models", model_id, "pin")))
    troubles: list[InsufficientCapacity] = []
    warnings: list[InsufficientCapacity] = []
    if new.pool.memory != old.pool.memory:
        troubles += _judge_memory(new, usable_bytes)
    if (new.pool.memory, new.pool.max_models, _pins(new)) != (old.pool.memory, old.pool.max_models, _pins(old)):
        # A step towards the end of an old trouble is not refused because it is not the last one.
        (troubles if _is_tighter(old, new) else warnings).extend(_judge_pins(state, new))
    if _added(old.pool.preload, new.pool.preload):
        troubles += _judge_preload(state, new)
    if troubles and not force:
        raise troubles[0]
    return [trouble.message for trouble in (*troubles, *warnings)]


def plan(state: PoolState, new: Settings) -> PoolPlan:
    """Return what the pool would begin under *new*, by the policy functions that the live path uses."""
    now = state.clock.now()
    expired = [resident.id for resident in state.present if state.expiry_s(resident, new) <= now]
    view = _unloading(state.view(new), expired)
    gone = policy.plan_limit(view)
    view = _leaving(view, (*gone.evict, *gone.drain))
    evicting = [*expired, *gone.evict]
    loading: list[str] = []
    deferred: list[DeferredModel] = []
    for model_id in new.pool.preload:
        try:
            resident = state.resident(model_id)
        except ModelNotFound as error:
            deferred.append(DeferredModel(model_id, error.message))
            continue
        stays_away = resident.is_dismissed and model_id in state.settings.pool.preload
        is_there = resident.state in PRESENT and model_id not in evicting
        if stays_away or is_there or resident.is_wanted:
            continue
        refused = [needed for needed in (resident, resident.base) if needed is not None and needed.is_refused]
        if refused:
            deferred.append(DeferredModel(model_id, str(refused[0].error)))
            continue
        if state.pressure is not None:
            deferred.append(DeferredModel(model_id, state.pressure))
            continue
        missing = [
            needed
            for needed in (resident.base, resident)
            if needed is not None
            and needed.id not in loading
            and (needed.state not in PRESENT or needed.id in evicting)
        ]
        floor_bytes = sum(ledger.floor_bytes(needed) for needed in missing)
        models = sum(needed.base is None for needed in missing)
        room = policy.plan_room(view, Demand(model_id, policy.YOUNGEST, floor_bytes, floor_bytes, models=models))
        if room.outcome in {Outcome.NEVER, Outcome.BLOCKED}:
            deferred.append(DeferredModel(model_id, f"no room: it needs {show_bytes(floor_bytes)}"))
            continue
        evicting += room.evict
        view = _leaving(view, room.evict)
        for needed in missing:
            loading.append(needed.id)
            view = _loading(view, needed, ledger.floor_bytes(needed))
    residents = state.residents
    return PoolPlan(
        evicting=tuple(Victim(model_id, ledger.held_bytes(residents[model_id])) for model_id in evicting),
        draining=tuple(
            DrainingModel(model_id, residents[model_id].holders, ledger.held_bytes(residents[model_id]))
            for model_id in gone.drain
        ),
        loading=tuple(loading),
        deferred=tuple(deferred),
        limit_bytes=new.pool.memory,
        reserved_bytes=state.held_bytes,
        over_limit=_over_limit(state, view, gone.drain),
        stale=tuple(_stale(state, new)),
    )


def _stale(state: PoolState, new: Settings) -> Iterable[StaleModel]:
    for resident in state.present:
        reason = state.stale_reason(resident, new)
        if reason is not None and reason != state.stale_reason(resident):  # this very change makes it so
            yield StaleModel(resident.id, reason, state.reload_mode(resident, new))


def _added(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(model_id for model_id in new if model_id not in old)


def _pins(settings: Settings) -> tuple[str, ...]:
    return tuple(model_id for model_id, model in settings.models.items() if model.pin)


def _is_tighter(old: Settings, new: Settings) -> bool:
    """Whether the new settings leave pinned models less room than the old ones."""
    most, most_before = (math.inf if pool.max_models is None else pool.max_models for pool in (new.pool, old.pool))
    return new.pool.memory < old.pool.memory or most < most_before or bool(_added(_pins(old), _pins(new)))


def _check_known(state: PoolState, new: Settings, model_id: str, key: str) -> None:
    if model_id in new.models and new.models[model_id].adapter is not None:
        return  # what is defined in the same breath is not in the catalog yet
    try:
        state.resident(model_id)
    except ModelNotFound as error:
        raise InvalidValue(
            f"{key}: {error.message}", hint="mlxctl model list", param=key, data=dict(error.data)
        ) from error


def _judge_memory(new: Settings, usable_bytes: int) -> Iterable[InsufficientCapacity]:
    if new.pool.memory > usable_bytes:
        yield InsufficientCapacity(
            f"memory limit {show_bytes(new.pool.memory)} is above the usable memory, {show_bytes(usable_bytes)}",
            hint="mlxctl pool set-memory auto | --force (the machine may swap, or end the server)",
            param="pool.memory",
            code="pool.memory_exceeds_usable",
            data={"limit_bytes": new.pool.memory, "usable_bytes": usable_bytes},
        )


def _judge_pins(state: PoolState, new: Settings) -> Iterable[InsufficientCapacity]:
    sizes = _sizes(state, _pins(new))
    total_bytes = sum(sizes.values())
    data = {"pinned": sizes, "pinned_bytes": total_bytes, "limit_bytes": new.pool.memory}
    if total_bytes > new.pool.memory:
        yield InsufficientCapacity(
            f"memory limit {show_bytes(new.pool.memory)} is below the pinned models: {_sum(sizes)}",
            hint=(
                f"mlxctl model unpin {next(iter(sizes))} | mlxctl pool set-memory {total_bytes}B"
                " | --force (keeps pins, blocks other loads)"
            ),
            param="pool.memory",
            code="pool.pinned_exceeds_limit",
            data=data,
        )
    pinned = [model_id for model_id in sizes if state.resident(model_id).base is None]
    if new.pool.max_models is not None and len(pinned) > new.pool.max_models:
        yield InsufficientCapacity(
            f"pool.max_models {new.pool.max_models} is below the {len(pinned)} pinned models: {', '.join(pinned)}",
            hint=f"mlxctl model unpin {next(iter(sizes))} | --force (keeps pins, blocks other loads)",
            param="pool.max_models",
            code="pool.pinned_exceeds_limit",
            data=data,
        )


def _judge_preload(state: PoolState, new: Settings) -> Iterable[InsufficientCapacity]:
    sizes = _sizes(state, dict.fromkeys((*new.pool.preload, *_pins(new))))
    total_bytes = sum(sizes.values())
    data = {"preload": sizes, "preload_bytes": total_bytes, "limit_bytes": new.pool.memory}
    if total_bytes > new.pool.memory:
        yield InsufficientCapacity(
            f"memory limit {show_bytes(new.pool.memory)} is below the preloaded and pinned models: {_sum(sizes)}",
            hint=f"mlxctl pool set-memory {total_bytes}B | a shorter list | --force (defers what does not fit)",
            param="pool.preload",
            code="pool.preload_exceeds_limit",
            data=data,
        )
    kept = [model_id for model_id in sizes if state.resident(model_id).base is None]
    if new.pool.max_models is not None and len(kept) > new.pool.max_models:
        yield InsufficientCapacity(
            f"pool.max_models {new.pool.max_models} is below the {len(kept)} preloaded and pinned models",
            hint="mlxctl pool set-max-models N | a shorter list | --force (defers what does not fit)",
            param="pool.preload",
            code="pool.preload_exceeds_limit",
            data=data,
        )


def _sizes(state: PoolState, model_ids: Iterable[str]) -> dict[str, int]:
    """Return the least that each model, and the base of each adapter, needs, without those that are not on disk."""
    sizes = {}
    for model_id in model_ids:
        try:
            resident = state.resident(model_id)
        except ModelNotFound:
            continue
        for needed in (resident.base, resident):
            if needed is not None:
                sizes[needed.id] = ledger.floor_bytes(needed)
    return sizes


def _sum(sizes: dict[str, int]) -> str:
    parts = " + ".join(f"{model_id} {show_bytes(n_bytes)}" for model_id, n_bytes in sizes.items())
    return f"{parts} = {show_bytes(sum(sizes.values()))}" if len(sizes) > 1 else parts


def _leaving(view: View, model_ids: Container[str]) -> View:
    """Return the view after the unload of these models has begun."""
    candidates = tuple(
        dataclasses.replace(candidate, is_leaving=True, is_ready=False)
        if candidate.model_id in model_ids
        else candidate
        for candidate in view.candidates
    )
    return dataclasses.replace(view, candidates=candidates)


def _unloading(view: View, model_ids: Container[str]) -> View:
    """Return the view after the eviction of these idle models has begun."""
    candidates = tuple(
        dataclasses.replace(candidate, settled_bytes=0, trimmable_bytes=0)
        if candidate.model_id in model_ids
        else candidate
        for candidate in view.candidates
    )
    return _leaving(dataclasses.replace(view, candidates=candidates), model_ids)


def _loading(view: View, resident: Resident, floor_bytes: int) -> View:
    """Return the view after the load of a preloaded model has begun."""
    loading = Candidate(
        model_id=resident.id,
        held_bytes=floor_bytes,
        settled_bytes=floor_bytes,
        floor_bytes=floor_bytes,
        trimmable_bytes=0,
        rank=Rank.PRELOADED,
        is_ready=False,
        is_leaving=False,
        is_held=False,
        oldest_wait=None,
        released_s=0.0,
        uses=0,
        base=None if resident.base is None else resident.base.id,
    )
    others = tuple(candidate for candidate in view.candidates if candidate.model_id != resident.id)
    return dataclasses.replace(view, candidates=(*others, loading))


def _over_limit(state: PoolState, view: View, draining: tuple[str, ...]) -> str | None:
    """Return what will keep the pool over its limit once the idle victims are gone."""
    if draining:
        return "draining " + ", ".join(
            f"{model_id} ({count(state.residents[model_id].holders, 'request')})" for model_id in draining
        )
    staying = [candidate for candidate in view.candidates if not candidate.is_leaving]
    models = sum(candidate.base is None for candidate in staying)
    too_many = view.max_models is not None and models > view.max_models
    if not too_many and sum(candidate.floor_bytes for candidate in staying) <= view.limit_bytes:
        return None
    return ", ".join(
        f"{candidate.model_id} is {'pinned' if candidate.rank is Rank.PINNED else 'loading'}" for candidate in staying
    )
