"""There and back: what both protocols can say survives, and means to this server's own routes what it meant before."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.anthropic.schema import parse_message_body
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.openai.schema import parse_chat
from tests.support.translated import to_anthropic, to_openai

EXAMPLES = settings(max_examples=60, deadline=None)
NAMES = st.sampled_from(["weather", "now", "tell-me", "x_1"])
WORDS = st.text(min_size=1, max_size=12)
JSON = st.dictionaries(WORDS, st.none() | st.booleans() | st.integers(-9, 9) | WORDS | st.lists(WORDS), max_size=3)
SCHEMAS = st.dictionaries(NAMES, st.sampled_from([{"type": "string"}, {"type": "integer"}]), max_size=2).map(
    lambda properties: {"type": "object", "properties": properties}
)
TEXT = WORDS.map(lambda words: {"type": "text", "text": words})
IMAGE = st.sampled_from(["https://x/y.png", "data:image/png;base64,AAAA"]).map(
    lambda url: {"type": "image_url", "image_url": {"url": url}}
)


def user(part: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Return users' turns: a text, or several parts."""
    content = WORDS | st.lists(part, min_size=2, max_size=3)
    return content.map(lambda content: [{"role": "user", "content": content}])


@st.composite
def rounds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Return a turn of calls with the turns of their results."""
    calls, results = [], []
    for index in range(draw(st.integers(1, 3))):
        call_id = f"call_{draw(st.integers(0, 9))}_{index}"
        arguments = json.dumps(draw(JSON), separators=(",", ":"), ensure_ascii=False)
        function = {"name": draw(NAMES), "arguments": arguments}
        calls.append({"id": call_id, "type": "function", "function": function})
        results.append({"role": "tool", "tool_call_id": call_id, "content": draw(st.text(max_size=9))})
    return [{"role": "assistant", "content": draw(st.none() | WORDS), "tool_calls": calls}, *results]


ANSWER = WORDS.map(lambda words: [{"role": "assistant", "content": words}])
LATE_SYSTEM = WORDS.map(lambda words: [{"role": "system", "content": words}])


@st.composite
def chats(draw: st.DrawFn, part: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Return bodies of chats in the words that a translation back chooses."""
    turns = [draw(user(part))]
    turns += draw(st.lists(user(part) | ANSWER | LATE_SYSTEM | rounds(), max_size=4))
    turns.append(draw(user(part) | rounds()))
    system = draw(st.none() | WORDS)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for turn in turns:
        # Turns of one role that follow each other are one turn to Anthropic.
        if messages and turn[0]["role"] in ("user", "assistant") and turn[0]["role"] == messages[-1]["role"]:
            messages.pop()
        messages += turn
    fields = {
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(1, 99),
        "stop": st.lists(WORDS, min_size=1, max_size=4),
        "reasoning_effort": st.sampled_from(["none", "low", "medium", "high", "xhigh"]),
        "service_tier": st.sampled_from(["auto", "default"]),
        "response_format": SCHEMAS.map(
            lambda schema: {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": schema, "strict": True},
            }
        ),
    }
    body = {"model": "far", "messages": messages, "max_completion_tokens": draw(st.integers(1, 99))}
    body |= draw(st.fixed_dictionaries({}, optional=fields))
    if draw(st.booleans()):
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body | draw(tools())


@st.composite
def tools(draw: st.DrawFn) -> dict[str, Any]:
    """Return tools with a choice among them, or nothing."""
    names = draw(st.lists(NAMES, max_size=2, unique=True))
    if not names:
        return {}
    listed = [
        {"type": "function", "function": {"name": name, "parameters": draw(SCHEMAS)} | draw(_MORE)} for name in names
    ]
    named = {"type": "function", "function": {"name": names[0]}}
    body: dict[str, Any] = {"tools": listed, "tool_choice": draw(st.sampled_from(["auto", "required", named]))}
    if draw(st.booleans()):
        body["parallel_tool_calls"] = False
    return body


_MORE = st.fixed_dictionaries({}, optional={"description": WORDS, "strict": st.booleans()})


def in_messages(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of messages that a chat's is."""
    result: dict[str, Any] = json.loads(to_anthropic().request(b"", body, "far"))
    return result


def in_chat(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a chat that messages' is."""
    result: dict[str, Any] = json.loads(to_openai().request(b"", body, "far"))
    return result


@EXAMPLES
@given(chats(TEXT | IMAGE))
def test_what_both_can_say_comes_back(body: dict[str, Any]) -> None:
    """From OpenAI's words to Anthropic's and back, and once more: nothing changes."""
    there = in_messages(body)
    back = in_chat(there)
    assert back == body
    assert in_messages(back) == there


@EXAMPLES
@given(chats(TEXT))
def test_it_means_the_same(body: dict[str, Any]) -> None:
    """This server's chat route and its messages route, as strict as they can be, read one request in both."""
    (asked,) = parse_chat(body, NoiseFilter(), Omissions("m", rejects_fields=True)).requests
    parsed = parse_message_body(in_messages(body), NoiseFilter(), Omissions("m", rejects_fields=True))
    same = parsed.request
    for name in ("sampling", "max_tokens", "stop"):
        assert getattr(same, name) == getattr(asked, name)
    assert same.prompt.messages == asked.prompt.messages  # type: ignore[union-attr]
    assert same.prompt.tools == asked.prompt.tools  # type: ignore[union-attr]
    assert (same.constraint is None) == (asked.constraint is None)
    assert parsed.stream == body.get("stream", False)
