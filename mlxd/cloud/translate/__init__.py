"""Requests and answers from one wire protocol into another: tools, results, stops, usage and streams, or a 400."""

from __future__ import annotations

from mlxd.cloud.translate.base import Passthrough, Translation
from mlxd.cloud.translate.to_anthropic import ToAnthropic
from mlxd.cloud.translate.to_openai import ToOpenAI
from mlxd.protocol.errors import UnsupportedParameter

__all__ = ["Passthrough", "Translation", "translation"]


def translation(client: str, upstream: str, endpoint: str) -> Translation:
    """Return what stands between a client's protocol and an upstream's for one request to *endpoint*.

    Raises:
        UnsupportedParameter: the upstream's protocol has no such endpoint.
    """
    if client == upstream:
        return Passthrough(endpoint)
    if (client, upstream, endpoint) == ("openai", "anthropic", "chat/completions"):
        return ToAnthropic()
    if (client, upstream, endpoint) == ("anthropic", "openai", "messages"):
        return ToOpenAI()
    raise UnsupportedParameter(
        f"{endpoint} cannot be sent to an upstream that speaks {upstream}'s protocol", param="model"
    )
