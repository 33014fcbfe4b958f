"""OpenAI's own client, pointed at a server that a test runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import openai

from tests.support.http_server import Served
from tests.support.served_models import ServeModels


def openai_client(served: Served) -> openai.AsyncOpenAI:
    """Return a client of *served* that tries nothing twice; it is to be closed."""
    return openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="unused", max_retries=0)


@asynccontextmanager
async def client_of(serve_models: ServeModels) -> AsyncIterator[openai.AsyncOpenAI]:
    """Serve the tiny models and return a client of them."""
    async with serve_models() as served, openai_client(served) as client:
        yield client
