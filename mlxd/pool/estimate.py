"""Estimate what a model would take before it is loaded; the policy of the live path says whether it fits."""

from __future__ import annotations

from mlxd.kv_estimate import Confidence
from mlxd.pool import ledger, policy
from mlxd.pool.lifecycle import PRESENT
from mlxd.pool.policy import YOUNGEST, Demand
from mlxd.pool.state import PoolState
from mlxd.pool.status import MemoryEstimate, Victim

# What is asked about when nothing is said.
USUAL_CONTEXT_TOKENS = 4096


def estimate(state: PoolState, model_id: str, tokens: int | None, rows: int) -> MemoryEstimate:
    """Return what the model takes with so many sequences of so many tokens each, and what would give way for it.

    Args:
        state: the pool.
        model_id: a model of the catalog.
        tokens: prompt and answer of each sequence; None takes 4096, or the model's context if that is less.
        rows: sequences at a time.

    Raises:
        ModelNotFound: no such model.
    """
    resident = state.resident(model_id)
    context = resident.context_length
    if tokens is None:
        tokens = USUAL_CONTEXT_TOKENS if context is None else min(USUAL_CONTEXT_TOKENS, context)
    rows_bytes = resident.kv.batch_bytes([tokens] * rows, is_padded=resident.is_padded)
    kv_bytes = max(ledger.short_sequence_bytes(resident), rows_bytes)
    weights_bytes, base = resident.weights_bytes, resident.base
    margin_bytes = ledger.margin_bytes(weights_bytes)
    total_bytes = weights_bytes + margin_bytes + kv_bytes
    base_bytes = 0 if base is None else ledger.floor_bytes(base)
    missing_bytes = base_bytes if base is not None and base.state not in PRESENT else 0
    held_bytes = ledger.held_bytes(resident) - resident.prompt_cache_bytes if resident.state in PRESENT else 0
    demand = Demand(
        target=resident.id,
        age=YOUNGEST,
        bytes=max(0, total_bytes + missing_bytes - held_bytes),
        footprint_bytes=total_bytes + base_bytes,
        models=0 if resident.state in PRESENT or base is not None else 1,
        base=None if base is None else base.id,
    )
    plan = policy.plan_room(state.view(), demand)
    is_measured = resident.facts is not None
    return MemoryEstimate(
        model=resident.id,
        state=resident.state.word,
        weights_bytes=weights_bytes,
        weights_confidence=(Confidence.MEASURED if is_measured else Confidence.HEADER).value,
        kv_bytes=kv_bytes,
        kv_confidence=(Confidence.MEASURED if is_measured else resident.entry.kv_confidence).value,
        kv_bytes_per_token=sum(per_token for per_token, _ in resident.kv.groups),
        context_tokens=tokens,
        parallel=rows,
        context_length=context,
        margin_bytes=margin_bytes,
        total_bytes=total_bytes,
        base=demand.base,
        base_bytes=base_bytes,
        load_bytes=ledger.floor_bytes(resident) + base_bytes,
        limit_bytes=state.settings.pool.memory,
        free_bytes=max(0, state.free_bytes),
        fits=plan.outcome.value,
        evicting=tuple(Victim(victim, state.held_bytes_of(victim)) for victim in plan.evict),
        trimming=tuple(Victim(trim.model_id, trim.bytes) for trim in plan.trims),
    )
