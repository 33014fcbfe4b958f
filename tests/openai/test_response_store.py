"""The stored responses: bounded by count and by size, the least recently used go first."""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.openai.response_store import ResponseStore, StoredResponse
from mlxd.protocol.errors import InvalidRequest, NotFound
from mlxd.protocol.settings import HttpSettings
from tests.support.http_server import settings_of


def _bounds(count: int = 1000, size: str = "64MiB") -> HttpSettings:
    return settings_of({"http": {"stored_responses": count, "stored_responses_memory": size}}).http


def _stored(name: str, previous: str | None = None, text: str = "", owner: str | None = None) -> StoredResponse:
    asked = [{"id": f"in_{name}", "type": "message", "text": text}]
    return StoredResponse(
        name,
        owner,
        orjson.dumps({"output": [{"id": f"out_{name}"}]}),
        orjson.dumps(asked),
        previous,
        (f"in_{name}", f"out_{name}"),
    )


def _has(store: ResponseStore, name: str) -> bool:
    try:
        store.get(None, name)
    except NotFound:
        return False
    return True


def test_the_least_recently_used_goes_first() -> None:
    """Being asked for, or gone on from, counts as use."""
    store = ResponseStore(lambda: _bounds(3))
    for name in ("a", "b", "c"):
        store.add(_stored(name))
    store.get(None, "a")
    store.conversation(None, "b")
    store.add(_stored("d"))
    assert [name for name in "abcd" if _has(store, name)] == ["a", "b", "d"]


def test_a_use_of_a_conversation_is_one_of_all_its_turns() -> None:
    """A conversation that goes on keeps its beginning."""
    store = ResponseStore(lambda: _bounds(3))
    store.add(_stored("first"))
    store.add(_stored("other"))
    store.add(_stored("second", "first"))
    assert [item["id"] for item in store.conversation(None, "second")] == [
        "in_first", "out_first", "in_second", "out_second",
    ]  # fmt: skip
    store.add(_stored("third", "second"))
    assert not _has(store, "other")
    assert len(store.conversation(None, "third")) == 6


def test_a_response_is_there_for_its_owner_alone() -> None:
    """Not by its id, not by that of an item, and not to go on from."""
    store = ResponseStore(_bounds)
    store.add(_stored("a", owner="me"))
    assert store.get("me", "a").id == "a"
    assert store.finder("me")("out_a") == {"id": "out_a"}
    for owner in ("you", None):
        assert store.finder(owner)("out_a") is None
        with pytest.raises(NotFound):
            store.get(owner, "a")
        with pytest.raises(InvalidRequest):
            store.conversation(owner, "a")


def test_an_item_is_found_once_in_one_input() -> None:
    """Many references to a long item would be larger than any memory; the latest response that has it counts."""
    store = ResponseStore(_bounds)
    store.add(_stored("a", text="first"))
    store.add(dataclasses.replace(_stored("a", text="second"), id="b"))
    find = store.finder(None)
    found = find("in_a")
    assert found is not None
    assert found["text"] == "second"
    assert find("in_a") is None
    store.remove(None, "b")
    assert store.finder(None)("in_a") is None
    assert store.get(None, "a").id == "a"


def test_what_is_too_large_moves_nothing_out() -> None:
    """It could not stay, whatever went."""
    store = ResponseStore(lambda: _bounds(9, "300B"))
    store.add(_stored("a"))
    store.add(_stored("b", text="x" * 300))
    assert [name for name in "ab" if _has(store, name)] == ["a"]


def test_smaller_bounds_hold_at_the_next_use() -> None:
    """The settings are read anew every time."""
    bounds = _bounds()
    store = ResponseStore(lambda: bounds)
    for name in ("a", "b", "c"):
        store.add(_stored(name))
    bounds = _bounds(1)
    assert [name for name in "abc" if _has(store, name)] == ["c"]


def test_a_conversation_that_lost_a_turn_cannot_go_on() -> None:
    """The error names the turn that is missing; so it does for one that still runs."""
    store = ResponseStore(_bounds)
    store.add(_stored("a"))
    store.add(_stored("b", "a"))
    store.remove(None, "a")
    with pytest.raises(InvalidRequest, match="it goes on from 'a'"):
        store.conversation(None, "b")
    store.begin(None, "c", 1, None)
    with pytest.raises(InvalidRequest, match="still being made"):
        store.conversation(None, "c")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["add", "get", "remove"]), st.integers(0, 9), st.integers(0, 400)), max_size=40),
    st.integers(0, 6),
    st.integers(0, 1500),
)
def test_the_bounds_always_hold(history: list[Any], count: int, size_bytes: int) -> None:
    """After any history no more is kept than the bounds allow, and the newest is, if it fits at all."""
    store = ResponseStore(lambda: _bounds(count, f"{size_bytes}B"))
    for number, (act, place, length) in enumerate(history):
        name = f"{place}" if act != "add" else f"{place}-{number}"
        if act == "add":
            response = _stored(name, text="x" * length)
            store.add(response)
            assert _has(store, name) == (count > 0 and response.size_bytes <= size_bytes)
        elif act == "get":
            _has(store, name)
        elif _has(store, name):
            store.remove(None, name)
            assert not _has(store, name)
        assert set(store._holders) == {(None, item_id) for kept in store._stored.values() for item_id in kept.item_ids}
        kept = list(store._stored.values())
        assert len(kept) <= count
        assert sum(response.size_bytes for response in kept) == store._stored_bytes <= size_bytes
