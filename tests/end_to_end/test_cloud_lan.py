"""Another mlxd on the network as a provider: what does not fit here is answered there, and both tell of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import InternalServerError

from tests.support.daemon import RealDaemon, running_daemon
from tests.support.streaming import LONG, Streaming, ask
from tests.support.tiny_model import write_tiny_model

SMALL = '[http]\nport = 0\n[pool]\nmemory = "1MB"\n[catalog]\npaths = ["models"]\n'
LARGE = '[http]\nport = 0\n[pool]\nmemory = "2GB"\n[catalog]\npaths = ["models"]\n'


def test_what_does_not_fit_is_answered_by_the_other_machine(tmp_path: Path) -> None:
    """Headers and both logs say who answered and why; edits and `disable` leave the running answer alone."""
    for name in ("small", "large"):
        write_tiny_model(tmp_path / name / "models" / "m", context=8192)
    with running_daemon(tmp_path / "large", LARGE) as large, running_daemon(tmp_path / "small", SMALL) as small:
        small.mlxctl("cloud", "provider", "add", "lan", "--base-url", large.base_url)
        small.mlxctl(
            "cloud", "rule", "add", "big", "--match", "m", "--mode", "fallback", "--on", "does_not_fit", "--to", "lan/m"
        )
        with pytest.raises(InternalServerError, match="the memory limit is"):
            ask(small.client(), "m")
        small.mlxctl("cloud", "enable")
        _ask_in_the_open(small)
        whole = ask(large.client(), "m", LONG)
        stream = Streaming(small.client(), "m", LONG)
        small.mlxctl("cloud", "rule", "set", "big", "--on", "oom")
        small.mlxctl("cloud", "provider", "set", "lan", "--timeouts", "idle=1s")
        small.mlxctl("cloud", "disable")
        assert small.mlxctl("cloud", "provider", "remove", "lan", check=False).returncode == 5
        small.mlxctl("cloud", "provider", "remove", "lan", "--cascade")
        assert small.ask("cloud", "rule", "list")["rules"] == []
        with pytest.raises(InternalServerError, match="the memory limit is"):
            ask(small.client(), "m")
        assert stream.finish() == whole
        _read_both_logs(small, large)


def _ask_in_the_open(small: RealDaemon) -> None:
    answer = small.client().chat.completions.with_raw_response.create(
        model="m",
        messages=[{"role": "user", "content": "hello"}],
        max_tokens=8,
        extra_headers={"x-request-id": "story-1"},
    )
    told = {name: answer.headers.get(f"x-mlxd-{name}") for name in ("route", "target", "reason", "rule", "attempts")}
    assert told == {"route": "cloud", "target": "lan/m", "reason": "does_not_fit", "rule": "big", "attempts": "1"}
    assert answer.headers["x-request-id"] == "story-1"


def _read_both_logs(small: RealDaemon, large: RealDaemon) -> None:
    (line,) = (line for line in small.log().splitlines() if "story-1" in line)
    assert "model m (lan/m), rule big after does_not_fit, tried lan/m 200" in line
    assert any("/v1/chat/completions" in line and "local" in line for line in large.log().splitlines())
