"""What a daemon answers to `status`, made up: one loaded model that nobody uses, unless a test says otherwise."""

from __future__ import annotations

from typing import Any

GB = 10**9
MEMORY = {
    "limit_bytes": 24 * GB,
    "reserved_bytes": 18 * GB,
    "weights_bytes": 16 * GB,
    "kv_bytes": GB,
    "prompt_cache_bytes": 4 * GB // 10,
    "grammar_bytes": GB // 10,
    "loading_bytes": 0,
    "margin_bytes": GB // 2,
    "pinned_bytes": 0,
    "free_bytes": 6 * GB,
}


def model_document(**more: Any) -> dict[str, Any]:
    """Return one resident as the daemon sends it."""
    return {
        "id": "org/big",
        "state": "ready",
        "weights_bytes": 16 * GB,
        "estimated": False,
        "kv_bytes": GB,
        "prompt_cache_bytes": 0,
        "grammar_bytes": 0,
        "context_length": 32768,
        "running": 0,
        "paused": 0,
        "waiting": 0,
        "leases": 0,
        "completion_tokens": 12345,
        "tokens_per_s": 0.0,
        "pinned": False,
        "preload": False,
        "keep_alive_s": 1800.0,
        "expires_in_s": 1500.0,
        "reason": None,
        "load_done_bytes": 0,
        "load_total_bytes": 0,
        "last_error": None,
        "prompts_too_large": 0,
        **more,
    }


def status_document(
    *,
    models: list[dict[str, Any]] | None = None,
    memory: dict[str, int] | None = None,
    queue: list[dict[str, Any]] | None = None,
    preload: list[dict[str, Any]] | None = None,
    over_limit: str | None = None,
    tokens_per_s: float = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """Return the whole document; *more* replaces keys of its top."""
    pool = {
        "memory": {**MEMORY, **(memory or {})},
        "over_limit": over_limit,
        "max_models": None,
        "models": [model_document()] if models is None else models,
        "queue": queue or [],
        "preload": preload or [],
        "tokens": {"completion": 12345, "prompt": 6789, "per_s": tokens_per_s},
        "draining": False,
    }
    return {
        "version": "0.1.0",
        "pid": 4711,
        "boot_id": "boot",
        "started_at_ms": 1_000_000,
        "uptime_ms": 7_384_000,
        "gen": 12,
        "ready": True,
        "home": "/home/ada/.mlxd",
        "http": {"url": "http://127.0.0.1:6593", "problem": None},
        "config": {"path": "/home/ada/.mlxd/config.toml", "problem": None},
        "pool": pool,
        "requests": [],
        "operations": [],
        "cloud": {"enabled": False, "providers": 1, "rules": 2},
        "problems": [],
        **more,
    }
