"""The control plane's frames."""

import collections
import contextlib
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.protocol import framing
from mlxd.protocol.errors import ProtocolError

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary()
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
FRAMES = st.dictionaries(st.text(), VALUES)


def decode(data: bytes, max_bytes: int = framing.MAX_REQUEST_BYTES) -> list[dict[str, Any]]:
    """Feed a fresh decoder once."""
    return framing.FrameDecoder(max_bytes).feed(data)


@given(st.lists(FRAMES, max_size=4), st.lists(st.integers(1, 40), max_size=30))
def test_frames_survive_any_chunking(frames: list[dict[str, Any]], cuts: list[int]) -> None:
    """What was encoded comes out whole and in order, however the stream is cut."""
    stream = b"".join(framing.encode(frame, framing.MAX_REQUEST_BYTES) for frame in frames)
    decoder = framing.FrameDecoder(framing.MAX_REQUEST_BYTES)
    seen = []
    for cut in cuts:
        seen += decoder.feed(stream[:cut])
        stream = stream[cut:]
    seen += decoder.feed(stream)
    assert frames == seen
    assert decoder.is_between_frames


@given(st.binary(max_size=200))
def test_garbage_is_refused_in_words_or_waits_for_more(data: bytes) -> None:
    """No bytes make the decoder fail with anything but ProtocolError."""
    with contextlib.suppress(ProtocolError):
        assert all(isinstance(frame, dict) for frame in decode(data))


def test_a_cut_stream_is_not_between_frames() -> None:
    """An end in the middle of a frame can be told from a clean end."""
    decoder = framing.FrameDecoder(framing.MAX_REQUEST_BYTES)
    decoder.feed(framing.encode({"t": "ping"}, framing.MAX_REQUEST_BYTES)[:-1])
    assert not decoder.is_between_frames


@pytest.mark.parametrize("length", [0, framing.MAX_REQUEST_BYTES + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_the_body(length: int) -> None:
    """Four bytes are enough to refuse a frame that is empty or too long."""
    with pytest.raises(ProtocolError, match=f"frame of {length} bytes") as caught:
        decode(struct.pack(">I", length))
    assert caught.value.code == "protocol.too_large"


def test_the_longest_frame_passes_and_one_byte_more_does_not() -> None:
    """The limit is inclusive on both sides."""
    encoded = framing.encode({"k": b"x" * 90}, 96)
    assert len(encoded) == 4 + 95
    exact = framing.encode({"k": b"x" * 91}, 96)
    assert decode(exact, 96) == [{"k": b"x" * 91}]
    with pytest.raises(ProtocolError, match="97 bytes is over the limit of 96"):
        framing.encode({"k": b"x" * 92}, 96)


@pytest.mark.parametrize(
    ("data", "spoken"),
    [
        (b"GET /v1/models HTTP/1.1\r\n", "HTTP"),
        (b"POST /v1/chat/completions", "HTTP"),
        (b"OPTIONS * HTTP/1.1", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "TLS"),
    ],
)
def test_other_protocols_are_recognised(data: bytes, spoken: str) -> None:
    """HTTP and TLS are told apart from a broken frame, also byte by byte."""
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    decoder = framing.FrameDecoder(framing.MAX_REQUEST_BYTES)
    with pytest.raises(ProtocolError, match=spoken):
        collections.deque(decoder.feed(bytes([byte])) for byte in data)
    assert caught.value.code == "protocol.foreign"
    assert {"spoken": spoken} == caught.value.data


def test_the_answer_to_http_is_http() -> None:
    """A browser or curl shows the words: status line, right length, body."""
    head, _, body = framing.answer_foreign("HTTP").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert f"content-length: {len(body)}".encode() in head
    assert b"mlxctl status" in body
    assert body == framing.answer_foreign("TLS")


@pytest.mark.parametrize(
    "value",
    [7, "text", [1], {1: 2}, msgpack.ExtType(5, b"x"), msgpack.ExtType(5, b""), msgpack.Timestamp(1)],
    ids=repr,
)
def test_only_maps_with_text_keys_and_no_extensions_pass(value: object) -> None:
    """Bodies that are valid msgpack but no plain map are refused."""
    body = msgpack.packb(value)
    wrapped = msgpack.packb({"k": value}) if isinstance(value, (msgpack.ExtType, msgpack.Timestamp, dict)) else body
    for data in (body, wrapped):
        with pytest.raises(ProtocolError, match="not a msgpack map"):
            decode(struct.pack(">I", len(data)) + data)


@pytest.mark.parametrize(
    "body", [b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b"\x81\xa1\xff\x01", b"\xc1", b"\x80\x80"]
)
def test_hostile_bodies_are_refused(body: bytes) -> None:
    """Deep nesting, a huge map header, broken UTF-8, the unused byte and trailing bytes are refused."""
    with pytest.raises(ProtocolError, match="not a msgpack map"):
        decode(struct.pack(">I", len(body)) + body)


@pytest.mark.parametrize("value", [2**64, "\udcff"])
def test_values_that_msgpack_lacks_are_a_protocol_error(value: object) -> None:
    """A number over 64 bits and text that is no Unicode are refused before anything is sent."""
    with pytest.raises(ProtocolError, match="cannot be sent"):
        framing.encode({"k": value}, framing.MAX_REQUEST_BYTES)


def test_hello_agrees_on_the_highest_common_protocol() -> None:
    """A client that knows more than the daemon speaks the daemon's highest."""
    assert framing.choose_protocol(framing.make_hello("9.9"), daemon_version="1.0") == framing.PROTOCOL_MAX
    newer = {"t": "hello", "min": framing.PROTOCOL_MIN, "max": framing.PROTOCOL_MAX + 3, "version": "9.9", "more": 1}
    assert framing.choose_protocol(newer, daemon_version="1.0") == framing.PROTOCOL_MAX


@pytest.mark.parametrize(
    ("low", "high", "hint"),
    [(framing.PROTOCOL_MAX + 1, framing.PROTOCOL_MAX + 2, "mlxctl restart"), (0, 0, "upgrade mlxctl")],
)
def test_no_common_protocol_names_both_versions_and_the_remedy(low: int, high: int, hint: str) -> None:
    """The message has both programs' versions, the hint the command that fixes it."""
    with pytest.raises(ProtocolError, match=r"mlxctl 9.9 speaks .* mlxd 1.0 speaks") as caught:
        framing.choose_protocol({"t": "hello", "min": low, "max": high, "version": "9.9"}, daemon_version="1.0")
    assert caught.value.code == "protocol.version"
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("frame", [{}, {"t": "req"}, {"t": "hello"}, {"t": "hello", "min": "1", "max": 2}])
def test_a_first_frame_that_is_no_hello_is_refused(frame: dict[str, Any]) -> None:
    """Nothing but a hello opens a connection."""
    with pytest.raises(ProtocolError, match="must be a hello"):
        framing.choose_protocol(frame, daemon_version="1.0")
