"""Events are passed on whole, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd.cloud.sse import EventCutter
from mlxd.protocol.errors import UpstreamError

STREAM = b': hi\n\ndata: {"a":1}\n\nevent: x\ndata: {"b":"c\\n\\n"}\n\n: ping\n\ndata: [DONE]\n\n'


@given(st.lists(st.integers(0, len(STREAM)), max_size=10), st.booleans())
def test_any_cut_gives_the_same_whole_events(cuts: list[int], windows: bool) -> None:
    """What is passed on ends at the end of an event every time, and all of it is the stream byte for byte."""
    stream = STREAM.replace(b"\n", b"\r\n") if windows else STREAM
    places = [0, *sorted(cuts), len(stream)]
    cutter = EventCutter()
    passed = [cutter.feed(stream[start:end]) for start, end in itertools.pairwise(places)]
    assert b"".join(passed) == stream
    assert all(part == b"" or part.endswith((b"\n\n", b"\r\n\r\n")) for part in passed)
    assert cutter.is_complete
    assert cutter.close() == b""


def test_comments_are_no_data() -> None:
    """A stream of keep-alives has not begun to answer."""
    cutter = EventCutter()
    cutter.feed(b": PROCESSING\n\n\n\n")
    assert not cutter.has_data
    cutter.feed(b"data: x\n\n")
    assert cutter.has_data


@pytest.mark.parametrize(
    ("stream", "complete"),
    [
        (b"data: [DONE]\n\n", True),
        (b"data:[DONE]\r\n\r\n", True),
        (b"data: [DONE]\n\n: bye\n\n", True),
        (b'data: {"error":{"message":"x"}}\n\n', True),
        (b'data: {"error": null}\n\ndata: {"a":1}\n\n', False),
        (b'data: {"a":1}\n\n', False),
        (b'data: {"a":1}\n\ndata: {"b', False),
        (b"", False),
    ],
)
def test_how_a_stream_ended(stream: bytes, complete: bool) -> None:
    """Only [DONE] or the upstream's own error ends a stream well."""
    cutter = EventCutter()
    cutter.feed(stream)
    assert cutter.close() == b""
    assert cutter.is_complete == complete


def test_a_done_without_its_empty_line_counts() -> None:
    """Some servers close right after it."""
    cutter = EventCutter()
    assert cutter.feed(b"data: x\n\ndata: [DONE]") == b"data: x\n\n"
    assert cutter.close() == b"data: [DONE]\n\n"
    assert cutter.is_complete


def test_an_event_without_end_is_refused() -> None:
    """Memory is bounded."""
    cutter = EventCutter()
    cutter.feed(b"x" * (15 << 20))
    with pytest.raises(UpstreamError, match="does not end"):
        cutter.feed(b"x" * (2 << 20))
