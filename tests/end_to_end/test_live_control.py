"""`mlxctl` steers a daemon that is answering: limits, lists and rules move at once, and no stream breaks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from openai import APIStatusError

from tests.support.daemon import RealDaemon, running_daemon
from tests.support.streaming import LONG, Streaming, ask


def states(daemon: RealDaemon) -> dict[str, str]:
    """Return model → state of what the pool holds."""
    return {model["id"]: model["state"] for model in daemon.ask("pool", "show")["models"]}


def test_a_lower_limit_unloads_the_idle_model_and_spares_the_streaming_one(daemon: RealDaemon) -> None:
    """With one of two models streaming, a limit below their sum takes the idle one only; the stream ends whole."""
    client = daemon.client()
    whole = ask(client, "a", LONG)
    ask(client, "b")
    stream = Streaming(client, "a")

    memory = daemon.ask("pool", "show")["memory"]
    # Prompt caches would be given back first: a limit that is short of half a model without them.
    short_bytes = memory["prompt_cache_bytes"] + memory["weights_bytes"] // 4
    change = daemon.ask("pool", "set-memory", f"{memory['reserved_bytes'] - short_bytes}B", "--wait")

    assert [victim["id"] for victim in change["evicting"]] == ["b"]
    assert states(daemon).get("b", "unloaded") == "unloaded"
    assert states(daemon)["a"] == "ready"
    assert stream.finish() == whole
    assert stream.finish_reason == "length"


def test_a_limit_below_the_streaming_model_drains_it_and_lasts_over_a_restart(daemon: RealDaemon) -> None:
    """The limit is committed at once and lasts; the stream ends whole, then the model goes; the file keeps the rest."""
    client = daemon.client()
    whole = ask(client, "a", LONG)
    stream = Streaming(client, "a")

    change = daemon.ask("pool", "set-memory", "1MB")

    assert [model["id"] for model in change["draining"]] == ["a"]
    assert change["over_limit"] is not None
    with pytest.raises(APIStatusError) as refused:
        ask(client, "a")
    assert refused.value.status_code == 507
    assert refused.value.code == "does_not_fit"
    assert stream.finish() == whole
    daemon.mlxctl("pool", "set", "keep_alive=29m", "--wait")
    assert states(daemon).get("a", "unloaded") == "unloaded"
    text = daemon.config.read_text()
    assert '# all that models may take\nmemory = "1MB"\n' in text
    assert text.index("# my own settings") < text.index("[http]") < text.index("[pool]") < text.index("[catalog]")
    assert daemon.terminate() == 0
    daemon.start()
    assert daemon.ask("pool", "show")["memory"]["limit_bytes"] == 1_000_000


def test_preload_list_and_model_bound_apply_while_a_stream_runs(daemon: RealDaemon) -> None:
    """`preload set` loads, `pool set-max-models 1` takes the idle model, and the stream ends whole."""
    client = daemon.client()
    whole = ask(client, "a", LONG)
    stream = Streaming(client, "a")

    daemon.mlxctl("preload", "set", "b", "--wait")
    assert states(daemon) == {"a": "ready", "b": "ready"}

    daemon.mlxctl("preload", "set")
    daemon.mlxctl("pool", "set-max-models", "1", "--wait")
    assert states(daemon)["a"] == "ready"
    assert states(daemon).get("b", "unloaded") == "unloaded"
    assert stream.finish() == whole


def test_a_shorter_keep_alive_expires_an_idle_model(daemon: RealDaemon) -> None:
    """`pool set-keep-alive 0s` unloads what is idle at once, and a model that streams when its stream ends."""
    client = daemon.client()
    ask(client, "b")
    stream = Streaming(client, "a", 500)

    daemon.mlxctl("pool", "set-keep-alive", "0s", "--wait")

    assert states(daemon).get("b", "unloaded") == "unloaded"
    stream.finish()
    while states(daemon).get("a", "unloaded") != "unloaded":
        pass


def test_a_bad_value_is_refused_with_its_bound_and_changes_nothing(daemon: RealDaemon) -> None:
    """Exit status 10, the bound in the message, the file byte-identical, the generation unmoved."""
    before, generation = daemon.config.read_bytes(), daemon.ask("status")["gen"]

    for command, says in (
        (("pool", "set-memory", "-5GB"), "1MB"),
        (("pool", "set-memory", "500%"), "100%"),
        (("pool", "set-memory", "abc"), "24GB or 512MiB"),
        (("pool", "set-max-models", "0"), "from 1 to 1000"),
        (("config", "set", "pool.memroy=1GB"), "pool.memory"),
    ):
        refused = daemon.mlxctl(*command, check=False)
        assert refused.returncode == 10, command
        assert says in refused.stderr
        assert refused.stdout == ""
        assert daemon.config.read_bytes() == before
        assert daemon.ask("status")["gen"] == generation


def test_an_edit_by_hand_is_taken_up_and_a_broken_one_is_not(daemon: RealDaemon) -> None:
    """A saved edit applies without a command; a broken file is named with its line, and the old settings hold."""
    daemon.config.write_text(daemon.config.read_text().replace('"2GB"', '"1GB"'))
    while daemon.ask("pool", "show")["memory"]["limit_bytes"] != 10**9:
        pass

    daemon.config.write_text(daemon.config.read_text().replace('"1GB"', "oops"))
    refused = daemon.mlxctl("pool", "set-max-models", "3", "--json", check=False)

    assert refused.returncode == 10
    error = json.loads(refused.stdout or refused.stderr)["error"]
    assert error["code"] == "config.file_invalid"
    assert "config.toml:7" in error["message"]
    assert daemon.ask("pool", "show")["memory"]["limit_bytes"] == 10**9


def test_a_broken_file_at_start_lets_the_daemon_come_up_and_say_so(daemon: RealDaemon) -> None:
    """The control socket answers with the exact place, HTTP answers 503, and a fixed file brings the daemon up."""
    good = daemon.config.read_text()
    assert daemon.terminate() == 0
    daemon.configure(good.replace("[pool]", "[pool"))
    daemon.start()

    status = daemon.ask("status")
    assert "config.toml:5" in " ".join(status["problems"])

    daemon.configure(good)
    while daemon.ask("status")["problems"]:
        pass
    assert len(ask(daemon.client(), "a")) == 8


def test_a_second_daemon_on_the_same_home_is_refused(daemon: RealDaemon) -> None:
    """The lock lets one daemon run; the other says which and exits with a conflict."""
    assert daemon.process is not None
    second = subprocess.run(
        [sys.executable, "-m", "mlxd"], env=daemon.environment, capture_output=True, text=True, check=False, timeout=60
    )

    assert second.returncode == 5
    assert f"pid {daemon.process.pid}" in second.stderr
    assert daemon.ask("status")["pid"] == daemon.process.pid


def test_sigterm_lets_a_stream_end(home: object, daemon: RealDaemon) -> None:
    """After SIGTERM a running stream ends whole, and the daemon exits 0."""
    client = daemon.client()
    whole = ask(client, "a", 1000)
    stream = Streaming(client, "a", 1000)
    assert daemon.process is not None
    daemon.process.terminate()

    assert stream.finish() == whole
    assert daemon.process.wait(60) == 0
    assert not (daemon.home / "mlxd.sock").exists()


def test_a_taken_port_is_said_and_the_daemon_lives(daemon: RealDaemon) -> None:
    """A second home on the same port comes up, names the port, and serves after `config set http.port=0`."""
    port = daemon.base_url.rsplit(":", 1)[1].split("/")[0]
    other_home = daemon.home.with_name("other")
    with running_daemon(other_home, f"[http]\nport = {port}\n[catalog]\npaths = []\n") as other:
        assert any(port in problem for problem in other.ask("status")["problems"])
        other.mlxctl("config", "set", "http.port=0")
        assert other.ask("status")["problems"] == []
        assert list(other.client().models.list()) == []
