"""Puts the pool's state into words and into status records. Reads only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from mlxd.engine.base import BackendMemory, EngineFacts
from mlxd.kv_estimate import Confidence
from mlxd.pool import ledger
from mlxd.pool.lifecycle import LEAVING, PRESENT, Comeback, ModelState
from mlxd.pool.policy import Rank
from mlxd.pool.resident import Resident, Sequence, SequenceState, Ticket
from mlxd.pool.state import PoolState
from mlxd.pool.status import DeviceStatus, MemoryStatus, ModelStatus, PoolStatus, PreloadStatus, TokenStatus, WaitStatus
from mlxd.protocol.errors import ModelNotFound
from mlxd.protocol.units import count, show_bytes


def build_status(state: PoolState) -> PoolStatus:
    """Return a snapshot of the pool."""
    waiting = sorted(state.waiting_tickets(), key=lambda ticket: ticket.number)
    return PoolStatus(
        memory=_memory(state),
        over_limit=over_limit(state),
        max_models=state.settings.pool.max_models,
        models=tuple(_model(state, resident, waiting) for resident in _shown(state)),
        queue=tuple(_waits(state, waiting)),
        preload=tuple(preload_status(state, model_id) for model_id in state.settings.pool.preload),
        tokens=TokenStatus(state.meter.total, state.prompt_tokens, state.meter.per_s(state.clock.now())),
        draining=state.is_draining,
        pressure=state.pressure,
    )


def compare_device(state: PoolState, counters: BackendMemory) -> DeviceStatus:
    """Return what MLX says beside what the ledger says."""
    difference_bytes = state.held_bytes - counters.active_bytes
    return DeviceStatus(
        active_bytes=counters.active_bytes,
        free_buffers_bytes=counters.cache_bytes,
        peak_bytes=counters.peak_bytes,
        reserved_bytes=state.held_bytes,
        unused_bytes=max(0, difference_bytes),
        unexplained_bytes=max(0, -difference_bytes),
    )


def over_limit(state: PoolState) -> str | None:
    """Return why more is reserved, or more is loaded, than the settings allow; None when all is within them."""
    if not state.is_over_limit:
        return None
    is_trimming = any(resident.trim_target_bytes is not None for resident in state.present)
    return _reason_over(state, state.present, ["trimming prompt caches"] if is_trimming else [])


def over_limit_at_rest(state: PoolState) -> str | None:
    """Return the same of the pool when the evictions, aborts, trims and pauses under way have ended."""
    staying = [resident for resident in state.present if not resident.is_certain_to_go]
    pool = state.settings.pool
    is_over = sum(ledger.settled_bytes(resident) for resident in staying) > pool.memory
    is_over |= pool.max_models is not None and sum(resident.base is None for resident in staying) > pool.max_models
    return _reason_over(state, staying, []) if is_over else None


def _reason_over(state: PoolState, residents: list[Resident], more: list[str]) -> str:
    parts = []
    for resident in residents:
        if resident.state is not ModelState.READY:
            parts.append(reason_busy(state, resident))
        elif state.rank(resident) is Rank.PINNED:
            parts.append(f"{resident.id} is " + ("loaded by force" if resident.is_forced else "pinned"))
    parts += more
    if not parts:
        oldest = min(state.running, key=lambda sequence: sequence.age, default=None)
        parts.append(
            "waiting for sequences to pause" if oldest is None else f"the oldest sequence, on {oldest.resident.id}"
        )
    return ", ".join(parts)


def reason_busy(state: PoolState, resident: Resident) -> str:
    """Return what keeps a change of settings from being settled."""
    if resident.state is ModelState.DRAINING:
        seconds = state.clock.now() - resident.drain_started_s
        return f"draining {resident.id} ({count(resident.holders, 'request')}, {seconds:.0f} s)"
    if resident.state is ModelState.ABORTING:
        return f"stopping the load of {resident.id}"
    if resident.state in PRESENT:
        return f"{resident.state.word} {resident.id}"
    return f"{resident.id} is not loaded: {state.deferred.get(resident.id, 'it waits for room')}"


def reason_blocked(state: PoolState, resident: Resident) -> str:
    """Return why a wanted load does not start."""
    free_bytes = max(0, state.free_bytes)
    text = f"needs {show_bytes(ledger.floor_bytes(resident))}, {show_bytes(free_bytes)} free"
    max_models = state.settings.pool.max_models
    if max_models is not None and state.model_count >= max_models:
        text += f", {state.model_count} of {max_models} models loaded"
    others = [activity(state, other) for other in state.present]
    return f"{text}; {', '.join(others)}" if others else text


def reason_kept_out(state: PoolState, resident: Resident) -> str | None:
    """Return why the preload list does not load a model, whatever room there is; None when it may."""
    if resident.comeback is Comeback.NEVER:
        return "it was unloaded by command; a request or `mlxctl model load` brings it back"
    if state.pressure is not None:
        return state.pressure
    for needed in (resident.base, resident):
        if needed is None or needed.state in PRESENT or needed.return_wait_s == 0:
            continue
        short = f"the system was short of memory while {needed.id} was loaded"
        left_s = needed.return_s - state.clock.now()
        if left_s > 0:
            return f"{short}; it is not loaded again for {left_s:.0f} s, unless it is asked for"
        need_bytes = ledger.floor_bytes(needed)
        if state.spare_bytes is not None and need_bytes > state.spare_bytes:
            return f"{short}; it needs {show_bytes(need_bytes)}, the system can spare {show_bytes(state.spare_bytes)}"
    return None


def reason_waiting(state: PoolState, ticket: Ticket) -> str:
    """Return what a request that has not started waits for."""
    resident = ticket.resident
    loading = resident.loading
    if loading is not None and loading.state is ModelState.ABORTING:
        return f"the load of {loading.id} is being stopped ({loading.leave_reason})"
    if loading is not None:
        percent = 100 * loading.load.done_bytes // max(1, loading.load.total_bytes)
        return f"{loading.id} is loading ({percent} %)"
    if resident.state is ModelState.UNLOADING:
        return f"{resident.id} is being unloaded and will be loaded again"
    if resident.state is ModelState.DRAINING:
        return f"{resident.id} drains ({resident.leave_reason}) and will be loaded again"
    if resident.state is not ModelState.READY:
        return f"{resident.id} waits for room" if resident.blocked_reason is None else resident.blocked_reason
    sequence = next(iter(ticket.sequences.values()), None)
    if sequence is None:
        return f"its prompt is being prepared, behind others for {resident.id}"
    return reason_not_started(state, sequence)


def reason_not_started(state: PoolState, sequence: Sequence) -> str:
    """Return what a sequence on a loaded model waits for."""
    resident = sequence.resident
    if sequence.waits_for_slot:
        return f"all {state.settings.engine.max_sequences} sequences of {resident.id} are taken"
    tokens = sequence.first_grant_tokens
    n_bytes = ledger.admission_bytes(resident, tokens)
    free_bytes = max(0, state.free_bytes)
    return f"the KV of {tokens} tokens on {resident.id} needs {show_bytes(n_bytes)} more, {show_bytes(free_bytes)} free"


def activity(state: PoolState, resident: Resident) -> str:
    """Return what a loaded model is doing."""
    if resident.is_loading or resident.state is ModelState.UNLOADING:
        return f"{resident.id} is {resident.state.word}"
    if resident.has_own_requests:
        return f"{resident.id} has {count(resident.holders, 'request')}"
    rank = state.rank(resident)
    return f"{resident.id} is {'idle' if rank is Rank.ORDINARY else rank.name.lower()}"


def _waits(state: PoolState, waiting: list[Ticket]) -> Iterator[WaitStatus]:
    places: Counter[str] = Counter()
    for position, ticket in enumerate(waiting, 1):
        model_id = ticket.resident.id
        places[model_id] += 1
        yield WaitStatus(
            request_id=ticket.request_id,
            model=model_id,
            waited_s=state.clock.now() - ticket.arrived_s,
            reason=reason_waiting(state, ticket),
            position=position,
            model_position=places[model_id],
        )


def _memory(state: PoolState) -> MemoryStatus:
    present = state.present
    loaded = [ledger.footprint(resident) for resident in present if not resident.is_loading]
    limit_bytes = state.settings.pool.memory
    reserved_bytes = state.held_bytes
    return MemoryStatus(
        limit_bytes=limit_bytes,
        reserved_bytes=reserved_bytes,
        weights_bytes=sum(footprint.weights_bytes for footprint in loaded),
        kv_bytes=sum(footprint.kv_bytes for footprint in loaded),
        prompt_cache_bytes=sum(footprint.prompt_cache_bytes for footprint in loaded),
        grammar_bytes=sum(footprint.grammar_bytes for footprint in loaded),
        loading_bytes=sum(ledger.held_bytes(resident) for resident in present if resident.is_loading),
        margin_bytes=sum(footprint.margin_bytes for footprint in loaded),
        pinned_bytes=sum(ledger.held_bytes(resident) for resident in present if state.rank(resident) is Rank.PINNED),
        free_bytes=max(0, limit_bytes - reserved_bytes),
    )


def _shown(state: PoolState) -> list[Resident]:
    """Return the models to list: what is not unloaded, and pinned or preloaded ones in any case."""
    shown = {
        resident.id: resident
        for resident in state.residents.values()
        if resident.state is not ModelState.UNLOADED or state.rank(resident) is not Rank.ORDINARY
    }
    pinned = [model_id for model_id, model in state.settings.models.items() if model.pin]
    for model_id in (*state.settings.pool.preload, *pinned):
        try:
            shown.setdefault(model_id, state.resident(model_id))
        except ModelNotFound:
            continue
    return [shown[model_id] for model_id in sorted(shown)]


def _pooling(facts: EngineFacts | None) -> str | None:
    if facts is None or facts.vectors is None:
        return None
    words = facts.vectors.pooling.value
    return f"{words} (a guess: its folder does not say)" if facts.vectors.is_assumed else words


def _decoding(facts: EngineFacts | None) -> tuple[str | None, str | None]:
    """Return how a model that makes text is decoded and why, once it has been loaded."""
    if facts is None or not facts.decoding_reason:
        return None, None
    return facts.decoding.value, facts.decoding_reason


def _model(state: PoolState, resident: Resident, waiting: list[Ticket]) -> ModelStatus:
    footprint = ledger.footprint(resident)
    keep_alive_s = state.keep_alive_s(resident)
    expiry_s = state.expiry_s(resident)
    model = state.settings.models.get(resident.id)
    paused = sum(sequence.state is SequenceState.PAUSED for sequence in resident.active.values())
    decoding, decoding_reason = _decoding(resident.facts)
    return ModelStatus(
        id=resident.id,
        state=resident.state.word,
        weights_bytes=resident.weights_bytes,
        estimated=resident.facts is None,
        kv_confidence=(resident.entry.kv_confidence if resident.facts is None else Confidence.MEASURED).value,
        kv_bytes=footprint.kv_bytes,
        prompt_cache_bytes=footprint.prompt_cache_bytes,
        grammar_bytes=footprint.grammar_bytes,
        margin_bytes=footprint.margin_bytes,
        reserved_bytes=footprint.total_bytes,
        context_length=resident.context_length,
        running=len(resident.active) - paused,
        paused=paused,
        waiting=sum(ticket.resident is resident for ticket in waiting),
        leases=resident.holders,
        completion_tokens=resident.meter.total,
        tokens_per_s=resident.meter.per_s(state.clock.now()),
        pinned=model is not None and model.pin,
        preload=resident.id in state.settings.pool.preload,
        keep_alive_s=None if math.isinf(keep_alive_s) else keep_alive_s,
        expires_in_s=None if math.isinf(expiry_s) else max(0.0, expiry_s - state.clock.now()),
        reason=_reason(state, resident),
        load_done_bytes=resident.load.done_bytes,
        load_total_bytes=resident.load.total_bytes,
        last_error=None if resident.error is None else resident.error.message,
        base=resident.entry.base,
        decoding=decoding,
        decoding_reason=decoding_reason,
        tool_format=None if resident.facts is None else resident.facts.tool_format or None,
        prompts_too_large=0 if resident.engine is None else resident.engine.prompts_too_large,
        pooling=_pooling(resident.facts),
        stale=state.stale_reason(resident),
    )


def _reason(state: PoolState, resident: Resident) -> str | None:
    if resident.state in LEAVING:
        return resident.leave_reason
    if resident.state in {ModelState.QUEUED, ModelState.RETRYING}:
        return resident.blocked_reason
    if resident.is_refused:
        return f"not tried again until it is reset: mlxctl model reset {resident.id}"
    if resident.state is ModelState.FAILED:
        return f"not tried again for {max(0.0, resident.backoff.retry_s - state.clock.now()):.0f} s"
    if resident.state is ModelState.READY and not resident.has_own_requests:
        kept_by = [adapter.id for adapter in resident.adapters.values() if adapter.state in PRESENT]
        if kept_by:
            return f"kept by {', '.join(kept_by)}"
    return state.deferred.get(resident.id)


def preload_status(state: PoolState, model_id: str) -> PreloadStatus:
    """Return how it stands with one model of the preload list."""
    resident = state.residents.get(model_id)
    if resident is None:
        return PreloadStatus(model_id, "failed", state.deferred.get(model_id, "there is no such model"))
    if resident.state is ModelState.READY:
        return PreloadStatus(model_id, "loaded", None)
    if resident.is_loading:
        return PreloadStatus(model_id, "loading", None)
    if resident.state is ModelState.FAILED and resident.error is not None:
        return PreloadStatus(model_id, "failed", resident.error.message)
    reason = state.deferred.get(model_id, resident.leave_reason if resident.state in LEAVING else None)
    return PreloadStatus(model_id, "deferred", reason)
