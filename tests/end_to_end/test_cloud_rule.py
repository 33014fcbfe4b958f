"""A cloud rule that is added, used and switched off while a local stream runs."""

from __future__ import annotations

import asyncio

import pytest
from openai import PermissionDeniedError

from tests.support.daemon import RealDaemon
from tests.support.streaming import LONG, Streaming, ask
from tests.support.upstream import PIECES
from tests.support.upstream import upstream as run_upstream


async def test_a_rule_serves_the_very_next_request(daemon: RealDaemon) -> None:
    """Provider, rule and switch are set while a stream runs: the next request goes out, and `disable` ends that."""
    async with run_upstream() as upstream:
        await asyncio.to_thread(_steer, daemon, upstream.url)

    assert [seen.json["model"] for seen in upstream.seen] == ["vendor/large"] * 2
    assert all("Authorization" not in seen.headers for seen in upstream.seen)
    text = daemon.config.read_text()
    assert "enabled = false" in text
    assert "[cloud.rules.big]" in text
    assert "# all that models may take" in text


def _steer(daemon: RealDaemon, upstream_url: str) -> None:
    client = daemon.client()
    whole = ask(client, "a", LONG)
    stream = Streaming(client, "a", LONG)

    daemon.mlxctl("cloud", "provider", "add", "far", "--base-url", upstream_url)
    daemon.mlxctl("cloud", "rule", "add", "big", "--match", "glob:large*", "--to", "far/vendor/large")
    with pytest.raises(PermissionDeniedError, match="mlxctl cloud enable"):
        ask(client, "large-1")
    daemon.mlxctl("cloud", "enable")

    assert ask(client, "large-1") == "".join(PIECES)
    assert Streaming(client, "large-1").finish() == "".join(PIECES)
    assert daemon.ask("cloud", "rule", "explain", "large-1")["target"] == "far/vendor/large"

    daemon.mlxctl("cloud", "disable")
    with pytest.raises(PermissionDeniedError):
        ask(client, "large-1")
    assert stream.finish() == whole
