"""The pool's records of a request (`Ticket`) and of what it generates (`Sequence`). Data and facts, no decisions."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from mlxd.engine.base import GenerationRequest, PreparedPrompt, SequenceEvent
from mlxd.engine.vector import PreparedInputs
from mlxd.pool.policy import Age
from mlxd.protocol.errors import MlxdError

if TYPE_CHECKING:
    from mlxd.pool.resident import Loaded, Resident

# KV is granted for the prompt and this many tokens, and grown by as many.
STEP_TOKENS = 1024


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
    prepared_for: Loaded | None = None  # what was loaded when its prompt or texts were made ready
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


class EventBuffer:
    """What a sequence's reader has not taken yet; one reader."""

    def __init__(self) -> None:
        """Begin empty."""
        self._items: deque[SequenceEvent | MlxdError] = deque()
        self._reader: asyncio.Future[None] | None = None

    def put(self, item: SequenceEvent | MlxdError) -> None:
        """Add an event, or the error to end with."""
        self._items.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> SequenceEvent:
        """Return the next event, or raise the error."""
        while not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        item = self._items.popleft()
        if isinstance(item, MlxdError):
            raise item
        return item


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


def copy_error(error: MlxdError) -> MlxdError:
    """Return an equal error: one instance raised in several tasks would gather all their tracebacks."""
    return type(error)(
        error.message,
        hint=error.hint,
        param=error.param,
        code=error.code,
        retry_after_s=error.retry_after_s,
        data=dict(error.data),
    )
