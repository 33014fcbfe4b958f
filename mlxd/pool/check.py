"""Judges a change of settings, and a model that is to be evicted. Reads the pool's state, changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mlxd.pool import ledger
from mlxd.pool.lifecycle import ModelState
from mlxd.pool.policy import Rank
from mlxd.pool.resident import Resident
from mlxd.pool.state import PoolState
from mlxd.pool.status import StaleModel
from mlxd.protocol.errors import InsufficientCapacity, InUse, InvalidValue, ModelNotFound
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


def check_evict(state: PoolState, resident: Resident, *, force: bool) -> bool:
    """Refuse to evict what would come back, or what is in use; return False when it is not loaded, or leaves already.

    Raises:
        InUse: pinned, preloaded, loading, or busy; *force* drains a busy one.
    """
    if resident.is_loading:
        raise InUse(f"{resident.id} is loading", hint=f"mlxctl model unload {resident.id}")
    if resident.state is not ModelState.READY:
        return False
    rank = state.rank(resident)
    if resident.is_forced:
        raise InUse(f"{resident.id} was loaded by force", hint=f"mlxctl model unload {resident.id}")
    if rank is Rank.PINNED:
        raise InUse(f"{resident.id} is pinned", hint=f"mlxctl model unpin {resident.id}, then again")
    if rank is Rank.PRELOADED:
        raise InUse(
            f"{resident.id} is in pool.preload and would be loaded again",
            hint=f"mlxctl preload remove {resident.id}\nmlxctl model unload {resident.id}",
        )
    requests = resident.holders + len(resident.waiting)
    if requests and not force:
        raise InUse(
            f"{resident.id} has {count(requests, 'request')}",
            hint="--force lets it go when they have ended",
            data={"requests": requests},
        )
    return True


def stale_models(state: PoolState, new: Settings) -> Iterable[StaleModel]:
    """Yield the loaded models that differ from what a load would make of them under *new*."""
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
            hint="mlxctl pool set-memory auto\nthe same with --force: the machine may swap, or end the server",
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
                f"mlxctl model unpin {next(iter(sizes))}\nmlxctl pool set-memory {total_bytes}B"
                "\nthe same with --force, which blocks other loads"
            ),
            param="pool.memory",
            code="pool.pinned_exceeds_limit",
            data=data,
        )
    pinned = [model_id for model_id in sizes if state.resident(model_id).base is None]
    if new.pool.max_models is not None and len(pinned) > new.pool.max_models:
        yield InsufficientCapacity(
            f"pool.max_models {new.pool.max_models} is below the {len(pinned)} pinned models: {', '.join(pinned)}",
            hint=f"mlxctl model unpin {next(iter(sizes))}\nthe same with --force, which blocks other loads",
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
            hint=f"mlxctl pool set-memory {total_bytes}B\na shorter list\nthe same with --force, which defers the rest",
            param="pool.preload",
            code="pool.preload_exceeds_limit",
            data=data,
        )
    kept = [model_id for model_id in sizes if state.resident(model_id).base is None]
    if new.pool.max_models is not None and len(kept) > new.pool.max_models:
        yield InsufficientCapacity(
            f"pool.max_models {new.pool.max_models} is below the {len(kept)} preloaded and pinned models",
            hint="mlxctl pool set-max-models N\na shorter list\nthe same with --force, which defers the rest",
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
