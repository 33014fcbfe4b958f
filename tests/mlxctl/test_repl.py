"""`mlxctl chat` as a conversation, on a real terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from mlxd.protocol.paths import Home
from tests.support.dialogue import CTRL_D, Dialogue
from tests.support.fake_control import FakeControl
from tests.support.fake_openai import DONE, FakeHTTP, delta, running_openai, sse

USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
FIGURES = "[tiny: 9 prompt tokens (4 cached), 2 tokens, stop"
TINY, OTHER = {"id": "tiny", "state": "ready"}, {"id": "org/other", "state": "unloaded"}


def say(*pieces: str, finish_reason: str = "stop") -> bytes:
    """Return the stream of an answer."""
    return (
        sse(*(delta(content=piece) for piece in pieces), delta(finish_reason), {"choices": [], "usage": USAGE}) + DONE
    )


def refuse(code: str, message: str) -> bytes:
    """Return the body of a refusal."""
    return json.dumps({"error": {"message": message, "code": code}}).encode()


@pytest.fixture
def http(own_home: None) -> Iterator[FakeHTTP]:
    """A daemon with two models, of which `tiny` is loaded, that answers with two words."""
    with running_openai() as fake, FakeControl(Home.from_environment().socket, http=fake.url):
        fake.answer, fake.models = say("Two ", "words."), [TINY, OTHER]
        yield fake


@pytest.fixture
def chat(http: FakeHTTP) -> Iterator[Dialogue]:
    """A chat at its first prompt."""
    with Dialogue("chat") as terminal:
        terminal.expect("tiny: /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the chat\n>>> ")
        yield terminal


def last_prompt(http: FakeHTTP) -> str:
    """Return the last message of the last request."""
    content = http.bodies[-1]["messages"][-1]["content"]
    assert isinstance(content, str)
    return content


def test_conversation(http: FakeHTTP, chat: Dialogue) -> None:
    """Each prompt is asked with all that was said, figures follow each answer, and Ctrl-D ends with 0."""
    answer = chat.ask("First?")
    assert answer.splitlines()[0] == "Two words."
    assert answer.splitlines()[1].startswith(FIGURES)
    chat.ask("Second?")
    chat.type(CTRL_D)

    assert chat.wait() == 0
    assert [message["content"] for message in http.bodies[1]["messages"]] == ["First?", "Two words.", "Second?"]
    assert [message["role"] for message in http.bodies[1]["messages"]] == ["user", "assistant", "user"]


def test_commands(http: FakeHTTP, chat: Dialogue) -> None:
    """System message, parameters, model, retry and clear change the next request, and say so."""
    assert chat.ask("/system Be brief.") == "[system message set]"
    assert chat.ask("/system") == "Be brief."
    assert chat.ask("/set temperature 0") == "[temperature is 0.0]"
    assert chat.ask("/set max_tokens=7") == "[max_tokens is 7]"
    assert chat.ask("/set").splitlines()[:2] == ["temperature:        0.0", "top_p:              default"]
    listed = chat.ask("/model").splitlines()
    assert [line.split() for line in listed] == [["MODEL", "STATE"], ["*", "tiny", "ready"], ["org/other", "unloaded"]]
    assert chat.ask("/model org/other") == "[org/other answers from here on]"
    chat.ask("Hello")
    assert {name: http.bodies[0][name] for name in ("model", "temperature", "max_tokens")} == {
        "model": "org/other",
        "temperature": 0.0,
        "max_tokens": 7,
    }
    assert http.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}

    assert "[again: Hello]" in chat.ask("/retry")
    assert http.bodies[1] == http.bodies[0]
    assert chat.ask("/clear") == "[what was said is forgotten]"
    assert chat.ask("/system off") == "[no system message]"
    assert chat.ask("/set temperature default") == "[temperature is the default of the server]"
    chat.ask("Again")
    assert http.bodies[2]["messages"] == [{"role": "user", "content": "Again"}]
    assert "temperature" not in http.bodies[2]
    chat.type("/exit\n")
    assert chat.wait() == 0


WORDS = {
    "/modle x": "error: there is no command /modle\n  try: /model; a text that begins with a slash",
    "/xyz": "try: /help",
    "/set": "temperature:        default",
    "/set temprature 1": "error: there is no parameter 'temprature'; there are temperature, top_p",
    "/set top_k 1.5": "error: top_k is a whole number or default, not '1.5'",
    "/set seed": "error: a value is missing for seed",
    "/set temperature nan": "error: temperature is a number or default, not 'nan'",
    "/retry": "error: nothing was asked yet",
    "/clear all": "error: /clear takes no argument",
    "/history maybe": "error: /history takes on, off or clear, not 'maybe'",
    "/model tini": "note: no model tini is listed; the nearest names are tiny; it is asked for by this name",
    "/help": "/retry                ask the last prompt again",
    "/system": "(no system message)",
}


def test_what_a_command_says(http: FakeHTTP, chat: Dialogue) -> None:
    """A wrong command is answered in words that name the right one; nothing is asked, and the chat goes on."""
    for line, words in WORDS.items():
        assert words in chat.ask(line)
    chat.type(CTRL_D)
    assert chat.wait() == 0
    assert http.bodies == []


def test_several_lines(http: FakeHTTP, chat: Dialogue) -> None:
    """Quotes, a backslash, and a paste with and without the terminal's marks make one prompt of several lines."""
    for keys, expected in (
        ('"""one\ntwo\n\nthree"""\n', "one\ntwo\n\nthree"),
        ('""" /not a command """\n', "/not a command"),
        ("a\\\nb\\\nc\n", "a\nb\nc"),
        ("def f():\n    return 1\n\nf()\n", "def f():\n    return 1\n\nf()"),
        ("\x1b[200~first\n/second\n\x1b[201~\n", "first\n/second"),
    ):
        chat.type(keys)
        chat.expect(FIGURES)
        chat.expect(">>> ")
        assert last_prompt(http) == expected


def test_line_is_edited_and_remembered(http: FakeHTTP, chat: Dialogue) -> None:
    """The arrow keys edit and bring back what was typed, also in the next chat; the file is its owner's alone."""
    chat.ask("Helo\x1b[Dl")
    assert last_prompt(http) == "Hello"
    chat.ask("back\\slash")
    file = Home.from_environment().root / "chat_history"
    assert file.stat().st_mode & 0o777 == 0o600
    with Dialogue("chat", "tiny") as other:
        other.expect(">>> ")
        other.ask("\x1b[A")
        assert last_prompt(http) == "back\\slash"
        other.ask("\x1b[A\x1b[A")
        assert last_prompt(http) == "back\\slash"
        assert "is not kept" in other.ask("/history off")
        other.ask("secret")
        assert "secret" not in file.read_text()
        assert other.ask("/history clear") == "[what you typed is forgotten]"
        assert not file.exists()


def test_completion(http: FakeHTTP, chat: Dialogue) -> None:
    """Tab completes commands and the names of models."""
    chat.type("/mod\t org\t\n")
    assert "[org/other answers from here on]" in chat.expect(">>> ")


def test_ctrl_c_at_the_prompt(http: FakeHTTP, chat: Dialogue) -> None:
    """Ctrl-C at the prompt forgets the line, and the chat goes on."""
    chat.type("half a li")
    chat.expect("half a li")
    chat.interrupt("(Ctrl-D or /exit ends the chat)\n>>> ")
    chat.type("Hello\n")
    chat.expect("Two words.")
    assert last_prompt(http) == "Hello"


def test_context_that_is_full(http: FakeHTTP, chat: Dialogue) -> None:
    """A conversation that is too long is told with what to do, and that works."""
    chat.ask("First")
    good, http.status = http.answer, 400
    http.answer = refuse("context_length_exceeded", "the prompt has 600 tokens, more than the context of 512")
    assert chat.ask("Second").splitlines() == [
        "error: the prompt has 600 tokens, more than the context of 512",
        "  try: /clear forgets what was said, then /retry asks this again; or /model NAME with a longer context",
        "  code: context_length_exceeded",
    ]
    http.answer, http.status = good, 200
    chat.ask("/clear")
    assert "Two words." in chat.ask("/retry")
    assert http.bodies[-1]["messages"] == [{"role": "user", "content": "Second"}]


def test_parameter_that_is_refused(http: FakeHTTP, chat: Dialogue) -> None:
    """A value that the server does not take is told with the command that takes it back."""
    chat.ask("/set top_p 7")
    http.status = 400
    http.answer = b'{"error": {"message": "top_p is 7", "code": "invalid_request", "param": "top_p"}}'
    assert "try: /set top_p default, or another value; then /retry" in chat.ask("Hello")


@pytest.mark.parametrize(
    ("setting", "words"), [("/set max_tokens 2", "cut off at max_tokens 2"), ("/set seed 1", "the context is full")]
)
def test_answer_that_is_cut_off(http: FakeHTTP, chat: Dialogue, setting: str, words: str) -> None:
    """What cut an answer off is said: the user's own limit, or the end of the context."""
    http.answer = say("Once", finish_reason="length")
    chat.ask(setting)
    assert words in chat.ask("Tell me a story")


def test_failure_in_the_middle(http: FakeHTTP, chat: Dialogue) -> None:
    """An answer that breaks off keeps what came; the chat goes on, and the part is in the conversation."""
    http.answer = sse(delta(content="Once upon"))
    said = chat.ask("Tell me")
    assert said.splitlines()[:2] == ["Once upon", "error: the answer broke off before its end"]
    assert "what came stays in the conversation; /retry asks again" in said
    http.answer = say("a time")
    chat.ask("Go on")
    assert [message["content"] for message in http.bodies[1]["messages"]] == ["Tell me", "Once upon", "Go on"]


def test_thoughts_stand_apart(http: FakeHTTP, chat: Dialogue) -> None:
    """What the model thinks aloud is marked off from the answer, and is not sent back; control characters show."""
    thought = {"model": "tiny", "choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": None}]}
    http.answer = sse(thought) + say("Yes\x1b[2J.")
    said = chat.ask("Really?")
    assert said.splitlines()[:4] == ["[thinking]", "Hm.", "[end of thinking]", "Yes\N{REPLACEMENT CHARACTER}[2J."]
    chat.ask("Sure?")
    assert http.bodies[1]["messages"][1]["content"] == "Yes\x1b[2J."


def test_daemon_that_is_gone(own_home: None) -> None:
    """Without its daemon the chat says so and waits; with another one, elsewhere, it goes on."""
    socket = Home.from_environment().socket
    with running_openai() as http:
        http.answer, http.models = say("Hi"), [TINY]
        first = FakeControl(socket, http=http.url)
        with Dialogue("chat", "tiny") as chat:
            chat.expect(">>> ")
            first.close()
            said = chat.ask("Hello")
            assert "error: no daemon is running" in said
            assert "try: mlxctl start\n  try: /retry asks again" in said.replace("\r\n", "\n")
            with running_openai() as moved:
                moved.answer, moved.models = say("Here again"), [TINY]
                with FakeControl(socket, http=moved.url):
                    assert "Here again" in chat.ask("/retry")
                    assert moved.bodies[0]["messages"] == [{"role": "user", "content": "Hello"}]


def test_quiet(http: FakeHTTP) -> None:
    """With -q there are prompts and answers, and nothing else."""
    with Dialogue("chat", "tiny", "-q", "--system", "Be brief.", "--temperature", "0") as chat:
        chat.expect(">>> ")
        assert chat.transcript == ">>> "
        assert chat.ask("Hello") == "Two words."
    assert http.bodies[0]["messages"][0]["content"] == "Be brief."
    assert http.bodies[0]["temperature"] == 0
