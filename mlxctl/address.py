"""Where the daemon's HTTP server listens; one that is just being opened is waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mlxctl.client import Client

_OPENING_TIMEOUT_S = 5.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Address:
    """The address without `/v1`, or why there is none."""

    url: str | None
    problem: str | None


def find_address(daemon: Client) -> Address:
    """Return the address, or the problem, as soon as the daemon has one of them."""
    url = daemon.hello.get("http")
    if isinstance(url, str):
        return Address(url, None)
    deadline_s = time.monotonic() + _OPENING_TIMEOUT_S
    while True:
        http = daemon.request("status").result["http"]
        if http["url"] is not None or http["problem"] is not None:
            return Address(http["url"], http["problem"])
        if time.monotonic() >= deadline_s:
            return Address(None, "it is still being opened")
        time.sleep(_POLL_S)
