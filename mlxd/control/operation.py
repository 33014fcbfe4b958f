"""Operations: what goes on after its reply, with an id, to be watched, waited for or given up.

They outlive the connection that began them. The last ones that ended are kept, so that a late waiter learns how.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mlxd.control.bus import Bus
from mlxd.protocol.errors import MlxdError, NotFound, RequestCancelled
from mlxd.protocol.event import Event

Run = Callable[[], Awaitable[Mapping[str, Any]]]  # returns the operation's result

KEPT_OPERATIONS = 100
# Of the boot id, in the ids of operations: enough to tell a daemon from the ones before it.
_RUN_NAME = 4
_log = logging.getLogger(__name__)


class OperationState(Enum):
    """How far an operation is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True)
class Operation:
    """One operation; `show` is what a client sees of it."""

    id: str
    kind: str
    models: tuple[str, ...]
    started_at_ms: int
    state: OperationState = OperationState.RUNNING
    phase: str = "running"
    done: int = 0
    total: int = 0
    ended_at_ms: int | None = None
    result: Mapping[str, Any] | None = None
    failure: MlxdError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def show(self) -> dict[str, Any]:
        """Return plain values; `error` is as in a control reply."""
        return {
            "op": self.id,
            "kind": self.kind,
            "models": list(self.models),
            "state": self.state.value,
            "phase": self.phase,
            "done": self.done,
            "total": self.total,
            "started_at_ms": self.started_at_ms,
            "ended_at_ms": self.ended_at_ms,
            "result": None if self.result is None else dict(self.result),
            "error": None if self.failure is None else self.failure.to_wire(),
        }


class Operations:
    """All operations of this daemon."""

    def __init__(self, bus: Bus, boot_id: str, now: Callable[[], float] = time.time) -> None:
        """Take the bus, where their ends are told and the progress of loads is heard, the run's name, and the clock."""
        self._bus = bus
        self._run_name = boot_id[:_RUN_NAME]
        self._now = now
        self._operations: dict[str, Operation] = {}
        self._count = 0
        self._is_closed = False
        bus.listen(self._on_event)

    def start(self, kind: str, models: tuple[str, ...], run: Run) -> Operation:
        """Begin *run* as an operation about *models*."""
        self._count += 1
        operation = Operation(f"op-{self._run_name}-{self._count}", kind, models, self._now_ms())
        self._operations[operation.id] = operation
        operation.task = asyncio.get_running_loop().create_task(self._run(operation, run))
        ended = [op_id for op_id, kept in self._operations.items() if kept.state is not OperationState.RUNNING]
        for op_id in ended[:-KEPT_OPERATIONS]:
            del self._operations[op_id]
        self._bus.publish("op.started", operation.show())
        return operation

    def get(self, op_id: str) -> Operation:
        """Return the operation.

        Raises:
            NotFound: it never was, or ended long ago.
        """
        operation = self._operations.get(op_id)
        if operation is not None:
            return operation
        shown = op_id[:40]
        _, run_name, number = [*op_id.split("-"), "", ""][:3]
        if op_id.startswith("op-") and number.isdecimal() and run_name != self._run_name:
            raise NotFound(
                f"{shown} was an operation of a daemon before this one, and ended with it at the latest",
                hint="mlxctl status, to see what became of it",
                code="op.of_another_run",
            )
        raise NotFound(f"there is no operation {shown!r}", hint="mlxctl op list")

    def running(self) -> list[dict[str, Any]]:
        """Return those that run, in the order in which they began."""
        return [shown for shown in self.list() if shown["state"] == OperationState.RUNNING.value]

    def list(self) -> list[dict[str, Any]]:
        """Return all that run and the last that ended, in the order in which they began."""
        return [operation.show() for operation in self._operations.values()]

    async def follow(self, op_id: str, timeout_s: float | None) -> AsyncIterator[dict[str, Any]]:
        """Yield the operation now and at changes of its progress; last, at its end or when *timeout_s* has passed.

        A slow reader sees the newest state and not every one.
        """
        operation = self.get(op_id)
        loop = asyncio.get_running_loop()
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        while operation.state is OperationState.RUNNING:
            changed = operation.changed
            yield operation.show()
            try:
                async with asyncio.timeout_at(deadline_s):
                    await changed.wait()
            except TimeoutError:
                break
        yield operation.show()

    async def cancel(self, op_id: str) -> Operation:
        """Give the operation up and return it when it has ended; what it has begun in the pool may go on."""
        operation = self.get(op_id)
        if operation.task is not None:
            operation.task.cancel()
            await asyncio.wait({operation.task})
        return operation

    async def close(self) -> None:
        """Give all up: the daemon ends."""
        self._is_closed = True
        tasks = [operation.task for operation in self._operations.values() if operation.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, operation: Operation, run: Run) -> None:
        try:
            operation.result = await run()
            operation.state = OperationState.DONE
        except MlxdError as error:
            operation.state, operation.failure = OperationState.FAILED, error
        except asyncio.CancelledError:
            operation.state = OperationState.CANCELLED
            why = "ended with the daemon" if self._is_closed else "was given up"
            operation.failure = RequestCancelled(f"{operation.kind} ({operation.id}) {why}")
        except Exception:  # noqa: BLE001  (this renders for clients, as the control reply does)
            _log.exception("operation %s failed", operation.id)
            operation.state = OperationState.FAILED
            operation.failure = MlxdError(f"{operation.kind} failed inside of mlxd; its log has the details")
        operation.ended_at_ms = self._now_ms()
        operation.phase = operation.state.value
        self._note(operation)
        self._bus.publish("op.ended", operation.show())

    def _on_event(self, event: Event) -> None:
        """Take the progress of a model's load, drain or unload over to the operations about that model."""
        noun, _, phase = event.kind.partition(".")
        model = event.data.get("model")
        if noun != "model" or model is None:
            return
        for operation in self._operations.values():
            if operation.state is OperationState.RUNNING and model in operation.models:
                if phase == "load_progress":
                    operation.done, operation.total = event.data["done"], event.data["total"]
                else:
                    operation.phase = f"{phase} {model}"
                self._note(operation)

    def _note(self, operation: Operation) -> None:
        operation.changed.set()
        operation.changed = asyncio.Event()

    def _now_ms(self) -> int:
        return int(self._now() * 1000)
