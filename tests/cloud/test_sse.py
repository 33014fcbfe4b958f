"""Events are cut whole, however the bytes come."""

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
    """All of it is the stream byte for byte, and every event is whole, with its name and its data."""
    stream = STREAM.replace(b"\n", b"\r\n") if windows else STREAM
    places = [0, *sorted(cuts), len(stream)]
    cutter = EventCutter()
    events = [event for start, end in itertools.pairwise(places) for event in cutter.feed(stream[start:end])]
    assert b"".join(event.raw for event in events) == stream
    assert [event.data for event in events] == [b"", b'{"a":1}', b'{"b":"c\\n\\n"}', b"", b"[DONE]"]
    assert [event.name for event in events] == ["", "", "x", "", ""]
    assert cutter.close() == []


def test_data_may_have_several_lines() -> None:
    """They are joined as the standard says."""
    (event,) = EventCutter().feed(b"data: a\ndata:b\n\n")
    assert event.data == b"a\nb"


def test_a_done_without_its_empty_line_counts() -> None:
    """Some servers close right after it; another rest is no event."""
    cutter = EventCutter()
    assert len(cutter.feed(b"data: x\n\ndata: [DONE]")) == 1
    assert [event.raw for event in cutter.close()] == [b"data: [DONE]\n\n"]
    cutter = EventCutter()
    cutter.feed(b"data: {")
    assert cutter.close() == []


def test_an_event_without_end_is_refused() -> None:
    """Memory is bounded."""
    cutter = EventCutter()
    cutter.feed(b"x" * (15 << 20))
    with pytest.raises(UpstreamError, match="does not end"):
        cutter.feed(b"x" * (2 << 20))
