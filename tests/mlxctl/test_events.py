"""Events as `mlxctl events` shows them: words, topics, gaps, JSON lines, the end of the daemon."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mlxctl.cli import main
from mlxctl.events import format_item
from mlxd.protocol.event import Event, Gap
from mlxd.protocol.paths import Home
from tests.support.control import running_plane
from tests.support.fake_control import FakeControl

OPERATION = {"op": "op-1", "kind": "model.load", "models": ["a"], "state": "running", "error": None}
LOADED = {"model": "a", "message": "loaded a, 1.0 GB (0.9 GiB), in 0.4 s"}
FRAMES: list[dict[str, Any]] = [
    {"t": "evt", "seq": 8, "k": "op.started", "d": OPERATION},
    {"t": "evt", "seq": 9, "k": "model.load_progress", "d": {"model": "a", "message": "", "done": 1, "total": 2}},
    {"t": "gap", "from": 10, "to": 12},
    {"t": "evt", "seq": 13, "k": "model.loaded", "d": LOADED},
]


@pytest.fixture
def fake(own_home: None) -> Iterator[FakeControl]:
    """A daemon in which a model is loaded, some of which is missed, and which then ends."""

    def subscribe(frame: dict[str, Any]) -> list[dict[str, Any]]:
        number = frame["id"]
        result = {"sub": number, "seq": 7, "snapshot": {"gen": 3}}
        frames = [*FRAMES, {"t": "end", "reason": "the daemon ends"}]
        answer = {"t": "res", "id": number, "ok": True, "r": result, "gen": 3}
        return [answer, *({**item, "sub": number} for item in frames)]

    with FakeControl(Home.from_environment().socket, {"sub": subscribe, "cancel": lambda frame: []}) as control:
        yield control


def test_lines(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each event and each gap, with the local time; the daemon's end is an error with its reason."""
    assert main(["events"]) == 3
    printed = capsys.readouterr()
    times, lines = zip(*(line.split("  ", 1) for line in printed.out.splitlines()), strict=True)
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d", time) for time in times)
    assert list(lines) == [
        "op.started         op-1 model.load a running",
        "gap                3 missed (numbers 10 to 12): they came faster than they were read",
        "model.loaded       loaded a, 1.0 GB (0.9 GiB), in 0.4 s",
    ]
    assert printed.err.splitlines()[:2] == [
        "events of all topics; Ctrl-C ends",
        "error: there will be no more events: the daemon ends",
    ]


def test_json_lines(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json`: the snapshot, then every event and gap, each a document on its line, and the error as the last."""
    assert main(["events", "--json"]) == 3
    out = capsys.readouterr().out
    documents = [json.loads(line) for line in out.splitlines()[:5]]
    assert all(document.pop("schema") == "mlxctl/v1" for document in documents)
    assert documents == [
        {"seq": 7, "snapshot": {"gen": 3}},
        {"seq": 8, "kind": "op.started", "data": OPERATION},
        {"seq": 9, "kind": "model.load_progress", "data": FRAMES[1]["d"]},
        {"gap": {"from": 10, "to": 12}},
        {"seq": 13, "kind": "model.loaded", "data": LOADED},
    ]


def test_count_ends_it(fake: FakeControl, capsys: pytest.CaptureFixture[str]) -> None:
    """After N events it ends with status 0; a gap is none."""
    assert main(["events", "-n", "2", "-q"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert printed.err == ""


def test_topics_and_model_reach_the_daemon(fake: FakeControl) -> None:
    """The daemon is asked for the topics and the model, so that nothing else comes."""
    assert main(["events", "model", "op", "--model", "a", "-n", "1", "-q"]) == 0
    frame = next(frame for frame in fake.requests if frame["t"] == "sub")
    assert (frame["topics"], frame["model"]) == (["model", "op"], "a")


def test_unknown_topic(own_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A topic that is none exits 2 with the nearest."""
    assert main(["events", "modl"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: there is no topic 'modl'; the nearest is 'model'"


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (
            "config.changed",
            {"gen": 4, "source": "mlxctl", "changed": [{"key": "pool.memory", "old": None, "new": "24GB"}]},
            "generation 4 from mlxctl: pool.memory: (unset) -> 24GB",
        ),
        ("config.changed", {"gen": 5, "source": "file", "changed": []}, "generation 5 from file: comments"),
        ("config.file_invalid", {"code": "x", "msg": "config.toml:3:1: no value"}, "config.toml:3:1: no value"),
        (
            "op.ended",
            {**OPERATION, "state": "failed", "error": {"code": "load_failed", "msg": "no tokenizer"}},
            "op-1 model.load a failed: no tokenizer",
        ),
        (
            "request.started",
            {"request": "r", "model": "a", "endpoint": "/v1/x", "route": "local"},
            "r for a (local), /v1/x",
        ),
        ("request.answering", {"request": "r", "model": "a", "elapsed_ms": 250}, "r for a, first text after 200ms"),
        (
            "request.ended",
            {"request": "r", "model": "a", "outcome": "done", "elapsed_ms": 7100},
            "r for a: done after 7s",
        ),
        ("queue.joined", {"request": "r", "model": "a", "message": ""}, "r waits for a"),
        ("queue.left", {"request": "r", "model": "a", "started": True, "waited_ms": 9000}, "r for a began after 9s"),
        ("queue.left", {"request": "r", "model": "a", "started": False, "waited_ms": 0}, "r for a went away after 0s"),
        ("daemon.stopping", {"requests": 1, "timeout_ms": 45_000}, "1 request to end within 45s"),
        ("daemon.stopping", {"requests": 1}, "requests 1"),
        ("new.kind", {"model": "a", "message": None, "bytes": 7}, "model a, bytes 7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_words(kind: str, data: dict[str, Any], words: str) -> None:
    """Each topic has its words, and an event that this version does not know is shown by what it brings."""
    assert format_item(Event(1, kind, data)).removeprefix(kind).strip() == words


def test_gap_of_one() -> None:
    """A gap counts both of its ends."""
    assert " 1 missed (numbers 4 to 4)" in format_item(Gap(4, 4))


async def test_real_daemon(own_home: None) -> None:
    """Of a real control plane: what a load and an unload tell, in order, each once."""
    home = Home.from_environment()
    async with running_plane(home) as plane:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mlxctl", "events", "model", "op", "-n", "6",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stderr is not None
        assert b"0.1.0 installed, 1.2.3 running" in await child.stderr.readline()
        assert (await child.stderr.readline()).startswith(b"events of model, op")
        client = await plane.connect()
        async with client:
            await client.ask("model.load", model="a")
            await client.ask("model.unload", model="a")
            out, _ = await asyncio.wait_for(child.communicate(), 30)
    kinds = [line.split()[1] for line in out.decode().splitlines()]
    assert kinds[:2] == ["op.started", "model.loading"]
    assert len(kinds) == 6
    assert len(set(kinds)) >= 4
