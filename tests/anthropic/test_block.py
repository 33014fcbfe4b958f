"""What each content block is in the prompt: its text, a note in its place, or nothing, visibly."""

from __future__ import annotations

from typing import Any

import pytest

from mlxd.anthropic.schema import parse_message_body
from mlxd.engine.base import ChatPrompt
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.protocol.errors import InvalidRequest, UnsupportedParameter

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
NOTE = "[image omitted: m reads text only]"
FILE = "[file omitted: m reads text only]"


def text(words: str) -> dict[str, Any]:
    """Return a text block."""
    return {"type": "text", "text": words}


def read(*messages: dict[str, Any], system: Any = None, **rejects: bool) -> tuple[list[Any], list[str]]:
    """Return the messages of the prompt, and the names of what is left out."""
    omitted = Omissions("m", **rejects)
    body = {"model": "m", "max_tokens": 9, "messages": list(messages), "system": system}
    asked = parse_message_body(body, NoiseFilter(), omitted).request.prompt
    assert isinstance(asked, ChatPrompt)
    return list(asked.messages), list(omitted.names)


def user(*blocks: Any) -> dict[str, Any]:
    """Return a turn of the user."""
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    """Return a turn of the assistant."""
    return {"role": "assistant", "content": list(blocks)}


DOCUMENTS = [
    (IMAGE, NOTE),
    ({"type": "container_upload", "file_id": "f"}, FILE),
    ({"type": "audio", "source": {}}, "[audio omitted: m reads text only]"),
    ({"type": "document", "source": PDF, "title": "t"}, FILE),
    ({"type": "document", "source": {"type": "url", "url": "https://x.example/a.pdf"}}, FILE),
]
TEXTS: list[tuple[dict[str, Any], str]] = [
    (
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "d"}, "title": "t"},
        "<document>\n<title>t</title>\nd\n</document>\n",
    ),
    (
        {"type": "document", "source": {"type": "content", "content": [text("a"), text("b")]}, "context": "c"},
        "<document>\n<context>c</context>\nab\n</document>\n",
    ),
    (
        {"type": "search_result", "source": "s", "title": "t", "content": [text("a")], "citations": {"enabled": False}},
        "<search_result>\n<source>s</source>\n<title>t</title>\na\n</search_result>\n",
    ),
]


@pytest.mark.parametrize(("block", "note"), DOCUMENTS)
def test_media_become_a_note_in_their_place(block: dict[str, Any], note: str) -> None:
    """In what the user says, what a tool says and what the system says; the setting refuses them."""
    result = {"type": "tool_result", "tool_use_id": "1", "content": [text("see "), block, text("!")]}
    messages, names = read(user(result, text("and "), block), system=[text("s"), block])
    assert messages == [
        {"role": "system", "content": f"s\n\n{note}"},
        {"role": "tool", "tool_call_id": "1", "content": f"see {note}!"},
        {"role": "user", "content": f"and {note}"},
    ]
    assert names == ["system[1]", "messages[0].content[0].content[1]", "messages[0].content[2]"]
    with pytest.raises(UnsupportedParameter, match="reads text only"):
        read(user(result), rejects_media=True)


@pytest.mark.parametrize(("block", "words"), TEXTS)
def test_documents_of_text_are_read(block: dict[str, Any], words: str) -> None:
    """With what the client says of them, each in a tag; nothing is left out."""
    result = {"type": "tool_result", "tool_use_id": "1", "content": [block]}
    messages, names = read(user(result, block, text("why?")), rejects_fields=True, rejects_media=True)
    assert [message["content"] for message in messages] == [words, f"{words}why?"]
    assert names == []


def test_citations_are_left_out() -> None:
    """Where they are asked for: answers here have none."""
    block = TEXTS[0][0] | {"citations": {"enabled": True}}
    assert read(user(block))[1] == ["messages[0].content[0].citations"]


RESULTS = [
    (
        {
            "type": "web_search_tool_result",
            "tool_use_id": "s1",
            "content": [
                {"type": "web_search_result", "title": "T", "url": "https://x.example", "encrypted_content": "Eq"},
            ],
        },
        "T\nhttps://x.example",
    ),
    ({"type": "web_search_tool_result", "content": {"error_code": "max_uses_exceeded"}}, "max_uses_exceeded"),
    (
        {
            "type": "web_fetch_tool_result",
            "content": {
                "url": "https://x.example",
                "content": {"type": "document", "title": "T", "source": {"type": "text", "data": "words"}},
            },
        },
        "https://x.example\nT\nwords",
    ),
    (
        {"type": "bash_code_execution_tool_result", "content": {"stdout": "4\n", "stderr": "", "return_code": 0}},
        "4\n",
    ),
    ({"type": "mcp_tool_result", "content": [text("a"), text("b")]}, "a\nb"),
]


@pytest.mark.parametrize(("block", "words"), RESULTS)
def test_results_of_hosted_tools_keep_their_text(block: dict[str, Any], words: str) -> None:
    """They stand in the answer that had them; the calls before them are left out."""
    use = {"type": "server_tool_use", "id": "s1", "name": "x", "input": {}}
    messages, names = read(user(text("hi")), assistant(use, block, text("so")), user(text("on")))
    assert messages[1]["content"] == f"<{block['type']}>\n{words}\n</{block['type']}>\nso"
    assert names == ["messages[1].content[0].server_tool_use"]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "redacted_thinking", "data": "Eq"},
        {"type": "mcp_tool_use", "id": "1", "name": "x", "server_name": "y", "input": {}},
        {"type": "web_fetch_tool_result", "content": {"content": {"source": PDF}}},
        {"type": "code_execution_tool_result", "content": {"encrypted_stdout": "Eq"}},
        {"type": "fallback", "from": {}, "to": {}},
        {"type": "of_tomorrow"},
    ],
)
def test_what_says_nothing_here_is_left_out(block: dict[str, Any]) -> None:
    """Named with its kind, or refused where omissions are."""
    turns = [user(text("hi")), assistant(block, text("so")), user(text("on"))]
    messages, names = read(*turns)
    assert messages[1] == {"role": "assistant", "content": "so"}
    assert names == [f"messages[1].content[0].{block['type']}"]
    with pytest.raises(UnsupportedParameter):
        read(*turns, rejects_fields=True)


def test_results_as_deep_as_json_may_be_are_read_to_a_depth() -> None:
    """Nothing recurses without an end."""
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    names = read(user(text("hi")), assistant({"type": "mcp_tool_result", "content": deep}))[1]
    assert names == ["messages[1].content[0].mcp_tool_result"]


def test_documents_in_documents_are_left_out() -> None:
    """There is one level, however deep a body is."""
    deep: Any = text("x")
    for _ in range(300):
        deep = {"type": "document", "source": {"type": "content", "content": [deep]}}
    messages, names = read(user(deep, text("why?")))
    assert messages[0]["content"] == "<document>\n\n</document>\nwhy?"
    assert names == ["messages[0].content[0].source.content[0].document"]


def test_a_call_may_have_no_input() -> None:
    """Null is as good as an empty one."""
    messages, _ = read(user(text("a")), assistant({"type": "tool_use", "id": "1", "name": "f", "input": None}))
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {}


def test_a_summary_stands_for_all_before_it() -> None:
    """The last one does; one that failed has no text and changes nothing."""
    failed = {"type": "compaction", "content": None}
    summary = {"type": "compaction", "content": "sum", "signature": "Eq"}
    messages, names = read(
        user(text("a")),
        assistant({"type": "compaction", "content": "older"}, text("b")),
        user(text("c")),
        assistant(text("d"), summary, text("e")),
        user(text("f")),
        assistant(failed, text("g")),
        user(text("h")),
    )
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", "sum"), ("assistant", "e"), ("user", "f"), ("assistant", "g"), ("user", "h"),
    ]  # fmt: skip
    assert names == ["messages[5].content[0].compaction"]
    alone, _ = read(user(text("a")), assistant(summary), user(text("f")))
    assert alone == [{"role": "user", "content": "sum\n\nf"}]


@pytest.mark.parametrize("nothing", [None, [], "", [text("")]])
def test_turns_without_a_word_are_taken(nothing: Any) -> None:
    """From the assistant, the user, a tool and the system."""
    result = {"type": "tool_result", "tool_use_id": "1", "content": nothing}
    messages, names = read(
        {"role": "user", "content": nothing},
        {"role": "assistant", "content": nothing},
        user(result),
        {"role": "system", "content": nothing},
        system=nothing,
    )
    assert messages == [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]
    assert names == []


def test_an_empty_beginning_of_an_answer_is_none() -> None:
    """There is nothing that could be continued."""
    omitted = Omissions("m")
    body = {"model": "m", "max_tokens": 9, "messages": [user(text("hi")), assistant()]}
    asked = parse_message_body(body, NoiseFilter(), omitted).request.prompt
    assert asked == ChatPrompt(({"role": "user", "content": "hi"},))


def test_neighbors_of_one_role_are_one_turn() -> None:
    """As Anthropic has it, for templates that take roles in turn; results stay apart."""
    use = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": "r"}
    messages, _ = read(
        user(text("a")),
        user(text("b")),
        assistant({"type": "thinking", "thinking": "hm", "signature": ""}, text("c")),
        assistant(use),
        user(result, text("d")),
        user(text("e")),
    )
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", "a\n\nb"), ("assistant", "c"), ("tool", "r"), ("user", "d\n\ne"),
    ]  # fmt: skip
    assert (len(messages[1]["tool_calls"]), messages[1]["reasoning_content"]) == (1, "hm")


def test_a_note_of_the_system_may_end_with_the_turn() -> None:
    """`clear_at` takes it out once the user has spoken again."""
    note = {"role": "system", "content": "n", "clear_at": "next_user_message"}
    assert [message["role"] for message in read(user(text("a")), note)[0]] == ["user", "system"]
    later, names = read(user(text("a")), note, assistant(text("b")), user(text("c")))
    assert [message["role"] for message in later] == ["user", "assistant", "user"]
    assert names == []


@pytest.mark.parametrize("kind", ["thinking", "redacted_thinking", "tool_use"])
def test_what_only_an_assistant_says_has_its_place(kind: str) -> None:
    """In a turn of the user it is a mistake."""
    with pytest.raises(InvalidRequest, match="has no place in a user message"):
        read(user({"type": kind}))
