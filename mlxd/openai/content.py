"""Reads content parts of OpenAI's messages, items and results as texts; other media leave a note in their place."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from mlxd.http.omissions import MEDIA, Omissions
from mlxd.http.schema import Habit, kind_of, omitted, read, wrong
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import shown


class _Text(msgspec.Struct, kw_only=True):
    type: str
    text: str
    annotations: Annotated[Any, omitted([])] = None
    logprobs: Habit = None
    prompt_cache_breakpoint: Habit = None


class _Refusal(msgspec.Struct, kw_only=True):
    type: str
    refusal: str


_TEXTS = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text"})


def texts(path: str, content: Any, omissions: Omissions) -> list[str]:
    """Return the texts of *content*: a text, a list of parts, or null, which says nothing.

    Raises:
        UnsupportedParameter: a part of a kind that OpenAI's API does not have, or of media where those are refused.
        InvalidRequest: a malformed part.
    """
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise wrong(path, content, "a text or a list of parts")
    return [text for place, part in enumerate(content) for text in _texts(f"{path}[{place}]", part, omissions)]


def _texts(path: str, part: Any, omissions: Omissions) -> list[str]:
    kind = kind_of(path, part)
    if kind in MEDIA:
        return [omissions.leave_out_media(path, MEDIA[kind])]
    if kind == "encrypted_content":
        omissions.leave_out(f"{path}.encrypted_content", "cannot be read here")
        return []
    if kind == "refusal":
        return [read(_Refusal, part, omissions, path).refusal]
    if kind in _TEXTS:
        return [read(_Text, part, omissions, path).text]
    message = f"{path}.type {shown(kind)} is not supported, only texts, refusals and media"
    raise UnsupportedParameter(message, param=f"{path}.type")
