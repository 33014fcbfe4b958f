"""Log-probabilities in OpenAI's two shapes: of chat answers, and of the older completions. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from mlxd.engine.logprob import Alternative, TokenLogprob


def chat_logprobs(entries: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return `logprobs` of a chat choice, or of one of its chunks."""
    return {"content": [_chat_entry(entry) for entry in entries], "refusal": None}


def _chat_entry(entry: TokenLogprob) -> dict[str, Any]:
    return {**_chat_token(entry), "top_logprobs": [_chat_token(other) for other in entry.top]}


def _chat_token(entry: TokenLogprob | Alternative) -> dict[str, Any]:
    return {
        "token": entry.raw.decode(errors="replace"),
        "logprob": entry.logprob,
        "bytes": list(entry.raw),
    }


def completion_logprobs(entries: Iterable[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """Return `logprobs` of a completion choice, or of one of its chunks.

    Args:
        entries: in the order of the text.
        offset: where the first token stands in the choice's text, in characters.
    """
    tokens, token_logprobs, tops, offsets = [], [], [], []
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    for entry in entries:
        tokens.append(_completion_token(entry.raw))
        token_logprobs.append(entry.logprob)
        top = {_completion_token(other.raw): other.logprob for other in entry.top}
        if entry.logprob is not None:
            top.setdefault(_completion_token(entry.raw), entry.logprob)
        tops.append(None if entry.logprob is None else top)
        offsets.append(offset)
        offset += len(decoder.decode(entry.raw))
    return {"tokens": tokens, "token_logprobs": token_logprobs, "top_logprobs": tops, "text_offset": offsets}


def _completion_token(raw: bytes) -> str:
    r"""Return a token as text; one that is a part of a character in OpenAI's notation, `bytes:\xf0\x9f`."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
