"""The HTTP server of a real daemon changes its host on the same port, live: by command and by hand, there and back."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from tests.support.daemon import RealDaemon, running_daemon

CONFIG = '[http]\nport = 0\n[catalog]\npaths = ["models"]\n'


def listens(daemon: RealDaemon) -> tuple[str, str | None]:
    """Return where it says it listens, once it really answers there."""
    http = daemon.ask("status")["http"]
    port = http["url"].rpartition(":")[2]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as response:
        assert response.status == 200
    return http["url"], http["problem"]


def test_the_host_changes_on_the_same_port(home: Path) -> None:
    """The daemon's own address is not taken by another program; the last API key stays until it is loopback again."""
    with running_daemon(home, CONFIG) as daemon:
        url, _ = listens(daemon)
        port = url.rpartition(":")[2]
        daemon.mlxctl("config", "set", f"http.port={port}")
        daemon.mlxctl("apikey", "create", "laptop")
        daemon.mlxctl("config", "set", "http.host=0.0.0.0")
        assert listens(daemon) == (f"http://0.0.0.0:{port}", None)
        refused = daemon.mlxctl("apikey", "revoke", "laptop", check=False)
        assert "is the last API key" in refused.stderr
        daemon.config.write_text(daemon.config.read_text().replace("0.0.0.0", "127.0.0.1"))
        daemon.mlxctl("config", "reload")
        assert listens(daemon) == (f"http://127.0.0.1:{port}", None)
        daemon.config.write_text(daemon.config.read_text().replace("127.0.0.1", "0.0.0.0"))
        daemon.mlxctl("config", "reload")
        assert listens(daemon) == (f"http://0.0.0.0:{port}", None)
        daemon.mlxctl("config", "set", "http.host=localhost")
        assert listens(daemon) == (f"http://localhost:{port}", None)
        daemon.mlxctl("apikey", "revoke", "laptop")
