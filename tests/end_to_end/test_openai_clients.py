"""The official OpenAI client against a real daemon."""

from __future__ import annotations

import pytest
from openai import BadRequestError, NotFoundError

from tests.support.daemon import RealDaemon


def test_chat_streaming_completions_embeddings_and_models(daemon: RealDaemon) -> None:
    """Each of the client's calls works, and a stream is the same text as the whole answer."""
    client = daemon.client()
    messages = [{"role": "user", "content": "hello"}]

    whole = client.chat.completions.create(model="a", messages=messages, max_tokens=40, temperature=0)  # type: ignore[arg-type]
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            model="a",
            messages=messages,
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    completion = client.completions.create(model="b", prompt=["one", "two"], max_tokens=5, temperature=0)
    vectors = client.embeddings.create(model="b", input=["one", "two", "one"])

    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert whole.usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (whole.usage.prompt_tokens, 40)
    assert whole.choices[0].finish_reason == "length"
    assert [len(choice.text) for choice in completion.choices] == [5, 5]
    assert [len(item.embedding) for item in vectors.data] == [64, 64, 64]
    assert vectors.data[0].embedding == pytest.approx(vectors.data[2].embedding, abs=1e-5)
    assert [model.id for model in client.models.list()] == ["a", "b"]
    assert client.models.retrieve("b").id == "b"


def test_an_unknown_model_names_the_nearest(daemon: RealDaemon) -> None:
    """`NotFoundError` with what could have been meant."""
    with pytest.raises(NotFoundError, match="the nearest names are a"):
        daemon.client().chat.completions.create(model="aa", messages=[{"role": "user", "content": "hi"}])


def test_a_bad_parameter_is_named(daemon: RealDaemon) -> None:
    """`BadRequestError` says which field it is; what would change the answer is refused, not ignored."""
    client = daemon.client()

    with pytest.raises(BadRequestError) as bad:
        client.chat.completions.create(model="a", messages=[{"role": "user", "content": "hi"}], temperature=101)
    with pytest.raises(BadRequestError) as unsupported:
        client.chat.completions.create(model="a", messages=[{"role": "user", "content": "hi"}], modalities=["audio"])

    assert bad.value.param == "temperature"
    assert (unsupported.value.param, unsupported.value.code) == ("modalities", "unsupported_parameter")
