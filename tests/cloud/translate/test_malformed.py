"""Whatever clients and upstreams send: an error of ours, and never another exception."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.cloud.sse import Event
from mlxd.protocol.errors import CloudError, InvalidRequest
from tests.support.said import Call, Said, events, whole
from tests.support.translated import to_anthropic, to_openai

EXAMPLES = settings(max_examples=80, deadline=None)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1.5, "", "x", [], [[]], [5], ["x"], {}, {"type": "text"}, {"type": []}, {"a": {}}]
)
SAID = Said(thoughts=("hm",), calls=(Call("a", "f", ('{"x":', "1}")),), end="calls")
CHAT = {
    "model": "m",
    "max_tokens": 1,
    "stop": ["x"],
    "stream": True,
    "stream_options": {"include_usage": True},
    "temperature": 1,
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "service_tier": "auto",
    "user": "u",
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}, "strict": True}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,A", "detail": "auto"}},
            ],
        },
        {
            "role": "assistant",
            "content": "c",
            "thinking_blocks": [{"type": "thinking", "thinking": "t", "signature": "s"}],
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "r"},
        {"role": "user", "content": "q"},
    ],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a body."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


@st.composite
def damaged(draw: st.DrawFn, body: dict[str, Any]) -> dict[str, Any]:
    """Return *body* with one or two of its values replaced, or gone."""
    changed = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 2))):
        *way, last = draw(st.sampled_from(places(changed) or [("x",)]))
        holder: Any = changed
        for key in way:
            holder = holder[key]
        if isinstance(holder, dict) and draw(st.booleans()):
            holder.pop(last, None)
        else:
            holder[last] = copy.deepcopy(draw(ODD))
    return changed


@EXAMPLES
@given(damaged(CHAT))
def test_damaged_chats(body: dict[str, Any]) -> None:
    """Said or refused."""
    with contextlib.suppress(InvalidRequest):
        to_anthropic().request(b"", body, "m")


@EXAMPLES
@given(damaged(json.loads(to_anthropic().request(b"", CHAT, "m"))))
def test_damaged_messages(body: dict[str, Any]) -> None:
    """Said or refused."""
    with contextlib.suppress(InvalidRequest):
        to_openai().request(b"", body, "m")


@EXAMPLES
@given(damaged(whole(SAID, "m", speaks="anthropic")), damaged(whole(SAID, "m", speaks="openai")))
def test_damaged_answers(message: dict[str, Any], completion: dict[str, Any]) -> None:
    """Said, or an error of the upstream."""
    for between, body in ((to_anthropic(), message), (to_openai(), completion)):
        with contextlib.suppress(CloudError):
            between.answer(orjson.dumps(body))


def _parsed(speaks: str) -> list[dict[str, Any]]:
    raw = [event.rsplit(b"data: ", 1)[1] for part in events(SAID, "m", speaks=speaks) for event in part]
    return [json.loads(datum) for datum in raw if datum.startswith(b"{")]


@EXAMPLES
@given(
    damaged({"events": _parsed("anthropic")}).map(lambda body: body.get("events")),
    damaged({"events": _parsed("openai")}).map(lambda body: body.get("events")),
)
def test_damaged_streams(events_of_a_message: Any, chunks: Any) -> None:
    """Said, or an error of the upstream."""
    for between, stream in ((to_anthropic(), events_of_a_message), (to_openai(), chunks)):
        with contextlib.suppress(CloudError):
            for parsed in stream if isinstance(stream, list) else ():
                if isinstance(parsed, dict):
                    between.event(Event(b"", "", b"{}"), parsed)
            between.event(Event(b"", "", b"[DONE]"), None)
