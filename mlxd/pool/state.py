"""The pool's whole state in one place, and the questions that its parts ask of it. No decisions, no effects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from mlxd.catalog import ModelEntry, context_limit, pooling_of
from mlxd.clock import Clock
from mlxd.engine.base import BackendLimits
from mlxd.pool import ledger
from mlxd.pool.event import OnEvent, PoolEvent
from mlxd.pool.lifecycle import PRESENT, Comeback, ModelState
from mlxd.pool.meter import TokenMeter
from mlxd.pool.policy import Age, Candidate, Rank, View
from mlxd.pool.resident import Resident, Sequence, SequenceState, Ticket
from mlxd.protocol.errors import ModelNotFound
from mlxd.protocol.settings import Settings


class Models(Protocol):
    """What the pool asks of the catalog."""

    def get(self, model_id: str) -> ModelEntry:
        """Return the model or raise `ModelNotFound`."""


class PoolState:
    """Residents by model id, the live settings, and what was learnt on the way."""

    def __init__(
        self, catalog: Models, settings: Settings, clock: Clock, on_event: OnEvent, first_number: int = 1
    ) -> None:
        self.catalog = catalog
        self.settings = settings
        self.clock = clock
        self.residents: dict[str, Resident] = {}
        self.is_draining = False  # the daemon is shutting down
        self.deferred: dict[str, str] = {}  # preloads that wait or cannot be found, and why
        self.coming: set[str] = set()  # those of them that load when what is under way has ended
        self.mean_service_s = 1.0  # of recent leases
        self.meter = TokenMeter()  # of all completion tokens
        self.prompt_tokens = 0  # of all sequences that have ended
        self.pressure: str | None = None  # why the system's memory is short, while it is: no load starts
        self.pressure_until_s = 0.0
        self.spare_bytes: int | None = None  # what the system can spare; None when nobody can tell
        self._on_event = on_event
        self._numbers = itertools.count(first_number)

    def next_number(self) -> int:
        """Return the next number of a request or a sequence; later is younger."""
        return next(self._numbers)

    def tell_waiting(self, ticket: Ticket) -> None:
        """Tell, once, that a request waits; `waiting_tickets` has the same ones, but for those that start at once."""
        if not (ticket.is_told or ticket.started or ticket.is_command):
            ticket.is_told = True
            self.emit("queue.joined", ticket.resident.id, "", {"request": ticket.request_id})

    def tell_not_waiting(self, ticket: Ticket) -> None:
        """Tell that a request has started, or that it is gone."""
        if ticket.is_told:
            ticket.is_told = False
            data = {
                "request": ticket.request_id,
                "started": ticket.started,
                "waited_ms": round(1000 * (self.clock.now() - ticket.arrived_s)),
            }
            self.emit("queue.left", ticket.resident.id, "", data)

    def emit(self, kind: str, model_id: str | None, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Report an event."""
        self._on_event(PoolEvent(kind, model_id, message, {} if data is None else data))

    def resident(self, model_id: str) -> Resident:
        """Return the model's record, made at the first request.

        Raises:
            ModelNotFound: no such model, or one that cannot be served.
        """
        entry = self.servable(model_id)
        found = self.residents.get(model_id)
        if found is None:
            base = None if entry.base is None else self.resident(entry.base)
            found = self.residents[model_id] = Resident(entry, base)
            found.context_limit = context_limit(self.settings, entry)
            if base is not None:
                base.adapters[model_id] = found
        return found

    def servable(self, model_id: str) -> ModelEntry:
        """Return what the disk has of a model that can be loaded.

        Raises:
            ModelNotFound: no such model, or one that cannot be served.
        """
        entry = self.catalog.get(model_id)
        if entry.problem is not None:
            raise ModelNotFound(
                f"the model {model_id!r} cannot be served: {entry.problem}",
                param="model",
                hint=f"mlxctl model show {model_id}",
            )
        return entry

    def forget(self, resident: Resident) -> None:
        """Drop the record of a model that is not loaded."""
        del self.residents[resident.id]
        if resident.base is not None:
            resident.base.adapters.pop(resident.id, None)

    @property
    def present(self) -> list[Resident]:
        """Models that the ledger holds bytes for."""
        return [resident for resident in self.residents.values() if resident.state in PRESENT]

    @property
    def running(self) -> list[Sequence]:
        """Sequences that make tokens, of all models."""
        return [
            sequence
            for resident in self.residents.values()
            for sequence in resident.active.values()
            if sequence.state is SequenceState.RUNNING
        ]

    @property
    def tickets(self) -> set[Ticket]:
        """All requests of all models."""
        return {
            ticket
            for resident in self.residents.values()
            for tickets in (resident.queue, resident.held)
            for ticket in tickets.values()
        }

    @property
    def held_bytes(self) -> int:
        """All that is reserved."""
        return sum(ledger.held_bytes(resident) for resident in self.present)

    def held_bytes_of(self, model_id: str) -> int:
        """Return what is reserved for one model; 0 for one that is not there."""
        resident = self.residents.get(model_id)
        return 0 if resident is None else ledger.held_bytes(resident)

    @property
    def free_bytes(self) -> int:
        """What can be reserved now; negative when the pool is over its limit."""
        return self.settings.pool.memory - self.held_bytes

    @property
    def is_over_limit(self) -> bool:
        """Whether more is reserved, or more models are loaded, than the settings allow."""
        pool = self.settings.pool
        return self.held_bytes > pool.memory or (pool.max_models is not None and self.model_count > pool.max_models)

    @property
    def model_count(self) -> int:
        """What counts against `pool.max_models`: adapters do not, they live on their base."""
        return sum(resident.base is None for resident in self.present)

    @property
    def is_freeing(self) -> bool:
        """Whether memory is on its way back for certain; a draining model may itself wait for memory."""
        return any(
            resident.state in {ModelState.UNLOADING, ModelState.ABORTING} or resident.trim_target_bytes is not None
            for resident in self.present
        )

    def rank(self, resident: Resident) -> Rank:
        """Return what protects a model, or an adapter on it."""
        model = self.settings.models.get(resident.id)
        if resident.is_forced or (model is not None and model.pin):
            return Rank.PINNED
        own = Rank.PRELOADED if self._is_preloaded(resident) else Rank.ORDINARY
        ranks = [self.rank(adapter) for adapter in resident.adapters.values() if adapter.state in PRESENT]
        return max([own, *ranks])

    def _is_preloaded(self, resident: Resident) -> bool:
        """Whether the preload list wants it, or an adapter on it that comes back."""
        preload = self.settings.pool.preload
        if resident.id in preload:
            return True
        return any(
            adapter.id in preload and adapter.comeback is not Comeback.NEVER for adapter in resident.adapters.values()
        )

    def stale_reason(self, resident: Resident, settings: Settings | None = None) -> str | None:
        """Return in what a loaded model differs from what a load would make of it now; None when in nothing."""
        loaded = resident.load.origin
        if resident.state not in PRESENT or loaded is None:
            return None
        if loaded.entry.path != resident.entry.path:
            return f"it was loaded from {loaded.entry.path}, and is {resident.entry.path} now"
        if loaded.entry.signature != resident.entry.signature:
            return "its files have changed"
        settings = self.settings if settings is None else settings
        pooling = pooling_of(settings, resident.id)
        if pooling != loaded.pooling:
            words = "its folder says" if pooling is None else f"models.{resident.id}.pooling says, {pooling.value}"
            return f"its vectors are to be pooled as {words}"
        limit = context_limit(settings, resident.entry)
        if limit != loaded.context_limit:
            words = "its own" if limit is None else f"{limit} tokens"
            return f"its context is to be {words} instead of {resident.context_length}"
        return None

    def reload_mode(self, resident: Resident, settings: Settings | None = None) -> str:
        """Return when it is to take up what makes it stale: idle, now or next-load."""
        settings = self.settings if settings is None else settings
        model = settings.models.get(resident.id)
        if resident.reload is not None:
            return resident.reload
        return "idle" if model is None else model.reload

    def keep_alive_s(self, resident: Resident) -> float:
        """Return how long it may be idle; infinity means forever."""
        model = self.settings.models.get(resident.id)
        if model is None or model.keep_alive is None:
            return self.settings.pool.keep_alive
        return model.keep_alive

    def expiry_s(self, resident: Resident) -> float:
        """Return when it expires; infinity when it is busy, protected or kept forever."""
        is_ordinary = self.rank(resident) is Rank.ORDINARY
        if resident.state is not ModelState.READY or not is_ordinary or not resident.can_unload or resident.has_waiters:
            return math.inf
        return resident.released_s + self.keep_alive_s(resident)

    def view(self, *, age: Age | None = None, target: Resident | None = None, tokens: int = 0) -> View:
        """Return what a plan is made from.

        Args:
            age: of the demand that is planned for: sequences younger than that may have to pause for it.
            target: the model that a sequence of *tokens* is to start in.
            tokens: what that sequence would be granted.
        """
        return View(
            limit_bytes=self.settings.pool.memory,
            max_models=self.settings.pool.max_models,
            policy=self.settings.pool.policy,
            candidates=tuple(
                Candidate(
                    model_id=resident.id,
                    held_bytes=ledger.held_bytes(resident),
                    settled_bytes=ledger.settled_bytes(resident),
                    floor_bytes=ledger.floor_bytes(resident),
                    trimmable_bytes=ledger.trimmable_bytes(resident, tokens if resident is target else 0),
                    pausable_bytes=ledger.pausable_bytes(resident, age),
                    rank=self.rank(resident),
                    # A base does not go while something loads on it.
                    is_ready=resident.state is ModelState.READY
                    and not any(adapter.is_loading for adapter in resident.adapters.values()),
                    is_loading=resident.is_loading,
                    is_leaving=resident.is_leaving,
                    has_requests=resident.has_requests,
                    oldest_wait=resident.oldest_wait,
                    released_s=resident.released_s,
                    uses=resident.uses.at(self.clock.now()),
                    base=None if resident.base is None else resident.base.id,
                )
                for resident in self.present
            ),
        )

    @staticmethod
    def limits_of(settings: Settings) -> BackendLimits:
        """Return what MLX is told under these settings."""
        limit_bytes = settings.pool.memory
        return BackendLimits(limit_bytes, ledger.free_buffers_bytes(limit_bytes))

    def waiting_tickets(self) -> Iterator[Ticket]:
        """Yield the requests that have not started and cannot start at once, oldest first within each model."""
        for resident in self.residents.values():
            unstarted = [
                ticket
                for ticket in {**resident.queue, **resident.held}.values()
                if not ticket.started and not ticket.is_command and ticket.revoked is None
            ]
            yield from sorted(unstarted, key=lambda ticket: ticket.number)[self._free_slots(resident) :]

    def _free_slots(self, resident: Resident) -> int:
        """Return how many more requests can start at once."""
        if resident.state is not ModelState.READY or resident.waiting:
            return 0
        return max(0, self.settings.engine.max_sequences - resident.slots_taken)
