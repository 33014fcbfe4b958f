"""Subscriptions of the control connection: a snapshot, events in order, gaps, and an end in words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxctl.client import Client
from mlxd.protocol.errors import ControlError, InvalidRequest
from mlxd.protocol.event import Event, Gap
from tests.support.fake_control import FakeControl

TIMEOUT_S = 10.0
SNAPSHOT = {"gen": 7, "pool": {}, "requests": [], "operations": []}


def event(frame: dict[str, Any], seq: int, kind: str, **data: Any) -> dict[str, Any]:
    """Return an event of the subscription that *frame* asked for."""
    return {"t": "evt", "sub": frame["id"], "seq": seq, "k": kind, "d": data}


def answer(frame: dict[str, Any], *more: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answer to a `sub` frame, and what comes right behind it."""
    result = {"sub": frame["id"], "seq": 5, "snapshot": SNAPSHOT}
    return [{"t": "res", "id": frame["id"], "ok": True, "r": result, "gen": 7}, *more]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeControl]:
    """A daemon that chooses topics."""
    with FakeControl(tmp_path / "s", {"ping": {"boot_id": "boot"}}, caps=["topics"]) as control:
        yield control


def test_snapshot_and_events(fake: FakeControl) -> None:
    """The snapshot comes first, then what it lacks, in order and with its gaps."""
    fake.answers["sub"] = lambda frame: answer(
        frame, event(frame, 6, "model.loaded", model="a"), {"t": "gap", "sub": frame["id"], "from": 7, "to": 9}
    )
    with Client(fake.path, TIMEOUT_S) as daemon:
        subscription = daemon.subscribe(["model"], model="a")
        assert (subscription.snapshot, subscription.seq) == (SNAPSHOT, 5)
        assert subscription.next(TIMEOUT_S) == Event(6, "model.loaded", {"model": "a"})
        assert subscription.next(TIMEOUT_S) == Gap(7, 9)
        assert subscription.next(0.01) is None
    assert fake.requests == [{"t": "sub", "id": 1, "topic": "events", "topics": ["model"], "model": "a"}]


def test_requests_beside_a_subscription(fake: FakeControl) -> None:
    """A question may be asked in between; events that come before its answer are kept."""
    sub: dict[str, Any] = {}
    fake.answers["sub"] = lambda frame: answer(sub.setdefault("frame", frame))
    with Client(fake.path, TIMEOUT_S) as daemon:
        subscription = daemon.subscribe()
        fake.answers["ping"] = lambda frame: [
            event(sub["frame"], 6, "op.ended"),
            {"t": "res", "id": frame["id"], "ok": True, "r": {}, "gen": 7},
        ]
        daemon.request("ping")
        assert subscription.next(TIMEOUT_S) == Event(6, "op.ended", {})


def test_the_end_has_words(fake: FakeControl) -> None:
    """When the daemon ends it, what came before is still heard, and then the reason."""
    fake.answers["sub"] = lambda frame: answer(
        frame, event(frame, 6, "daemon.stopping"), {"t": "end", "sub": frame["id"], "reason": "the daemon ends"}
    )
    with Client(fake.path, TIMEOUT_S) as daemon:
        items = iter(daemon.subscribe())
        assert next(items) == Event(6, "daemon.stopping", {})
        with pytest.raises(ControlError) as caught:
            next(items)
    assert (caught.value.exit_code, caught.value.code) == (3, "control.ended")
    assert "the daemon ends" in caught.value.message


def test_an_older_daemon_sends_all(fake: FakeControl) -> None:
    """Where the daemon cannot choose, the rest is left out here; the end of the connection ends the wait."""
    fake.hello["caps"] = ["events"]
    fake.answers["sub"] = lambda frame: answer(
        frame,
        event(frame, 6, "config.changed"),
        event(frame, 7, "model.loaded", model="b"),
        event(frame, 8, "op.ended", models=["a", "b"]),
        event(frame, 9, "op.ended", models=["a"]),
        {"t": "later", "sub": frame["id"]},
    )
    with Client(fake.path, TIMEOUT_S) as daemon:
        subscription = daemon.subscribe(["model", "op"], model="a")
        assert [subscription.next(TIMEOUT_S), subscription.next(TIMEOUT_S)] == [
            Event(8, "op.ended", {"models": ["a", "b"]}),
            Event(9, "op.ended", {"models": ["a"]}),
        ]
        assert subscription.next(0.01) is None


def test_a_refused_subscription(fake: FakeControl) -> None:
    """An unknown topic is refused as the daemon words it."""
    error = InvalidRequest("there is no topic 'modle'", param="topics").to_wire()
    fake.answers["sub"] = lambda frame: [{"t": "res", "id": frame["id"], "ok": False, "e": error, "gen": 7}]
    with Client(fake.path, TIMEOUT_S) as daemon, pytest.raises(ControlError, match="no topic 'modle'"):
        daemon.subscribe(["modle"])


def test_close(fake: FakeControl) -> None:
    """A subscription can be given up, once; the connection goes on."""
    fake.answers |= {"sub": answer, "cancel": lambda frame: []}
    with Client(fake.path, TIMEOUT_S) as daemon:
        subscription = daemon.subscribe()
        subscription.close()
        subscription.close()
        assert daemon.request("ping").result == {"boot_id": "boot"}
    assert [frame["t"] for frame in fake.requests] == ["sub", "cancel", "req"]
