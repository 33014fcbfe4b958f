"""The settings file of a real daemon: broken at the start, edited by two terminals, taken up by a signal."""

from __future__ import annotations

import signal
import tomllib
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.end_to_end.conftest import CONFIG
from tests.support.daemon import RealDaemon


def get_models(daemon: RealDaemon) -> tuple[int, bytes]:
    """Ask over HTTP; return status and body."""
    try:
        with urllib.request.urlopen(f"{daemon.base_url}/models", timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_a_file_that_is_broken_at_the_start_is_rolled_back(home: Path) -> None:
    """Control comes up, HTTP says 503 and why, status has the line; a rollback serves again without a restart."""
    daemon = RealDaemon(home)
    daemon.configure(CONFIG)
    daemon.start()
    try:
        daemon.mlxctl("config", "set", "queue.size", "9")
        saved = daemon.config.read_text()
        assert daemon.terminate() == 0
        # The default port may be taken on this machine; the place of the mistake is what is tested.
        daemon.config.write_text(saved + "[queue\n")
        daemon.start()
        status = daemon.ask("status")
        assert status["config"]["problem"]["code"] == "config.file_invalid"
        assert "config.toml:" in status["problems"][0]
        assert "mlxctl config rollback 2" in status["problems"][0]
        if status["http"]["url"] is not None:
            code, body = get_models(daemon)
            assert (code, b"config.file_invalid" in body) == (503, True)
        assert daemon.mlxctl("config", "set", "queue.size", "3", check=False).returncode == 10
        daemon.mlxctl("config", "rollback", "2")
        assert daemon.config.read_text() == saved
        assert daemon.ask("status")["problems"] == []
        assert get_models(daemon)[0] == 200
        assert [path.read_text() for path in (home / "history").glob("rejected-*")] == [saved + "[queue\n"]
    finally:
        assert daemon.terminate() == 0


def test_two_terminals_and_an_editor(daemon: RealDaemon) -> None:
    """Two loops of commits and a person who edits: every commit is answered, all that was said last holds."""

    def commit(key: str) -> None:
        for number in range(1, 6):
            daemon.mlxctl("config", "set", key, str(number))

    with ThreadPoolExecutor(2) as terminals:
        running = [terminals.submit(commit, key) for key in ("queue.size", "queue.per_model")]
        for done in running:
            done.result()
    daemon.mlxctl("config", "set", "queue.size", "7", "--runtime-only")
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace("# my own settings", "# my own settings, edited").replace("30m", "31m"))
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.ask("config", "reload")["schema"] == "mlxctl/v1"
    shown = {line["key"]: line for line in daemon.ask("config", "list")["settings"]}
    assert (shown["queue.size"]["value"], shown["queue.size"]["saved"]) == (7, 5)
    assert (shown["queue.per_model"]["value"], shown["pool.keep_alive"]["written"]) == (5, "31m")
    document = tomllib.loads(daemon.config.read_text())
    assert document["queue"] == {"size": 5, "per_model": 5}
    assert daemon.config.read_text().startswith("# my own settings, edited")
    assert daemon.ask("status")["config"]["overlay"] == ["queue.size"]
