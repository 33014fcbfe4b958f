"""Test a provider: the request that is sent, and the verdict on its answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from mlxd.cloud.attempt import REFUSED_KEY, status_of
from mlxd.cloud.errand import Errand
from mlxd.cloud.protocol import Protocol
from mlxd.cloud.protocol.base import parse
from mlxd.protocol.errors import MlxdError

_SHOWN_CHARACTERS = 300
_ENDPOINTS = {"openai": "chat/completions", "anthropic": "messages"}


@dataclass(frozen=True, slots=True)
class Probe:
    """What came back from one call."""

    url: str
    is_ok: bool
    status: int | None  # None: there was no answer
    ms: int
    code: str | None = None  # of what went wrong
    reason: str | None = None
    models: tuple[str, ...] = ()


def tiny_request(protocol: Protocol, model: str) -> Errand:
    """Return the cheapest request that makes a model say something."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}
    return Errand(protocol.name, _ENDPOINTS[protocol.name], orjson.dumps(body), wants_stream=False, hops=1)


def answered(url: str, status: int, body: bytes, protocol: Protocol, secret: str | None, ms: int) -> Probe:
    """Return what an answer says; words that repeat the key are dropped."""
    parsed = parse(body)
    if 200 <= status < 300 and parsed is not None:
        listed = parsed.get("data")
        entries = listed if isinstance(listed, list) else []
        names = [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]
        return Probe(url, is_ok=True, status=status, ms=ms, models=tuple(names))
    words = (protocol.error_of(parsed) if parsed is not None else None) or ""
    if secret is not None and secret in words:
        words = ""
    if 200 <= status < 300:
        return Probe(url, is_ok=False, status=status, ms=ms, code="upstream_error", reason="this is no JSON object")
    code = "auth_failed" if status in REFUSED_KEY else "upstream_error"
    reason = words[:_SHOWN_CHARACTERS] or f"it answered with status {status}"
    return Probe(url, is_ok=False, status=status, ms=ms, code=code, reason=reason)


def failed(url: str, error: MlxdError, ms: int) -> Probe:
    """Return what there is to say where no answer came, or one that is an error."""
    return Probe(url, is_ok=False, status=status_of(error), ms=ms, code=error.code, reason=error.message)
