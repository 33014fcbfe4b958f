"""Keys of providers go to their upstreams and nowhere else."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.daemon import RealDaemon, running_daemon
from tests.support.upstream import Upstream
from tests.support.upstream import upstream as run_upstream

CONFIG = '[daemon]\nlog_level = "debug"\n[http]\nport = 0\n[catalog]\npaths = ["models"]\n'
KEYS = {"env": "sk-env-271828182845", "file": "sk-file-314159265358", "keychain": "sk-keychain-141421356237"}


class Watched:
    """A daemon, and all that anybody was shown of it."""

    def __init__(self, daemon: RealDaemon) -> None:
        self.daemon = daemon
        self.shown: dict[str, str] = {}

    def run(self, *arguments: str, stdin: str = "") -> None:
        """Run a command; keep what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "mlxctl", *arguments],
            env=self.daemon.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.shown[f"{len(self.shown)} {' '.join(arguments)}"] = done.stdout + done.stderr

    def post(self, model: str, *, stream: bool) -> None:
        """Send a chat; keep headers and body of the answer."""
        address = urlsplit(self.daemon.base_url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        self.shown[f"chat {len(self.shown)}"] = f"{answer.status} {answer.getheaders()} {answer.read().decode()}"
        connection.close()

    def leaks(self) -> set[str]:
        """Return where one of the keys can be read: what was shown, every file but the key's own, and `ps`."""
        texts = dict(self.shown)
        for path in self.daemon.home.rglob("*"):
            if path.is_file() and path != self.daemon.home / "secrets" / "file":
                texts[str(path)] = path.read_bytes().decode(errors="replace")
        texts["ps"] = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert len(texts) > 50
        return {where for where, text in texts.items() for key in KEYS.values() if key in text}


async def test_a_key_is_seen_by_its_upstream_alone(tmp_path: Path) -> None:
    """From the environment, a file and a keychain: in no log, event, history, error, reply or command line."""
    async with run_upstream() as far:
        await asyncio.to_thread(_live, tmp_path / "home", far)
    sent = [seen.headers.get("Authorization") for seen in far.seen]
    assert {f"Bearer {key}" for key in KEYS.values()} == set(sent)


def _live(home: Path, far: Upstream) -> None:
    environment = {
        "FAR_KEY": KEYS["env"],
        "PYTHON_KEYRING_BACKEND": "tests.support.shared_keychain.Keychain",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    if sys.platform == "darwin":
        pytest.skip("its `ps` shows environments of one's own processes to their owner, and so does this test's")
    with running_daemon(home, CONFIG, environment=environment) as daemon:
        watched = Watched(daemon)
        line = [sys.executable, "-m", "mlxctl", "events", "--json"]
        events = subprocess.Popen(line, env=daemon.environment, stdout=subprocess.PIPE, text=True)
        _configure(watched, home, far)
        _use(watched, far)
        events.terminate()
        watched.shown["events"] = events.communicate(timeout=30)[0]
        assert "config.changed" in watched.shown["events"]
        assert watched.leaks() == set()


def _configure(watched: Watched, home: Path, far: Upstream) -> None:
    (home / "secrets").mkdir(mode=0o700)
    (home / "secrets" / "file").write_text(KEYS["file"])
    (home / "secrets" / "file").chmod(0o600)
    auths = {"env": "env:FAR_KEY", "file": "file:secrets/file", "keychain": "none"}
    for name, auth in auths.items():
        watched.run("cloud", "provider", "add", name, "--base-url", far.url, "--auth", auth)
        watched.run("cloud", "rule", "add", name, "--match", name, "--to", f"{name}/m")
    watched.run("key", "set", "keychain", "--provider", "keychain", stdin=KEYS["keychain"])
    watched.run("key", "set", "x", "--provider", "nope", stdin=KEYS["keychain"])
    watched.run("key", "set", "x y", stdin=KEYS["keychain"])
    watched.run("cloud", "enable")


def _use(watched: Watched, far: Upstream) -> None:
    quoting = json.dumps({"error": {"message": f"wrong key: {' '.join(KEYS.values())}", "code": "c"}}).encode()
    for name in KEYS:
        far.behaviour = "answer"
        watched.run("cloud", "provider", "test", name)
        watched.post(name, stream=True)
        for far.behaviour, far.status in (("refuse", 400), ("refuse", 503), ("die", 0), ("refuse", 401)):
            far.reply = quoting
            watched.post(name, stream=False)
        watched.run("cloud", "provider", "test", name)
    for words in (
        "status --json",
        "key list",
        "cloud show --json",
        "cloud provider show env --json",
        "config list --show-origin --json",
        "config get cloud.providers.env.auth",
        "config diff 1",
        "logs",
        "doctor",
    ):
        watched.run(*words.split())
