"""A stream says what the whole answer says, in pieces of any size."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.cloud.sse import EventCutter
from mlxd.cloud.translate.base import Translation
from tests.support.said import Call, Said, events, whole
from tests.support.translated import to_anthropic, to_openai

EXAMPLES = settings(max_examples=60, deadline=None)
# A longer number of a whole answer is read as a float; in a stream it is text, and passes as it is.
NUMBERS = st.integers(-(2**63), 2**64 - 1)
PIECES = st.lists(st.text(min_size=1, max_size=6), max_size=4).map(tuple)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Call, ...]:
    """Return calls whose arguments come in pieces, or not at all."""
    made = []
    for index in range(draw(st.integers(0, 3))):
        text = json.dumps(draw(st.dictionaries(st.text(max_size=4), NUMBERS | st.text(max_size=4), max_size=2)))
        cuts = sorted(draw(st.sets(st.integers(1, len(text) - 1), max_size=3)))
        pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        made.append(Call(f"call_{index}", draw(st.sampled_from("xyz")), () if text == "{}" else tuple(pieces)))
    return tuple(made)


ANSWERS = st.builds(Said, words=PIECES, thoughts=PIECES, calls=calls(), end=st.just("calls")).filter(
    lambda said: said.calls or said.words
)


def streamed(between: Translation, said: Said, speaks: str) -> list[dict[str, Any]]:
    """Return the events of a translated stream."""
    raw = b"".join(event for part in events(said, "m", speaks=speaks) for event in part)
    out = b""
    for event in EventCutter().feed(raw):
        out += between.event(event, json.loads(event.data) if event.data.startswith(b"{") else None)
    data = [event.data for event in EventCutter().feed(out + between.end())]
    return [json.loads(datum) for datum in data if datum != b"[DONE]"]


@EXAMPLES
@given(ANSWERS)
def test_chunks_add_up_to_the_completion(said: Said) -> None:
    """Words, thoughts and calls of a chat."""
    answer = json.loads(to_anthropic().answer(json.dumps(whole(said, "m", speaks="anthropic")).encode()))
    message = answer["choices"][0]["message"]
    content, reasoning = "", ""
    made: list[list[str]] = []
    for chunk in streamed(to_anthropic(), said, "anthropic"):
        delta = chunk["choices"][0]["delta"]
        content += delta.get("content") or ""
        reasoning += delta.get("reasoning_content", "")
        for piece in delta.get("tool_calls", ()):
            if "id" in piece:
                assert piece["index"] == len(made)
                made.append([piece["id"], piece["function"]["name"], ""])
            made[piece["index"]][2] += piece["function"]["arguments"]
    assert content == (message["content"] or "")
    assert reasoning == message.get("reasoning_content", "")
    assert [(call_id, name, json.loads(arguments)) for call_id, name, arguments in made] == [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", ())
    ]


@EXAMPLES
@given(ANSWERS)
def test_events_add_up_to_the_message(said: Said) -> None:
    """Blocks of a message, each opened, filled and closed before the next."""
    answer = json.loads(to_openai().answer(json.dumps(whole(said, "m", speaks="openai")).encode()))
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in streamed(to_openai(), said, "openai"):
        match event["type"]:
            case "content_block_start":
                assert (event["index"], is_open) == (len(blocks), False)
                blocks.append(event["content_block"] | {"json": ""})
                is_open = True
            case "content_block_delta":
                assert (event["index"], is_open) == (len(blocks) - 1, True)
                delta = event["delta"]
                name = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}.get(
                    delta["type"]
                )
                if name is not None:
                    blocks[-1][name] += delta.get("partial_json", delta.get(name))
            case "content_block_stop":
                is_open = False
                text = blocks[-1].pop("json")
                if blocks[-1]["type"] == "tool_use":
                    blocks[-1]["input"] = json.loads(text or "{}")
    assert blocks == answer["content"]
