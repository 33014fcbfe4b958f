"""The events of a response: whatever an answer is cut into, they make up what its last one says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.engine.base import Delta, Finished, FinishReason, TextKind
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.tool import CallPiece
from mlxd.openai.response_event import ResponseEvents
from tests.support.scripted_pool import USAGE

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5)
PIECE = st.one_of(
    st.tuples(st.sampled_from([TextKind.CONTENT, TextKind.REASONING]), TEXT),
    st.tuples(st.just(TextKind.TOOL), st.lists(st.sampled_from(["", '{"a', "}"]), min_size=1, max_size=4)),
)


def _deltas(pieces: Sequence[tuple[TextKind, Any]]) -> list[Delta]:
    deltas = []
    for number, (kind, piece) in enumerate(pieces, 1):
        if kind is TextKind.TOOL:
            for place, part in enumerate(piece):
                call = CallPiece(None if place else "f", part, is_last=place == len(piece) - 1)
                deltas.append(Delta(1, "call", kind, number, calls=(call,)))
        else:
            deltas.append(Delta(1, piece, kind, number, (TokenLogprob(0, piece.encode(), -1.0, ()),)))
    return deltas


def _made(pieces: Sequence[tuple[TextKind, Any]], reason: FinishReason) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    events = ResponseEvents("resp_1", 5, "m", {}, has_logprobs=False)
    data = b"".join(events.take(delta) for delta in _deltas(pieces))
    data += events.finish(Finished(1, reason, USAGE), 6)
    lines = data.decode().split("\n\n")[:-1]
    parsed = [json.loads(line.partition("\ndata: ")[2]) for line in lines]
    assert [line.partition("\n")[0] for line in lines] == [f"event: {event['type']}" for event in parsed]
    return parsed, events.body()


@settings(max_examples=150, deadline=None)
@given(st.lists(PIECE, max_size=12), st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]))
def test_the_events_make_up_the_answer(pieces: list[tuple[TextKind, Any]], reason: FinishReason) -> None:
    """Items open and close in turn, deltas add up to what is said at the end, and no word is lost or moved."""
    events, body = _made(pieces, reason)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1] == {
        "type": f"response.{body['status']}", "sequence_number": len(events) - 1, "response": body,
    }  # fmt: skip
    texts: list[str] = []
    done: list[dict[str, Any]] = []
    for event in events[2:-1]:
        assert event["output_index"] == len(texts) - (event["type"] != "response.output_item.added")
        match event["type"].rpartition(".")[2]:
            case "added" if "item" in event:
                assert len(texts) == len(done)
                texts.append("")
            case "delta":
                texts[-1] += event["delta"]
            case "done" if "item" in event:
                done.append(event["item"])
            case "done" if "part" not in event:
                assert texts[-1] == event.get("text", event.get("arguments"))
    assert done == body["output"]
    said = [item["arguments"] if "arguments" in item else item["content"][0]["text"] for item in done]
    assert said == texts
    for kind, name in ((TextKind.CONTENT, "message"), (TextKind.REASONING, "reasoning")):
        expected = "".join(piece for of, piece in pieces if of is kind)
        assert "".join(text for text, item in zip(texts, done, strict=True) if item["type"] == name) == expected
    calls = [item for item in done if item["type"] == "function_call"]
    assert [item["arguments"] for item in calls] == ["".join(piece) for kind, piece in pieces if kind is TextKind.TOOL]
    assert {item["status"] for item in calls} <= {"incomplete"}
    assert len({item["call_id"] for item in calls}) == len(calls)
    assert len({item["id"] for item in done}) == len(done)
