"""Stored responses of a daemon, and the settings that bound them."""

from __future__ import annotations

import pytest
from openai import NotFoundError

from tests.support.daemon import RealDaemon


def test_a_setting_forgets_at_once(daemon: RealDaemon) -> None:
    """What does not fit any more is gone when the setting is committed, though nobody asks for it meanwhile."""
    client = daemon.client()
    first, second = (client.responses.create(model="a", input="hi", max_output_tokens=2) for _ in range(2))
    assert client.responses.retrieve(first.id) == first
    daemon.ask("config", "set", "http.stored_responses=1")
    daemon.ask("config", "set", "http.stored_responses=100")
    assert client.responses.retrieve(first.id) == first
    with pytest.raises(NotFoundError):
        client.responses.retrieve(second.id)
