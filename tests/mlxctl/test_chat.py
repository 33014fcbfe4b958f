"""`mlxctl chat`: which model, which prompt, what is printed where, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mlxctl.chat import choose
from mlxctl.cli import main
from mlxd.protocol.errors import ControlError
from mlxd.protocol.paths import Home
from tests.support.fake_control import FakeControl
from tests.support.fake_openai import DONE, FakeHTTP, delta, running_openai, sse

USAGE = {"prompt_tokens": 36, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 30}}
ANSWER = sse(delta(content="Pa"), delta(content="ris."), delta("stop"), {"choices": [], "usage": USAGE}) + DONE
TINY, OTHER = {"id": "tiny", "state": "unloaded"}, {"id": "org/other", "state": "unloaded"}
CLOUD = {"id": "gpt-9", "state": "cloud"}


@pytest.fixture
def http(own_home: None) -> Iterator[FakeHTTP]:
    """A daemon that has the model `tiny` and answers that it is Paris."""
    with running_openai() as fake, FakeControl(Home.from_environment().socket, http=fake.url):
        fake.answer, fake.models = ANSWER, [TINY]
        yield fake


@pytest.mark.parametrize(
    ("words", "models", "chosen"),
    [
        ([], [TINY], ("tiny", None)),
        (["What now?"], [TINY], ("tiny", "What now?")),
        (["tiny"], [TINY, OTHER], ("tiny", None)),
        (["tiny", "Hello", "you"], [TINY, OTHER], ("tiny", "Hello you")),
        (["Hello"], [TINY, {**OTHER, "state": "ready"}], ("org/other", "Hello")),
        (["Hello"], [TINY, CLOUD], ("tiny", "Hello")),
        (["Hello"], [TINY, {**OTHER, "state": "ready", "kind": "embedding"}], ("tiny", "Hello")),
        (["gpt-9"], [TINY, CLOUD], ("gpt-9", None)),
        (["gpt-9-mini", "Hello"], [TINY], ("gpt-9-mini", "Hello")),
    ],
)
def test_model_and_prompt(words: Sequence[str], models: list[dict[str, Any]], chosen: tuple[str, str | None]) -> None:
    """A model is named first, or goes without saying: the only one, or the only one that is loaded."""
    assert choose(words, models) == chosen


@pytest.mark.parametrize(
    ("models", "status"), [([], 4), ([CLOUD], 4), ([{**TINY, "kind": "embedding"}], 4), ([TINY, OTHER], 2)]
)
def test_no_model_goes_without_saying(models: list[dict[str, Any]], status: int) -> None:
    """Without a model, or with several, the next command is named."""
    with pytest.raises(ControlError) as caught:
        choose(["Hello"], models)
    assert caught.value.exit_code == status
    assert str(caught.value.hint).startswith("mlxctl ")


def test_answer_and_figures(http: FakeHTTP, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer is all of stdout; usage and times stand on stderr."""
    line = ["chat", "tiny", "What is the capital of France?", "--temperature", "0", "--max-tokens", "9"]
    assert main([*line, "--system", "Be brief."]) == 0

    printed = capsys.readouterr()
    assert printed.out == "Paris.\n"
    assert printed.err.startswith("[tiny: 36 prompt tokens (30 cached), 2 tokens, stop; first after 0.")
    (body,) = http.bodies
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 9, "tiny")
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
    ]


def test_what_is_not_given_is_not_sent(http: FakeHTTP) -> None:
    """Defaults are the server's: parameters that were not given are not in the request."""
    assert main(["chat", "Hello"]) == 0
    assert set(http.bodies[0]) == {"model", "messages", "stream", "stream_options"}


def test_quiet_leaves_the_answer(http: FakeHTTP, capsys: pytest.CaptureFixture[str]) -> None:
    """With `-q` there is the answer and nothing else."""
    main(["chat", "Hello", "-q"])
    assert capsys.readouterr() == ("Paris.\n", "")


def test_json(http: FakeHTTP, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` the whole answer is one document with usage and times."""
    main(["chat", "Hello", "--json"])

    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["content"], document["usage"]) == ("mlxctl/v1", "Paris.", USAGE)
    assert isinstance(document["ttft_ms"], int)


def test_prompt_from_stdin(http: FakeHTTP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a prompt on the line it is what stdin holds."""
    monkeypatch.setattr("sys.stdin", io.StringIO("Summarise\nthis.\n"))

    assert main(["chat", "tiny"]) == 0
    assert http.bodies[0]["messages"][-1]["content"] == "Summarise\nthis."


def test_no_prompt_at_all(http: FakeHTTP, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty stdin is no prompt: exit 2, and nothing is asked."""
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))

    assert main(["chat", "tiny"]) == 2
    assert "there is no prompt" in capsys.readouterr().err
    assert http.bodies == []


def test_prompt_that_is_no_text(
    http: FakeHTTP, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes that are no UTF-8 are refused here, where it can be said what they are; nothing is asked."""
    monkeypatch.setattr("sys.stdin", io.StringIO(b"\xff\xfe".decode(errors="surrogateescape")))

    assert main(["chat", "tiny"]) == 10
    assert "the prompt on stdin is not UTF-8" in capsys.readouterr().err
    assert http.bodies == []


def test_error_in_the_stream_keeps_what_came(http: FakeHTTP, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer that fails half-way shows what came, ends the line, and exits 1 with the reason."""
    http.answer = sse(delta(content="Par"), {"error": {"message": "cancelled by an operator", "code": "cancelled"}})

    assert main(["chat", "Hello"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "Par\n"
    assert printed.err == "error: cancelled by an operator\n  code: cancelled\n"


def test_http_that_does_not_listen(own_home: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon whose port is taken is reported with its own words, exit 3."""
    status = {"http": {"url": None, "problem": "port 6593 is taken by another program"}}
    with FakeControl(Home.from_environment().socket, {"status": status}, http=None):
        assert main(["chat", "Hello"]) == 3
    assert capsys.readouterr().err.splitlines()[:3] == [
        "error: the daemon's HTTP server does not listen",
        "  port 6593 is taken by another program",
        "  try: mlxctl config set http.port N",
    ]


def test_http_that_is_just_opening(http: FakeHTTP, capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon that answers before its HTTP server listens is given a moment."""
    answers = iter([None, None, http.url])
    status = lambda frame: {"http": {"url": next(answers), "problem": None}}  # noqa: E731
    with FakeControl(Home.from_environment().root / "s", {"status": status}, http=None) as opening:
        assert main(["chat", "Hello", "--socket", str(opening.path)]) == 0
    assert capsys.readouterr().out == "Paris.\n"


def test_ctrl_c_ends_the_answer(own_home: None) -> None:
    """Ctrl-C keeps what came, closes the connection, which ends the answer in the server too, and exits 130."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with FakeControl(Home.from_environment().socket, http=url):
            child = subprocess.Popen(
                [sys.executable, "-m", "mlxctl", "chat", "tiny", "Hello"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            listing, _ = server.accept()
            with listing:
                listing.recv(65536)
                listing.sendall(b'HTTP/1.0 200 OK\r\n\r\n{"data": []}')
            answering, _ = server.accept()
            with answering:
                answering.recv(65536)
                answering.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + sse(delta(content="Once upon")))
                assert child.stdout is not None
                assert os.read(child.stdout.fileno(), 100) == b"Once upon"
                child.send_signal(signal.SIGINT)
                rest, errors = child.communicate()
                while answering.recv(65536):
                    pass  # the rest of the request; then the end

    assert (child.returncode, rest, errors) == (130, b"\n", b"")
