"""MLX's process-wide state: limits, counters, the device. Used on the device thread only: it is their one owner.

The limits are guidelines (over them MLX gets slower, it does not fail); the pool's admission enforces the budget.
"""

from __future__ import annotations

import gc

import mlx.core as mx

from mlxd.engine.base import BackendLimits, BackendMemory
from mlxd.heap import trim_heap


def recommended_working_set_bytes() -> int | None:
    """Return what Metal recommends to keep resident at most; None where there is no Metal. Any thread may ask."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return None if recommended is None else int(recommended)


class MemoryLimits:
    """Applies the limits and keeps the wired limit at what they say."""

    def __init__(self, limits: BackendLimits) -> None:
        self.apply(limits)

    def apply(self, limits: BackendLimits) -> None:
        """Pass *limits* on to MLX."""
        self._limits = limits
        mx.set_memory_limit(limits.memory_bytes)
        mx.set_cache_limit(limits.cache_bytes)
        recommended_bytes = recommended_working_set_bytes()
        if recommended_bytes is not None:
            mx.set_wired_limit(min(self._limits.memory_bytes, recommended_bytes))


def is_gpu() -> bool:
    """Whether models run on a GPU."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)


def read_memory() -> BackendMemory:
    """Return MLX's counters."""
    return BackendMemory(
        active_bytes=mx.get_active_memory(), cache_bytes=mx.get_cache_memory(), peak_bytes=mx.get_peak_memory()
    )


def free_memory() -> None:
    """Give back what nothing refers to any more.

    The step in flight still holds weights until the device is synchronized, and models and generators have cycles.
    """
    mx.synchronize()
    gc.collect()
    mx.clear_cache()
    trim_heap()
