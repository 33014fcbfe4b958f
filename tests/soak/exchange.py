"""One request of the soak: what is asked, what must come back, and what became of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

# Answers that a client may get while somebody changes limits, unloads models and cancels by force.
SHORTAGES = frozenset({"queue_full", "queue_timeout", "load_timeout", "model_unloaded", "does_not_fit", "cancelled"})
CLOUD_REFUSALS = frozenset({"cloud_disabled", "model_not_found"})
# Longer than any deadline of the daemon's settings here: what takes longer hangs.
HANG_S = 120.0
HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Case:
    """A question whose answer is known."""

    model: str
    is_chat: bool
    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int | None = None
    text: str | None = None  # the answer it had alone; None before that

    @property
    def path(self) -> str:
        """The route."""
        return "/chat/completions" if self.is_chat else "/completions"

    @property
    def is_cloud(self) -> bool:
        """Whether only a cloud rule answers it."""
        return self.model.startswith("cloud-")

    def body(self, *, stream: bool) -> dict[str, Any]:
        """Return the JSON of the request."""
        asked = {"messages": [{"role": "user", "content": self.prompt}]} if self.is_chat else {"prompt": self.prompt}
        seed = {} if self.seed is None else {"seed": self.seed}
        return {
            "model": self.model,
            **asked,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "stream": stream,
            **seed,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: `kind` counts it, `failure` says what is wrong with that, if anything."""

    kind: str
    failure: str | None = None


async def learn(session: aiohttp.ClientSession, case: Case) -> Case:
    """Return the case with the answer that the daemon gives when it has nothing else to do."""
    async with session.post(case.path.lstrip("/"), json=case.body(stream=False)) as response:
        document = await response.json()
        if response.status != 200:
            raise RuntimeError(f"{case} alone is answered {response.status}: {document}")
    return dataclasses.replace(case, text=_text(document["choices"][0]))


async def ask(session: aiohttp.ClientSession, case: Case, *, stream: bool, drop_after: int | None) -> Outcome:
    """Send it; compare what comes, or hang up after *drop_after* events (0: as soon as it is sent)."""
    try:
        async with session.post(case.path.lstrip("/"), json=case.body(stream=stream)) as response:
            if drop_after == 0:
                return Outcome("dropped at once")
            if response.status != 200:
                return _refused(case, response.status, await response.json())
            if not stream:
                return _judge(case, "whole", _text((await response.json())["choices"][0]))
            return await _read_stream(case, response, drop_after)
    except TimeoutError:
        return Outcome(HUNG, f"no end within {HANG_S:.0f} s: {case}")
    except (aiohttp.ClientError, ValueError, KeyError) as error:
        return Outcome("broken", f"{error!r}: {case}")


async def _read_stream(case: Case, response: aiohttp.ClientResponse, drop_after: int | None) -> Outcome:
    text = ""
    n_events = 0
    async for event in _events(response):
        if event is None:
            return _judge(case, "streamed", text)
        n_events += 1
        if "error" in event:
            code = event["error"]["code"]
            if code in SHORTAGES and (case.text or "").startswith(text):
                return Outcome(f"stream ended: {code}")
            return Outcome("wrong", f"the stream had {text!r}, then {event}: {case}")
        for choice in event["choices"]:
            text += _text(choice)
        if drop_after is not None and n_events >= drop_after:
            return Outcome("dropped in the stream")
    return Outcome("broken", f"the stream ended without [DONE] after {text!r}: {case}")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Mapping[str, Any] | None]:
    """Yield the JSON of each event, and None for [DONE]."""
    async for line in response.content:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            yield None if data == b"[DONE]" else json.loads(data)


def _text(choice: Mapping[str, Any]) -> str:
    said = choice.get("message") or choice.get("delta")
    return str((said["content"] if said is not None and "content" in said else choice.get("text")) or "")


def _judge(case: Case, kind: str, text: str) -> Outcome:
    if text == case.text:
        return Outcome(f"{kind} from the cloud" if case.is_cloud else kind)
    return Outcome("wrong", f"said {text!r}: {case}")


def _refused(case: Case, status: int, document: Mapping[str, Any]) -> Outcome:
    code = document["error"]["code"]
    allowed = SHORTAGES | CLOUD_REFUSALS if case.is_cloud else SHORTAGES
    kind = f"{status} {code}"
    return Outcome(kind) if code in allowed and status != 500 else Outcome(kind, f"{document}: {case}")
