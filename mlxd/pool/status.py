"""The status of the pool: plain frozen dataclasses, JSON-able by `dataclasses.asdict`. Imports no other module.

Bytes and seconds are numbers, states are the words of `ModelState`. What never happens is None, never infinity.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MemoryStatus:
    """The ledger: `reserved_bytes` is the sum of weights, KV, prompt caches, grammars, loads and margins."""

    limit_bytes: int
    reserved_bytes: int
    weights_bytes: int  # of loaded models
    kv_bytes: int  # reserved for sequences, with the least that keeps each loaded model able to run one
    prompt_cache_bytes: int
    grammar_bytes: int  # compiled for structured output and tools
    loading_bytes: int  # all that loads in progress have reserved
    margin_bytes: int  # workspace of loaded models
    pinned_bytes: int  # the part of `reserved_bytes` that belongs to pinned models
    free_bytes: int  # limit minus reserved, never below 0


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """MLX's counters beside the ledger: active + unused = reserved + unexplained."""

    active_bytes: int
    free_buffers_bytes: int  # freed, and kept by MLX for reuse; beside the active ones
    peak_bytes: int
    reserved_bytes: int  # the ledger's, of the same moment
    unused_bytes: int  # reserved and not taken: room of sequences, margins, weights that are still to come
    unexplained_bytes: int  # active beyond all that is reserved


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model that the pool holds, loads, waits for, or failed to load."""

    id: str
    state: str  # queued, loading, ready, draining, unloading, failed, or unloaded (pinned or preloaded, not there)
    weights_bytes: int
    estimated: bool  # weights from the files' headers, not measured yet
    kv_confidence: str  # of the KV per token: measured, header (a config that is understood) or guess
    kv_bytes: int
    prompt_cache_bytes: int
    grammar_bytes: int  # compiled for structured output and tools
    margin_bytes: int
    reserved_bytes: int  # all that the ledger holds for it; over all models these add up to the pool's
    context_length: int | None
    running: int  # sequences
    paused: int  # sequences that gave their KV back for a while
    waiting: int  # requests of this model that have not started
    leases: int  # requests that hold the model
    completion_tokens: int  # made since the daemon's start
    tokens_per_s: float  # completion tokens of the last seconds
    pinned: bool
    preload: bool
    keep_alive_s: float | None  # None: never expires
    expires_in_s: float | None  # None: busy, pinned, preloaded or never
    reason: str | None  # why it is in its state, where that needs words
    load_done_bytes: int
    load_total_bytes: int
    last_error: str | None
    base: str | None = None  # of an adapter: the model whose weights it shares
    decoding: str | None = None  # as the check at the last load found: batched, single prefill or one by one
    decoding_reason: str | None = None
    tool_format: str | None = None  # in which it calls tools, once it has been loaded
    pooling: str | None = None  # of its vectors: mean, first or last, and whether that is a guess
    prompts_too_large: int = 0  # not kept since the load: each alone is more than engine.prompt_cache
    stale: str | None = None  # in what it differs from what a load would make of it now


@dataclass(frozen=True, slots=True)
class WaitStatus:
    """One request that has not started, and what it waits for."""

    request_id: str
    model: str
    waited_s: float
    reason: str
    position: int  # in the whole queue, from 1: the order in which requests came
    model_position: int  # among those that wait for the same model, from 1


@dataclass(frozen=True, slots=True)
class PreloadStatus:
    """One entry of `pool.preload`, in its order."""

    id: str
    state: str  # loaded, loading, deferred, failed
    reason: str | None


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """What all models have made since the daemon's start, and how fast they are now."""

    completion: int
    prompt: int  # of sequences that have ended
    per_s: float  # completion tokens of the last seconds


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A snapshot of the pool."""

    memory: MemoryStatus
    over_limit: str | None  # why more is reserved than the limit allows
    max_models: int | None
    models: tuple[ModelStatus, ...]
    queue: tuple[WaitStatus, ...]  # oldest first
    preload: tuple[PreloadStatus, ...]
    tokens: TokenStatus
    draining: bool  # the daemon is shutting down
    pressure: str | None = None  # the system's memory is short, and why: loads wait until it is not


@dataclass(frozen=True, slots=True)
class Victim:
    """A model that gives way, and what that brings."""

    id: str
    bytes: int


@dataclass(frozen=True, slots=True)
class DrainingModel:
    """A model that goes when the requests that hold it have ended."""

    id: str
    requests: int
    bytes: int


@dataclass(frozen=True, slots=True)
class DeferredModel:
    """A preload that has to wait, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StaleModel:
    """A loaded model that differs from what a load would make of it now."""

    id: str
    reason: str
    reload: str  # when it is loaded again: idle, now or next-load


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """What a command would do and lead to (dry runs), or has begun (`Pool.apply`, `Pool.evict`)."""

    evicting: tuple[Victim, ...]
    draining: tuple[DrainingModel, ...]
    aborting: tuple[Victim, ...]  # loads that end before they are complete
    evicting_later: tuple[Victim, ...]  # when what has begun is done, to make room for the next; dry runs only
    trimming: tuple[Victim, ...]  # of prompt caches, in models that stay
    loading: tuple[str, ...]  # now, or when what has begun is done
    deferred: tuple[DeferredModel, ...]
    limit_bytes: int
    reserved_bytes: int
    over_limit: str | None
    stale: tuple[StaleModel, ...]
    waiting: str | None  # why a load does not begin
    drain_after_s: float | None  # what is in `draining` begins to drain when the load has waited so long

    @property
    def model_ids(self) -> tuple[str, ...]:
        """All models that the change moves."""
        evicting, aborting = ([victim.id for victim in victims] for victims in (self.evicting, self.aborting))
        return (*evicting, *(model.id for model in self.draining), *aborting, *self.loading)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What a model takes with some sequences; `total_bytes` is weights + KV + margin, all its own."""

    model: str
    state: str
    weights_bytes: int
    weights_confidence: str  # measured at a load, or of the files' header
    kv_bytes: int
    kv_confidence: str  # measured, header (a config that is understood) or guess
    kv_bytes_per_token: int
    context_tokens: int  # of each sequence
    parallel: int  # sequences at a time
    context_length: int | None
    margin_bytes: int
    total_bytes: int
    base: str | None  # of an adapter: the model that has to be loaded as well
    base_bytes: int
    load_bytes: int  # the least with which it is loaded, its base included; the rest is reserved as requests need it
    limit_bytes: int
    free_bytes: int
    fits: str  # fits, freeing (when what is named below has gone), blocked (by busy models) or never
    evicting: tuple[Victim, ...]
    trimming: tuple[Victim, ...]
