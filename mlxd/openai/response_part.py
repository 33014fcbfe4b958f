"""Content parts of messages and results in /v1/responses → texts; what is no text leaves a note in its place."""

from __future__ import annotations

from typing import Any

from mlxd.http import field
from mlxd.http.omissions import Omissions
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import shown

_TEXTS = {
    "input_text": frozenset({"type", "text", "prompt_cache_breakpoint"}),
    "output_text": frozenset({"type", "text", "annotations", "logprobs"}),
    "refusal": frozenset({"type", "refusal"}),
    "summary_text": frozenset({"type", "text"}),
    "reasoning_text": frozenset({"type", "text"}),
    "text": frozenset({"type", "text"}),
}
_MEDIA = {
    "input_image": "image",
    "computer_screenshot": "image",
    "input_audio": "audio",
    "output_audio": "audio",
    "input_video": "video",
    "input_file": "file",
}


def part_texts(path: str, content: Any, omitted: Omissions) -> list[str]:
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
        raise field.wrong(path, content, "a text or a list of parts")
    return [text for place, part in enumerate(content) for text in _texts(f"{path}[{place}]", part, omitted)]


def _texts(path: str, part: Any, omitted: Omissions) -> list[str]:
    kind = field.text(f"{path}.type", field.mapping(path, part).get("type"))
    if kind in _MEDIA:
        return [omitted.leave_out_media(path, _MEDIA[kind])]
    if kind == "encrypted_content":
        omitted.leave_out(f"{path}.encrypted_content", "cannot be read here")
        return []
    if kind not in _TEXTS:
        message = f"{path}.type {shown(kind)} is not supported, only 'input_text', 'output_text' and media"
        raise UnsupportedParameter(message, param=f"{path}.type")
    omitted.note(path, part, _TEXTS[kind])
    if part.get("annotations") not in (None, []):
        omitted.leave_out(f"{path}.annotations")
    name = "refusal" if kind == "refusal" else "text"
    return [field.string(f"{path}.{name}", part.get(name))]
