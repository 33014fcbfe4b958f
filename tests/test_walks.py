"""How many functions and files of ours a request runs through: each is one more to read for who follows it."""

from __future__ import annotations

import pytest

from mlxd.catalog import Catalog
from tests.support.served_models import ServeModels, models_root, serve_models
from tests.support.walk import walking

__all__ = ["models_root", "serve_models"]

PATH = "/v1/chat/completions"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "temperature": 0}
# With a few to spare: which timers run out meanwhile is chance. On commit 7fe96bf it was 384 functions in 78 files, of
# which 116 were called before the pool and the engine.
MOST_FUNCTIONS, MOST_FILES = 364, 76
MOST_BEFORE_THE_POOL = 92


@pytest.mark.parametrize("serve_models", ["device"], indirect=True)
async def test_a_streamed_chat_on_a_ready_model_is_a_short_walk(serve_models: ServeModels) -> None:
    """From the request to its first token on the client's side, on all threads; the model's name is resolved once."""
    body = CHAT | {"stream": True}
    with walking() as walk:
        async with serve_models() as served:
            await served.post(PATH, body)
            walk.is_noting = True
            async with served.http.post(served.url + PATH, json=body) as response:
                seen = b""
                while seen.count(b'"content":"') < 2:  # the first is that of the role
                    seen += await response.content.readany()
                walk.is_noting = False
                await response.read()
    before_the_pool = [name for name in walk.functions if not name.startswith(("mlxd/pool/", "mlxd/engine/"))]
    walked = "\n".join(walk.functions)
    assert 0 < len(before_the_pool) <= MOST_BEFORE_THE_POOL, "\n".join(before_the_pool)
    assert walk.calls_of(Catalog.alias_target) == 1
    assert len(walk.functions) <= MOST_FUNCTIONS, walked
    assert len(walk.files) <= MOST_FILES, walked
