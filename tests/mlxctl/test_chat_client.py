"""A streamed answer over HTTP: pieces, figures, errors before and in the stream."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mlxctl.chat_client import Answer, Server, list_models, stream_chat
from mlxd.protocol.errors import ControlError
from tests.support.fake_openai import DONE, FakeHTTP, delta, running_openai, sse

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


@pytest.fixture
def http() -> Iterator[FakeHTTP]:
    """A server that runs."""
    with running_openai() as fake:
        yield fake


USAGE = {"model": "tiny", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}


def test_pieces_come_as_they_are_made(http: FakeHTTP) -> None:
    """Content and reasoning are handed on piece by piece; usage and the reason of the end are kept."""
    http.answer = (
        sse(delta(role="assistant"), delta(reasoning_content="hm"), delta(content="Pa"), delta(content="ris"))
        + sse(delta("stop"), USAGE)
        + DONE
    )
    answer = Answer("tiny")

    pieces = list(stream_chat(Server(http.url), BODY, answer))

    assert [piece for piece in pieces if any(piece)] == [("", "hm"), ("Pa", ""), ("ris", "")]
    assert (answer.content, answer.finish_reason, answer.usage) == ("Paris", "stop", USAGE["usage"])
    assert answer.ttft_s is not None
    assert http.bodies == [{**BODY, "stream": True, "stream_options": {"include_usage": True}}]


def test_speed_counts_from_the_first_token() -> None:
    """Tokens per second leave the first token and the time before it out; one token has no speed."""
    answer = Answer("tiny", usage={"completion_tokens": 11}, ttft_s=1.0, duration_s=3.0)
    assert answer.tokens_per_s == 5.0

    answer.usage = {"completion_tokens": 1}
    assert answer.tokens_per_s is None


@pytest.mark.parametrize(
    ("status", "exit_code"), [(404, 4), (400, 10), (429, 6), (503, 6), (507, 6), (403, 8), (500, 1)]
)
def test_refusal_before_the_stream(http: FakeHTTP, status: int, exit_code: int) -> None:
    """An HTTP error becomes its message, hint, code and an exit status of its class."""
    http.status = status
    error = {
        "message": "no such model. Try: mlxctl model list",
        "type": "x",
        "param": "model",
        "code": "model_not_found",
    }
    http.answer = json.dumps({"error": error}).encode()

    with pytest.raises(ControlError) as caught:
        list(stream_chat(Server(http.url), BODY, Answer("tiny")))

    assert caught.value.to_wire() == {
        "code": "model_not_found",
        "msg": "no such model",
        "hint": "mlxctl model list",
        "field": "model",
        "exit": exit_code,
    }


def test_error_without_an_envelope(http: FakeHTTP) -> None:
    """An answer that is not OpenAI's is reported by its status."""
    http.status, http.answer = 502, b"<html>"

    with pytest.raises(ControlError, match="answered 502"):
        list(stream_chat(Server(http.url), BODY, Answer("tiny")))


def test_error_in_the_stream(http: FakeHTTP) -> None:
    """What had come stays, and the error event is raised."""
    http.answer = sse(delta(content="Pa"), {"error": {"message": "cancelled by an operator", "code": "cancelled"}})
    answer = Answer("tiny")

    with pytest.raises(ControlError, match="cancelled by an operator"):
        list(stream_chat(Server(http.url), BODY, answer))
    assert answer.content == "Pa"


def test_stream_that_breaks_off(http: FakeHTTP) -> None:
    """A stream without its end is no answer, whatever had come."""
    http.answer = sse(delta(content="Pa"))

    with pytest.raises(ControlError) as caught:
        list(stream_chat(Server(http.url), BODY, Answer("tiny")))
    assert caught.value.code == "http.broken_off"


def test_nobody_listens(http: FakeHTTP) -> None:
    """A server that is not there exits 3 and names the address."""
    with pytest.raises(ControlError, match=r"http://127\.0\.0\.1:1 ") as caught:
        list(stream_chat(Server("http://127.0.0.1:1"), BODY, Answer("tiny")))
    assert caught.value.exit_code == 3


def test_list_models(http: FakeHTTP) -> None:
    """The models are those of the route."""
    http.models = [{"id": "tiny", "state": "ready"}]

    assert list_models(Server(http.url), 10.0) == [{"id": "tiny", "state": "ready"}]
