"""POST /v1/embeddings: the fields, the official client on the fake device and on MLX, and the real MiniLM."""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import embedding_create_params

from mlxd.engine.vector import EmbeddingRequest
from mlxd.http.omissions import Omissions
from mlxd.http.schema import fields_of
from mlxd.openai.embeddings import EmbeddingBody, ParsedEmbedding, parse_embedding
from mlxd.protocol.errors import InvalidRequest
from tests.support.minilm import minilm_folder
from tests.support.official_client import openai_client
from tests.support.served_models import ServeModels
from tests.support.tiny_encoder import write_tiny_encoder
from tests.support.tiny_model import write_tiny_model
from tests.support.upstream import upstream

EMBEDDINGS = "/v1/embeddings"
TEXTS = ["one", "another one", "x" * 90, "a"]


@pytest.fixture(scope="session")
def models_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `tiny` and `org/encoder`, and the real `minilm` where it can be had."""
    root = tmp_path_factory.mktemp("models")
    write_tiny_model(root / "tiny", context=100)
    write_tiny_encoder(root / "org" / "encoder", "bert")
    return root


def parse(**fields: Any) -> ParsedEmbedding:
    """Parse a body with these fields."""
    return parse_embedding({"model": "m", "input": "hi"} | fields, Omissions("m"))


def test_every_field_of_the_official_client_is_known() -> None:
    """A field that OpenAI documents is never treated as unknown, and what is no habit is acted upon."""
    documented = set(typing.get_type_hints(embedding_create_params.EmbeddingCreateParams))
    fields = fields_of(EmbeddingBody)
    assert {name: fields[name].here for name in documented} == dict.fromkeys(documented, "done") | {"user": "accepted"}


def test_a_body_is_read() -> None:
    """Every kind of input, and every field at its default and at another value."""
    assert parse() == ParsedEmbedding(EmbeddingRequest(("hi",)), is_base64=False)
    assert parse(input=["a", "b"]).request.inputs == ("a", "b")
    assert parse(input=[1, 2]).request.inputs == ((1, 2),)
    assert parse(input=[[1, 2], [3]]).request.inputs == ((1, 2), (3,))
    assert len(parse(input=["a"] * 2048).request.inputs) == 2048
    given = parse(dimensions=8, encoding_format="base64", truncate=True, user="me", input_type="query")
    assert given == ParsedEmbedding(EmbeddingRequest(("hi",), dimensions=8, truncate=True), is_base64=True)
    omitted = Omissions("m")
    parse_embedding({"model": "m", "input": "hi", "input_type": "query"}, omitted)
    assert list(omitted.names) == ["input_type"]


def test_inputs_have_an_end() -> None:
    """As OpenAI has it."""
    with pytest.raises(InvalidRequest, match="input holds 2049 inputs; at most 2048 are answered"):
        parse(input=["a"] * 2049)


async def test_the_official_client_gets_vectors(serve_models: ServeModels) -> None:
    """It asks for base64 by itself and gets the numbers of the float format; order and usage are those of the texts."""
    async with serve_models() as served, openai_client(served) as client:
        raw = await client.embeddings.with_raw_response.create(model="tiny", input=TEXTS)
        whole = raw.parse()
        floats = await client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float", user="me")
        alone = [(await client.embeddings.create(model="tiny", input=text)).data[0].embedding for text in TEXTS]
        tokens = [await client.completions.create(model="tiny", prompt=text, max_tokens=1) for text in TEXTS]
    made = np.array([item.embedding for item in whole.data])
    assert [item.index for item in whole.data] == [0, 1, 2, 3]
    np.testing.assert_allclose(made, [item.embedding for item in floats.data], atol=1e-7)
    np.testing.assert_allclose(made, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert whole.usage.prompt_tokens == whole.usage.total_tokens
    assert whole.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in tokens if answer.usage)
    assert (whole.object, whole.model, raw.headers["x-mlxd-route"]) == ("list", "tiny", "local")


async def test_both_formats_are_the_same_float32(serve_models: ServeModels) -> None:
    """The bytes in base64 are little-endian float32, and the numbers in JSON are exactly those."""
    asked = {"model": "tiny", "input": [[5, 6, 7], [8]]}
    async with serve_models() as served:
        floats = json.loads((await served.post(EMBEDDINGS, asked))[2])
        packed = json.loads((await served.post(EMBEDDINGS, asked | {"encoding_format": "base64"}))[2])
    for one, other in zip(floats["data"], packed["data"], strict=True):
        assert np.array(one["embedding"], "<f4").tobytes() == base64.b64decode(other["embedding"])
    assert floats["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert set(floats) == {"object", "data", "model", "usage"}
    assert set(floats["data"][0]) == {"object", "index", "embedding"}


async def test_a_request_that_cannot_be_answered_is_a_400(serve_models: ServeModels) -> None:
    """Over the context with both numbers, a length that was not trained, tokens of another vocabulary."""
    async with serve_models(models={"tiny": {"context_length": 100}}) as served, openai_client(served) as client:
        for fields, code, words in (
            ({"input": ["a", "b" * 101]}, "context_length_exceeded", ("101", "100")),
            ({"input": "a", "dimensions": 5}, "invalid_request", ("dimensions is 5",)),
            ({"input": [10**6 * 2]}, "invalid_request", ("token",)),
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                await client.embeddings.create(model="tiny", **fields)
            assert refused.value.code == code
            assert all(word in refused.value.message for word in words)
        cut = await client.embeddings.create(model="tiny", input="b" * 101, extra_body={"truncate": True})
        assert cut.usage.prompt_tokens == 100
        with pytest.raises(openai.NotFoundError, match="nearest"):
            await client.embeddings.create(model="tinny", input="a")


async def test_chats_and_vectors_side_by_side(serve_models: ServeModels) -> None:
    """One model answers both at once, each as it does alone."""
    asked: dict[str, Any] = {"model": "tiny", "prompt": "abc", "max_tokens": 60, "temperature": 0}
    async with serve_models() as served, openai_client(served) as client:
        text, vectors = (
            await client.completions.create(**asked),
            await client.embeddings.create(model="tiny", input=TEXTS),
        )
        texts, several = await asyncio.gather(
            client.completions.create(**asked),
            asyncio.gather(*(client.embeddings.create(model="tiny", input=TEXTS) for _ in range(4))),
        )
    assert texts.choices[0].text == text.choices[0].text
    for other in several:
        np.testing.assert_allclose(
            [item.embedding for item in other.data], [item.embedding for item in vectors.data], atol=1e-5
        )


async def test_a_client_that_goes_away_leaves_nothing_running(serve_models: ServeModels) -> None:
    """After a disconnect the pool has no lease and no sequence, and the next request is served."""
    async with serve_models() as served:
        asking = asyncio.create_task(served.post(EMBEDDINGS, {"model": "tiny", "input": ["x" * 99] * 2048}))
        pool = served.context.pool
        conditions = pool._scheduler.conditions
        assert await conditions.wait_until(lambda: any(model.running for model in pool.status().models), 120)
        asking.cancel()
        await served.context.requests.wait_idle()
        assert await conditions.wait_until(
            lambda: not any(model.running or model.leases for model in pool.status().models), 120
        )
        status, _, _ = await served.post(EMBEDDINGS, {"model": "tiny", "input": "a"})
    assert status == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
async def test_an_encoder_is_not_loaded_to_refuse_a_chat(serve_models: ServeModels, path: str) -> None:
    """A 400 that says what the model is for, before anything is loaded."""
    body = {"model": "org/encoder", "max_tokens": 5, "prompt": "hi"}
    if path != "/v1/completions":
        body = {"model": "org/encoder", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    async with serve_models() as served:
        status, _, answer = await served.post(path, body)
        assert served.context.pool.status().models == ()
    assert status == 400
    assert "'org/encoder' is an embedding model and makes no text. Try: POST /v1/embeddings" in answer.decode()


@pytest.mark.parametrize("serve_models", ["device"], indirect=True)
async def test_the_kind_of_a_model_is_listed(serve_models: ServeModels) -> None:
    """`/v1/models` tells which models make vectors; such a one is loaded by a request like any other."""
    async with serve_models() as served, openai_client(served) as client:
        answer = await client.embeddings.create(model="org/encoder", input=["one", "two"])
        kinds = {model.id: model.to_dict()["kind"] async for model in client.models.list()}
    assert kinds == {"org/encoder": "embedding", "tiny": "text"}
    assert [len(item.embedding) for item in answer.data] == [64, 64]


@pytest.mark.parametrize("serve_models", ["device"], indirect=True)
async def test_the_real_minilm_by_the_official_client(serve_models: ServeModels, models_root: Path) -> None:
    """384 dimensions, the known cosines, and lists of tokens that mean what the text means."""
    (models_root / "minilm").symlink_to(minilm_folder())
    try:
        async with serve_models() as served, openai_client(served) as client:
            texts = ["The cat sits outside", "The feline is outdoors", "A man is playing guitar"]
            answer = await client.embeddings.create(model="minilm", input=texts)
            # [CLS] the cat sits outside [SEP]
            tokens = await client.embeddings.create(model="minilm", input=[101, 1996, 4937, 7719, 2648, 102])
            with pytest.raises(openai.BadRequestError, match="it makes vectors of 384 dimensions"):
                await client.embeddings.create(model="minilm", input="a", dimensions=128)
    finally:
        (models_root / "minilm").unlink()
    made = np.array([item.embedding for item in answer.data])
    assert made.shape == (3, 384)
    assert (made[0] @ made[1], made[0] @ made[2]) == (pytest.approx(0.555, abs=1e-3), pytest.approx(0.036, abs=1e-3))
    np.testing.assert_allclose(tokens.data[0].embedding, made[0], atol=1e-6)
    assert answer.usage.prompt_tokens == 6 + 7 + 7


@pytest.mark.parametrize("serve_models", ["fake"], indirect=True)
async def test_without_the_extra_the_command_is_named(
    serve_models: ServeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for an encoder where mlx-embeddings is missing says how to get it."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlx_embeddings" else find_spec(name, *rest)
    )
    async with serve_models() as served:
        status, _, body = await served.post(EMBEDDINGS, {"model": "org/encoder", "input": "a"})
    assert status == 404
    assert "pip install 'mlxd[embeddings]' && mlxctl restart" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("serve_models", ["fake"], indirect=True)
async def test_a_rule_sends_them_to_an_upstream_unchanged(
    serve_models: ServeModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body goes out as it came but for the model, and the upstream's answer comes back as it is."""
    monkeypatch.setenv("FAR_KEY", "sk-far-0123456789")
    asked = {
        "model": "far-1",
        "input": [" a", "b"],
        "dimensions": 7,
        "encoding_format": "base64",
        "input_type": "query",
    }
    async with upstream() as far:
        cloud = {
            "enabled": True,
            "providers": {"far": {"base_url": far.url, "auth": {"env": "FAR_KEY"}}},
            "rules": {"far": {"match": "glob:far-*", "to": ["far/org/vectors"], "mode": "always"}},
        }
        async with serve_models(cloud=cloud) as served:
            status, headers, body = await served.post(EMBEDDINGS, asked)
    assert (status, headers["x-mlxd-route"], headers["x-mlxd-target"]) == (200, "cloud", "far/org/vectors")
    assert [(seen.path, seen.json) for seen in far.seen] == [(EMBEDDINGS, asked | {"model": "org/vectors"})]
    assert json.loads(body)["odd_field"] == {"kept": True}


@pytest.mark.parametrize("serve_models", ["fake"], indirect=True)
async def test_what_does_not_fit_here_falls_back(serve_models: ServeModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is for local failures sends the same body on when the model has no room."""
    monkeypatch.setenv("FAR_KEY", "sk-far-0123456789")
    async with upstream() as far:
        cloud = {
            "enabled": True,
            "providers": {"far": {"base_url": far.url, "auth": {"env": "FAR_KEY"}}},
            "rules": {"far": {"match": "tiny", "to": ["far/org/vectors"], "mode": "fallback"}},
        }
        async with serve_models(cloud=cloud, pool={"memory": "1MB"}) as served:
            status, headers, _ = await served.post(EMBEDDINGS, {"model": "tiny", "input": "a"})
    assert (status, headers["x-mlxd-route"], headers["x-mlxd-reason"]) == (200, "cloud", "does_not_fit")
    assert [seen.json for seen in far.seen] == [{"model": "org/vectors", "input": "a"}]
