"""`engine.memory`: MLX's process-wide limits have one owner."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxd.engine.base import BackendLimits
from mlxd.engine.memory import MemoryLimits, free_memory, read_memory
from mlxd.protocol.errors import GenerationFailed
from tests.engine.bench import WriteModel
from tests.engine.conftest import LIMITS
from tests.support.stepped_model import SteppedModel, load_now

RECOMMENDED_BYTES = 5_000_000_000


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretend to be on Metal; return the wired limits as they are set, the one in force last."""
    limits = [0]

    def set_wired_limit(n_bytes: int) -> int:
        limits.append(n_bytes)
        return limits[-2]

    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": RECOMMENDED_BYTES})
    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    return limits


@pytest.mark.parametrize("limit_bytes", [4_000_000_000, 9_000_000_000])
def test_wired_limit_follows_within_the_recommendation(wired: list[int], limit_bytes: int) -> None:
    """Wired is what may be used, and never more than Metal recommends."""
    MemoryLimits(BackendLimits(memory_bytes=limit_bytes, cache_bytes=1_000_000))
    assert wired[-1] == min(limit_bytes, RECOMMENDED_BYTES)
    mx.set_memory_limit(LIMITS.memory_bytes)


def test_decoders_do_not_change_the_wired_limit(wired: list[int], write_model: WriteModel) -> None:
    """The limit is set when it is told, and by nothing that mlx-lm does when a decoder is made, renewed or closed."""
    stepped = SteppedModel(load_now(write_model()))
    stepped.say("Hello")
    stepped.model.fail_batch(GenerationFailed("x"))
    stepped.model.close(GenerationFailed("x"))
    assert wired == [0]


def test_counters_follow_what_is_held() -> None:
    """Active memory grows with an array and is back when it is freed; the buffers are given back too."""
    free_memory()
    before = read_memory()
    array = mx.zeros((1000, 1000))
    mx.eval(array)
    assert read_memory().active_bytes - before.active_bytes >= 4_000_000
    del array
    free_memory()
    after = read_memory()
    assert after.active_bytes == before.active_bytes
    assert after.cache_bytes == 0
    assert after.peak_bytes >= before.active_bytes + 4_000_000
