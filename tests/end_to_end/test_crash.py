"""`kill -9` while all is set, and a model whose load is the end of the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import APIError, InternalServerError

from tests.end_to_end.conftest import Spoil
from tests.support.daemon import RealDaemon
from tests.support.streaming import Streaming, ask


def test_a_killed_daemon_comes_back_as_it_was_set(daemon: RealDaemon) -> None:
    """Limit, bound, preload list and pin that were set live are there after `kill -9`; the list is loaded again."""
    daemon.mlxctl("pool", "set", "memory=1GB", "max_models=2")
    daemon.mlxctl("preload", "set", "a", "--wait")
    daemon.mlxctl("model", "pin", "b")
    daemon.kill()
    daemon.start()

    wait_ready(daemon)
    pool = daemon.ask("pool", "show")
    assert (pool["memory"]["limit_bytes"], pool["max_models"]) == (10**9, 2)
    models = {model["id"]: model for model in pool["models"]}
    assert (models["a"]["state"], models["a"]["preload"], models["b"]["pinned"]) == ("ready", True, True)
    status = daemon.ask("status")
    assert (status["crashes"]["last_hour"], status["crashes"]["loads"]) == (1, [])
    assert "1 in the last hour" in daemon.mlxctl("status").stdout


def test_a_load_that_kills_the_daemon_is_not_tried_for_ever(spoil: Spoil, switch: Path) -> None:
    """Killed in the load of b twice, while a waits for its turn, it leaves b alone, says why and serves a.

    A reset loads b again.
    """
    switch.touch()
    with spoil("load") as daemon:
        daemon.mlxctl("preload", "set", "b")
        for deaths in range(2):
            while daemon.log().count("a load hangs") <= deaths:
                pass
            daemon.mlxctl("model", "load", "a")
            daemon.kill()
            daemon.start()
        switch.unlink()

        wait_ready(daemon)
        status = daemon.ask("status")
        (model,) = status["pool"]["models"]
        assert (model["id"], model["state"]) == ("b", "failed")
        assert [(load["model"], load["times"]) for load in status["crashes"]["loads"]] == [("b", 2)]
        (problem,) = status["problems"]
        assert "preload b has failed: b is not loaded: the daemon died while it loaded it, 2 times in a row" in problem
        client = daemon.client()
        with pytest.raises(InternalServerError, match="2 times in a row") as refused:
            ask(client, "b")
        assert refused.value.code == "load_failed"
        assert refused.value.response.headers["x-should-retry"] == "false"
        by_command = daemon.mlxctl("model", "load", "b", check=False)
        assert by_command.returncode == 1
        assert "mlxctl model reset b" in by_command.stderr
        assert len(ask(client, "a")) == 8

        assert "reset b" in daemon.mlxctl("model", "reset", "b").stdout
        assert len(ask(client, "b")) == 8
        assert daemon.ask("status")["crashes"]["loads"] == []
        assert daemon.terminate() == 0
        daemon.start()
        assert daemon.ask("status")["crashes"]["last_hour"] == 2


def test_a_daemon_whose_device_fails_ends_so_that_it_is_started_again(spoil: Spoil, switch: Path) -> None:
    """Streams end with an error event, and the exit status is one after which launchd and systemd start it anew.

    The next daemon counts it as a crash.
    """
    with spoil("run") as daemon:
        stream = Streaming(daemon.client(), "a")
        switch.touch()
        with pytest.raises(APIError, match="the device thread failed: ZeroDivisionError: division by zero"):
            stream.finish()
        assert daemon.process is not None
        assert daemon.process.wait(60) == 1
        assert "mlxd ends, so that a new one can begin with nothing" in daemon.log()
        switch.unlink()
        daemon.start()
        assert len(ask(daemon.client(), "a")) == 8
        assert daemon.ask("status")["crashes"]["last_hour"] == 1


def wait_ready(daemon: RealDaemon) -> None:
    """Return when the preload list is done with."""
    while not daemon.ask("status")["ready"]:
        pass
