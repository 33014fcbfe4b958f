"""Operations run on, end in one of three ways, and tell who watches."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from mlxd.control.bus import Bus
from mlxd.control.operation import KEPT_OPERATIONS, Operations
from mlxd.protocol.errors import DoesNotFit, NotFound
from mlxd.protocol.event import Event


async def nothing() -> Mapping[str, Any]:
    """Be done at once."""
    return {}


async def for_ever() -> Mapping[str, Any]:
    """Never be done."""
    await asyncio.Event().wait()
    return {}


async def last(operations: Operations, op: str, timeout_s: float | None = None) -> dict[str, Any]:
    """Follow an operation to its end."""
    return [shown async for shown in operations.follow(op, timeout_s)][-1]


async def test_an_operation_ends_with_its_result() -> None:
    """It is listed while it runs and for some time after, and both its ends are events."""
    bus, go = Bus(), asyncio.Event()
    events: list[Event] = []
    bus.listen(events.append)
    operations = Operations(bus, "boot-1", lambda: 12.5)

    async def run() -> Mapping[str, Any]:
        await go.wait()
        return {"model": "a"}

    operation = operations.start("model.load", ("a",), run)
    assert [shown["op"] for shown in operations.running()] == [operation.id]
    go.set()
    shown = await last(operations, operation.id)
    assert shown == {
        "op": "op-boot-1",
        "kind": "model.load",
        "models": ["a"],
        "state": "done",
        "phase": "done",
        "done": 0,
        "total": 0,
        "started_at_ms": 12500,
        "ended_at_ms": 12500,
        "result": {"model": "a"},
        "error": None,
    }
    assert operations.running() == []
    assert operations.list() == [shown]
    assert [event.kind for event in events] == ["op.started", "op.ended"]


async def test_an_operation_that_fails_keeps_its_error() -> None:
    """Our errors come as they would in a reply; whatever else happens is told without detail."""
    operations = Operations(Bus(), "boot-1")

    async def refuse() -> Mapping[str, Any]:
        raise DoesNotFit("too large", hint="buy memory")

    async def break_down() -> Mapping[str, Any]:
        raise ZeroDivisionError("a secret")

    refused = await last(operations, operations.start("model.load", (), refuse).id)
    assert (refused["state"], refused["error"]["code"], refused["error"]["hint"]) == (
        "failed",
        "does_not_fit",
        "buy memory",
    )
    broken = await last(operations, operations.start("model.load", (), break_down).id)
    assert (broken["state"], broken["error"]["code"]) == ("failed", "internal_error")
    assert "secret" not in broken["error"]["msg"]


async def test_an_operation_can_be_given_up() -> None:
    """Its task is cancelled; a second time changes nothing."""
    operations = Operations(Bus(), "boot-1")
    operation = operations.start("model.load", (), for_ever)
    await asyncio.sleep(0)
    shown = (await operations.cancel(operation.id)).show()
    assert (shown["state"], shown["error"]["code"]) == ("cancelled", "cancelled")
    assert "was given up" in shown["error"]["msg"]
    assert (await operations.cancel(operation.id)).show() == shown


async def test_a_wait_ends_with_its_timeout() -> None:
    """The operation is shown as it is then, and runs on."""
    operations = Operations(Bus(), "boot-1")
    operation = operations.start("model.load", (), for_ever)
    assert (await last(operations, operation.id, 0.0))["state"] == "running"
    await operations.close()
    assert operation.show()["state"] == "cancelled"
    assert operation.show()["error"]["msg"] == "model.load (op-boot-1) ended with the daemon"


async def test_progress_of_its_models_is_its_progress() -> None:
    """Loads and drains are heard from the bus; those of other models are not."""
    bus = Bus()
    operations = Operations(bus, "boot-1")
    operation = operations.start("pool.change", ("a",), for_ever)
    following = operations.follow(operation.id, None)
    assert (await anext(following))["phase"] == "running"
    bus.publish("model.loading", {"model": "a"})
    assert (await anext(following))["phase"] == "loading a"
    bus.publish("model.load_progress", {"model": "b", "done": 1, "total": 2})
    bus.publish("pool.over_limit", {"model": None})
    bus.publish("model.load_progress", {"model": "a", "done": 5, "total": 9})
    shown = await anext(following)
    assert (shown["phase"], shown["done"], shown["total"]) == ("loading a", 5, 9)
    await operations.close()


async def test_an_unknown_operation_is_not_found() -> None:
    """Asking for an id that never was is answered in words."""
    operations = Operations(Bus(), "boot-1")
    with pytest.raises(NotFound, match="no operation 'op-7'"):
        operations.get("op-7")


async def test_an_operation_of_a_daemon_before_is_told_apart() -> None:
    """Ids do not begin anew: who waits on one of the daemon before never gets the news of another operation."""
    old, new = Operations(Bus(), "aaaa1111"), Operations(Bus(), "bbbb2222")
    operation = old.start("model.load", (), nothing)
    new.start("model.load", (), nothing)
    with pytest.raises(NotFound, match=rf"{operation.id} was an operation of a daemon before this one") as caught:
        new.get(operation.id)
    assert caught.value.code == "op.of_another_run"
    await old.close()
    await new.close()


async def test_old_operations_are_forgotten() -> None:
    """The list stays small; those that run are never dropped."""
    operations = Operations(Bus(), "boot-1")
    running = operations.start("model.load", (), for_ever)
    for _ in range(KEPT_OPERATIONS + 20):
        await last(operations, operations.start("model.load", (), nothing).id)
    assert len(operations.list()) <= KEPT_OPERATIONS + 2
    assert operations.list()[0]["op"] == running.id
    await operations.close()
