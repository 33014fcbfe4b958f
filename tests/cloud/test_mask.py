"""A key in an upstream's words is found however it is written there."""

from __future__ import annotations

import json

import pytest

from mlxd.cloud import mask

KEY = 'sk"a/b\\c'


@pytest.mark.parametrize(
    "data",
    [KEY, json.dumps({"key": KEY}), json.dumps([KEY]).replace("/", "\\/"), f"x{KEY}x{KEY}x"],
    ids=["plain", "json", "json with escaped slashes", "twice"],
)
def test_every_way_to_write_a_key_is_masked(data: str) -> None:
    """As it is, and as JSON may escape it."""
    assert mask.holds(data.encode(), KEY)
    masked = mask.masked(data.encode(), KEY)
    assert b"[the provider's key]" in masked
    assert b"sk" not in masked
    assert b"/b" not in masked


def test_without_a_key_nothing_is_changed() -> None:
    """Also where the key is empty."""
    for secret in (None, ""):
        assert not mask.holds(b"sk-1", secret)
        assert mask.masked(b"sk-1", secret) == b"sk-1"
