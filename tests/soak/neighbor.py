"""Bad neighbors of good requests: broken and slow folders, endless templates, huge schemas and bodies, a wrong clock.

Each must be answered in words and within a bounded time; what they do to others shows in the traffic beside them.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from mlxctl.client import Client
from mlxd.protocol.errors import ControlError
from tests.soak.ending import Doing
from tests.soak.exchange import HANG_S, SHORTAGES
from tests.soak.intruder import set_clock
from tests.support.model_folder import LLAMA_CONFIG, write_model
from tests.support.tiny_model import write_tiny_model

_TEMPLATES = (
    "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "{{ 'a' * 9999999999 }}",
    "{{ raise_exception('no') }}",
    "{{ (messages | tojson) * 99999999 }}",
    "{% if",
)
_CONFIGS: tuple[Any, ...] = (
    dict(LLAMA_CONFIG) | {"model_type": ["llama"]},
    dict(LLAMA_CONFIG) | {"num_hidden_layers": 10**400},
    dict(LLAMA_CONFIG) | {"hidden_size": -1},
    dict(LLAMA_CONFIG) | {"max_position_embeddings": {}},
    [],
    "[" * 50_000,
)
_JUMPS_S = (0.0, 0.0, 3600.0, 86_400.0, 40 * 86_400.0, 3 * 365 * 86_400.0)
_MOST_BODY_BYTES = 12_000_000
_KEPT_FAILURES = 20


Kind = Callable[[aiohttp.ClientSession], Awaitable[None]]


class Neighbors:
    """Some of them at any time, until told to stop."""

    def __init__(self, url: str, home: Path, faults: Path, models: list[str], seed: int) -> None:
        """Take the daemon's address and home, the folder of its intruder, and the models that serve well."""
        self._url = url
        self._socket = home / "mlxd.sock"
        self._root = home / "models"
        self._faults = faults
        self._models = models
        self._chance = random.Random(f"{seed} neighbors")
        self._numbers = iter(range(10**9))
        self.ends: Counter[str] = Counter()
        self.failures: list[str] = []
        self.longest_s = 0.0
        self.doing = Doing()

    async def run(self, stop: asyncio.Event) -> None:
        """Have each kind come again and again, and leave nothing behind."""
        kinds = (
            self._broken_folder,
            self._bad_template,
            self._slow_folder,
            self._huge_schema,
            self._huge_body,
            self._clock,
        )
        timeout = aiohttp.ClientTimeout(total=HANG_S)
        async with aiohttp.ClientSession(base_url=f"{self._url.rstrip('/')}/", timeout=timeout) as session:
            await asyncio.gather(*(self._repeat(kind, session, stop) for kind in kinds))
        set_clock(self._faults, 0)

    async def _repeat(self, kind: Kind, session: aiohttp.ClientSession, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with self.doing.note(kind.__name__.strip("_").replace("_", " ")):
                await kind(session)
            with_pause = asyncio.wait_for(stop.wait(), self._chance.uniform(0.2, 4))
            await asyncio.gather(with_pause, return_exceptions=True)

    async def _broken_folder(self, session: aiohttp.ClientSession) -> None:
        folder = self._folder("broken")
        write_model(folder)
        config = self._chance.choice(_CONFIGS)
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        if self._chance.random() < 0.3:
            (folder / "tokenizer.json").symlink_to("/dev/zero")
        if self._chance.random() < 0.3:
            (folder / "model.safetensors").write_bytes(self._chance.randbytes(200))
        await self._ask_folder(session, "broken folder", folder)

    async def _bad_template(self, session: aiohttp.ClientSession) -> None:
        folder = self._folder("template")
        await asyncio.to_thread(write_tiny_model, folder)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": self._chance.choice(_TEMPLATES)}))
        await self._ask_folder(session, "bad template", folder, times=3)

    async def _slow_folder(self, session: aiohttp.ClientSession) -> None:
        folder = self._folder("slow")
        await asyncio.to_thread(write_tiny_model, folder)
        await self._ask_folder(session, "slow folder", folder, may_work=True)

    async def _huge_schema(self, session: aiohttp.ClientSession) -> None:
        number, size = next(self._numbers), self._chance.choice((50, 400, 1500, 5000))
        options = [{"type": "object", "properties": {f"p{number}_{i}": {"type": "integer"}}} for i in range(size)]
        schema = self._chance.choice(({"anyOf": options}, {"type": "string", "pattern": f"^a{{{size * 1000}}}$"}))
        wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
        asked = {"model": self._chance.choice(self._models), "max_tokens": 8, "response_format": wanted}
        await self._ask(session, "huge schema", asked, may_work=True)

    async def _huge_body(self, session: aiohttp.ClientSession) -> None:
        piece = self._chance.choice((b"{},", b"[],", b'{"a":[]},', b"1,"))
        filling = piece * (self._chance.randrange(1000, _MOST_BODY_BYTES) // len(piece)) + b"0"
        name = self._chance.choice((b"x", b"messages", b"stop"))
        body = b'{"model":"a","messages":[],"%b":[%b]}' % (name, filling)
        await self._send(session, "huge body", body, may_work=False)

    async def _clock(self, session: aiohttp.ClientSession) -> None:
        set_clock(self._faults, self._chance.choice(_JUMPS_S))
        self.ends["clock: jumped"] += 1

    async def _ask_folder(
        self, session: aiohttp.ClientSession, what: str, folder: Path, *, times: int = 1, may_work: bool = False
    ) -> None:
        """Have the folder found, ask its model some times at once, and delete it."""
        await asyncio.to_thread(self._rescan)
        asked = {"model": folder.name, "max_tokens": 4}
        await asyncio.gather(*(self._ask(session, what, asked, may_work=may_work) for _ in range(times)))
        await asyncio.to_thread(shutil.rmtree, folder)
        await asyncio.to_thread(self._rescan)

    def _rescan(self) -> None:
        try:
            with Client(self._socket, HANG_S) as client:
                client.request("catalog.rescan")
        except ControlError as error:
            self._fail(f"a rescan: {error.code}: {error.message}")

    async def _ask(self, session: aiohttp.ClientSession, what: str, asked: dict[str, Any], *, may_work: bool) -> None:
        body = {"messages": [{"role": "user", "content": "hello"}], **asked}
        await self._send(session, what, json.dumps(body).encode(), may_work=may_work)

    async def _send(self, session: aiohttp.ClientSession, what: str, body: bytes, *, may_work: bool) -> None:
        """Send it; it ends in time, as an answer if it may work, else as an error in words that is nobody else's."""
        start_s = time.monotonic()
        try:
            headers = {"Content-Type": "application/json"}
            async with session.post("chat/completions", data=body, headers=headers) as response:
                document = await response.json()
                status = response.status
        except TimeoutError:
            self._fail(f"{what}: no end within {HANG_S:.0f} s")
            return
        except aiohttp.ClientConnectionError as error:  # a body that is refused before it is read closes the connection
            self.ends[f"{what}: {type(error).__name__}"] += 1
            return
        except (aiohttp.ClientError, ValueError) as error:
            self._fail(f"{what}: {error!r}")
            return
        self.longest_s = max(self.longest_s, time.monotonic() - start_s)
        code = "an answer" if status == 200 else str(document["error"]["code"])
        self.ends[f"{what}: {code}"] += 1
        if status == 200 and not may_work:
            self._fail(f"{what} was answered: {document}")
        if code == "internal_error" or (
            status == 500 and code not in {"load_failed", "template_failed", "error"} | SHORTAGES
        ):
            self._fail(f"{what}: {status} {document}")

    def _folder(self, kind: str) -> Path:
        return self._root / f"{kind}-{next(self._numbers)}"

    def _fail(self, words: str) -> None:
        if len(self.failures) < _KEPT_FAILURES:
            self.failures.append(words)
