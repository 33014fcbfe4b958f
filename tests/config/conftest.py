"""Stores over the test's own folder."""

from pathlib import Path
from typing import Any

import pytest

from mlxd.config import SettingsStore, StoreEvent
from tests.support.settings import USABLE_BYTES, MakeStore, Owner, StoreFixture, turn


@pytest.fixture
def make(tmp_path: Path) -> MakeStore:
    """Return a maker of stores over the same folder."""

    def _make(text: str | None = None, **more: Any) -> StoreFixture:
        path = tmp_path / "config.toml"
        if text is not None:
            path.write_text(text)
        owner = Owner()
        events: list[StoreEvent] = []
        store = SettingsStore(path, tmp_path / "history", USABLE_BYTES, **{"pause": turn, **more})
        store.subscribe(events.append)
        fixture = StoreFixture(path, store, owner, events)
        fixture.attach("owner", owner)
        return fixture

    return _make
