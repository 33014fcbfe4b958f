"""The events of a response: whatever an answer is cut into, they make up what its last one says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.engine.base import Delta, Finished, FinishReason, TextKind
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.tool import CallPiece
from mlxd.openai.response_call import GrowingCall
from mlxd.openai.response_event import ResponseEvents
from mlxd.openai.response_item import new_id
from mlxd.openai.tool_name import Callee, ToolNames
from tests.support.scripted_pool import USAGE

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=5)
PIECE = st.one_of(
    st.tuples(st.sampled_from([TextKind.CONTENT, TextKind.REASONING]), TEXT),
    st.tuples(st.just(TextKind.TOOL), st.lists(st.sampled_from(["", '{"a', "}"]), min_size=1, max_size=4)),
)
NAMES = ToolNames([Callee("function", "f", "agents"), Callee("custom", "patch"), Callee("shell", "shell")])


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
    events = ResponseEvents("resp_1", 5, "m", {}, NAMES, has_logprobs=False)
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


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=12), st.booleans(), st.data())
def test_the_input_of_a_custom_tool_is_read_while_it_is_written(text: str, is_ascii: bool, data: st.DataObject) -> None:
    """Wherever its JSON is cut, and however it is escaped; the end of the item has the same."""
    whole = json.dumps({"input": text}, ensure_ascii=is_ascii)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    parts = [whole[start:end] for start, end in pairwise([0, *cuts, len(whole)])]
    call = GrowingCall(Callee("custom", "patch"), new_id)
    said = [call.take(part) for part in parts]
    assert call.now()[0]["input"] == "".join(said)
    assert "".join([*said, call.finish("completed")]) == text
    assert call.item == {**call.item, "type": "custom_tool_call", "name": "patch", "input": text, "status": "completed"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [('{"input":"so f', "so f"), ('{"input":"a\\', "a\\"), ('{"patch":"x"}', "x"), ('{"a":1}', '{"a":1}'), ("", "")],
)
def test_what_a_custom_tool_is_told_is_not_lost(arguments: str, text: str) -> None:
    """An input that is cut off, or that is written in another way, is given as far as it is."""
    call = GrowingCall(Callee("custom", "patch"), new_id)
    said = call.take(arguments)
    assert said + call.finish("incomplete") == text == call.item["input"]


def test_each_kind_of_call_has_its_events() -> None:
    """A function of a namespace and a custom tool stream what they say; a shell's commands come whole."""
    events = ResponseEvents("resp_1", 5, "m", {}, NAMES, has_logprobs=False)
    made = [("agents__f", '{"a":1}'), ("patch", '{"input":"x"}'), ("shell", '{"commands":["ls"]}')]
    pieces = tuple(CallPiece(name, given, is_last=True) for name, given in made)
    data = events.take(Delta(1, "", TextKind.TOOL, 1, calls=pieces)) + events.finish(
        Finished(1, FinishReason.STOP, USAGE), 6
    )
    parsed = [json.loads(line.partition("\ndata: ")[2]) for line in data.decode().split("\n\n")[:-1]]
    assert [event["type"].removeprefix("response.") for event in parsed[2:-1]] == [
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        *("output_item.added", "custom_tool_call_input.delta", "custom_tool_call_input.done", "output_item.done"),
        *("output_item.added", "output_item.done"),
    ]
    items = [event["item"] for event in parsed if event["type"] == "response.output_item.done"]
    assert items == events.body()["output"]
    assert [(item["type"], item["status"]) for item in items] == [
        ("function_call", "completed"), ("custom_tool_call", "completed"), ("shell_call", "completed"),
    ]  # fmt: skip
    assert (items[0]["name"], items[0]["namespace"], items[1]["input"]) == ("f", "agents", "x")
