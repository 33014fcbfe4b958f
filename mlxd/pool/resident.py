"""The pool's record of one model, and the table of the states it can be in. Data and facts about it, no decisions."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from enum import Enum

from mlxd.catalog import ModelEntry
from mlxd.engine.base import Decoding, Engine, EngineFacts
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.vector import Pooling
from mlxd.pool.meter import TokenMeter
from mlxd.pool.policy import Age
from mlxd.pool.sequence import Sequence, SequenceState, Ticket
from mlxd.protocol.errors import MlxdError


class ModelState(Enum):
    """Where a model is."""

    UNLOADED = "unloaded"
    QUEUED = "queued"  # wanted, and waiting for room
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"  # grants no leases; goes when its requests have ended
    UNLOADING = "unloading"  # the device is freeing it
    FAILED = "failed"  # the load failed; tried again when the backoff is over


TRANSITIONS: dict[ModelState, frozenset[ModelState]] = {
    # Failed at once: a model that must not be loaded.
    ModelState.UNLOADED: frozenset({ModelState.QUEUED, ModelState.LOADING, ModelState.FAILED}),
    # Failed before it began: a fault in planning its load.
    ModelState.QUEUED: frozenset({ModelState.UNLOADED, ModelState.LOADING, ModelState.FAILED}),
    ModelState.LOADING: frozenset(
        {ModelState.READY, ModelState.FAILED, ModelState.QUEUED, ModelState.UNLOADED}  # queued: tried once more
    ),
    ModelState.READY: frozenset({ModelState.DRAINING}),
    ModelState.DRAINING: frozenset({ModelState.UNLOADING}),
    ModelState.UNLOADING: frozenset({ModelState.UNLOADED}),
    ModelState.FAILED: frozenset({ModelState.QUEUED, ModelState.LOADING, ModelState.UNLOADED}),  # unloaded: reset
}
# States in which the ledger holds bytes for the model, and in which it counts against `pool.max_models`.
PRESENT = frozenset({ModelState.LOADING, ModelState.READY, ModelState.DRAINING, ModelState.UNLOADING})
LEAVING = frozenset({ModelState.DRAINING, ModelState.UNLOADING})
# After so long a use counts for half: 16 of yesterday at this time are worth one now, last week's nothing.
USE_HALF_LIFE_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load was made of: when that changes, the loaded model is stale."""

    entry: ModelEntry
    context_limit: int | None
    pooling: Pooling | None = None  # that the settings gave it
    base: Loaded | None = None  # of an adapter: what its base was made of

    @property
    def files(self) -> tuple[object, ...]:
        """What tells the files that were read, those of the base included, from other ones."""
        return _files(self)

    def reads_like(self, other: Loaded) -> bool:
        """Whether what was made ready for one is good for the other: estimates may differ, files and settings not."""
        return self._meaning == other._meaning

    @property
    def _meaning(self) -> tuple[object, ...]:
        return (self.files, self.context_limit, self.pooling)


@dataclass(slots=True, eq=False)
class Resident:
    """One model that the pool has met; the record stays when the model is unloaded, for its uses and measured sizes."""

    entry: ModelEntry
    base: Resident | None = None  # of an adapter: the model whose weights it shares
    adapters: dict[str, Resident] = field(default_factory=dict)  # that the pool has met, by id
    context_limit: int | None = None  # what the settings and the files say of its context, for the next load
    state: ModelState = ModelState.UNLOADED
    engine: Engine | None = None
    facts: EngineFacts | None = None  # measured at the last load
    loaded: Loaded | None = None  # what the last load was made of
    is_returning: bool = False  # it goes to be loaded again at once, although nothing may want it
    reload: str | None = None  # idle, now or next-load for this once, whatever its settings say
    queue: dict[int, Ticket] = field(default_factory=dict)  # requests that wait for the model, oldest first
    held: dict[int, Ticket] = field(default_factory=dict)  # requests with a lease
    waiting: dict[int, Sequence] = field(default_factory=dict)  # sequences that the engine does not know yet
    active: dict[int, Sequence] = field(default_factory=dict)  # sequences that the engine knows
    released_s: float = 0.0  # when a lease or a sequence last ended
    uses: float = 0.0  # as of `used_s`; they count for less as they age
    used_s: float = 0.0  # when the last was counted
    meter: TokenMeter = field(default_factory=TokenMeter)  # of its completion tokens
    is_forced: bool = False  # loaded against its estimate: no victim until it is unloaded by command
    is_dismissed: bool = False  # unloaded by command: the preload list does not bring it back
    load: asyncio.Future[Engine] | None = None  # while it loads
    abort_reason: str | None = None  # why that load was told to end before it is complete
    drain_reason: str = ""
    drain_started_s: float = 0.0
    unloads: int = 0
    load_started_s: float = 0.0
    load_done_bytes: int = 0
    load_total_bytes: int = 0
    error: MlxdError | None = None  # of the last load; None after a good one
    failures: int = 0
    is_second_try: bool = False  # the load ran out of memory, and is tried once more when idle models are freed
    retry_s: float = 0.0  # no load before this, but by command; infinity: none at all
    return_wait_s: float = 0.0  # of the preload list, after the system was short of memory with it; 0: none
    return_s: float = 0.0  # when that wait ends
    trim_target_bytes: int | None = None  # of the prompt cache, while a trim is under way
    untrimmable_bytes: int = 0  # what the last trim could not free
    blocked_reason: str | None = None  # why a wanted load does not start

    @property
    def id(self) -> str:
        """The model id."""
        return self.entry.id

    @property
    def files(self) -> tuple[object, ...]:
        """The same of a load that begins now; what was measured is void when it differs, and not for an estimate."""
        return _files(self)

    @property
    def is_refused(self) -> bool:
        """Whether nobody may load it, not even by command."""
        return self.state is ModelState.FAILED and math.isinf(self.retry_s)

    @property
    def weights_bytes(self) -> int:
        """Measured if it was ever loaded, else estimated."""
        return self._made_of.entry.weights_bytes if self.facts is None else self.facts.weights_bytes

    @property
    def kv(self) -> KvShape:
        """Measured if it was ever loaded, else estimated."""
        return self._made_of.entry.kv if self.facts is None else self.facts.kv

    @property
    def is_padded(self) -> bool:
        """Whether its rows share batches, as those of nearly all models do."""
        return self.facts is None or self.facts.decoding is not Decoding.ONE_BY_ONE

    @property
    def context_length(self) -> int | None:
        """What it has, or as far as is known will have, when it is loaded."""
        made_of = self._made_of
        if self.facts is not None and (self.engine is not None or made_of.context_limit is None):
            return self.facts.context_length
        return made_of.entry.context_length if made_of.context_limit is None else made_of.context_limit

    @property
    def _made_of(self) -> Loaded:
        """What it is made of in memory, or would be: files that change during a load change nothing of that load."""
        if self.state in PRESENT and self.loaded is not None:
            return self.loaded
        return Loaded(self.entry, self.context_limit)

    @property
    def prompt_cache_bytes(self) -> int:
        """What the engine's prompt cache holds, and its compiled grammars."""
        return 0 if self.engine is None else self.engine.prompt_cache_bytes

    @property
    def grammar_bytes(self) -> int:
        """The part of `prompt_cache_bytes` that compiled grammars take."""
        return 0 if self.engine is None else self.engine.grammar_bytes

    @property
    def prompts_too_large(self) -> int:
        """How many prompts its engine could not keep."""
        return 0 if self.engine is None else self.engine.prompts_too_large

    @property
    def holders(self) -> int:
        """How many requests keep it loaded; one that went away counts until the device has ended its sequences."""
        tickets = {ticket for ticket in self.held.values() if ticket.holds}
        return len(tickets | {sequence.ticket for sequence in self.active.values()})

    @property
    def is_used(self) -> bool:
        """Whether a request of its own keeps it loaded."""
        return bool(self.active) or any(ticket.holds for ticket in self.held.values())

    @property
    def is_busy(self) -> bool:
        """Whether a request of its own, or of an adapter on it, keeps it loaded."""
        return self.is_used or any(adapter.is_used for adapter in self.adapters.values())

    @property
    def is_held(self) -> bool:
        """Whether it cannot be unloaded now: a request keeps it, or the memory of an adapter on it is not free yet."""
        return self.is_used or any(adapter.state in PRESENT for adapter in self.adapters.values())

    @property
    def is_going(self) -> bool:
        """Whether its memory is on its way back for certain: freed now, or as soon as the adapters on it are."""
        if self.state is ModelState.UNLOADING or self.is_aborting:
            return True
        return self.state is ModelState.DRAINING and not self.is_busy

    @property
    def is_aborting(self) -> bool:
        """Whether its load was told to end before it is complete."""
        return self.state is ModelState.LOADING and self.abort_reason is not None

    @property
    def is_leaving(self) -> bool:
        """Whether it goes, or ends its load."""
        return self.state in LEAVING or self.is_aborting

    @property
    def loading(self) -> Resident | None:
        """What its requests wait to see loaded: itself or its base, if one of them loads."""
        for resident in (self, self.base):
            if resident is not None and resident.state is ModelState.LOADING:
                return resident
        return None

    @property
    def slots_taken(self) -> int:
        """Sequences that count against `engine.max_sequences`."""
        return sum(sequence.state is not SequenceState.PAUSED for sequence in self.active.values())

    @property
    def is_wanted(self) -> bool:
        """Whether a request waits for it, or for an adapter on it, to be loaded."""
        return bool(self.queue or self.waiting) or any(adapter.is_wanted for adapter in self.adapters.values())

    @property
    def is_wanted_by_force(self) -> bool:
        """Whether a command wants it, or an adapter on it, loaded although the estimate says that it does not fit."""
        if any(ticket.force for ticket in self.queue.values()):
            return True
        return any(adapter.is_wanted_by_force for adapter in self.adapters.values())

    @property
    def oldest_wait(self) -> Age | None:
        """The age of its oldest waiting request, those of its adapters included."""
        ages = [(0, ticket.turn, 0) for ticket in self.queue.values()]
        ages += [sequence.age for sequence in self.waiting.values()]
        ages += [age for adapter in self.adapters.values() if (age := adapter.oldest_wait) is not None]
        return min(ages, default=None)

    @property
    def oldest_wait_since_s(self) -> float:
        """When the longest of its present waits began; infinity without one."""
        waits = [ticket.since_s for ticket in self.queue.values()]
        waits += [sequence.since_s for sequence in self.waiting.values()]
        waits += [adapter.oldest_wait_since_s for adapter in self.adapters.values()]
        return min(waits, default=math.inf)

    def fail_waiting(self, error: MlxdError) -> None:
        """Let every request that waits for the model, for a place in it, or for an adapter on it, raise *error*."""
        for ticket in list(self.queue.values()):
            ticket.fail(error)
        self.queue.clear()
        for sequence in list(self.waiting.values()):
            sequence.fail(error)
        for adapter in self.adapters.values():
            adapter.fail_waiting(error)

    def count_use(self, now: float) -> None:
        """Count a request that has got the model; one for an adapter uses its base as well."""
        self.uses = self.uses_at(now) + 1
        self.used_s = now
        if self.base is not None:
            self.base.count_use(now)

    def uses_at(self, now: float) -> float:
        """Return how often it has been used, each use halved for every half-life since."""
        return float(self.uses * 0.5 ** ((now - self.used_s) / USE_HALF_LIFE_S))

    def touch(self, now: float) -> None:
        """Note that it is in use; what uses an adapter uses its base."""
        self.released_s = now
        if self.base is not None:
            self.base.released_s = now

    def restart_waits(self, now: float) -> None:
        """Count the waits of its requests from now: they have had another deadline until here."""
        for ticket in self.queue.values():
            ticket.since_s = now
        for sequence in self.waiting.values():
            sequence.since_s = now
        for adapter in self.adapters.values():
            adapter.restart_waits(now)

    def enter(self, state: ModelState) -> None:
        """Change the state.

        Raises:
            RuntimeError: the table does not allow it.
        """
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.id} cannot go from {self.state.value} to {state.value}")
        self.state = state


def _files(made_of: Loaded | Resident) -> tuple[object, ...]:
    base = () if made_of.base is None else _files(made_of.base)
    return (made_of.entry.path, made_of.entry.signature, *base)
