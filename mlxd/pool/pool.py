"""The pool's public face: leases, loads, settings, status, shutdown. Everything is called on the event loop.

Owns residents, leases, the wait queue and the memory ledger. Must not import mlx, mlx_lm or aiohttp.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from mlxd.catalog import context_limit
from mlxd.clock import Clock
from mlxd.engine.base import Backend, SchedulingParams
from mlxd.pool import check, dry_run, intervention, policy, report
from mlxd.pool.estimate import estimate
from mlxd.pool.event import OnEvent, copy_error
from mlxd.pool.lease import Lease
from mlxd.pool.lifecycle import PRESENT, Backoff, Comeback, ModelState
from mlxd.pool.loader import Noted, unnoted
from mlxd.pool.scheduler import Scheduler
from mlxd.pool.state import Models, PoolState
from mlxd.pool.status import DeviceStatus, MemoryEstimate, PoolPlan, PoolStatus
from mlxd.pool.task import LoopTasks
from mlxd.protocol.errors import Draining, LoadFailed, MlxdError, ModelNotFound, RequestCancelled
from mlxd.protocol.settings import Settings

# A long step of the device must not hold up an operator's question.
DEVICE_PATIENCE_S = 0.5


class Pool:
    """Keeps models loaded within the memory limit and hands out leases on them."""

    def __init__(
        self,
        backend: Backend,
        catalog: Models,
        settings: Settings,
        *,
        clock: Clock,
        usable_bytes: int,
        on_event: OnEvent,
        noted: Noted = unnoted,
    ) -> None:
        """Take all collaborators; nothing happens before `start`."""
        self._backend = backend
        self._usable_bytes = usable_bytes
        self._state = PoolState(catalog, settings, clock, on_event)
        self._tasks = LoopTasks()
        self._scheduler = Scheduler(self._state, backend, self._tasks, noted)

    async def start(self) -> None:
        """Tell the backend its limits and begin with the preload list, in order; returns at once and never fails."""
        self._backend.set_limits(PoolState.limits_of(self._state.settings))
        self._backend.set_scheduling(scheduling_params(self._state.settings))
        self._scheduler.pump()

    @asynccontextmanager
    async def lease(self, model_id: str, *, request_id: str) -> AsyncIterator[Lease]:
        """Wait for the model to be ready and hold it: now, or after queueing, evicting, loading.

        Raises (on entering):
            ModelNotFound: no such model on disk, or it cannot be served; with the nearest names.
            QueueFull: too many requests wait already.
            QueueTimeout, LoadTimeout: it waited for a place, or for the load, as long as the settings allow.
            LoadFailed: with the cause, also during the backoff after a failed load.
            DoesNotFit: it can never fit under the limit; nothing was evicted for it.
            ModelUnloaded: the model was unloaded by command meanwhile.
            Draining: the daemon is shutting down.
        """
        ticket = self._scheduler.join(model_id, request_id)
        try:
            await ticket.granted
            yield Lease(ticket, self._scheduler)
        finally:
            # Also for a task that is cancelled after its ticket was granted and before it could run.
            self._scheduler.leave(ticket)

    async def load(self, model_id: str, *, force: bool = False) -> None:
        """Load the model and return when it is ready; a load that runs already is joined.

        Args:
            model_id: a model of the catalog.
            force: load it although its estimate does not fit under the limit; it then stays until it is unloaded.

        Raises:
            ModelNotFound, QueueTimeout, LoadTimeout, LoadFailed, DoesNotFit, ModelUnloaded, Draining: as `lease`.
        """
        ticket = self._scheduler.join(model_id, "model load", is_command=True, force=force)
        try:
            await ticket.granted
        finally:
            self._scheduler.leave(ticket)

    async def unload(self, model_id: str, *, force: bool = False) -> bool:
        """Unload the model when its requests have ended and return when it is gone; False if it was not loaded.

        The adapters on it go with it; a base stays when an adapter on it goes.
        Requests that have not started get `ModelUnloaded`. A preloaded model stays away until something asks for it.

        Args:
            model_id: a model of the catalog, or one that is loaded and has left it.
            force: end its running requests with `RequestCancelled` instead of waiting for them.

        Raises:
            ModelNotFound: no such model.
        """
        resident = intervention.resident_of(self._state, model_id)
        was_present = resident.state in PRESENT
        unloads = resident.unloads
        intervention.begin_unload(self._state, self._scheduler, resident, force=force)
        await self._scheduler.conditions.wait_until(lambda: resident.unloads > unloads or resident.state not in PRESENT)
        return was_present

    def refuse(self, model_id: str, error: LoadFailed) -> None:
        """Let nobody load the model, not even by command, until `reset` or until its files change; *error* says why.

        Raises:
            ModelNotFound: no such model.
        """
        resident = self._state.resident(model_id)
        if resident.state is ModelState.UNLOADED:
            resident.enter(ModelState.FAILED)
            resident.error = error
            resident.backoff = Backoff(failures=1, retry_s=math.inf)

    def reset(self, model_id: str) -> bool:
        """Forget that loads of the model have failed, so that the next one is tried at once; False if none has.

        Raises:
            ModelNotFound: no such model.
        """
        resident = self._state.resident(model_id)
        had_failed = resident.backoff.failures > 0
        resident.backoff, resident.error = Backoff(), None
        resident.return_wait_s = 0.0
        if resident.state is ModelState.FAILED:
            resident.enter(ModelState.UNLOADED)
        self._scheduler.pump()
        return had_failed

    def reload(self, model_id: str, mode: str | None) -> None:
        """Let the model take up what makes it stale when *mode* says (idle, now, next-load), this once.

        None takes the mode of its settings again.

        Raises:
            ModelNotFound: no such model.
        """
        self._state.resident(model_id).reload = mode
        self._scheduler.pump()

    def reload_mode(self, model_id: str) -> str:
        """Return when the model takes up what makes it stale: idle, now or next-load.

        Raises:
            ModelNotFound: no such model.
        """
        return self._state.reload_mode(self._state.resident(model_id))

    async def wait_reloaded(self, model_id: str) -> None:
        """Return when the model is not stale any more: loaded again, or not loaded.

        Raises:
            MlxdError: why it could not be loaded again.
        """
        state = self._state
        resident = state.residents.get(model_id)
        if resident is None:
            return
        await self._scheduler.conditions.wait_until(
            lambda: not (state.stale_reason(resident) or resident.comeback is Comeback.AT_ONCE or resident.loading)
        )
        if resident.state is ModelState.FAILED and resident.error is not None:
            raise copy_error(resident.error)

    def report_pressure(self, reason: str | None, spare_bytes: int | None = None) -> None:
        """Take a sample of the system's memory.

        While it is short no load starts (but by force), and with each sample idle models unload: ordinary ones, then
        preloaded ones, never pinned ones. It is over when no sample has said so for a while. What the preload list then
        brings back waits longer each time, and until the system can spare what it needs.

        Args:
            reason: why it is critically short, in words; None while it is not.
            spare_bytes: what can be taken before it is; None where nobody can tell.
        """
        self._state.spare_bytes = spare_bytes
        if reason is not None:
            self._scheduler.pressure.press(reason)
        if reason is not None or self._state.deferred:
            self._scheduler.pump()

    def status(self) -> PoolStatus:
        """Return a snapshot."""
        return report.build_status(self._state)

    async def device(self) -> DeviceStatus | None:
        """Return MLX's counters beside the ledger's sum; None when the device is too busy to say soon, or closed."""
        try:
            async with asyncio.timeout(DEVICE_PATIENCE_S):
                counters = await self._backend.memory()
        except (TimeoutError, MlxdError):
            return None
        return report.compare_device(self._state, counters)

    @property
    def queue_length(self) -> int:
        """How many requests wait that could not start at once."""
        return sum(1 for _ in self._state.waiting_tickets())

    @property
    def ready(self) -> bool:
        """Whether the preload list is done with (loaded, deferred or failed) and the daemon is not shutting down."""
        state = self._state
        preloads = (report.preload_status(state, model_id) for model_id in state.settings.pool.preload)
        return not state.is_draining and not any(preload.state == "loading" for preload in preloads)

    def estimate(self, model_id: str, tokens: int | None = None, rows: int = 1) -> MemoryEstimate:
        """Return what the model takes with *rows* sequences of *tokens* each, and what would give way for it.

        Raises:
            ModelNotFound: no such model.
        """
        return estimate(self._state, model_id, tokens, rows)

    def plan_load(self, model_id: str, *, force: bool = False) -> PoolPlan:
        """Return what `load` would begin now; changes nothing.

        Raises:
            ModelNotFound, DoesNotFit, Draining: as `load`.
        """
        return dry_run.plan_load(self._state, model_id, force=force)

    def plan_unload(self, model_id: str, *, force: bool = False) -> PoolPlan:
        """Return what `unload` would begin now; changes nothing.

        Raises:
            ModelNotFound: as `unload`.
        """
        return dry_run.plan_unload(self._state, model_id, force=force)

    def evict(self, model_id: str | None, *, force: bool = False, dry: bool = False) -> tuple[PoolPlan, dict[str, str]]:
        """Let a model go as for another's load, or without a name all idle ordinary ones; what waits for it stays.

        Args:
            model_id: a model; None means those that are idle and neither pinned nor preloaded.
            force: let a busy model go as well, when its requests have ended.
            dry: change nothing.

        Returns:
            what has begun (or would begin), and why each of the other loaded models stays.

        Raises:
            ModelNotFound: no such model.
            InUse: pinned, preloaded, loading, or busy and not forced.
        """
        state = self._state
        if model_id is None:
            victims = policy.plan_relief(state.view()).evict
        else:
            resident = intervention.resident_of(state, model_id)
            victims = (model_id,) if check.check_evict(state, resident, force=force) else ()
        kept = {other.id: report.activity(state, other) for other in state.present if other.id not in victims}
        if dry:
            return dry_run.plan_evict(state, victims), kept
        outset = intervention.Outset(state)
        intervention.begin_evict(state, self._scheduler, victims)
        return outset.begun(), kept

    def check(self, new: Settings, *, force: bool) -> list[str]:
        """Refuse settings that the pool cannot honour, and return warnings for those that it can with a reservation.

        Only what differs from the live settings is judged, so that an old trouble does not block another change.

        Raises:
            InsufficientCapacity: a limit below the pinned models, above usable memory, or a preload list that cannot
                fit; *force* turns these into warnings (pins stay, the tail of the list is deferred).
            InvalidValue: an unknown model in `pool.preload` or pinned in `[models]`, with the nearest names.
        """
        return check.check(self._state, new, self._usable_bytes, force=force)

    def plan(self, new: Settings) -> PoolPlan:
        """Return what `apply` would begin now, and what that leads to; changes nothing."""
        return dry_run.plan_settings(self._state, new)

    def apply(self, new: Settings) -> PoolPlan:
        """Take *new* as the live settings, and return what that has begun. Synchronous; cannot fail."""
        state = self._state
        outset = intervention.Outset(state, new)
        old = state.settings
        if new.pool.memory != old.pool.memory:
            self._backend.set_limits(PoolState.limits_of(new))
        if scheduling_params(new) != scheduling_params(old):
            self._backend.set_scheduling(scheduling_params(new))
        intervention.take_settings(state, self._scheduler, new)
        return outset.begun()

    async def wait_settled(self, begun: PoolPlan, timeout_s: float | None = None) -> tuple[str, ...]:
        """Wait until the evictions, drains and loads of a change are done; return what is still busy, in words.

        Args:
            begun: what `apply` returned.
            timeout_s: how long; None takes `pool.drain_timeout`.
        """
        settling = intervention.Settling(self._state, begun)
        if timeout_s is None:
            timeout_s = self._state.settings.pool.drain_timeout
        await self._scheduler.conditions.wait_until(lambda: not settling.busy(), timeout_s)
        return tuple(sorted(report.reason_busy(self._state, resident) for resident in settling.busy()))

    def force_drain(self, model_ids: Iterable[str]) -> int:
        """End the sequences that hold draining models with `RequestCancelled`; return how many."""
        ended = 0
        for model_id in model_ids:
            resident = self._state.residents.get(model_id)
            if resident is not None and resident.state is ModelState.DRAINING:
                error = RequestCancelled(f"{model_id} was unloaded by force: {resident.leave_reason}")
                ended += self._scheduler.revoke(resident, error)
        return ended

    async def drain(self, timeout_s: float) -> int:
        """Stop admissions (`Draining`) and wait until all requests have ended; after *timeout_s* cancel the rest.

        Returns:
            how many sequences were cancelled.
        """
        state, wait_until = self._state, self._scheduler.conditions.wait_until

        def is_active() -> bool:
            return any(resident.active for resident in state.residents.values())

        state.is_draining = True
        error = Draining("the server is shutting down", retry_after_s=state.settings.daemon.drain_timeout)
        for resident in state.residents.values():
            for ticket in resident.queue.values():
                ticket.fail(error)
            resident.queue.clear()
            for sequence in list(resident.waiting.values()):
                if not sequence.ticket.started:
                    sequence.fail(error)
        self._scheduler.pump()
        if await wait_until(lambda: not state.tickets and not is_active(), timeout_s):
            return 0
        cancelled = RequestCancelled("the server is shutting down")
        ended = sum(self._scheduler.revoke(resident, cancelled) for resident in list(state.residents.values()))
        await wait_until(lambda: not is_active())
        return ended

    async def close(self) -> None:
        """Drop timers and loads in progress; the backend is closed by its owner afterwards."""
        self._scheduler.close()
        await asyncio.gather(*self._tasks.cancel_all(), return_exceptions=True)

    def rescan(self) -> None:
        """Look at the catalog again.

        Models that are gone drain and unload, those whose files have changed are stale, new ones of the preload list
        load.
        """
        known = {model_id: resident.files for model_id, resident in self._state.residents.items()}
        for model_id, resident in list(self._state.residents.items()):  # a base comes before its adapters
            try:
                entry = self._state.servable(model_id)
            except ModelNotFound as error:
                resident.fail_waiting(error)
                resident.stop_returning()
                intervention.let_go(self._scheduler, resident, f"it can no longer be served: {error.message}")
                if resident.state not in PRESENT:
                    self._state.forget(resident)
                continue
            resident.entry = entry
            if resident.files != known[model_id] and resident.state not in PRESENT:
                resident.facts = None  # other files: what was measured, and why they failed, is void
                resident.backoff, resident.return_wait_s = Backoff(), 0.0
            resident.context_limit = context_limit(self._state.settings, entry)
        self._scheduler.pump()


def scheduling_params(settings: Settings) -> SchedulingParams:
    """Return `[engine]` as the backend is told it."""
    return SchedulingParams(
        prefill_step_tokens=settings.engine.prefill_step, target_gap_ms=round(settings.engine.target_gap * 1000)
    )
