"""Items of /v1/responses: what the template is shown of each, and that no item of OpenAI's API is an error."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openai.types.responses import ResponseInputItemParam

from mlxd import fields
from mlxd.engine.base import Delta, Finished, FinishReason, TextKind
from mlxd.engine.tool import CallPiece
from mlxd.http.omissions import Omissions
from mlxd.http.sealed import opened, sealed
from mlxd.openai.response_event import ResponseEvents
from mlxd.protocol.errors import UnsupportedParameter
from tests.support.response_body import TOOL, left_out, messages, refusal, response, types_of
from tests.support.scripted_pool import USAGE

HI = {"role": "user", "content": "hi"}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
NOTE = "[image omitted: m reads text only]"
AGENTS: dict[str, Any] = {"type": "namespace", "name": "agents", "description": "d", "tools": [TOOL]}
PATCH: dict[str, Any] = {"type": "custom", "name": "patch"}
# As the API documents them; what is omitted is left out of each.
WITHOUT_WORDS: dict[str, dict[str, Any]] = {
    "compaction": {"encrypted_content": "x"},
    "computer_call": {
        "call_id": "c",
        "action": {"type": "screenshot"},
        "pending_safety_checks": [],
        "status": "completed",
    },
    "computer_call_output": {"call_id": "c", "output": {"type": "computer_screenshot", "image_url": "x"}},
    "file_search_call": {"queries": ["q"], "status": "completed", "results": None},
    "image_generation_call": {"result": "iVBORw0KGgo=", "status": "completed"},
    "mcp_approval_request": {"arguments": "{}", "name": "f", "server_label": "s"},
    "mcp_approval_response": {"approval_request_id": "x", "approve": True},
    "mcp_list_tools": {"server_label": "s", "tools": []},
    "tool_search_call": {"arguments": {"query": "q"}, "call_id": None, "execution": "client", "status": "completed"},
    "tool_search_output": {"tools": [TOOL], "execution": "client"},
    "web_search_call": {"action": {"type": "search", "query": "q"}, "status": "completed"},
}
CALLS: dict[str, tuple[dict[str, Any], str, Any]] = {
    "function_call": ({"call_id": "c", "name": "f", "arguments": "{}"}, "f", {}),
    "custom_tool_call": ({"call_id": "c", "name": "patch", "input": "x"}, "patch", {"input": "x"}),
    "local_shell_call": (
        {"call_id": "c", "status": "completed", "action": {"type": "exec", "command": ["ls"], "env": {}}},
        "local_shell", {"command": ["ls"], "env": {}},
    ),
    "shell_call": ({"call_id": "c", "action": {"commands": ["ls"]}}, "shell", {"commands": ["ls"]}),
    "apply_patch_call": (
        {"call_id": "c", "status": "completed", "operation": {"type": "delete_file", "path": "p"}},
        "apply_patch", {"operation": {"type": "delete_file", "path": "p"}},
    ),
    "program": ({"call_id": "c", "code": "1", "fingerprint": "x"}, "program", {"code": "1"}),
}  # fmt: skip
OUTPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "function_call_output": ({"call_id": "c", "output": [{"type": "input_text", "text": "a"}, IMAGE]}, f"a{NOTE}"),
    "custom_tool_call_output": ({"call_id": "c", "output": [IMAGE]}, NOTE),
    "local_shell_call_output": ({"id": "c", "output": "done"}, "done"),
    "shell_call_output": (
        {"call_id": "c", "output": [{"stdout": "a", "stderr": "b", "outcome": {"type": "exit", "exit_code": 1}}]},
        "ab\n[exit code 1]\n",
    ),
    "apply_patch_call_output": ({"call_id": "c", "status": "failed"}, "failed"),
    "program_output": ({"call_id": "c", "result": "2", "status": "completed"}, "2"),
}
BOTH: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "code_interpreter_call": (
        {"code": "1", "container_id": "x", "outputs": [{"type": "logs", "logs": "2"}], "status": "completed"},
        "code_interpreter", {"code": "1"}, "2",
    ),
    "file_search_call": (
        {"queries": ["q"], "status": "completed", "results": [{"text": "a"}, {"text": "b"}]},
        "file_search", {"queries": ["q"]}, "a\n\nb",
    ),
    "mcp_call": ({"arguments": '{"a":1}', "name": "f", "server_label": "s", "output": "x"}, "s__f", {"a": 1}, "x"),
}  # fmt: skip
# Read as fields of the body, or as the items that others are made of; the trigger asks for another answer.
OTHERS = {"message", "reasoning", "item_reference", "additional_tools", "configuration_update", "compaction_trigger"}


def test_items_become_messages() -> None:
    """Parts are joined, developers are system, results are the tool's, an assistant's turn is one message."""
    assert messages(
        {"role": "developer", "content": "one"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "phase": "final_answer",
         "content": [{"type": "output_text", "text": "so", "annotations": [], "logprobs": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "no json", "status": "completed"},
        {"type": "function_call_output", "call_id": "c1", "output": "x"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "y"}], "name": "f"},
        {"role": "assistant", "content": "done"},
        {"role": "assistant", "content": "really"},
    ) == (
        {"role": "system", "content": "one"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "so", "reasoning_content": "hm", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
            {"id": "c2", "type": "function", "function": {"name": "f", "arguments": {"INVALID_JSON": "no json"}}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
        {"role": "tool", "tool_call_id": "c2", "content": "y", "name": "f"},
        {"role": "assistant", "content": "done"},
        {"role": "assistant", "content": "really"},
    )  # fmt: skip


def test_instructions_stand_before_all_items() -> None:
    """As a system message of their own; the engine makes one of several where a template takes only one."""
    leading = [{"role": "developer", "content": "two"}, {"role": "system", "content": "three"}]
    assert messages(*leading, {"role": "user", "content": "hi"}, instructions="one") == (
        {"role": "system", "content": "one"},
        {"role": "system", "content": "two"},
        {"role": "system", "content": "three"},
        {"role": "user", "content": "hi"},
    )


def test_a_summary_stands_for_reasoning_that_is_not_there() -> None:
    """What another server summarized is what the model is shown; what it encrypted is left out."""
    item: dict[str, Any] = {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "in short"}],
    }
    (message,) = messages(item)
    assert message == {"role": "assistant", "content": "", "reasoning_content": "in short"}
    encrypted = item | {"summary": [], "encrypted_content": "xyz"}
    assert messages(encrypted, HI) == (HI,)
    assert left_out(input=[encrypted, HI]) == ["input[0].encrypted_content"]


def test_every_item_of_the_official_client_is_known() -> None:
    """None is an error but the one that asks for a summary in place of an answer."""
    assert types_of(ResponseInputItemParam) == {*WITHOUT_WORDS, *CALLS, *OUTPUTS, *BOTH, *OTHERS}
    assert refusal(input=[HI, {"type": "compaction_trigger"}]).param == "input[1].type"
    told = set(re.findall(r"`input\[\] (\w+)`", fields.render()))
    assert types_of(ResponseInputItemParam) - told == set()


@pytest.mark.parametrize("kind", sorted(WITHOUT_WORDS))
def test_an_item_without_words_is_left_out(kind: str) -> None:
    """It is named; strict clients are told."""
    items = [{"type": kind, "id": "x_1", **WITHOUT_WORDS[kind]}, HI]
    assert messages(*items) == (HI,)
    assert left_out(input=items) == [f"input[0].{kind}"]
    with pytest.raises(UnsupportedParameter):
        response(Omissions("m", rejects_fields=True), input=items)


@pytest.mark.parametrize(("kind", "name"), [("new_kind", "new_kind"), ("No word!", "type")])
def test_an_item_of_a_kind_that_is_not_known_is_left_out(kind: str, name: str) -> None:
    """A client may be newer than this server: its conversation goes on without the item, which is named."""
    items = [{"type": kind}, HI]
    assert messages(*items) == (HI,)
    assert left_out(input=items) == [f"input[0].{name}"]
    with pytest.raises(UnsupportedParameter):
        response(Omissions("m", rejects_fields=True), input=items)


@pytest.mark.parametrize("kind", sorted(CALLS))
def test_calls_of_all_kinds_are_calls(kind: str) -> None:
    """Their functions are called what they are called where they are offered."""
    item, name, arguments = CALLS[kind]
    (message,) = messages({"type": kind, "id": "x_1", **item})
    function = {"name": name, "arguments": arguments}
    assert message == {
        "role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(OUTPUTS))
def test_results_of_all_kinds_are_results(kind: str) -> None:
    """What is no text leaves a note in its place."""
    item, text = OUTPUTS[kind]
    assert messages({"type": kind, **item}) == ({"role": "tool", "tool_call_id": "c", "content": text},)


@pytest.mark.parametrize("kind", sorted(BOTH))
def test_what_a_server_called_and_got_is_both(kind: str) -> None:
    """A conversation that began elsewhere goes on."""
    item, name, arguments, text = BOTH[kind]
    called, result = messages({"type": kind, "id": "x_1", **item})
    assert called["tool_calls"] == [
        {"id": "x_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    ]
    assert result == {"role": "tool", "tool_call_id": "x_1", "content": text}


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_audio"])
def test_media_leave_a_note(kind: str) -> None:
    """In place, in messages and in results; or are refused where the setting says so."""
    parts = [{"type": "input_text", "text": "see "}, {"type": kind, "data": "x"}]
    items = [{"role": "user", "content": parts}, {"type": "function_call_output", "call_id": "c", "output": parts}]
    note = f"[{kind.removeprefix('input_')} omitted: m reads text only]"
    assert [message["content"] for message in messages(*items)] == [f"see {note}"] * 2
    assert left_out(input=items) == ["input[0].content[1]", "input[1].output[1]"]
    with pytest.raises(UnsupportedParameter):
        response(Omissions("m", rejects_media=True), input=items)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            {"role": "assistant", "content": "no"},
        ),
        ({"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "user", "content": "x"}),
        (
            {"type": "function_call_output", "call_id": "c", "output": None},
            {"role": "tool", "tool_call_id": "c", "content": ""},
        ),
        (
            {"type": "agent_message", "author": "a", "content": [{"type": "input_text", "text": "x"}]},
            {"role": "user", "content": "x"},
        ),
    ],
)
def test_what_clients_send_instead_is_understood(item: dict[str, Any], message: dict[str, Any]) -> None:
    """Null says nothing; words are words."""
    assert messages(item) == (message,)


def test_what_a_history_says_of_its_text_is_left_out() -> None:
    """Sources that another server named, and programs that called."""
    annotation = {"type": "url_citation", "url": "x", "title": "t", "start_index": 0, "end_index": 1}
    items = [
        {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": [annotation]}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": {"a": 1}, "caller": {"type": "program"}},
    ]
    assert left_out(input=items) == ["input[0].content[0].annotations", "input[1].caller"]
    assert messages(*items)[0]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


def test_an_item_updates_the_configuration() -> None:
    """The last one counts."""
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    updates = [
        {"type": "configuration_update", "reasoning": {"effort": "high"}},
        {"type": "configuration_update", "reasoning": {"effort": "low"}, "text": {"format": schema}},
    ]
    parsed = response(input=[HI, *updates], reasoning={"effort": "medium"})
    assert parsed.repeated["reasoning"]["effort"] == "low"
    assert parsed.request.constraint is not None
    assert len(parsed.input_items) == 1


def test_an_answer_comes_back_as_it_went() -> None:
    """Thoughts, words and calls of each kind are the same for the model, whichever way a client sends them back."""
    tools = [AGENTS, PATCH, TOOL, {"type": "shell"}]
    fields: dict[str, Any] = {"tools": tools, "include": ["reasoning.encrypted_content"]}
    parsed = response(**fields)
    events = ResponseEvents(
        "resp_1", 5, "m", {}, parsed.names, has_logprobs=False, seals_thoughts=parsed.seals_thoughts
    )
    events.take(Delta(1, "hm", TextKind.REASONING, 1))
    events.take(Delta(1, "so", TextKind.CONTENT, 2))
    made = [
        ("agents__f", '{"a":1}'),
        ("patch", '{"input":"*** Begin\\n"}'),
        ("f", "{}"),
        ("shell", '{"commands":["ls"]}'),
    ]
    events.take(
        Delta(1, "", TextKind.TOOL, 3, calls=tuple(CallPiece(name, given, is_last=True) for name, given in made))
    )
    events.finish(Finished(1, FinishReason.STOP, USAGE), 6)
    output = json.loads(json.dumps(events.body()["output"]))
    assert [item["type"] for item in output] == [
        *("reasoning", "message", "function_call", "custom_tool_call", "function_call", "shell_call"),
    ]
    assert (output[2]["name"], output[2]["namespace"]) == ("f", "agents")
    assert output[3]["input"] == "*** Begin\n"
    assert "namespace" not in output[4]
    (turn,) = messages(*output, **fields)
    assert (turn["reasoning_content"], turn["content"]) == ("hm", "so")
    assert [call["function"] for call in turn["tool_calls"]] == [
        {"name": name, "arguments": json.loads(given)} for name, given in made
    ]
    del output[0]["content"]  # as Codex sends it
    assert messages(*output, **fields) == (turn,)
    assert left_out(input=output, **fields) == []


@pytest.mark.parametrize("text", ["", "hm\n", "é\U0001f600"])
def test_a_thought_is_packed_and_unpacked(text: str) -> None:
    """What another server made is not ours."""
    assert opened(sealed(text)) == text
    assert [opened(other) for other in ("gAAAAABo", "mlxd1.=", "mlxd1.____")] == [None] * 3
