"""An mlxctl of an earlier version is still understood: its bytes are answered with all that it reads, in its types."""

from typing import Any

import pytest

from mlxd.protocol import framing
from tests.support.control import Client, Plane
from tests.support.transcript import Session, lost_fields, read_sessions

# Operations whose recorded ids belong to the daemon of that time.
_BY_ID = {"op.wait"}


async def replay(plane: Plane, session: Session) -> list[str]:
    """Send what was sent, and return what its sender would miss in the answers."""
    missed: list[str] = []
    clients: list[Client] = []
    op: str | None = None
    for sent, (frame, then) in zip(session.client, session.exchanges, strict=True):
        if frame["t"] == "hello":
            clients.append(await Client.connect(plane.home.socket, greet=False))
        if frame.get("m") in _BY_ID:
            if op is None:
                continue  # this daemon had done it already
            sent = framing.encode(  # noqa: PLW2901
                {**frame, "p": {**frame["p"], "op": op}}, framing.MAX_REQUEST_BYTES
            )
        clients[-1].writer.write(sent)
        answer = await clients[-1].receive_of("hello", "res")
        words = f"{' '.join(session.argv)}: {frame.get('m', 'hello')}"
        missed += [f"{words}: {lost}" for lost in lost_fields(without_op(then), answer)]
        if answer["t"] == "res":
            assert answer["ok"] == then["ok"], (words, answer)
            op = answer.get("r", {}).get("op", op)
            if not answer["ok"]:
                assert (answer["e"]["code"], answer["e"]["exit"]) == (then["e"]["code"], then["e"]["exit"]), words
    for client in clients:
        await client.close()
    return missed


def without_op(frame: dict[str, Any]) -> dict[str, Any]:
    """Return the frame without the key that says that something goes on: what is quick enough does not."""
    result = frame.get("r")
    return {**frame, "r": {key: value for key, value in result.items() if key != "op"}} if result else frame


async def test_mlxctl_0_1_0_is_understood(plane: Plane) -> None:
    """Every verb of 0.1.0, as it was sent: nothing that it reads is gone or of another type, and errors keep codes."""
    sessions = read_sessions("0.1.0")
    assert len(sessions) > 40
    missed = [line for session in sessions for line in await replay(plane, session)]
    assert missed == []


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ({"a": 1, "b": {"c": "x"}}, {"a": 2, "b": {"c": "y", "d": 1}, "e": 1}, []),
        ({"a": 1}, {}, ["a is gone"]),
        ({"a": {"b": 1}}, {"a": {"b": True}}, ["a.b was integer and is boolean"]),
        ({"a": [{"b": 1}]}, {"a": [{"b": "x"}]}, ["a[].b was integer and is text"]),
        ({"a": 1, "b": [1]}, {"a": None, "b": []}, []),
        ({"a": {"value": 1}}, {"a": {"value": "x"}}, []),
    ],
)
def test_what_a_reader_would_miss(old: Any, new: Any, lost: list[str]) -> None:
    """Additions are no loss; what is gone or of another type is named with its path."""
    assert list(lost_fields(old, new)) == lost
