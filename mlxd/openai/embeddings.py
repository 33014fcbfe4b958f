"""POST /v1/embeddings: texts or tokens to vectors of unit length, in the order of the texts."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import orjson
from aiohttp import web
from msgspec import Meta

from mlxd.engine.base import AnswerEvent, Prefilling
from mlxd.engine.vector import Embedded, EmbeddingRequest
from mlxd.http.dispatch import Api, Asked, answer
from mlxd.http.omissions import Omissions
from mlxd.http.sampling import texts_or_tokens
from mlxd.http.schema import Habit, Text, read
from mlxd.protocol.errors import InvalidRequest
from mlxd.renderer import Job, Renderer

_MAX_DIMENSIONS = 2**31 - 1
# OpenAI's bound.
_MAX_INPUTS = 2048


class EmbeddingBody(msgspec.Struct, kw_only=True):
    """A body of /v1/embeddings."""

    model: Text
    input: Annotated[Any, texts_or_tokens(_MAX_INPUTS)]
    dimensions: Annotated[int, Meta(ge=1, le=_MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] = "float"
    truncate: bool = False  # not OpenAI's: cut a text over the context instead of refusing it
    user: Habit = None


@dataclass(frozen=True, slots=True)
class ParsedEmbedding:
    """A body that can be answered."""

    request: EmbeddingRequest
    is_base64: bool


async def post_embeddings(request: web.Request) -> web.StreamResponse:
    """Make vectors, here or by an upstream."""
    return await answer(request, EMBEDDINGS)


def _read(asked: Asked) -> Job:
    parsed = parse_embedding(asked.body, asked.omitted)
    return Job(EmbeddingRenderer(asked.model.asked, is_base64=parsed.is_base64), parsed.request)


EMBEDDINGS = Api("openai", "embeddings", _read, generates=False)


def parse_embedding(given: Mapping[str, Any], omissions: Omissions) -> ParsedEmbedding:
    """Read the body.

    Raises:
        InvalidRequest: a value of the wrong type or out of its bounds, or an omission that is refused.
    """
    body = read(EmbeddingBody, given, omissions)
    for place, each in enumerate(body.input):
        if not each:
            name = "input" if len(body.input) == 1 else f"input[{place}]"
            raise InvalidRequest(f"{name} is empty: there is nothing to make a vector of", param="input")
    request = EmbeddingRequest(tuple(body.input), body.dimensions, body.truncate)
    return ParsedEmbedding(request, is_base64=body.encoding_format == "base64")


class EmbeddingRenderer(Renderer):
    """Writes vectors in the order of their texts."""

    def __init__(self, model: str, *, is_base64: bool) -> None:
        """Take the model as the client calls it, and how a vector is written."""
        self._model = model
        self._is_base64 = is_base64
        self._tokens = 0
        self._written: list[bytes] = []

    def event(self, index: int, event: AnswerEvent) -> bytes:
        """Take how many tokens there are, or a vector."""
        if isinstance(event, Prefilling):
            self._tokens = event.total
        elif isinstance(event, Embedded):
            shown = _shown(event.vectors[0], is_base64=self._is_base64)
            self._written.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (index, shown))
        return b""

    def whole(self) -> bytes:
        """Return the answer as JSON."""
        usage = {"prompt_tokens": self._tokens, "total_tokens": self._tokens}
        ending = orjson.dumps({"model": self._model, "usage": usage})
        return b'{"object":"list","data":[%b],%b' % (b",".join(self._written), ending[1:])


def _shown(vector: bytes, *, is_base64: bool) -> bytes:
    """Return little-endian float32 as JSON: in base64, or as numbers with the digits that a float32 has."""
    if is_base64:
        return b'"%b"' % base64.b64encode(vector)
    import numpy as np  # 100 ms of the daemon's start; the engine has imported it by now

    return orjson.dumps(np.frombuffer(vector, "<f4"), option=orjson.OPT_SERIALIZE_NUMPY)
