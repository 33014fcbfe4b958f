"""All byte arithmetic of the pool: what a model reserves now, at least, and once what is under way is done. No state.

A loaded model reserves weights + margin + max(KV + prompt cache, KV of one short sequence). The last part lets every
loaded model run one sequence at any time; the prompt cache may fill it meanwhile, as it can be trimmed on demand.
A finished row's KV may move into the prompt cache without the sum growing: it was reserved with at least as many bytes.
What it keeps on its way, for prompts that continue from there, is reserved beside its KV (`checkpoint_bytes`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from mlxd.engine.kv_shape import KV_STEP_TOKENS
from mlxd.pool.lifecycle import PRESENT
from mlxd.pool.policy import Age
from mlxd.pool.resident import STEP_TOKENS, Resident, Sequence, SequenceState

# The shortest prompt is one step of the cache, and the first grant adds STEP_TOKENS.
SHORT_SEQUENCE_TOKENS = KV_STEP_TOKENS + STEP_TOKENS
# Workspace: 5 % of the weights within these bounds.
MARGIN_SHARE = 20
LEAST_MARGIN_BYTES = 2**20
MOST_MARGIN_BYTES = 512 * 2**20
# What MLX may keep of freed buffers.
MOST_FREE_BUFFERS_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the ledger holds for one model; the parts add up to `total_bytes`."""

    weights_bytes: int = 0
    margin_bytes: int = 0
    kv_bytes: int = 0
    prompt_cache_bytes: int = 0
    grammar_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum."""
        return self.weights_bytes + self.margin_bytes + self.kv_bytes + self.prompt_cache_bytes + self.grammar_bytes


def margin_bytes(weights_bytes: int) -> int:
    """Return the workspace that is reserved beside weights of this size."""
    return min(max(weights_bytes // MARGIN_SHARE, LEAST_MARGIN_BYTES), MOST_MARGIN_BYTES)


def short_sequence_bytes(resident: Resident) -> int:
    """Return the KV that a loaded model reserves at least."""
    context_tokens = resident.context_length
    tokens = SHORT_SEQUENCE_TOKENS if context_tokens is None else min(SHORT_SEQUENCE_TOKENS, context_tokens)
    return resident.kv.batch_bytes([tokens])


def floor_bytes(resident: Resident, tokens: int = 0) -> int:
    """Return the least that the model needs to be loaded and, if *tokens* are given, to run one sequence of them."""
    weights = resident.weights_bytes
    kv_bytes = max(short_sequence_bytes(resident), resident.kv.batch_bytes([tokens]) if tokens else 0)
    return weights + margin_bytes(weights) + kv_bytes


def footprint(resident: Resident) -> Footprint:
    """Return what is reserved for the model now."""
    if resident.state not in PRESENT:
        return Footprint()
    return _footprint(
        resident, resident.active.values(), _grants(resident), resident.prompt_cache_bytes, _left(resident)
    )


def held_bytes(resident: Resident) -> int:
    """Return the sum of what is reserved for the model now."""
    return footprint(resident).total_bytes


def settled_bytes(resident: Resident, *, without: Collection[Sequence] = ()) -> int:
    """Return what will be reserved once the grants, pauses, ends, trims and unload under way are done.

    Args:
        resident: the model.
        without: also leave these sequences out, to see what pausing them would bring.
    """
    if resident.state not in PRESENT or resident.is_certain_to_go:
        return 0
    staying = [
        sequence
        for sequence in resident.active.values()
        if sequence.state is SequenceState.RUNNING and sequence not in without
    ]
    grants = [sequence.granted_tokens for sequence in staying]
    cache_bytes = resident.prompt_cache_bytes
    if resident.trim_target_bytes is not None:
        cache_bytes = min(cache_bytes, resident.trim_target_bytes)
    return _footprint(resident, staying, grants, cache_bytes).total_bytes


def admission_bytes(resident: Resident, tokens: int) -> int:
    """Return by how much the reservation grows when a sequence gets *tokens*; 0 when the least KV covers it."""
    return _with_grants(resident, [*_grants(resident), tokens], _left(resident)) - held_bytes(resident)


def pausable_bytes(resident: Resident, than: Age | None) -> int:
    """Return what pausing the sequences younger than *than* would free; 0 without an age."""
    if than is None:
        return 0
    younger = [sequence for sequence in resident.active.values() if sequence.age > than]
    return settled_bytes(resident) - settled_bytes(resident, without=younger)


def growth_bytes(sequence: Sequence, tokens: int) -> int:
    """Return by how much the reservation grows when a running sequence gets *tokens* instead of what it has.

    Until the device has done it, the sequence may still pad the rows with which it is now.
    """
    resident = sequence.resident
    grants = [*_grants(resident, without=sequence), tokens]
    left = [*_left(resident), sequence.granted_tokens]
    return _with_grants(resident, grants, left) - held_bytes(resident)


def trimmable_bytes(resident: Resident, tokens: int = 0) -> int:
    """Return what emptying the prompt cache would free; with *tokens*, after a sequence has got as many.

    0 while a trim is under way: what that frees is in `settled_bytes` already.
    """
    if resident.trim_target_bytes is not None or resident.is_certain_to_go:
        return 0
    grants = [*_grants(resident), tokens] if tokens else _grants(resident)
    cache_bytes = resident.prompt_cache_bytes
    least = min(resident.untrimmable_bytes, cache_bytes)
    left = _left(resident)
    rows = resident.active.values()
    full = _footprint(resident, rows, grants, cache_bytes, left).total_bytes
    return full - _footprint(resident, rows, grants, least, left).total_bytes


def free_buffers_bytes(limit_bytes: int) -> int:
    """Return how much MLX may keep of freed buffers under this limit: a tenth, at most 2 GiB."""
    return min(MOST_FREE_BUFFERS_BYTES, limit_bytes // 10)


def _grants(resident: Resident, without: Sequence | None = None) -> list[int]:
    return [
        sequence.granted_tokens
        for sequence in resident.active.values()
        if sequence.granted_tokens and sequence is not without
    ]


def _left(resident: Resident) -> list[int]:
    return [sequence.left_tokens for sequence in resident.active.values() if sequence.left_tokens]


def _with_grants(resident: Resident, grants: list[int], left: Collection[int]) -> int:
    return _footprint(resident, resident.active.values(), grants, resident.prompt_cache_bytes, left).total_bytes


def _footprint(
    resident: Resident,
    rows: Iterable[Sequence],
    grants: list[int],
    cache_bytes: int,
    left: Collection[int] = (),
) -> Footprint:
    weights = resident.weights_bytes
    rows_bytes = resident.kv.batch_bytes(grants, left=left, is_padded=resident.is_padded)
    rows_bytes += sum(sequence.checkpoint_bytes for sequence in rows)
    grammar_bytes = min(resident.grammar_bytes, cache_bytes)
    return Footprint(
        weights_bytes=weights,
        margin_bytes=margin_bytes(weights),
        kv_bytes=max(rows_bytes, short_sequence_bytes(resident) - cache_bytes),
        prompt_cache_bytes=cache_bytes - grammar_bytes,
        grammar_bytes=grammar_bytes,
    )
