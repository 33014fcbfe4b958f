"""Waits until a daemon has nothing to do any more, and says what it still does."""

from __future__ import annotations

import time
from pathlib import Path

from mlxctl.client import Client

_QUIET_S = 90.0
_PATIENCE_S = 60.0


def wait_quiet(client: Client) -> list[str]:
    """Wait until nothing runs; return what still does after a while."""
    deadline_s = time.monotonic() + _QUIET_S
    while busy := _find_busy(client):
        if time.monotonic() > deadline_s:
            return [f"not quiet after {_QUIET_S:.0f} s: {what}" for what in busy]
        time.sleep(0.2)
    return []


def unload_all(socket: Path, models: list[str]) -> list[str]:
    """Unload every model; return what is reserved although there is nothing."""
    with Client(socket, _PATIENCE_S) as client:
        for model in models:
            client.request("model.unload", {"model": model})
        failures = wait_quiet(client)
        memory = client.request("pool.show").result["memory"]
        if memory["reserved_bytes"]:
            failures.append(f"bytes are reserved without a model: {memory}")
    return failures


def _find_busy(client: Client) -> list[str]:
    status = client.request("status").result
    pool = status["pool"]
    busy = [f"request {request['id']} on {request['model']}" for request in status["requests"]]
    busy += [f"waiting {wait['request_id']}: {wait['reason']}" for wait in pool["queue"]]
    busy += [f"operation {operation['op']} ({operation['kind']})" for operation in status["operations"]]
    for model in pool["models"]:
        held = {name: model[name] for name in ("running", "paused", "waiting", "leases") if model[name]}
        if held or model["state"] not in {"ready", "unloaded", "failed"}:
            busy.append(f"{model['id']} is {model['state']}: {held}")
    busy += [f"problem: {problem}" for problem in status["problems"]]
    return busy
