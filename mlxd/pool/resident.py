"""The pool's records: a model (`Resident`), a request (`Ticket`) and what it generates (`Sequence`). No decisions."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from enum import Enum

from mlxd.catalog import ModelEntry
from mlxd.engine.base import Decoding, Engine, EngineFacts, GenerationRequest, PreparedPrompt
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.vector import PreparedInputs
from mlxd.pool.event import EventBuffer, copy_error
from mlxd.pool.lifecycle import LEAVING, PRESENT, TRANSITIONS, Backoff, Comeback, LastLoad, ModelState, Origin, Uses
from mlxd.pool.meter import TokenMeter
from mlxd.pool.policy import Age
from mlxd.protocol.errors import MlxdError

# KV is granted for the prompt and this many tokens, and grown by as many.
STEP_TOKENS = 1024


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
    load: LastLoad = field(default_factory=LastLoad)  # the last one
    unloads: int = 0
    leave_reason: str = ""  # why it drains, or why its load is aborted
    drain_started_s: float = 0.0
    comeback: Comeback = Comeback.BY_LIST
    reload: str | None = None  # idle, now or next-load for this once, whatever its settings say
    queue: dict[int, Ticket] = field(default_factory=dict)  # requests that wait for the model, oldest first
    held: dict[int, Ticket] = field(default_factory=dict)  # requests with a lease
    waiting: dict[int, Sequence] = field(default_factory=dict)  # sequences that the engine does not know yet
    active: dict[int, Sequence] = field(default_factory=dict)  # sequences that the engine knows
    released_s: float = 0.0  # when a lease or a sequence last ended
    uses: Uses = field(default_factory=Uses)
    meter: TokenMeter = field(default_factory=TokenMeter)  # of its completion tokens
    error: MlxdError | None = None  # of the last load; None after a good one
    backoff: Backoff = field(default_factory=Backoff)
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
        """The files of a load that begins now; what was measured is void when they differ, and not for an estimate."""
        return (self.entry.path, self.entry.signature, *(() if self.base is None else self.base.files))

    @property
    def is_refused(self) -> bool:
        """Whether nobody may load it, not even by command."""
        return self.state is ModelState.FAILED and math.isinf(self.backoff.retry_s)

    @property
    def is_forced(self) -> bool:
        """Whether it is in memory against its estimate: no victim until it is unloaded by command."""
        return self.state in PRESENT and self.load.is_forced

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
    def _made_of(self) -> Origin:
        """What it is made of in memory, or would be: files that change during a load change nothing of that load."""
        if self.state in PRESENT and self.load.origin is not None:
            return self.load.origin
        return Origin(self.entry, self.context_limit)

    @property
    def prompt_cache_bytes(self) -> int:
        """What the engine's prompt cache holds, and its compiled grammars."""
        return 0 if self.engine is None else self.engine.prompt_cache_bytes

    @property
    def grammar_bytes(self) -> int:
        """The part of `prompt_cache_bytes` that compiled grammars take."""
        return 0 if self.engine is None else self.engine.grammar_bytes

    @property
    def holders(self) -> int:
        """How many requests keep it loaded; one that went away counts until the device has ended its sequences."""
        tickets = {ticket for ticket in self.held.values() if ticket.holds}
        return len(tickets | {sequence.ticket for sequence in self.active.values()})

    @property
    def has_own_requests(self) -> bool:
        """Whether a request of its own keeps it loaded."""
        return bool(self.active) or any(ticket.holds for ticket in self.held.values())

    @property
    def has_requests(self) -> bool:
        """Whether a request of its own, or of an adapter on it, keeps it loaded."""
        return self.has_own_requests or any(adapter.has_own_requests for adapter in self.adapters.values())

    @property
    def can_unload(self) -> bool:
        """Whether no request keeps it, and the memory of all adapters on it is free."""
        return not self.has_own_requests and all(adapter.state not in PRESENT for adapter in self.adapters.values())

    @property
    def is_certain_to_go(self) -> bool:
        """Whether its memory is on its way back for certain: freed now, or as soon as the adapters on it are."""
        if self.state is ModelState.DRAINING:
            return not self.has_requests
        return self.state in {ModelState.UNLOADING, ModelState.ABORTING}

    @property
    def is_loading(self) -> bool:
        """Whether its load is under way, also when it was told to end."""
        return self.state in {ModelState.LOADING, ModelState.ABORTING}

    @property
    def is_leaving(self) -> bool:
        """Whether it goes, or ends its load."""
        return self.state in LEAVING or self.state is ModelState.ABORTING

    @property
    def loading(self) -> Resident | None:
        """What its requests wait to see loaded: itself or its base, if one of them loads."""
        for resident in (self, self.base):
            if resident is not None and resident.is_loading:
                return resident
        return None

    @property
    def slots_taken(self) -> int:
        """Sequences that count against `engine.max_sequences`."""
        return sum(sequence.state is not SequenceState.PAUSED for sequence in self.active.values())

    @property
    def has_waiters(self) -> bool:
        """Whether a request waits for it, or for an adapter on it, to be loaded."""
        return bool(self.queue or self.waiting) or any(adapter.has_waiters for adapter in self.adapters.values())

    @property
    def has_forcing_waiters(self) -> bool:
        """Whether a command wants it, or an adapter on it, loaded although the estimate says that it does not fit."""
        if any(ticket.force for ticket in self.queue.values()):
            return True
        return any(adapter.has_forcing_waiters for adapter in self.adapters.values())

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
        self.uses = self.uses.plus_one(now)
        if self.base is not None:
            self.base.count_use(now)

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

    def stop_returning(self) -> None:
        """Load it again for requests and the preload list only."""
        if self.comeback is Comeback.AT_ONCE:
            self.comeback = Comeback.BY_LIST

    def enter(self, state: ModelState) -> None:
        """Change the state.

        Raises:
            RuntimeError: the table does not allow it.
        """
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.id} cannot go from {self.state.value} to {state.value}")
        self.state = state


class SequenceState(Enum):
    """Where a sequence is. Only the device's own word moves it to PAUSED and ENDED."""

    WAITING = "waiting"  # for a slot or for KV; the engine does not know it
    RUNNING = "running"
    PAUSING = "pausing"  # told to give its KV back
    PAUSED = "paused"
    ENDING = "ending"  # told to end
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Ticket:
    """One request at one model, from its arrival until its lease is given back."""

    number: int  # by its arrival: lower is older
    request_id: str
    resident: Resident
    since_s: float  # when its present wait began
    granted: asyncio.Future[None]
    arrived_s: float
    is_command: bool = False  # `model load`: wants the model loaded, not leased
    force: bool = False  # a command that passes an estimate which does not fit
    granted_s: float | None = None
    preparing: int = 0
    prepared_for: Origin | None = None  # what was loaded when its prompt or texts were made ready
    started: bool = False  # a sequence of it has been submitted
    is_told: bool = False  # `queue.joined` was told and `queue.left` was not yet
    revoked: MlxdError | None = None  # aborted by an operator: holds nothing any more
    sequences: dict[int, Sequence] = field(default_factory=dict)  # not ended, oldest first
    turn: int = field(init=False)  # its age: its number, and a new one when the oldest of several answers has ended

    def __post_init__(self) -> None:
        """Let it come in the order of arrival."""
        self.turn = self.number

    @property
    def is_waiting_only(self) -> bool:
        """Whether all it does is wait for a slot or KV, so that its model may be unloaded beneath it."""
        if self.preparing > 0 or not self.sequences:
            return False
        return all(
            sequence.state is SequenceState.WAITING and not sequence.is_fresh for sequence in self.sequences.values()
        )

    @property
    def holds(self) -> bool:
        """Whether it keeps its model loaded."""
        return self.revoked is None and not self.is_waiting_only

    def grant(self) -> None:
        """Let the waiting task go on."""
        if not self.granted.done():
            self.granted.set_result(None)

    def fail(self, error: MlxdError) -> None:
        """Let the waiting task raise."""
        if not self.granted.done():
            self.granted.set_exception(copy_error(error))
            self.granted.exception()  # the task may have been cancelled: nobody is left to look


@dataclass(slots=True, eq=False)
class Sequence:
    """One generation, or one list of texts that become vectors."""

    number: int
    ticket: Ticket
    request: GenerationRequest | None  # None: vectors
    prompt: PreparedPrompt | PreparedInputs
    tokens: int  # prompt + generated, as far as it matters: what the next prefill has to process
    since_s: float  # when its present wait began
    place: int = 0  # how many older answers of its request have not ended
    events: EventBuffer = field(default_factory=EventBuffer)
    state: SequenceState = SequenceState.WAITING
    completion_tokens: int = 0  # as the engine has told
    granted_tokens: int = 0  # what the ledger holds for it; 0 when the device holds nothing
    checkpoint_bytes: int = 0  # what it may keep for the prompt cache beside that
    left_tokens: int = 0  # its grant before that, until the device has shown that it knows the new one; else 0
    wanted_tokens: int | None = None  # asked for by KvLow and not granted yet
    is_scored: bool = False  # its reader has the logprobs of the prompt
    is_fresh: bool = True  # in its first pump: it may still start on a model that drains
    waits_for_slot: bool = False  # else for memory
    is_second_try: bool = False  # it ran out of memory before it had answered anything, and begins once more

    @property
    def age(self) -> Age:
        """Lower is older: the further answers of a request are younger than the first of every other."""
        return (self.place, self.ticket.turn, self.number)

    @property
    def resident(self) -> Resident:
        """Its model."""
        return self.ticket.resident

    @property
    def final_tokens(self) -> int:
        """The greatest length it can reach."""
        return self.prompt.final_tokens

    def wanted_checkpoint_bytes(self, most: int | None = None) -> int:
        """Return what it would keep on its way in at most so many checkpoints, where layers cannot be cut."""
        prompt = self.prompt
        if self.state is not SequenceState.WAITING or not isinstance(prompt, PreparedPrompt):
            return 0
        # One where it parts from what is known, and three in a text that says nothing of its ends.
        checkpoints = 1 + (len(prompt.checkpoints) or 3)
        if most is not None:
            checkpoints = min(checkpoints, most)
        return checkpoints * self.resident.kv.checkpoint_bytes(prompt.prefill_tokens)

    @property
    def first_grant_tokens(self) -> int:
        """What to grant when it starts or resumes."""
        return min(self.tokens + STEP_TOKENS, self.final_tokens)

    @property
    def next_grant_tokens(self) -> int:
        """What to grant when it nears its grant."""
        return min(self.granted_tokens + STEP_TOKENS, self.final_tokens)

    def begin_again(self, now: float) -> None:
        """Let it wait for its start once more: the device has forgotten it, and its reader has had nothing."""
        self.state = SequenceState.WAITING
        self.hold_nothing()
        self.since_s = now
        self.is_second_try = True
        self.resident.active.pop(self.number, None)
        self.resident.waiting[self.number] = self

    def hold_nothing(self) -> None:
        """Note that the device holds nothing of it."""
        self.granted_tokens = 0
        self.checkpoint_bytes = 0
        self.left_tokens = 0
        self.wanted_tokens = None

    def end(self) -> None:
        """Forget it everywhere: the device holds nothing of it, or never did."""
        self.state = SequenceState.ENDED
        self.hold_nothing()
        self.resident.waiting.pop(self.number, None)
        self.resident.active.pop(self.number, None)
        self.ticket.sequences.pop(self.number, None)
        for place, sequence in enumerate(self.ticket.sequences.values()):
            sequence.place = place

    def fail(self, error: MlxdError) -> None:
        """End it before it has started, with an error for its reader."""
        self.events.put(copy_error(error))
        self.end()
