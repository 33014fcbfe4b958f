"""POST /v1/embeddings: texts or tokens to vectors of unit length, in the order of the texts."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from mlxd.engine.vector import EmbeddingRequest
from mlxd.http import field
from mlxd.http.context import EXCHANGE, Tokens
from mlxd.http.dispatch import Local, Surface, dispatch
from mlxd.http.generation import leased
from mlxd.http.omissions import Omissions
from mlxd.http.table import Habit, Table, Works, read
from mlxd.protocol.errors import InvalidRequest

_MAX_DIMENSIONS = 2**31 - 1
# OpenAI's bound.
_MAX_INPUTS = 2048
# Vectors that are written before others have their turn on the event loop: 32 of 4096 numbers take some 10 ms.
_VECTORS_AT_ONCE = 32

EMBEDDING: Table = {
    "model": Works(field.text),
    "input": Works(field.anything),
    "dimensions": Works(field.integer(1, _MAX_DIMENSIONS)),
    "encoding_format": Works(field.word("float", "base64")),
    "truncate": Works(field.boolean),  # not OpenAI's: cut a text over the context instead of refusing it
    "user": Habit(),
}


@dataclass(frozen=True, slots=True)
class ParsedEmbedding:
    """A body that can be answered."""

    request: EmbeddingRequest
    is_base64: bool


async def post_embeddings(request: web.Request) -> web.StreamResponse:
    """Make vectors, here or by an upstream."""
    return await dispatch(request, EMBEDDINGS)


async def _embed(request: web.Request, local: Local) -> web.StreamResponse:
    parsed = parse_embedding(local.take_body(), local.omitted)
    async with leased(request, local.model) as (lease, running):
        inputs = await lease.prepare_inputs(parsed.request)
        request[EXCHANGE].tokens = Tokens(prompt=inputs.total_tokens)
        vectors = await lease.embed(inputs)
        running.begin_answering()
    body = await _render(local.model, vectors, inputs.total_tokens, is_base64=parsed.is_base64)
    return web.Response(body=body, content_type="application/json")


EMBEDDINGS = Surface("openai", "embeddings", _embed, samples=False)


def parse_embedding(body: Mapping[str, Any], omitted: Omissions) -> ParsedEmbedding:
    """Read the body.

    Raises:
        InvalidRequest: a value of the wrong type or out of its bounds, or an omission that is refused.
    """
    values = read(EMBEDDING, body, omitted)
    if "input" not in values:
        raise InvalidRequest("input is required: a text, a list of texts, or lists of tokens", param="input")
    inputs = field.texts_or_tokens("input", values["input"], _MAX_INPUTS)
    for place, given in enumerate(inputs):
        if not given:
            name = "input" if len(inputs) == 1 else f"input[{place}]"
            raise InvalidRequest(f"{name} is empty: there is nothing to make a vector of", param="input")
    return ParsedEmbedding(
        EmbeddingRequest(tuple(inputs), values.get("dimensions"), values.get("truncate", False)),
        is_base64=values.get("encoding_format") == "base64",
    )


async def _render(model: str, vectors: tuple[bytes, ...], tokens: int, *, is_base64: bool) -> bytes:
    """Return the answer as JSON; others have their turn while a long one is written."""
    written = []
    for index, vector in enumerate(vectors):
        written.append(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, _shown(vector, is_base64=is_base64))
        )
        if index % _VECTORS_AT_ONCE == _VECTORS_AT_ONCE - 1:
            await asyncio.sleep(0)
    ending = orjson.dumps({"model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
    return b'{"object":"list","data":[%b],%b' % (b",".join(written), ending[1:])


def _shown(vector: bytes, *, is_base64: bool) -> bytes:
    """Return little-endian float32 as JSON: in base64, or as numbers with the digits that a float32 has."""
    if is_base64:
        return b'"%b"' % base64.b64encode(vector)
    import numpy as np  # 100 ms of the daemon's start; the engine has imported it by now

    return orjson.dumps(np.frombuffer(vector, "<f4"), option=orjson.OPT_SERIALIZE_NUMPY)
