"""Recorded sessions of earlier versions: what their mlxctl sent, byte for byte, and what their daemon answered.

A transcript is never edited: a released version adds one of its own. Progress frames are left out, and the home is
/Users/me/.mlxd.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlxd.protocol import framing
from mlxd.protocol.errors import ControlError, NotFound
from tests.support.fake_control import Answer, FakeControl

FOLDER = Path(__file__).parent.parent / "transcript"
# What a setting or its default is follows the setting, so these hold values of any type.
ANY_TYPE = frozenset({"value", "written", "default", "old", "new"})


@dataclass(frozen=True, slots=True)
class Session:
    """One command line, its exit status, and the frames that came and went."""

    argv: tuple[str, ...]
    exit: int
    client: tuple[bytes, ...]
    daemon: tuple[dict[str, Any], ...]

    @property
    def sent(self) -> list[dict[str, Any]]:
        """What mlxctl sent, decoded."""
        decoder = framing.FrameDecoder(framing.MAX_REQUEST_BYTES)
        return [frame for data in self.client for frame in decoder.feed(data)]

    @property
    def exchanges(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each frame that was sent, and its answer: one after the other, maybe over several connections."""
        return zip(self.sent, self.daemon, strict=True)


def read_sessions(version: str) -> list[Session]:
    """Return the sessions recorded of a version, in the order in which they took place."""
    document = json.loads((FOLDER / f"mlxctl-{version}.json").read_text())
    assert document["version"] == version
    return [
        Session(
            tuple(session["argv"]),
            session["exit"],
            tuple(bytes.fromhex(data) for data in session["client"]),
            tuple(session["daemon"]),
        )
        for session in document["sessions"]
    ]


def lost_fields(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield what a reader of *old* would miss in *new*: fields gone, or of another type. Null is of any type."""
    if old is None or new is None or path.rpartition(".")[2] in ANY_TYPE:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name, value in old.items():
            where = f"{path}.{name}" if path else name
            if name not in new:
                yield f"{where} is gone"
            else:
                yield from lost_fields(value, new[name], where)
    elif isinstance(old, list) and isinstance(new, list):
        if old and new:
            yield from lost_fields(old[0], new[0], f"{path}[]")
    elif _type_of(old) != _type_of(new):
        yield f"{path} was {_type_of(old)} and is {_type_of(new)}"


def _type_of(value: object) -> str:
    if isinstance(value, dict):
        return "map"
    return {bool: "boolean", int: "integer", float: "number", str: "text", list: "list"}[type(value)]


class RecordedAnswers(dict[str, Answer]):
    """Answers each operation as it was answered then; one that there was not yet is not found, as it was then."""

    def __init__(self, session: Session, *, from_the_future: bool) -> None:
        """Take the session; *from_the_future* adds keys that no mlxctl knows to every map."""
        super().__init__()
        rest: dict[str, deque[dict[str, Any]]] = defaultdict(deque)
        for frame, answer in session.exchanges:
            if frame["t"] == "req":
                rest[frame["m"]].append(answer)
        for name, answers in rest.items():
            self[name] = partial(self._next, answers)
        self._is_from_the_future = from_the_future

    def __missing__(self, name: str) -> Answer:
        return NotFound(f"there is no operation {name!r}")

    def _next(self, answers: deque[dict[str, Any]], frame: dict[str, Any]) -> Any:
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        if not answer["ok"]:
            return ControlError.from_wire(answer["e"])
        return add_unknown_keys(answer["r"]) if self._is_from_the_future else answer["r"]


def add_unknown_keys(value: Any) -> Any:
    """Return the value with a key that nobody knows in every map."""
    if isinstance(value, dict):
        return {"later": {"x": [1]}, **{name: add_unknown_keys(item) for name, item in value.items()}, "later_s": 1.5}
    return [add_unknown_keys(item) for item in value] if isinstance(value, list) else value


def replay_daemon(path: Path, session: Session, *, from_the_future: bool = False) -> FakeControl:
    """Return a daemon that answers as in *session*."""
    hello: Mapping[str, Any] = next(frame for frame in session.daemon if frame["t"] == "hello")
    more: dict[str, Any] = {}
    if from_the_future:
        more = {"version": "99.0.0", "max": 7, "caps": [*hello["caps"], "later"], "later": {"x": 1}}
    fake = FakeControl(path, **{**hello, **more})
    fake.answers = RecordedAnswers(session, from_the_future=from_the_future)
    return fake
