"""Clients of earlier versions are still understood: what they sent, byte for byte, and what they read."""

from typing import Any

import pytest

from mlxd.protocol import framing
from tests.support.control import Client, Plane

# What mlxctl 0.1.0 sent. Never edited: a new version adds a transcript of its own.
HELLO_0_1_0 = "0000002785a174a568656c6c6fa36d696e01a36d617801a776657273696f6ea5302e312e30a46361707390"
STATUS_0_1_0 = "0000001784a174a3726571a2696401a16da6737461747573a17080"
SET_0_1_0 = (
    "0000004484a174a3726571a2696402a16dac73657474696e67732e736574a17081a76368616e676573"
    "82ab706f6f6c2e6d656d6f7279a3353025ac706f6f6c2e7072656c6f616490"
)
# The keys that mlxctl 0.1.0 reads, and their types, which a later daemon may not change.
READ_0_1_0: dict[str, dict[str, type | tuple[type, ...]]] = {
    "hello": {"t": str, "proto": int, "version": str, "pid": int, "gen": int, "http": (str, type(None))},
    "status": {
        "version": str,
        "pid": int,
        "uptime_ms": int,
        "gen": int,
        "pool": dict,
        "http": dict,
        "config": dict,
        "requests": list,
        "cloud": dict,
        "problems": list,
    },
    "set": {"gen": int, "changed": list, "warnings": list, "memory": dict},
}


def assert_has(answer: dict[str, Any], name: str) -> None:
    """Check that every key is there, with its type."""
    for key, types in READ_0_1_0[name].items():
        assert isinstance(answer[key], types), key


@pytest.mark.parametrize(("sent", "frame_type"), [(HELLO_0_1_0, "hello"), (STATUS_0_1_0, "req"), (SET_0_1_0, "req")])
def test_the_transcripts_are_frames(sent: str, frame_type: str) -> None:
    """Each is one whole frame of today's framing."""
    (frame,) = framing.Decoder(framing.MAX_REQUEST_BYTES).feed(bytes.fromhex(sent))
    assert frame["t"] == frame_type


async def test_mlxctl_0_1_0_is_understood(plane: Plane) -> None:
    """Its bytes are answered with all that it reads."""
    client = await Client.connect(plane.home.socket, greet=False)
    client.writer.write(bytes.fromhex(HELLO_0_1_0))
    assert_has(await client.receive(), "hello")
    client.writer.write(bytes.fromhex(STATUS_0_1_0))
    assert_has((await client.receive())["r"], "status")
    client.writer.write(bytes.fromhex(SET_0_1_0))
    answer = (await client.receive())["r"]
    assert_has(answer, "set")
    assert answer["changed"] == [{"key": "pool.memory", "old": "16MB", "new": "50%"}]
    await client.close()
