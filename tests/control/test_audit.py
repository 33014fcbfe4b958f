"""The request log over the control socket: rows, pages, sums, changes with who made them, live events, `status`."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from mlxd.audit import RequestRecord
from tests.support.control import Client, Plane


def row(number: int, **more: str) -> RequestRecord:
    """Return a request."""
    return RequestRecord(f"r-{number}", 1_700_000_000_000 + number, "messages", model="a", **more)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
async def _kept(client: Client) -> None:
    """Rows of any age are kept."""
    await client.ask("settings.set", changes={"audit.max_age": "never"})


async def test_rows_are_there_as_soon_as_they_are_asked_for(plane: Plane, client: Client) -> None:
    """A question waits for the rows before it; pages follow each other."""
    for number in range(5):
        plane.audit.note_request(row(number))
    first = await client.ask("audit.list", limit=3)
    second = await client.ask("audit.list", limit=3, cursor=first["next"])
    shown = [each["request"] for each in (*first["requests"], *second["requests"])]
    assert (shown, second["next"]) == ([f"r-{number}" for number in (4, 3, 2, 1, 0)], None)
    oldest = await client.ask("audit.list", limit=1, oldest_first=True)
    assert oldest["requests"][0]["request"] == "r-0"
    stats = await client.ask("audit.stats", model="a")
    assert (stats["requests"], stats["groups"][0]["model"], stats["log"]["dropped"]) == (5, "a", 0)


@pytest.mark.parametrize(
    ("params", "field"), [({"limit": 0}, "limit"), ({"limit": 1001}, "limit"), ({"cursor": "x"}, "cursor")]
)
async def test_a_page_that_cannot_be_is_refused(client: Client, params: dict[str, Any], field: str) -> None:
    """The field at fault is named."""
    error = await client.refused("audit.list", **params)
    assert (error["code"], error["field"]) == ("invalid_request", field)


async def test_changes_have_who_made_them(plane: Plane, client: Client) -> None:
    """Settings with old and new value and the process at the other end; other operations with what they were about."""
    await client.ask("settings.set", changes={"pool.max_models": 3})
    await client.ask("settings.set", {"persist": False}, changes={"pool.max_models": 4})
    await client.ask("settings.set", {"dry": True}, changes={"pool.max_models": 5})
    await client.ask("model.reset", model="a")
    await client.refused("model.reset", model="nobody's")
    await client.ask("settings.rollback", gen=1)
    changes = (await client.ask("audit.changes", oldest_first=True))["changes"][1:]
    assert {(change["uid"], change["pid"]) for change in changes} == {(os.geteuid(), os.getpid())}
    names = ("operation", "source", "setting", "old", "new", "subject", "runtime_only")
    shown = [tuple(change[name] for name in names) for change in changes[:3]]
    assert shown == [
        ("settings.set", "cli", "pool.max_models", "none", 3, None, False),
        ("settings.set", "cli", "pool.max_models", 3, 4, None, True),
        ("model.reset", "cli", None, None, None, "a", False),
    ]
    assert {(change["operation"], change["source"]) for change in changes[3:]} == {("settings.rollback", "rollback")}


async def test_an_edit_by_hand_is_a_change_of_the_file(plane: Plane, client: Client) -> None:
    """Nobody is at the other end of a file."""
    plane.home.config.write_text(plane.home.config.read_text() + "[queue]\nsize = 7\n")
    await client.ask("settings.reload")
    change = (await client.ask("audit.changes", limit=1))["changes"][0]
    names = ("operation", "source", "setting", "old", "new", "uid", "pid")
    assert [change[name] for name in names] == ["file", "file", "queue.size", 256, 7, None, None]


async def test_who_asks_for_the_topic_hears_of_rows(plane: Plane, client: Client) -> None:
    """Rows are events of the topic `audit`, which is not among all topics."""
    async with await plane.connect() as everything:
        await everything.send({"t": "sub", "id": 1, "topic": "events"})
        await client.send({"t": "sub", "id": 99, "topic": "events", "topics": ["audit"]})
        await everything.receive_of("res")
        await client.receive_of("res")
        plane.audit.note_request(row(1))
        plane.bus.publish("daemon.stopping", {})
        event = await client.receive_of("evt")
        assert (event["k"], event["d"]["request"], event["d"]["status"]) == ("audit.request", "r-1", "ok")
        assert (await everything.receive_of("evt"))["k"] == "daemon.stopping"


async def test_off_is_off(plane: Plane, client: Client) -> None:
    """Nothing is kept while it is off, and that can be changed live."""
    await client.ask("settings.set", changes={"audit.enabled": False})
    plane.audit.note_request(row(1))
    assert (await client.ask("audit.list"))["requests"] == []
    assert (await client.ask("status"))["audit"]["enabled"] is False
    await client.ask("settings.set", changes={"audit.enabled": True})
    plane.audit.note_request(row(2))
    assert [each["request"] for each in (await client.ask("audit.list"))["requests"]] == ["r-2"]


async def test_status_says_what_is_wrong(plane: Plane, client: Client) -> None:
    """While another process holds the file rows wait, and questions are answered from what can be read."""
    await client.ask("audit.list")
    with closing(sqlite3.connect(plane.home.audit, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        plane.audit.note_request(row(1))
        assert (await client.ask("audit.list"))["requests"] == []
        problems = (await client.ask("status"))["problems"]
        other.execute("ROLLBACK")
    assert [problem for problem in problems if "1 row waiting" in problem and "locked" in problem] != []


async def test_a_file_that_cannot_be_read_is_an_error_with_words(plane: Plane, client: Client) -> None:
    """A broken file found by a question is moved aside, and the next question is answered from the new one."""
    await client.ask("audit.list")
    with closing(sqlite3.connect(plane.home.audit)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with plane.home.audit.open("r+b") as file:
        file.write(b"this is no database any more")
    error = await client.refused("audit.list")
    assert error["code"] == "audit.unavailable"
    assert (await client.ask("audit.list"))["requests"] == []
    assert [path.name for path in plane.home.root.glob("audit.db.corrupt-*")] != []
