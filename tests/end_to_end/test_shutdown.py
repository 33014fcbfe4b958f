"""The end of a daemon that is answering: what runs ends whole, or with an error event when nobody wants to wait."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai import APIError, InternalServerError

from tests.end_to_end.conftest import Spoil
from tests.support.daemon import RealDaemon
from tests.support.streaming import LONG, Streaming, ask

# Far longer than any of these tests waits.
ENDLESS = 7500


def is_ending(daemon: RealDaemon) -> bool:
    """Tell whether the daemon says that it is about to end."""
    return any("shutting down" in problem for problem in daemon.ask("status")["problems"])


def end_by_second_signal(daemon: RealDaemon) -> None:
    """Send SIGTERM, which drains, see a new request refused, and send it again."""
    assert daemon.process is not None
    client = daemon.client()
    daemon.process.send_signal(signal.SIGTERM)
    while not is_ending(daemon):
        pass
    with pytest.raises(InternalServerError, match="shutting down") as refused:
        ask(client, "a")
    assert (refused.value.status_code, refused.value.code) == (503, "draining")
    assert int(refused.value.response.headers["retry-after"]) >= 1
    daemon.process.send_signal(signal.SIGTERM)


def end_by_command(daemon: RealDaemon) -> None:
    """Run `mlxctl stop --now`, which returns when the daemon is gone."""
    assert "stopped" in daemon.mlxctl("stop", "--now").stdout
    assert daemon.ask("version")["running"] is None


def end_by_timeout(daemon: RealDaemon) -> None:
    """Send SIGTERM to a daemon that drains for a moment only."""
    assert daemon.process is not None
    daemon.mlxctl("config", "set", "daemon.drain_timeout=200ms")
    daemon.process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("end", [end_by_second_signal, end_by_command, end_by_timeout])
def test_who_is_not_waited_for_gets_an_error_event(daemon: RealDaemon, end: object) -> None:
    """A second signal, `stop --now` and the drain's timeout cancel: each stream says why, and the exit status is 0."""
    client = daemon.client()
    streams = [Streaming(client, "a", ENDLESS) for _ in range(3)]
    assert callable(end)
    end(daemon)

    for stream in streams:
        with pytest.raises(APIError, match="shutting down") as cancelled:
            stream.finish()
        assert cancelled.value.code == "cancelled"
        assert 0 < len(stream.text) < ENDLESS
    assert daemon.process is not None
    assert daemon.process.wait(60) == 0
    assert not (daemon.home / "mlxd.sock").exists()
    assert "Traceback" not in daemon.log()


def test_stop_waits_for_a_stream(daemon: RealDaemon) -> None:
    """`mlxctl stop` returns after the stream has ended whole; a daemon that was stopped is no crash."""
    client = daemon.client()
    whole = ask(client, "a", LONG)
    stream = Streaming(client, "a", LONG)
    stop = subprocess.Popen([sys.executable, "-m", "mlxctl", "stop"], env=daemon.environment, stdout=subprocess.DEVNULL)

    assert stream.finish() == whole
    assert stop.wait(60) == 0
    assert daemon.process is not None
    assert daemon.process.wait(60) == 0
    daemon.start()
    assert daemon.ask("status")["crashes"]["last_hour"] == 0


def test_a_read_that_hangs_does_not_keep_the_daemon(spoil: Spoil, switch: Path) -> None:
    """A model on a disk that does not answer delays the end by seconds only."""
    switch.touch()
    with spoil("load") as daemon:
        daemon.mlxctl("preload", "set", "b")
        while "a load hangs" not in daemon.log():
            pass
        assert daemon.terminate() == 0
        assert "something hangs" in daemon.log()
        switch.unlink()
        daemon.start()
        assert daemon.ask("status")["crashes"] == {"last_hour": 0, "last_at_ms": None, "loads": []}
