"""A fake hub that the client of this process is pointed at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.fake_hub import FakeHub, models
from tests.support.hub_client import point_at
from tests.support.model_folder import LLAMA_CONFIG, write_safetensors


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the cache of the client, empty."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Return a running hub that the client is pointed at; its weights are small."""
    write_safetensors(tmp_path / "weights")
    with FakeHub(models((tmp_path / "weights").read_bytes(), json.dumps(dict(LLAMA_CONFIG)).encode())) as hub:
        point_at(hub.url, monkeypatch)
        yield hub
