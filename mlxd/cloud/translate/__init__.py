"""Requests into another wire protocol, and answers back: tools, results, stops, usage and streams, or a 400."""

from __future__ import annotations

from mlxd.cloud.errand import Errand
from mlxd.cloud.translate.base import Passthrough, Translated, Translation
from mlxd.cloud.translate.chat_events import ChatEvents
from mlxd.cloud.translate.message_events import MessageEvents
from mlxd.cloud.translate.reading import Reading
from mlxd.cloud.translate.to_anthropic.request import messages_body
from mlxd.cloud.translate.to_openai.request import chat_body
from mlxd.protocol.errors import UnsupportedParameter

__all__ = ["Passthrough", "Translation", "translation"]


def translation(errand: Errand, upstream: str) -> Translation:
    """Return what stands between what a client wants and an upstream's protocol.

    Raises:
        UnsupportedParameter: the upstream's protocol has no such endpoint.
    """
    if errand.protocol == upstream:
        return Passthrough(errand.endpoint)
    if errand.renderer is not None:
        match errand.endpoint, upstream:
            case "chat/completions", "anthropic":
                return Translated("messages", Reading("Anthropic"), messages_body, MessageEvents(), errand.renderer)
            case "messages", "openai":
                return Translated("chat/completions", Reading("OpenAI"), chat_body, ChatEvents(), errand.renderer)
    raise UnsupportedParameter(
        f"{errand.endpoint} cannot be sent to an upstream that speaks {upstream}'s protocol", param="model"
    )
