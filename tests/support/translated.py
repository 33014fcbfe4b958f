"""What stands between clients of one protocol and upstreams of the other, as the routes make it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxd.anthropic.messages import MESSAGES
from mlxd.cloud.errand import Errand
from mlxd.cloud.translate import Translation, translation
from mlxd.http.dispatch import Api
from mlxd.openai.chat import CHAT


def to_anthropic(body: Mapping[str, Any] | None = None) -> Translation:
    """Return it for a chat with this body, asked for at 5 s."""
    return _between(CHAT, "anthropic", body or {})


def to_openai(body: Mapping[str, Any] | None = None) -> Translation:
    """Return it for a message with this body."""
    return _between(MESSAGES, "openai", body or {})


def _between(api: Api, upstream: str, body: Mapping[str, Any]) -> Translation:
    assert api.relayed is not None
    renderer = api.relayed(body, "asked", 5)
    return translation(Errand(api.protocol, api.endpoint, b"", wants_stream=False, hops=1, renderer=renderer), upstream)
