"""Random changes of a running daemon: settings, models, rules, and edits of its file by hand."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxctl.client import Client
from mlxd.protocol.errors import ControlError
from tests.soak.ending import Doing

COMMENT = "# what a person wrote"
CONFIG = f"""\
{COMMENT}
[http]
port = 0

[pool]
memory = "2GB"  # the limit
keep_alive = "5m"

[queue]
timeout = "20s"

[engine]
prompt_cache = "2MB"

[catalog]
paths = ["models"]
"""
# 2.5 MB hold one model and little KV, 5 MB two, 8 MB all three with some streams.
_VALUES: Mapping[str, tuple[Any, ...]] = {
    "pool.memory": ("2500KB", "5MB", "5MB", "8MB", "20MB", "2GB", "2GB"),
    "pool.max_models": (1, 2, 3, None),
    "pool.keep_alive": ("0s", "500ms", "5m", "never"),
    "pool.policy": ("lru", "lfu"),
    "pool.evict_patience": ("0s", "500ms", "5s"),
    "queue.size": (4, 16, 256, 256),
    "queue.per_model": (3, 16, 64, 64),
    "engine.max_sequences": (1, 2, 8, 32),
    "engine.prefill_step": ("auto", 16, 64),
    "engine.target_gap": ("5ms", "30ms"),
    "engine.prompt_cache": ("0B", "500KB", "2MB"),
}
NEUTRAL: Mapping[str, Any] = {
    "pool.memory": "2GB",
    "pool.max_models": None,
    "pool.keep_alive": "never",
    "pool.preload": [],
    "queue.size": 256,
    "queue.per_model": 64,
    "engine.max_sequences": 32,
    "engine.prompt_cache": "0B",
    "cloud.enabled": False,
}

_KEPT_FAILURES = 20


class Steering:
    """One operator who is never content."""

    def __init__(self, socket: Path, config: Path, models: list[str], upstream_url: str, seed: int) -> None:
        """Take the daemon's socket and file, and what there is to steer."""
        self._socket = socket
        self._config = config
        self._models = models
        self._upstream_url = upstream_url
        self._chance = random.Random(f"{seed} steering")
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.failures: list[str] = []
        self.doing = Doing()
        self._actions: list[tuple[int, Callable[[Client], None]]] = [
            (10, self._set),
            (3, self._set_several),
            (3, self._preload),
            (2, self._pin),
            (3, self._load),
            (3, self._unload),
            (1, self._reset),
            (5, self._cloud),
            (2, self._edit_by_hand),
            (1, self._break_by_hand),
            (1, self._reload),
            (3, self._look),
        ]

    def run(self, stop: threading.Event) -> None:
        """Change something, and again, until *stop*."""
        weights = [weight for weight, _ in self._actions]
        with Client(self._socket, 60) as client:
            while not stop.wait(self._chance.uniform(0.02, 0.8)):
                _, action = self._chance.choices(self._actions, weights)[0]
                name = action.__name__.strip("_").replace("_", " ")
                try:
                    action(client)
                except ControlError as error:
                    self.refused[f"{name}: {error.code}"] += 1
                    if error.code == "internal_error" or error.code.startswith("control."):
                        self._fail(f"{name}: {error.code}: {error.message}")
                self.done[name] += 1

    def calm(self, client: Client) -> None:
        """Undo all of it, so that everything may end."""
        client.request("settings.reload")
        for model in self._models:
            client.request("model.unpin", {"model": model})
        client.request("settings.set", {"changes": dict(NEUTRAL), "force": True})

    def _set(self, client: Client) -> None:
        key = self._chance.choice(list(_VALUES))
        self._request(client, "settings.set", {"changes": {key: self._chance.choice(_VALUES[key])}})

    def _set_several(self, client: Client) -> None:
        keys = self._chance.sample(list(_VALUES), 3)
        self._request(client, "settings.set", {"changes": {key: self._chance.choice(_VALUES[key]) for key in keys}})

    def _preload(self, client: Client) -> None:
        models = self._chance.sample(self._models, self._chance.randrange(len(self._models)))
        self._request(client, "preload.set", {"models": models, "force": self._chance.random() < 0.5})

    def _pin(self, client: Client) -> None:
        what = "model.pin" if self._chance.random() < 0.3 else "model.unpin"
        self._request(client, what, {"model": self._model()})

    def _load(self, client: Client) -> None:
        self._request(client, "model.load", {"model": self._model()})

    def _unload(self, client: Client) -> None:
        self._request(client, "model.unload", {"model": self._model(), "force": self._chance.random() < 0.2})

    def _reset(self, client: Client) -> None:
        self._request(client, "model.reset", {"model": self._model()})

    def _cloud(self, client: Client) -> None:
        provider = {"id": "far", "base_url": self._upstream_url}
        rule = {"id": "all", "match": "glob:cloud-*", "mode": "always", "to": ["far/vendor/large"]}
        choices: list[tuple[str, Mapping[str, Any]]] = [
            ("cloud.provider.add", provider),
            ("cloud.provider.remove", {"id": "far"}),
            ("cloud.rule.add", rule),
            ("cloud.rule.add", rule),
            ("cloud.rule.remove", {"id": "all"}),
            ("cloud.enable", {}),
            ("cloud.enable", {}),
            ("cloud.disable", {}),
        ]
        operation, params = self._chance.choice(choices)
        self._request(client, operation, params)

    def _edit_by_hand(self, client: Client) -> None:
        text = self._config.read_text()
        line = next(line for line in text.splitlines() if line.startswith("timeout = "))
        self._replace(text.replace(line, f'timeout = "{self._chance.choice((15, 20, 25))}s"'))

    def _break_by_hand(self, client: Client) -> None:
        text = self._config.read_text()
        self._replace(text + "nonsense\n")
        try:
            self._request(client, "settings.set", {"changes": {"queue.size": 99}})
        except ControlError as error:
            if error.code != "config.file_invalid":
                raise
            self.refused[f"break by hand: {error.code}"] += 1
        else:
            self._fail("a broken file was taken, or overwritten")
        finally:
            self._replace(text)

    def _reload(self, client: Client) -> None:
        self._request(client, "settings.reload", {})

    def _look(self, client: Client) -> None:
        self._request(client, self._chance.choice(["status", "ps", "pool.show", "queue.show", "model.list"]), {})

    def _model(self) -> str:
        return self._chance.choice(self._models)

    def _request(self, client: Client, operation: str, params: Mapping[str, Any]) -> None:
        with self.doing.note(f"{operation} {params}"):
            client.request(operation, params)

    def _fail(self, words: str) -> None:
        if len(self.failures) < _KEPT_FAILURES:
            self.failures.append(words)

    def _replace(self, text: str) -> None:
        """Write as editors do, in one of the two ways."""
        if self._chance.random() < 0.5:
            self._config.write_text(text)
            return
        temp = self._config.with_name("config.toml.swp")
        temp.write_text(text)
        temp.chmod(0o600)
        temp.replace(self._config)
